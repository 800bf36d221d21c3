"""The Kubernetes objects of a run, once or every night: a RayJob of KubeRay, what it mounts, who may create it."""

import math
import shlex
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from pipeline.config import JobConfig
from pipeline.errors import ConfigError

Manifest = dict[str, Any]

CONFIG_FOLDER, CONFIG_FILE = "/etc/embedding", "job.yaml"
CACHE_FOLDER = "/cache"
CPUS_PER_POD = 4
OBJECT_STORE_GIB = 2
LEAST_GIB, GIB_PER_ENCODER = 4, 3
BLOCKS_IN_FLIGHT, BYTES_PER_ROW = 16, 8192
"""Of memory: a pod holds so many Blocks at a time, a row is a vector of 1792 float32 numbers and its text."""
USER = 1000
LABELS = {"app.kubernetes.io/name": "batch-embeddings"}
GPU = "nvidia.com/gpu"


@dataclass(frozen=True, slots=True)
class Run:
    """What is run, where, and with which secrets."""

    name: str
    """Of every object: a DNS label."""
    command: str
    options: tuple[str, ...]
    """Of the command."""
    config: JobConfig
    output: str
    """Where its results go."""
    config_text: str
    image: str
    namespace: str
    secret: str
    """Name of the Secret whose keys become environment variables: endpoint and credentials of the storage."""
    schedule: str = "0 2 * * *"
    """When a nightly run begins, as in cron, UTC."""


@dataclass(frozen=True, slots=True)
class Pods:
    """How many pods encode, and what each asks for."""

    encoding: int
    gpus: int
    memory_gib: int


def pods_of(config: JobConfig) -> Pods:
    """Derive from `encoders`, `gpus_per_encoder` and `rows_per_part` what is requested.

    Raises:
        ConfigError: a number is left to the cluster, which is only there once it was requested.
    """
    encoders, gpus_per_encoder = config.runtime.encoders, config.runtime.gpus_per_encoder
    if encoders == "auto" or gpus_per_encoder == "auto":
        raise ConfigError(
            "runtime.encoders and runtime.gpus_per_encoder must be numbers on Kubernetes, where pods are requested "
            "before there is a cluster to look at; for instance runtime.encoders=4 runtime.gpus_per_encoder=1 (0 = CPU)"
        )
    gpus = math.ceil(gpus_per_encoder)
    encoders_per_pod = int(gpus / gpus_per_encoder + 1e-9) if gpus_per_encoder else 1
    blocks_gib = BLOCKS_IN_FLIGHT * config.output.rows_per_part * BYTES_PER_ROW / 2**30
    memory_gib = LEAST_GIB + OBJECT_STORE_GIB + GIB_PER_ENCODER * encoders_per_pod + math.ceil(blocks_gib)
    return Pods(math.ceil(encoders / encoders_per_pod), gpus, memory_gib)


def once(run: Run) -> list[Manifest]:
    """Return the RayJob of one run and what belongs to it; the RayJob stands first."""
    rayjob = _object("ray.io/v1", "RayJob", run, rayjob_spec(run))
    return [rayjob, _config_map(run), _disruption_budget(run)]


def every_night(run: Run) -> list[Manifest]:
    """Return a RayCronJob (alpha in KubeRay 1.6, behind a feature gate) and what belongs to it."""
    spec = {"schedule": run.schedule, "jobTemplate": rayjob_spec(run)}
    return [_config_map(run), _disruption_budget(run), _object("ray.io/v1", "RayCronJob", run, spec)]


def every_night_by_cron(run: Run) -> list[Manifest]:
    """Return a plain CronJob whose pod submits the RayJob of the night, with the rights to do that and no more."""
    rights = [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "delete", "get"]},
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]},
        {"apiGroups": ["policy"], "resources": ["poddisruptionbudgets"], "verbs": ["create"]},
    ]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": run.name}
    subject = {"kind": "ServiceAccount", "name": run.name, "namespace": run.namespace}
    return [
        _config_map(run),
        {**_object("v1", "ServiceAccount", run), "automountServiceAccountToken": False},
        {**_object("rbac.authorization.k8s.io/v1", "Role", run), "rules": rights},
        {**_object("rbac.authorization.k8s.io/v1", "RoleBinding", run), "roleRef": role, "subjects": [subject]},
        _object("batch/v1", "CronJob", run, _cron_spec(run)),
    ]


