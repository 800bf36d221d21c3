"""What `submit --kubernetes` renders: checked against the schemas of Kubernetes and the fields of KubeRay."""

import argparse
import re
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from kubernetes.client.exceptions import ApiException

from jobs.kubernetes_submit import RENDER, asked_run, create, rendered
from jobs.manifests import GPU, Manifest, pods_of
from pipeline.config_file import load_config
from pipeline.errors import ConfigError, PipelineError, SnapshotConflict
from tests.running import ROOT, jobs
from tests.schemas import errors_of

FOLDER = ROOT / "docker" / "kubernetes"
NIGHT = date(2026, 11, 24)


def manifests(kind: str, *words: str, **options: str | list[str]) -> list[Manifest]:
    given: dict[str, str | list[str] | None] = {
        "remote": [],
        "name": None,
        "image": "embeddings:gpu",
        "namespace": "nightly",
        "secret": "storage",
        "schedule": "0 2 * * *",
    }
    run = asked_run(argparse.Namespace(kubernetes=kind, words=words, **(given | options)), NIGHT)
    return RENDER[kind](run)


def of_gpus(kind: str) -> list[Manifest]:
    return manifests(kind, "nightly", str(ROOT / "configs/gpu.yaml"), "runtime.encoders=4", remote=["--allow-deletes"])


@pytest.mark.parametrize("kind", RENDER)
def test_every_object_is_of_its_type_in_all_its_depth(kind: str) -> None:
    for manifest in yaml.safe_load_all(rendered(of_gpus(kind))):
        assert errors_of(manifest) == [], manifest["kind"]


def test_the_cluster_of_a_run_could_stand_alone() -> None:
    run, *_ = of_gpus("rayjob")
    assert errors_of({**run, "kind": "RayCluster", "spec": run["spec"]["rayClusterSpec"]}) == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("entryPoint",), "x", "'entryPoint' was unexpected"),
        (("backoffLimit",), "2", "'2' is not of type 'integer'"),
        (("submissionMode",), "K8SJobMode", "is not one of"),
        (("rayClusterSpec", "authOptions", "mode"), "tokens", "is not one of"),
        (("rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0, "0 is not of type 'string'"),
        (("rayClusterSpec", "headGroupSpec", "template", "spec", "container"), [], "'container' was unexpected"),
        (("rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers"), [{}], "'name' is a required"),
    ],
)
def test_the_check_finds_an_error_in_any_depth(path: tuple[str | int, ...], value: object, message: str) -> None:
    (manifest, *_) = of_gpus("rayjob")
    inner = manifest["spec"]
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    (error,) = errors_of(manifest)
    assert message in error


def test_gpus_are_asked_for_by_encoders_alone_and_the_head_computes_nothing() -> None:
    cluster = of_gpus("rayjob")[0]["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    encoders, stages = groups["encoders"], groups["stages"]
    assert (encoders["minReplicas"], encoders["maxReplicas"]) == (4, 4)
    assert stages["minReplicas"] < stages["maxReplicas"]
    asked = {name: group["template"]["spec"]["containers"][0]["resources"]["limits"] for name, group in groups.items()}
    assert asked["encoders"][GPU] == "1"
    assert GPU not in asked["stages"]
    assert [one["key"] for one in encoders["template"]["spec"]["tolerations"]] == [GPU]
    assert "tolerations" not in stages["template"]["spec"]


@pytest.mark.parametrize(
    ("encoders", "gpus_per_encoder", "pods", "gpus"),
    [(4, 1, 4, 1), (4, 0.5, 2, 1), (3, 0.5, 2, 1), (2, 2, 2, 2), (3, 0, 3, 0)],
)
def test_as_many_pods_are_asked_for_as_the_encoders_need(
    encoders: int, gpus_per_encoder: float, pods: int, gpus: int
) -> None:
    runtime = [f"runtime.encoders={encoders}", f"runtime.gpus_per_encoder={gpus_per_encoder}"]
    asked = pods_of(load_config(str(ROOT / "configs/gpu.yaml"), runtime))
    assert (asked.encoding, asked.gpus) == (pods, gpus)


def test_larger_blocks_ask_for_more_memory() -> None:
    runtime = ["runtime.encoders=1", "runtime.gpus_per_encoder=1"]
    small, large = (
        pods_of(load_config(str(ROOT / "configs/gpu.yaml"), [*runtime, f"output.rows_per_part={rows}"]))
        for rows in (1000, 100_000)
    )
    assert small.memory_gib < large.memory_gib


def test_a_number_that_is_left_to_the_cluster_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be numbers on Kubernetes"):
        manifests("rayjob", "embed", str(ROOT / "configs/xiaobu.yaml"))


def test_a_folder_that_no_pod_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"output\.uri is '/data/out', a folder that no pod has"):
        manifests("rayjob", "embed", str(ROOT / "configs/gpu.yaml"), "runtime.encoders=4", "output.uri=/data/out")


