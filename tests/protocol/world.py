"""A world without Ray: a source that changes, drivers and forgotten workers on one output, and what must hold."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep, time
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import orjson
import pyarrow as pa

from pipeline.arrow import hash_strings
from pipeline.config import JobConfig
from pipeline.encoder.describe import ModelDescription
from pipeline.errors import PipelineError, SnapshotConflict
from pipeline.execution import following, opening, publish, stages
from pipeline.execution import run as execution
from pipeline.execution.attempts import Attempts
from pipeline.execution.planning import have, rounds, shards
from pipeline.execution.planning.plan import Plan
from pipeline.execution.reporting import run_report
from pipeline.execution.settings import stage_settings
from pipeline.execution.stages import StageSettings
from pipeline.execution.workload import Workload
from pipeline.fingerprint import fingerprint
from pipeline.records import BlockReceipt, Reason, Shard
from pipeline.storage import claim, expiry, journal
from pipeline.storage.expiry import expire
from pipeline.storage.filesystem import Store
from pipeline.storage.rollback import roll_back
from pipeline.storage.snapshots import Snapshot, snapshot_numbers
from tests.inline import FRAIL, blocks_of
from tests.protocol.actors import Actor, Crashed, SteppedStore, current_actor
from tests.protocol.published import Published, State

Mutant = Callable[[], list[AbstractContextManager[Any]]]
"""Gives what makes the protocol wrong."""

ENDS = {type(None): "done", Crashed: "crashed", SnapshotConflict: "lost races"}
"""How an actor can end; else it has failed with a PipelineError, as a source that changes under it makes it do."""


class OneByOne:
    """A ThreadPoolExecutor without threads, so that a run does the same whenever it is repeated."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def __enter__(self) -> "OneByOne":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def map(self, function: Callable[..., Any], *values: Iterable[Any]) -> list[Any]:
        return list(map(function, *values))


@dataclass(frozen=True)
class Work:
    """A Shard as a driver has given it to a worker."""

    settings: StageSettings
    shard: Shard
    done: frozenset[int]
    is_sick: bool
    """Whether frail texts have no vector: the same for all that work on one run."""

    def blocks(self, store: Store) -> Iterator[BlockReceipt]:
        """Do it, Block by Block."""
        return blocks_of(store, self.settings, self.shard, self.done, self.is_sick)


