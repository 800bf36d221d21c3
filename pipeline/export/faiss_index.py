"""A Snapshot as a FAISS index file, with the recall that was measured against exact search."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.arrow import dequantised
from pipeline.errors import ConfigError, StorageError
from pipeline.export.outcome import Exported, origin_of
from pipeline.export.recall import NEIGHBOURS, ExactSearch, recall_of
from pipeline.export.stream import batches_of
from pipeline.fingerprint import fingerprint
from pipeline.optional import library
from pipeline.storage.faults import told_as
from pipeline.storage.filesystem import Store
from pipeline.storage.snapshots import Snapshot, snapshot_numbers

EXACT_ROWS = 10_000
"""Up to so many rows the index keeps the vectors as they are and searches all of them."""

TRAINING_BYTES = 128 * 2**20
"""Of the vectors on which the lists are fitted."""

ROWS_PER_LIST = 39
"""FAISS wants as many to fit one."""

QUERIES = 256
"""Rows of the Snapshot whose neighbours are searched both ways."""

ENOUGH_RECALL = 0.95
"""The index looks into more of its lists until it finds so many of the true neighbours, if it can."""

FACTS, RECALL = "index.json", f"recall_at_{NEIGHBOURS}"


def export(snapshot: Snapshot, uri: str) -> Exported:
    """Write an index of the rows' vectors into a folder of its own below the URI, its facts last.

    Similarity is the inner product, which is the cosine where the recipe normalises. Memory: the index, one byte per
    dimension and row (four up to EXACT_ROWS), and the vectors it is fitted on. The Snapshot is read twice.

    Raises:
        ConfigError: FAISS is not installed, or the vectors are binary codes.
        StorageError: a store or $TMPDIR fails, or the Snapshot has no rows.
    """
    faiss, store = library("faiss", "faiss", "--to faiss"), Store(uri)
    if snapshot.recipe["stored"] == "binary":
        raise ConfigError("--to faiss needs vectors of numbers; this snapshot holds binary codes (recipe.stored)")
    if not snapshot.totals["rows"]:
        raise StorageError(f"snapshot {snapshot.number} of {snapshot.store.uri} has no rows to search among")
    folder = f"{snapshot.number:08d}-{fingerprint({'origin': dict(origin_of(snapshot)), 'rows': EXACT_ROWS})[:8]}"
    found = store.read(f"{folder}/{FACTS}")
    if found is None:
        with tempfile.TemporaryDirectory(prefix="faiss-") as name:
            facts = _build(faiss, snapshot, Path(name))
            for file in ("index.faiss", "ids.parquet"):
                _upload(store, Path(name, file), f"{folder}/{file}")
        store.put(f"{folder}/{FACTS}", orjson.dumps(facts, option=orjson.OPT_INDENT_2))
        store.remove_empty_folders("_meta")
    pointer, is_newest = f"{folder}\n".encode(), snapshot.number == snapshot_numbers(snapshot.store)[-1]
    if found is None or (is_newest and store.read("LATEST") != pointer):  # who wrote the index may have died before
        store.put("LATEST", pointer)
    facts = facts if found is None else orjson.loads(found)
    recall = facts[RECALL]
    missed = "" if recall >= ENOUGH_RECALL else f"{RECALL} is {recall}, below {ENOUGH_RECALL}, with all lists searched"
    return Exported("faiss", store.uri, snapshot.number, facts["rows"], folder, found is None, facts, missed)


def _build(faiss: Any, snapshot: Snapshot, folder: Path) -> dict[str, Any]:
    """Write `index.faiss` and `ids.parquet`; return what is to be told of them."""
    rows, dimension = snapshot.totals["rows"], snapshot.record.dimension
    random = np.random.default_rng(0)
    queries_Q = _drawn(rows, QUERIES, random)
    training_S = _drawn(rows, max(ROWS_PER_LIST, TRAINING_BYTES // (4 * dimension)), random)
    lists = 0 if rows <= EXACT_ROWS else max(1, min(int(4 * rows**0.5), len(training_S) // ROWS_PER_LIST))
    taken = _rows_at(snapshot, np.union1d(queries_Q, training_S if lists else queries_Q))
    index = faiss.index_factory(dimension, f"IVF{lists},SQ8" if lists else "Flat", faiss.METRIC_INNER_PRODUCT)
    if lists:
        index.train(taken[1][np.isin(taken[0], training_S)])
    exact = ExactSearch(queries_Q, taken[1][np.isin(taken[0], queries_Q)])
    del taken
    _fill(snapshot, index, exact, folder / "ids.parquet")
    recall = _tuned(faiss, index, lists, exact)
    faiss.write_index(index, str(folder / "index.faiss"))
    return {
        "output": snapshot.store.uri,
        "snapshot": snapshot.number,
        "folder": snapshot.record.folder,
        "fingerprint": snapshot.record.fingerprint,
        "recipe": snapshot.recipe,
        "rows": rows,
        "dimension": dimension,
        "metric": "inner product",
        "lists": lists,
        "lists_searched": index.nprobe if lists else 0,
        RECALL: round(recall, 4),
        "queries": len(queries_Q),
        "size_bytes": (folder / "index.faiss").stat().st_size,
    }


def _drawn(rows: int, wanted: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return the numbers of some rows, ascending: all of them, or about so many of more."""
    return np.arange(rows) if rows <= wanted else np.unique(random.integers(0, rows, wanted))


