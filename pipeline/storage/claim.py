"""The Claim: which driver works on the next snapshot of an output, so that a second one stops before it costs."""

import os
import re
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import orjson

from pipeline.errors import PipelineError, SnapshotConflict
from pipeline.storage.filesystem import Store

BEAT_SECONDS = 3.0
PATIENCE_BEATS = 12
"""A driver on another machine counts as dead after this many beats without one, all of them while the store answers;
no clocks are compared."""


class Claim:
    """Held by a driver from the first write to the publish; beats in a thread of its own.

    Epochs are numbered and put-if-absent: of two drivers that both find the last owner dead, one gets the next
    epoch and the other a SnapshotConflict. The Claim saves work; what keeps the data right is that every Part,
    Journal entry and Snapshot is itself put-if-absent.

    Raises:
        SnapshotConflict: another driver holds the output.
    """

    def __init__(self, store: Store, snapshot: int) -> None:
        self.store, self.folder, self.driver = store, f"_meta/claims/{snapshot:08d}", uuid.uuid4().hex
        self._beat, self._stop = 0, threading.Event()
        epoch = self._epoch_to_take()
        content = orjson.dumps({"driver": self.driver, "host": socket.gethostname(), **_process_identity()})
        if store.put_new(f"{self.folder}/{epoch:08d}.json", content) is not None:
            raise self._conflict()
        self.epoch = epoch
        self._thread = threading.Thread(target=self._keep_beating, name="claim", daemon=True)

    def __enter__(self) -> Self:
        self._write_beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=BEAT_SECONDS)
        with suppress(PipelineError):  # what ended the run is what must be told
            if not self.is_lost():
                # A key of its own: a beat that is late on its way to the store must not take it back.
                self.store.put(_released(self.folder, self.epoch), orjson.dumps({"driver": self.driver}))

    def is_lost(self) -> bool:
        """Whether another driver has taken a later epoch."""
        return self.store.stat(f"{self.folder}/{self.epoch + 1:08d}.json") is not None

    def _epoch_to_take(self) -> int:
        pattern = re.compile(r".*/(\d{8})\.json")
        epochs = sorted(int(match[1]) for key in self.store.files(self.folder) if (match := pattern.fullmatch(key)))
        if not epochs:
            return 0
        owner = orjson.loads(self.store.read(f"{self.folder}/{epochs[-1]:08d}.json") or b"{}")
        if self._is_alive(owner, epochs[-1]):
            raise self._conflict(owner)
        return epochs[-1] + 1

    def _is_alive(self, owner: dict[str, Any], epoch: int) -> bool:
        if _has_let_go(self.store, self.folder, epoch, owner):
            return False
        first = self._read_beat(epoch)
        here = _process_identity()
        if owner.get("machine") == here["machine"]:
            return bool(_start_time(int(owner["pid"])) == owner["pid_start"])
        silent_looks = 0
        while silent_looks < 2 * PATIENCE_BEATS:
            began = time.monotonic()
            time.sleep(BEAT_SECONDS / 2)
            if self._read_beat(epoch) != first:
                return True
            # A store that was away kept the owner from beating, too: its silence counts from now.
            silent_looks = silent_looks + 1 if time.monotonic() - began < 2 * BEAT_SECONDS else 0
        return False

    def _read_beat(self, epoch: int) -> dict[str, Any]:
        content = self.store.read(f"{self.folder}/{epoch:08d}.beat")
        return dict(orjson.loads(content)) if content else {}

    def _write_beat(self) -> None:
        self._beat += 1
        beat = {"driver": self.driver, "beat": self._beat}
        self.store.put(f"{self.folder}/{self.epoch:08d}.beat", orjson.dumps(beat))

    def _keep_beating(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                self._write_beat()
            except PipelineError:
                continue  # a store that is down for a while is the run's own concern, and told there

    def _conflict(self, owner: dict[str, Any] | None = None) -> SnapshotConflict:
        who = f" (process {owner.get('pid')} on {owner.get('host')})" if owner else ""
        return SnapshotConflict(
            f"another run{who} holds the output {self.store.uri}; wait for it, or stop it and run again"
        )


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has the last word on the next snapshot of an output."""

    driver: str
    host: str
    pid: int
    is_alive: bool


def holder_of(store: Store, snapshot: int) -> Holder | None:
    """Return who works, or has worked, on a snapshot; None if nobody does or the last one has let go.

    A driver on another machine is looked at twice, a beat and a half apart: it is alive if it has beaten meanwhile.
    """
    folder = f"_meta/claims/{snapshot:08d}"
    epochs = sorted(key for key in store.files(folder) if key.endswith(".json"))
    content = store.read(epochs[-1]) if epochs else None
    if not content:
        return None
    owner, epoch = orjson.loads(content), int(Path(epochs[-1]).stem)
    if _has_let_go(store, folder, epoch, owner):
        return None
    beat_key = f"{folder}/{epoch:08d}.beat"
    first = orjson.loads(store.read(beat_key) or b"{}")
    if owner.get("machine") == _machine():
        is_alive = _start_time(int(owner["pid"])) == owner["pid_start"]
    else:
        time.sleep(1.5 * BEAT_SECONDS)
        is_alive = orjson.loads(store.read(beat_key) or b"{}") != first
    return Holder(owner["driver"], owner["host"], int(owner["pid"]), is_alive)


def _released(folder: str, epoch: int) -> str:
    """Return the key under which the driver of an epoch says that it has let go."""
    return f"{folder}/{epoch:08d}.released"


def _has_let_go(store: Store, folder: str, epoch: int, owner: dict[str, Any]) -> bool:
    content = store.read(_released(folder, epoch))
    return content is not None and orjson.loads(content) == {"driver": owner.get("driver")}


def _process_identity() -> dict[str, Any]:
    pid = os.getpid()
    return {"machine": _machine(), "pid": pid, "pid_start": _start_time(pid)}


def _machine() -> str:
    """Name this kernel boot and process namespace: within one, process ids can be compared."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return uuid.uuid4().hex


def _start_time(pid: int) -> str | None:
    """Return when a process was started, in clock ticks since boot; None if there is no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
