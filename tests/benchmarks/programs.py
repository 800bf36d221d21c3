"""Programs that are measured from outside: started, timed and, if they hang, ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

ROOT = Path(__file__).parents[2]

DAFT = "daft==0.7.26"

OPTIMUM = (
    "optimum-intel==2.2.0",
    "optimum==2.3.0",
    "transformers==5.5.4",
    "tokenizers==0.22.2",
    "huggingface-hub==1.33.0",
    "httpx==0.28.1",
    "httpcore==1.0.9",
)
"""What the OpenVINO backend of sentence-transformers needs; the first takes no transformers from 5.6 on."""


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
        raise ProgramFailed(_last_said(errors, child.returncode))
    return time.perf_counter() - started


@contextmanager
def answering(command: Sequence[str], *arguments: str) -> Iterator[Callable[[Any], Any]]:
    """Start a program that answers over a connection, wait for its first word, and give what asks it.

    Args:
        command: is given the number of the connection before the arguments.

    Raises:
        ProgramFailed: it has ended; also when it is asked.
    """
    connection, theirs = Pipe()
    with TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            [*command, str(theirs.fileno()), *arguments],
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            pass_fds=[theirs.fileno()],
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        theirs.close()

        def answer() -> Any:
            try:
                return connection.recv()
            except EOFError:
                errors.seek(0)
                raise ProgramFailed(_last_said(errors.read(), child.wait())) from None

        def ask(question: object) -> Any:
            connection.send(question)
            return answer()

        try:
            answer()
            yield ask
        finally:
            connection.close()
            child.terminate()
            child.wait()


def _last_said(errors: str, exit_code: int) -> str:
    said = [line for line in errors.splitlines() if line.strip()] or [f"exit code {exit_code}"]
    return " ".join(said[-1].split())[:400]


def daft_python(folder: Path) -> str:
    """Return the interpreter of an environment with Daft, made on first use; torch and the rest come from ours.

    Raises:
        ProgramFailed: it cannot be installed here.
    """
    return _python_with(folder / f"{DAFT.replace('==', '-')}-venv", DAFT)


def optimum_python(folder: Path) -> str:
    """Return the interpreter of an environment with Optimum and the transformers that it takes; the rest is ours.

    Raises:
        ProgramFailed: it cannot be installed here.
    """
    return _python_with(folder / f"{OPTIMUM[0].replace('==', '-')}-venv", "--no-deps", *OPTIMUM)


def _python_with(environment: Path, *requirements: str) -> str:
    python = environment / "bin" / "python"
    if not (environment / "complete").exists():
        seconds_of([sys.executable, "-m", "venv", "--clear", str(environment)], {}, 300)
        pip = [str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
        seconds_of([*pip, *requirements], {}, 900)
        ours = [path for path in sys.path if path.endswith("site-packages")]
        (site,) = environment.glob("lib/python*/site-packages")
        (site / "ours.pth").write_text("\n".join(ours) + "\n", encoding="utf-8")
        (environment / "complete").touch()
    return str(python)
