"""Which texts of a corpus are encoded in a round: few of them, that cost what all of them would."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Texts:
    """What is encoded, and what that takes."""

    texts: Sequence[str]
    lengths_N: NDArray[np.int64]
    """Tokens of each."""
    flops_of: Callable[[NDArray[np.int64]], float]
    batch_texts: int = 32
    """What `SentenceTransformer.encode` takes at once."""

    def count_of(self, tokens: float) -> int:
        """Return how many texts have so many tokens, on average."""
        return math.ceil(tokens / float(self.lengths_N.mean()))

    def like_all(self, number: int, rounds: int, count: int) -> NDArray[np.int64]:
        """Return the rows of about so many texts that sort into the very batches that the whole corpus sorts into.

        A few texts drawn at random would differ more in length from their neighbours than all texts do, and whoever
        pads to the longest of 32 neighbours would look slower than he is. So whole batches of the sorted corpus are
        taken, at even distances, others in each round, and mixed.
        """
        by_length_N = np.argsort([-len(text) for text in self.texts], kind="stable")
        batches = max(1, len(self.texts) // self.batch_texts)
        wanted = min(batches, max(1, round(count / self.batch_texts)))
        chosen = ((np.arange(wanted) + (number + 0.5) / rounds) * batches / wanted).astype(np.int64)
        rows = chosen[:, None] * self.batch_texts + np.arange(self.batch_texts)
        return np.random.default_rng(number).permutation(by_length_N[rows[rows < len(self.texts)]])

    def as_they_come(self, number: int, rounds: int, count: int) -> NDArray[np.int64]:
        """Return the rows of so many consecutive texts, from another place in each round."""
        return (np.arange(count) + number * (len(self.texts) // rounds)) % len(self.texts)

    def in_chunks(self, number: int, rounds: int, count: int, chunks: int, chunk_texts: int) -> NDArray[np.int64]:
        """Return the rows of about so many texts, as many of each of some stretches of the corpus, one after the other.

        Of each stretch, whole batches as in `like_all`: it is sorted by itself, as a process sorts what it is given.
        """
        rows = []
        for chunk in range(chunks):
            start = (number * chunks + chunk) * chunk_texts % max(1, len(self.texts) - chunk_texts + 1)
            stretch = slice(start, start + chunk_texts)
            part = Texts(self.texts[stretch], self.lengths_N[stretch], self.flops_of, self.batch_texts)
            rows.append(start + part.like_all(number, rounds, count // chunks))
        return np.concatenate(rows)

    def taken(self, rows_B: NDArray[np.int64]) -> list[str]:
        return [self.texts[row] for row in rows_B.tolist()]


Choose = Callable[[Texts, int, int, int], NDArray[np.int64]]
"""From a corpus, the number of a round, how many rounds there are, and a count to the rows of about so many texts."""


def named(names: Iterable[str], parts: str) -> list[str]:
    """Return those names that hold one of these, with commas between them and in any case; all, if nothing is asked.

    Raises:
        SystemExit: there is none.
    """
    known = list(dict.fromkeys(names))
    asked = [part.strip().lower() for part in parts.split(",") if part.strip()]
    found = [name for name in known if not asked or any(part in name.lower() for part in asked)]
    if not found:
        raise SystemExit(f"--ways: nothing is called {parts!r}; there are: {'; '.join(known)}")
    return found
