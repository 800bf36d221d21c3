"""What manifests and compose.yaml must satisfy: schemas that packages carry, fetched by checksum; KubeRay's fields."""

import json
import re
from functools import cache
from typing import Any

from jsonschema.validators import Draft202012Validator
from referencing import Registry, Resource

from jobs.demo.downloads import Download, cache_folder, fetch, zip_member

KUBERNETES = Download(
    requirement="kubernetes-validate==1.37.0",
    file_name="kubernetes_validate-1.37.0-py3-none-any.whl",
    sha256="85136d018a27b50ec7fc049d902bfa5193f5976807e6c0f408e3ab6fe078cad9",
)
KUBERNETES_FOLDER = "kubernetes_validate/kubernetes-json-schema/v1.37.0-local-strict"
COMPOSE = Download(
    requirement="check-jsonschema==0.39.0",
    file_name="check_jsonschema-0.39.0-py3-none-any.whl",
    sha256="14ce5c94871c551268ea948ffe21e9f1464dc48fb20bf9a4c13deeaaf756cf9b",
)
COMPOSE_FILE = "check_jsonschema/builtin_schemas/vendor/compose-spec.json"

Schema = dict[str, Any]


def _kubernetes_type(name: str) -> Schema:
    return {"$ref": f"https://kubernetes.io/api/_definitions.json#/$defs/io.k8s.{name}"}


def _object(*required: str, **fields: Schema) -> Schema:
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
POD = _kubernetes_type("api.core.v1.PodTemplateSpec")
WORKERS = _object(
    *("groupName", "minReplicas", "maxReplicas", "template"),
    groupName=TEXT,
    minReplicas=WHOLE,
    maxReplicas=WHOLE,
    replicas=WHOLE,
    rayStartParams=TEXTS,
    template=POD,
)
AUTOSCALER = _object(
    idleTimeoutSeconds=WHOLE,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    resources=_kubernetes_type("api.core.v1.ResourceRequirements"),
)
CLUSTER = _object(
    "headGroupSpec",
    authOptions=_object(mode={"enum": ["disabled", "token"]}, secretName=TEXT),
    autoscalerOptions=AUTOSCALER,
    enableInTreeAutoscaling=FLAG,
    headGroupSpec=_object("template", rayStartParams=TEXTS, template=POD),
    rayVersion=TEXT,
    workerGroupSpecs={"type": "array", "items": WORKERS},
)
RUN = _object(
    activeDeadlineSeconds=WHOLE,
    backoffLimit=WHOLE,
    entrypoint=TEXT,
    metadata=TEXTS,
    rayClusterSpec=CLUSTER,
    shutdownAfterJobFinishes=FLAG,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    submitterPodTemplate=POD,
    suspend=FLAG,
    ttlSecondsAfterFinished=WHOLE,
)
SPECS = {
    "RayCluster": CLUSTER,
    "RayCronJob": _object("jobTemplate", "schedule", jobTemplate=RUN, schedule=TEXT, suspend=FLAG),
    "RayJob": RUN,
}
"""Of ray.io/v1: the fields that are used here or could be, with types, choices and what is required, noted in November
2026 from KubeRay's resource definitions and Go types: no package of a registry carries these."""


def errors_of(manifest: Schema) -> list[str]:
    """Return what is wrong with a Kubernetes object, each with its place; a field that does not exist is wrong."""
    kind, api_version = manifest["kind"], manifest["apiVersion"]
    if api_version == "ray.io/v1":
        metadata = _kubernetes_type("apimachinery.pkg.apis.meta.v1.ObjectMeta")
        named = {"apiVersion": TEXT, "kind": TEXT, "metadata": metadata}
        schema = _object("apiVersion", "kind", "metadata", "spec", **named, spec=SPECS[kind])
    else:
        group = re.sub(r"^([^./]+)(\.[^/]*)?/", r"\1-", api_version)
        schema = _schema(KUBERNETES, f"{KUBERNETES_FOLDER}/{kind.lower()}-{group}.json")
    return _errors(Draft202012Validator(schema, registry=_kubernetes_types()), manifest)


def errors_of_compose(services: Schema) -> list[str]:
    """Return what is wrong with a Compose file, each with its place."""
    return _errors(Draft202012Validator(_schema(COMPOSE, COMPOSE_FILE)), services)


def _errors(validator: Draft202012Validator, value: Schema) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]


@cache
def _kubernetes_types() -> Registry[Schema]:
    types: Resource[Schema] = Resource.from_contents(_schema(KUBERNETES, f"{KUBERNETES_FOLDER}/_definitions.json"))
    return types @ Registry()


@cache
def _schema(package: Download, name: str) -> Schema:
    schema: Schema = json.loads(zip_member(fetch(package, cache_folder()), name))
    return schema
