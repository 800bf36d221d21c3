"""Runs submitted to a real cluster from outside: a head without CPUs, a CPU node, a node with a resource of its own."""

import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import orjson
import pyarrow as pa
import pytest
import requests
import yaml
from s3fs import S3FileSystem

from jobs.checkout import packed
from jobs.demo.local_cluster import LocalCluster, Offer
from jobs.demo.local_s3 import LocalS3
from jobs.submit_config import config_text, wanted
from pipeline import open_snapshot
from pipeline.config_file import load_config
from pipeline.errors import ConfigError, PipelineError
from pipeline.execution.clusters.submission import Cluster, night_name
from pipeline.storage.filesystem import Store
from tests.labelled_sets import write_sets
from tests.running import ROOT, Finished, ended, jobs, started, written_config
from tests.terminal import CTRL_C, Terminal
from tests.test_cluster import closed_port
from tests.tls import certify, door

FILES, ROWS_PER_FILE = 24, 16
CPU, ACCELERATOR = Offer(2, {"tier": "cpu"}), Offer(2, {"tier": "accelerator"}, {"accelerator": 1})


@pytest.fixture(scope="module")
def cluster(s3: LocalS3) -> Iterator[LocalCluster]:
    with LocalCluster(s3.environment, (CPU, ACCELERATOR)) as cluster:
        yield cluster


def corpus(bucket: str, path: Path, files: int) -> str:
    """Write a corpus into a bucket of its own, and a config over it; return the config's path."""
    store = Store(f"s3://{bucket}/corpus")
    for number in range(files):
        rows = range(number * ROWS_PER_FILE, (number + 1) * ROWS_PER_FILE)
        lines = b"".join(orjson.dumps({"id": row, "text": f"第{row}家酒店"}) + b"\n" for row in rows)
        store.put(f"{number:03d}.jsonl", lines)
    return written_config(
        path / "job.yaml",
        source={"uri": f"s3://{bucket}/corpus/"},
        recipe={"model": "hashing://64"},
        output={"uri": f"s3://{bucket}/out/", "rows_per_part": 4},
    )


@pytest.fixture
def config(bucket: str, tmp_path: Path) -> str:
    """A config over a corpus of one file."""
    return corpus(bucket, tmp_path, 1)


def submit(cluster: LocalCluster, *arguments: str) -> Finished:
    return jobs("submit", *arguments, environment=cluster.environment)


def published_ids(config: str) -> list[int]:
    ids: list[int] = open_snapshot(load_config(config).output.uri).to_table(["id"])["id"].to_pylist()
    return sorted(ids)


def is_seen(condition: Callable[[], bool], seconds: float = 180.0) -> bool:
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds


@pytest.mark.slow
@pytest.mark.chaos
def test_a_submitted_run_outlives_its_terminal_and_its_nodes_and_goes_on_where_one_joins(
    cluster: LocalCluster, bucket: str, tmp_path: Path
) -> None:
    config = corpus(bucket, tmp_path, FILES)
    plain, accelerated = cluster.workers
    submitting = ("submit", "embed", config, "runtime.encoder_resources={accelerator: 1}", "--name", "outlives")
    terminal = started(*submitting, environment=cluster.environment)
    assert is_seen(lambda: bool(accelerated.workers("EncodeBlocks") and plain.workers("blocks")))
    assert not plain.workers("EncodeBlocks")
    terminal.send_signal(signal.SIGINT)
    detached = ended(terminal)
    assert detached.code == 130
    assert "the run goes on" in detached.stderr
    assert "shipping" in detached.stdout
    cluster.lose(accelerated)  # with the only encoder
    joined = cluster.add_worker(ACCELERATOR)
    assert is_seen(lambda: bool(joined.workers("EncodeBlocks")))
    assert not plain.workers("EncodeBlocks")
    cluster.lose(plain)
    followed = submit(cluster, "--logs", "outlives")
    assert followed.code == 0, followed.stdout[-3000:]
    assert "outlives: succeeded" in followed.stdout
    assert "2 nodes of the cluster went during the run" in followed.stdout
    assert published_ids(config) == list(range(FILES * ROWS_PER_FILE))


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_asks_what_is_to_become_of_the_run(cluster: LocalCluster, config: str) -> None:
    submitting = ("submit", "embed", config, "--no-ship", "--name", "asked")
    with Terminal(*submitting, environment=cluster.environment) as terminal:
        for shown, answer in (("Running entrypoint", "f"), ("phase=starting_workers", "s")):
            terminal.wait_for(shown)
            terminal.press(CTRL_C)
            terminal.wait_for("[d]etach, [s]top it, or [f]ollow on? ")
            terminal.press(f"{answer}\n")
        terminal.wait_for("stopping; what it has journalled is kept")
        terminal.wait_for("asked: stopped")
        assert terminal.code() == 1
    assert submit(cluster, "--logs", "asked").code == 1


