"""What planning costs: 100,000 files, and nights over a snapshot of 10,000 Parts of which one file or none changed."""

import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import fsspec
import orjson
import pyarrow as pa

from jobs.demo.local_s3 import local_s3
from pipeline import schemas
from pipeline.config_file import load_config
from pipeline.execution.planning import plan as planning
from pipeline.records import SourceFile
from pipeline.storage.filesystem import Store
from tests.benchmarks.measuring import embed
from tests.benchmarks.table import Line
from tests.running import leading_to, written_config
from tests.without_ray import run_in_process

FILES, PARTS, ROWS = 100_000, 10_000, 16
"""Files that a stub lists; Parts of the snapshot, each of a file of so many rows."""

TINY, LARGE = 2000, 5 * 2**20
"""Bytes of a file that shares its Shard with others, and of one that does not."""


def measure(folder: Path) -> Iterator[Line]:
    """Yield a line per plan of 100,000 files, and one per night, on disk and on a real S3 server."""
    for size_bytes in (TINY, LARGE):
        command = [sys.executable, "-m", __name__, str(folder / "planning"), str(size_bytes)]
        yield json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    yield from _nights("on disk", folder / "planning", str(folder / "planning"))
    with local_s3(folder / "planning-s3") as server, leading_to(server.environment):
        server.create_bucket("nights")
        yield from _nights("on S3", folder / "planning", "s3://nights")
        server.kill()


def plan_of_many(folder: Path, size_bytes: int) -> Line:
    """Plan files of this size that a stub lists, for an output that is empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names = (f"s3://corpus/dt=2026-{n // 10_000:02d}/part-{n:08d}.jsonl" for n in range(FILES))
    files = [SourceFile(name, f"{n:032x}", size_bytes + n % 997, "jsonl") for n, name in enumerate(names)]
    config = load_config(_written(folder, "s3://corpus", str(folder / "out"), 16384), [])
    schema = schemas.document_schema(pa.int64(), [])
    started = time.perf_counter()
    with (
        patch.object(planning, "list_source", lambda *asked: files),
        patch.object(planning, "document_schema_of", lambda *asked: schema),
    ):
        plan = planning.make_plan(config, Store(config.output.uri))
    return {
        "benchmark": f"plan of {FILES:,} files from a stub lister",
        "bytes of a file": size_bytes,
        "seconds": round(time.perf_counter() - started, 1),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "shards": len(plan.wanted),
    }


def _nights(where: str, folder: Path, uri: str) -> Iterator[Line]:
    """Publish a snapshot of PARTS Parts without Ray, then run `nightly` as a person does."""
    source, output = f"{uri}/corpus", f"{uri}/out"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = _written(folder, source, output, ROWS)
    filesystem, root = fsspec.core.url_to_fs(source)
    filesystem.makedirs(root, exist_ok=True)
    filesystem.pipe({f"{root}/{number:05d}.jsonl": _content(number) for number in range(PARTS)})
    run_in_process(config)
    for night, changed in (("nothing changed", 0), ("one file changed", 1), ("nothing changed since", 0)):
        if changed:
            filesystem.pipe({f"{root}/{PARTS // 2:05d}.jsonl": _content(PARTS)})
        run = embed(Path(config), command="nightly")
        yield {
            "benchmark": f"nights over {PARTS:,} Parts, {where}",
            "night": night,
            "wall_seconds": round(run.wall_seconds, 1),
            "peak_megabytes": run.driver_bytes // 10**6,
            "outcome": run.report["outcome"],
            "encoded_texts": run.report["encoded_texts"],
            **{name: round(run.report["seconds"].get(name, 0.0), 1) for name in ("plan", "start", "run", "publish")},
        }


def _written(folder: Path, source: str, output: str, rows_per_part: int) -> str:
    sections: dict[str, dict[str, object]] = {
        "source": {"uri": source},
        "recipe": {"model": "hashing://64"},
        "output": {"uri": output, "rows_per_part": rows_per_part},
    }
    return written_config(folder / "job.yaml", **sections)


def _content(number: int) -> bytes:
    """Return a file that is a Shard of its own and makes one Part."""
    rows = [{"id": f"{number}-{row}", "text": f"{number} {row} " + "x" * 300} for row in range(ROWS)]
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


if __name__ == "__main__":
    print(json.dumps(plan_of_many(Path(sys.argv[1]), int(sys.argv[2]))))
