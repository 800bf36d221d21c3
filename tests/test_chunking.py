"""Chunks: windows over tokens that lose no character and end where words do."""

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.encoder.describe import describe_model
from pipeline.text.chunking import chunk_texts, chunk_window, cut_windows
from pipeline.text.tokenizer import TokenizerSpec, load_tokenizer

WORD_LENGTHS = st.lists(st.integers(1, 5), min_size=1, max_size=60)


@given(WORD_LENGTHS, st.integers(1, 12), st.data())
def test_windows_cover_the_text_and_never_exceed_their_tokens(
    word_lengths: list[int], window: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, (window - 1) // 2))
    tokens = sum(word_lengths)
    char_starts_T = np.arange(tokens) * 2
    word_starts_W = np.concatenate(([0], np.cumsum(word_lengths)[:-1]))
    spans = cut_windows(char_starts_T, word_starts_W, tokens * 2 + 1, window, overlap)
    assert spans[0][0] == 0
    assert spans[-1][1] == tokens * 2 + 1
    for (start, end), (next_start, next_end) in itertools.pairwise(spans):
        assert start < next_start <= end < next_end
        assert (end - next_start) / 2 <= overlap
    for start, end in spans:
        assert np.count_nonzero((char_starts_T >= start) & (char_starts_T < end)) <= window


def test_no_window_lies_within_the_one_before() -> None:
    # the window from token 1 would end at token 2, as the first one does: the three-token word does not fit behind it
    assert cut_windows(np.arange(5), np.array([0, 1, 2]), 5, 3, 1) == [(0, 2), (2, 5)]


def test_a_short_or_empty_text_is_one_chunk() -> None:
    none = np.empty(0, np.int64)
    assert cut_windows(none, none, 0, 8, 2) == [(0, 0)]
    assert cut_windows(np.array([1, 4]), np.array([0, 1]), 9, 8, 2) == [(0, 9)]


def test_a_word_longer_than_a_window_is_cut_inside() -> None:
    assert cut_windows(np.arange(7), np.array([0]), 7, 3, 0) == [(0, 3), (3, 6), (6, 7)]


@pytest.fixture(scope="module")
def spec(m3e_small: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenizerSpec:
    description = describe_model(str(m3e_small), tmp_path_factory.mktemp("description") / "m3e.json")
    return TokenizerSpec(16, "", description.tokenizer_json)


def test_chunks_of_words_are_never_truncated(spec: TokenizerSpec) -> None:
    texts = pa.array(
        ["embedding pipelines tokenise words into several pieces " * 9, "很长的中文评论，没有空格。" * 9, "短"]
    )
    chunks = chunk_texts(texts, spec, 4)
    _, truncated_M = load_tokenizer(spec)(chunks.texts, spec.max_tokens)
    assert len(chunks.texts) > 20
    assert not truncated_M.any()
    for row, text in enumerate(texts.to_pylist()):
        mine = chunks.document_M == row
        assert chunks.number_M[mine].tolist() == list(range(mine.sum()))
        ends = zip(chunks.char_start_M[mine], chunks.char_end_M[mine], chunks.texts.filter(pa.array(mine)), strict=True)
        assert all(text[start:end] == chunk.as_py() for start, end, chunk in ends)


def test_prompt_and_special_tokens_leave_less_to_a_chunk(spec: TokenizerSpec) -> None:
    assert chunk_window(spec) == 14
    assert chunk_window(TokenizerSpec(16, "提示：", spec.tokenizer_json)) == 11
