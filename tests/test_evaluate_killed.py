"""evaluate, killed while it embeds and while it scores: started again it goes on, and says what it would have said."""

import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import orjson
import pyarrow as pa
import pytest

from tests.labelled_sets import write_sets
from tests.running import ROOT, written_config

TASKS = ["Halves:PairClassification", "STSB", "Choice:Reranking", "Search:Retrieval"]
KILLS = ["block:2", "block:0", "block:3", "task:1", "task:0", "task:2"]


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory, reviews: pa.Table) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets"), reviews)


def config_in(folder: Path, mirror: Path) -> Path:
    folder.mkdir()
    config = written_config(
        folder / "job.yaml",
        source={"uri": "in"},
        recipe={"model": "hashing://64"},
        output={"uri": "out"},
        evaluation={"uri": str(folder / "evaluation"), "tasks": TASKS, "mirror": str(mirror)},
    )
    return Path(config)


def encoded_by(config: Path) -> Counter[str]:
    """Return how often each Block was encoded."""
    return Counter(config.with_name("encoded").read_text().splitlines())


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_killed_while_it_embeds_and_while_it_scores_it_says_the_same_and_encodes_nothing_twice_that_was_journalled(
    tmp_path: Path, mirror: Path
) -> None:
    undisturbed, disturbed = (config_in(tmp_path / name, mirror) for name in ("undisturbed", "disturbed"))
    attempts = [(undisturbed, "never"), *((disturbed, where) for where in (*KILLS, "never", "never"))]
    program = [sys.executable, "-m", "tests.evaluating", *(str(word) for words in attempts for word in words)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole, *killed, last, again = orjson.loads(done.stdout.splitlines()[-1])
    assert killed == [signal.SIGKILL] * len(KILLS)
    assert (last["points"], last["texts"]) == (whole["points"], whole["texts"])
    once, encoded = encoded_by(undisturbed), encoded_by(disturbed)
    assert len(once) == once.total() > 8
    in_flight = sum(where.startswith("block") for where in KILLS)
    assert encoded.keys() == once.keys()
    assert encoded.total() == once.total() + in_flight
    scored_before = sum(int(where.split(":")[1]) for where in KILLS if where.startswith("task"))
    assert (last["encoded"], last["scored"]) == (0, len(TASKS) - scored_before)
    assert (again["encoded"], again["scored"], again["points"]) == (0, 0, last["points"])
