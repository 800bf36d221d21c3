"""What is searched in tests: vectors held in memory, and a set of texts as mteb gives it to an encoder."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Held:
    """A block of documents whose vectors are in memory."""

    first: int
    vectors_BD: NDArray[np.float32]

    def vectors(self) -> NDArray[np.float32]:
        """Return them."""
        return self.vectors_BD


def blocks_of(documents_ND: NDArray[np.float32], rows: int) -> list[Held]:
    """Return documents as blocks of so many rows; the last one may have fewer."""
    return [Held(first, documents_ND[first : first + rows]) for first in range(0, len(documents_ND), rows)]


def found_by(encoder: Any, documents: list[str], queries: list[str], top: int) -> dict[str, list[tuple[str, float]]]:
    """Return by query what a search gives as mteb calls it, in its order; all are named by their number."""
    from datasets import Dataset

    from pipeline.evaluation.own_tasks import as_mteb_task, own_task

    metadata = as_mteb_task(own_task("Search", "Retrieval")).metadata
    corpus, asked = (
        Dataset.from_dict({"id": list(map(str, range(len(texts)))), "text": texts}) for texts in (documents, queries)
    )
    encoder.index(corpus, task_metadata=metadata)
    found = encoder.search(asked, task_metadata=metadata, top_k=top)
    return {query: list(nearest.items()) for query, nearest in found.items()}
