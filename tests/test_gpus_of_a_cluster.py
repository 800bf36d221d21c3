"""GPUs of a cluster are shared, beside enough cores, a sick one is left out without its node; tasks search and join."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import ray.data

from pipeline import as_of_join
from pipeline.config import JobConfig, Runtime
from pipeline.errors import ConfigError, EncoderError
from pipeline.evaluation.rehearsal import text_table
from pipeline.evaluation.stored_encoder import StoredEncoder
from pipeline.evaluation.stored_vectors import StoredVectors
from pipeline.execution.attempts import MAX_STRIKES, Attempts
from pipeline.execution.clusters.cluster import NODE_SHARE, Shares, divide, start_ray, stop_ray
from pipeline.execution.clusters.cores import BUSY, TELLING_SECONDS, short_of_cores, was_short_of_cores
from pipeline.execution.clusters.tasks import in_tasks
from pipeline.execution.executors import ray_executor
from pipeline.execution.executors.calls import calling
from pipeline.execution.planning.model import ModelReference, open_encoder
from pipeline.execution.reporting.metrics import RunReport
from pipeline.execution.sick_gpus import SickGpus, Sickness, here, sickness_of
from pipeline.optional import library
from tests.running import written_config
from tests.searching import found_by
from tests.test_batching import tokens_of
from tests.test_feature_readers import example, names_after
from tests.test_feature_table import Job, reviews
from tests.without_ray import published_in_process


def cluster_of(monkeypatch: pytest.MonkeyPatch, **nodes: Mapping[str, float]) -> None:
    listed = [{"NodeID": name, "Alive": True, "Resources": dict(resources)} for name, resources in nodes.items()]
    monkeypatch.setattr("ray.nodes", lambda: listed)


def test_small_models_share_a_gpu_and_large_ones_take_several(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster_of(monkeypatch, a={"CPU": 32, "GPU": 4}, b={"CPU": 32, "GPU": 2}, c={"CPU": 64})
    found = {share: divide(Runtime(gpus_per_encoder=share)) for share in (0.25, 0.4, 0.5, 1, 2, 3)}
    assert {share: shares.encoders for share, shares in found.items()} == {0.25: 24, 0.4: 12, 0.5: 12, 1: 6, 2: 3, 3: 1}
    assert all(shares.encoder_gpus == share for share, shares in found.items())
    assert divide(Runtime()).encoders == 6
    with pytest.raises(ConfigError, match=r"13 encoders with 0\.5 GPUs each; the cluster's 6 GPUs have room for 12"):
        divide(Runtime(encoders=13, gpus_per_encoder=0.5))


@pytest.mark.parametrize("cores", [2, 8, 16, 128])
def test_encoders_never_reserve_all_cores_of_a_node_however_many_gpus_it_has(
    monkeypatch: pytest.MonkeyPatch, cores: int
) -> None:
    cluster_of(monkeypatch, a={"CPU": cores, "GPU": 8}, b={"CPU": 64, "GPU": 1})
    for share in (0.25, 0.5, 1):
        shares = divide(Runtime(gpus_per_encoder=share))
        assert 0 < 8 / share * shares.encoder_cpus <= max(cores * NODE_SHARE + 8 / share * 0.005, 0.51)


def test_a_warning_names_the_cores_that_gpus_lack_by_the_rates_of_an_estimate_if_there_is_one() -> None:
    assert short_of_cores(8, 4, 12, None) == short_of_cores(2, 0, 1, None) == []
    assert "8 cores stand beside 4 GPUs, 4 fewer than the 12 that" in short_of_cores(8, 4, 8, None)[0]
    assert "BERT-large" in short_of_cores(8, 4, 8, {"cores_per_encoder": None})[0]
    small_model = {"cores_per_encoder": 5.2}
    assert "12 cores stand beside 4 GPUs, 9 fewer than the 21 that" in short_of_cores(4, 4, 12, small_model)[0]
    assert short_of_cores(4, 4, 21, small_model) == []
    assert short_of_cores(4, 4, 8, {"cores_per_encoder": 1.9}) == []


def run_of(busy: float, seconds: float = 10 * TELLING_SECONDS) -> RunReport:
    """Return the report of a run of so many seconds on two GPUs, whose stages took three times what encoding did."""
    encoding = 2 * busy * seconds
    stages = {"read": encoding, "tokenize": 1.5 * encoding, "encode": encoding, "write": 0.5 * encoding}
    return RunReport("published", "out", encoders=2, device="gpu", seconds={"run": seconds}, stage_seconds=stages)


def test_a_run_whose_gpus_have_waited_says_by_its_own_seconds_how_many_cores_are_lacking() -> None:
    (said,) = was_short_of_cores(run_of(busy=0.5), gpus=2, cores=5) or []
    assert "5 cores stand beside 2 GPUs, 3 fewer than the 8 that" in said
    assert "50 % of the time" in said
    assert was_short_of_cores(run_of(busy=0.5), gpus=2, cores=8) == []
    assert was_short_of_cores(run_of(busy=BUSY), gpus=2, cores=1) == [], "they have not waited"
    assert was_short_of_cores(run_of(busy=0.5, seconds=TELLING_SECONDS), gpus=2, cores=5) is None, "too short to tell"
    assert was_short_of_cores(run_of(busy=0.5), gpus=0, cores=5) is None, "on CPUs"


def test_what_was_assumed_of_cores_at_the_start_gives_way_to_what_the_run_has_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, answer in {"start_ray": [], "hosts": [], "living": {}, "lost_since": ["a node went"]}.items():
        monkeypatch.setattr(ray_executor, name, lambda *_, answer=answer: answer)
    for name in ("configure_data", "stop_on_sigterm", "stop_ray"):
        monkeypatch.setattr(ray_executor, name, lambda: None)
    monkeypatch.setattr(ray_executor, "divide", lambda runtime: Shares(2, 1.0, 1.0, 0, {}, 1.0))
    monkeypatch.setattr(ray_executor, "ray_cores", lambda: 5.0)
    monkeypatch.setattr(ray_executor, "RayExecutor", lambda *_: None)  # it would start Ray
    config = JobConfig.model_validate(
        {"source": {"uri": "in"}, "recipe": {"model": "hashing://8"}, "output": {"uri": "out"}}
    )
    report, ended = RunReport("failed", "out"), run_of(busy=0.5)
    with ray_executor.on_ray(config, None, report):
        (at_start,) = report.warnings
        assert "1 fewer than the 6 that" in at_start
        report.seconds, report.stage_seconds = ended.seconds, ended.stage_seconds
    assert report.warnings[0] == "a node went"
    assert "3 fewer than the 8 that" in report.warnings[1]
    assert len(report.warnings) == 2


def test_strikes_count_for_each_gpu_alone() -> None:
    book = Attempts()
    for strike in range(1, MAX_STRIKES + 1):
        assert book.strike(f"error {strike}", "node/1") == (strike < MAX_STRIKES)
        assert book.strike("error", "node/0") or strike == MAX_STRIKES
        book.forgive("node/0")
    book.strikes["other"] = MAX_STRIKES
    book.errors["other"] = "dark"
    sick = sickness_of(book.excluded())
    assert (sick.nodes, sick.gpus) == ({"other": "dark"}, {"node": {"1": "error 3"}})


def test_encoders_are_as_many_as_healthy_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster_of(monkeypatch, a={"CPU": 32, "GPU": 4}, b={"CPU": 32, "GPU": 2})
    assert divide(Runtime(), {}, {"a": 1}).encoders == 5
    assert divide(Runtime(encoders=6), {}, {"a": 1}).encoders == 5
    assert divide(Runtime(), {"b": "dark"}, {"a": 3}).encoders == 1
    with pytest.raises(EncoderError, match="no healthy encoder is left"):
        divide(Runtime(), {"a": "dark", "b": "dark"}, {})


def test_a_node_whose_gpus_are_all_sick_is_left_out_whole() -> None:
    sick = Sickness({"c": "dark"}, {"a": {"0": "one", "1": "two"}})
    assert SickGpus().hold(sick, {"a": 2, "c": 8}) == {"c": "dark", "a": "two"}


def test_an_encoder_that_has_reserved_no_gpu_takes_none_though_it_sees_one(
    m3e_small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # as Ray shows it
    model = ModelReference("local", str(m3e_small), "", False, False)
    encoder = open_encoder(model, "float32", "", 1, device="cpu")
    assert (encoder.device, encoder.encode(tokens_of([5, 9])).shape) == ("cpu", (2, 512))


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[None]:
    """A Ray that believes in two GPUs; nothing is ever computed on them."""
    begin = ray.init
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("RAY_ADDRESS", raising=False)
        patched.setattr("ray.init", lambda **options: begin(**options, num_cpus=2, num_gpus=2))
        start_ray(Runtime())
    yield
    stop_ray()


def test_a_sick_gpu_is_held_and_only_the_healthy_one_is_given_to_encoders(two_gpus: None) -> None:
    node, *_ = ray.nodes()
    place = ray.remote(num_gpus=0.5, num_cpus=0)(here)
    assert ray.get(ray.remote(num_cpus=0)(here).remote()) == node["NodeID"]
    first = ray.get(place.remote())
    assert first in (f"{node['NodeID']}/0", f"{node['NodeID']}/1")
    gpus, sick = SickGpus(), sickness_of({first: "NaN for everything"})
    for _ in range(2):  # what is held already is not held anew
        assert gpus.hold(sick, {node["NodeID"]: 2}) == {}
        assert gpus.held() == {node["NodeID"]: 1}
    assert divide(Runtime(), {}, gpus.held()).encoders == 1
    others: list[Any] = ray.get([place.remote() for _ in range(6)])
    assert set(others) == {f"{node['NodeID']}/{1 - int(first[-1])}"}


def test_tasks_of_a_cluster_find_the_same_bits_as_a_search_here(
    two_gpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, queries = ([f"{kind} {n * n} {n % 7}" for n in range(rows)] for kind, rows in (("d", 400), ("q", 600)))
    documents += documents[:50]
    pq.write_table(text_table(documents + queries), tmp_path / "texts.parquet")
    config = written_config(
        tmp_path / "job.yaml",
        source={"uri": str(tmp_path / "texts.parquet")},
        recipe={"model": "hashing://96", "stored": "int8"},
        output={"uri": str(tmp_path / "out"), "rows_per_part": 150},
    )
    vectors = StoredVectors(published_in_process(config))
    expected = found_by(StoredEncoder(vectors, "here", 96), documents, queries, 100)
    monkeypatch.setattr("pipeline.execution.clusters.cluster.start_ray", lambda runtime: [])
    monkeypatch.setattr("pipeline.execution.clusters.cluster.stop_ray", lambda: None)
    monkeypatch.setattr("faiss.knn", None)  # of this process, which compares nothing any more
    with calling(Runtime(ray_address="auto")) as mapped:
        assert found_by(StoredEncoder(vectors, "tasks", 96, mapped), documents, queries, 100) == expected
    assert [len(found) for found in expected.values()] == [100] * 600
    with calling(Runtime()) as mapped:
        assert mapped is map


def test_training_rows_are_joined_block_by_block_as_the_readme_says(two_gpus: None, tmp_path: Path) -> None:
    job = Job(tmp_path, reviews(), entity="user", event_time="day")
    job.embed()
    table = job.features().table
    rows = {"user": ["ann", "bob", "ann"], "event_timestamp": [datetime(2026, 1, day, tzinfo=UTC) for day in (2, 2, 9)]}
    asked = pa.table(rows | {"label": [0, 1, 2]})
    names = {"uri": table.store.uri, "training_rows": ray.data.from_arrow([asked.slice(0, 1), asked.slice(1)])}
    joined = names_after(example("# more training rows"), names)["joined"]
    expected = as_of_join(asked, table.dataset(), ["user"], timedelta(days=30))
    assert joined.sort("label").take_all() == expected.to_pylist()
    assert [row["embedding"] is None for row in expected.to_pylist()] == [False, True, False]


def test_an_error_in_a_task_is_the_one_that_was_raised(two_gpus: None) -> None:
    assert list(in_tasks(abs, range(-5, 0))) == [5, 4, 3, 2, 1]
    with pytest.raises(ConfigError, match="needs the package nosuch"):
        list(in_tasks(partial(library, "nosuch", "extra"), ["who asks"]))
