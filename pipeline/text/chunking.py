"""Long texts as several rows: windows over tokens, given back as character ranges of the text."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.text.tokenizer import TEXTS_PER_CALL, TokenizerSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class Chunks:
    """M chunks of N texts, in the order of the texts; every text has at least one."""

    document_M: NDArray[np.int64]
    """Which text a chunk belongs to."""
    number_M: NDArray[np.int32]
    """0, 1, 2 … within the text."""
    char_start_M: NDArray[np.int32]
    char_end_M: NDArray[np.int32]
    texts: pa.Array
    """The M chunks themselves: `text[char_start:char_end]`."""


def chunk_window(spec: TokenizerSpec) -> int:
    """Return how many tokens of a text fit into one chunk, beside the prompt and the special tokens."""
    return spec.max_tokens - len(_backend(spec).encode(spec.prompt).ids)


def cut_windows(
    char_starts_T: NDArray[np.int64], word_starts_W: NDArray[np.int64], length: int, window: int, overlap: int
) -> list[tuple[int, int]]:
    """Return the character ranges of windows of at most `window` tokens that together cover a whole text.

    Windows begin and end where words do, so that a chunk has the tokens it had within its text; only a word that
    is longer than a window is cut. The first begins at character 0, every other where a token begins, and each ends
    where the first token after it begins (the last at `length`), so that no character is lost around tokens.

    Args:
        char_starts_T: where each token begins in the text, ascending.
        word_starts_W: the tokens that begin a word, ascending, the first is 0.
        length: characters of the text.
        window: tokens per chunk, special tokens left out.
        overlap: tokens a chunk repeats of the one before, at most; below `window`.
    """
    tokens = len(char_starts_T)

    def end_of(first: int) -> int:
        """Return where a window from this token ends: before the word that does not fit, or inside a giant."""
        end = min(first + window, tokens)
        whole_words = int(word_starts_W[np.searchsorted(word_starts_W, end, "right") - 1]) if end < tokens else end
        return whole_words if whole_words > first else end

    spans, first = [], 0
    while True:
        end = end_of(first)
        start = 0 if first == 0 else int(char_starts_T[first])
        spans.append((start, length if end >= tokens else int(char_starts_T[end])))
        if end >= tokens:
            return spans
        repeated = word_starts_W[np.searchsorted(word_starts_W, max(end - overlap, first + 1)) :]
        # Repeat as much as is asked for, but never so much that the next window brings nothing new.
        first = next((int(begin) for begin in repeated if begin < end and end_of(int(begin)) > end), end)


def chunk_texts(texts: pa.Array, spec: TokenizerSpec, overlap_tokens: int) -> Chunks:
    """Cut every text that is longer than the model takes.

    Args:
        texts: N strings without the prompt.
        spec: whose tokenizer and limit decide; the prompt's tokens and the special tokens count against it.
        overlap_tokens: tokens a chunk repeats of the one before, at most.
    """
    backend, window = _backend(spec), chunk_window(spec)
    documents, numbers, starts, ends, pieces = [], [], [], [], []
    for first in range(0, len(texts), TEXTS_PER_CALL):
        batch = texts[first : first + TEXTS_PER_CALL].to_pylist()
        encodings = backend.encode_batch(batch, add_special_tokens=False)
        for row, (text, encoding) in enumerate(zip(batch, encodings, strict=True), start=first):
            char_starts_T = np.array([start for start, _ in encoding.offsets], np.int64)
            words_T = np.array([-1 if word is None else word for word in encoding.word_ids], np.int64)
            word_starts_W = np.flatnonzero(np.diff(words_T, prepend=-2))
            for number, (start, end) in enumerate(
                cut_windows(char_starts_T, word_starts_W, len(text), window, overlap_tokens)
            ):
                documents.append(row)
                numbers.append(number)
                starts.append(start)
                ends.append(end)
                pieces.append(text[start:end])
    return Chunks(
        np.array(documents, np.int64),
        np.array(numbers, np.int32),
        np.array(starts, np.int32),
        np.array(ends, np.int32),
        pa.array(pieces, pa.string()),
    )


@lru_cache(maxsize=1)
def _backend(spec: TokenizerSpec) -> "Tokenizer":
    from tokenizers import Tokenizer

    if spec.tokenizer_json is None:
        raise ValueError("chunking needs a model with a tokenizer")
    backend = Tokenizer.from_str(spec.tokenizer_json)
    backend.no_padding()
    backend.no_truncation()
    return backend
