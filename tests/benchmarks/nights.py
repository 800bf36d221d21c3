"""What a night costs: the index of ten million known texts, and whole runs over a corpus that changed a little."""

import os
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jobs.demo.fetch import fetch_model
from pipeline.arrow import fixed_size_binary
from pipeline.storage.filesystem import Store
from pipeline.storage.index_making import IndexedPart, entries_of_rows, write_texts
from pipeline.storage.text_index import TextIndex, leading_halves
from tests.benchmarks.measuring import Measured, embed
from tests.benchmarks.table import Line

TEXTS, PART = 10_000_000, 16_384
SEARCHES = 50
FILES = 10
ROWS_PER_FILE = 250_000
CONFIG = """\
source: {{uri: "{source}"}}
recipe: {{model: "{model}", compute: {compute}}}
output: {{uri: "{output}"}}
"""
PHASES = ("plan", "index", "look through", "start", "run", "stop", "publish")
COMMENTS = ["很好的酒店", "房间干净,服务周到", "早餐一般", "位置方便,下次还来", "电视太小"]


def measure(folder: Path, rows: int) -> Iterator[Line]:
    """Yield a line about the index, and one per night over `rows` short texts with m3e-small, without Ray and on it.

    In bfloat16, and in float32 where the CPU only imitates that: then any night looks cheap beside the first.
    """
    yield _index(folder / "index")
    compute = _compute()
    for executor, without_ray_bytes in (("without Ray", 2**30), ("on Ray", 0)):
        yield from _nights(folder, rows, compute, executor, f"runtime.without_ray_bytes={without_ray_bytes}")


def _compute() -> str:
    from tests.benchmarks.models import m3e_small  # and torch, which is not to be in the peak of the index

    return m3e_small().compute


def _nights(folder: Path, rows: int, compute: str, executor: str, override: str) -> Iterator[Line]:
    corpus, output, config = folder / "nights", folder / "nights-output", folder / "nights.yaml"
    shutil.rmtree(output, ignore_errors=True)
    said = CONFIG.format(source=corpus, model=fetch_model(), compute=compute, output=output)
    config.write_text(said, encoding="utf-8")
    texts = [f"{COMMENTS[number % len(COMMENTS)]} {number}" for number in range(rows)]
    whole, phases = 0.0, list[Line]()
    for night, changed in (("first", 0), ("5 % changed, other files", rows // 20), ("nothing changed", None)):
        if changed is not None:
            texts[:changed] = [f"{text}!" for text in texts[:changed]]
            _write(corpus, texts, night)
        run = embed(config, override)
        whole = whole or run.wall_seconds
        yield {
            "benchmark": f"m3e-small, {compute}, {rows:,} short texts, {executor}",
            "night": night,
            "wall_seconds": round(run.wall_seconds, 1),
            "of_the_first": f"{run.wall_seconds / whole:.1%}",
            "encoded_texts": run.report["encoded_texts"],
            "taken_over": run.report["taken_over"],
            "largest_worker_megabytes": run.worker_bytes // 10**6,
        }
        phases.append(_phases(f"{night}, {executor}", run))
    yield from phases


def _phases(night: str, run: Measured) -> Line:
    """Return where the wall time of a night has gone; start-up is all of it until the first Block is worked on."""
    seconds = run.report["seconds"]
    whole = sum(seconds[phase] for phase in PHASES if phase in seconds)
    before = sum(seconds.get(phase, 0.0) for phase in PHASES[: PHASES.index("run")])
    return {
        "benchmark": "seconds of a night by phase",
        "night": night,
        **{phase.replace(" ", "_"): round(seconds.get(phase, 0.0), 2) for phase in PHASES},
        "imports_page_and_exit": round(run.wall_seconds - whole, 2),
        "start_up_at_most": round(run.wall_seconds - whole + before, 2) if "run" in seconds else None,
        "load": round(os.getloadavg()[0], 1),
    }


def measure_renamed(folder: Path, rows: int) -> Iterator[Line]:
    """Yield a line for a first run over `rows` distinct texts without a model, and one after all files are renamed."""
    corpus, output, config = folder / "renamed", folder / "renamed-output", folder / "renamed.yaml"
    for place in (corpus, output):
        shutil.rmtree(place, ignore_errors=True)
    corpus.mkdir()
    config.write_text(CONFIG.format(source=corpus, model="hashing://256", output=output), encoding="utf-8")
    for start in range(0, rows, ROWS_PER_FILE):
        numbers = pa.array(range(start, min(start + ROWS_PER_FILE, rows)))
        texts = pc.binary_join_element_wise("房间干净,服务周到", numbers.cast(pa.string()), " ")
        pq.write_table(pa.table({"id": numbers, "text": texts}), corpus / f"first-{start:08d}.parquet")
    for night in ("first", "all files renamed"):
        if night != "first":
            for path in corpus.iterdir():
                path.rename(corpus / path.name.replace("first", "second"))
        run = embed(config)
        yield {
            "benchmark": f"without a model, {rows:,} short texts, 256 dimensions",
            "night": night,
            "wall_seconds": round(run.wall_seconds, 1),
            "encoded_texts": run.report["encoded_texts"],
            "taken_over": run.report["taken_over"],
            "driver_megabytes": run.driver_bytes // 10**6,
            "largest_worker_megabytes": run.worker_bytes // 10**6,
        }
    shutil.rmtree(corpus)
    shutil.rmtree(output)


def _write(corpus: Path, texts: list[str], night: str) -> None:
    shutil.rmtree(corpus, ignore_errors=True)
    corpus.mkdir()
    order = pa.array(np.roll(np.arange(len(texts)), len(night)))
    table = pa.table({"id": range(len(texts)), "text": texts}).take(order)
    for start in range(0, len(texts), len(texts) // FILES):
        pq.write_table(table.slice(start, len(texts) // FILES), corpus / f"{len(night)}-{start:08d}.parquet")


def _index(folder: Path) -> Line:
    shutil.rmtree(folder, ignore_errors=True)
    parts = [IndexedPart(f"part {part}", PART, PART * 2048, f"{part:032x}") for part in range(TEXTS // PART)]
    started = time.perf_counter()
    facts = write_texts(Store(str(folder)), "index", parts, map(_entries, range(len(parts))))
    built, index = time.perf_counter() - started, TextIndex(folder / "index")
    numbers = range(0, len(parts), len(parts) // SEARCHES)
    asked = [_hashes(part) for part in numbers]
    started = time.perf_counter()
    found = sum(int((index.find(hashes) >= 0).sum()) for hashes in asked)
    searched = time.perf_counter() - started
    shutil.rmtree(folder)
    return {
        "benchmark": f"index of {len(parts) * PART:,} texts",
        "build_seconds": round(built, 1),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "bytes_on_disk": sum(piece["rows"] for piece in facts["pieces"]) * 16,
        "searches_per_second": round(found / searched),
        "found": f"{found} of {len(asked) * PART}",
    }


def _entries(part: int) -> NDArray[np.void]:
    return entries_of_rows(leading_halves(_hashes(part)), np.full(PART, part), np.arange(PART))


def _hashes(part: int) -> pa.Array:
    return fixed_size_binary(np.frombuffer(np.random.default_rng(part).bytes(16 * PART), "u1").reshape(-1, 16))
