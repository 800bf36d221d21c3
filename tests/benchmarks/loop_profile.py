"""What the encoder loop spends its time on, as torch.profiler sees it: kernels of the model, copies, and all around."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
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
from tests.benchmarks import corpora, quiet
from tests.benchmarks.models import Model, m3e_small
from tests.benchmarks.samples import Texts
from tests.benchmarks.table import Line
from tests.benchmarks.variants import BATCH_TOKENS

PRECISIONS = ("float32", "bfloat16")

TOKENS = 4096
"""Of each corpus, in each precision."""

LOOP, MODEL = "encoder loop", "forward pass of a module"

LINEAR = ("addmm", "linear", "mm")
FUSED_ATTENTION = ("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu")
ATTENTION = (*FUSED_ATTENTION, "baddbmm", "bmm", "matmul", "softmax", "_softmax")
ROW_WISE = ("layer_norm", "native_layer_norm", "linalg_vector_norm", "mean", "norm", "segment_reduce", "sum")
ELEMENT_WISE = ("add", "add_", "clamp", "clamp_min", "div", "div_", "gelu", "gelu_", "mul", "mul_", "tanh")
LOOK_UPS = ("embedding", "gather", "index_add", "index_add_", "index_select", "scatter_add", "scatter_add_")
NAMES_OF_LINEAR = frozenset(f"aten::{name}" for name in LINEAR)
NAMES_OF_ATTENTION = frozenset(f"aten::{name}" for name in ATTENTION)
KERNELS = frozenset(f"aten::{name}" for name in (*LINEAR, *ATTENTION, *ROW_WISE, *ELEMENT_WISE, *LOOK_UPS))
"""The arithmetic of a model. An operation that stands in no list counts as bookkeeping, so that kernels are not praised
for what packs rows and asks for values."""

COPIES = frozenset(f"aten::{name}" for name in ("copy_", "_to_copy", "to", "clone", "contiguous", "cat"))

VIEWS = ("as_strided", "detach", "expand", "flatten", "narrow", "permute", "reshape", "resolve_conj", "select", "slice")
MORE_VIEWS = ("split", "squeeze", "t", "transpose", "unflatten", "unsqueeze", "view", "_reshape_alias", "_unsafe_view")
ROOM = ("alias", "empty", "empty_like", "empty_strided", "set_", "resize_")
SHAPES = frozenset(f"aten::{name}" for name in (*VIEWS, *MORE_VIEWS, *ROOM))
"""What looks at memory in another way, or fetches and reads some: no arithmetic."""


KINDS = ("kernels", "copies", "shapes", "python_of_the_model", "bookkeeping")
"""Every event of a profile is of one of them."""

PARTS = ("linear_layers", "attention")
"""Of the kernels: what the ceiling of matrix products is measured with, a fused activation included; and the products
and softmax of attention."""


def measure(rounds: int) -> Iterator[Line]:
    """Yield a line per corpus and precision: the shares of the loop's time, each the median of the rounds.

    Of one thread, as a lane of the encoder has it where cores are few, and of one lane: a profile sees the thread alone
    in which it is taken, and with one thread no wait for another counts as a kernel.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield from _of_one_thread(rounds)
    finally:
        torch.set_num_threads(before)


def _of_one_thread(rounds: int) -> Iterator[Line]:
    model = m3e_small()
    texts = {
        "reviews": corpora.reviews(17_410),
        "512-token documents": corpora.documents(200),
        "16-token queries": corpora.queries(4000, model.tokenize),
    }
    benchmark = f"time of the encoder loop, {model.name}, torch, one thread"
    for precision in PRECISIONS:
        encoder = open_encoder(model.reference, precision, "", 1, "torch")
        assert isinstance(encoder, SentenceTransformerEncoder)
        if encoder.emulates:
            yield {"benchmark": benchmark, "precision": precision, "failed": "this CPU imitates it, which says nothing"}
            continue
        with marked(encoder._modules):
            for corpus, of_corpus in texts.items():
                tokens = _tokens(model, of_corpus)
                encode_packed(encoder, take(tokens, np.arange(min(8, len(tokens)))), BATCH_TOKENS)
                since = quiet.now()
                shares = [shares_of(encoder, tokens) for _ in range(rounds)]
                kernels = [one["kernels"] for one in shares]
                yield {
                    "benchmark": benchmark,
                    "corpus": corpus,
                    "precision": precision,
                    **{name: round(median(one[name] for one in shares), 3) for name in shares[0]},
                    "lowest_kernels": round(min(kernels), 3),
                    "highest_kernels": round(max(kernels), 3),
                    "tokens": len(tokens.token_ids_T),
                    "rounds": rounds,
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


def shares_of(encoder: Encoder, tokens: TokenBatch) -> dict[str, float]:
    """Encode texts under the profiler; return the shares of `KINDS` in the loop's time, 1 together, and of `PARTS`."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled, record_function(LOOP):
        encode_packed(encoder, tokens, BATCH_TOKENS)
    spent = dict.fromkeys((*KINDS, *PARTS), 0.0)
    loop = 0.0
    for event in profiled.events():
        if event.name == LOOP:
            loop += event.cpu_time_total
        spent[kind_of(event.name)] += event.self_cpu_time_total
        if part := part_of(event.name):
            spent[part] += event.self_cpu_time_total
    return {kind: seconds / loop for kind, seconds in spent.items()}


def part_of(name: str) -> str | None:
    """Return which of these parts a kernel is, by its name."""
    if name in NAMES_OF_ATTENTION:
        return "attention"
    return "linear_layers" if name in NAMES_OF_LINEAR or name.startswith(("mkldnn::", "onednn::")) else None


def kind_of(name: str) -> str:
    """Return what kind of work an event of a profile is, by its name."""
    if name == MODEL:
        return "python_of_the_model"
    if name in COPIES:
        return "copies"
    if name in SHAPES:
        return "shapes"
    return "kernels" if name in KERNELS or part_of(name) else "bookkeeping"