class World:
    """One source, one output, and everybody who works on them."""

    def __init__(self, folder: Path, counts: Counter[str], mutant: Mutant) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.corpus, self.output = folder / "corpus", folder / "out"
        self.corpus.mkdir(parents=True)
        self.store = Store(str(self.output))
        self.counts = counts
        self.actors: list[Actor] = []
        self.presumed_dead: set[int] = set()
        self.given: list[Work] = []
        self.begun: dict[str, bool] = {}
        """run_key → whether it does Shards anew."""
        self.is_sick = False
        self.sick_runs: dict[str, bool] = {}
        self.files: dict[str, tuple[dict[str, str], int]] = {}
        """Name → rows, time of change."""
        self.history: list[dict[str, tuple[dict[str, str], int]]] = []
        self.states: list[State] = []
        self.published: dict[int, Published] = {}
        self.newest = 0
        self.morning = 0.0
        self.least_kept: int | None = None
        """By any expiry so far."""
        self.judged: set[int] = set()
        self._clock, self._patches = 10**18, self._patched(mutant)

    def kill_all(self) -> None:
        """Crash whoever is left."""
        for actor in self.actors:
            actor.crash()

    def close(self) -> None:
        """Crash whoever is left, and give the code back what was taken from it."""
        self.kill_all()
        self._patches.close()

    def _patched(self, mutant: Mutant) -> ExitStack:
        """Take away threads, clocks and Ray; all that decides what is written where stays as it is."""
        patches: list[AbstractContextManager[Any]] = [
            patch.object(execution, "Store", SteppedStore),
            patch.object(execution, "_encode_missing", self._encode_missing),
            patch.object(following, "JOURNAL_SECONDS", 0.0),
            patch.object(run_report, "version", lambda package: "1"),
            patch.object(run_report, "_map_of", lambda store, report: None),
            patch.object(run_report, "render_html", lambda report, vectors: ""),
            patch.object(rounds, "fingerprint", self._fingerprint),
            patch.object(shards, "fingerprint", self._fingerprint),
            patch.object(execution, "time", self._time()),
            patch.object(following, "time", self._time()),
            patch.object(opening, "time", self._time()),
            patch.object(stages, "time", self._time()),
            patch.object(claim, "_process_identity", self._identity),
            patch.object(claim, "_start_time", self._start_time),
            patch.object(claim.Claim, "_keep_beating", lambda claim: None),
            # up to Python 3.11 one lock per class, held while an actor waits for its turn
            *(patch.object(vars(Snapshot)[name], "lock", nullcontext(), create=True) for name in ("parts", "shards")),
            *(patch.object(module, "ThreadPoolExecutor", OneByOne) for module in (have, journal, publish, expiry)),
            *mutant(),
        ]
        stack = ExitStack()
        for one in patches:
            stack.enter_context(one)
        return stack

    def _fingerprint(self, value: Any) -> str:
        """Return a fingerprint in which the name of this folder plays no part, so that an example can be repeated."""
        return fingerprint(orjson.dumps(value).decode().replace(str(self.corpus), ""))

    def _time(self) -> SimpleNamespace:
        return SimpleNamespace(time=lambda: self._tick() / 1e9, time_ns=self._tick, perf_counter=perf_counter)

    def _tick(self) -> int:
        self._clock += 1_234_567
        return self._clock

    def _identity(self) -> dict[str, Any]:
        actor = current_actor()
        return {"machine": "here", "pid": actor.number if actor else 0, "pid_start": "then"}

    def _start_time(self, pid: int) -> str | None:
        actor = self.actors[pid]
        return None if actor.is_over or pid in self.presumed_dead else "then"

    # The source

    def write(self, name: str, rows: dict[str, str]) -> None:
        """Put a file of these rows (id → text) in place of what had the name; none at all removes it."""
        self._place(name, rows, self._tick())  # the real clock may stand still between two changes
        self._note_state()

    def restore(self, index: int) -> None:
        """Bring the source back to a former state, the times of its files included."""
        former = self.history[index]
        for name in self.files.keys() - former.keys():
            (self.corpus / name).unlink()
        self.files = {}
        for name, (rows, time_ns) in former.items():
            self._place(name, rows, time_ns)
        self._note_state()

    def rename(self, name: str, to: str) -> None:
        """Give a file another name."""
        rows, time_ns = self.files.pop(name)
        (self.corpus / name).unlink()
        self._place(to, rows, time_ns)
        self._note_state()

    def _place(self, name: str, rows: dict[str, str], time_ns: int) -> None:
        path = self.corpus / name
        self.files[name] = (rows, time_ns)
        if not rows:
            del self.files[name]
            path.unlink(missing_ok=True)
            return
        fresh = self.corpus.parent / "fresh"
        fresh.write_bytes(b"".join(orjson.dumps({"id": id, "text": text}) + b"\n" for id, text in rows.items()))
        os.utime(fresh, ns=(time_ns, time_ns))
        fresh.replace(path)

    def _note_state(self) -> None:
        self.history.append(dict(self.files))
        rows = [row for file, _ in self.files.values() for row in file.items()]
        hashes = hash_strings(pa.array([text for _, text in rows], pa.string())).to_pylist()
        self.states.append(
            frozenset((id, hash, text[0] == FRAIL) for (id, text), hash in zip(rows, hashes, strict=True))
        )

    # Who works on it

    def config(self, is_strict: bool, carry: str) -> JobConfig:
        return JobConfig.model_validate(
            {
                "source": {
                    "uri": str(self.corpus),
                    "duplicate_ids": "allow",
                },  # there are none; looking for them takes time
                "recipe": {"model": "hashing://8", "max_tokens": 64},
                "output": {"uri": str(self.output), "rows_per_part": 2, "carry": carry},
                "runtime": {"max_quarantined_fraction": 0.0 if is_strict else 1.0},
            }
        )

    def start(self, program: Callable[[], Any]) -> Actor:
        """Start an actor; it waits before its first store operation."""
        actor = Actor(len(self.actors), program)
        self.actors.append(actor)
        actor.begin()
        return actor

    def drive(self, is_strict: bool = False, carry: str = "copy", retry: Collection[Reason] = ()) -> Actor:
        """Start a driver: `python -m jobs embed`, or `requeue` if there are reasons to retry."""
        config = self.config(is_strict, carry)
        return self.start(lambda: execution.run(config, lambda progress: None, retry))

    def sweep(self, keep: int) -> Actor:
        """Start `python -m jobs expire` with a grace that ends when a night was last slept."""
        self.least_kept = min(keep, self.least_kept or keep)
        return self.start(lambda: expire(SteppedStore(str(self.output)), keep, self.morning, is_dry_run=False))

    def roll_back(self, index: int) -> Actor:
        """Start `python -m jobs nightly --rollback N`, N one of the Snapshots before the newest."""
        older = sorted(self.published)[:-1]
        number = older[index % len(older)]
        return self.start(lambda: roll_back(SteppedStore(str(self.output)), number))

    def sleep(self) -> None:
        """Let a night pass, longer than the grace: no process of the day before is left."""
        self.kill_all()
        self.given.clear()
        self.morning = time()
        sleep(0.02)  # the clock of a file system may lag behind by one tick

    def wake(self, work: Work) -> Actor:
        """Start a worker that a driver, perhaps long dead, had given a Shard."""
        return self.start(lambda: list(work.blocks(SteppedStore(work.settings.output_uri))))

    def _encode_missing(
        self,
        config: JobConfig,
        plan: Plan,
        store: Store,
        description: ModelDescription,
        planned_at: pa.Scalar,
        journal: Any,
        report: Any,
        watch: Any,
    ) -> list[BlockReceipt]:
        """Stand in for Ray: the four stages one after the other, in this thread."""
        plan, _ = execution._with_index(plan, store, report, watch)
        settings = stage_settings(config, plan, description, planned_at, 1)
        is_sick = self.sick_runs.setdefault(plan.run_key, self.is_sick)
        works = [Work(settings, shard, plan.done_blocks(shard.shard_id), is_sick) for shard in plan.embed]
        self.given += works
        self.counts["resumed"] += plan.run_key in self.begun
        self.begun[plan.run_key] = bool(plan.redo)
        receipts = (receipt for work in works for receipt in work.blocks(store))
        return following.follow(receipts, Workload(plan.embed), Attempts(), journal, report, watch, 0.0)

    # What must hold

    def judge(self) -> None:
        """Look at who is over: every end must be one of those that a person may meet."""
        for actor in self.actors:
            if actor.number in self.judged or not actor.is_over:
                continue
            self.judged.add(actor.number)
            self.counts[ENDS.get(type(actor.error), "failed")] += 1
            if actor.error is not None and not isinstance(actor.error, PipelineError | Crashed):
                raise actor.error

    def check(self) -> None:
        """Look at the output as a reader would: every Snapshot whole, exact, and as it was at first sight."""
        numbers = snapshot_numbers(self.store)
        for number in numbers:
            if number > self.newest:
                assert number == self.newest + 1, f"snapshot {number} came after {self.newest}"
                self.published[number] = Published(self.store, number, len(self.states) - 1)
                before = self.published.get(self.newest)
                twins = [one for one in self.published.values() if one.is_twin_of(self.published[number])]
                if len(twins) == 1:
                    self.published[number].check_rows(self.states[before.state if before else 0 :])
                else:
                    assert all(one.keys == twins[0].keys for one in twins), "a rollback has changed the rows"
                    self.counts["rolled back"] += 1
                self.newest = number
                self.counts["committed"] += 1
                self.counts["requeued"] += self.begun.get(self.published[number].record.run_key, False)
        gone = sorted(self.published.keys() - set(numbers))
        assert numbers == sorted(self.published)[len(gone) :], "a snapshot came back, or one went before an older one"
        assert not gone or len(numbers) >= (self.least_kept or len(gone) + len(numbers)), "too many are gone"
        for number in gone:
            assert self.published.pop(number).seen_at < self.morning, f"snapshot {number} went within its grace"
            self.counts["expired"] += 1
        for published in self.published.values():
            published.check_unchanged()
