"""What a submitted run is given: its command, and its config as text."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import JobConfig
from pipeline.config_file import load_config
from pipeline.errors import ConfigError

COMMANDS = ("embed", "nightly", "requeue", "features", "plan", "tune", "evaluate", "train")
"""What can be submitted: the commands that take a config."""


OVERRIDE = re.compile(r"[a-z_]+\.[a-z_]+=")

SECTIONS = {"features": "features", "evaluate": "evaluation", "train": "training"}
"""By command: the section of a config that says where its results go, if that is not `output`."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be run on a cluster."""

    command: str
    options: tuple[str, ...]
    """Of the command itself."""
    config: JobConfig
    output: str
    """Where its results go."""


def wanted(words: Sequence[str], options: Sequence[str] = ()) -> Wanted:
    """Return what is asked for.

    Args:
        words: command, config and overrides.
        options: of the command itself, passed on as they are.

    Raises:
        ConfigError: command or config are missing or wrong; also where the config names a path of this machine alone.
    """
    if len(words) < 2 or words[0] not in COMMANDS:
        raise ConfigError(
            f"expected a command ({', '.join(COMMANDS)}) and a config: python -m jobs submit embed job.yaml; its own "
            "options stand behind --: submit nightly job.yaml -- --allow-deletes"
        )
    if behind := next((word for word in options if OVERRIDE.match(word)), None):
        raise ConfigError(f"{behind} changes the config and stands before --, not behind it")
    command, path, *overrides = words
    config = load_config(path, overrides)
    name = SECTIONS.get(command, "output")
    if (section := getattr(config, name)) is None:
        raise ConfigError(f"{command} needs the section {name}, which {path} lacks")
    for key, uri in addresses(command, config):
        if "://" not in uri and not Path(uri).is_absolute():
            raise ConfigError(f"{key} is {uri!r}, which is a path below this folder; the nodes need an address or /…")
    return Wanted(command, tuple(options), config, section.uri)


def addresses(command: str, config: JobConfig) -> Iterator[tuple[str, str]]:
    """Yield every key that names a place for this command, and the place."""
    yield from ((f"source.uri[{number}]", uri) for number, uri in enumerate(config.source.uri))
    yield "output.uri", config.output.uri
    if Path(config.recipe.model).is_dir():  # else a name on the hub
        yield "recipe.model", config.recipe.model
    if config.gate:
        yield "gate.canary", config.gate.canary
    if command == "features" and config.features:
        yield "features.uri", config.features.uri
        if config.features.centroids:
            yield "features.centroids", config.features.centroids
    if command == "train" and config.training:
        yield "training.uri", config.training.uri
        yield from (("training.sets", uri) for examples in config.training.sets for uri in examples.uri)
    if command == "evaluate" and config.evaluation:
        yield "evaluation.uri", config.evaluation.uri
        for key in ("mirror", "reference"):
            if uri := getattr(config.evaluation, key):
                yield f"evaluation.{key}", uri


def config_text(config: JobConfig) -> str:
    """Return a config as YAML with what was set in it, for a run inside a cluster, which knows its own address."""
    values: dict[str, Any] = config.model_dump(mode="json", exclude_unset=True)
    values.get("runtime", {}).pop("ray_address", None)
    text: str = yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
    return text
