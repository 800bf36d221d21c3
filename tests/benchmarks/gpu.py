"""`make bench-gpu`: our encoder beside SentenceTransformer.encode on a GPU, without Ray, from a model made in place."""

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.benchmarks.gpu_watch import busy_share, gemm_flops, kernel_share, nominal_flops
from tests.benchmarks.random_model import Shape, make_model, texts_of
from tests.benchmarks.rounds import Loaded, Outcome, Variant, interleave, least, loaded, ratios
from tests.benchmarks.samples import Texts

Line = dict[str, object]

REVIEW_QUANTILES = {0.05: 12, 0.5: 46, 0.95: 190, 0.99: 342}
"""Tokens of the demo's 17,410 distinct reviews; a lognormal through these stands for them, since no text is needed."""

NORMAL_QUANTILES = {0.05: -1.6449, 0.5: 0.0, 0.95: 1.6449, 0.99: 2.3263}


@dataclass(frozen=True, slots=True)
class Trial:
    """What is measured with: the model, the device, and how much."""

    folder: Path
    shape: Shape
    device: str
    rounds: int
    seconds: float
    with_compiler: bool

    @property
    def is_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def budgets(self) -> tuple[int, ...]:
        """Of `runtime.batch_tokens`."""
        return (16384, 65536) if self.is_gpu else (1024, 4096)

    @property
    def batches(self) -> tuple[int, ...]:
        """Of `SentenceTransformer.encode`, in texts."""
        return (32, 64, 128, 256, 512) if self.is_gpu else (32, 128)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print tables and keep the figures; without a GPU say so, unless a CPU was asked for."""
    options = _parser().parse_args(arguments)
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # of encode too: it would wait for one core
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            f"bench-gpu: torch {torch.__version__} finds no CUDA device here; nothing was measured. The same code on "
            "the CPU, in a minute or two: make bench-gpu ARGS='--device cpu --layers 2'"
        )
        return 0
    shape = Shape(options.layers, options.hidden, options.hidden // 64, 4 * options.hidden)
    name = f"bert-{shape.layers}x{shape.hidden}"
    options.folder.mkdir(parents=True, exist_ok=True)
    folder = make_model(options.folder.resolve() / "models" / name, shape)
    trial = Trial(folder, shape, options.device, options.rounds, options.seconds, not options.without_compiler)
    lines: list[Line] = []
    with loaded(variants(trial)) as ways:
        for corpus, lengths_N in _corpora(trial).items():
            if options.corpus in (None, corpus):
                lines += list(_measured(trial, ways, corpus, lengths_N))
    kept = {"measured_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    target = options.folder / "gpu.json"
    target.write_text(json.dumps(kept | {"machine": _machine(trial), "lines": lines}, indent=2), encoding="utf-8")
    print(f"\nkept in {target}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu exercises the same code")
    parser.add_argument("--layers", type=int, default=24, help="of the model (24)")
    parser.add_argument("--hidden", type=int, default=1024, help="its width, a multiple of 64 (1024)")
    parser.add_argument("--corpus", choices=("documents", "reviews"), help="only one of them")
    parser.add_argument("--rounds", type=int, default=5, help="of each comparison (5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="per variant and round, on average (2)")
    parser.add_argument("--without-compiler", action="store_true", help="leave out torch-compile")
    parser.add_argument("--folder", type=Path, default=Path(".bench"), help="for the model and gpu.json (.bench)")
    return parser


def review_lengths(count: int, longest: int) -> NDArray[np.int64]:
    """Return tokens per text, distributed like those of the demo's reviews, at most `longest`, in random order."""
    z, logarithms = np.array([*NORMAL_QUANTILES.values()]), np.log([*REVIEW_QUANTILES.values()])
    sigma, mu = np.polyfit(z, logarithms, 1)
    drawn = np.random.default_rng(20261124).lognormal(mu, sigma, count)
    return np.clip(np.rint(drawn), 3, longest).astype(np.int64)


