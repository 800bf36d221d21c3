"""The state machine: every order of runs, crashes, takeovers, zombies and changes of the source."""

import shutil
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipeline.records import Reason
from tests.protocol.actors import Actor
from tests.protocol.published import FRAIL
from tests.protocol.world import World

MEMORY = Path("/dev/shm")
NAMES = ["a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"]

STOPS = {
    "a claim": ("put_new", "_meta/claims"),
    "a part": ("put_new", "snapshots/0"),
    "a journal entry": ("put_new", "/journal/"),
    "a copy": ("copy_new", ""),
    "the publish": ("put_new", "_meta/snapshots/0"),
    "a deletion": ("delete", "_meta/runs"),
    "the end": ("nothing", ""),
}
"""Where it is worth to stop a driver: (operation, part of the key)."""

RARELY = st.sampled_from([False, False, False, True])
ROWS = st.integers(1, 4)
CARRY = st.sampled_from(["copy", "copy", "reference"])


def move(actor: Actor, stop: str, steps: int) -> None:
    """Let an actor go on to one of STOPS, and some operations beyond."""
    actor.run_to(*STOPS[stop])
    for _ in range(steps):
        actor.step()


class Protocol(RuleBasedStateMachine):
    """Drivers, forgotten workers and a source that changes, in any order; the rules move them, the invariants judge."""

    counts: ClassVar[Counter[str]] = Counter()
    """Over all examples: what has happened, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="protocol-", dir=MEMORY if MEMORY.is_dir() else None))
        self.world = World(self.folder, self.counts)
        self.serial = 0

    @initialize(rows=ROWS)
    def first_files(self, rows: int) -> None:
        for name in NAMES[:2]:
            self.world.write(name, self.fresh_rows(rows))

    def fresh_rows(self, rows: int) -> dict[str, str]:
        first, self.serial = self.serial, self.serial + rows
        return {f"r{n}": f"{FRAIL if n % 4 == 1 else ''}text {n}" for n in range(first, self.serial)}

    def living(self) -> list[Actor]:
        return [actor for actor in self.world.actors if not actor.is_over]

    def chosen(self, index: int) -> Actor:
        living = self.living()
        return living[index % len(living)]

    @precondition(lambda self: len(self.living()) < 4)
    @rule(is_strict=RARELY, carry=CARRY, stop=st.sampled_from(sorted(STOPS)), steps=st.integers(0, 3))
    def start_a_driver(self, is_strict: bool, carry: str, stop: str, steps: int) -> None:
        move(self.world.drive(is_strict, carry), stop, steps)

    @precondition(lambda self: len(self.living()) < 4)
    @rule(is_strict=RARELY, carry=CARRY, stop=st.sampled_from(sorted(STOPS)), steps=st.integers(0, 3))
    def start_a_requeue(self, is_strict: bool, carry: str, stop: str, steps: int) -> None:
        move(self.world.drive(is_strict, carry, frozenset(Reason)), stop, steps)

    @precondition(lambda self: len(self.living()) < 4)
    @rule(keep=st.integers(1, 3), stop=st.sampled_from(["a claim", "a deletion", "the end"]), steps=st.integers(0, 12))
    def start_an_expiry(self, keep: int, stop: str, steps: int) -> None:
        move(self.world.sweep(keep), stop, steps)

    @rule()
    def a_night_passes(self) -> None:
        self.world.sleep()

    @precondition(lambda self: self.living())
    @rule(index=st.integers(0, 3), stop=st.sampled_from(sorted(STOPS)), steps=st.integers(0, 3))
    def advance(self, index: int, stop: str, steps: int) -> None:
        move(self.chosen(index), stop, steps)

    @precondition(lambda self: self.living())
    @rule(index=st.integers(0, 3), stop=st.sampled_from(["a claim", "a part", "a journal entry", "the publish"]))
    def lose_an_answer(self, index: int, stop: str) -> None:
        actor = self.chosen(index)
        actor.run_to(*STOPS[stop])
        actor.step(loses_answer=True)

    @precondition(lambda self: self.living())
    @rule(index=st.integers(0, 3), stop=st.sampled_from([None, *sorted(STOPS)]), steps=st.integers(0, 3))
    def crash(self, index: int, stop: str | None, steps: int) -> None:
        actor = self.chosen(index)
        if stop:
            move(actor, stop, steps)
        actor.crash()

    @precondition(lambda self: len(self.living()) < 3)
    @rule(stop=st.sampled_from(sorted(STOPS)), steps=st.integers(0, 3), then=st.sampled_from(sorted(STOPS)))
    def crash_a_driver_and_start_another(self, stop: str, steps: int, then: str) -> None:
        first = self.world.drive()
        move(first, stop, steps)
        first.crash()
        move(self.world.drive(), then, 0)

    @precondition(lambda self: self.living())
    @rule(index=st.integers(0, 3))
    def take_for_dead(self, index: int) -> None:
        self.world.presumed_dead.add(self.chosen(index).number)

    @precondition(lambda self: self.world.given and len(self.living()) < 4)
    @rule(index=st.integers(0, 99))
    def wake_a_forgotten_worker(self, index: int) -> None:
        self.world.wake(self.world.given[index % len(self.world.given)])

    @rule(change=st.sampled_from(["write", "write", "remove", "rename", "restore"]), index=st.integers(0, 7), rows=ROWS)
    def the_source_changes(self, change: str, index: int, rows: int) -> None:
        names, free = sorted(self.world.files), sorted(set(NAMES) - self.world.files.keys())
        if change == "write":
            self.world.write(NAMES[index % len(NAMES)], self.fresh_rows(rows))
        elif change == "remove" and len(names) > 1:
            self.world.write(names[index % len(names)], {})
        elif change == "rename" and free:
            self.world.rename(names[index % len(names)], free[index % len(free)])
        elif change == "restore":
            self.world.restore(index)

    @rule()
    def the_device_falls_sick_or_recovers(self) -> None:
        self.world.is_sick = not self.world.is_sick

    @invariant()
    def what_is_published_is_exact_and_stays(self) -> None:
        self.world.judge()
        self.world.check()

    def teardown(self) -> None:
        try:
            self.the_same_command_again_finishes_the_work()
        finally:
            self.world.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def the_same_command_again_finishes_the_work(self) -> None:
        """Whatever has happened: undisturbed runs publish the source as it is, empty the quarantine, and tidy up."""
        world = self.world
        if not world.files:
            return
        world.is_sick = False
        for start in (world.drive, partial(world.drive, retry=frozenset(Reason)), partial(world.sweep, 1)):
            world.sleep()
            last = start()
            last.run_to_end()
            self.what_is_published_is_exact_and_stays()
            assert last.error is None, f"an undisturbed run after all that failed: {last.error}"
        self.counts["examples"] += 1
        newest = world.published[world.newest]
        newest.check_rows(world.states[-1:])
        assert newest.record.totals["quarantined"] == 0
        newest.check_nothing_else_is_left()
