"""An encoder for mteb that computes nothing: it reads the vectors that a run has written, by the hash of their text."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from mteb.models.abs_encoder import AbsEncoder
from numpy.typing import NDArray

from pipeline.arrow import dequantised
from pipeline.encoder.vectors import finish
from pipeline.errors import SourceError
from pipeline.evaluation.model_meta import meta_of
from pipeline.evaluation.rehearsal import document_texts, query_texts, text_ids, texts_of
from pipeline.evaluation.search import top_documents
from pipeline.storage.snapshots import Snapshot

DOCUMENTS_PER_BLOCK = 8192


class StoredVectors:
    """The vectors of a Snapshot, at their stored precision, found by text."""

    def __init__(self, snapshot: Snapshot) -> None:
        columns = [name for name in ("id", "embedding", "scale") if name in snapshot.schema.names]
        self.rows = snapshot.to_table(columns).combine_chunks()
        self.stored = str(snapshot.recipe["stored"])
        ids_N = np.array(self.rows["id"].to_pylist(), "S32")
        self.order_N = np.argsort(ids_N, kind="stable")
        self.sorted_N = ids_N[self.order_N]

    def places(self, texts: list[str]) -> NDArray[np.int64]:
        """Return the row of each text.

        Raises:
            SourceError: a text has no vector; it is never encoded here.
        """
        ids_M = np.array(text_ids(pa.array(texts, pa.string())).to_pylist(), "S32")
        at_M = np.minimum(np.searchsorted(self.sorted_N, ids_M), max(len(self.sorted_N) - 1, 0))
        missing = int((self.sorted_N[at_M] != ids_M).sum()) if len(self.sorted_N) else len(ids_M)
        if missing:
            raise SourceError(
                f"{missing} of {len(texts)} texts have no vector in the evaluated output: they went to quarantine, or "
                "mteb asked for other texts when they were collected. Look at the report of the run."
            )
        return self.order_N[at_M]

    def vectors(self, places_M: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of these rows as float32, (M, D)."""
        return dequantised(self.rows.take(pa.array(places_M)), self.stored)


class StoredEncoder(AbsEncoder):  # type: ignore[misc]
    """What mteb takes for a model: encodes by looking up, and searches by itself, block by block."""

    def __init__(self, vectors: StoredVectors, name: str, dimension: int) -> None:
        self.stored = vectors
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
        scores_QK, numbers_QK = top_documents(_unit(self.stored.vectors(places_Q)), self._blocks(), top_k)
        return {
            name: {self.ids[at]: score for at, score in zip(numbers.tolist(), scores.tolist(), strict=True)}
            for name, numbers, scores in zip(names, numbers_QK, scores_QK, strict=True)
        }

    def _blocks(self) -> Iterator[NDArray[np.float32]]:
        for first in range(0, len(self.places_N), DOCUMENTS_PER_BLOCK):
            yield _unit(self.stored.vectors(self.places_N[first : first + DOCUMENTS_PER_BLOCK]))

    def _ranked(
        self, names: list[str], places_Q: NDArray[np.int64], top_ranked: dict[str, list[str]]
    ) -> Iterator[tuple[str, dict[str, float]]]:
        queries_QD = _unit(self.stored.vectors(places_Q))
        number = {document: at for at, document in enumerate(self.ids)}
        for name, query_D in zip(names, queries_QD, strict=True):
            candidates = [str(document) for document in top_ranked[name]]
            places = self.places_N[[number[document] for document in candidates]]
            scores = _unit(self.stored.vectors(places)) @ query_D
            yield name, dict(zip(candidates, scores.tolist(), strict=True))


def _unit(vectors_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(finish(vectors_ND, None, normalize=True))
