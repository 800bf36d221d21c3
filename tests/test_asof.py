"""The as-of join: what a training row is given was known at its time, is the newest such, and is not too old."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.arrow import fixed_size_list
from pipeline.features.asof import as_of_join
from pipeline.features.windows import moments_of, newest_in_windows, ordered, window_means, window_starts

US = pa.timestamp("us", tz="UTC")


def day(number: float) -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=number - 1)


def features(*rows: tuple[str | None, float, float, float]) -> pa.Table:
    """Return features (user, event day, day of creation, value); their vector is the value twice."""
    users, events, created, values = zip(*rows, strict=True)
    vectors_N2 = np.repeat(np.array(values, np.float32)[:, None], 2, axis=1)
    return pa.table(
        {
            "user": pa.array(users, pa.string()),
            "event_timestamp": pa.array(map(day, events), US),
            "created_timestamp": pa.array(map(day, created), US),
            "embedding": fixed_size_list(np.ascontiguousarray(vectors_N2), pa.list_(pa.float32(), 2)),
        }
    )


def training(*rows: tuple[str | None, float]) -> pa.Table:
    users, events = zip(*rows, strict=True)
    columns = {"user": pa.array(users, pa.string()), "event_timestamp": pa.array(map(day, events), US)}
    return pa.table({**columns, "label": list(range(len(rows)))})


def values_of(joined: pa.Table) -> list[float | None]:
    return [None if vector is None else vector[0] for vector in joined["embedding"].to_pylist()]


KNOWN = features(("ann", 1, 40, 10), ("ann", 5, 40, 11), ("ann", 5, 41, 12), ("bob", 3, 40, 20), (None, 1, 40, 99))
"""Of ann's features of day 5 the one created later is meant."""

DAYS_ASKED: dict[str | None, list[float]] = {"bob": [4, 2.9], "ann": [4.9, 5, 0.9, 12, 12.001], "eve": [9], None: [9]}
ASKED = training(*((user, at) for user, days in DAYS_ASKED.items() for at in days))
ANSWERS = [20, None, 10, 12, None, 12, 12, None, None]
WITHIN_A_WEEK = [20, None, 10, 12, None, 12, None, None, None]
AT_THE_MOMENT = [None, None, None, 12, None, None, None, None, None]


@pytest.mark.parametrize(
    ("ttl", "answers"),
    [(None, ANSWERS), (timedelta(days=7), WITHIN_A_WEEK), (timedelta(0), AT_THE_MOMENT)],
)
def test_a_hand_made_table_gives_the_known_answers(ttl: timedelta | None, answers: list[float | None]) -> None:
    joined = as_of_join(ASKED, KNOWN, ["user"], ttl)
    assert values_of(joined) == answers
    assert joined.select(ASKED.column_names) == ASKED
    assert joined["feature_timestamp"][3].as_py() == day(5)


def test_a_folder_of_files_gives_what_one_table_gives(tmp_path: Path) -> None:
    for number in range(KNOWN.num_rows):
        pq.write_table(KNOWN.slice(number, 1), tmp_path / f"{number}.parquet")
    joined = as_of_join(ASKED, pyarrow.dataset.dataset(tmp_path), ["user"], timedelta(days=7))
    assert joined.equals(as_of_join(ASKED, KNOWN, ["user"], timedelta(days=7)))


def test_nothing_is_joined_to_no_features_and_no_rows_stay_no_rows() -> None:
    assert values_of(as_of_join(ASKED, KNOWN.slice(0, 0), ["user"])) == [None] * len(ASKED)
    empty = pyarrow.dataset.dataset(KNOWN.slice(0, 0))
    assert values_of(as_of_join(ASKED, empty, ["user"])) == [None] * len(ASKED)
    assert as_of_join(ASKED.slice(0, 0), KNOWN, ["user"]).num_rows == 0


