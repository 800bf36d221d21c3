"""Sets for retrieval and reranking: from their tables on the hub, in both layouts, to what mteb searches in."""

from collections.abc import Iterable, Mapping
from typing import Any

import datasets
import pyarrow as pa

from pipeline.errors import SourceError

CANDIDATES = ("query", "positive", "negative")
"""Columns of a reranking set in its older layout: a query and two lists of texts per row."""

COLUMNS = {
    "corpus": ("id", "text"),
    "queries": ("id", "text"),
    "judged": ("query-id", "corpus-id", "score"),
    "top_ranked": ("query-id", "corpus-ids"),
}


OTHER_NAMES = {"_id": "id", "qid": "query-id", "pid": "corpus-id"}
"""What some sets call these columns."""


def of_tables(tables: Mapping[str, pa.Table], where: str) -> dict[str, Any]:
    """Return a set of the tables `corpus`, `queries`, `judged` and, for reranking, `top_ranked`; ids become text.

    Args:
        where: begins the message of an error.

    Raises:
        SourceError: a column is missing, no query is judged, or a query has no candidates or one that is not there.
    """
    named = {name: _named(table, name, where) for name, table in tables.items()}
    relevant: dict[str, dict[str, int]] = {}
    columns = (named["judged"][name].to_pylist() for name in COLUMNS["judged"])
    for query, document, score in zip(*columns, strict=True):
        relevant.setdefault(str(query), {})[str(document)] = int(score)
    top_ranked = None
    if "top_ranked" in named:
        pairs = zip(*(named["top_ranked"][name].to_pylist() for name in COLUMNS["top_ranked"]), strict=True)
        top_ranked = {str(query): [str(document) for document in documents] for query, documents in pairs}
    corpus, queries = (datasets.Dataset(_with_text_ids(named[name])) for name in ("corpus", "queries"))
    asked = queries.filter(lambda row: row["id"] in relevant)
    if not len(asked):
        raise SourceError(f"{where}: of the {len(relevant)} queries that are judged none is in the table queries")
    if top_ranked is not None:
        _check_candidates(top_ranked, asked["id"], set(corpus["id"]), where)
    return {
        "corpus": corpus,
        "queries": asked,
        "relevant_docs": relevant,
        "top_ranked": top_ranked,
    }


def of_candidates(rows: pa.Table) -> dict[str, Any]:
    """Return a set of rows with CANDIDATES; rows without a positive or without a negative are left out, as by mteb."""
    documents: dict[str, str] = {}
    queries: dict[str, str] = {}
    relevant: dict[str, dict[str, int]] = {}
    for number, row in enumerate(rows.select(CANDIDATES).to_pylist()):
        if not row["positive"] or not row["negative"]:
            continue
        query = f"q{number}"
        queries[query], relevant[query] = row["query"], {}
        for relevance, name in ((1, "positive"), (0, "negative")):
            for at, text in enumerate(row[name]):
                document = f"{query}-{name}-{at}"
                documents[document], relevant[query][document] = text, relevance
    ids_and_texts = ({"id": list(texts), "text": list(texts.values())} for texts in (documents, queries))
    corpus, asked = (datasets.Dataset.from_dict(columns) for columns in ids_and_texts)
    top_ranked = {query: list(judged) for query, judged in relevant.items()}
    return {"corpus": corpus, "queries": asked, "relevant_docs": relevant, "top_ranked": top_ranked}


def _named(table: pa.Table, name: str, where: str) -> pa.Table:
    renamed = table.rename_columns([OTHER_NAMES.get(column, column) for column in table.column_names])
    missing = [column for column in COLUMNS[name] if column not in renamed.column_names]
    if missing:
        found = ", ".join(table.column_names)
        raise SourceError(f"{where}: the table {name} has no column {', '.join(missing)}; its columns are {found}")
    return renamed


def _with_text_ids(table: pa.Table) -> pa.Table:
    at = table.column_names.index("id")
    return table.set_column(at, "id", table["id"].cast(pa.string()))


def _check_candidates(top_ranked: Mapping[str, list[str]], asked: Iterable[str], known: set[str], where: str) -> None:
    for query in asked:
        if query not in top_ranked:
            raise SourceError(f"{where}: query {query} has no candidates in the table top_ranked")
        stray = next((document for document in top_ranked[query] if document not in known), None)
        if stray is not None:
            raise SourceError(f"{where}: candidate {stray} of query {query} is not in the table corpus")
