"""Labelled sets as somebody brings them: one for each kind, of a few texts, laid out as mteb has them on the hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Rows = list[dict[str, Any]]

KNOWN = ("AmazonReviewsClassification", "CLSClusteringS2S", "Ocnli", "T2Reranking", "CMedQAv1", "T2Retrieval", "STSB")
"""Tasks of a card, of all kinds and layouts: a subset, renamed columns, both layouts of reranking, qrels."""

OWN = {
    "Stars": "Classification",
    "Shelves": "Clustering",
    "Halves": "PairClassification",
    "Choice": "Reranking",
    "Search": "Retrieval",
    "Nearness": "STS",
}
"""Names and kinds of sets that mteb does not know."""

PER_LABEL = 48


def write_sets(folder: Path, reviews: pa.Table, seed: int = 0) -> Path:
    """Write all of KNOWN and OWN below a folder, of reviews drawn by the seed; return the folder."""
    rng = np.random.default_rng(seed)
    rows = reviews.filter(pa.compute.greater(pa.compute.utf8_length(reviews["text"]), 24))
    texts = {
        label: [
            text[:60]
            for text, of in zip(rows["text"].to_pylist(), rows["label"].to_pylist(), strict=True)
            if of == label
        ]
        for label in ("neg", "pos")
    }
    drawn = {label: rng.permutation(of_label[:1000])[: 2 * PER_LABEL].tolist() for label, of_label in texts.items()}
    labelled = [{"text": text, "label": int(label == "pos")} for label, of in drawn.items() for text in of]
    labelled = [labelled[at] for at in rng.permutation(len(labelled))]
    middle = len(labelled) // 2
    for name, data in (("AmazonReviewsClassification", "zh"), ("Stars", "data")):
        write_split(folder / name / data, "train", labelled[:middle])
        write_split(folder / name / data, "test", labelled[middle:])
    both = [*drawn["neg"][:20], *drawn["pos"][:20]]
    clusters = [{"sentences": both, "labels": ["neg"] * 20 + ["pos"] * 20}]
    write_split(folder / "CLSClusteringS2S" / "data", "test", clusters)
    write_split(folder / "Shelves", "test", clusters, numbered=False)
    pairs = _halves(both)
    ocnli = [{"sent1": one, "sent2": other, "labels": label} for one, other, label in pairs]
    write_split(folder / "C-MTEB" / "OCNLI" / "data", "validation", ocnli)
    own_pairs = [{"sentence1": one, "sentence2": other, "labels": label} for one, other, label in pairs]
    write_split(folder / "Halves" / "data", "test", own_pairs)
    graded = [{"sentence1": one, "sentence2": other, "score": float(5 * label)} for one, other, label in pairs]
    write_split(folder / "STSB" / "data", "test", graded)
    write_split(folder / "Nearness", "test", graded, numbered=False)
    _write_searches(folder, both)
    return folder


def write_split(folder: Path, split: str, rows: Sequence[dict[str, Any]], numbered: bool = True) -> None:
    """Write one split, by its name alone or numbered as the hub does."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{split}-00000-of-00001.parquet" if numbered else f"{split}.parquet"
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / name)


def _halves(texts: Sequence[str]) -> list[tuple[str, str, int]]:
    """Return pairs of halves: those of one text, and those of two."""
    halves = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in texts]
    same = [(one, other, 1) for one, other in halves]
    return same + [(halves[at][0], halves[at - 7][1], 0) for at in range(len(halves))]


def _write_searches(folder: Path, texts: Sequence[str]) -> None:
    """The first half of a text finds its second half: among all, and among five; ids are numbers in one of the sets."""
    halves = [(text[: len(text) // 2], text[len(text) // 2 :]) for text in texts]
    for name, split, judgements, numbers in (
        ("T2Retrieval", "dev", "qrels", False),
        ("T2Reranking", "dev", "data", False),
        ("Search", "test", "qrels", True),
        ("Choice", "test", "default", False),
    ):
        ids = [at if numbers else f"d{at}" for at in range(len(halves))]
        documents = [{"_id": id, "title": "", "text": second} for id, (_, second) in zip(ids, halves, strict=True)]
        write_split(folder / name / "corpus", split, documents)
        asked = [1000 + at if numbers else f"q{at}" for at in range(len(halves))]
        queries = [{"_id": id, "text": first} for id, (first, _) in zip(asked, halves, strict=True)]
        write_split(folder / name / "queries", split, queries)
        judged = [{"query-id": q, "corpus-id": d, "score": 1} for q, d in zip(asked, ids, strict=True)]
        write_split(folder / name / judgements, split, judged)
        if name in ("T2Reranking", "Choice"):
            near = [[ids[at - step] for step in range(5)] for at in range(len(ids))]
            top = [{"query-id": query, "corpus-ids": of} for query, of in zip(asked, near, strict=True)]
            write_split(folder / name / "top_ranked", split, top)
    older = [
        {"query": first, "positive": [second], "negative": [halves[at - step][1] for step in range(1, 5)]}
        for at, (first, second) in enumerate(halves)
    ]
    write_split(
        folder / "CMedQAv1" / "data", "test", [*older, {"query": "no answer", "positive": [], "negative": ["x"]}]
    )
