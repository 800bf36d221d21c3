"""The answer to a successful PUT is lost, at every kind of object that a run writes: nobody is fenced by himself."""

import re
from pathlib import Path

import pytest

from jobs.demo.local_s3 import LocalS3
from tests.chaos.conftest import FIRST_FILES, Corpus
from tests.chaos.disturbed import World
from tests.chaos.proxy import Fault, FaultProxy, Rule, Strike
from tests.chaos.rows import check_folder, check_same, folder_rows

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(1800)]

PUT = frozenset({"PUT"})
OBJECTS = {
    "probe": r"/_meta/probe/\w+$",
    "claim": r"/_meta/claims/00000001/00000000\.json$",
    "beat": r"/_meta/claims/00000001/00000000\.beat$",
    "plan": r"/_meta/runs/\w+/plan\.parquet$",
    "fence": r"/journal/00000000\.json$",
    "journal entry": r"/journal/00000001\.json$",
    "part": r"/snapshots/00000001-\w+/\w+-\d+\.parquet$",
    "table of parts": r"/_meta/snapshots/00000001-\w+\.parts\.parquet$",
    "table of shards": r"/_meta/snapshots/00000001-\w+\.shards\.parquet$",
    "snapshot": r"/_meta/snapshots/00000001\.json$",
    "hint": r"/LATEST$",
    "report": r"/reports/\w+\.json$",
}
"""What one run writes, by the end of its path."""


@pytest.fixture(scope="module")
def strikes(
    world: World, proxy: FaultProxy, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, list[Strike]]:
    """One run that loses the first answer for each kind of object, and three more for Parts; it must succeed."""
    folder = tmp_path_factory.mktemp("lost")
    path, output = corpus.config(folder, "lost", source=FIRST_FILES)
    before = len(proxy.strikes)
    proxy.set_rules([Rule(Fault.LOST_RESPONSE, PUT, ending, count=1) for ending in OBJECTS.values()])
    try:
        driver = world.start_driver(path, folder / "driver.log")
        assert driver.wait() == 0, driver.said[-3000:]
    finally:
        proxy.set_rules([])
    return output, proxy.strikes[before:]


@pytest.mark.parametrize("kind", OBJECTS)
def test_a_run_survives_the_lost_answer_to_its(kind: str, strikes: tuple[str, list[Strike]]) -> None:
    found = [strike for strike in strikes[1] if re.search(OBJECTS[kind], strike.path)]
    assert [strike.fault for strike in found] == [Fault.LOST_RESPONSE]


def test_lost_answers_leave_one_snapshot_of_exactly_the_rows(
    strikes: tuple[str, list[Strike]], corpus: Corpus, straight: LocalS3
) -> None:
    output, _ = strikes
    check_folder(output)
    check_same(folder_rows(output), corpus.first_files(), least_cosine=1.0)


@pytest.mark.long
def test_a_refusal_in_the_middle_of_a_run_ends_it_at_once_and_the_next_run_finishes_it(
    world: World, proxy: FaultProxy, corpus: Corpus, straight: LocalS3, tmp_path: Path
) -> None:
    path, output = corpus.config(tmp_path, "refused", source=FIRST_FILES)
    proxy.set_rules([Rule(Fault.ACCESS_DENIED, PUT, OBJECTS["part"], skip=10)])
    try:
        driver = world.start_driver(path, tmp_path / "refused.log")
        assert driver.wait() == 1, driver.said[-3000:]
    finally:
        proxy.set_rules([])
    (error,) = driver.errors
    assert "access denied" in error
    assert "Traceback" not in driver.said
    again = world.start_driver(path, tmp_path / "again.log")
    assert again.wait() == 0, again.said[-3000:]
    check_folder(output)
    assert folder_rows(output).num_rows == 10 * corpus.rows_per_file
