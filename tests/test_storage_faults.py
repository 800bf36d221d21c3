"""Faults of a store, each at each operation: what passes is waited out, what is final is told at once."""

import io
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import botocore.retries.standard
import fsspec
import pytest
import tenacity

from jobs.demo.local_s3 import LocalS3, local_s3
from pipeline.errors import SourceError, StorageError
from pipeline.records import SourceFile
from pipeline.storage import connection, faults, folder_cache
from pipeline.storage.faults import RENEWALS, RETRIES, patiently
from pipeline.storage.filesystem import Store, open_source
from pipeline.storage.folder_cache import fetch_folder, remote_folder_identity
from pipeline.storage.listing import list_source
from pipeline.storage.resuming import ResumingStream
from tests.chaos.proxy import Fault, FaultProxy, Rule
from tests.running import leading_to

CONTENT = bytes(range(256)) * 1200
BLOCK_BYTES = 64 * 2**10
"""What a source is read ahead by, so that it takes several requests."""

WAIT = faults.WAIT

Operation = Callable[[], object]


@pytest.fixture(scope="module")
def way_in(s3: LocalS3) -> Iterator[FaultProxy]:
    """A proxy to which the environment leads; clients there wait for nothing, and for silence half a second."""
    config = {**connection.S3_OPTIONS["config_kwargs"], "read_timeout": 0.5}
    options = {**connection.S3_OPTIONS, "default_block_size": BLOCK_BYTES, "config_kwargs": config}
    with FaultProxy(s3.endpoint_url) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "S3_OPTIONS", options)
        patch.setattr(faults, "WAIT", tenacity.wait_none())
        patch.setattr(botocore.retries.standard.ExponentialBackoff, "delay_amount", lambda *_: 0.0)
        with leading_to(proxy.environment({})):
            yield proxy


@pytest.fixture
def proxy(way_in: FaultProxy) -> FaultProxy:
    """The same, with nothing in store for anybody and nothing counted."""
    way_in.set_rules([])
    way_in.strikes.clear()
    way_in.requests = 0
    return way_in


@pytest.fixture(scope="module")
def one_bucket(s3: LocalS3) -> str:
    """A bucket for all tests here: the server has room for a hundred, and each keeps what it was given."""
    return s3.create_bucket("faults")


_numbers = itertools.count(1)


@pytest.fixture
def output(one_bucket: str) -> str:
    """The address of an empty output."""
    return f"{one_bucket}/{next(_numbers)}/out"


def prepared(name: str, uri: str, cleanup: ExitStack) -> tuple[Operation, object]:
    """Return an operation on a store, everything before it done, and what it must give."""
    store = Store(uri)
    store.put_new("a/one", CONTENT)
    stat = store.stat("a/one")
    assert stat is not None
    match name:
        case "get":
            return partial(store.read, "a/one"), CONTENT
        case "put_new":
            return partial(store.put_new, "a/two", CONTENT), None
        case "list":
            return partial(store.files, "a"), {"a/one": stat}
        case "stat":
            return partial(store.stat, "a/one"), stat
        case "copy":
            return partial(store.copy_new, "a/one", "b/one"), True
        case "fetch a folder":
            patch = cleanup.enter_context(pytest.MonkeyPatch.context())
            patch.setenv("BATCH_EMBEDDINGS_CACHE", cleanup.enter_context(TemporaryDirectory()))
            patch.setattr(folder_cache, "PIECE_BYTES", BLOCK_BYTES)
            identity = remote_folder_identity(f"{uri}/a")
            return lambda: (fetch_folder(f"{uri}/a", identity) / "one").read_bytes(), CONTENT
    file = SourceFile(f"{uri}/a/one", stat.version, len(CONTENT), "parquet" if name == "source by range" else "jsonl")
    stream = cleanup.enter_context(open_source(file))
    first = stream.read(1000)
    return lambda: first + stream.read(), CONTENT


OPERATIONS = ["get", "put_new", "list", "stat", "copy", "fetch a folder", "source read ahead", "source by range"]
WITHOUT_BODY = ("put_new", "stat")
"""Their answers have no body that could be cut off."""

PASSING = [
    Rule(Fault.INTERNAL_ERROR, count=3),
    Rule(Fault.SLOW_DOWN, count=8),
    Rule(Fault.RESET, count=8),
    Rule(Fault.TRUNCATED, count=5),
    Rule(Fault.STALLED, count=2, seconds=2),
    Rule(Fault.SLOW, count=1, seconds=0.1),
]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("rule", PASSING, ids=lambda rule: rule.fault.value)
def test_what_passes_by_itself_is_waited_out(proxy: FaultProxy, output: str, operation: str, rule: Rule) -> None:
    with ExitStack() as cleanup:
        act, expected = prepared(operation, output, cleanup)
        proxy.set_rules([rule])
        assert act() == expected
    struck = 0 if rule.fault in (Fault.TRUNCATED, Fault.STALLED) and operation in WITHOUT_BODY else rule.count
    assert proxy.hits[rule.fault.value] == struck


