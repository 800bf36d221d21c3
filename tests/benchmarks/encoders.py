"""Encoders side by side: sentence-transformers and ours, on four corpora and two models, and what bounds them."""

import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.encoder.batching import computed_tokens, pack_by_tokens, pack_flat
from pipeline.encoder.equal_lengths import pass_tokens_of
from tests.benchmarks import corpora, quiet
from tests.benchmarks.ceiling import gemm_flops
from tests.benchmarks.models import Model, bert_large, m3e_small
from tests.benchmarks.rounds import Outcome, Texts, interleave, quiet_rounds, ratios
from tests.benchmarks.variants import CORES, fast_tokenizer, ours, peers, reference_tokenizer

LARGE_BATCH = 8
"""Texts that `encode` takes at once of the large model, so that even few texts are batches of several lengths."""

ONE_IN_A_MIX = 1
"""Long documents among thousands of queries."""

Line = dict[str, object]


def measure(folder: Path, rounds: int, seconds: float, model: str | None = None) -> Iterator[Line]:
    """Yield a line per variant of each comparison, and what else bounds an encoder.

    Args:
        rounds: of each comparison.
        seconds: per variant and round, on reviews; long documents and queries get half, the large model twice as much.
        model: only the one whose name begins so.
    """
    if _is_asked("m3e-small", model):
        small = m3e_small()
        yield from _around_the_model(small)
        reviews = corpora.reviews(17_410)
        yield from _compare(small, "reviews", reviews, rounds, seconds, with_pool=True)
        documents, queries = corpora.documents(2000), corpora.queries(4000, small.tokenize)
        yield from _compare(small, "512-token documents", documents, rounds, seconds / 2, with_pool=False)
        yield from _compare(small, "16-token queries", queries, rounds, seconds / 2, with_pool=False)
        mixed = [*queries, *documents[:ONE_IN_A_MIX]]
        yield from _compare(small, "16-token queries, one document", mixed, rounds, seconds / 2, with_pool=False)
    if _is_asked("BERT-large shape", model):
        large = bert_large(folder)
        yield from _compare(large, "reviews", corpora.reviews(17_410), rounds, 2 * seconds, False, LARGE_BATCH)


def _is_asked(name: str, asked: str | None) -> bool:
    return asked is None or name.lower().startswith(asked.lower())


def _compare(
    model: Model, corpus: str, texts: Sequence[str], rounds: int, seconds: float, with_pool: bool, batch_texts: int = 32
) -> Iterator[Line]:
    """Yield one line per variant: medians over the rounds, and of ratios within a round."""
    tokens, _ = model.tokenize(pa.array(texts), model.description.max_tokens)
    variants = [*peers(model, with_pool, batch_texts), *ours(model, with_int8=model.name == "m3e-small")]
    ceilings: dict[str, list[float]] = {variant.precision: [] for variant in variants}

    def measure_ceilings() -> None:
        for precision, flops in ceilings.items():
            flops.append(gemm_flops(model.gemms, precision))

    work = Texts(texts, tokens.lengths_N, model.flops, batch_texts)
    outcomes = interleave(variants, work, rounds, seconds, measure_ceilings)
    counted = quiet_rounds(outcomes)
    for outcome in outcomes:
        outcome.timed = [outcome.timed[number] for number in counted if number < len(outcome.timed)]
    ceilings = {name: [flops[number] for number in counted] for name, flops in ceilings.items()}
    mean = tokens.lengths_N.mean()
    benchmark = f"encoders, {model.name}, {corpus} ({mean:.0f} tokens a text), {CORES} threads"
    for outcome in outcomes:
        yield {"benchmark": benchmark} | _line(outcome, outcomes, ceilings)
    for precision, flops in ceilings.items():
        yield {
            "benchmark": f"GEMM ceiling at the shapes of {model.name}, {CORES} threads ({corpus})",
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
    same = next((other for other in outcomes if other.variant.precision == variant.precision), outcomes[0])
    to_same = ratios(outcome, same)
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
        "min_cosine": round(min(one.min_cosine for one in timed), 7),
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
    lengths_N, budget = tokens.lengths_N, pass_tokens_of(CORES)
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
