"""`submit --kubernetes`: render the objects of a run, and with the official client create them."""

import argparse
import json
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Any

import yaml

from jobs.manifests import Manifest, Run, every_night, every_night_by_cron, once
from jobs.submit_config import addresses, config_text, wanted
from pipeline.errors import ConfigError, PipelineError, SnapshotConflict
from pipeline.fingerprint import fingerprint
from pipeline.optional import library

RENDER: dict[str, Callable[[Run], list[Manifest]]] = {
    "rayjob": once,
    "raycronjob": every_night,
    "cronjob": every_night_by_cron,
}
NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
"""A DNS label, short enough for what KubeRay appends to it."""
FIELD_MANAGER = "batch-embeddings"
CONFLICT = 409


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit code."""
    asked = asked_run(options, datetime.now(UTC).date())
    manifests = RENDER[options.kubernetes](asked)
    if options.dry_run:
        print(rendered(manifests, options.json), end="")
        return 0
    created = create(_client(), manifests)
    out = sys.stderr if options.json else sys.stdout
    for manifest in manifests:
        print(f"{manifest['kind']:<20} {manifest['metadata']['name']}", file=out)
    if options.kubernetes == "rayjob":
        print(f"watch it             kubectl --namespace {asked.namespace} get rayjob {asked.name} --watch", file=out)
    if options.json:
        print(json.dumps({"name": asked.name, "namespace": asked.namespace, "created": created}))
    return 0


def asked_run(options: argparse.Namespace, night: date) -> Run:
    """Return the run that the arguments ask for.

    Raises:
        ConfigError: command, config or name are wrong, or no image is named.
    """
    asked = wanted(options.words, options.remote)
    for key, uri in addresses(asked.command, asked.config):
        if "://" not in uri and key != "recipe.model":  # which an image may hold
            raise ConfigError(f"{key} is {uri!r}, a folder that no pod has; give an address on object storage")
    if not options.image:
        raise ConfigError("--kubernetes needs --image, built of docker/Dockerfile: pods run the code that is in it")
    dated = [night.strftime("%Y%m%d")] if options.kubernetes == "rayjob" else []
    of_output = fingerprint([asked.command, asked.output.rstrip("/")])[:8]
    name = options.name or "-".join([asked.command, of_output, *dated])
    if not NAME.fullmatch(name):
        raise ConfigError(f"--name {name!r}: Kubernetes wants at most 40 small letters, digits and dashes")
    return Run(
        name=name,
        command=asked.command,
        options=asked.options,
        config=asked.config,
        output=asked.output,
        config_text=config_text(asked.config),
        image=options.image,
        namespace=options.namespace,
        secret=options.secret,
        schedule=options.schedule,
    )


def rendered(manifests: list[Manifest], as_json: bool = False) -> str:
    """Return the objects as YAML documents that `kubectl apply -f -` takes, or as one List in JSON."""
    if as_json:
        return json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}) + "\n"
    text: str = yaml.dump_all(manifests, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)
    return text


def create(client: Any, manifests: list[Manifest]) -> list[str]:
    """Create a RayJob and what it owns, or bring the objects of a schedule up to date; return their kinds.

    What a RayJob needs is deleted together with it. It is created first: of two submissions of a night one wins. Where
    the rest cannot be created it is deleted again, or its pods would wait for what never comes, and the night be taken.

    Args:
        client: a `kubernetes.dynamic.DynamicClient`.

    Raises:
        SnapshotConflict: the RayJob is there already.
        PipelineError: the cluster refuses.
    """
    owners: list[Manifest] = []
    for manifest in manifests:
        try:
            owners += _created(client, manifest, owners)
        except PipelineError:
            for owner in owners:
                _delete(client, owner, manifest["metadata"]["namespace"])
            raise
    return [manifest["kind"] for manifest in manifests]


def _created(client: Any, manifest: Manifest, owners: list[Manifest]) -> list[Manifest]:
    """Create an object; return a RayJob as the owner of what follows it, and of any other object nothing."""
    from kubernetes.client.exceptions import ApiException
    from kubernetes.dynamic.exceptions import ResourceNotFoundError
    from urllib3.exceptions import HTTPError

    kind, name, namespace = manifest["kind"], manifest["metadata"]["name"], manifest["metadata"]["namespace"]
    try:
        resource = client.resources.get(api_version=manifest["apiVersion"], kind=kind)
        if kind == "RayJob":
            made = resource.create(body=manifest, namespace=namespace)
            return [{"apiVersion": manifest["apiVersion"], "kind": kind, "name": name, "uid": made.metadata.uid}]
        if owners:
            metadata = {**manifest["metadata"], "ownerReferences": owners}
            resource.create(body={**manifest, "metadata": metadata}, namespace=namespace)
        else:
            resource.server_side_apply(body=manifest, name=name, namespace=namespace, field_manager=FIELD_MANAGER)
    except ResourceNotFoundError as error:
        raise PipelineError(
            f"the Kubernetes cluster knows no {kind} of {manifest['apiVersion']}; install KubeRay 1.6 or newer (for a "
            "RayCronJob with its feature gate)"
        ) from error
    except ApiException as error:
        if error.status == CONFLICT and kind == "RayJob":
            raise SnapshotConflict(
                f"RayJob {namespace}/{name} is there already: kubectl --namespace {namespace} describe rayjob "
                f"{name}; --name submits another one, deleting it submits this one again"
            ) from error
        raise PipelineError(f"Kubernetes refuses {kind} {namespace}/{name}: {error.reason}") from error
    except HTTPError as error:
        raise PipelineError(f"Kubernetes does not answer for {kind} {namespace}/{name}: {error}") from error
    return []


def _delete(client: Any, owner: Manifest, namespace: str) -> None:
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    with suppress(ApiException, HTTPError):  # what hindered the creation may hinder this too, and is told
        resource = client.resources.get(api_version=owner["apiVersion"], kind=owner["kind"])
        resource.delete(name=owner["name"], namespace=namespace)


def _client() -> Any:
    library("kubernetes", "kubernetes", "creating objects (--dry-run prints them for kubectl)")
    from kubernetes import client, config, dynamic
    from urllib3.exceptions import HTTPError

    try:
        config.load_config()
        return dynamic.DynamicClient(client.ApiClient())
    except (config.ConfigException, client.ApiException, HTTPError) as error:
        raise PipelineError(
            f"no Kubernetes cluster can be reached with $KUBECONFIG or ~/.kube/config: {error}"
        ) from error


class _Plain(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and everything in full, without anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Plain.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)