@pytest.mark.parametrize("operation", ["put_new", "copy"])
def test_a_write_whose_answer_was_lost_is_known_as_ones_own(proxy: FaultProxy, output: str, operation: str) -> None:
    with ExitStack() as cleanup:
        act, expected = prepared(operation, output, cleanup)
        proxy.set_rules([Rule(Fault.LOST_RESPONSE, frozenset({"PUT"}), count=1)])
        assert act() == expected
    assert proxy.hits == {Fault.LOST_RESPONSE.value: 1}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_denial_is_told_at_once(proxy: FaultProxy, output: str, operation: str) -> None:
    with ExitStack() as cleanup:
        cleanup.push(lambda *_: True)  # the source is closed by the error that the test looks at
        act, _ = prepared(operation, output, cleanup)
        proxy.set_rules([Rule(Fault.ACCESS_DENIED)])
        before = proxy.requests
        error = PermissionError if operation.startswith("source") else StorageError
        with pytest.raises(error, match=r"access denied|AccessDenied|Forbidden"):
            act()
    assert proxy.requests - before == 1
    assert proxy.hits == {Fault.ACCESS_DENIED.value: 1}


PATTERNS = ["*/*.jsonl", "day-*/*.jsonl", "**/*.jsonl", "day-[0-9]/?.jsonl"]


@pytest.fixture
def two_days(output: str) -> list[str]:
    """A source of two folders; its files."""
    store = Store(f"{output}/source")
    keys = ["day-1/a.jsonl", "day-2/b.jsonl"]
    for key in keys:
        store.put_new(key, CONTENT)
    return [store.uri_of(key) for key in keys]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_file_that_a_glob_matches_is_missing_because_a_listing_failed_for_a_while(
    proxy: FaultProxy, output: str, two_days: list[str], pattern: str
) -> None:
    for skip in range(1, 9):  # the first listing asks whether anybody is there
        before = proxy.hits[Fault.SLOW_DOWN.value]
        proxy.set_rules([Rule(Fault.SLOW_DOWN, path="list-type=2", skip=skip, count=6)])
        assert [file.uri for file in list_source([f"{output}/source/{pattern}"], "auto")] == two_days
        assert proxy.hits[Fault.SLOW_DOWN.value] - before in (0, 6)
    assert before >= 6


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_folder_that_a_glob_may_not_list_is_told_and_not_left_out(
    proxy: FaultProxy, output: str, two_days: list[str], pattern: str
) -> None:
    told: list[str] = []
    for skip in range(1, 9):
        proxy.set_rules([Rule(Fault.ACCESS_DENIED, path="list-type=2", skip=skip, count=1)])
        try:
            assert [file.uri for file in list_source([f"{output}/source/{pattern}"], "auto")] == two_days
        except SourceError as error:
            told.append(str(error))
    assert len(told) >= (1 if "**" in pattern else 3)
    assert all("access denied" in error for error in told)


def test_a_bucket_that_is_not_there_is_told_at_once(proxy: FaultProxy) -> None:
    store = Store("s3://nobody-made-this/out")
    with pytest.raises(StorageError, match="bucket nobody-made-this does not exist"):
        store.put_new("key", b"content")
    assert proxy.requests == 1
    with pytest.raises(SourceError, match="bucket nobody-made-this does not exist"):
        list_source(["s3://nobody-made-this/in/"], "auto")
    assert proxy.requests == 2


