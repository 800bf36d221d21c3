"""Our encoder loop over the same files in one process, without Ray: read, tokenise, encode, write; a program."""

import os
import sys

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.arrow import fixed_size_list, one_array
from pipeline.config import Recipe
from pipeline.encoder.packed import encode_packed
from pipeline.encoder.vectors import finish
from pipeline.execution.planning.model import describe, open_encoder, resolve_model
from pipeline.text.tokenizer import TokenizerSpec, load_tokenizer

BLOCK_ROWS, BATCH_TOKENS = 4096, 16384


def main(source: str, target: str, folder: str, precision: str) -> None:
    """Embed the Parquet files of a folder into another, both `bucket/path` on S3."""
    model = resolve_model(Recipe(model=folder))
    description = describe(model)
    tokenize = load_tokenizer(TokenizerSpec(description.max_tokens, "", description.tokenizer_json))
    encoder = open_encoder(model, precision, "", os.cpu_count() or 1)
    type = pa.list_(pa.field("element", pa.float32(), nullable=False), encoder.dimension)
    filesystem = fsspec.filesystem("s3")
    rows = pa.concat_tables(pq.read_table(path, filesystem=filesystem) for path in filesystem.glob(f"{source}/*"))
    for start in range(0, rows.num_rows, BLOCK_ROWS):
        block = rows.slice(start, BLOCK_ROWS)
        tokens, _ = tokenize(one_array(block["text"]), description.max_tokens)
        vectors_ND = finish(encode_packed(encoder, tokens, BATCH_TOKENS).vectors_ND, None, normalize=True)
        block = block.append_column("embedding", fixed_size_list(vectors_ND, type))
        pq.write_table(block, f"{target}/{start:08d}.parquet", filesystem=filesystem, compression="zstd")


if __name__ == "__main__":
    main(*sys.argv[1:])
