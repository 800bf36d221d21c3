"""Encoders that share the texts of a run: each is encoded once, as long as nobody dies, and never less than once."""

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from pipeline import open_snapshot
from pipeline.arrow import hash_strings
from pipeline.encoder.hashing import HashingEncoder
from pipeline.encoder.packed import Encoded, encode_or_zero
from pipeline.execution import lending
from pipeline.execution.lending import Borrower, Ledger, RemoteLedger
from pipeline.execution.verification.verify import verify
from pipeline.records import TokenBatch
from pipeline.text.tokenizer import ByteTokenizer
from tests.running import embed, written_config

TEXTS = [f"text {n}" for n in range(8)]


def halves_of(texts: list[str]) -> NDArray[np.uint64]:
    halves_R2 = np.frombuffer(hash_strings(pa.array(texts)).buffers()[1], "<u8").reshape(-1, 2)
    return halves_R2[np.argsort(halves_R2[:, 0])]


def tokens_of(texts: list[str]) -> TokenBatch:
    return ByteTokenizer()(pa.array(texts), 64)[0]


class Counting:
    """An encoder that notes which texts it is given, by their number of tokens and sum."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.bad: set[int] = set()

    def __call__(self, tokens: TokenBatch) -> Encoded:
        self.calls.append(len(tokens))
        encoded = encode_or_zero(HashingEncoder(4), tokens, 64)
        for row in self.bad & set(range(len(tokens))):
            encoded.done_N[row], encoded.failures[row] = False, "ValueError"
        return encoded


def encoded(borrower: Borrower, texts: list[str], encode: Counting) -> tuple[Encoded, list[bool]]:
    result, borrowed_M = borrower.encode(hash_strings(pa.array(texts)), tokens_of(texts), encode)
    return result, borrowed_M.tolist()


def test_a_second_encoder_borrows_what_the_first_has_encoded() -> None:
    ledger, encode = Ledger(halves_of(TEXTS[:6]), 4), Counting()
    first, borrowed = encoded(Borrower(ledger), TEXTS[:4], encode)
    assert borrowed == [False] * 4
    second, borrowed = encoded(Borrower(ledger), TEXTS[2:], encode)
    assert borrowed == [True, True, False, False, False, False]
    assert encode.calls == [4, 2, 2]
    assert np.array_equal(second.vectors_ND[:2], first.vectors_ND[2:])
    assert np.array_equal(second.vectors_ND, HashingEncoder(4).encode(tokens_of(TEXTS[2:])))
    assert second.done_N.all()


def test_an_encoder_waits_for_what_another_has_promised_and_does_its_own_texts_meanwhile() -> None:
    ledger, encode = Ledger(halves_of(TEXTS[:4]), 4), Counting()
    began, may_end = threading.Event(), threading.Event()

    def slowly(tokens: TokenBatch) -> Encoded:
        began.set()
        assert may_end.wait(30)
        return Counting()(tokens)

    slow = threading.Thread(
        target=Borrower(ledger).encode, args=(hash_strings(pa.array(TEXTS[:4])), tokens_of(TEXTS[:4]), slowly)
    )
    slow.start()
    assert began.wait(30)

    def meanwhile(tokens: TokenBatch) -> Encoded:
        may_end.set()
        return encode(tokens)

    result, borrowed_M = Borrower(ledger).encode(hash_strings(pa.array(TEXTS)), tokens_of(TEXTS), meanwhile)
    slow.join(30)
    assert borrowed_M.tolist() == [True] * 4 + [False] * 4
    assert encode.calls == [4]
    assert np.array_equal(result.vectors_ND, HashingEncoder(4).encode(tokens_of(TEXTS)))


def test_what_others_may_wait_for_is_encoded_first_and_lent_before_the_rest() -> None:
    """Two encoders that each have most of their Block for themselves do not wait for all of the other's."""
    ledger, lender, others = Ledger(halves_of(TEXTS[:2]), 4), Counting(), Counting()

    def lend_to_another_in_between(tokens: TokenBatch) -> Encoded:
        if lender.calls:  # the texts that are shared are done, the others not yet
            _, borrowed = encoded(Borrower(ledger), TEXTS[:2], others)
            assert borrowed == [True, True]
        return lender(tokens)

    result, borrowed_M = Borrower(ledger).encode(
        hash_strings(pa.array(TEXTS)), tokens_of(TEXTS), lend_to_another_in_between
    )
    assert (lender.calls, others.calls, borrowed_M.tolist()) == ([2, 6], [0], [False] * 8)
    assert np.array_equal(result.vectors_ND, HashingEncoder(4).encode(tokens_of(TEXTS)))


