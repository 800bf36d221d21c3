"""Training sets made from packages: reviews, man pages to be found, pairs graded by place; none is in the mini set."""

import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.demo.debian import ManPage, man_pages, passages
from jobs.demo.downloads import built_once, cache_folder
from jobs.demo.fetch import fetch_model, fetch_reviews
from jobs.demo.mini_sets import REVIEWS

T = TypeVar("T")

VERSION = "1"
"""Of what is written here; another one is built anew, beside the one before."""

HELD_OUT = 4000
"""Reviews in no training set: the first half fits the classifiers of an evaluation, the other is told apart."""

POSITIVES = 2
"""Texts of a man page that its name is to find, so that queries with several positives are among them."""

PAIRS = 400
"""Of each grade."""


@dataclass(frozen=True, slots=True)
class TrainingSets:
    """Where the sets lie."""

    reviews: Path
    """class: text, label."""
    search: Path
    """retrieval: query, positives, negatives."""
    pairs: Path
    """pair: text_a, text_b, score."""
    held_out: Path
    """Mirror of an evaluation with one task, MiniReviews: 2,000 reviews to fit on, 2,000 to tell apart."""


def fetch_training_sets(cache: Path | None = None) -> TrainingSets:
    """Give the training sets and the held-out reviews; fetched and built once.

    Raises:
        SourceError: a package cannot be fetched, or is not the one expected.
    """
    cache = cache or cache_folder()

    def build(folder: Path) -> None:
        mini = {text for passage in passages(cache) for text in (passage.heading, passage.text)}
        build_training_sets(fetch_reviews(cache), man_pages(cache), mini, folder)

    folder = built_once(cache, f"training-{VERSION}", build)
    return TrainingSets(*(folder / name for name in ("reviews.parquet", "search.parquet", "pairs.parquet", "held-out")))


def build_training_sets(reviews: pa.Table, pages: Sequence[ManPage], mini: set[str], folder: Path) -> None:
    """Write the sets below a folder; the same input gives the same files.

    Args:
        reviews: `text` and `label`, each text once; the first are those of the mini set.
        mini: headings and texts of the mini set: pages with one of them are left out.
    """
    of_reviews = folder / "held-out" / "MiniReviews" / "data"
    of_reviews.mkdir(parents=True)
    free = reviews.slice(REVIEWS).select(["text", "label"])
    first = len(free) - HELD_OUT
    pq.write_table(free.slice(0, first), folder / "reviews.parquet")
    for split, start in (("train", first), ("test", first + HELD_OUT // 2)):
        told = free.slice(start, HELD_OUT // 2)
        labels = pa.array([int(label == "pos") for label in told["label"].to_pylist()])
        pq.write_table(told.set_column(1, "label", labels), of_reviews / f"{split}-00000-of-00001.parquet")
    chosen = _apart(pages, mini)
    search = {
        "query": [page.name for page in chosen],
        "positives": [page.texts[:POSITIVES] for page in chosen],
        "negatives": pa.array([[] for _ in chosen], pa.list_(pa.string())),
    }
    pq.write_table(pa.table(search), folder / "search.parquet")
    pq.write_table(_graded_pairs(chosen, np.random.default_rng(5)), folder / "pairs.parquet")


def _apart(pages: Sequence[ManPage], mini: set[str]) -> list[ManPage]:
    """Return the pages of which nothing is in the mini set, each name once, without texts that several pages have."""
    pages = [page for page in pages if page.name not in mini and not mini.intersection(page.texts)]
    standing = Counter(text for page in pages for text in set(page.texts))
    named: dict[str, ManPage] = {}
    for page in pages:
        own = tuple(text for text in dict.fromkeys(page.texts) if standing[text] == 1)
        if own:
            named.setdefault(page.name, ManPage(page.section, page.name, own))
    return list(named.values())


def _graded_pairs(pages: Sequence[ManPage], rng: np.random.Generator) -> pa.Table:
    """Grades by place: halves of one text 3, texts of one page 2, of one section of the manual 1, of two sections 0."""
    by_section: dict[str, list[ManPage]] = defaultdict(list)
    for page in pages:
        by_section[page.section].append(page)
    several = [page for page in pages if len(page.texts) > 1]
    shared = [page for page in pages if len(by_section[page.section]) > 1]
    rows: list[tuple[str, str, float]] = []
    for _ in range(PAIRS):
        text = _drawn(_drawn(pages, rng).texts, rng)
        rows.append((text[: len(text) // 2], text[len(text) // 2 :], 3.0))
        first, second = rng.permutation(len(texts := _drawn(several, rng).texts))[:2]
        rows.append((texts[first], texts[second], 2.0))
        page = _drawn(shared, rng)
        near = _drawn([other for other in by_section[page.section] if other is not page], rng)
        rows.append((_drawn(page.texts, rng), _drawn(near.texts, rng), 1.0))
        page = _drawn(pages, rng)
        far = _drawn([other for other in pages if other.section != page.section], rng)
        rows.append((_drawn(page.texts, rng), _drawn(far.texts, rng), 0.0))
    return pa.table(dict(zip(("text_a", "text_b", "score"), zip(*rows, strict=True), strict=True)))


def _drawn(values: Sequence[T], rng: np.random.Generator) -> T:
    return values[int(rng.integers(len(values)))]


def copy_for_configs(folder: Path) -> None:
    """Put the sets and m3e-small where configs/train_mini.yaml expects them; what is there is replaced."""
    sets = fetch_training_sets()
    shutil.copytree(sets.reviews.parent, folder, dirs_exist_ok=True)
    shutil.copytree(fetch_model(), folder / "m3e-small", dirs_exist_ok=True)


if __name__ == "__main__":
    copy_for_configs(Path(sys.argv[1]))
    print(f"the sets and the model are in {sys.argv[1]}")
