"""Which texts a task needs: its evaluation, rehearsed with an encoder that writes down what it is asked for."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from mteb._create_dataloaders import create_dataloader
from mteb.models.abs_encoder import AbsEncoder
from mteb.types import PromptType
from numpy.typing import NDArray

from pipeline.arrow import hash_strings
from pipeline.evaluation.model_meta import meta_of

WIDTH = 8
"""Numbers per vector of the rehearsal; its scores mean nothing."""


class Rehearsal(AbsEncoder):  # type: ignore[misc]
    """Remembers every text that mteb wants a vector of; answers with random ones."""

    def __init__(self) -> None:
        self.texts: dict[str, None] = {}
        self.mteb_model_meta = meta_of("rehearsal/rehearsal", WIDTH)

    def encode(self, inputs: Iterable[Any], **asked: Any) -> NDArray[np.float32]:
        """Return a random vector for each text, (N, WIDTH)."""
        texts = texts_of(inputs)
        self.texts.update(dict.fromkeys(texts))
        return np.random.default_rng(0).normal(size=(len(texts), WIDTH)).astype(np.float32)

    def index(self, corpus: Any, *, task_metadata: Any, **asked: Any) -> None:
        """Remember the texts of a corpus."""
        self.texts.update(dict.fromkeys(document_texts(corpus, task_metadata)))
        self.first = str(corpus[0]["id"])

    def search(self, queries: Any, *, task_metadata: Any, **asked: Any) -> dict[str, dict[str, float]]:
        """Remember the texts of the queries; find one document for each."""
        self.texts.update(dict.fromkeys(query_texts(queries, task_metadata)))
        return {str(query): {self.first: 1.0} for query in queries["id"]}


def texts_of(inputs: Iterable[Any]) -> list[str]:
    """Return the texts of mteb's batches."""
    return [text for batch in inputs for text in batch["text"]]


def document_texts(corpus: Any, task_metadata: Any) -> list[str]:
    """Return the texts of a corpus as mteb gives them to a model: title and text."""
    return _as_mteb_has_them(corpus, task_metadata, PromptType.document)


def query_texts(queries: Any, task_metadata: Any) -> list[str]:
    """Return the texts of queries as mteb gives them to a model."""
    return _as_mteb_has_them(queries, task_metadata, PromptType.query)


def _as_mteb_has_them(rows: Any, task_metadata: Any, prompt_type: PromptType) -> list[str]:
    return texts_of(create_dataloader(rows, task_metadata=task_metadata, prompt_type=prompt_type, batch_size=1024))


def text_table(texts: Iterable[str]) -> pa.Table:
    """Return the source of an embedding run: each text once, `id` = its hash as 32 hex characters, in that order."""
    distinct = pa.array(dict.fromkeys(texts), pa.string())
    table = pa.table({"id": text_ids(distinct), "text": distinct})
    return table.sort_by("id")


def text_ids(texts: pa.Array) -> pa.Array:
    """Return what names each text: 128 bits of its SHA-256 as 32 hex characters."""
    return pa.array([digest.hex() for digest in hash_strings(texts).to_pylist()], pa.string())
