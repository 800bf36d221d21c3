"""`make cluster` and what ends it: nothing is left, whoever started it and whatever it was at."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import ROOT, SECONDS

MODULE = [sys.executable, "-m", "jobs.demo.cluster"]
MARK = "MARK_OF_THIS_TEST"


def marked(mark: str) -> list[int]:
    """Return the processes that have a mark in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_a_cluster_in_the_background_is_stopped_from_another_terminal_and_leaves_nothing(tmp_path: Path) -> None:
    environment = os.environ | {MARK: tmp_path.name}
    cluster = subprocess.Popen(
        [*MODULE, "--folder", str(tmp_path), "--rows", "10"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as a shell does behind &
    )
    assert cluster.stdout is not None
    assert any("3/4 starting Ray" in line for line in iter(cluster.stdout.readline, ""))
    assert len(marked(tmp_path.name)) > 1
    stopping = [*MODULE, "stop", "--folder", str(tmp_path)]
    stopped = subprocess.run(stopping, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (stopped.returncode, stopped.stdout) == (0, "everything is stopped\n")
    assert cluster.wait(SECONDS) == 0
    cluster.stdout.close()
    assert marked(tmp_path.name) == []
    assert not list(tmp_path.glob("cluster.*"))
    again = subprocess.run(stopping, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (again.returncode, again.stdout) == (0, "no cluster runs here\n")
