"""From a YAML file and `section.key=value` arguments to a JobConfig, with errors that name file and line."""

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipeline.config import JobConfig, Output
from pipeline.errors import ConfigError, in_a_line

STDIN = "-"

Where = dict[tuple[str, ...], str]
"""From a key's path to the place that set it: `file:line`, or the argument."""


def load_config(path: str, overrides: Sequence[str] = ()) -> JobConfig:
    """Read, override and validate a config.

    Args:
        path: a YAML file with the sections source, recipe, output and runtime; `-` is standard input.
        overrides: `section.key=value`, the value in YAML; the last one of a key wins.

    Raises:
        ConfigError: one line per mistake, each with its place, what was expected and the nearest valid key.
    """
    values, where = _parse(path)
    for override in overrides:
        _apply(override, values, where)
    try:
        return JobConfig.model_validate(values)
    except ValidationError as error:
        lines = [_explain(details, where, path) for details in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def output_of(address: str, overrides: Sequence[str] = ()) -> Output:
    """Return the output that an argument means: that of a config file (.yaml, .yml), else the one at this address.

    Raises:
        ConfigError: as `load_config`.
    """
    if address.endswith((".yaml", ".yml")):
        return load_config(address, overrides).output
    return Output.model_construct(uri=address)


def valid_keys() -> list[str]:
    """Return every key a config can hold, as `section.key`, in the order of the models."""
    return [f"{name}.{key}" for name, section in sections().items() for key in section.model_fields]


def sections() -> dict[str, type[BaseModel]]:
    """Return the model of every section of a config, those that may be left out included."""
    found = {name: get_args(field.annotation) or (field.annotation,) for name, field in JobConfig.model_fields.items()}
    return {name: types[0] for name, types in found.items() if types[0] is not None}


def _parse(path: str) -> tuple[dict[str, Any], Where]:
    try:
        text = sys.stdin.read() if path == STDIN else Path(path).read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {in_a_line(error)}") from None
    if not isinstance(values, dict) or not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{path}: expected the sections {', '.join(JobConfig.model_fields)}; found no mapping")
    where: Where = {}
    _note_lines(root, (), path, where)
    return values, where


def _note_lines(node: yaml.MappingNode, prefix: tuple[str, ...], path: str, where: Where) -> None:
    for key, value in node.value:
        at = (*prefix, str(key.value))
        if at in where:
            raise ConfigError(f"{path}:{key.start_mark.line + 1}: {'.'.join(at)} is set twice ({where[at]})")
        where[at] = f"{path}:{key.start_mark.line + 1}"
        if isinstance(value, yaml.MappingNode):
            _note_lines(value, at, path, where)


def _apply(override: str, values: dict[str, Any], where: Where) -> None:
    key, separator, text = override.partition("=")
    section, dot, name = key.partition(".")
    if not separator or not dot or not name:
        raise ConfigError(f"argument {override!r}: expected section.key=value, for instance runtime.encoders=2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"argument {override!r}: the value is not valid YAML; quote it") from None
    if not isinstance(values.setdefault(section, {}), dict):
        values[section] = {}
    values[section][name] = value
    where[(section, name)] = f"argument {key}"


def _explain(details: ErrorDetails, where: Where, path: str) -> str:
    location = tuple(str(step) for step in details["loc"])
    key = _longest_known(location, where)
    place = where.get(key, path)
    name = ".".join(location[: max(len(key), min(2, len(location)))])
    if details["type"] == "extra_forbidden":
        return f"{place}: unknown key {name}{_suggestion(location)}"
    if details["type"] == "missing":
        return f"{place}: {name} is missing"
    message = details["msg"].removeprefix("Value error, ")
    return f"{place}: {name}: {message}" if name else f"{place}: {message}"


def _longest_known(location: tuple[str, ...], where: Where) -> tuple[str, ...]:
    return next((location[:end] for end in range(len(location), 0, -1) if location[:end] in where), ())


def _suggestion(location: tuple[str, ...]) -> str:
    known = valid_keys()
    wanted = ".".join(location)
    if len(location) == 1:
        near = difflib.get_close_matches(wanted, JobConfig.model_fields, 1, 0.5)
        meant = f"; did you mean {near[0]}?" if near else ""
        return f"{meant}; the sections are {', '.join(JobConfig.model_fields)}"
    elsewhere = [key for key in known if key.split(".")[1] == location[-1]]
    in_section = [key for key in known if key.startswith(f"{location[0]}.")]
    close = elsewhere or difflib.get_close_matches(wanted, in_section, 1, 0.5)
    close = close or difflib.get_close_matches(wanted, known, 1, 0.0)
    return f"; did you mean {close[0]}?" if close else ""