@pytest.mark.parametrize(
    ("entities", "said"),
    [
        (ASKED.drop_columns("user"), "the training rows have no column user"),
        (ASKED.append_column("embedding", pa.nulls(len(ASKED))), "have embedding as the features do"),
        (ASKED.set_column(1, "event_timestamp", pa.nulls(len(ASKED), US)), "has no event_timestamp"),
        (ASKED.set_column(1, "event_timestamp", pa.array(range(len(ASKED)))), "expected a timestamp"),
    ],
)
def test_a_table_that_cannot_be_joined_is_refused(entities: pa.Table, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        as_of_join(entities, KNOWN, ["user"])


def brute_force(asked: dict[str, Any], known: list[dict[str, Any]], ttl: timedelta | None) -> float | None:
    """Look at every feature: of the same entity, not after the row, not past its time; the newest, the last created."""
    fitting = [
        row
        for row in known
        if row["user"] == asked["user"] is not None
        and row["event_timestamp"] <= asked["event_timestamp"]
        and (ttl is None or asked["event_timestamp"] - row["event_timestamp"] <= ttl)
    ]
    best = max(fitting, key=lambda row: (row["event_timestamp"], row["created_timestamp"]), default=None)
    return None if best is None else float(best["embedding"][0])


def in_files(table: pa.Table, cuts: list[int]) -> pyarrow.dataset.Dataset:
    """Return the rows as a dataset of files in memory, cut at these rows."""
    ends = sorted({*(cut for cut in cuts if 0 < cut < len(table)), len(table)})
    files = []
    for start, end in zip([0, *ends], ends, strict=False):
        sink = pa.BufferOutputStream()
        pq.write_table(table.slice(start, end - start), sink)
        files.append(pyarrow.dataset.ParquetFileFormat().make_fragment(pa.BufferReader(sink.getvalue())))
    return pyarrow.dataset.FileSystemDataset(files, table.schema, files[0].format)


USERS = st.sampled_from(["ann", "bob", "eve", None])


@settings(max_examples=60)
@given(
    st.lists(st.tuples(USERS, st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=25),
    st.lists(st.tuples(USERS, st.integers(0, 14)), min_size=1, max_size=15),
    st.sampled_from([None, 0, 1, 3, 7]),
    st.lists(st.integers(0, 25), max_size=3),
)
def test_no_value_of_the_future_leaks_and_none_newer_is_missed_however_the_files_are_cut(
    known: list[tuple[str | None, int, int]], asked: list[tuple[str | None, int]], days: int | None, cuts: list[int]
) -> None:
    distinct = sorted(set(known), key=str)
    table = features(*((user, event, created, value) for value, (user, event, created) in enumerate(distinct)))
    ttl = None if days is None else timedelta(days=days)
    rows, entities = table.to_pylist(), training(*asked)
    expected = [brute_force(row, rows, ttl) for row in entities.to_pylist()]
    joined = as_of_join(entities, table, ["user"], ttl)
    assert values_of(joined) == expected
    assert as_of_join(entities, in_files(table, cuts), ["user"], ttl).equals(joined)
    assert not pc.any(pc.greater(joined["feature_timestamp"], joined["event_timestamp"])).as_py()


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 20)), min_size=1, max_size=30),
    st.integers(1, 25),
    st.randoms(use_true_random=False),
)
def test_a_window_holds_what_its_entity_had_then_whatever_the_order_and_whatever_comes_later(
    documents: list[tuple[str, int]], window: int, random: Any
) -> None:
    shuffled = random.sample(documents, len(documents))
    table = pa.table(
        {
            "user": [user for user, _ in shuffled],
            "event_timestamp": pa.array([at for _, at in shuffled], pa.int64()).cast(US),
            "value": [float(number) for number in range(len(shuffled))],
        }
    )
    rows = ordered(table, ["user"], ["value"])
    moments, values_N1 = moments_of(rows, ["user"]), rows["value"].to_numpy().astype(np.float32)[:, None]
    starts_M = window_starts(moments, window)
    means_M1 = window_means(values_N1, starts_M, moments.last_M)
    newest_M = newest_in_windows(rows["value"].cast(pa.int64()).to_numpy(), starts_M, moments.last_M)
    found = dict(
        zip(
            [(rows["user"][n].as_py(), int(moments.time_N[n])) for n in moments.last_M.tolist()],
            zip(means_M1[:, 0].tolist(), newest_M.tolist(), strict=True),
            strict=True,
        )
    )
    assert found.keys() == set(documents)
    for (user, at), (mean, newest) in found.items():
        held = [n for n, (other, time) in enumerate(shuffled) if other == user and at - window < time <= at]
        assert mean == pytest.approx(np.mean(held), abs=1e-5)
        assert newest == max(held)
