"""Texts to measure with: reviews of very uneven lengths, documents that fill the model, queries of 16 tokens."""

import random
import re
from collections.abc import Iterator

import pyarrow as pa

from jobs.demo.fetch import fetch_reviews
from pipeline.text.tokenizer import Tokenizer

CLAUSE_END = re.compile("[，。！？,!?；;]")

QUERY_TOKENS = 16

NEIGHBOURS = 20
"""How many places apart, sorted by length, two reviews may stand that become one."""


def reviews(count: int) -> list[str]:
    """Return distinct reviews: the real ones, then such as are made of the beginning of one and the end of another.

    Both are of nearly the same length and cut at nearly the same place, so that made ones are about as uneven in
    length as the real ones.
    """
    real = fetch_reviews()["text"].to_pylist()
    texts = dict.fromkeys(real[:count])
    for text in _spliced(real):
        if len(texts) >= count:
            break
        texts.setdefault(text)
    return list(texts)


def _spliced(texts: list[str]) -> Iterator[str]:
    choose, by_length = random.Random(11), sorted(texts, key=len)
    while True:
        row = choose.randrange(len(texts) - NEIGHBOURS)
        head, tail = by_length[row], by_length[row + choose.randrange(NEIGHBOURS)]
        beginning = head[: _clause_end(head, choose.randrange(len(head)))]
        yield beginning + tail[_clause_end(tail, len(beginning)) :]


def _clause_end(text: str, at: int) -> int:
    """Return where the clause ends that stands at a place of a text."""
    found = CLAUSE_END.search(text, at)
    return found.end() if found else len(text)


def documents(count: int, characters: int = 1200) -> list[str]:
    """Return texts of so many characters, which is more than 512 tokens: the model cuts all of them to its longest."""
    choose, real = random.Random(12), fetch_reviews()["text"].to_pylist()
    return ["".join(choose.choices(real, k=characters // 10))[:characters] for _ in range(count)]


def queries(count: int, tokenize: Tokenizer) -> list[str]:
    """Return beginnings of reviews that have exactly QUERY_TOKENS tokens, the special ones included."""
    starts = list(dict.fromkeys(text[: QUERY_TOKENS - 2] for text in reviews(3 * count)))
    tokens, _ = tokenize(pa.array(starts), 512)
    return [starts[row] for row in (tokens.lengths_N == QUERY_TOKENS).nonzero()[0][:count]]
