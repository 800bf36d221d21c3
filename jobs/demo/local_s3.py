"""A real S3 server on loopback with keys of its own, for demo and tests; it never outlives its parent."""

from __future__ import annotations

import atexit
import contextlib
import http.client
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import s3fs

from jobs.demo.lifetime import die_with_parent, sigterm_unwinds
from jobs.demo.seaweedfs import (
    Credentials,
    free_ports,
    remove_dead_sockets,
    weed_arguments,
    weed_binary,
    write_identities,
)
from pipeline.errors import PipelineError

START_SECONDS = 30.0
STOP_SECONDS = 10.0
ATTEMPTS = 5
# What would lead an S3 client elsewhere if the caller's own shell had it set.
COMPETING_VARIABLES = ("AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_PROFILE", "AWS_DEFAULT_PROFILE")


class _EndedEarly(Exception):
    """The server ended before it answered: most likely another process took one of its ports."""


class LocalS3:
    """One SeaweedFS server over one folder: keys and ports stay the same through stop and start.

    `admin` may do everything, `read_only` may list and read, `without_rights` is known and may do nothing.
    Start it from the main thread: Linux ends the server together with the thread that started it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.admin = Credentials.random()
        self.read_only = Credentials.random()
        self.without_rights = Credentials.random()
        self._weed = weed_binary()
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"LocalS3(folder={str(self.folder)!r}, running={self._process is not None})"

    @property
    def endpoint_url(self) -> str:
        """Where it listens; known from the first start on."""
        return f"http://127.0.0.1:{self._ports['s3.port']}"

    @property
    def access_key(self) -> str:
        """The administrator's key."""
        return self.admin.access_key

    @property
    def secret_key(self) -> str:
        """The administrator's secret."""
        return self.admin.secret_key

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        if self._process is None:
            raise PipelineError(f"The local S3 server over {self.folder} is not running; call start() first.")
        return self._process.pid

    @property
    def environment(self) -> dict[str, str]:
        """The variables that lead every AWS-style client here, as the administrator."""
        return self.environment_of(self.admin)

    def environment_of(self, identity: Credentials) -> dict[str, str]:
        """Give the variables that lead every AWS-style client here; "" hides one of the caller's own."""
        hidden = {name: "" for name in COMPETING_VARIABLES if name in os.environ}
        return hidden | {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ENDPOINT_URL_S3": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": identity.access_key,
            "AWS_SECRET_ACCESS_KEY": identity.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def filesystem(self, identity: Credentials | None = None) -> s3fs.S3FileSystem:
        """Give a filesystem of its own, whatever the environment says; the administrator's unless told."""
        identity = identity or self.admin
        return s3fs.S3FileSystem(
            key=identity.access_key,
            secret=identity.secret_key,
            endpoint_url=self.endpoint_url,
            client_kwargs={"region_name": "us-east-1"},
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def create_bucket(self, name: str) -> str:
        """Create an empty bucket and give its uri."""
        self.filesystem().call_s3("create_bucket", Bucket=name)
        return f"s3://{name}"

    def start(self) -> None:
        """Start the server, on free ports the first time and on the same ones after, until it serves."""
        if self._process is not None:
            return
        is_first_start = not self._ports
        for attempt in range(1, ATTEMPTS + 1):
            if is_first_start:
                self._ports = free_ports()
            try:
                self._launch()
                return
            except _EndedEarly as error:
                if attempt == ATTEMPTS:
                    raise PipelineError(
                        f"The local S3 server ended while starting, {attempt} times in a row: {error}. "
                        f"Its log is {self._log_path}."
                    ) from error

    def stop(self) -> None:
        """Let the server write everything down and end; end it by force if it takes too long."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the server at once, as a crash would; what it acknowledged is on disk."""
        self._end(signal.SIGKILL)

    @property
    def _log_path(self) -> Path:
        return self.folder / "weed.log"

    @property
    def _identities_path(self) -> Path:
        return self.folder / "s3.json"

    def _launch(self) -> None:
        store = self.folder / "store"
        store.mkdir(parents=True, exist_ok=True)
        rights = {
            "admin": (self.admin, ["Admin", "Read", "List", "Tagging", "Write"]),
            "read_only": (self.read_only, ["Read", "List"]),
            "without_rights": (self.without_rights, []),
        }
        write_identities(self._identities_path, rights)
        arguments = weed_arguments(store, self._identities_path, self._ports)
        # It would make identities and buckets of its own from the caller's variables.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "S3_"))}
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._weed), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=inherited,
                start_new_session=True,  # Ctrl-C reaches the driver, which may still want to write
                preexec_fn=die_with_parent(),
            )
        atexit.register(self.kill)
        try:
            self._wait_until_serving(self._process)
        except BaseException:
            self.kill()
            raise

    def _wait_until_serving(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise _EndedEarly(f"exit code {process.returncode}")
            if self._has_volumes() and self._knows_our_keys():
                return
            time.sleep(0.03)
        raise PipelineError(
            f"The local S3 server did not answer within {START_SECONDS:g} s. Its log is {self._log_path}."
        )

    def _has_volumes(self) -> bool:
        # /healthz is green before the volume server is known, by up to 5 s in one restart of ten. Whoever
        # reads meanwhile is answered 500, for seconds more than need be (4.48).
        connection = http.client.HTTPConnection("127.0.0.1", self._ports["master.port"], timeout=2)
        try:
            connection.request("GET", "/dir/status")
            topology = json.loads(connection.getresponse().read())["Topology"]
            return int(topology["Max"]) > 0
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            return False
        finally:
            connection.close()

    def _knows_our_keys(self) -> bool:
        try:
            self.filesystem().call_s3("list_buckets")
        except OSError:
            return False
        return True

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        atexit.unregister(self.kill)
        self._identities_path.unlink(missing_ok=True)
        remove_dead_sockets()


@contextlib.contextmanager
def local_s3(folder: Path) -> Iterator[LocalS3]:
    """Run an S3 server over a folder and end it whatever happens: error, Ctrl-C, SIGTERM or kill -9."""
    server = LocalS3(folder)
    with sigterm_unwinds():
        try:
            server.start()
            yield server
        finally:
            server.stop()