@pytest.mark.slow
@pytest.mark.parametrize("token", [None, "0" * 64])
def test_who_has_no_token_of_the_cluster_is_told_in_one_line_and_submits_nothing(
    cluster: LocalCluster, config: str, token: str | None
) -> None:
    known = {name: value for name, value in cluster.environment.items() if not name.startswith("RAY_AUTH")}
    mine = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {}
    refused = jobs("submit", "embed", config, "--no-ship", "--name", "refused", environment=known | mine)
    (error,) = refused.errors
    assert (refused.code, refused.stdout) == (1, "")
    assert "asks for a token, and this one is missing or wrong: set RAY_AUTH_MODE=token" in error
    assert "Traceback" not in refused.stderr
    assert "0" * 64 not in refused.stderr


@pytest.mark.slow
@pytest.mark.long
def test_a_certificate_of_ones_own_is_trusted_where_it_is_named(cluster: LocalCluster, tmp_path: Path) -> None:
    host, port = cluster.dashboard_url.removeprefix("http://").split(":")
    certificate = certify(tmp_path / "certificate.pem")
    with door(certificate, host, int(port)) as address:
        (error,) = submit(cluster, "--list", "--address", address).errors
        assert "its certificate is not trusted; REQUESTS_CA_BUNDLE names the file" in error
        trusting = cluster.environment | {"REQUESTS_CA_BUNDLE": str(certificate)}
        listed = jobs("submit", "--list", "--address", address, "--json", environment=trusting)
    assert (listed.code, listed.errors) == (0, [])
    assert isinstance(orjson.loads(listed.stdout), list)


@pytest.mark.slow
def test_the_second_submission_of_a_night_is_refused_with_a_link_to_the_first_and_no_credential_is_known(
    cluster: LocalCluster, config: str, s3: LocalS3
) -> None:
    first = submit(cluster, "embed", config, "--no-ship", "--json")
    facts = first.report
    assert (first.code, facts["status"], facts["exit_code"]) == (0, "SUCCEEDED", 0)
    assert facts["report"]["embedded"] == ROWS_PER_FILE
    assert "shipping" not in first.stderr
    second = submit(cluster, "embed", config)
    assert second.code == 3
    assert facts["link"] in second.errors[0]
    listed = orjson.loads(submit(cluster, "--list", "--json").stdout)
    assert [run["output"] for run in listed if run["name"] == facts["name"]] == [load_config(config).output.uri]
    token = cluster.environment["RAY_AUTH_TOKEN"]
    known = requests.get(f"{cluster.dashboard_url}/api/jobs/", headers={"Authorization": f"Bearer {token}"}, timeout=20)
    known.raise_for_status()
    for text in (known.text, first.stderr):
        assert load_config(config).output.uri in text
        assert not [secret for secret in (s3.secret_key, s3.access_key, token) if secret in text]