def _tuned(faiss: Any, index: Any, lists: int, exact: ExactSearch) -> float:
    """Let the index search as few of its lists as give enough recall; return that recall."""
    searched = 1
    while True:
        if lists:
            index.nprobe = min(searched, lists)  # stands in the file too
        found_QK = index.search(exact.queries_QD, NEIGHBOURS + 1)[1]
        recall = recall_of(found_QK, exact)
        if recall >= ENOUGH_RECALL or searched >= lists:
            return recall
        searched *= 2


def _fill(snapshot: Snapshot, index: Any, exact: ExactSearch, ids: Path) -> None:
    """Add every row to the index, its id at the same position to a file, and search it exactly on the way."""
    keys = [name for name in ("id", "chunk") if name in snapshot.schema.names]
    schema = pa.schema([snapshot.schema.field(name) for name in keys])
    with pq.ParquetWriter(ids, schema) as writer:
        for batch in batches_of(snapshot, [*keys, *_vector_columns(snapshot)]):
            vectors_ND = _vectors(snapshot, batch)
            index.add(vectors_ND)
            exact.look_at(vectors_ND)
            writer.write_table(pa.Table.from_batches([batch.select(keys)]).cast(schema))
    if index.ntotal != snapshot.totals["rows"]:
        raise StorageError(
            f"snapshot {snapshot.number} of {snapshot.store.uri} has {snapshot.totals['rows']} rows, read were "
            f"{index.ntotal}; `verify` says what is wrong with it"
        )


def _rows_at(snapshot: Snapshot, numbers_M: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the vectors of some rows, with their numbers.

    Args:
        numbers_M: ascending.
    """
    pieces: list[NDArray[np.float32]] = []
    for first, batch in _numbered(snapshot):
        start, end = np.searchsorted(numbers_M, [first, first + batch.num_rows])
        if end > start:
            pieces.append(_vectors(snapshot, batch.take(pa.array(numbers_M[start:end] - first))))
    return numbers_M, np.concatenate(pieces)


def _numbered(snapshot: Snapshot) -> Iterator[tuple[int, pa.RecordBatch]]:
    first = 0
    for batch in batches_of(snapshot, _vector_columns(snapshot)):
        yield first, batch
        first += batch.num_rows


def _vector_columns(snapshot: Snapshot) -> list[str]:
    return [name for name in ("embedding", "scale") if name in snapshot.schema.names]


def _vectors(snapshot: Snapshot, batch: pa.RecordBatch) -> NDArray[np.float32]:
    vectors_ND = dequantised(pa.Table.from_batches([batch]), snapshot.recipe["stored"])
    return np.ascontiguousarray(vectors_ND, np.float32)


def _upload(store: Store, path: Path, key: str) -> None:
    with told_as(StorageError, "write", store.uri_of(key)):
        target = store.path_of(key)
        store.filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
        store.filesystem.put_file(str(path), target)
