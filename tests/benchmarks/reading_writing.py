"""What reading a source and writing Parts cost by themselves, at 1,792 dimensions, on disk and on a local S3 server."""

import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa

from jobs.demo.corpus import shard_bytes
from jobs.demo.local_s3 import local_s3
from pipeline.encoder.vectors import to_stored
from pipeline.records import Shard, Span
from pipeline.schemas import document_schema, part_schema
from pipeline.storage.filesystem import Store, open_source
from pipeline.storage.listing import list_source
from pipeline.storage.parquet import PartName, publish_part, read_columns, serialise
from pipeline.storage.readers import ReadColumns, read_shard
from tests.benchmarks import corpora, quiet
from tests.benchmarks.budget import UNLIMITED, Budget

Line = dict[str, object]

Rounds = Callable[[], Iterable[int]]
"""How often something is to be measured."""

ROWS, DIMENSIONS = 16_384, 1792

TITLE = f"one thread, {ROWS:,} rows"


def measure(folder: Path, rounds: int, budget: Budget = UNLIMITED) -> Iterator[Line]:
    """Yield a line per way of writing a Part and of reading it, then one per format of a source file.

    Args:
        rounds: fewer of what is measured after the budget has ended.
    """
    repeat = partial(budget.rounds, rounds)
    rows = _part()
    with local_s3(folder / "s3") as server:
        os.environ.update(server.environment)
        if not server.filesystem().exists("bench"):
            server.create_bucket("bench")
        stores = {"disk": Store(str(folder / "parts")), "S3": Store(f"s3://bench/parts-{int(time.time())}")}
        vectors_megabytes = ROWS * DIMENSIONS * 4 / 1e6
        published: dict[str, str] = {}
        yield _written("serialise, in memory", partial(serialise, rows, {}), repeat, vectors_megabytes)
        for place, store in stores.items():
            numbers = count()

            def publish(store: Store = store, place: str = place, numbers: Iterator[int] = numbers) -> None:
                name = PartName("embeddings", "run", "", "shard", next(numbers))
                publish_part(store, name, rows, {"fingerprint": "f"})
                published[place] = name.key

            yield _written(f"publish a Part, {place}", publish, repeat, vectors_megabytes)
            for what, names in (("ids", ["id"]), ("ids and vectors", ["id", "embedding"])):
                read = partial(read_columns, store, published[place], names)
                yield _line(f"Parts of {DIMENSIONS} dimensions", f"read a Part's {what}, {place}", read, repeat)
        yield from _sources(folder, repeat)
    shutil.rmtree(folder / "parts")


def _part() -> pa.Table:
    """Return the rows of a full Part with vectors of length 1."""
    vectors_ND = np.random.default_rng(5).standard_normal((ROWS, DIMENSIONS), np.float32)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    schema = part_schema(pa.int64(), [pa.field("label", pa.string())], DIMENSIONS, "float32", chunked=False)
    now = pa.repeat(pa.scalar(time.time_ns() // 1000, pa.timestamp("us", tz="UTC")), ROWS)
    columns = {
        "id": pa.array(range(ROWS), pa.int64()),
        "label": pa.array(["pos", "neg"] * (ROWS // 2)),
        "tokens": pa.array(np.full(ROWS, 72, np.int32)),
        "truncated": pa.array(np.zeros(ROWS, np.bool_)),
        "text_hash": pa.array([number.to_bytes(16, "big") for number in range(ROWS)], pa.binary(16)),
        "event_timestamp": now,
        "created_timestamp": now,
        "embedding": to_stored(vectors_ND, "float32")[0],
    }
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _written(what: str, write: Callable[[], object], repeat: Rounds, megabytes: float) -> Line:
    line = _line(f"Parts of {DIMENSIONS} dimensions", what, write, repeat)
    return line | {"vectors_MB_per_second": round(megabytes * float(str(line["rows_per_second"])) / ROWS)}


def _line(benchmark: str, what: str, call: Callable[[], object], repeat: Rounds, rows: int = ROWS) -> Line:
    call()
    since, seconds = quiet.now(), []
    for _ in repeat():
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return {
        "benchmark": f"{benchmark}, {TITLE}",
        "variant": what,
        "rows_per_second": round(rows / statistics.median(seconds)),
        "slowest": round(rows / max(seconds)),
        "fastest": round(rows / min(seconds)),
        "rounds": len(seconds),
        "others_cores": round(quiet.cores_of_others(since), 2),
    }


def _sources(folder: Path, repeat: Rounds) -> Iterator[Line]:
    texts = corpora.reviews(ROWS)
    reviews = pa.table({"id": pa.array(range(ROWS), pa.int64()), "text": texts})
    columns = ReadColumns("id", "text", (), document_schema(pa.int64(), []))
    for place, root in (("disk", str(folder / "sources")), ("S3", "s3://bench/sources")):
        filesystem, path = fsspec.url_to_fs(root)
        filesystem.makedirs(path, exist_ok=True)
        for suffix in (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst"):
            filesystem.pipe_file(f"{path}/reviews{suffix}", shard_bytes(reviews, suffix))
            (file,) = list_source([f"{root}/reviews{suffix}"], "auto")
            read = partial(_read, Shard("shard", (Span(file),)), columns)
            yield _line("reading reviews", f"{suffix}, {place}", read, repeat)


def _read(shard: Shard, columns: ReadColumns) -> None:
    rows = sum(block.documents.num_rows for block in read_shard(shard, columns, ROWS, open_source))
    if rows != ROWS:
        raise ValueError(f"{shard.spans[0].file.uri}: read {rows} rows of {ROWS}")
