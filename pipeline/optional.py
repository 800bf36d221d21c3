"""Packages of extras: imported when they are needed, and named with the way to them where they are missing."""

import importlib
import warnings
from typing import Any

from pipeline.errors import ConfigError


def library(package: str, extra: str, wanted_by: str) -> Any:
    """Import a package of an extra.

    Args:
        wanted_by: what cannot be done without it, as a person would say it.

    Raises:
        ConfigError: it is not installed; the message says how it would be.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say of themselves while they load
            return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{wanted_by} needs the package {package}, which is not installed ({error}): "
            f"pip install -c docker/constraints.txt '.[{extra}]'"
        ) from None