def rayjob_spec(run: Run) -> Manifest:
    """Return a RayJob that starts a cluster of its own, runs the command on it, and removes it.

    A run that fails is tried again on a new cluster: it goes on where the Journal ends.
    """
    return {
        "entrypoint": shlex.join(["python", "-m", "jobs", run.command, f"{CONFIG_FOLDER}/{CONFIG_FILE}", *run.options]),
        "submissionMode": "K8sJobMode",
        "backoffLimit": 2,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "metadata": {"command": run.command, "output": run.output},
        "rayClusterSpec": {
            "rayVersion": version("ray"),
            "authOptions": {"mode": "token"},
            "enableInTreeAutoscaling": True,
            "autoscalerOptions": {"upscalingMode": "Default", "idleTimeoutSeconds": 120},
            "headGroupSpec": {
                "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
                "template": _pod(run, "head", cpus=2, memory_gib=LEAST_GIB + OBJECT_STORE_GIB),
            },
            "workerGroupSpecs": _worker_groups(run),
        },
    }


def _worker_groups(run: Run) -> list[Manifest]:
    """Return the pods that encode, all from the start, and those that read and write, by need."""
    pods = pods_of(run.config)
    encoding = _pod(run, "encoder", CPUS_PER_POD, pods.memory_gib, pods.gpus)
    others = _pod(run, "stages", CPUS_PER_POD, pods.memory_gib - GIB_PER_ENCODER)
    fewest = 1 if pods.gpus else 0
    return [
        _group("encoders", encoding, pods.encoding, pods.encoding),
        _group("stages", others, fewest, max(2, 2 * pods.encoding)),
    ]


def _group(name: str, template: Manifest, fewest: int, most: int) -> Manifest:
    return {
        "groupName": name,
        "replicas": fewest,
        "minReplicas": fewest,
        "maxReplicas": most,
        "rayStartParams": {"object-store-memory": str(OBJECT_STORE_GIB * 2**30)},
        "template": template,
    }


def _pod(run: Run, component: str, cpus: int, memory_gib: int, gpus: int = 0) -> Manifest:
    """Return a pod: never root, its model cache on the node's disk, config and secrets by reference."""
    resources: Manifest = {"cpu": str(cpus), "memory": f"{memory_gib}Gi"} | ({GPU: str(gpus)} if gpus else {})
    limits = {name: value for name, value in resources.items() if name != "cpu"}
    container = {
        "name": f"ray-{'head' if component == 'head' else 'worker'}",
        "image": run.image,
        "env": [{"name": "BATCH_EMBEDDINGS_CACHE", "value": CACHE_FOLDER}],
        "envFrom": [{"secretRef": {"name": run.secret}}],
        "resources": {"requests": resources, "limits": limits},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
            {"name": "cache", "mountPath": CACHE_FOLDER},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }
    spec: Manifest = {
        "containers": [container],
        "securityContext": _user(),
        "terminationGracePeriodSeconds": 60,
        "volumes": [
            {"name": "config", "configMap": {"name": run.name}},
            {"name": "cache", "emptyDir": {}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": f"{OBJECT_STORE_GIB}Gi"}},
        ],
    }
    if gpus:
        spec["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    return {"metadata": {"labels": _labels(run, component)}, "spec": spec}


def _cron_spec(run: Run) -> Manifest:
    options = ["--kubernetes", "--namespace", run.namespace, "--image", run.image, "--secret", run.secret, "--no-wait"]
    behind = ["--", *run.options] if run.options else []
    container = {
        "name": "submit",
        "image": run.image,
        "command": ["python", "-m", "jobs", "submit", run.command, f"{CONFIG_FOLDER}/{CONFIG_FILE}", *options, *behind],
        "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True}],
    }
    pod = {
        "serviceAccountName": run.name,
        "automountServiceAccountToken": True,
        "restartPolicy": "Never",
        "securityContext": _user(),
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": run.name}}],
    }
    return {
        "schedule": run.schedule,
        "timeZone": "Etc/UTC",
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": 3600,
        "jobTemplate": {
            "spec": {
                "backoffLimit": 2,
                "template": {"metadata": {"labels": _labels(run, "submit")}, "spec": pod},
            }
        },
    }


def _config_map(run: Run) -> Manifest:
    return {**_object("v1", "ConfigMap", run), "data": {CONFIG_FILE: run.config_text}}


def _disruption_budget(run: Run) -> Manifest:
    """Keep the head, with which the run would end; of workers any may go, and what they did is done again."""
    spec = {"minAvailable": 1, "selector": {"matchLabels": _labels(run, "head")}}
    return _object("policy/v1", "PodDisruptionBudget", run, spec)


def _object(api_version: str, kind: str, run: Run, spec: Manifest | None = None) -> Manifest:
    metadata = {"name": run.name, "namespace": run.namespace, "labels": _labels(run)}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata} | ({"spec": spec} if spec else {})


def _labels(run: Run, component: str = "") -> dict[str, str]:
    named = {"app.kubernetes.io/component": component} if component else {}
    return LABELS | {"app.kubernetes.io/instance": run.name} | named


def _user() -> Manifest:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
