"""The job most people write on Ray Data: read, `map_batches` of `SentenceTransformer.encode`, write; a program."""

import os
import sys
from typing import Any

import numpy as np
import pyarrow.fs
import ray
import ray.data
from numpy.typing import NDArray

from pipeline.config import Runtime
from pipeline.execution.clusters.cluster import start_ray

CORES = os.cpu_count() or 1


class Embed:
    """Holds the model, as the documentation of Ray Data shows it; all cores for it, though it reserves but one."""

    def __init__(self, folder: str, precision: str) -> None:
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(CORES)
        self.model = SentenceTransformer(folder, device="cpu", local_files_only=True)
        self.is_bfloat16 = precision == "bfloat16"
        if self.is_bfloat16:
            self.model.bfloat16()

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        texts, how = batch["text"].tolist(), {"normalize_embeddings": True, "show_progress_bar": False}
        if self.is_bfloat16:
            vectors_BD = self.model.encode(texts, convert_to_tensor=True, **how).float().numpy()
        else:
            vectors_BD = self.model.encode(texts, **how)
        return batch | {"embedding": np.asarray(vectors_BD, np.float32)}


def main(source: str, target: str, folder: str, precision: str, batch_rows: str) -> None:
    """Embed the Parquet files of a folder into another, both `bucket/path` on S3."""
    start_ray(Runtime())
    ray.data.DataContext.get_current().enable_progress_bars = False
    filesystem = pyarrow.fs.S3FileSystem(
        endpoint_override=os.environ["AWS_ENDPOINT_URL"].removeprefix("http://"), scheme="http"
    )
    rows = ray.data.read_parquet(source, filesystem=filesystem)
    embedded = rows.map_batches(
        Embed,
        fn_constructor_args=(folder, precision),
        batch_size=int(batch_rows),
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    embedded.write_parquet(target, filesystem=filesystem)


if __name__ == "__main__":
    main(*sys.argv[1:])
