"""Rows of a Block that need no encoding: their text is known from the Snapshot before, or stands above them."""

import logging
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.arrow import one_array
from pipeline.errors import StorageError
from pipeline.execution.planning.plan import Plan
from pipeline.execution.stage_settings import StageSettings
from pipeline.schemas import FATE, STORED
from pipeline.storage.filesystem import Store
from pipeline.storage.index_making import write_index
from pipeline.storage.known import Fate, Found, KnownVectors, row_names
from pipeline.storage.text_index import IndexReference, open_index
from pipeline.units import counted

logger = logging.getLogger(__name__)

NOT_TAKEN = ("id", "chunk", "tokens", "truncated", "text_hash")
"""Columns that a known row has of its own, whoever encodes it."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Which rows of a Block an encoder must see: of N rows the M whose texts are unknown and have not come before."""

    rows_M: NDArray[np.int64]
    """Ascending."""
    text_N: NDArray[np.int64]
    """Row → its text among the M; -1 = known."""

    def spread(self, flags_M: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the flag of each row's text; true for known ones."""
        return np.append(flags_M, True)[self.text_N]


def with_index(plan: Plan, store: Store) -> tuple[Plan, list[str]]:
    """Return the Plan with the index of what its parent holds, written if need be, and what a person should know.

    Where the parent is of another recipe, or nothing is to be encoded, there is nothing to look up.
    """
    parent = plan.parent
    if parent is None or not plan.embed or parent.record.fingerprint != plan.recipe_fingerprint:
        return plan, []
    try:
        index, unreadable = write_index(store, parent)
    except StorageError as error:
        return plan, [f"no vector was taken over by its text, the index of snapshot {parent.number} is lost: {error}"]
    lost = f"{counted(unreadable, 'Part')} of snapshot {parent.number} cannot be read, what was known of them is lost"
    return replace(plan, known=index), [f"{lost}; `verify` says which"] if unreadable else []


def stored_columns(settings: StageSettings) -> list[str]:
    """Return which columns of a Part a known row takes over with its vector."""
    names = [*NOT_TAKEN, "event_timestamp", "created_timestamp", "embedding", "scale"]
    return [name for name in names if name in settings.part_schema.names]


def find_known(hashes: pa.Array, documents: pa.Table, is_sent_N: NDArray[np.bool_], settings: StageSettings) -> Found:
    """Look N texts up in the Snapshot before.

    Args:
        hashes: of the texts as sent to the model.
        documents: N rows, the documents or their chunks.
        is_sent_N: which are sent at all; others are never known.
    """
    fate_N = np.zeros(len(hashes), np.int8)
    known = _opened(settings.known, tuple(stored_columns(settings))) if settings.known else None
    if known is None:
        return Found(fate_N, pa.table({}), np.zeros(0, np.bool_))
    is_sent = pa.array(is_sent_N)
    found = known.look_up(hashes.filter(is_sent), row_names(documents).filter(is_sent))
    fate_N[is_sent_N] = found.fate_N
    return replace(found, fate_N=fate_N)


def is_known(hashes: pa.Array, settings: StageSettings) -> NDArray[np.bool_]:
    """Return which of N texts the index names."""
    known = _opened(settings.known, tuple(stored_columns(settings))) if settings.known else None
    return known.index.find(hashes) >= 0 if known else np.zeros(len(hashes), np.bool_)


@lru_cache(maxsize=1)
def _opened(index: IndexReference, columns: tuple[str, ...]) -> KnownVectors | None:
    """Return the vectors that are known; None if the index is gone: everything is encoded then."""
    store = Store(index.output_uri)
    try:
        return KnownVectors(store, open_index(store, index), columns)
    except (StorageError, OSError) as error:  # OSError: this node has no place to keep a copy
        logger.warning("event=index_lost error=%s", error)
        return None


def with_stored(documents: pa.Table, found: Found, settings: StageSettings) -> pa.Table:
    """Return N documents with the columns FATE and STORED, the latter only where any text may be known.

    The event time that is stored holds for the row it is stored under. Under another id, or elsewhere in a document,
    the text is new in this run: else features of that id would be joined to what happened before it had this text.
    """
    documents = documents.append_column(FATE, pa.array(found.fate_N))
    if settings.known is None:
        return documents
    fields = [settings.part_schema.field(name) for name in stored_columns(settings) if name not in NOT_TAKEN]
    values = pa.array([], pa.struct(fields))
    if found.stored.num_rows:
        stored = {name: one_array(found.stored[name]) for name in found.stored.column_names}
        stored["event_timestamp"] = pc.if_else(found.is_own_K, stored["event_timestamp"], settings.event_time)
        columns = [stored[field.name].cast(field.type) for field in fields]
        values = pa.StructArray.from_arrays(columns, fields=fields)
    offsets_N1 = np.concatenate(([0], np.cumsum(found.fate_N == Fate.KNOWN)))
    return documents.append_column(STORED, pa.ListArray.from_arrays(pa.array(offsets_N1, pa.int32()), values))


def texts_of(documents: pa.Table) -> Texts:
    """Return which rows of a tokenised Block are to be encoded."""
    rows_U = np.flatnonzero(documents[FATE].to_numpy() != Fate.KNOWN)
    hashes = one_array(documents["text_hash"].take(pa.array(rows_U)))
    halves_U2 = np.frombuffer(hashes.buffers()[1], "<u8", count=2 * len(hashes)).reshape(-1, 2)
    order_U = np.lexsort((halves_U2[:, 1], halves_U2[:, 0]))
    is_first_U = np.ones(len(rows_U), np.bool_)
    is_first_U[1:] = (halves_U2[order_U[1:]] != halves_U2[order_U[:-1]]).any(axis=1)
    first_U = np.empty(len(rows_U), np.int64)  # for each row, the first one of its text
    first_U[order_U] = order_U[is_first_U][np.cumsum(is_first_U) - 1]
    rows_M, text_U = np.unique(first_U, return_inverse=True)
    text_N = np.full(documents.num_rows, -1, np.int64)
    text_N[rows_U] = text_U
    return Texts(rows_U[rows_M], text_N)


def with_vectors(documents: pa.Table, text_N: NDArray[np.int64], done_M: NDArray[np.bool_], new: pa.Table) -> pa.Table:
    """Return the documents with their vectors, those of known and of repeated texts among them, in place of STORED.

    Args:
        documents: N rows that have a vector each.
        text_N: `Texts.text_N` of these rows.
        done_M: which texts have been encoded.
        new: the vector columns and times of those, in their order.
    """
    columns = new
    if STORED in documents.column_names:
        stored = one_array(documents[STORED]).flatten()
        known = pa.Table.from_batches([pa.RecordBatch.from_struct_array(stored)])
        columns = pa.concat_tables([new, known.select(new.column_names).cast(new.schema)])
        documents = documents.drop_columns([STORED])
    is_known_N = text_N < 0
    new_M = np.append(np.cumsum(done_M) - 1, 0)
    row_N = np.where(is_known_N, new.num_rows + np.cumsum(is_known_N) - 1, new_M[text_N])
    if not np.array_equal(row_N, np.arange(columns.num_rows)):
        columns = columns.combine_chunks().take(pa.array(row_N))
    for field, column in zip(columns.schema, columns.columns, strict=True):
        documents = documents.append_column(field, column)
    return documents


def counts_of(
    documents: pa.Table, texts: Texts, lengths_M: NDArray[np.int64], borrowed_M: NDArray[np.bool_]
) -> dict[str, float]:
    """Return how many texts of a Block are encoded, how many rows repeat one, and how many could not be taken over.

    Args:
        lengths_M: tokens of the texts; none = an empty one, which is not encoded.
        borrowed_M: which have the vector of another Block.
    """
    fate_N = documents[FATE].to_numpy()
    repeats = np.count_nonzero(texts.text_N >= 0) - np.count_nonzero(~borrowed_M)
    return {
        "encoded_texts": float(np.count_nonzero(lengths_M[~borrowed_M])),
        "repeated_texts": float(repeats),
        "unreadable_texts": float(np.count_nonzero(fate_N == Fate.UNREADABLE)),
        "scattered_texts": float(np.count_nonzero(fate_N == Fate.SCATTERED)),
        "truncated": float(np.count_nonzero(documents["truncated"].to_numpy()[texts.rows_M[~borrowed_M]])),
    }