def test_credentials_are_named_and_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    text = rendered(of_gpus("rayjob") + of_gpus("cronjob"))
    assert "canary" not in text
    assert "secretRef" in text
    assert not re.search(r"kind: Secret\b", text)


def test_a_run_is_named_by_the_night_and_a_schedule_is_not() -> None:
    names = {kind: of_gpus(kind)[0]["metadata"]["name"] for kind in RENDER}
    assert names["rayjob"].endswith("-20261124")
    assert names["raycronjob"] == names["cronjob"] == names["rayjob"].removesuffix("-20261124")


def test_the_plain_cron_job_submits_what_the_run_of_one_night_is() -> None:
    objects = {one["kind"]: one for one in of_gpus("cronjob")}
    pod = objects["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    command = pod["containers"][0]["command"]
    assert command[:5] == ["python", "-m", "jobs", "submit", "nightly"]
    assert command[-2:] == ["--", "--allow-deletes"]
    assert "--kubernetes" in command
    resources = {name for rule in objects["Role"]["rules"] for name in rule["resources"]}
    assert resources == {"rayjobs", "configmaps", "poddisruptionbudgets"}
    (tmp_config,) = objects["ConfigMap"]["data"].values()
    assert yaml.safe_load(tmp_config)["runtime"]["encoders"] == 4


class FakeKubernetes:
    """Stands for the dynamic client: notes what is created, and refuses what is there already."""

    def __init__(self, taken: int | None = None, refused: str = "RayJob") -> None:
        self.made: list[tuple[str, str, Manifest]] = []
        self.taken, self.refused, self.resources = taken, refused, self

    def get(self, api_version: str, kind: str) -> SimpleNamespace:
        def create(body: Manifest, namespace: str) -> SimpleNamespace:
            if self.taken and kind == self.refused:
                raise ApiException(status=self.taken, reason="refused")
            self.made.append(("create", kind, body))
            return SimpleNamespace(metadata=SimpleNamespace(uid="uid-1"))

        def apply(body: Manifest, **_: str) -> None:
            self.made.append(("apply", kind, body))

        def delete(name: str, namespace: str) -> None:
            self.made = [one for one in self.made if one[1] != kind]

        return SimpleNamespace(create=create, server_side_apply=apply, delete=delete)


def test_what_a_run_needs_belongs_to_it_and_a_schedule_is_brought_up_to_date() -> None:
    cluster = FakeKubernetes()
    create(cluster, of_gpus("rayjob"))
    assert [kind for _, kind, _ in cluster.made] == ["RayJob", "ConfigMap", "PodDisruptionBudget"]
    assert all(body["metadata"]["ownerReferences"][0]["uid"] == "uid-1" for _, _, body in cluster.made[1:])
    cluster = FakeKubernetes()
    create(cluster, of_gpus("raycronjob"))
    assert {verb for verb, _, _ in cluster.made} == {"apply"}


@pytest.mark.parametrize(("status", "error"), [(409, SnapshotConflict), (403, PipelineError)])
def test_a_second_submission_of_a_night_creates_nothing(status: int, error: type[PipelineError]) -> None:
    cluster = FakeKubernetes(taken=status)
    with pytest.raises(error) as told:
        create(cluster, of_gpus("rayjob"))
    assert told.type is error
    assert cluster.made == []


def test_a_run_whose_config_is_refused_is_taken_back_so_that_the_night_can_be_submitted_again() -> None:
    cluster = FakeKubernetes(taken=500, refused="ConfigMap")
    with pytest.raises(PipelineError, match="refuses ConfigMap"):
        create(cluster, of_gpus("rayjob"))
    assert cluster.made == []


def test_the_manifests_that_lie_in_docker_are_those_that_are_rendered() -> None:
    for kind in RENDER:
        assert (FOLDER / f"{kind}.yaml").read_text(encoding="utf-8") == written(kind), f"python -m {__name__}"


def test_a_dry_run_prints_what_kubectl_takes_and_reaches_no_cluster() -> None:
    words = ("embed", "configs/gpu.yaml", "runtime.encoders=2", "--image", "embeddings:gpu")
    finished = jobs("submit", *words, "--kubernetes", "--dry-run", environment={"KUBECONFIG": "/nowhere"})
    assert finished.code == 0, finished.stderr
    assert [one["kind"] for one in yaml.safe_load_all(finished.stdout)] == [
        "RayJob",
        "ConfigMap",
        "PodDisruptionBudget",
    ]


def written(kind: str) -> str:
    """Return the example of a kind that lies in docker/kubernetes."""
    options = {"name": "embedding", "namespace": "default", "secret": "embedding-storage"}
    config = str(ROOT / "configs/gpu.yaml")
    return rendered(manifests(kind, "nightly", config, "runtime.encoders=4", **options))


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for kind in RENDER:
        Path(FOLDER / f"{kind}.yaml").write_text(written(kind), encoding="utf-8")
