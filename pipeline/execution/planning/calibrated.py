"""The calibration that an output has: found again every night, never made anew while a Snapshot stands on it."""

import re
from dataclasses import replace
from typing import Any

import orjson

from pipeline.config import Recipe
from pipeline.encoder.calibration import FACTS_FILE, MODEL_FILE, WITNESS_FILE
from pipeline.errors import ConfigError, StorageError
from pipeline.execution.planning.model import Calibration, ModelReference, facts_of, fingerprint_of_facts
from pipeline.storage.filesystem import Store
from pipeline.storage.snapshots import Snapshot

FOLDER = "_meta/calibrations"
FILES = {MODEL_FILE, MODEL_FILE.replace(".xml", ".bin"), FACTS_FILE, WITNESS_FILE}


WAYS_OUT = (
    "restore it, name a copy of it in recipe.calibration, or embed anew into another output.uri: another calibration "
    "would make other vectors"
)


def with_calibration(store: Store, recipe: Recipe, model: ModelReference, parent: Snapshot | None) -> ModelReference:
    """Return the model with the calibration that the recipe names or the output has; without, if it has none yet.

    Raises:
        ConfigError: the recipe names one that is none.
        StorageError: the Snapshot that stands was made with one that is gone.
    """
    if recipe.compute != "int8":
        return model
    if recipe.calibration:
        folder, _, identity = recipe.calibration.rstrip("/").rpartition("/")
        if not re.fullmatch("[0-9a-f]{32}", identity) or not _is_whole(Store(folder or "."), identity):
            raise ConfigError(
                f"recipe.calibration: {recipe.calibration} is no calibration, which is a folder "
                f"<output.uri>/{FOLDER}/<32 hex characters> of an output with compute: int8"
            )
        return replace(model, calibration=Calibration(recipe.calibration.rstrip("/"), identity))
    standing = standing_of(store, recipe, model)
    if standing is None:
        _refuse_another(store, recipe, model, parent)
        return model
    identity = standing["identity"]
    if not _is_whole(store, f"{FOLDER}/{identity}"):
        raise StorageError(f"{store.uri_of(f'{FOLDER}/{identity}')}: files of this calibration are gone; {WAYS_OUT}")
    return replace(model, calibration=Calibration(store.uri_of(f"{FOLDER}/{identity}"), identity))


def told_of(store: Store, recipe: Recipe, model: ModelReference) -> dict[str, Any] | None:
    """Return `identity` of the model's calibration, and what making it took if this output has made it."""
    if model.calibration is None:
        return None
    standing = standing_of(store, recipe, replace(model, calibration=None)) or {}
    identity = model.calibration.identity
    return standing if standing.get("identity") == identity else {"identity": identity}


def standing_of(store: Store, recipe: Recipe, model: ModelReference) -> dict[str, Any] | None:
    """Return what an output says of the calibration of a recipe: `identity`, and what making it took."""
    content = store.read(pointer_key(recipe, model))
    return orjson.loads(content) if content is not None else None


def pointer_key(recipe: Recipe, model: ModelReference) -> str:
    """Return where an output says which calibration a recipe has."""
    return f"{FOLDER}/{_uncalibrated(facts_of(recipe, model))}.json"


def is_gone(store: Store, model: ModelReference) -> bool:
    """Whether the model has a calibration of this output, and its files are not there."""
    if model.calibration is None or model.calibration.uri != store.uri_of(f"{FOLDER}/{model.calibration.identity}"):
        return False
    return not _is_whole(store, f"{FOLDER}/{model.calibration.identity}")


def _refuse_another(store: Store, recipe: Recipe, model: ModelReference, parent: Snapshot | None) -> None:
    gone = parent.recipe.get("calibration_identity") if parent else None
    if parent and gone and _uncalibrated(parent.recipe) == _uncalibrated(facts_of(recipe, model)):
        raise StorageError(
            f"{store.uri}: snapshot {parent.number} was made with calibration {gone}, which this output does not name "
            f"any more in {pointer_key(recipe, model)}; {WAYS_OUT}"
        )


def _uncalibrated(facts: dict[str, Any]) -> str:
    return fingerprint_of_facts({name: value for name, value in facts.items() if name != "calibration_identity"})


def _is_whole(store: Store, folder: str) -> bool:
    return {key.rpartition("/")[2] for key in store.files(folder)} >= FILES
