"""No secret leaves a run, and no stranger gets into one: a real run with planted secrets, watched and searched."""

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.cloudpickle

from jobs.demo.local_s3 import LocalS3
from pipeline.config import JobConfig
from pipeline.execution.clusters.cluster import is_guarded
from pipeline.execution.planning.model import describe
from pipeline.execution.planning.plan import make_plan
from pipeline.execution.settings import stage_settings
from pipeline.execution.stages import write_blocks
from pipeline.storage.filesystem import Store
from tests.chaos.proxy import Fault, FaultProxy, Rule
from tests.running import Finished, embed, ended, started, written_config
from tests.watching import Listener, command_line, family_of, listeners_of

TEXT = "planted-text-4f1c"
VARIABLE = "planted-variable-9b07"
TOKEN = "planted0token0" + "0" * 50
ROWS = 600

DUMP = """
import sys
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
for namespace in (None, b"fun", b"job", b"session", b"cluster", b"dashboard", b"runtime_env", b"usage_stats"):
    for key in client.internal_kv_keys(b"", namespace, 10):
        sys.stdout.buffer.write(key + b"\\0" + (client.internal_kv_get(key, namespace, 10) or b"") + b"\\0")
sys.stdout.buffer.write(str(client.get_all_job_info()).encode())
"""
"""What the head of a Ray cluster knows, runtime environments and pickled functions included, for who may ask."""


@dataclass
class Watched:
    """A run and what was seen of it while it ran."""

    run: Finished
    output: str
    ray_folder: Path
    command_lines: set[str] = field(default_factory=set)
    listeners: set[Listener] = field(default_factory=set)
    asked_with_token: "subprocess.CompletedProcess[bytes] | None" = None
    asked_without: "list[subprocess.CompletedProcess[bytes]]" = field(default_factory=list)


def planted(s3: LocalS3) -> dict[str, str]:
    """Return the secrets by name."""
    return {"id of the key": s3.access_key, "key": s3.secret_key, "variable": VARIABLE, "token of Ray": TOKEN}


def secrets_in(content: bytes, secrets: Mapping[str, str]) -> list[str]:
    """Return the names of the secrets that stand in this content."""
    return [name for name, secret in secrets.items() if secret.encode() in content]


def config(folder: Path, bucket: str) -> str:
    return written_config(
        folder / "job.yaml",
        source={"uri": f"s3://{bucket}/in/", "keep_columns": ["label"]},
        recipe={"model": "hashing://64"},
        output={"uri": f"s3://{bucket}/out", "partition_by": ["label"], "rows_per_part": 50},
        runtime={"max_quarantined_fraction": 0.5, "without_ray_bytes": 0},
    )


def fill(s3: LocalS3, bucket: str) -> None:
    """Put a corpus into the bucket: every text holds the planted one, and one row is broken."""
    for number in range(3):
        rows = [{"id": f"{number}-{row}", "text": f"{TEXT} {row}", "label": "a"} for row in range(ROWS)]
        lines = [orjson.dumps(row) for row in rows] + [b'{"id": "x", "text": "' + TEXT.encode()]
        s3.filesystem().pipe_file(f"{bucket}/in/{number}.jsonl", b"\n".join(lines) + b"\n")


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Where a run's Ray keeps its logs and sockets: a short path, because sockets allow no long one."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


def environment(s3: LocalS3, ray_folder: Path) -> dict[str, str]:
    own = {"PLANTED_API_TOKEN": VARIABLE, "RAY_AUTH_TOKEN": TOKEN, "RAY_TMPDIR": str(ray_folder)}
    return s3.environment | own


