"""Our encoder loop over the same files in one process, without Ray: read, tokenise, encode, write; a program."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.arrow import fixed_size_list, one_array
from pipeline.config import Recipe
from pipeline.encoder.packed import encode_packed
from pipeline.encoder.vectors import finish
from pipeline.execution.planning.model import describe, open_encoder, resolve_model
from pipeline.records import TokenBatch
from pipeline.text.tokenizer import TokenizerSpec, load_tokenizer

BLOCK_ROWS, BATCH_TOKENS = 4096, 16384


def main(source: str, target: str, folder: str, precision: str) -> None:
    """Embed the Parquet files of a folder into another, both `bucket/path` on S3.

    One thread tokenises what comes next and one writes what was encoded, as the stages of a run do beside its encoder.
    """
    model = resolve_model(Recipe(model=folder))
    description = describe(model)
    tokenize = load_tokenizer(TokenizerSpec(description.max_tokens, "", description.tokenizer_json))
    encoder = open_encoder(model, precision, "", os.cpu_count() or 1)
    type = pa.list_(pa.field("element", pa.float32(), nullable=False), encoder.dimension)
    filesystem = fsspec.filesystem("s3")
    rows = pa.concat_tables(pq.read_table(path, filesystem=filesystem) for path in filesystem.glob(f"{source}/*"))

    def tokenized(start: int) -> TokenBatch:
        return tokenize(one_array(rows.slice(start, BLOCK_ROWS)["text"]), description.max_tokens)[0]

    def write(start: int, vectors_BD: NDArray[np.float32]) -> None:
        block = rows.slice(start, BLOCK_ROWS).append_column("embedding", fixed_size_list(vectors_BD, type))
        pq.write_table(block, f"{target}/{start:08d}.parquet", filesystem=filesystem, compression="zstd")

    starts = range(0, rows.num_rows, BLOCK_ROWS)
    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(1) as behind:
        writing = []
        for start, tokens in zip(starts, ahead.map(tokenized, starts), strict=True):
            vectors_BD = finish(encode_packed(encoder, tokens, BATCH_TOKENS).vectors_ND, None, normalize=True)
            writing.append(behind.submit(write, start, vectors_BD))
        for one in writing:
            one.result()


if __name__ == "__main__":
    main(*sys.argv[1:])
