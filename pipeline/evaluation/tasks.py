"""From names in a config to tasks of mteb, each made anew whenever it is scored, so that its random numbers repeat."""

from collections.abc import Sequence
from typing import Any

import mteb

from pipeline.config import Kind
from pipeline.errors import ConfigError
from pipeline.evaluation.card_tasks import CARD_TASKS, KINDS, CardTask, card_task
from pipeline.evaluation.mini_tasks import MINI_TASKS
from pipeline.evaluation.own_tasks import as_mteb_task, own_task

SETS = {"cmteb": CARD_TASKS, "mini": MINI_TASKS}


def chosen_tasks(names: Sequence[str]) -> tuple[CardTask, ...]:
    """Return the tasks of these names, each once.

    Args:
        names: of sets (cmteb, mini), of tasks as a card has them, of any text task of mteb, or `NAME:KIND` for a set
            of one's own.

    Raises:
        ConfigError: a name is of none of them, or of a kind that no C-MTEB card has.
    """
    return tuple(dict.fromkeys(task for name in names for task in _named(name)))


def mteb_task(task: CardTask) -> Any:
    """Return a new task of mteb for the split and subset of the card, without data."""
    if task.is_own:
        return as_mteb_task(task)
    return mteb.get_task(task.mteb_name, eval_splits=[task.split], hf_subsets=[task.subset])


def _named(name: str) -> tuple[CardTask, ...]:
    if name in SETS:
        return SETS[name]
    known = card_task(name) or next((task for task in MINI_TASKS if task.name == name), None)
    if known is not None:
        return (known,)
    own, colon, of_kind = name.rpartition(":")
    if colon:
        return (own_task(own, _kind(of_kind, name)),)
    try:
        metadata = mteb.get_task(name).metadata
    except KeyError as error:
        raise ConfigError(
            f"evaluation.tasks: {name} is no task of mteb, and none of {', '.join(SETS)}; a set of "
            "your own is NAME:KIND"
        ) from error
    kind = _kind(metadata.type, name)
    split = "test" if "test" in metadata.eval_splits else metadata.eval_splits[0]
    return tuple(CardTask(name, kind, split, subset) for subset in metadata.hf_subsets)


def _kind(text: str, name: str) -> Kind:
    kind = next((kind for kind in KINDS if kind == text), None)
    if kind is None:
        raise ConfigError(f"evaluation.tasks: {name} is of kind {text}; expected one of {', '.join(KINDS)}")
    return kind
