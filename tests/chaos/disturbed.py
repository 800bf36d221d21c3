"""Runs that are disturbed on purpose, kill by kill, until the same command has finished them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import orjson

from jobs.demo.local_s3 import LocalS3
from tests.chaos.cluster import Node, RayCluster
from tests.chaos.kills import ENCODER_TITLE, ENDS_DRIVER, TITLES, Kill, Tally, Target
from tests.running import ROOT

T = TypeVar("T")

FLIGHT_SECONDS = 180.0
"""Longest wait for a driver to have Blocks written."""
VICTIM_SECONDS = 5.0
"""Longest wait for a worker to be seen at the stage it is to be killed at."""
END_SECONDS = 240.0


class Driver:
    """One `python -m jobs embed CONFIG`, in a process of its own; what it says goes to files, never to a full pipe."""

    def __init__(self, config: str, log: Path, environment: Mapping[str, str], *arguments: str) -> None:
        self.log = log
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        with log.open("wb") as stream, log.with_suffix(".json").open("wb") as report:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jobs", "embed", config, "--json", *arguments],
                cwd=ROOT,
                env=inherited | dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=report,
                stderr=stream,
            )

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    @property
    def errors(self) -> list[str]:
        return [line for line in self.said.splitlines() if line.startswith("error: ")]

    @property
    def report(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        report: dict[str, Any] = orjson.loads(self.log.with_suffix(".json").read_bytes())
        return report

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def is_seen(self, look: Callable[[], T | None], seconds: float) -> T | None:
        """Look until there is something to see; None if this driver ends or the time does before."""
        deadline = time.monotonic() + seconds
        while self.is_running and time.monotonic() < deadline:
            if (found := look()) is not None:
                return found
            time.sleep(0.02)
        return None

    def goes_on(self, seconds: float) -> bool:
        """Let it run for so long; return whether it still does."""
        self.is_seen(lambda: None, seconds)
        return self.is_running

    def terminate(self) -> float:
        """Ask it to end, and return how long that took."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.wait()
        return time.monotonic() - started

    def wait(self, seconds: float = END_SECONDS) -> int:
        """Wait for its end; a driver that does not end is a failure, and is ended."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the driver hangs, not ended after {seconds:g} s:\n{self.said[-3000:]}") from None


@dataclass(frozen=True, slots=True)
class World:
    """The real parts that a run stands on, and what was done to them."""

    s3: LocalS3
    cluster: RayCluster
    storage: Mapping[str, str]
    """The variables that lead a driver to its storage: through the proxy."""
    tally: Tally

    def start_driver(self, config: str, log: Path) -> Driver:
        address = f"runtime.ray_address={self.cluster.address}"
        return Driver(config, log, {**self.storage, **self.cluster.environment}, address)

    def freeze_s3(self) -> None:
        """Let the S3 server stand still: connections stay open and nobody answers."""
        os.kill(self.s3.pid, signal.SIGSTOP)

    def thaw_s3(self) -> None:
        os.kill(self.s3.pid, signal.SIGCONT)


def finish_despite(world: World, config: str, folder: Path, kills: deque[Kill], seed: int) -> list[int]:
    """Run the same command until it exits 0, and meanwhile carry out as many of the kills as the run lasts for.

    Args:
        config: its output must be fresh.
        folder: for the logs of the drivers.
        kills: those carried out are taken from it.
        seed: for the choice among equal victims.

    Returns:
        Exit codes of the drivers, the last 0.
    """
    codes: list[int] = []
    generator = random.Random(seed)
    world.tally.runs += 1
    attempts = len(kills) + 3
    while len(codes) < attempts:
        _wait_for_idle(world.cluster)
        driver = world.start_driver(config, folder / f"{Path(config).stem}-{len(codes)}.log")
        try:
            struck = _strike_all(world, driver, kills, generator)
            codes.append(driver.wait())
        finally:
            driver.process.kill()
        world.tally.exit_codes[str(codes[-1])] += 1
        if codes[-1] == 0:
            assert driver.report["outcome"] == "published"
            return codes
        assert struck, f"exit {codes[-1]} though nothing was done to it:\n{driver.said[-3000:]}"
        assert "Traceback" not in driver.said, driver.said[-3000:]
        if struck is Target.HEAD:
            world.cluster.stop()
            world.cluster.start()
    raise AssertionError(f"not finished by {attempts} commands, exit codes {codes}:\n{driver.said[-3000:]}")


def _wait_for_idle(cluster: RayCluster) -> None:
    """Wait until the encoders of a driver that was killed are gone: they are no proof of a run in flight."""
    deadline = time.monotonic() + FLIGHT_SECONDS
    while cluster.find(ENCODER_TITLE, random.Random()):
        assert time.monotonic() < deadline, "the encoders of a dead driver live on"
        time.sleep(0.05)


def _strike_all(world: World, driver: Driver, kills: deque[Kill], generator: random.Random) -> Target | None:
    """Carry out kills while this driver lives, each that finds no victim later; return the last one."""
    struck, put_off = None, 0
    while put_off < len(kills):
        kill = kills[0]
        is_in_flight = driver.is_seen(lambda: world.cluster.find(TITLES[Target.WRITER], generator), FLIGHT_SECONDS)
        if not is_in_flight or not driver.goes_on(kill.delay_seconds):
            return struck
        if _strike(world, driver, kill, generator):
            world.tally.kills[kill.target.value] += 1
            kills.popleft()
            struck, put_off = kill.target, 0
        else:
            kills.rotate(-1)
            put_off += 1
        if struck in ENDS_DRIVER:
            return struck
    return struck


def _strike_node(cluster: RayCluster, driver: Driver, kill: Kill, node: Node) -> bool:
    """Lose a worker node until another takes its place, or until it is back itself."""
    if kill.target is Target.NODE:
        cluster.kill_worker(node)
        driver.goes_on(kill.pause_seconds)
        cluster.add_worker()
        return True
    node.cut_off()
    try:
        driver.goes_on(kill.pause_seconds)
    finally:
        node.come_back()
    return True


def _strike(world: World, driver: Driver, kill: Kill, generator: random.Random) -> bool:
    """Carry out one kill; return whether its victim was there while the run was in flight."""
    cluster = world.cluster
    if kill.target in TITLES:
        victim = driver.is_seen(lambda: cluster.find(TITLES[kill.target], generator), VICTIM_SECONDS)
        return victim is not None and victim.kill()
    if not driver.is_running:
        return False
    if kill.target in (Target.NODE, Target.NETWORK):
        standing = [node for node in cluster.workers if node.is_up]
        return bool(standing) and _strike_node(cluster, driver, kill, generator.choice(standing))
    if kill.target is Target.S3:
        world.s3.kill()
        driver.goes_on(kill.pause_seconds)
        world.s3.start()
    elif kill.target is Target.HEAD:
        assert cluster.head is not None
        cluster.head.kill()
    elif kill.target is Target.DRIVER:
        driver.process.kill()
    else:
        world.tally.sigterm_seconds.append(driver.terminate())
    return True
