"""The Claim: one driver at a time works on an output, and the claim of a dead one is taken over."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import orjson
import pytest

from pipeline.errors import SnapshotConflict
from pipeline.storage import claim as claims
from pipeline.storage.claim import Claim
from pipeline.storage.filesystem import Store


def test_two_claims_in_one_process_conflict_until_the_first_is_released(store: Store) -> None:
    with Claim(store, 1) as first:
        with pytest.raises(SnapshotConflict, match=f"process {os.getpid()}"):
            Claim(store, 1)
        assert not first.is_lost()
    with Claim(store, 1) as second:
        assert (first.epoch, second.epoch) == (0, 1)
        assert first.is_lost()


def test_a_beat_that_comes_after_the_release_does_not_take_it_back(local: Store) -> None:
    on_another_machine(local)
    local.put("_meta/claims/00000001/00000000.released", orjson.dumps({"driver": "them"}))
    beat(local, "them", 2)
    with Claim(local, 1) as mine:
        assert mine.epoch == 1


def test_of_two_that_claim_at_once_one_goes_on(local: Store) -> None:
    def try_to_claim(_: int) -> bool:
        try:
            Claim(local, 1)
        except SnapshotConflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(try_to_claim, range(8))) == 1


def test_the_claim_of_a_dead_process_is_taken_over(local: Store) -> None:
    program = f"""
import os
from pipeline.storage.claim import Claim
from pipeline.storage.filesystem import Store
Claim(Store({local.uri!r}), 1).__enter__()
os._exit(9)
"""
    subprocess.run([sys.executable, "-c", program], check=False)
    with Claim(local, 1) as mine:
        assert mine.epoch == 1


def on_another_machine(store: Store, driver: str = "them") -> None:
    """Leave the claim of a driver on a machine whose processes cannot be looked at."""
    owner = {"driver": driver, "host": "far", "machine": "boot/ns", "pid": 1, "pid_start": "1"}
    store.put_new("_meta/claims/00000001/00000000.json", orjson.dumps(owner))
    beat(store, driver, 1)


def beat(store: Store, driver: str, number: int) -> None:
    store.put("_meta/claims/00000001/00000000.beat", orjson.dumps({"driver": driver, "beat": number}))


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let hearts beat five times a second."""
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.2)


@pytest.mark.usefixtures("hurried")
def test_a_silent_driver_on_another_machine_is_taken_over(local: Store) -> None:
    on_another_machine(local)
    with Claim(local, 1) as mine:
        assert mine.epoch == 1


@pytest.mark.usefixtures("hurried")
def test_a_beating_driver_on_another_machine_is_not(local: Store) -> None:
    on_another_machine(local)
    with ThreadPoolExecutor(1) as pool:
        mine = pool.submit(Claim, local, 1)
        for number in range(2, 100):
            if mine.done():
                break
            beat(local, "them", number)
            time.sleep(0.02)
        with pytest.raises(SnapshotConflict, match="on far"):
            mine.result()
