"""Exact search as an evaluation does it, from the Parts to what mteb is given: time, memory and exactness."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tests.benchmarks.measuring import embed

if TYPE_CHECKING:
    from pipeline.evaluation.stored_encoder import StoredEncoder

DOCUMENTS, QUERIES = 120_000, 20_000
DIMENSION, TOP = 1792, 1000
"""TOP is what mteb asks for, the greatest depth of its metrics."""

CHECKED = 500
"""Queries whose ten best documents are compared with a product of everything in float64."""

SAME = 1e-6
"""Cosines that differ by less are of documents equally near."""

CONFIG = """\
source: {{uri: "{source}"}}
recipe: {{model: "hashing://{dimension}", stored: float16}}
output: {{uri: "{output}"}}
"""


def measure(folder: Path, documents: int) -> Iterator[dict[str, object]]:
    """Yield one line, of a process of its own that finds a sixth as many queries as there are documents."""
    from pipeline.evaluation.rehearsal import text_table

    queries = documents * QUERIES // DOCUMENTS
    source, output = folder / "search" / f"{documents}", folder / "search" / f"output-{documents}"
    source.mkdir(parents=True, exist_ok=True)
    pq.write_table(text_table(_texts(documents + queries)), source / "texts.parquet")
    config = folder / "search.yaml"
    config.write_text(CONFIG.format(source=source, output=output, dimension=DIMENSION), encoding="utf-8")
    embed(config)
    program = [sys.executable, "-m", "tests.benchmarks.search", str(output), str(documents), str(queries)]
    found = subprocess.run(program, capture_output=True, text=True, check=False)
    if found.returncode:
        raise RuntimeError(found.stderr.strip().splitlines()[-1])
    shape = f"{documents:,} × {DIMENSION:,} documents, {queries:,} queries, {TOP:,} of each"
    yield {"benchmark": f"exact search of an evaluation, {shape}"} | json.loads(found.stdout.splitlines()[-1])


def _texts(count: int) -> list[str]:
    words_NW = np.random.default_rng(7).integers(0, 5000, size=(count, 12))
    return [" ".join(map(str, words)) for words in words_NW.tolist()]


def _searched(uri: str, documents: int, queries: int) -> dict[str, object]:
    """Search as mteb would, and compare with a product of everything."""
    from datasets import Dataset

    from pipeline.evaluation.own_tasks import as_mteb_task, own_task
    from pipeline.evaluation.stored_encoder import StoredEncoder
    from pipeline.evaluation.stored_vectors import StoredVectors
    from pipeline.storage.snapshots import open_snapshot

    texts = _texts(documents + queries)
    metadata = as_mteb_task(own_task("Search", "Retrieval")).metadata
    tables = [
        Dataset.from_dict({"id": [str(n) for n in range(len(rows))], "text": rows})
        for rows in (texts[:documents], texts[documents:])
    ]
    started = time.perf_counter()
    encoder = StoredEncoder(StoredVectors(open_snapshot(uri)), "search", DIMENSION)
    encoder.index(tables[0], task_metadata=metadata)
    read = time.perf_counter()
    found = encoder.search(tables[1], task_metadata=metadata, top_k=TOP)
    figures = {
        "read_seconds": round(read - started, 1),
        "search_seconds": round(time.perf_counter() - read, 1),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 10**6,
    }
    checked = np.linspace(0, queries - 1, min(CHECKED, queries)).astype(int).tolist()
    found_Q10 = np.array([[int(document) for document in list(found[str(query)])[:10]] for query in checked])
    return figures | _exactness(encoder, [texts[documents + query] for query in checked], found_Q10)


def _exactness(encoder: "StoredEncoder", asked: list[str], found_Q10: NDArray[np.int64]) -> dict[str, object]:
    queries_QD = _unit(encoder.stored.vectors(encoder.stored.places(asked)))
    cosines = [
        queries_QD @ _unit(encoder.stored.vectors(encoder.places_N[first : first + 8192])).T
        for first in range(0, len(encoder.places_N), 8192)
    ]
    cosines_QN = np.concatenate(cosines, axis=1)
    best_Q10 = -np.sort(-cosines_QN, axis=1)[:, :10]
    theirs_Q10 = np.take_along_axis(cosines_QN, found_Q10, axis=1)
    is_exact_Q = (np.abs(best_Q10 - theirs_Q10) < SAME).all(axis=1)
    return {"queries_compared": len(asked), "with_the_exact_ten": int(is_exact_Q.sum())}


def _unit(vectors_ND: NDArray[np.float32]) -> NDArray[np.float64]:
    vectors = vectors_ND.astype(np.float64)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


if __name__ == "__main__":
    print(json.dumps(_searched(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
