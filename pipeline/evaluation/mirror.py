"""Data of tasks from a mirror: Parquet files in the layout of the hub, read here and given to mteb.

`datasets.load_dataset` on a folder is not used: it keeps what it read under the folder's name, and gives two mirrors
of one name the rows of the first (datasets 5.2.0).
"""

import re
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from mteb.abstasks import AbsTaskRetrieval

from pipeline.errors import SourceError
from pipeline.evaluation.card_tasks import CardTask
from pipeline.storage.filesystem import Store

Files = dict[str, str]
"""Of a task's folder: the version of each Parquet file by its key."""


def mirrored_files(mirror: Store, task: CardTask, dataset_path: str) -> Files:
    """Return the files of a task, from the folder of its name or of its data set's.

    Raises:
        SourceError: the mirror has no such folder, or no Parquet file in it.
    """
    names = dict.fromkeys((task.name, task.mteb_name, dataset_path, dataset_path.split("/")[-1]))
    for name in names:
        found = {key: stat.version for key, stat in mirror.files(name).items() if key.endswith(".parquet")}
        if found:
            return found
    raise SourceError(
        f"{mirror.uri} has no data of {task.name}: expected Parquet files, laid out as on the hub, below one of "
        f"{', '.join(names)}"
    )


def load_from_mirror(mteb_task: Any, task: CardTask, mirror: Store, files: Files) -> None:
    """Give a task its data.

    Raises:
        SourceError: a split or a table is missing.
    """
    if isinstance(mteb_task, AbsTaskRetrieval):
        mteb_task.dataset = {task.subset: {task.split: _search_data(task, mirror, files)}}
    else:
        splits = {
            match[1]: _table(mirror, files, match[1], folder)
            for folder in ("data", task.subset)
            for key in files
            if (match := re.search(rf"/{re.escape(folder)}/([\w.]+?)-\d[^/]*$", key))
        }
        if task.split not in splits:
            raise SourceError(f"{mirror.uri}: the data of {task.name} has no split {task.split}, only {sorted(splits)}")
        of_splits = datasets.DatasetDict({split: datasets.Dataset(table) for split, table in splits.items()})
        mteb_task.dataset = of_splits if task.subset == "default" else {task.subset: of_splits}
    mteb_task.dataset_transform()
    mteb_task.data_loaded = True


def _search_data(task: CardTask, mirror: Store, files: Files) -> dict[str, Any]:
    names = {key.split("/")[-2] for key in files}
    judged = _table(mirror, files, task.split, "qrels" if "qrels" in names else "default")
    relevant: dict[str, dict[str, int]] = {}
    columns = (judged[name].to_pylist() for name in ("query-id", "corpus-id", "score"))
    for query, document, score in zip(*columns, strict=True):
        relevant.setdefault(query, {})[document] = int(score)
    queries = _texts(_table(mirror, files, task.split, "queries"))
    top_ranked = None
    if "top_ranked" in names:
        table = _table(mirror, files, task.split, "top_ranked")
        top_ranked = dict(zip(table["query-id"].to_pylist(), table["corpus-ids"].to_pylist(), strict=True))
    return {
        "corpus": _texts(_table(mirror, files, task.split, "corpus")),
        "queries": queries.filter(lambda row: row["id"] in relevant),
        "relevant_docs": relevant,
        "top_ranked": top_ranked,
    }


def _texts(table: pa.Table) -> Any:
    return datasets.Dataset(table.rename_columns(["id" if name == "_id" else name for name in table.column_names]))


def _table(mirror: Store, files: Files, split: str, folder: str) -> pa.Table:
    """Return the rows of a split; a table without splits, as a corpus often is, is taken whole."""
    of_folder = sorted(key for key in files if key.split("/")[-2] == folder)
    of_split = [key for key in of_folder if re.match(rf"{re.escape(split)}[-.]", key.split("/")[-1])]
    if not of_folder or (folder in ("data", "default", "qrels") and not of_split):
        raise SourceError(f"{mirror.uri} has no {folder}/{split}-*.parquet among {', '.join(sorted(files))}")
    contents = [mirror.read(key) for key in of_split or of_folder]
    return pa.concat_tables([pq.read_table(pa.BufferReader(content)) for content in contents])
