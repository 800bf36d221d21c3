"""Programs that are measured from outside: started, timed and, if they hang, ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]

DAFT = "daft==0.7.26"


class ProgramFailed(Exception):
    """A program ended with an error, or not at all; the message is what it said last."""


def seconds_of(command: Sequence[str], environment: Mapping[str, str], limit_seconds: float) -> float:
    """Run a program and return its wall time.

    Raises:
        ProgramFailed: it failed, or did not end within the limit; then its whole process group is killed.
    """
    started = time.perf_counter()
    child = subprocess.Popen(
        list(command),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | dict(environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = child.communicate(timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        raise ProgramFailed(f"not ended after {limit_seconds:.0f} s") from None
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if child.returncode:
        said = [line for line in errors.splitlines() if line.strip()] or [f"exit code {child.returncode}"]
        raise ProgramFailed(" ".join(said[-1].split())[:400])
    return time.perf_counter() - started


def daft_python(folder: Path) -> str:
    """Return the interpreter of an environment with Daft, made on first use; torch and the rest come from ours.

    Raises:
        ProgramFailed: it cannot be installed here.
    """
    environment = folder / f"{DAFT.replace('==', '-')}-venv"
    python = environment / "bin" / "python"
    if not (environment / "complete").exists():
        seconds_of([sys.executable, "-m", "venv", "--clear", str(environment)], {}, 300)
        seconds_of([str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check", DAFT], {}, 900)
        ours = [path for path in sys.path if path.endswith("site-packages")]
        (site,) = environment.glob("lib/python*/site-packages")
        (site / "ours.pth").write_text("\n".join(ours) + "\n", encoding="utf-8")
        (environment / "complete").touch()
    return str(python)
