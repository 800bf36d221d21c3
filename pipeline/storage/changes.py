"""Change feeds: what each Snapshot has inserted, updated and deleted since the one before, for stores kept in step."""

import re
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import orjson
import pyarrow as pa
import pyarrow.dataset

from pipeline.errors import StorageError
from pipeline.storage.filesystem import Store
from pipeline.storage.snapshots import arrow_filesystem, decode_schema, load_snapshot, snapshot_numbers

Op = Literal["insert", "update", "delete"]

FROM_NOTHING = 0
"""In the place of the number of a Snapshot: the feed holds all rows, and what was there before is to be dropped."""

BATCH_ROWS = 4096
"""Rows of a feed that are given at a time."""


@dataclass(frozen=True, slots=True)
class FeedRecord:
    """The metadata object whose one conditional PUT publishes a feed."""

    number: int
    """Of the Snapshot that the feed leads to."""
    since: int
    """Of the Snapshot that it starts from, or FROM_NOTHING."""
    folder: str
    """Name below `changes/`."""
    files: list[dict[str, Any]]
    """`path` below the folder and `rows` of each."""
    totals: dict[str, int]
    """Rows by `insert`, `update` and `delete`."""
    feed_schema: str
    """Arrow IPC schema, base64."""
    pipeline_version: str


class ChangeFeed:
    """A published feed, open for reading."""

    def __init__(self, store: Store, record: FeedRecord) -> None:
        self.store, self.record = store, record

    @property
    def number(self) -> int:
        """Of the Snapshot that a store has the rows of, once it has taken in this feed."""
        return self.record.number

    @property
    def starts_from_nothing(self) -> bool:
        """Whether a store must drop what it has before it takes in this feed."""
        return self.record.since == FROM_NOTHING

    @property
    def folder(self) -> str:
        """URI of the folder of its Parquet files; without rows there is none."""
        return self.store.uri_of(f"changes/{self.record.folder}")

    @property
    def schema(self) -> pa.Schema:
        return decode_schema(self.record.feed_schema)

    def dataset(self) -> pyarrow.dataset.Dataset:
        """Return the rows as a pyarrow dataset: `op`, `id`, …, one row per id (and chunk)."""
        if not self.record.files:
            return pyarrow.dataset.dataset(self.schema.empty_table())
        paths = [f"{self.store.root}/changes/{self.record.folder}/{file['path']}" for file in self.record.files]
        return pyarrow.dataset.dataset(
            paths, schema=self.schema, format="parquet", filesystem=arrow_filesystem(self.store)
        )

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows, some thousand at a time; the deleted ones first."""
        yield from self.dataset().to_batches(batch_size=BATCH_ROWS, batch_readahead=1, fragment_readahead=1)


def feed_key(number: int) -> str:
    """Return the key of the object that publishes the feed of a Snapshot."""
    return f"_meta/changes/{number:08d}.json"


def feed_numbers(store: Store) -> list[int]:
    """Return the numbers of the Snapshots whose feeds are published, ascending."""
    found = (re.fullmatch(r"_meta/changes/(\d{8})\.json", key) for key in store.files("_meta/changes"))
    return sorted(int(match[1]) for match in found if match)


def load_feed(store: Store, number: int) -> ChangeFeed | None:
    """Return the feed of a Snapshot; None if there is none.

    Raises:
        StorageError: what stands in its place is none.
    """
    content = store.read(feed_key(number))
    if content is None:
        return None
    try:
        return ChangeFeed(store, FeedRecord(**orjson.loads(content)))
    except (TypeError, ValueError) as error:
        raise StorageError(f"{store.uri_of(feed_key(number))} is damaged, or of another version: {error}") from error


def publish_feed(store: Store, record: FeedRecord) -> ChangeFeed:
    """Write the one object that makes a feed true; if another process was faster, its feed stands."""
    found = store.put_new(feed_key(record.number), orjson.dumps(asdict(record)))
    return ChangeFeed(store, record if found is None else FeedRecord(**orjson.loads(found)))


def open_changes(uri: str, after: int = FROM_NOTHING) -> list[ChangeFeed]:
    """Return the feeds that lead from one Snapshot to the newest that has a feed, in the order to take them in.

    Args:
        uri: the output, as in `output.uri`.
        after: number of the Snapshot whose rows the store has; 0 = the store is empty.

    Raises:
        StorageError: there is no such way: feeds in between have expired, or `after` has none itself.
    """
    store = Store(uri)
    store.check_reachable()
    published = set(snapshot_numbers(store))
    numbers = [number for number in feed_numbers(store) if number > after and number in published]
    feeds = [feed for number in numbers if (feed := load_feed(store, number))]
    restarts = [at for at, feed in enumerate(feeds) if feed.starts_from_nothing]
    feeds = feeds[restarts[-1] :] if restarts else feeds
    if feeds and feeds[0].record.since not in (after, FROM_NOTHING):
        have = f"a store that has snapshot {after}" if after else "an empty store"
        raise StorageError(
            f"{store.uri}: no feeds lead from {have} to snapshot {feeds[-1].number}; the oldest one there starts from "
            f"snapshot {feeds[0].record.since}. Read snapshot {feeds[-1].number} whole (open_snapshot) into an empty "
            f"store, and go on with after={feeds[-1].number}"
        )
    return feeds


def needed_for_feeds(store: Store, numbers: Collection[int]) -> set[int]:
    """Return the Snapshots without which a feed that is still to be written could not start where the last one ends.

    Args:
        numbers: of the published Snapshots.
    """
    last = max(set(numbers) & set(feed_numbers(store)), default=None)
    if last is None:
        return set()
    later = (load_snapshot(store, number) for number in numbers if number > last)
    return {last} if any(snapshot and snapshot.record.has_changes for snapshot in later) else set()