@pytest.fixture
def source_of_credentials(s3: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that gives credentials, from now on the only one that does; it writes a dot for every call."""
    calls, program = tmp_path / "calls", tmp_path / "give.py"
    keys = {"Version": 1, "AccessKeyId": s3.access_key, "SecretAccessKey": s3.secret_key}
    program.write_text(f"open({str(calls)!r}, 'a').write('.'); print({json.dumps(keys)!r})")
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {sys.executable} {program}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    calls.touch()
    return calls


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_expired_credential_is_read_anew_from_its_source(
    proxy: FaultProxy, output: str, request: pytest.FixtureRequest, operation: str
) -> None:
    with ExitStack() as cleanup:
        act, expected = prepared(operation, output, cleanup)
        calls = request.getfixturevalue("source_of_credentials")
        proxy.set_rules([Rule(Fault.EXPIRED_TOKEN, count=1)])
        assert act() == expected
    assert proxy.hits == {Fault.EXPIRED_TOKEN.value: 1}
    assert calls.read_text() == "."


def test_a_credential_that_is_replaced_late_is_asked_for_again(
    proxy: FaultProxy, output: str, request: pytest.FixtureRequest
) -> None:
    with ExitStack() as cleanup:
        act, expected = prepared("list", output, cleanup)
        calls = request.getfixturevalue("source_of_credentials")
        proxy.set_rules([Rule(Fault.EXPIRED_TOKEN, count=RENEWALS)])
        assert act() == expected
    assert calls.read_text() == "." * RENEWALS


@pytest.mark.parametrize("operation", ["put_new", "list"])
def test_a_credential_that_stays_expired_is_told_after_few_tries(
    proxy: FaultProxy, output: str, operation: str
) -> None:
    with ExitStack() as cleanup:
        act, _ = prepared(operation, output, cleanup)
        proxy.set_rules([Rule(Fault.EXPIRED_TOKEN)])
        with pytest.raises(StorageError, match="the credential has expired"):
            act()
    assert proxy.hits == {Fault.EXPIRED_TOKEN.value: 1 + RENEWALS}


def test_a_refusal_that_says_nothing_is_told_as_one(proxy: FaultProxy, output: str) -> None:
    with ExitStack() as cleanup:
        act, _ = prepared("stat", output, cleanup)
        proxy.set_rules([Rule(Fault.EXPIRED_TOKEN)])
        with pytest.raises(StorageError, match="does not say why; an expired"):
            act()
    assert proxy.hits[Fault.EXPIRED_TOKEN.value] == 2 * (1 + RENEWALS)  # the client asks the bucket for its region


def test_a_source_that_changes_while_it_is_read_is_told(proxy: FaultProxy, output: str) -> None:
    store = Store(output)
    store.put("a", CONTENT)
    stat = store.stat("a")
    assert stat is not None
    file = SourceFile(store.uri_of("a"), stat.version, len(CONTENT), "jsonl")

    def read_what_changes() -> None:
        with open_source(file) as stream:
            store.put("a", stream.read(1000) + CONTENT[1000:][::-1])
            stream.read()

    with pytest.raises(SourceError, match="changed between plan and read"):
        read_what_changes()


class Cut(io.BytesIO):
    """Gives at most 10 bytes at once, and now and then none though more are left."""

    asked = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.asked += 1
        return b"" if self.asked % 3 == 0 else super().read(min(size or 0, 10))


@pytest.mark.usefixtures("way_in")
def test_an_answer_that_ends_early_is_read_on_from_there() -> None:
    stream = ResumingStream(Cut(CONTENT[:100]), fsspec.filesystem("memory"), 100)
    assert stream.read(7) == CONTENT[:7]
    assert stream.read(50) == CONTENT[7:57]
    assert stream.seek(90) == 90
    assert stream.read() == CONTENT[90:100]
    assert stream.read() == stream.read(5) == b""


@pytest.mark.usefixtures("way_in")
def test_every_retry_is_counted_by_its_kind_and_logged_without_an_address(
    proxy: FaultProxy, output: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(output)
    before = RETRIES["SlowDown"]
    proxy.set_rules([Rule(Fault.SLOW_DOWN, count=8)])
    store.put_new("key", b"content")
    assert RETRIES["SlowDown"] - before == 2  # the client tries four times for each of ours
    assert [record.getMessage().split(" wait")[0] for record in caplog.records] == [
        f"event=storage_retry kind=SlowDown attempt={attempt}" for attempt in (1, 2)
    ]


def test_after_the_deadline_nothing_is_tried_again() -> None:
    tries = []

    def refuse() -> None:
        tries.append(1)
        raise ConnectionError("no")

    with pytest.raises(ConnectionError):
        patiently(refuse, fsspec.filesystem("memory"), deadline_seconds=0)
    assert len(tries) == 1


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.usefixtures("way_in")  # for its small blocks: else the sources are read whole before the server goes
def test_every_operation_outlives_a_server_that_is_gone_for_20_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with local_s3(tmp_path) as server, ExitStack() as cleanup, ThreadPoolExecutor(len(OPERATIONS)) as pool:
        monkeypatch.setattr(faults, "WAIT", WAIT)
        cleanup.enter_context(leading_to(server.environment))
        ready = [prepared(name, f"{server.create_bucket(f'of-{n}')}/out", cleanup) for n, name in enumerate(OPERATIONS)]
        server.kill()
        waiting = [pool.submit(act) for act, _ in ready]
        time.sleep(20)
        assert not any(one.done() for one in waiting)
        server.start()
        assert [one.result() for one in waiting] == [expected for _, expected in ready]
        server.kill()
