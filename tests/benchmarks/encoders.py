"""Encoders side by side: sentence-transformers and ours, on four corpora and two models, and what bounds them."""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.encoder.batching import computed_tokens, pack_by_tokens, pack_flat
from pipeline.encoder.equal_lengths import pass_tokens_of
from tests.benchmarks import corpora, quiet
from tests.benchmarks.budget import UNLIMITED, Budget
from tests.benchmarks.ceiling import gemm_flops
from tests.benchmarks.models import Model, bert_large, m3e_small
from tests.benchmarks.rounds import (
    LOOK_TOKENS,
    Loaded,
    Outcome,
    Variant,
    interleave,
    least,
    loaded,
    quiet_rounds,
    ratios,
)
from tests.benchmarks.samples import Texts, named
from tests.benchmarks.variants import CORES, fast_tokenizer, in_own_environment, ours, peers, reference_tokenizer

LARGE_BATCH = 8
"""Texts that `encode` takes at once of the large model, so that even few texts are batches of several lengths; and
documents that are taken together."""

LARGE_LOOK_TOKENS = 300
"""Of the first look at the large model, which takes seconds for so many."""

ONE_IN_A_MIX = 1
"""Long documents among thousands of queries."""

Line = dict[str, object]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Texts that the variants of a model are compared on."""

    name: str
    texts: Sequence[str]
    time: float
    """Per variant and round, over that of the reviews."""
    batch_texts: int = 32
    """Neighbours in length that are taken together: what `encode` takes at once; fewer where all are of one length."""
    look_tokens: int = LOOK_TOKENS


def measure(
    folder: Path, rounds: int, seconds: float, model: str | None = None, budget: Budget = UNLIMITED, ways: str = ""
) -> Iterator[Line]:
    """Yield a line per variant of each comparison, and what else bounds an encoder.

    Args:
        rounds: of each comparison; fewer, if the budget ends before.
        seconds: per variant and round, on reviews; long documents and queries get half, the large model twice as much.
        model: only the one whose name begins so.
        ways: only variants whose name holds one of these, with commas between them, beside `encode`.
    """
    reviews = corpora.reviews(17_410)
    if _is_asked("m3e-small", model):
        small = m3e_small()
        yield from _around_the_model(small)
        documents, queries = corpora.documents(2000), corpora.queries(4000, small.tokenize)
        compared = [
            Corpus("reviews", reviews, 1.0),
            Corpus("512-token documents", documents, 0.5, LARGE_BATCH),
            Corpus("16-token queries", queries, 0.5),
        ]
        if not budget.is_limited or model:
            compared.append(Corpus("16-token queries, one document", [*queries, *documents[:ONE_IN_A_MIX]], 0.5))
        of_small = budget if model else budget.part(0.7)
        others = [*peers(small, with_pool=True), *in_own_environment(folder, small)]
        variants = [*others, *ours(small, with_int8=True)]
        with loaded(chosen(variants, ways)) as able_ways:
            for number, corpus in enumerate(compared):
                share = corpus.time / sum(one.time for one in compared[number:])
                # who has texts of his own has them of the reviews
                able = able_ways if corpus.texts is reviews else [way for way in able_ways if not way.variant.choose]
                yield from _compare(small, able, corpus, rounds, seconds, of_small.part(share))
    if _is_asked("BERT-large shape", model):
        large = bert_large(folder)
        variants = [*peers(large, False, LARGE_BATCH), *ours(large, with_int8=False)]
        with loaded(chosen(variants, ways)) as able_ways:
            corpus = Corpus("reviews", reviews, 2.0, LARGE_BATCH, LARGE_LOOK_TOKENS)
            yield from _compare(large, able_ways, corpus, rounds, seconds, budget)


def chosen(variants: Sequence[Variant], ways: str) -> list[Variant]:
    """Return the variants whose name holds one of these, with commas between them, and all of plain `encode`."""
    names = {"encode", *named((one.name for one in variants), ways)}
    return [one for one in variants if one.name in names]


def _is_asked(name: str, asked: str | None) -> bool:
    return asked is None or name.lower().startswith(asked.lower())


def _compare(
    model: Model, ways: Sequence[Loaded], corpus: Corpus, rounds: int, seconds: float, budget: Budget
) -> Iterator[Line]:
    """Yield one line per variant: medians over the rounds, and of ratios within a round."""
    tokens, _ = model.tokenize(pa.array(corpus.texts), model.description.max_tokens)
    ceilings: dict[str, list[float]] = {way.variant.precision: [] for way in ways}

    def measure_ceilings() -> None:
        for precision, flops in ceilings.items():
            flops.append(gemm_flops(model.gemms, precision))

    work = Texts(corpus.texts, tokens.lengths_N, model.flops, corpus.batch_texts)
    outcomes = interleave(ways, work, rounds, corpus.time * seconds, measure_ceilings, corpus.look_tokens, budget)
    counted = quiet_rounds(outcomes)
    for outcome in outcomes:
        outcome.timed = [outcome.timed[number] for number in counted if number < len(outcome.timed)]
    ceilings = {name: [flops[number] for number in counted] for name, flops in ceilings.items()}
    mean = tokens.lengths_N.mean()
    benchmark = f"encoders, {model.name}, {corpus.name} ({mean:.0f} tokens a text), {CORES} threads"
    for outcome in outcomes:
        yield {"benchmark": benchmark} | _line(outcome, outcomes, ceilings)
    for precision, flops in ceilings.items():
        yield {
            "benchmark": f"GEMM ceiling at the shapes of {model.name}, {CORES} threads ({corpus.name})",
            "precision": precision,
            "gigaflops_per_second": round(statistics.median(flops) / 1e9) if flops else None,
            "lowest": round(min(flops) / 1e9) if flops else None,
            "highest": round(max(flops) / 1e9) if flops else None,
        }


def _line(outcome: Outcome, outcomes: Sequence[Outcome], ceilings: dict[str, list[float]]) -> Line:
    variant, timed = outcome.variant, outcome.timed
    line: Line = {"variant": variant.name, "precision": variant.precision}
    if outcome.failure:
        line["failed"] = outcome.failure
    if not timed:
        return line
    to_float32 = ratios(outcome, outcomes[0])
    same = [one for one in outcomes if one.variant.name == "encode" and one.variant.precision == variant.precision]
    to_same = ratios(outcome, same[0]) if same else []
    cosine = least(one.min_cosine for one in timed)
    shares = [
        one.flops / one.seconds / ceiling for one, ceiling in zip(timed, ceilings[variant.precision], strict=False)
    ]
    return line | {
        "tokens_per_second": round(statistics.median(one.tokens_per_second for one in timed)),
        "texts_per_second": round(statistics.median(one.texts / one.seconds for one in timed), 1),
        "to_encode_float32": _rounded(to_float32),
        "lowest": round(min(to_float32), 2) if to_float32 else None,
        "highest": round(max(to_float32), 2) if to_float32 else None,
        "to_encode_same_precision": _rounded(to_same),
        "min_cosine": None if cosine is None else round(cosine, 7),
        "of_gemm_ceiling": round(statistics.median(shares), 3),
        "texts": timed[0].texts,
        "rounds": len(timed),
        "others_cores": round(max(one.others_cores for one in timed), 2),
    }


def _rounded(values: Sequence[float]) -> float | None:
    return round(statistics.median(values), 2) if values else None


def _around_the_model(model: Model) -> Iterator[Line]:
    """Yield what the loop adds to the model: padding on all reviews, and tokenising on one core."""
    texts = pa.array(corpora.reviews(17_410))
    tokenize = fast_tokenizer(model)
    since, started = quiet.now(), time.perf_counter()
    tokens, _ = tokenize(texts, model.description.max_tokens)
    rate = tokens.lengths_N.sum() / (time.perf_counter() - started)
    others = quiet.cores_of_others(since)
    lengths_N, budget = tokens.lengths_N, pass_tokens_of(CORES, is_short=False)
    for rows, batches in (
        ("padded", pack_by_tokens(lengths_N, budget)),
        ("end to end", pack_flat(lengths_N, budget, 1)),
    ):
        computed = sum(computed_tokens(lengths_N[rows_B], rows != "padded", 1) for rows_B in batches)
        yield {
            "benchmark": f"padding, {len(texts):,} reviews, passes of {budget:,} tokens",
            "rows": rows,
            "tokens": int(lengths_N.sum()),
            "padding": f"{computed / lengths_N.sum() - 1:.2%}",
            "batches": len(batches),
        }
    yield {
        "benchmark": f"tokenising on one core, {len(texts):,} reviews",
        "ours_tokens_per_second": round(float(rate)),
        "transformers_in_batches_of_32": round(_transformers_rate(reference_tokenizer(model), texts.to_pylist())),
        "others_cores": round(others, 2),
    }


def _transformers_rate(tokenizer: Any, texts: list[str]) -> float:
    """Return the tokens per second of padded tensors in batches of 32, as `encode` makes them, longest first."""
    texts = sorted(texts[:4096], key=len, reverse=True)
    started, tokens = time.perf_counter(), 0
    for start in range(0, len(texts), 32):
        batch = tokenizer(texts[start : start + 32], padding=True, truncation=True, max_length=512, return_tensors="np")
        tokens += int(np.asarray(batch["attention_mask"]).sum())
    return tokens / (time.perf_counter() - started)
