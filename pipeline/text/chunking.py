"""Long texts as several rows: windows over tokens, given back as character ranges of the text."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.text.tokenizer import TEXTS_PER_CALL, TokenizerSpec


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


def cut_windows(
    char_starts_T: NDArray[np.int64], char_ends_T: NDArray[np.int64], length: int, window: int, overlap: int
) -> list[tuple[int, int]]:
    """Return the character ranges of windows of at most `window` tokens that together cover a whole text.

    A window ends where a token ends, the next begins `overlap` tokens before; the first begins at 0 and the last
    ends at `length`, so that no character is lost between or around tokens.

    Args:
        char_starts_T: where each token begins in the text, ascending.
        char_ends_T: where it ends.
        length: characters of the text.
        window: tokens per chunk, special tokens left out, above `overlap`.
        overlap: tokens a chunk repeats of the one before.
    """
    if len(char_starts_T) <= window:
        return [(0, length)]
    firsts = range(0, len(char_starts_T) - overlap, window - overlap)
    starts = [0 if first == 0 else int(char_starts_T[first]) for first in firsts]
    lasts = [min(first + window, len(char_ends_T)) for first in firsts]
    ends = [length if last == len(char_ends_T) else int(char_starts_T[last]) for last in lasts]
    return list(zip(starts, ends, strict=True))


def chunk_texts(texts: pa.Array, spec: TokenizerSpec, overlap_tokens: int) -> Chunks:
    """Cut every text that is longer than the model takes.

    Args:
        texts: N strings without the prompt.
        spec: whose tokenizer and limit decide; the prompt's tokens and the special tokens count against it.
        overlap_tokens: tokens a chunk repeats of the one before.
    """
    from tokenizers import Tokenizer as Backend

    if spec.tokenizer_json is None:
        raise ValueError("chunking needs a model with a tokenizer")
    backend = Backend.from_str(spec.tokenizer_json)
    backend.no_padding()
    backend.no_truncation()
    window = spec.max_tokens - len(backend.encode(spec.prompt).ids)
    documents, numbers, starts, ends, pieces = [], [], [], [], []
    for first in range(0, len(texts), TEXTS_PER_CALL):
        batch = texts[first : first + TEXTS_PER_CALL].to_pylist()
        for row, (text, encoding) in enumerate(
            zip(batch, backend.encode_batch(batch, add_special_tokens=False), strict=True), start=first
        ):
            spans = np.array(encoding.offsets, np.int64).reshape(-1, 2)
            for number, (start, end) in enumerate(
                cut_windows(spans[:, 0], spans[:, 1], len(text), window, overlap_tokens)
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
