"""Expiry: what no kept Snapshot needs is swept away, in an order that leaves every published Snapshot whole."""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import orjson

from pipeline.errors import SnapshotConflict, StorageError
from pipeline.storage.changes import needed_for_feeds
from pipeline.storage.claim import Claim
from pipeline.storage.filesystem import Stat, Store
from pipeline.storage.journal import condemn_run
from pipeline.storage.parquet import part_key
from pipeline.storage.rollback import ROLLBACK_FILE, wanted_back
from pipeline.storage.snapshots import load_snapshot, snapshot_key, snapshot_numbers, withdraw_snapshot

REMOVERS = 16
"""Files removed at once; each is one small request."""

TOPS = ("_meta", "snapshots", "quarantine", "reports", "changes")

RUN_FILE = re.compile(r"(?:(?:snapshots|quarantine)/\d{8}-|_meta/runs/|reports/)([0-9a-f]{32})[/.]")
CLAIM_FILE = re.compile(r"_meta/claims/(\d{8})/")
TABLE = re.compile(r"_meta/snapshots/(\d{8})-\w+\.(?:parts|shards)\.parquet")
"""Of a Snapshot that was not published, if its number is taken; else a run may yet adopt it."""
INDEX_FILE = re.compile(r"_meta/snapshots/(\d{8})\.index/")
CHANGES_FILE = re.compile(r"(?:_meta/)?changes/(\d{8})[-.]")
CALIBRATION_FILE = re.compile(r"_meta/calibrations/([0-9a-f]{32})/")
CALIBRATION_OF_RECIPE = re.compile(r"_meta/calibrations/[0-9a-f]{32}\.json")
"""Says which calibration a recipe has, as `identity`; it goes first, or a run would look for files that are gone."""
FIRST = (CALIBRATION_OF_RECIPE, ROLLBACK_FILE)
"""What leads to other files."""
TEMPORARY_FILE = re.compile(r"_meta/(?:tmp|probe|estimates)/")
"""Of a writer that died; of a plan, which stands in the report of its run."""


@dataclass(frozen=True, slots=True)
class Removal:
    """Files that go together, because nobody needs any of them."""

    name: str
    """`snapshot 3`, `run 31193a7b…` (one that no Snapshot is of), `claim 3`, `calibration 5d0c…` (that no Snapshot was
    made with), or the key of a file that stands alone."""
    snapshot: int | None
    """The published Snapshot that is withdrawn with them."""
    dead_run: str | None
    """Key of the run that has left them, and that no Snapshot is of."""
    first: tuple[str, ...]
    """Keys that go before it is withdrawn, one after the other: the run's Journal from its end, then its plan; or what
    names a calibration."""
    rest: tuple[str, ...]
    """Keys that go after it, in any order."""
    size_bytes: int
    """Of all files; less may become free on a disk where Snapshots share them by hard links."""

    @property
    def files(self) -> int:
        return len(self.first) + len(self.rest)


@dataclass(frozen=True, slots=True)
class Expiry:
    """What an expiry removes, or would remove."""

    kept: tuple[int, ...]
    """Numbers of the Snapshots that stay, ascending."""
    removals: tuple[Removal, ...]
    is_partial: bool
    """Whether a run holds the output, so that what unfinished runs have left had to stay."""

    @property
    def files(self) -> int:
        return sum(removal.files for removal in self.removals)

    @property
    def size_bytes(self) -> int:
        return sum(removal.size_bytes for removal in self.removals)


def expire(store: Store, keep: int, older_than: float, is_dry_run: bool) -> Expiry:
    """Remove Snapshots beyond the newest ones, and what dead runs have left.

    Nothing goes that a kept Snapshot names, that is younger, or that a living run may still use. If this ends in its
    middle, every published Snapshot is whole, and the next expiry goes on.

    Args:
        keep: how many Snapshots stay at least, 1 or more.
        older_than: seconds since the epoch; what was written later stays. Must be longer ago than a driver can stand
            still and go on.
        is_dry_run: only say what would go.

    Raises:
        SnapshotConflict: another run has published meanwhile, or a rollback has begun.
        StorageError: a kept Snapshot cannot be read (then nothing was removed), or a file cannot be removed.
    """
    store.check_reachable()
    if is_dry_run:
        return find_removals(store, keep, older_than, with_leftovers=True)
    newest = (snapshot_numbers(store) or [0])[-1]
    try:
        claim = Claim(store, newest + 1)
    except SnapshotConflict:
        expiry = find_removals(store, keep, older_than, with_leftovers=False)
        sweep(store, expiry)
        return expiry
    with claim:
        if (snapshot_numbers(store) or [0])[-1] != newest:
            raise SnapshotConflict(f"{store.uri}: another run has published meanwhile; run again")
        expiry = find_removals(store, keep, older_than, with_leftovers=True)
        sweep(store, expiry)
        for top in ("snapshots", "quarantine", "changes", "_meta/runs", "_meta/claims", "_meta/calibrations"):
            store.remove_empty_folders(top)
    return expiry


