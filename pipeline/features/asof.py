"""The join of training rows to features as they were known then: no value from the future, none past its time."""

from collections.abc import Iterator, Sequence
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
from numpy.typing import NDArray

EVENT, CREATED = "event_timestamp", "created_timestamp"
FEATURE_TIME = "feature_timestamp"
NEVER = np.iinfo(np.int64).min

NEWEST_AT_THE_TIME = """
WITH feature AS (
  SELECT {keys}, event_us, max(created_us) AS created_us, max_by(place, row(created_us, place)) AS place
  FROM features GROUP BY {keys}, event_us
)
SELECT entities.place AS entity_row, feature.place AS feature_row, feature.event_us, feature.created_us
FROM entities ASOF JOIN feature ON {equal} AND entities.event_us >= feature.event_us
"""


def as_of_join(
    entities: pa.Table,
    features: pa.Table | pyarrow.dataset.Dataset,
    keys: Sequence[str],
    ttl: timedelta | None = None,
) -> pa.Table:
    """Give every training row the newest feature of its entity that is not younger than the row itself.

    Of features of one entity and one event time the one created last is taken. Memory: the entities, the keys of one
    file of the dataset, and the result; a feature that is joined to no row is never read beyond its keys.

    Args:
        entities: the training rows: `keys`, `event_timestamp`, and what else they carry; any order. Times without a
            zone are in UTC.
        features: `keys`, `event_timestamp`, if there is one `created_timestamp`, and the features.
        keys: the columns that name an entity; null equals nothing.
        ttl: the oldest age a feature may have, inclusive; None = any.

    Returns:
        The rows of `entities` in their order, with `feature_timestamp` (the event time of the feature) and the feature
        columns; null where no feature was known.

    Raises:
        ValueError: a column is missing, or stands in both tables.
    """
    carried = [name for name in features.schema.names if name not in (*keys, EVENT, CREATED)]
    _check_columns(entities, features.schema, keys, carried)
    own_N = _microseconds(entities[EVENT])
    oldest_N = np.full_like(own_N, NEVER) if ttl is None else own_N - ttl // timedelta(microseconds=1)
    newest = _Newest(entities.num_rows)
    sources = list(_files(features))
    own = pa.table({**_keys(entities, keys), "event_us": own_N, "place": np.arange(len(entities))})
    stamps = [EVENT] + [CREATED] * (CREATED in features.schema.names)
    for number, source in enumerate(sources):
        found = _matches(own, source.to_table(columns=[*keys, *stamps]), keys)
        entity_row_K = found["entity_row"].to_numpy()
        newest.update(number, found.filter(pa.array(found["event_us"].to_numpy() >= oldest_N[entity_row_K])))
    columns = newest.read(sources, [EVENT, *carried], features.schema)
    joined = entities.append_column(FEATURE_TIME, columns[EVENT])
    for name in carried:
        joined = joined.append_column(features.schema.field(name).with_nullable(True), columns[name])
    return joined


class _Newest:
    """The best feature seen so far of each of N training rows: in which file, in which row, of what time."""

    def __init__(self, rows: int) -> None:
        self.file_N, self.row_N = np.full(rows, -1), np.zeros(rows, np.int64)
        self.at_N, self.created_N = np.full(rows, NEVER), np.full(rows, NEVER)

    def update(self, file: int, found: pa.Table) -> None:
        row_K, at_K, created_K = (found[name].to_numpy() for name in ("entity_row", "event_us", "created_us"))
        is_better_K = (at_K > self.at_N[row_K]) | ((at_K == self.at_N[row_K]) & (created_K > self.created_N[row_K]))
        better_K = row_K[is_better_K]
        self.file_N[better_K], self.row_N[better_K] = file, found["feature_row"].to_numpy()[is_better_K]
        self.at_N[better_K], self.created_N[better_K] = at_K[is_better_K], created_K[is_better_K]

    def read(self, sources: Sequence[pyarrow.dataset.Dataset], names: Sequence[str], schema: pa.Schema) -> pa.Table:
        """Return the columns of the features found, one row per training row, null where there is none."""
        pieces, order_N = [], np.full(len(self.file_N), -1)
        done = 0
        for number in np.unique(self.file_N[self.file_N >= 0]):
            rows_K = np.flatnonzero(self.file_N == number)
            pieces.append(sources[number].to_table(columns=list(names)).take(pa.array(self.row_N[rows_K])))
            order_N[rows_K] = done + np.arange(len(rows_K))
            done += len(rows_K)
        asked = pa.schema([schema.field(name).with_nullable(True) for name in names])
        found = pa.concat_tables([asked.empty_table(), *(piece.cast(asked) for piece in pieces)]).combine_chunks()
        return found.take(pa.array(order_N, mask=order_N < 0))


def _matches(entities: pa.Table, features: pa.Table, keys: Sequence[str]) -> pa.Table:
    """Return entity_row, feature_row, event_us and created_us of the newest feature of each entity row that has one."""
    import duckdb

    event_M = _microseconds(features[EVENT])
    created_M = _microseconds(features[CREATED]) if CREATED in features.column_names else np.zeros_like(event_M)
    columns = {**_keys(features, keys), "event_us": event_M, "created_us": created_M, "place": np.arange(len(features))}
    names = [f"key_{number}" for number in range(len(keys))]
    query = NEWEST_AT_THE_TIME.format(
        keys=", ".join(names), equal=" AND ".join(f"entities.{name} = feature.{name}" for name in names)
    )
    with duckdb.connect() as connection:
        connection.register("entities", entities)
        connection.register("features", pa.table(columns))
        return connection.sql(query).to_arrow_table()


def _files(features: pa.Table | pyarrow.dataset.Dataset) -> Iterator[pyarrow.dataset.Dataset]:
    """Yield a dataset per file; a table, or a dataset that is not of files, is one."""
    if not isinstance(features, pyarrow.dataset.FileSystemDataset):
        yield pyarrow.dataset.dataset(features) if isinstance(features, pa.Table) else features
        return
    for fragment in features.get_fragments():
        yield pyarrow.dataset.FileSystemDataset([fragment], features.schema, fragment.format, fragment.filesystem)


def _keys(table: pa.Table, keys: Sequence[str]) -> dict[str, pa.ChunkedArray]:
    return {f"key_{number}": table[name] for number, name in enumerate(keys)}


def _microseconds(column: pa.ChunkedArray) -> NDArray[np.int64]:
    return np.asarray(column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64()).to_numpy())


def _check_columns(entities: pa.Table, schema: pa.Schema, keys: Sequence[str], carried: Sequence[str]) -> None:
    for told, names in (("the training rows", entities.column_names), ("the features", schema.names)):
        missing = [name for name in (*keys, EVENT) if name not in names]
        if missing:
            raise ValueError(f"{told} have no column {', '.join(missing)}; they have {', '.join(names)}")
    for told, table_schema in (("the training rows", entities.schema), ("the features", schema)):
        if not pa.types.is_timestamp(table_schema.field(EVENT).type):
            raise ValueError(f"{EVENT} of {told} is {table_schema.field(EVENT).type}; expected a timestamp")
    if pc.any(pc.is_null(entities[EVENT])).as_py():
        raise ValueError(f"a training row has no {EVENT}; leave it out or give it a time")
    both = sorted({*carried, FEATURE_TIME} & set(entities.column_names))
    if both:
        raise ValueError(f"the training rows have {', '.join(both)} as the features do; rename or drop them")
