"""Batches: every row once, within the budget, at the least cost; and nothing of it shows in a vector."""

from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.encoder.batching import PASS_TOKENS, pack_by_tokens, pad
from pipeline.encoder.hashing import HashingEncoder
from pipeline.encoder.packed import encode_packed, take
from pipeline.encoder.sentence_transformer import SentenceTransformerEncoder
from pipeline.records import TokenBatch

LENGTHS = st.lists(st.integers(1, 64), max_size=200)
BUDGETS = st.integers(64, 512)


def tokens_of(lengths: list[int], seed: int = 0, vocabulary: int = 20_000) -> TokenBatch:
    """Return random token ids in rows of these lengths."""
    offsets_N1 = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))).astype(np.int64)
    ids = np.random.default_rng(seed).integers(1000, vocabulary, int(offsets_N1[-1]), np.int32)
    return TokenBatch(ids, offsets_N1)


def cost(batches: list[NDArray[np.int64]], lengths_N: NDArray[np.int64]) -> int:
    return sum(len(rows_B) * int(lengths_N[rows_B].max()) + PASS_TOKENS for rows_B in batches)


def greedy(lengths_N: NDArray[np.int64], budget: int) -> list[NDArray[np.int64]]:
    """Fill each batch with the longest rows left, as far as the budget goes."""
    order = np.argsort(-lengths_N, kind="stable")
    batches, start = [], 0
    while start < len(order):
        rows = budget // int(lengths_N[order[start]])
        batches.append(order[start : start + rows])
        start += rows
    return batches


@given(LENGTHS, BUDGETS)
def test_every_row_is_in_exactly_one_batch(lengths: list[int], budget: int) -> None:
    batches = pack_by_tokens(np.array(lengths, np.int64), budget)
    assert sorted(row for rows_B in batches for row in rows_B.tolist()) == list(range(len(lengths)))


@given(LENGTHS, BUDGETS)
def test_no_padded_batch_exceeds_the_budget(lengths: list[int], budget: int) -> None:
    lengths_N = np.array(lengths, np.int64)
    for rows_B in pack_by_tokens(lengths_N, budget):
        assert 0 < len(rows_B) * lengths_N[rows_B].max() <= budget


@given(LENGTHS, BUDGETS)
def test_the_longest_rows_come_first(lengths: list[int], budget: int) -> None:
    lengths_N = np.array(lengths, np.int64)
    batches = pack_by_tokens(lengths_N, budget)
    assert all(lengths_N[a].min() >= lengths_N[b].max() for a, b in pairwise(batches))


@pytest.mark.parametrize("budget", [4096, 8192, 16384])
def test_packing_a_block_never_costs_more_than_filling_greedily(budget: int) -> None:
    random = np.random.default_rng(budget)
    for _ in range(20):
        lengths_N = np.clip(random.lognormal(3.2, 0.9, 2000).astype(np.int64) + 2, 3, 512)
        packed, filled = pack_by_tokens(lengths_N, budget), greedy(lengths_N, budget)
        assert cost(packed, lengths_N) <= cost(filled, lengths_N)


def test_a_row_beyond_the_budget_is_named() -> None:
    with pytest.raises(ValueError, match="row 1 has 65 tokens, more than the 64 of a batch"):
        pack_by_tokens(np.array([3, 65, 4]), 64)


def test_no_rows_make_no_batches() -> None:
    assert pack_by_tokens(np.array([], np.int64), 64) == []


def test_padding_stands_on_the_right_and_is_masked() -> None:
    ids_BT, mask_BT = pad(np.array([5, 6, 7, 8], np.int32), np.array([0, 1, 4]), np.array([0, 1]), 9)
    assert ids_BT.tolist() == [[5, 9, 9], [6, 7, 8]]
    assert mask_BT.tolist() == [[1, 0, 0], [1, 1, 1]]


@given(LENGTHS)
def test_taking_rows_gives_the_ids_of_those_rows(lengths: list[int]) -> None:
    tokens = tokens_of(lengths)
    rows = np.random.default_rng(len(lengths)).permutation(len(lengths))
    taken = take(tokens, rows)
    for position, row in enumerate(rows):
        expected = tokens.token_ids_T[tokens.offsets_N1[row] : tokens.offsets_N1[row + 1]]
        found = taken.token_ids_T[taken.offsets_N1[position] : taken.offsets_N1[position + 1]]
        assert found.tolist() == expected.tolist()


@given(LENGTHS, BUDGETS)
def test_packed_vectors_come_back_in_the_order_of_the_texts(lengths: list[int], budget: int) -> None:
    encoder, tokens = HashingEncoder(8), tokens_of(lengths)
    packed = encode_packed(encoder, tokens, budget)
    assert np.array_equal(packed.vectors_ND, encoder.encode(tokens))
    assert packed.padded_tokens >= int(tokens.offsets_N1[-1])


def test_the_hashing_encoder_tells_close_sequences_apart() -> None:
    rows = [[1, 2], [2, 1], [1], [1, 1], [1, 2, 0], [0, 1, 2], [0], [0, 0]]
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows])))
    vectors = HashingEncoder(16).encode(TokenBatch(np.array(list(chain.from_iterable(rows)), np.int32), offsets))
    assert len(np.unique(vectors, axis=0)) == len(rows)


@pytest.fixture(scope="module")
def encoder(m3e_small: Path) -> SentenceTransformerEncoder:
    return SentenceTransformerEncoder(str(m3e_small), "float32", threads=1)


def test_a_row_alone_has_the_vector_it_has_in_a_ragged_batch(encoder: SentenceTransformerEncoder) -> None:
    tokens = tokens_of([1, 96, 17, 3, 40, 96, 2])
    together_ND = unit(encoder.encode(tokens))
    for row in range(len(tokens)):
        alone_1D = unit(encoder.encode(take(tokens, np.array([row]))))
        assert np.abs(alone_1D - together_ND[row]).max() <= 1e-6


def test_padding_ids_never_change_a_vector(encoder: SentenceTransformerEncoder) -> None:
    tokens = tokens_of([3, 90, 17, 1])
    expected_ND = encoder.encode(tokens)
    own = encoder._pad_token_id
    try:
        for poison in (1, 999, 20_000):
            encoder._pad_token_id = poison
            assert np.array_equal(encoder.encode(tokens), expected_ND)
    finally:
        encoder._pad_token_id = own


def unit(vectors_ND: NDArray[np.float32]) -> NDArray[np.float64]:
    vectors = vectors_ND.astype(np.float64)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
