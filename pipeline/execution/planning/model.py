"""Which model a recipe means, by content and not by address, and how a node gets it."""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.encoder.calibration import facts_of as facts_of_calibration
from pipeline.encoder.describe import ModelDescription, describe_model, hashing_description
from pipeline.encoder.protocol import Encoder
from pipeline.errors import ConfigError, EncoderError, StorageError
from pipeline.fingerprint import fingerprint
from pipeline.storage.folder_cache import (
    cache_root,
    fetch_folder,
    local_folder_identity,
    remote_folder_identity,
)

if TYPE_CHECKING:  # a process that only encodes reads no config
    from pipeline.config import Recipe

HASHING = "hashing://"
HUB_IGNORED = ["onnx/*", "openvino/*", "*.onnx", "*.h5", "*.msgpack", "*.ot", "*.gguf"]
"""Files of a hub repository that the torch engine does not read."""

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A model, pinned: the same reference gives the same vectors on every node and every day."""

    kind: Literal["hashing", "local", "remote", "hub"]
    address: str
    identity: str
    """hashing: the dimension; local, remote: fingerprint of the folder; hub: `<id>@<commit>`."""
    trust_remote_code: bool
    allow_pickled_weights: bool
    calibration: "Calibration | None" = None
    """Of an int8 recipe; None = not made yet."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The quantised body of a model, pinned."""

    uri: str
    identity: str
    """Fingerprint of its files, and the name of its folder."""


def resolve_model(recipe: "Recipe") -> ModelReference:
    """Pin the model of a recipe by looking at it, without loading it.

    Raises:
        EncoderError: there is no such model, or it cannot be reached.
        ConfigError: the address means nothing.
    """
    rights = (recipe.trust_remote_code, recipe.allow_pickled_weights)
    address = recipe.model.removeprefix("file://")
    if address.startswith(HASHING):
        dimension = address.removeprefix(HASHING)
        if not dimension.isdigit() or int(dimension) < 1:
            raise ConfigError(f"recipe.model is {address}; expected hashing://<dimension>, for instance hashing://512")
        return ModelReference("hashing", address, f"hashing-1-{dimension}", *rights)
    try:
        if "://" in address:
            return ModelReference("remote", address, remote_folder_identity(address), *rights)
        path = Path(address).expanduser()
        if path.is_dir() or address.startswith((".", "/", "~")) or address.count("/") != 1:
            return ModelReference("local", str(path.resolve()), local_folder_identity(path), *rights)
    except StorageError as error:
        hint = "" if "/" in address else " (a hub id looks like owner/name)"
        raise EncoderError(f"recipe.model: {error}{hint}") from error
    if not HUB_ID.fullmatch(address):
        raise ConfigError(
            f"recipe.model is {address}: no folder here, and no hub id, which looks like owner/name; an address begins "
            "with its scheme: s3://, hashing://"
        )
    return ModelReference("hub", address, f"{address}@{_hub_commit(address, recipe.revision)}", *rights)


def _hub_commit(repository: str, revision: str | None) -> str:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        return str(HfApi().model_info(repository, revision=revision, timeout=20).sha)
    except RevisionNotFoundError as error:
        raise EncoderError(f"recipe.revision: {repository} has no revision {revision} on the hub") from error
    except RepositoryNotFoundError as error:
        raise EncoderError(
            f"recipe.model: {repository} is no folder here and no repository on the hub that you may read"
        ) from error
    except Exception as error:
        if revision is not None:  # without one, the newest in the cache could be an older model than yesterday's
            with suppress(OSError, ValueError):
                return Path(snapshot_download(repository, revision=revision, local_files_only=True)).name
        raise EncoderError(
            f"recipe.model: {repository} is no folder here and the hub does not answer ({type(error).__name__}); set "
            "recipe.revision to a commit in the local hub cache, or copy the model to a folder or bucket and name that"
        ) from error


