"""The same job in Daft: its `embed_text`, or in bfloat16 a class of our own; a program for its own environment."""

import os
import sys
from typing import Any

import daft
from daft.functions import embed_text
from daft.io import IOConfig, S3Config

VECTOR = daft.DataType.embedding(daft.DataType.float32(), 512)


@daft.cls
class Embed:
    """What `embed_text` does, with weights in bfloat16, which it does not offer."""

    def __init__(self, folder: str) -> None:
        from sentence_transformers import SentenceTransformer

        self.model = SentenceTransformer(folder, device="cpu", local_files_only=True).bfloat16()

    @daft.method.batch(return_dtype=VECTOR, batch_size=1024)  # type: ignore[untyped-decorator]
    def __call__(self, texts: Any) -> list[Any]:
        vectors_BD = self.model.encode(texts.to_pylist(), convert_to_tensor=True, show_progress_bar=False)
        return list(vectors_BD.float().numpy())


def main(source: str, target: str, folder: str, precision: str, batch_rows: str) -> None:
    """Embed the Parquet files of a folder into another, both `bucket/path` on S3."""
    daft.set_planning_config(default_io_config=IOConfig(s3=_s3()))
    texts = daft.col("text")
    if precision == "bfloat16":
        embedding = Embed(folder)(texts)
    else:
        embedding = embed_text(texts, provider="transformers", model=folder, batch_size=int(batch_rows))
    daft.read_parquet(f"s3://{source}/*.parquet").with_column("embedding", embedding).write_parquet(f"s3://{target}")


def _s3() -> S3Config:
    return S3Config(
        endpoint_url=os.environ["AWS_ENDPOINT_URL"],
        key_id=os.environ["AWS_ACCESS_KEY_ID"],
        access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        region_name=os.environ["AWS_REGION"],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
