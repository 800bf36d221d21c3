"""Texts that stand in several Blocks: whoever meets one first encodes it and lends its vector to the others.

An encoder begins with those texts of its Block that others may ask for, and lends them before it goes on. One actor
per run keeps the vectors. If it dies it starts empty, and where an encoder dies the others wait for it in vain: some
texts are encoded again then, nothing is lost.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.arrow import one_array
from pipeline.encoder.packed import Encoded, take
from pipeline.execution.keepers import answer_of, start_keeper
from pipeline.records import TokenBatch

LENT_BYTES = 2**30
"""Of vectors that are kept for other Blocks; texts for which there is no room are encoded once per Block."""

WAIT_SECONDS, POLL_SECONDS = 60.0, 0.05
"""How long an encoder that has nothing else to do waits for the vectors another one has promised; how often it asks."""

FREE, PROMISED, THERE = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Answer:
    """What the ledger has of K texts; what is neither there nor promised by another is promised by who has asked."""

    is_there_K: NDArray[np.bool_]
    is_promised_K: NDArray[np.bool_]
    """By another encoder, which is at work on it."""
    vectors: NDArray[np.float32]
    """Of those that are there, in their order, as the model has given them."""


class Ledger:
    """Which texts stand in several Blocks of a run, who encodes them, and their vectors. Without Ray used as it is.

    Args:
        halves_R2: hashes of the texts, as two numbers each, ordered by the first.
        dimension: numbers per vector of the model.
    """

    def __init__(self, halves_R2: NDArray[np.uint64], dimension: int) -> None:
        self.halves_R2 = halves_R2[: LENT_BYTES // (4 * dimension)]
        texts = len(self.halves_R2)
        self.state_R, self.asker_R = np.full(texts, FREE, np.int8), np.zeros(texts, np.int64)
        self.vectors_RD = np.empty((texts, dimension), np.float32)

    def hashes(self) -> NDArray[np.uint64]:
        """Return the hashes of the texts, in the order in which they are numbered here."""
        return self.halves_R2

    def ask(self, text_K: NDArray[np.int64], asker: int, takes_over: bool) -> Answer:
        """Return what is there of K texts, and let who asks promise what nobody else has.

        Args:
            takes_over: also what another has promised, who may be dead.
        """
        is_there_K = self.state_R[text_K] == THERE
        is_promised_K = (self.state_R[text_K] == PROMISED) & (self.asker_R[text_K] != asker) & (not takes_over)
        mine = text_K[~is_there_K & ~is_promised_K]
        self.state_R[mine], self.asker_R[mine] = PROMISED, asker
        return Answer(is_there_K, is_promised_K, self.vectors_RD[text_K[is_there_K]])

    def lend(self, text_K: NDArray[np.int64], vectors_KD: NDArray[np.float32], failed: NDArray[np.int64]) -> None:
        """Keep the vectors of K texts for others; of texts that failed, take the promise back."""
        self.vectors_RD[text_K], self.state_R[text_K] = vectors_KD, THERE
        self.state_R[failed] = FREE


class RemoteLedger:
    """The ledger of a run on Ray, as its encoders reach it; one that does not answer lends nothing."""

    def __init__(self, halves_R2: NDArray[np.uint64], dimension: int) -> None:
        self._ledger = start_keeper(Ledger, halves_R2, dimension)

    def hashes(self) -> NDArray[np.uint64]:
        halves_R2: NDArray[np.uint64] = self._ask("hashes", np.empty((0, 2), np.uint64))
        return halves_R2

    def ask(self, text_K: NDArray[np.int64], asker: int, takes_over: bool) -> Answer:
        nothing_K = np.zeros(len(text_K), np.bool_)
        unanswered = Answer(nothing_K, nothing_K, np.empty((0, 0), np.float32))
        answer: Answer = self._ask("ask", unanswered, text_K, asker, takes_over)
        return answer

    def lend(self, text_K: NDArray[np.int64], vectors_KD: NDArray[np.float32], failed: NDArray[np.int64]) -> None:
        self._ask("lend", None, text_K, vectors_KD, failed)

    def _ask(self, question: str, unanswered: Any, *arguments: Any) -> Any:
        return answer_of(self._ledger, question, unanswered, WAIT_SECONDS, *arguments)


class Borrower:
    """An encoder's side of a ledger: encodes texts, but those whose vectors it can borrow."""

    def __init__(self, ledger: Ledger | RemoteLedger) -> None:
        self.ledger, self.name = ledger, int.from_bytes(os.urandom(7), "big")
        self._halves_R2 = ledger.hashes()

    def encode(
        self,
        hashes: pa.Array,
        tokens: TokenBatch,
        encode: Callable[[TokenBatch], Encoded],
        in_one_call: bool = False,
    ) -> tuple[Encoded, NDArray[np.bool_]]:
        """Return the vectors of M texts, and which were borrowed.

        Args:
            hashes: of the texts, no two alike.
            tokens: of the texts; those without any are left to `encode`.
            encode: gives the vectors of some of them.
            in_one_call: whether a call is so dear that others may wait a little longer for the texts they share.
        """
        text_M, borrowed_M = self._numbers(hashes), np.zeros(len(tokens), np.bool_)
        text_M[tokens.lengths_N == 0] = -1
        if (text_M < 0).all():
            return encode(tokens), borrowed_M
        result: Encoded | None = None
        rows_L, own_K = np.flatnonzero(text_M >= 0), np.flatnonzero(text_M < 0)
        deadline = 0.0
        while len(rows_L) or len(own_K):
            is_late = 0 < deadline < time.monotonic()
            answer = self.ledger.ask(text_M[rows_L], self.name, is_late)
            there, mine = rows_L[answer.is_there_K], rows_L[~answer.is_there_K & ~answer.is_promised_K]
            rows_L = rows_L[answer.is_promised_K]
            calls = (np.concatenate([mine, own_K]),) if in_one_call else (mine, own_K)  # what is shared comes first
            todo = [rows_K for rows_K in calls if len(rows_K)]
            for rows_K in todo if todo or result else [mine]:
                encoded = encode(take(tokens, rows_K))
                self._lend(text_M[rows_K], encoded)
                result = _added(result, len(tokens), rows_K, encoded)
            own_K = own_K[:0]
            assert result is not None
            if len(there):  # a ledger that does not answer does not know how wide a vector is
                result.vectors_ND[there], result.done_N[there], borrowed_M[there] = answer.vectors, True, True
            if len(rows_L):
                deadline = deadline or time.monotonic() + WAIT_SECONDS
                time.sleep(POLL_SECONDS)
        assert result is not None
        return result, borrowed_M

    def _lend(self, text_K: NDArray[np.int64], encoded: Encoded) -> None:
        is_lent_K, is_failed_K = (text_K >= 0) & encoded.done_N, (text_K >= 0) & ~encoded.done_N
        if is_lent_K.any() or is_failed_K.any():
            self.ledger.lend(text_K[is_lent_K], encoded.vectors_ND[is_lent_K], text_K[is_failed_K])

    def _numbers(self, hashes: pa.Array) -> NDArray[np.int64]:
        """Return which of the ledger's texts each of M hashes is, -1 = none."""
        array = one_array(hashes)
        wanted_M2 = np.frombuffer(array.buffers()[1], "<u8").reshape(-1, 2)[array.offset : array.offset + len(array)]
        if not len(self._halves_R2):
            return np.full(len(array), -1, np.int64)
        found_M = np.searchsorted(self._halves_R2[:, 0], wanted_M2[:, 0])
        found_M = np.minimum(found_M, len(self._halves_R2) - 1)
        return np.where((self._halves_R2[found_M] == wanted_M2).all(axis=1), found_M, -1)


def _added(whole: Encoded | None, texts: int, rows_K: NDArray[np.int64], part: Encoded) -> Encoded:
    """Return the vectors of all texts so far, with those of K of them put in."""
    if whole is None:
        vectors_MD = np.full((texts, part.vectors_ND.shape[1]), np.nan, np.float32)
        whole = Encoded(vectors_MD, np.zeros(texts, np.bool_))
    whole.vectors_ND[rows_K], whole.done_N[rows_K] = part.vectors_ND, part.done_N
    whole.failures |= {int(rows_K[row]): error for row, error in part.failures.items()}
    whole.safe_batch_tokens = part.safe_batch_tokens or whole.safe_batch_tokens
    whole.padded_tokens += part.padded_tokens
    whole.batches += part.batches
    whole.splits += part.splits
    whole.seconds += part.seconds
    return whole
