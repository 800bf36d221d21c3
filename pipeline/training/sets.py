"""Training sets: from Arrow tables of one kind to distinct examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.arrow import hash_strings
from pipeline.errors import SourceError

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "class": ("text", "label"),
    "pair": ("text_a", "text_b", "score"),
    "retrieval": ("query", "positives", "negatives"),
    "rerank": ("query", "candidates", "relevance"),
}
"""What a Parquet file of each kind holds: texts; `label` and `score` numbers or, for labels, names; lists of texts and
of grades."""


@dataclass(frozen=True, slots=True)
class TrainingExamples:
    """Distinct examples of one set."""

    name: str
    kind: str
    weight: float
    """How often a batch is of this set, compared with the others."""
    table: pa.Table
    """class: text, label int64 · pair: text_a, text_b, score float64 · else: query, documents list<string>,
    grades list<float64>, the documents of a query each once."""

    def __len__(self) -> int:
        return int(self.table.num_rows)


def distinct_examples(name: str, kind: str, weight: float | None, table: pa.Table) -> TrainingExamples:
    """Return the examples of a table, each once: texts that stand twice would be each other's false negatives.

    Labels become numbers. A text with two labels, and a pair with two scores, is left out, since one of them is wrong.
    Examples of one query are put together, with all of its documents; of two grades of one document the higher counts.

    Args:
        name: of the set, for messages.
        kind: class | pair | retrieval | rerank.
        weight: None = the number of examples.
        table: with the columns of its kind.

    Raises:
        SourceError: a column is missing, or nothing is left.
    """
    missing = [column for column in COLUMNS[kind] if column not in table.column_names]
    if missing:
        raise SourceError(
            f"training set {name}: a set of kind {kind} has the columns {', '.join(COLUMNS[kind])}; "
            f"missing: {', '.join(missing)}"
        )
    table = table.select(COLUMNS[kind]).drop_null()
    found = {"class": _labelled, "pair": _scored}.get(kind, _ranked)(table)
    if not found.num_rows:
        raise SourceError(f"training set {name}: no example is left of {table.num_rows} rows without a null")
    return TrainingExamples(name, kind, float(found.num_rows) if weight is None else weight, found)


def _labelled(table: pa.Table) -> pa.Table:
    labels = table["label"].combine_chunks()
    numbered = table.set_column(1, "label", labels.dictionary_encode().indices.cast(pa.int64()))
    return _agreed(numbered, ["text"], "label")


def _scored(table: pa.Table) -> pa.Table:
    numbered = table.set_column(2, "score", table["score"].cast(pa.float64()))
    return _agreed(numbered, ["text_a", "text_b"], "score")


def _agreed(table: pa.Table, texts: list[str], verdict: str) -> pa.Table:
    """Return each combination of texts once, without those that were judged in two ways."""
    groups = table.group_by(texts, use_threads=False).aggregate([(verdict, "min"), (verdict, "max")])
    agreed = groups.filter(pc.equal(groups[f"{verdict}_min"], groups[f"{verdict}_max"]))
    return agreed.select([*texts, f"{verdict}_min"]).rename_columns([*texts, verdict])


def _ranked(table: pa.Table) -> pa.Table:
    """Return a row per query with its documents and their grades, the documents of a query each once."""
    graded = pa.concat_tables(_documents_of(table, *columns) for columns in _graded_columns(table))
    best = graded.group_by(["query", "document"], use_threads=False).aggregate([("grade", "max")])
    gathered = [("document", "list"), ("grade_max", "list"), ("grade_max", "max")]
    whole = best.group_by("query", use_threads=False).aggregate(gathered)
    has_positive = whole.filter(pc.greater(whole["grade_max_max"], 0.0))
    return has_positive.select(["query", "document_list", "grade_max_list"]).rename_columns(
        ["query", "documents", "grades"]
    )


def _graded_columns(table: pa.Table) -> Sequence[tuple[str, str | float]]:
    is_rerank = "candidates" in table.column_names
    return [("candidates", "relevance")] if is_rerank else [("positives", 1.0), ("negatives", 0.0)]


def _documents_of(table: pa.Table, documents: str, grade: str | float) -> pa.Table:
    lists = table[documents].combine_chunks()
    parents = pc.list_parent_indices(lists)
    texts = pc.list_flatten(lists).cast(pa.string())
    grades = pa.array(np.full(len(texts), grade)) if isinstance(grade, float) else _grades(table[grade], lists)
    found = pa.table({"query": table["query"].combine_chunks().take(parents), "document": texts, "grade": grades})
    return found.drop_null()


def _grades(of_rows: pa.ChunkedArray, candidates: pa.ListArray) -> pa.Array:
    grades = of_rows.combine_chunks()
    candidates_N, grades_N = (pc.fill_null(pc.list_value_length(each), 0).to_numpy() for each in (candidates, grades))
    differing = np.flatnonzero(candidates_N != grades_N)
    if len(differing):
        row = differing[0]
        raise SourceError(
            f"row {row} of a rerank set has {candidates_N[row]} candidates and {grades_N[row]} grades; each "
            "candidate needs one"
        )
    return pc.list_flatten(grades).cast(pa.float64())


def keys_of(texts: Sequence[str]) -> NDArray[np.int64]:
    """Return 63 bits of the SHA-256 of each text, (N,), never 0, which stands for no text."""
    hashes_N = np.frombuffer(hash_strings(pa.array(texts, pa.string())).buffers()[1], "<i8")[::2]
    return hashes_N | 1
