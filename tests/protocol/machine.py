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
from tests.inline import FRAIL
from tests.protocol.actors import Actor
from tests.protocol.world import Mutant, World

MEMORY = Path("/dev/shm")
NAMES = ["a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl"]

STOPS = {
    "a claim": ("put_new", "_meta/claims"),
    "a part": ("put_new", "snapshots/0"),
    "a journal entry": ("put_new", "/journal/"),
    "a copy": ("copy_new", ""),
    "the publish": ("put_new", "_meta/snapshots/0"),
    "a deletion": ("delete", "_meta/runs"),
    "a part's deletion": ("delete", "snapshots/0"),
    "the end": ("nothing", ""),
}
"""Where it is worth to stop a driver: (operation, part of the key)."""

FATES = ["goes on", "goes on", "crashes", "crashes", "sleeps", "loses an answer"]
EVENTS = [
    "a file is written",
    "a file is written",
    "a file is removed",
    "a file is renamed",
    "the source comes back",
    "the device changes",
    "a night passes",
    "a forgotten worker wakes",
]
"""What happens around the runs."""

KINDS = st.sampled_from(["embed", "embed", "embed", "requeue", "expire", "roll back"])
ANY_STOP = st.sampled_from([*sorted(STOPS), "the publish", "the end"])
STEPS = st.integers(0, 11)
RARELY = st.sampled_from([False, False, False, True])
ROWS = st.integers(1, 4)
CARRY = st.sampled_from(["copy", "copy", "reference"])


def move(actor: Actor, stop: str, steps: int) -> None:
    """Let an actor go on to one of STOPS, and some operations beyond: a publish is three."""
    actor.run_to(*STOPS[stop])
    for _ in range(steps % 3 if stop == "the publish" else steps):
        actor.step()


class Protocol(RuleBasedStateMachine):
    """Drivers, forgotten workers and a source that changes, in any order; the rules move them, the invariants judge."""

    counts: ClassVar[Counter[str]] = Counter()
    """Over all examples: what has happened, by name."""
    mutant: ClassVar[Mutant] = staticmethod(list)
    """What is wrong with the protocol; nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="protocol-", dir=MEMORY if MEMORY.is_dir() else None))
        self.world = World(self.folder, self.counts, type(self).mutant)
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

    @precondition(lambda self: len(self.living()) < 3)
    @rule(
        kind=KINDS,
        rows=st.integers(0, 4),
        stop=ANY_STOP,
        steps=STEPS,
        fate=st.sampled_from(FATES),
        is_strict=RARELY,
        carry=CARRY,
    )
    def someone_starts(
        self, kind: str, rows: int, stop: str, steps: int, fate: str, is_strict: bool, carry: str
    ) -> None:
        world = self.world
        if rows and kind == "embed":  # else there is mostly nothing to do
            world.write(NAMES[steps % len(NAMES)], self.fresh_rows(rows))
        if rows and kind == "expire":  # the same
            world.sleep()
            stop = stop if stop == "the end" else "a deletion"
        if kind == "roll back" and len(world.published) > 1:
            actor = world.roll_back(rows)
        elif kind == "expire":
            actor = world.sweep(1 + steps % 3)
        else:
            actor = world.drive(is_strict, carry, frozenset(Reason) if kind == "requeue" else ())
        self.meets(actor, stop, steps, fate)
        if fate == "sleeps":
            world.drive(carry=carry).run_to_end()
            self.what_is_published_is_exact_and_stays()
            actor.run_to_end()

    @precondition(lambda self: self.living())
    @rule(index=st.integers(0, 2), stop=ANY_STOP, steps=STEPS, fate=st.sampled_from(FATES))
    def someone_goes_on(self, index: int, stop: str, steps: int, fate: str) -> None:
        self.meets(self.living()[index % len(self.living())], stop, steps, fate)

    def meets(self, actor: Actor, stop: str, steps: int, fate: str) -> None:
        """Let an actor go on to a point and meet its fate there; one that sleeps is taken for dead."""
        move(actor, stop, steps)
        if fate == "crashes":
            actor.crash()
        elif fate == "loses an answer":
            actor.step(loses_answer=True)
        elif fate == "sleeps":
            self.world.presumed_dead.add(actor.number)

    @rule(event=st.sampled_from(EVENTS), index=st.integers(0, 99), rows=ROWS)
    def something_happens(self, event: str, index: int, rows: int) -> None:
        world = self.world
        names, free = sorted(world.files), sorted(set(NAMES) - world.files.keys())
        if event == "a file is written":
            world.write(NAMES[index % len(NAMES)], self.fresh_rows(rows))
        elif event == "a file is removed" and len(names) > 1:
            world.write(names[index % len(names)], {})
        elif event == "a file is renamed" and free:
            world.rename(names[index % len(names)], free[index % len(free)])
        elif event == "the source comes back":
            world.restore(-1 - index % min(4, len(world.history)))
        elif event == "the device changes":
            world.is_sick = not world.is_sick
        elif event == "a night passes":
            world.sleep()
        elif event == "a forgotten worker wakes" and world.given and len(self.living()) < 3:
            move(
                world.wake(world.given[-1 - index % len(world.given)]), "the end" if index % 3 else "a part", index % 2
            )

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
        requeue = partial(world.drive, retry=frozenset(Reason))  # the first may finish one that a sick device began
        for start in (world.drive, requeue, requeue, partial(world.sweep, 1)):
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
