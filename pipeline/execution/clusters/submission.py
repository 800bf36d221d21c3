"""Runs on a Ray cluster that this machine is no part of: submit one, follow it, list, stop."""

import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit

import requests
import tenacity

from pipeline.errors import ConfigError, PipelineError, SnapshotConflict
from pipeline.execution.clusters.job_server import CA_VARIABLE, JobServer, Json, Unknown
from pipeline.execution.clusters.reach import check_answers
from pipeline.fingerprint import fingerprint

DEFAULT_PORT = 8265
POLL_SECONDS, LIVELY_SECONDS, QUIET_POLL_SECONDS = 0.2, 5.0, 1.0
"""How often a run that is followed is asked within so many seconds of its last line, in which it may end, and after."""
PATIENCE_SECONDS = 60.0
"""How long a head that no longer answers is asked again while a run is followed."""
Answer = TypeVar("Answer")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
NO_ADDRESS = (
    "which cluster? Name it with --address http://HOST:8265 (the dashboard of its head), or in RAY_API_SERVER_ADDRESS"
)


@dataclass(frozen=True, slots=True)
class Submitted:
    """One submitted run as the cluster knows it."""

    name: str
    status: str
    command: str
    output: str
    started_at: datetime | None
    seconds: float | None
    exit_code: int | None
    message: str

    @property
    def is_over(self) -> bool:
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")

    @property
    def code(self) -> int:
        """The exit code of the remote run; of one that never got so far, or was stopped, 1."""
        return 0 if self.status == "SUCCEEDED" else self.exit_code or 1


def night_name(command: str, output_uri: str, night: date) -> str:
    """Return the name of the run of a command on an output in a night: the same for whoever submits it."""
    last = re.sub(r"[^a-z0-9]+", "-", output_uri.rstrip("/").rpartition("/")[2].lower()).strip("-")[:24]
    return "-".join(
        filter(None, [command, last, fingerprint([command, output_uri.rstrip("/")])[:8], night.isoformat()])
    )


def entrypoint(arguments: list[str], config_text: str) -> str:
    """Return the shell line that runs a command with a config that stands in the line itself.

    Args:
        arguments: the command and its options; `-` among them stands for the config.
        config_text: YAML.
    """
    end = "END_OF_CONFIG"
    return f"exec python -m jobs {shlex.join(arguments)} <<'{end}'\n{config_text.rstrip()}\n{end}"