@pytest.mark.slow
def test_a_failed_run_passes_its_exit_code_on_and_may_be_submitted_again(cluster: LocalCluster, config: str) -> None:
    submitting = ("embed", config, "runtime.encoders=3", "runtime.gpus_per_encoder=1", "--no-ship", "--name", "wrong")
    failed = submit(cluster, *submitting)
    assert failed.code == 2
    assert "have room for 0" in failed.stdout
    again = submit(cluster, *submitting, "--no-wait", "--json")
    assert (again.code, again.report["name"]) == (0, "wrong.2")
    stopped = submit(cluster, "--stop", "wrong.2")
    assert stopped.code == 0
    statuses = {run["name"]: run["status"] for run in orjson.loads(submit(cluster, "--list", "--json").stdout)}
    assert statuses["wrong"] == "FAILED"
    assert statuses["wrong.2"] in ("STOPPED", "FAILED")


@pytest.mark.slow
def test_an_evaluation_is_submitted_with_options_of_its_own_and_is_done_by_the_cluster(
    cluster: LocalCluster, bucket: str, tmp_path: Path, reviews: pa.Table
) -> None:
    sets = write_sets(tmp_path / "sets", reviews)
    S3FileSystem().put(str(sets / "Search"), f"{bucket}/sets/Search", recursive=True)
    config = written_config(
        tmp_path / "job.yaml",
        source={"uri": f"s3://{bucket}/corpus/"},
        recipe={"model": "hashing://64"},
        output={"uri": f"s3://{bucket}/out/"},
        evaluation={"uri": f"s3://{bucket}/lab/", "mirror": f"s3://{bucket}/sets/"},
    )
    done = submit(cluster, "evaluate", config, "--no-ship", "--json", "--", "--tasks", "Search:Retrieval")
    assert done.code == 0, done.stderr[-3000:]
    facts = done.report["report"]
    assert (facts["encoded"], facts["scored"], list(facts["points"])) == (facts["texts"], 1, ["Search"])
    assert done.report["output"] == f"s3://{bucket}/lab/"


def test_a_cluster_that_is_down_is_told_in_seconds() -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    with pytest.raises(PipelineError, match=r"nobody answers at .*--address, or RAY_API_SERVER_ADDRESS"):
        Cluster(url)


@pytest.mark.parametrize("address", ["ray://head:10001", "ftp://head", "http://user:word@head", "http://head:port"])
def test_an_address_that_is_no_dashboard_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="no address of a dashboard"):
        Cluster(address)


def test_a_run_has_one_name_a_night_whoever_submits_it() -> None:
    night = date(2026, 11, 24)
    name = night_name("nightly", "s3://features/Kunden Reviews/", night)
    assert name == night_name("nightly", "s3://features/Kunden Reviews", night)
    assert name.startswith("nightly-kunden-reviews-")
    assert name.endswith("-2026-11-24")
    others = [("embed", "s3://features/Kunden Reviews/", night), ("nightly", "s3://other/Kunden Reviews/", night)]
    assert name not in [night_name(*other) for other in others]
    assert name != night_name("nightly", "s3://features/Kunden Reviews/", date(2026, 11, 25))


