"""How the tests run jobs: in a process of its own, as a person does."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from s3fs import S3FileSystem

ROOT = Path(__file__).parents[1]
SECONDS = 150


@dataclass(frozen=True)
class Finished:
    """A run that has ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def report(self) -> dict[str, Any]:
        """The one JSON object of `--json`."""
        report: dict[str, Any] = orjson.loads(self.stdout)
        return report

    @property
    def errors(self) -> list[str]:
        return [line for line in self.stderr.splitlines() if line.startswith("error: ")]


@contextmanager
def leading_to(environment: Mapping[str, str]) -> Iterator[None]:
    """Let this process find another S3 server, and none of its own open filesystems the one before.

    fsspec keeps filesystems by their arguments, and where the server is stands in none of them.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        try:
            yield
        finally:
            S3FileSystem.clear_instance_cache()


def written_config(path: Path, **sections: Mapping[str, Any]) -> str:
    """Write a config and return its path."""
    path.write_text(yaml.safe_dump({name: dict(section) for name, section in sections.items()}), encoding="utf-8")
    return str(path)


def started(*arguments: str, environment: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
    """Start `python -m jobs` with these arguments."""
    command = [sys.executable, "-m", "jobs", *arguments]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=inherited | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]", seconds: float = SECONDS) -> Finished:
    """Wait for a run to end by itself."""
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        stdout, stderr = process.communicate()
        raise AssertionError(f"not ended after {seconds} s:\n{stderr[-2000:]}") from None
    return Finished(process.returncode, stdout, stderr)


def jobs(*arguments: str, environment: Mapping[str, str] | None = None, seconds: float = SECONDS) -> Finished:
    """Run `python -m jobs` with these arguments to its end."""
    return ended(started(*arguments, environment=environment), seconds)


def embed(*arguments: str, environment: Mapping[str, str] | None = None, seconds: float = SECONDS) -> Finished:
    """Run `embed … --json` to its end."""
    return jobs("embed", *arguments, "--json", environment=environment, seconds=seconds)