def ask(address: str, of_ray: Mapping[str, str]) -> "subprocess.CompletedProcess[bytes]":
    """Ask the head of a Ray cluster for all it knows."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", DUMP, address]
    return subprocess.run(command, env=inherited | dict(of_ray), capture_output=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def watched(s3: LocalS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A run from S3 to S3 with planted secrets."""
    s3.create_bucket("planted")
    fill(s3, "planted")
    ray_folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    path = config(tmp_path_factory.mktemp("planted"), "planted")
    process = started("embed", path, "--json", environment=environment(s3, ray_folder))
    seen = Watched(Finished(-1, "", ""), "s3://planted/out", ray_folder)
    while process.poll() is None:
        family = family_of(process.pid)
        seen.command_lines |= set(map(command_line, family))
        seen.listeners |= {listener for pid in family for listener in listeners_of(pid)}
        head = next((one for one in seen.listeners if "/gcs_server" in one.program), None)
        if head and not seen.asked_without and any("MapWorker" in line for line in seen.command_lines):
            address = f"127.0.0.1:{head.port}"
            seen.asked_with_token = ask(address, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN})
            strangers = [{"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}, {"RAY_AUTH_MODE": "disabled"}]
            seen.asked_without = [ask(address, stranger) for stranger in strangers]
        time.sleep(0.1)
    seen.run = ended(process)
    assert seen.run.code == 0, seen.run.stderr
    yield seen
    shutil.rmtree(ray_folder, ignore_errors=True)


def test_every_port_of_a_local_run_is_on_loopback(watched: Watched) -> None:
    programs = {name: [one for one in watched.listeners if name in one.program] for name in ("gcs_server", "raylet")}
    assert all(programs.values())
    assert [one for one in watched.listeners if not one.address.is_loopback] == []


def test_a_local_run_has_no_dashboard(watched: Watched) -> None:
    assert [one for one in watched.listeners if "dashboard" in one.program or one.port == 8265] == []


def test_a_local_run_starts_no_service_that_it_does_not_use(watched: Watched) -> None:
    lines = "\n".join(watched.command_lines)
    assert "gcs_server" in lines
    services = ("autoscaler/_private/monitor.py", "dashboard/dashboard.py", "_private/log_monitor.py")
    assert [name for name in services if name in lines] == []


def test_who_has_no_token_learns_nothing_from_a_local_run(watched: Watched) -> None:
    assert watched.asked_with_token is not None
    assert watched.asked_with_token.returncode == 0, watched.asked_with_token.stderr[-2000:]
    assert b"RemoteFunction:" in watched.asked_with_token.stdout
    assert len(watched.asked_without) == 2
    for answer in watched.asked_without:
        assert answer.returncode != 0
        assert b"InvalidAuthToken" in answer.stderr
        assert answer.stdout == b""


def test_no_secret_stands_in_the_command_line_of_a_process(s3: LocalS3, watched: Watched) -> None:
    assert any("ray::" in line for line in watched.command_lines)
    assert secrets_in("\n".join(watched.command_lines).encode(), planted(s3) | {"text": TEXT}) == []


def test_no_secret_stands_in_what_ray_knows_of_the_run(s3: LocalS3, watched: Watched) -> None:
    assert watched.asked_with_token is not None
    assert len(watched.asked_with_token.stdout) > 10_000
    assert secrets_in(watched.asked_with_token.stdout, planted(s3) | {"text": TEXT}) == []


def test_no_secret_stands_in_the_logs_of_ray(s3: LocalS3, watched: Watched) -> None:
    files = [path for path in watched.ray_folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any("python-core-worker" in path.name for path in files)
    wrong = {path.name: secrets_in(path.read_bytes(), planted(s3) | {"text": TEXT}) for path in files}
    assert {name: found for name, found in wrong.items() if found} == {}


def test_no_secret_stands_in_what_is_printed(s3: LocalS3, watched: Watched) -> None:
    assert secrets_in((watched.run.stdout + watched.run.stderr).encode(), planted(s3) | {"text": TEXT}) == []


def test_no_secret_and_no_text_stands_in_the_output_but_raw_rows_in_quarantine(s3: LocalS3, watched: Watched) -> None:
    filesystem = s3.filesystem()
    contents = {path: filesystem.cat_file(path) for path in filesystem.find("planted/out")}
    kinds = ("/journal/", "/claims/", "plan.parquet", "_meta/snapshots/", ".html", ".json", "LATEST", "/label=a/")
    assert all(any(kind in path for path in contents) for kind in kinds)
    for path, content in contents.items():
        secrets = planted(s3) | {"text": TEXT}
        raw_secrets = planted(s3) if "/quarantine/" in path else secrets
        assert secrets_in(content, raw_secrets) == [], path
        if path.endswith(".parquet"):
            table = pq.read_table(pa.BufferReader(content))
            shown = table.drop_columns(["raw"]) if "raw" in table.column_names else table
            assert secrets_in(repr(shown.to_pydict()).encode(), secrets) == [], path
            assert secrets_in(repr(table.schema.metadata).encode(), secrets) == [], path
    (quarantined, *_) = [path for path in contents if "/quarantine/" in path]
    assert TEXT.encode() in pq.read_table(pa.BufferReader(contents[quarantined]))["raw"][0].as_py()


def test_no_secret_travels_to_the_workers(s3: LocalS3, bucket: str) -> None:
    fill(s3, bucket)
    settings = JobConfig.model_validate(
        {
            "source": {"uri": f"s3://{bucket}/in/"},
            "recipe": {"model": "hashing://8"},
            "output": {"uri": f"s3://{bucket}/out"},
        }
    )
    store = Store(settings.output.uri)
    plan = make_plan(settings, store)
    stages = stage_settings(settings, plan, describe(plan.model), pa.scalar(0, pa.timestamp("us", tz="UTC")), 1)
    for sent in (
        ray.cloudpickle.dumps(partial(write_blocks, settings=stages)),
        pickle.dumps(stages),
        pickle.dumps(store),
    ):
        assert bucket.encode() in sent
        assert secrets_in(sent, planted(s3) | {"text": TEXT}) == []


@pytest.mark.parametrize("failure", ["wrong key", "access denied", "endpoint down", "denied in a stage"])
def test_a_run_that_fails_tells_no_secret(
    tmp_path: Path, s3: LocalS3, bucket: str, ray_folder: Path, failure: str
) -> None:
    fill(s3, bucket)
    own = environment(s3, ray_folder)
    with FaultProxy(s3.endpoint_url) as proxy:
        match failure:
            case "wrong key":
                own["AWS_SECRET_ACCESS_KEY"] = f"{s3.secret_key}x"
            case "access denied":
                own |= s3.environment_of(s3.read_only)
            case "endpoint down":
                own |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}
            case "denied in a stage":
                own = proxy.environment(own)
                proxy.set_rules([Rule(Fault.ACCESS_DENIED, frozenset({"PUT"}), path="/out/snapshots/")])
        run = embed(config(tmp_path, bucket), environment=own)
    assert run.code == 1, run.stderr
    assert ("access denied" if failure != "endpoint down" else "no answer") in run.errors[0]
    secrets = planted(s3) | {"text": TEXT, "second key": s3.read_only.secret_key}
    assert secrets_in((run.stdout + run.stderr).encode(), secrets) == []
    left = [path for path in ray_folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert bool(left) == (failure == "denied in a stage")
    assert [path.name for path in left if secrets_in(path.read_bytes(), secrets)] == []


@pytest.mark.parametrize(
    ("address", "mode", "guarded"),
    [
        ("local", None, True),
        ("127.0.0.1:6379", None, True),
        ("ray://localhost:10001", None, True),
        ("[::1]:6379", None, True),
        ("head:6379", None, False),
        ("ray://10.0.0.1:10001", "disabled", False),
        ("auto", None, False),
        ("head:6379", "token", True),
        ("auto", "TOKEN", True),
    ],
)
def test_a_cluster_that_asks_for_no_token_is_warned_of(address: str, mode: str | None, guarded: bool) -> None:
    assert is_guarded(address, {"RAY_AUTH_MODE": mode} if mode else {}) is guarded
