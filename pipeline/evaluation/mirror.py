"""Data of tasks from a mirror: Parquet files in the layout of the hub, read here and given to mteb.

`datasets.load_dataset` on a folder is not used: it keeps what it read under the folder's name, and gives two mirrors
of one name the rows of the first (datasets 5.2.0).
"""

import re
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from mteb.abstasks import AbsTaskClassification, AbsTaskRetrieval

from pipeline.errors import SourceError
from pipeline.evaluation.card_tasks import CardTask
from pipeline.evaluation.search_sets import CANDIDATES, of_candidates, of_tables
from pipeline.storage.filesystem import Store

Files = dict[str, str]
"""Of a task's folder: the version of each Parquet file by its key."""

COLUMN_ATTRIBUTES = ("input_column_name", "input1_column_name", "input2_column_name", "label_column_name")
"""Where tasks of mteb say which columns they read; those of STS say it in `column_names`."""


JUDGED = "-qrels"
"""Ends the name of the data set that holds the judgements of a retrieval in the layout that C-MTEB began with; corpus
and queries are splits of the other one."""

JUDGEMENTS = ("qrels", "default", "data")
"""Folders beside `corpus` and `queries` that may hold the judgements: by the name of the table, and as the hub calls a
table without one, before and since 2024."""


def mirrored_files(mirror: Store, task: CardTask, dataset_path: str) -> Files:
    """Return the files of a task, from the folder of its name or of its data set's.

    Raises:
        SourceError: the mirror has no such folder, or no Parquet file in it.
    """
    names = dict.fromkeys((task.name, task.mteb_name, dataset_path, dataset_path.split("/")[-1]))
    for name in names:
        found = _parquet_files(mirror, name)
        if found:
            return found | (_parquet_files(mirror, f"{name}{JUDGED}") if task.kind == "Retrieval" else {})
    raise SourceError(
        f"{mirror.uri} has no data of {task.name}: expected Parquet files, laid out as on the hub, below one of "
        f"{', '.join(names)}"
    )


def _parquet_files(mirror: Store, folder: str) -> Files:
    return {key: stat.version for key, stat in mirror.files(folder).items() if key.endswith(".parquet")}


def load_from_mirror(mteb_task: Any, task: CardTask, mirror: Store, files: Files) -> None:
    """Give a task its data.

    Raises:
        SourceError: a split, a table or a column is missing, or a file was changed since it was listed.
    """
    splits = _splits(task, files, str(mteb_task.metadata.dataset["path"]))
    if isinstance(mteb_task, AbsTaskRetrieval):
        mteb_task.dataset = {task.subset: {task.split: _search_data(task, mirror, files, splits)}}
    else:
        needed = (task.split, mteb_task.train_split) if isinstance(mteb_task, AbsTaskClassification) else (task.split,)
        for split in needed:
            if split not in splits:
                found = ", ".join(sorted(splits)) or ", ".join(sorted(files))
                raise SourceError(f"{mirror.uri}: the data of {task.name} has no split {split}, only {found}")
        tables = {split: datasets.Dataset(_table(mirror, files, splits[split])) for split in needed}
        of_splits = datasets.DatasetDict(tables)
        mteb_task.dataset = of_splits if task.subset == "default" else {task.subset: of_splits}
    try:
        mteb_task.dataset_transform()
    except (KeyError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise SourceError(f"{mirror.uri}: the data of {task.name} is not as on the hub: {reason}") from error
    if not isinstance(mteb_task, AbsTaskRetrieval):
        _check_columns(mteb_task, task, mirror)
    mteb_task.data_loaded = True


def _splits(task: CardTask, files: Files, dataset_path: str) -> dict[str, list[str]]:
    """Return the files of each split: of the folder of the subset, of `data/`, or directly in that of the task."""
    splits: dict[str, list[str]] = {}
    for folder in (task.subset, "data", task.name, task.mteb_name, dataset_path.split("/")[-1]):
        of_folder: dict[str, list[str]] = {}
        for key in sorted(files):
            match = re.fullmatch(rf"(?:.*/)?{re.escape(folder)}/([\w.]+?)(-\d[^/]*)?\.parquet", key)
            if match:
                of_folder.setdefault(match[1], []).append(key)
        splits = of_folder | splits
    return splits


def _check_columns(mteb_task: Any, task: CardTask, mirror: Store) -> None:
    of_task = [getattr(mteb_task, name) for name in COLUMN_ATTRIBUTES if hasattr(mteb_task, name)]
    expected = {*of_task, *(getattr(mteb_task, "column_names", ())), *(["score"] if task.kind == "STS" else [])}
    of_splits = mteb_task.dataset if task.subset == "default" else mteb_task.dataset[task.subset]
    for split, rows in of_splits.items():
        missing = sorted(expected - set(rows.column_names))
        if missing:
            found = ", ".join(rows.column_names)
            raise SourceError(
                f"{mirror.uri}: {split} of {task.name} has no column {', '.join(missing)}; its columns are {found}"
            )


def _search_data(task: CardTask, mirror: Store, files: Files, splits: dict[str, list[str]]) -> dict[str, Any]:
    """Return corpus, queries, judgements and candidates as mteb holds them."""
    where = f"{mirror.uri}: {task.name}"
    folders = {key.split("/")[-2] for key in files}
    if "corpus" not in folders and task.split in splits:
        rows = _table(mirror, files, splits[task.split])
        if set(CANDIDATES) <= set(rows.column_names):
            return of_candidates(rows)
    if "corpus" not in folders and {"corpus", "queries"} <= splits.keys():
        if task.split not in splits:
            raise SourceError(f"{where} has no judgements: expected {task.name}{JUDGED}/data/{task.split}-*.parquet")
        of_splits = {"corpus": "corpus", "queries": "queries", "judged": task.split}
        return of_tables({name: _table(mirror, files, splits[split]) for name, split in of_splits.items()}, where)
    judged = next((name for name in JUDGEMENTS if name in folders), JUDGEMENTS[0])
    tables = {
        "corpus": _of_folder(mirror, files, task.split, "corpus"),
        "queries": _of_folder(mirror, files, task.split, "queries"),
        "judged": _of_folder(mirror, files, task.split, judged),
    }
    if "top_ranked" in folders:
        tables["top_ranked"] = _of_folder(mirror, files, task.split, "top_ranked")
    return of_tables(tables, where)


def _of_folder(mirror: Store, files: Files, split: str, folder: str) -> pa.Table:
    """Return the rows of a split; a table without splits, as a corpus often is, is taken whole."""
    of_folder = sorted(key for key in files if key.split("/")[-2] == folder)
    of_split = [key for key in of_folder if re.match(rf"{re.escape(split)}[-.]", key.split("/")[-1])]
    if not of_folder or (folder in JUDGEMENTS and not of_split):
        raise SourceError(f"{mirror.uri} has no {folder}/{split}-*.parquet among {', '.join(sorted(files))}")
    return _table(mirror, files, of_split or of_folder)


def _table(mirror: Store, files: Files, keys: list[str]) -> pa.Table:
    tables = []
    for key in keys:
        content, stat = mirror.read(key), mirror.stat(key)
        if content is None or stat is None or stat.version != files[key]:
            raise SourceError(f"{mirror.uri_of(key)} was changed while it was evaluated; run again")
        try:
            tables.append(pq.read_table(pa.BufferReader(content)))
        except pa.ArrowException as error:
            raise SourceError(f"{mirror.uri_of(key)} is no Parquet file: {error}") from error
    return pa.concat_tables(tables)
