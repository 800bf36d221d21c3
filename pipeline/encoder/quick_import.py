"""Importing quickly, for a process that only encodes: without what it never calls, and without looking for garbage."""

import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

POSTPONED = ("sklearn", "sklearn.metrics")
"""sentence-transformers 6 takes one distance of sparse vectors from it, transformers 5 one curve for assisted decoding;
an encoder needs neither, and importing it takes a fifth of the time of importing sentence-transformers (2026-11-30)."""


class _Postponed(ModuleType):
    """Stands in for a module; what is taken from it imports the real one when it is called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def called(*arguments: Any, **options: Any) -> Any:
            return getattr(importlib.import_module(self.__name__), name)(*arguments, **options)

        return called


@contextmanager
def importing_quickly() -> Iterator[None]:
    """Import what a model needs within; afterwards scikit-learn can be imported, and is used, as ever."""
    stand_ins: dict[str, ModuleType] = {}
    if POSTPONED[0] not in sys.modules and find_spec(POSTPONED[0]):
        stand_ins = {name: _stand_in(name) for name in POSTPONED}
        sys.modules.update(stand_ins)
    gc.disable()  # modules make many objects and no garbage; looking for it takes a seventh of the time
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]


def _stand_in(name: str) -> ModuleType:
    module = _Postponed(name)
    module.__spec__ = ModuleSpec(name, None)
    return module
