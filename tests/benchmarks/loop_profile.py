"""What the encoder loop spends its time on, as torch.profiler sees it: kernels of the model, copies, and all around."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

from pipeline.encoder.packed import encode_packed, take
from pipeline.encoder.protocol import Encoder
from pipeline.encoder.sentence_transformer import SentenceTransformerEncoder
from pipeline.execution.planning.model import open_encoder
from pipeline.records import TokenBatch
from pipeline.units import counted
from tests.benchmarks import corpora, quiet
from tests.benchmarks.models import Model, m3e_small
from tests.benchmarks.rounds import Texts
from tests.benchmarks.table import Line
from tests.benchmarks.variants import BATCH_TOKENS

PRECISIONS = ("float32", "bfloat16")

THREADS: int = torch.get_num_threads()
"""As $OMP_NUM_THREADS says: on a machine that others use too, with one no wait for another counts as a kernel."""

TOKENS = 4096
"""Of each corpus, in each precision."""

LOOP, MODEL = "encoder loop", "forward pass of a module"

COPIES = frozenset(f"aten::{name}" for name in ("copy_", "_to_copy", "to", "clone", "contiguous", "cat"))

VIEWS = ("as_strided", "detach", "expand", "flatten", "narrow", "permute", "reshape", "resolve_conj", "select", "slice")
MORE_VIEWS = ("split", "squeeze", "t", "transpose", "unflatten", "unsqueeze", "view", "_reshape_alias", "_unsafe_view")
ROOM = ("empty", "empty_like", "empty_strided", "set_", "resize_")
SHAPES = frozenset(f"aten::{name}" for name in (*VIEWS, *MORE_VIEWS, *ROOM))
"""What looks at memory in another way, or fetches and reads some: no arithmetic."""


def measure(rounds: int) -> Iterator[Line]:
    """Yield a line per corpus and precision: the shares of the loop's time, which add up to 1.

    Args:
        rounds: of each; the figures are those of all together.
    """
    model = m3e_small()
    texts = {
        "reviews": corpora.reviews(17_410),
        "512-token documents": corpora.documents(200),
        "16-token queries": corpora.queries(4000, model.tokenize),
    }
    benchmark = f"time of the encoder loop, {model.name}, torch, {counted(THREADS, 'thread')}"
    for precision in PRECISIONS:
        encoder = open_encoder(model.reference, precision, "", THREADS, "torch")
        assert isinstance(encoder, SentenceTransformerEncoder)
        if encoder.emulates:
            yield {"benchmark": benchmark, "precision": precision, "failed": "this CPU imitates it, which says nothing"}
            continue
        with marked(encoder._modules):
            for corpus, of_corpus in texts.items():
                tokens = _tokens(model, of_corpus)
                encode_packed(encoder, take(tokens, np.arange(min(8, len(tokens)))), BATCH_TOKENS)
                since = quiet.now()
                shares = shares_of(encoder, tokens, rounds)
                yield {
                    "benchmark": benchmark,
                    "corpus": corpus,
                    "precision": precision,
                    **{name: round(share, 3) for name, share in shares.items()},
                    "tokens": rounds * len(tokens.token_ids_T),
                    "others_cores": round(quiet.cores_of_others(since), 2),
                }
        encoder.close()


def _tokens(model: Model, texts: Sequence[str]) -> TokenBatch:
    tokens, _ = model.tokenize(pa.array(texts), model.description.max_tokens)
    corpus = Texts(texts, tokens.lengths_N, model.flops)
    return take(tokens, corpus.like_all(0, 1, round(TOKENS / float(tokens.lengths_N.mean()))))


@contextmanager
def marked(modules: Sequence[torch.nn.Module]) -> Iterator[None]:
    """Let every forward pass of these modules stand in profiles under one name."""
    spans: list[record_function] = []

    def begin(module: torch.nn.Module, *inputs: Any) -> None:
        spans.append(record_function(MODEL))
        spans[-1].__enter__()

    def end(module: torch.nn.Module, *inputs: Any) -> None:
        spans.pop().__exit__(None, None, None)

    hooks = [
        hook
        for module in modules
        for hook in (module.register_forward_pre_hook(begin), module.register_forward_hook(end))
    ]
    yield
    for hook in hooks:
        hook.remove()


def shares_of(encoder: Encoder, tokens: TokenBatch, rounds: int) -> dict[str, float]:
    """Encode texts under the profiler; return the share of each kind of work in the time of the loop."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled:
        for _ in range(rounds):
            with record_function(LOOP):
                encode_packed(encoder, tokens, BATCH_TOKENS)
    spent = dict.fromkeys(("kernels", "copies", "shapes", "python_of_the_model", "bookkeeping"), 0.0)
    loop = 0.0
    for event in profiled.events():
        if event.name == LOOP:
            loop += event.cpu_time_total
        spent[_kind_of(event)] += event.self_cpu_time_total
    return {kind: seconds / loop for kind, seconds in spent.items()}


def _kind_of(event: Any) -> str:
    if event.name == MODEL:
        return "python_of_the_model"
    if event.name == LOOP or not event.name.startswith(("aten::", "mkldnn::", "onednn::")):
        return "bookkeeping"
    if event.name in COPIES:
        return "copies"
    return "shapes" if event.name in SHAPES else "kernels"