def _corpora(trial: Trial) -> dict[str, NDArray[np.int64]]:
    texts = 16384 if trial.is_gpu else 2048
    longest = trial.shape.max_tokens
    return {"documents": np.full(texts // 4, longest), "reviews": review_lengths(texts, longest)}


def _measured(trial: Trial, ways: Sequence[Loaded], corpus: str, lengths_N: NDArray[np.int64]) -> Iterator[Line]:
    """Yield a line per variant on one corpus, and what the device did meanwhile; print them."""
    texts = texts_of(lengths_N, trial.shape)
    work = Texts(texts, lengths_N, trial.shape.flops, 256 if trial.is_gpu else 32)
    look = 8 * max(trial.budgets) if trial.is_gpu else 500
    outcomes = interleave(ways, work, trial.rounds, trial.seconds, lambda: None, look)
    ceiling = gemm_flops(trial.shape, trial.device)
    nominal = nominal_flops(_device_name(trial))
    lines = [_line(outcome, outcomes, ceiling, nominal) for outcome in outcomes]
    heading = f"{corpus}: {lengths_N.mean():.0f} tokens a text, on {_device_name(trial)}"
    _print_table(heading, lines)
    print(f"  GEMM ceiling of bfloat16 at these shapes, measured here: {ceiling / 1e12:.4g} TFLOP/s")
    best = max(
        (o for o in outcomes if o.timed and o.variant.name.startswith("ours")),
        key=lambda o: statistics.median(one.tokens_per_second for one in o.timed),
        default=None,
    )
    facts: Line = {"gemm_ceiling_flops": ceiling, "nominal_flops": nominal}
    if best:
        encode = next(way.encode for way in ways if way.encode and way.variant is best.variant)
        count = max(256, round(5 * best.timed[0].texts / best.timed[0].seconds)) if trial.is_gpu else 64
        again = partial(encode, [texts[row % len(texts)] for row in range(count)])
        again()
        facts |= {"busiest": best.variant.name} | busy_share(again, trial.device) | kernel_share(again, trial.device)
        shares = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items() if name[:4] == "gpu_")
        print(f"  {best.variant.name}: {shares or 'no GPU to watch'}")
    for line in (*lines, {"variant": "device", **facts}):
        yield {"corpus": corpus, **line}


def variants(trial: Trial) -> list[Variant]:
    """Return what is compared; the first is the float32 reference."""
    from tests.benchmarks.gpu_variants import ours, theirs

    listed = [Variant("encode, batch 32", "float32", theirs(trial.folder, trial.device, "float32", 32))]
    for batch in trial.batches:
        opened = theirs(trial.folder, trial.device, "bfloat16", batch)
        listed.append(Variant(f"encode, batch {batch}", "bfloat16", opened))
    ways: list[tuple[str, str | None, str]] = [("", None if trial.is_gpu else "reference_varlen", "torch")]
    ways.append((" padded", "padded", "torch"))
    if trial.with_compiler:
        ways.append((" compiled", None if trial.is_gpu else "reference_varlen", "torch-compile"))
    for told, attention, engine in ways:
        for budget in trial.budgets:
            opened = ours(trial.folder, "bfloat16", budget, engine, attention)
            listed.append(Variant(f"ours{told}, {budget} tokens", "bfloat16", opened))
    listed.append(Variant("ours", "float32", ours(trial.folder, "float32", trial.budgets[0], "torch", None)))
    return listed


def _line(outcome: Outcome, outcomes: Sequence[Outcome], ceiling: float, nominal: float | None) -> Line:
    variant, timed = outcome.variant, outcome.timed
    line: Line = {"variant": variant.name, "precision": variant.precision}
    if outcome.failure:
        return line | {"failed": outcome.failure}
    flops = statistics.median(one.flops / one.seconds for one in timed)
    cosine = least(one.min_cosine for one in timed)
    best_of_theirs = max(
        (one for one in outcomes if one.variant.name.startswith("encode") and one.timed),
        key=lambda one: statistics.median(timing.tokens_per_second for timing in one.timed),
    )
    return line | {
        "tokens_per_second": round(statistics.median(one.tokens_per_second for one in timed)),
        "to_encode_float32": round(statistics.median(ratios(outcome, outcomes[0]) or [0.0]), 2),
        "to_encode_best": round(statistics.median(ratios(outcome, best_of_theirs)), 2),
        "mfu_of_nominal": round(flops / nominal, 3) if nominal and variant.precision != "float32" else None,
        "of_gemm": round(flops / ceiling, 3) if variant.precision != "float32" else None,
        "min_cosine": None if cosine is None else round(cosine, 6),
        "padding": _padding(outcome),
        "texts": timed[0].texts,
    }


def _padding(outcome: Outcome) -> str | None:
    """Return the tokens computed in vain over the real ones, where the variant counts them."""
    counted: Any = getattr(outcome.variant.open, "counted", None)
    return f"{counted['computed'] / counted['real'] - 1:.2%}" if counted and counted["real"] else None


def _print_table(heading: str, lines: Sequence[Line]) -> None:
    print(f"\n{heading}")
    names = [name for name in lines[0] if name != "failed"]
    rows = [names] + [["" if line.get(name) is None else str(line.get(name)) for name in names] for line in lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    for row, line in zip(rows, ({}, *lines), strict=True):
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if "failed" in line:
            print(f"    failed: {line['failed']}")


def _device_name(trial: Trial) -> str:
    import torch

    return str(torch.cuda.get_device_name()) if trial.is_gpu else "cpu"


def _machine(trial: Trial) -> Line:
    packages = {name: version(name) for name in ("torch", "transformers", "sentence-transformers")}
    shape = {"layers": trial.shape.layers, "hidden": trial.shape.hidden, "dimensions": trial.shape.dimensions}
    return {
        "device": _device_name(trial),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **packages,
        **shape,
    }


if __name__ == "__main__":
    sys.exit(main())
