"""What it costs to know that no id stands twice: the search for equal hashes, and ids read back from Parts."""

import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrow import fixed_size_list
from pipeline.execution.proof.duplicates import check_ids
from pipeline.records import Part, Shard, SourceFile, Span
from pipeline.storage.filesystem import Store
from pipeline.storage.parquet import PartName, publish_part
from pipeline.storage.uniqueness import find_repeats, placed

HASHES, PIECE = 100_000_000, 16_384
PARTS, DIMENSION = 62, 256


def measure(folder: Path) -> Iterator[dict[str, object]]:
    """Yield one line per benchmark."""
    started = time.perf_counter()
    repeats = sum(map(len, find_repeats(_random_pieces())))
    yield _line(f"search for equal ones among {HASHES:,} hashes", started, repeats=repeats)
    store = Store(str(folder / "ids"))
    shards, parts = _published(store)
    started = time.perf_counter()
    check_ids(store, shards, parts, chunked=False)
    yield _line(f"ids of {PARTS * PIECE:,} rows in {PARTS} Parts on disk, read back", started)
    shutil.rmtree(folder / "ids")


def _line(benchmark: str, started: float, **figures: object) -> dict[str, object]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {"benchmark": benchmark, "seconds": round(time.perf_counter() - started, 1), "peak_MB": peak} | figures


def _random_pieces() -> Iterator[NDArray[np.void]]:
    """Yield random hashes, the last of which stands twice."""
    random = np.random.default_rng(1)
    for index in range(HASHES // PIECE):
        yield placed(np.frombuffer(random.bytes(16 * PIECE), "V16"), index)
    yield placed(np.frombuffer(b"twice!" * 16, "V16")[[0, 0]], HASHES)


def _published(store: Store) -> tuple[list[Shard], list[tuple[str, Part]]]:
    shards, parts = [], []
    vectors_ND = np.random.default_rng(1).standard_normal((PIECE, DIMENSION), np.float32)
    embedding = fixed_size_list(vectors_ND, pa.list_(pa.field("element", pa.float32(), nullable=False), DIMENSION))
    for number in range(PARTS):
        ids = [f"review-{id:09d}" for id in range(number * PIECE, (number + 1) * PIECE)]
        hashes = pa.array([b"0" * 16] * PIECE, pa.binary(16))
        rows = pa.table({"id": ids, "text_hash": hashes, "embedding": embedding})
        shards.append(Shard(f"s{number:02d}", (Span(SourceFile(f"in/{number}", "v", 1, "jsonl")),)))
        parts.append(("run", publish_part(store, PartName("embeddings", "run", "", f"s{number:02d}", 0), rows, {})))
    return shards, parts