def test_a_block_that_is_encoded_in_a_child_process_needs_one_call() -> None:
    ledger, encode = Ledger(halves_of(TEXTS[:2]), 4), Counting()
    result, _ = Borrower(ledger).encode(hash_strings(pa.array(TEXTS)), tokens_of(TEXTS), encode, in_one_call=True)
    assert encode.calls == [8]
    assert np.array_equal(result.vectors_ND, HashingEncoder(4).encode(tokens_of(TEXTS)))


def test_what_a_dead_encoder_has_promised_is_encoded_by_who_has_waited_long_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lending, "WAIT_SECONDS", 0.2)
    ledger, encode = Ledger(halves_of(TEXTS), 4), Counting()
    ledger.ask(np.arange(8), asker=1, takes_over=False)
    result, borrowed = encoded(Borrower(ledger), TEXTS, encode)
    assert borrowed == [False] * 8
    assert encode.calls == [0, 8]
    assert np.array_equal(result.vectors_ND, HashingEncoder(4).encode(tokens_of(TEXTS)))
    _, borrowed = encoded(Borrower(ledger), TEXTS, encode)
    assert borrowed == [True] * 8


def test_a_text_that_failed_is_lent_to_nobody_and_tried_again_by_the_next() -> None:
    ledger, encode = Ledger(halves_of(TEXTS), 4), Counting()
    encode.bad = {2}
    result, _ = encoded(Borrower(ledger), TEXTS, encode)
    assert (result.failures, result.done_N.tolist()) == ({2: "ValueError"}, [n != 2 for n in range(8)])
    encode.bad = set()
    result, borrowed = encoded(Borrower(ledger), TEXTS, encode)
    assert borrowed == [n != 2 for n in range(8)]
    assert result.done_N.all()


def test_a_ledger_that_is_lost_lends_nothing_and_hinders_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = RemoteLedger.__new__(RemoteLedger)
    monkeypatch.setattr(RemoteLedger, "_ask", lambda self, question, unanswered, *arguments: unanswered)
    borrower, encode = Borrower(lost), Counting()
    borrower._halves_R2 = halves_of(TEXTS)  # it was there when the encoder began
    result, borrowed = encoded(borrower, TEXTS, encode)
    assert (encode.calls, borrowed) == ([8], [False] * 8)
    assert np.array_equal(result.vectors_ND, HashingEncoder(4).encode(tokens_of(TEXTS)))


def test_texts_that_nobody_shares_are_encoded_as_they_are() -> None:
    encode = Counting()
    for ledger in (Ledger(halves_of(TEXTS[:0]), 4), Ledger(halves_of(["another"]), 4)):
        result, borrowed = encoded(Borrower(ledger), TEXTS, encode)
        assert borrowed == [False] * 8
        assert np.array_equal(result.vectors_ND, HashingEncoder(4).encode(tokens_of(TEXTS)))
    assert encode.calls == [8, 8]


def test_two_encoders_on_ray_encode_each_distinct_text_once(tmp_path: Path) -> None:
    texts = [f"text {n * n % 101} " + "好" * (n * n % 101 % 9) for n in range(400)]
    (tmp_path / "corpus").mkdir()
    for file in range(8):
        table = pa.table({"id": range(50 * file, 50 * file + 50), "text": texts[50 * file : 50 * file + 50]})
        pq.write_table(table, tmp_path / "corpus" / f"{file}.parquet")
    config = written_config(
        tmp_path / "job.yaml",
        source={"uri": str(tmp_path / "corpus")},
        recipe={"model": "hashing://8"},
        output={"uri": str(tmp_path / "out"), "rows_per_part": 20},
        runtime={"encoders": 2, "look_for_repeats": True},
    )
    finished = embed(config)
    assert finished.code == 0, finished.stderr
    report, distinct = finished.report, len(set(texts))
    assert (report["embedded"], report["encoded_texts"], report["repeated_texts"]) == (400, distinct, 400 - distinct)
    assert report["encoders"] == 2
    for path in (tmp_path / "corpus").iterdir():
        path.rename(path.with_name(f"renamed-{path.name}"))
    again = embed(config)
    assert again.code == 0, again.stderr
    assert (again.report["encoded_texts"], again.report["taken_over"]) == (0, 400)
    snapshot = open_snapshot(str(tmp_path / "out"))
    assert (snapshot.number, verify(snapshot, sample=400).is_sound) == (2, True)