def test_the_config_of_a_submitted_run_is_the_one_given_but_for_the_clusters_address(tmp_path: Path) -> None:
    path = written_config(
        tmp_path / "job.yaml",
        source={"uri": ["s3://a/", "s3://b/"], "keep_columns": ["名字"]},
        recipe={"model": "hashing://64", "prompt": "it's: "},
        output={"uri": "s3://out/"},
        runtime={"ray_address": "head:6379", "encoders": 2},
    )
    asked = wanted(["nightly", path, "runtime.encoders=3"], ["--rollback", "3"])
    config = asked.config
    assert (asked.command, asked.options, asked.output) == ("nightly", ("--rollback", "3"), "s3://out/")
    (tmp_path / "remote.yaml").write_text(config_text(config), encoding="utf-8")
    remote = load_config(str(tmp_path / "remote.yaml"))
    assert (remote.source, remote.recipe, remote.output) == (config.source, config.recipe, config.output)
    assert (remote.runtime.encoders, remote.runtime.ray_address) == (3, None)
    assert set(yaml.safe_load(config_text(config))["recipe"]) == {"model", "prompt"}


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("source.uri=corpus/", r"source\.uri\[0\] is 'corpus/'"),
        ("recipe.model=pipeline", r"recipe\.model is 'pipeline'"),
        ("gate.canary=canary.parquet", r"gate\.canary is 'canary\.parquet'"),
        ("evaluation.mirror=sets", r"evaluation\.mirror is 'sets'"),
    ],
)
def test_a_path_that_only_this_folder_knows_is_refused(tmp_path: Path, override: str, told: str) -> None:
    sections = {"source": {"uri": "s3://corpus/"}, "recipe": {"model": "org/name"}, "output": {"uri": "s3://out/"}}
    config = written_config(tmp_path / "job.yaml", **sections, evaluation={"uri": "s3://lab/"})
    with pytest.raises(ConfigError, match=told):
        wanted(["evaluate", config, override])


def test_what_changes_the_config_stands_before_the_dashes(tmp_path: Path) -> None:
    sections = {"source": {"uri": "s3://corpus/"}, "recipe": {"model": "org/name"}, "output": {"uri": "s3://out/"}}
    config = written_config(tmp_path / "job.yaml", **sections, evaluation={"uri": "lab"})
    with pytest.raises(ConfigError, match=r"output\.uri=s3://other/ changes the config and stands before --"):
        wanted(["nightly", config], ["--allow-deletes", "output.uri=s3://other/"])
    assert wanted(["nightly", config]).output == "s3://out/", "where an evaluation goes is none of a night's business"


def test_results_of_an_evaluation_are_not_those_of_its_output(tmp_path: Path) -> None:
    sections = {"source": {"uri": "s3://corpus/"}, "recipe": {"model": "org/name"}, "output": {"uri": "s3://out/"}}
    config = written_config(tmp_path / "job.yaml", **sections, evaluation={"uri": "s3://lab/"})
    assert wanted(["evaluate", config, "evaluation.tasks=[STSB]"], ["--json"]).output == "s3://lab/"
    with pytest.raises(ConfigError, match="train needs the section training"):
        wanted(["train", config])


@pytest.mark.parametrize("words", [[], ["embed"], ["status", "s3://out/"], ["submit", "job.yaml"]])
def test_a_command_that_takes_no_config_is_not_submitted(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="expected a command"):
        wanted(words)


def test_the_checkout_is_shipped_without_what_is_ignored_and_always_the_same(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in (
        "pyproject.toml",
        "jobs/embed.py",
        ".env",
        ".git/config",
        "jobs/__pycache__/a.pyc",
        "my.key",
        "big.bin",
    ):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(b"x" * 1000)
    (tree / ".shipignore").write_text("*.bin\n")
    package = packed(tmp_path / "one.zip", tree)
    assert (package.files, package.size_bytes) == (2, 2000)
    (tree / "jobs/embed.py").touch()
    packed(tmp_path / "two.zip", tree)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_a_checkout_that_is_too_large_names_its_largest_files(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "weights.bin").write_bytes(b"x" * 2_000_000)
    with pytest.raises(ConfigError, match=r"2\.0 MB, at most 1\.0 MB(.|\n)*2\.0 MB  weights\.bin"):
        packed(tmp_path / "out.zip", tmp_path, largest_bytes=1_000_000)


def test_everything_a_run_needs_of_this_checkout_is_shipped(tmp_path: Path) -> None:
    packed(tmp_path / "checkout.zip")
    with zipfile.ZipFile(tmp_path / "checkout.zip") as archive:
        shipped = set(archive.namelist())
    tracked = {path for folder in ("pipeline", "jobs") for path in (ROOT / folder).rglob("*") if path.is_file()}
    needed = {path.relative_to(ROOT).as_posix() for path in tracked if "__pycache__" not in path.parts}
    assert needed <= shipped
