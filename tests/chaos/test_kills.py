"""Whatever is killed and however often: the same command again, and the rows are those of an undisturbed run."""

from collections import Counter, deque
from pathlib import Path

import pytest

from jobs.demo.local_s3 import LocalS3
from tests.chaos.conftest import MILD, Corpus
from tests.chaos.disturbed import World, finish_despite
from tests.chaos.kills import ROUND, SHORT, Target, planned_kills
from tests.chaos.proxy import FaultProxy
from tests.chaos.rows import check_folder, check_same, difference, folder_rows, journal_entries

MOST_RUNS = 8

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(1800)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give every round of kills a seed of its own, from --seed on, until there are --kills."""
    if "seed" in metafunc.fixturenames:
        kills, first = metafunc.config.getoption("--kills"), metafunc.config.getoption("--seed")
        targets = ROUND if kills > SHORT.total() else SHORT
        rounds = -(-kills // targets.total())
        metafunc.parametrize(("seed", "targets"), [(first + number, targets) for number in range(rounds)])


def test_a_seed_gives_the_same_kills_again() -> None:
    assert planned_kills(7) == planned_kills(7)
    assert planned_kills(7) != planned_kills(8)
    assert Counter(kill.target for kill in planned_kills(7)) == ROUND


def test_after_every_kill_the_same_command_again_gives_exactly_the_rows_of_an_undisturbed_run(
    world: World,
    proxy: FaultProxy,
    corpus: Corpus,
    straight: LocalS3,
    tmp_path: Path,
    seed: int,
    targets: Counter[Target],
) -> None:
    kills = deque(planned_kills(seed, targets))
    killed, faults = Counter(world.tally.kills), proxy.hits
    proxy.set_rules(MILD)
    try:
        for number in range(MOST_RUNS):
            if kills:
                path, output = corpus.config(tmp_path, f"seed-{seed}-{number}")
                finish_despite(world, path, tmp_path, kills, seed)
                check_run(world, corpus, output)
    finally:
        proxy.set_rules([])
        world.tally.faults += proxy.hits - faults
    assert not kills, f"never carried out within {MOST_RUNS} runs: {kills}"
    assert world.tally.kills - killed == Counter({target.value: count for target, count in targets.items()})
    assert proxy.hits.total() > faults.total()


def check_run(world: World, corpus: Corpus, output: str) -> None:
    """Compare one output with the undisturbed one, and count what it took."""
    tally, rows = world.tally, folder_rows(output)
    found = difference(rows, corpus.undisturbed)
    tally.rows += found.rows
    tally.lost += found.lost
    tally.duplicated += found.duplicated
    assert (found.lost, found.duplicated) == (0, 0)
    check_same(rows, corpus.undisturbed, least_cosine=1.0)
    check_folder(output)
    entries = journal_entries(output)
    assert entries > 1
    tally.journal_entries += entries
    tally.snapshots += 1