class Cluster:
    """The head of a Ray cluster, as seen from outside.

    Args:
        address: http(s)://host:port of its dashboard; None = that of the environment.

    Raises:
        ConfigError: no address is given anywhere, or it is no HTTP address.
        PipelineError: nobody answers, or who answers wants another token or certificate.
    """

    def __init__(self, address: str | None) -> None:
        named = address or next((os.environ[name] for name in ADDRESS_VARIABLES if os.environ.get(name)), None)
        if not named:
            raise ConfigError(NO_ADDRESS)
        self.address = _http_address(named)
        parts = urlsplit(self.address)
        check_answers(
            f"{parts.hostname}:{parts.port}", patience_seconds=3.0, named="--address, or RAY_API_SERVER_ADDRESS"
        )
        self._server = JobServer(self.address)

    def link(self, name: str) -> str:
        """Return where the dashboard shows a run."""
        return f"{self.address}/#/jobs/{quote(name)}"

    def attempt(self, name: str) -> str:
        """Return the name under which a run is to be submitted.

        One that failed or was stopped is tried again, as NAME.2, NAME.3, ….

        Raises:
            SnapshotConflict: a run of this name goes on or has succeeded.
        """
        attempts = [run for run in self.runs() if re.fullmatch(re.escape(name) + r"(\.\d+)?", run.name)]
        for run in attempts:
            if not run.is_over or run.status == "SUCCEEDED":
                raise self._taken(run.name, "has succeeded already" if run.is_over else "goes on")
        return f"{name}.{len(attempts) + 1}" if attempts else name

    def submit(self, attempt: str, line: str, about: dict[str, str], package: Path | None) -> None:
        """Start a run.

        Args:
            attempt: see `attempt`.
            line: see `entrypoint`.
            about: shown by `runs` again: `command` and `output`.
            package: zip file of the code, unpacked on every node before the run; None = the nodes have it.

        Raises:
            SnapshotConflict: there is a run of this name by now.
        """
        job: Json = {"entrypoint": line, "submission_id": attempt, "metadata": about}
        try:
            if package:
                job["runtime_env"] = {"working_dir": _answered(self.address, partial(self._server.upload, package))}
            _answered(self.address, partial(self._server.submit, job))
        except PipelineError as error:
            if "already exists" in str(error):
                raise self._taken(attempt, "was submitted at the same time") from None
            raise

    def run(self, name: str) -> Submitted:
        """Return what the cluster knows of a run.

        Raises:
            ConfigError: there is none of this name.
        """
        return _submitted(self._told(self._server.job, name))

    def runs(self) -> list[Submitted]:
        """Return the runs the cluster knows, the latest first."""
        found = _answered(self.address, self._server.jobs)
        runs = [_submitted(details) for details in found if details["submission_id"]]
        return sorted(runs, key=lambda run: run.started_at or datetime.max.replace(tzinfo=UTC), reverse=True)

    def stop(self, name: str) -> bool:
        """Ask a run to end, as Ctrl-C would; return whether it was running. What it has journalled is kept."""
        return self._told(self._server.stop, name)

    def log(self, name: str) -> str:
        """Return what a run has written so far."""
        return self._told(self._server.log, name)

    def follow(self, name: str, write: Callable[[str], object], seen: int = 0) -> Iterator[None]:
        """Write what a run writes until it is over; yield each time it was asked.

        Args:
            name: of the run.
            write: takes text.
            seen: characters that were written before and are left out.
        """
        told_at = time.monotonic()
        while True:
            is_over, text = self._told(self._state, name, PATIENCE_SECONDS)
            if len(text) > seen:
                write(text[seen:])
                seen, told_at = len(text), time.monotonic()
            yield
            if is_over:
                return
            is_lively = time.monotonic() - told_at < LIVELY_SECONDS
            time.sleep(POLL_SECONDS if is_lively else QUIET_POLL_SECONDS)

    def _state(self, name: str) -> tuple[bool, str]:
        return _submitted(self._server.job(name)).is_over, self._server.log(name)

    def _told(self, ask: Callable[[str], Answer], name: str, patience_seconds: float = 0.0) -> Answer:
        """Return what the cluster says of a run.

        Raises:
            ConfigError: there is none of this name.
        """
        try:
            return _answered(self.address, partial(ask, name), patience_seconds)
        except Unknown:
            raise ConfigError(f"{self.address} knows no run {name!r}; `submit --list` shows those there are") from None

    def _taken(self, name: str, why: str) -> SnapshotConflict:
        return SnapshotConflict(
            f"the run {name} {why}: {self.link(name)}; `submit --logs {name}` shows it, --name submits another one"
        )


def _http_address(address: str) -> str:
    """Return an address with scheme and port.

    Raises:
        ConfigError: it is of another kind.
    """
    parts = urlsplit(address if "://" in address else f"http://{address}")
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.username:
        raise ConfigError(
            f"{address!r} is no address of a dashboard; expected http://HOST:{DEFAULT_PORT}, or https://…"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port or (443 if parts.scheme == 'https' else DEFAULT_PORT)}"


def _answered(address: str, ask: Callable[[], Answer], patience_seconds: float = 0.0) -> Answer:
    """Return the answer of a cluster; one that is out of reach is asked again for a while.

    Raises:
        PipelineError: it stays out of reach.
    """
    patient = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type((requests.ConnectionError, requests.Timeout)),
        stop=tenacity.stop_after_delay(patience_seconds),
        wait=tenacity.wait_fixed(1.0),
        reraise=True,
    )
    try:
        return patient(ask)
    except requests.exceptions.SSLError as error:
        raise PipelineError(
            f"{address}: its certificate is not trusted; {CA_VARIABLE} names the file of those that are: {error}"
        ) from error
    except requests.RequestException as error:
        raise PipelineError(f"the cluster at {address} does not answer: {error}") from error


def _submitted(details: Json) -> Submitted:
    about, began = details["metadata"] or {}, details["start_time"]
    ended = details["end_time"] or time.time() * 1000
    return Submitted(
        name=details["submission_id"],
        status=details["status"],
        command=about.get("command", ""),
        output=about.get("output", ""),
        started_at=datetime.fromtimestamp(began / 1000, UTC) if began else None,
        seconds=(ended - began) / 1000 if began else None,
        exit_code=details["driver_exit_code"],
        message=details["message"] or "",
    )