def local_folder(model: ModelReference) -> Path:
    """Return the model's folder on this node, fetching it once if it lies elsewhere.

    Raises:
        EncoderError: it cannot be had here.
    """
    try:
        if model.kind == "remote":
            return fetch_folder(model.address, model.identity)
        if model.kind == "hub":
            from huggingface_hub import snapshot_download

            repository, _, commit = model.identity.partition("@")
            return Path(snapshot_download(repository, revision=commit, ignore_patterns=HUB_IGNORED))
    except (StorageError, OSError) as error:
        raise EncoderError(f"recipe.model: {error}") from error
    return Path(model.address)


def calibration_folder(model: ModelReference) -> Path:
    """Return the calibration's folder on this node, fetching it once.

    Raises:
        EncoderError: there is none, it cannot be had, or it is another one or one of another model.
    """
    if model.calibration is None:
        raise EncoderError("recipe.compute: int8 has no calibration yet; `embed` makes it with its first run")
    uri = model.calibration.uri
    try:
        folder = fetch_folder(uri, remote_folder_identity(uri), "calibrations")
    except StorageError as error:
        raise EncoderError(f"the calibration of recipe.compute: int8: {error}") from error
    if local_folder_identity(folder) != model.calibration.identity:
        raise EncoderError(f"{uri} holds other files than this calibration had when it was made; restore it")
    if facts_of_calibration(folder).model != model.identity:
        raise EncoderError(f"{uri} is a calibration of another model than this one ({model.identity})")
    return folder


def describe(model: ModelReference) -> ModelDescription:
    """Return what planners and tokenising workers must know of the model; asked once per machine and model."""
    if model.kind == "hashing":
        return hashing_description(int(model.address.removeprefix(HASHING)))
    name = fingerprint(["description-1", model.identity, *map(version, ("sentence-transformers", "transformers"))])
    return describe_model(
        str(local_folder(model)),
        cache_root() / "descriptions" / f"{name}.json",
        model.trust_remote_code,
        model.allow_pickled_weights,
    )


def open_encoder(
    model: ModelReference, compute: str, prompt: str, threads: int, engine: str = "torch", device: str = "auto"
) -> Encoder:
    """Load the model on this node's device.

    Args:
        compute: float32 | bfloat16 | float16 | int8.
        prompt: stands before every text; some models leave it out of the pooling.
        threads: CPU threads of a forward pass.
        engine: torch | torch-compile | openvino | onnx.
        device: cpu | auto; auto = a GPU where this process sees one.

    Raises:
        EncoderError: the model cannot be loaded, or not with this engine.
    """
    if model.kind == "hashing":
        from pipeline.encoder.hashing import HashingEncoder

        return HashingEncoder(int(model.address.removeprefix(HASHING)))
    # Read when torch is loaded. Threads that spin while they wait cost 3x where encoders and stages share cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from pipeline.encoder.sentence_transformer import SentenceTransformerEncoder

    rights: dict[str, Any] = {
        "trust_remote_code": model.trust_remote_code,
        "allow_pickled_weights": model.allow_pickled_weights,
        "engine": engine,
        "device": device,
    }
    if compute == "int8":
        rights["calibration"] = str(calibration_folder(model))
    load: Callable[..., Encoder] = SentenceTransformerEncoder
    return load(str(local_folder(model)), compute, prompt, threads, **rights)


def facts_of(recipe: "Recipe", model: ModelReference) -> dict[str, Any]:
    """Return a recipe as it stands in files and snapshots: its fields, and which model and calibration it meant."""
    facts = recipe.model_dump(mode="json") | {"identity": model.identity}
    return facts | ({"calibration_identity": model.calibration.identity} if model.calibration else {})


def recipe_fingerprint(recipe: "Recipe", model: ModelReference) -> str:
    """Return the fingerprint of all that decides what a vector is; addresses are not part of it."""
    return fingerprint_of_facts(facts_of(recipe, model))


def fingerprint_of_facts(facts: dict[str, Any]) -> str:
    """Return the fingerprint of a recipe as it stands in files and snapshots, see `facts_of`."""
    addresses = ("model", "revision", "identity", "calibration")
    decisive = {name: value for name, value in facts.items() if name not in addresses}
    return fingerprint(decisive | {"model": facts["identity"]})
