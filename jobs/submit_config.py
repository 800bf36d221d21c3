"""What a submitted run is given: its command, and its config as text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import JobConfig
from pipeline.config_file import load_config
from pipeline.errors import ConfigError

COMMANDS = ("embed", "nightly", "requeue", "features", "plan", "tune")
"""What can be submitted: the commands that take a config."""


def wanted(words: Sequence[str]) -> tuple[str, JobConfig, list[str]]:
    """Return what is to be run: the command, its config, and its arguments with `-` where the config stands.

    Raises:
        ConfigError: command or config are missing or wrong; also where the config names a path of this machine alone.
    """
    if len(words) < 2 or words[0] not in COMMANDS:
        raise ConfigError(
            f"expected a command ({', '.join(COMMANDS)}) and a config: python -m jobs submit embed job.yaml; its own "
            "options stand behind --: submit nightly job.yaml -- --allow-deletes"
        )
    command, path, rest = words[0], words[1], list(words[2:])
    options = [word for word in rest if word.startswith("-")]
    config = load_config(path, [word for word in rest if not word.startswith("-")])
    for key, uri in _addresses(config).items():
        if "://" not in uri and not Path(uri).is_absolute() and key != "recipe.model":
            raise ConfigError(f"{key} is {uri!r}, which is a path below this folder; the nodes need an address or /…")
    return command, config, [command, "-", *options]


def _addresses(config: JobConfig) -> dict[str, str]:
    sources = {f"source.uri[{number}]": uri for number, uri in enumerate(config.source.uri)}
    tables = {"features.uri": config.features.uri} if config.features else {}
    return sources | {"output.uri": config.output.uri} | tables


def config_text(config: JobConfig) -> str:
    """Return a config as YAML with what was set in it, for a run inside a cluster, which knows its own address."""
    values: dict[str, Any] = config.model_dump(mode="json", exclude_unset=True)
    values.get("runtime", {}).pop("ray_address", None)
    text: str = yaml.safe_dump(values, allow_unicode=True, sort_keys=False)
    return text
