"""What every disturbed output is compared with: the rows of an undisturbed run, and what a folder reader sees."""

from dataclasses import dataclass

import duckdb
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.dataset

from pipeline import open_snapshot
from pipeline.storage.filesystem import Store
from pipeline.storage.journal import read_journal
from pipeline.storage.snapshots import snapshot_numbers

TIMES = ["created_timestamp", "event_timestamp"]


@dataclass(frozen=True, slots=True)
class Difference:
    """How an output differs from the undisturbed one, in rows."""

    rows: int
    lost: int
    duplicated: int


def folder_rows(output: str) -> pa.Table:
    """Return the rows that a reader of the published folder finds, whatever else lies in it; by id, without times."""
    filesystem, path = fsspec.url_to_fs(open_snapshot(output).folder, use_listings_cache=False)
    rows = pyarrow.dataset.dataset(path, filesystem=filesystem, partitioning="hive").to_table()
    return rows.drop_columns(TIMES).sort_by("id").combine_chunks()


def difference(rows: pa.Table, undisturbed: pa.Table) -> Difference:
    """Count rows that are missing or there more than once."""
    ids = rows["id"].to_pylist()
    lost = len(set(undisturbed["id"].to_pylist()) - set(ids))
    return Difference(len(ids), lost, len(ids) - len(set(ids)))


def check_same(rows: pa.Table, undisturbed: pa.Table, least_cosine: float) -> None:
    """Fail unless both are the same rows, with vectors that are equal (cosine 1) or near enough."""
    if least_cosine == 1.0:
        assert rows.equals(undisturbed)
        return
    assert rows.drop_columns(["embedding"]).equals(undisturbed.drop_columns(["embedding"]))
    one_ND, other_ND = (
        np.stack(table["embedding"].to_numpy(zero_copy_only=False)).astype(np.float64) for table in (rows, undisturbed)
    )
    cosine_N = (one_ND * other_ND).sum(1) / np.linalg.norm(one_ND, axis=1) / np.linalg.norm(other_ND, axis=1)
    assert cosine_N.min() >= least_cosine


def check_folder(output: str) -> None:
    """Fail unless the folder holds exactly the Parts of the one Snapshot, for listings and for DuckDB."""
    store, snapshot = Store(output), open_snapshot(output)
    assert snapshot_numbers(store) == [1]
    prefix = f"snapshots/{snapshot.record.folder}/"
    listed = {key.removeprefix(prefix): stat.size_bytes for key, stat in store.files(prefix.rstrip("/")).items()}
    named = zip(*(snapshot.parts[name].to_pylist() for name in ("path", "size_bytes")), strict=True)
    assert listed == dict(named)
    filesystem = store.filesystem
    with duckdb.connect() as connection:
        if not store.is_local:
            connection.register_filesystem(filesystem)
        found = connection.execute(
            f"SELECT count(*), count(DISTINCT id) FROM read_parquet('{snapshot.folder}/**/*.parquet')"
        ).fetchone()
    assert found == (snapshot.totals["rows"], snapshot.totals["rows"])


def journal_entries(output: str) -> int:
    """Return how many entries the one run of an output has journalled."""
    (run_key,) = Store(output).folders("_meta/runs")
    return read_journal(Store(output), run_key).next_number
