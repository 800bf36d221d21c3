"""No value from the future: what a training row is given was known, of this very entity, at its time."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from pipeline.execution.feature_tables.feature_documents import event_times
from pipeline.features.asof import as_of_join
from tests.test_feature_table import Job, embeddings_of, vectors_by_id

US = pa.timestamp("us", tz="UTC")


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def known_at(job: Job, id: Any, *times: datetime.datetime) -> list[NDArray[np.float32] | None]:
    """Return the vector that a training row of this id is given at each time, None if there is none."""
    training = pa.table({"id": [id] * len(times), "event_timestamp": pa.array(times, US)})
    joined = as_of_join(training, job.features().table.dataset(), ["id"])
    return [None if row is None else np.array(row, np.float32) for row in joined["embedding"].to_pylist()]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([datetime.date(2026, 1, 31)], pa.date32()),
        pa.array([datetime.date(2026, 1, 31)], pa.date64()),
        pa.array(["2026-01-31"]),
    ],
)
def test_a_day_without_a_time_is_over_before_its_text_is_known(column: pa.Array) -> None:
    (time,) = event_times(pa.chunked_array([column]), "day").to_pylist()
    assert time == datetime.datetime(2026, 1, 31, 23, 59, 59, 999_999, datetime.UTC)


def test_a_time_of_day_is_taken_as_it_is() -> None:
    texts = pa.chunked_array([pa.array(["2026-01-31", "2026-01-31T00:00:00", None, "2026-01-31 20:00"])])
    hours = [time and time.hour for time in event_times(texts, "day").to_pylist()]
    assert hours == [23, 0, None, 20]


def test_a_text_that_another_id_had_before_is_not_known_of_this_one_until_it_has_it(tmp_path: Path) -> None:
    job = Job(tmp_path, pa.table({"id": [1, 2], "text": ["A", "B"]}))
    job.embed()
    first = now()
    pq.write_table(pa.table({"id": [1, 2], "text": ["A", "A"]}), job.file)
    rows = job.embed().to_table().sort_by("id")
    assert rows["created_timestamp"][1].as_py() < first, "the vector was computed for id 1"
    of_a = embeddings_of(rows)[1]
    before, after = known_at(job, 2, first, now())
    assert before is None
    np.testing.assert_array_equal(after, of_a)
    np.testing.assert_array_equal(known_at(job, 1, first)[0], of_a)


def test_over_many_nights_no_training_row_is_given_a_text_its_id_did_not_have_yet(tmp_path: Path) -> None:
    random, ids = np.random.default_rng(3), list(range(12))
    job = Job(tmp_path, pa.table({"id": ids, "text": ["none"] * 12}))
    nights, ends = [["none"] * 12], []
    for _ in range(5):
        job.embed()
        ends.append(now())
        moved = [(text, f"text {random.integers(3)}")[random.random() < 0.3] for text in nights[-1]]
        nights.append(moved)
        order = pa.array(random.permutation(12))
        pq.write_table(pa.table({"id": ids, "text": moved}).take(order), job.file)
    vectors = vectors_by_id(job.embed())
    given = {id: known_at(job, id, *ends) for id in ids}
    assert all(
        vector is None or (np.array_equal(vector, vectors[id]) and nights[night][id] == nights[-1][id])
        for id in ids
        for night, vector in enumerate(given[id])
    )
    assert sum(vector is not None for id in ids for vector in given[id]) > 0


def test_a_corpus_written_anew_under_another_name_keeps_every_time_whoever_else_has_its_texts(tmp_path: Path) -> None:
    table = pa.table({"id": list(range(18)), "text": [f"text {n % 2}" if n % 3 else f"own {n}" for n in range(18)]})
    job = Job(tmp_path, table)
    before = job.embed().to_table().sort_by("id")
    job.file.rename(job.file.with_name("b.parquet"))
    after = job.embed()
    assert after.parts.num_rows == 6, "each text but one's own stands in several Parts"
    assert after.to_table().sort_by("id") == before


def test_rows_that_come_from_two_parts_keep_their_times_in_both(tmp_path: Path) -> None:
    table = pa.table({"id": list(range(18)), "text": [f"own {n}" if n % 3 else "shared" for n in range(18)]})
    job = Job(tmp_path, table)
    before = job.embed("output.rows_per_part=9").to_table().sort_by("id")
    new = pa.table({"id": list(range(18, 22)), "text": [f"new {n}" for n in range(4)]})
    pq.write_table(pa.concat_tables([new, table]), job.file)
    after = job.embed("output.rows_per_part=9")
    assert after.parts["rows"].to_pylist() == [9, 9, 4], "the second one begins in the first Part of before"
    assert after.to_table().sort_by("id").slice(0, 18) == before
