"""Ids that stand more than once: found in the Parts before a publish, or in the source before a run."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.arrow import fixed_size_binary, hash_strings, one_array
from pipeline.errors import SourceError
from pipeline.parallel import in_order, merged
from pipeline.records import Part, Shard
from pipeline.schemas import ROW, SPAN, SPANS_PER_SHARD
from pipeline.storage.filesystem import Store, open_source
from pipeline.storage.parquet import part_key, read_columns
from pipeline.storage.readers import ReadColumns, read_shard
from pipeline.storage.uniqueness import ROW_BITS, find_repeats, index_and_row, placed
from pipeline.units import counted

READERS = 16
"""Parts whose id columns are read at once; each is a few requests and some hundred kilobytes."""

SOURCE_READERS, ROWS_AT_ONCE = 4, 16384
"""Shards read at once when the source is looked through, and rows held of each."""

FEW = 1 / 8
"""Share of the Parts up to which it is tried whether those that differ bring other ids at all."""

SHOWN = 3
"""Ids named in the message."""


def id_hashes(rows: pa.Table) -> NDArray[np.void]:
    """Return 16 bytes per row that name its id, and its chunk where it is one of several of a document."""
    ids = rows["id"].cast(pa.string())
    if "chunk" in rows.column_names:
        ids = pc.binary_join_element_wise(ids, rows["chunk"].cast(pa.string()), "\0")
    hashes = one_array(hash_strings(one_array(ids)))
    return np.frombuffer(hashes.buffers()[1], "V16", count=len(hashes))


def check_ids(
    store: Store,
    wanted: Sequence[Shard],
    parts: Sequence[tuple[str, Part]],
    chunked: bool,
    proven: Sequence[tuple[str, Part]] = (),
) -> None:
    """Read the ids of all Parts back and see that none stands twice.

    Where few Parts differ from those of a Snapshot that has passed this, and bring no other ids than those that they
    replace, no more is read.

    Args:
        wanted: the Shards of the plan.
        parts: every Part of the coming Snapshot, with the folder it lies in.
        chunked: whether a row is a chunk of a document.
        proven: every Part of a Snapshot in which no id stands twice.

    Raises:
        SourceError: some do; the message says how many, where a few of them are, and what to do.
    """
    position = {shard.shard_id: index for index, shard in enumerate(wanted)}
    ordered = [(folder, part) for folder, part in parts if part.kind == "embeddings"]
    ordered.sort(key=lambda one: (position[one[1].shard_id], one[1].block, one[1].path))
    keys = [_key_of(*one) for one in ordered]
    columns = ["id", "chunk"] if chunked else ["id"]

    def read(one: tuple[str, Part]) -> NDArray[np.void]:
        return id_hashes(read_columns(store, _key_of(*one), columns, one[1].size_bytes))

    def hashes_of(some: Iterable[tuple[str, Part]]) -> Iterator[NDArray[np.void]]:
        return in_order(read, some, READERS)

    if _bring_no_other_ids(ordered, proven, hashes_of):
        return

    def hashed() -> Iterator[NDArray[np.void]]:
        return (placed(hashes_N, index) for index, hashes_N in enumerate(hashes_of(ordered)))

    rows, shown = 0, list[list[int]]()
    for repeats_R2 in find_repeats(hashed()):
        rows += len(repeats_R2)
        shown += repeats_R2[: SHOWN - len(shown)].tolist()
    if rows:
        shards = [wanted[position[part.shard_id]] for _, part in ordered]
        examples = [_told(store, keys, shards, repeat, earlier) for repeat, earlier in sorted(shown)]
        raise SourceError(
            f"{counted(rows, 'row')} {'has' if rows == 1 else 'have'} the id of another row, for instance "
            f"{'; '.join(examples)}. Nothing was published, what was encoded is kept. Mend the source, or set "
            "source.duplicate_ids to keep_first (of each id the first row is published) or to allow (all are)"
        )


def _key_of(folder: str, part: Part) -> str:
    return part_key(part.kind, folder, part.path)


def _bring_no_other_ids(
    parts: Sequence[tuple[str, Part]],
    proven: Sequence[tuple[str, Part]],
    hashes_of: Callable[[Iterable[tuple[str, Part]]], Iterator[NDArray[np.void]]],
) -> bool:
    """Whether the Parts that are new hold ids of those they replace only, and none of them twice."""
    now = {_key_of(*one): one for one in parts}
    before = {_key_of(*one): one for one in proven if one[1].kind == "embeddings"}
    come, gone = ([a[key] for key in sorted(a.keys() - b.keys())] for a, b in ((now, before), (before, now)))
    if not proven or (len(come) + len(gone)) > FEW * len(parts):
        return False
    ids, old = (_as_binary(list(hashes_of(some))) for some in (come, gone))
    return len(ids.unique()) == len(ids) and bool(pc.all(pc.is_in(ids, old), min_count=0).as_py())


def _as_binary(hashes: Sequence[NDArray[np.void]]) -> pa.Array:
    all_N = np.concatenate([np.empty(0, "V16"), *hashes])
    return fixed_size_binary(all_N.view(np.uint8).reshape(-1, 16))


def find_repeated_rows(shards: Sequence[Shard], columns: ReadColumns) -> list[NDArray[np.int64]]:
    """Read the whole source and return, per Shard, which of its rows have the id of a row before them.

    First come the files in their order in the plan, within them the rows. What is quarantined by its reader is no row
    here: the next one of its id is the first.

    Returns:
        Per Shard the positions of its rows (`schemas.SPANS_PER_SHARD`), ascending.

    Raises:
        SourceError: a file cannot be read.
    """
    first_span_S = np.cumsum([0, *(len(shard.spans) for shard in shards)])

    def hashed(index: int) -> Iterator[NDArray[np.void]]:
        for block in read_shard(shards[index], columns, ROWS_AT_ONCE, open_source):
            spans_N = first_span_S[index] + block.documents[SPAN].to_numpy()
            yield placed(id_hashes(block.documents), spans_N, block.documents[ROW].to_numpy())

    with closing(merged(hashed, range(len(shards)), SOURCE_READERS)) as pieces:
        found = [np.empty(0, np.uint64), *(repeats_R2[:, 0] for repeats_R2 in find_repeats(pieces))]
    places_R = np.sort(np.concatenate(found)).astype(np.int64)
    spans_R, rows_R = places_R >> ROW_BITS, places_R & ((1 << ROW_BITS) - 1)
    ends = np.searchsorted(spans_R, first_span_S)
    return [
        np.sort(rows_R[start:end] * SPANS_PER_SHARD + spans_R[start:end] - first_span)
        for start, end, first_span in zip(ends, ends[1:], first_span_S, strict=False)
    ]


def _told(store: Store, keys: Sequence[str], shards: Sequence[Shard], repeat: int, earlier: int) -> str:
    """Return an id and the two places it stands at; an id is no secret, unlike a text."""
    places = []
    for place in (earlier, repeat):
        index, row = index_and_row(place)
        uris = [span.file.uri for span in shards[index].spans]
        of = uris[0] if len(uris) == 1 else f"{uris[0]} … {uris[-1]}"
        places.append(f"row {row} of {keys[index]} (from {of})")
    index, row = index_and_row(repeat)
    id = read_columns(store, keys[index], ["id"])["id"][row].as_py()
    return f"{id!r} in {' and '.join(places)}"
