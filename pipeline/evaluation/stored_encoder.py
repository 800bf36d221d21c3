"""An encoder for mteb that computes nothing: it reads the vectors that a run has written, and searches among them."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from mteb.models.abs_encoder import AbsEncoder
from numpy.typing import NDArray

from pipeline.evaluation.model_meta import meta_of
from pipeline.evaluation.part_rows import unit
from pipeline.evaluation.rehearsal import document_texts, query_texts, texts_of
from pipeline.evaluation.search import Mapped, top_documents
from pipeline.evaluation.stored_vectors import StoredVectors

QUERIES_PER_PASS = 16_384
"""Queries that the documents are read for; what is found of them is held in arrays (of 1,000 documents: 200 MB)."""


class StoredEncoder(AbsEncoder):  # type: ignore[misc]
    """What mteb takes for a model: encodes by looking up, and searches by itself, Part by Part.

    Args:
        mapped: searches the Parts, here or elsewhere.
    """

    def __init__(self, vectors: StoredVectors, name: str, dimension: int, mapped: Mapped = map) -> None:
        self.stored, self.mapped = vectors, mapped
        self.mteb_model_meta = meta_of(name, dimension)

    def encode(self, inputs: Iterable[Any], **asked: Any) -> NDArray[np.float32]:
        """Return the vectors of these texts, (N, D)."""
        return self.stored.vectors(self.stored.places(texts_of(inputs)))

    def index(self, corpus: Any, *, task_metadata: Any, **asked: Any) -> None:
        """Remember where the vectors of a corpus stand."""
        self.ids = [str(document) for document in corpus["id"]]
        self.places_N = self.stored.places(document_texts(corpus, task_metadata))

    def search(
        self, queries: Any, *, task_metadata: Any, top_k: int, top_ranked: Any = None, **asked: Any
    ) -> dict[str, dict[str, float]]:
        """Return by query the cosine of its best documents, among all or among those of `top_ranked`."""
        names = [str(query) for query in queries["id"]]
        places_Q = self.stored.places(query_texts(queries, task_metadata))
        if top_ranked is not None:
            return dict(self._ranked(names, places_Q, top_ranked))
        self.stored.forget()
        found: dict[str, dict[str, float]] = {}
        for first in range(0, len(names), QUERIES_PER_PASS):
            some = slice(first, first + QUERIES_PER_PASS)
            found |= self._searched(names[some], places_Q[some], top_k)
        return found

    def _searched(self, names: list[str], places_Q: NDArray[np.int64], top: int) -> dict[str, dict[str, float]]:
        order_N = np.argsort(self.places_N, kind="stable")
        documents = self.stored.parts_of(self.places_N[order_N])
        scores_QK, numbers_QK = top_documents(self._read(places_Q), documents, top, self.mapped)
        return {
            name: {
                self.ids[at]: score for at, score in zip(order_N[numbers_K].tolist(), scores_K.tolist(), strict=True)
            }
            for name, numbers_K, scores_K in zip(names, numbers_QK, scores_QK, strict=True)
        }

    def _read(self, places_Q: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of these rows at length 1, without holding the others."""
        order_Q = np.argsort(places_Q, kind="stable")
        read = [part.vectors() for part in self.stored.parts_of(places_Q[order_Q])]
        vectors_QD = np.empty((len(places_Q), read[0].shape[1]), np.float32)
        vectors_QD[order_Q] = np.concatenate(read)
        return vectors_QD

    def _ranked(
        self, names: list[str], places_Q: NDArray[np.int64], top_ranked: dict[str, list[str]]
    ) -> Iterator[tuple[str, dict[str, float]]]:
        queries_QD = unit(self.stored.vectors(places_Q))
        number = {document: at for at, document in enumerate(self.ids)}
        for name, query_D in zip(names, queries_QD, strict=True):
            candidates = [str(document) for document in top_ranked[name]]
            places = self.places_N[[number[document] for document in candidates]]
            scores = unit(self.stored.vectors(places)) @ query_D
            yield name, dict(zip(candidates, scores.tolist(), strict=True))