def find_removals(store: Store, keep: int, older_than: float, with_leftovers: bool) -> Expiry:
    """Mark what is needed, list what is there, and return the difference.

    Args:
        with_leftovers: also what belongs to no Snapshot; only while no run can be using it.
    """
    numbers = snapshot_numbers(store)
    found = {key: stat for top in TOPS for key, stat in store.files(top).items()}
    young = {key for key, stat in found.items() if stat.modified_at >= older_than}
    needed = {*numbers[-keep:], *needed_for_feeds(store, numbers)}
    kept = [number for number in numbers if number in needed or snapshot_key(number) in young]
    marked, kept_groups = _marked(store, kept)
    groups = _groups(found.keys() - marked, (numbers or [0])[-1])
    for key in [key for key in found if CALIBRATION_OF_RECIPE.fullmatch(key)]:
        groups[f"calibration {orjson.loads(store.read(key) or b'{}').get('identity')}"].append(key)
    removals: list[Removal] = []
    for number in sorted(set(numbers) - set(kept)):
        if snapshot := load_snapshot(store, number):
            own = [*snapshot.record.tables.values(), f"run {snapshot.record.run_key}", f"index {number}"]
            own.append(f"changes {number}")
            keys = [key for name in own if name not in kept_groups for key in groups.pop(name, [])]
            removals.append(_removal(f"snapshot {number}", keys, found, snapshot=number))
    # A young run may stand on what older ones have left: until it publishes, their Parts are all there is of them.
    unfinished = {name for name in groups if name.startswith("run ") and name not in kept_groups}
    calibrations = {name for name in groups if name.startswith("calibration ")}
    spared = unfinished | calibrations if any(young.intersection(groups[name]) for name in unfinished) else set()
    for name, keys in groups.items() if with_leftovers else ():
        if name not in kept_groups | spared and not young.intersection(keys):
            dead_run = name.removeprefix("run ") if name.startswith("run ") else None
            removals.append(_removal(name, keys, found, dead_run=dead_run))
    return Expiry(tuple(kept), tuple(removals), not with_leftovers)


def _marked(store: Store, kept: Sequence[int]) -> tuple[set[str], set[str]]:
    """Return what the kept Snapshots name, and the groups that are theirs: runs, indexes, feeds and calibrations."""
    marked: set[str] = set()
    groups: set[str] = set()
    for number in kept:
        snapshot = load_snapshot(store, number)
        if snapshot is None:
            raise StorageError(f"{store.uri}: snapshot {number} was listed and is gone: another expiry is at work")
        columns = (snapshot.parts[name].to_pylist() for name in ("kind", "folder", "path"))
        marked |= {part_key(*part) for part in zip(*columns, strict=True)} | {*snapshot.record.tables.values()}
        groups |= {f"run {snapshot.record.run_key}", f"index {number}", f"changes {number}"}
        groups.add(f"calibration {snapshot.recipe.get('calibration_identity')}")
    return marked, groups


def _groups(keys: Iterable[str], newest: int) -> dict[str, list[str]]:
    """Return the keys by whom they belong to; what is not of this pipeline's making belongs to nobody and stays."""
    groups: dict[str, list[str]] = defaultdict(list)
    for key in sorted(keys):
        if match := RUN_FILE.match(key):
            groups[f"run {match[1]}"].append(key)
        elif (match := CLAIM_FILE.match(key)) and int(match[1]) <= newest:
            groups[f"claim {int(match[1])}"].append(key)
        elif match := INDEX_FILE.match(key):
            groups[f"index {int(match[1])}"].append(key)
        elif match := CHANGES_FILE.match(key):
            groups[f"changes {int(match[1])}"].append(key)
        elif match := CALIBRATION_FILE.match(key):
            groups[f"calibration {match[1]}"].append(key)
        elif (
            TEMPORARY_FILE.match(key)
            or ROLLBACK_FILE.match(key)
            or ((match := TABLE.match(key)) and int(match[1]) <= newest)
        ):
            groups[key].append(key)
    return groups


def _removal(
    name: str,
    keys: Sequence[str],
    found: Mapping[str, Stat],
    snapshot: int | None = None,
    dead_run: str | None = None,
) -> Removal:
    present = [key for key in keys if key in found]
    goes_first = [key.startswith("_meta/runs/") or any(pattern.fullmatch(key) for pattern in FIRST) for key in present]
    first = sorted(itertools.compress(present, goes_first), reverse=True)
    first.sort(key=lambda key: key.endswith("/plan.parquet"))
    rest = [key for key in present if key not in set(first)]
    size_bytes = sum(found[key].size_bytes for key in present)
    return Removal(name, snapshot, dead_run, tuple(first), tuple(rest), size_bytes)


def sweep(store: Store, expiry: Expiry) -> None:
    """Remove the files of an Expiry.

    A Journal goes before its Snapshot is withdrawn, or a plan would take its receipts for those of an unfinished run;
    and from its end. Parts go when all Snapshots are withdrawn that may name them, the oldest Snapshot's first. A dead
    run that a driver has taken up meanwhile stays.

    Raises:
        SnapshotConflict: a rollback goes back to one of the Snapshots meanwhile; the Parts stay.
    """
    withdrawn: list[Removal] = []
    for removal in expiry.removals:
        if removal.dead_run is not None:
            condemn_run(store, removal.dead_run)
            if store.files(f"_meta/runs/{removal.dead_run}").keys() - set(removal.first):
                continue
        for key in removal.first:
            store.delete(key)
        if removal.snapshot is not None:
            withdraw_snapshot(store, removal.snapshot)
        withdrawn.append(removal)
    # Also one that an expiry before this has withdrawn: its Parts are those of a dead run now.
    wanted = wanted_back(store, (expiry.kept or (0,))[-1]) - set(expiry.kept)
    if wanted and any(removal.rest for removal in withdrawn):
        raise SnapshotConflict(f"{store.uri}: a rollback goes back to snapshot {max(wanted)} meanwhile; run again")
    with ThreadPoolExecutor(REMOVERS) as pool:
        for removal in withdrawn:
            list(pool.map(store.delete, removal.rest))
