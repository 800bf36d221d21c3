"""From names in a config to tasks of mteb, each made anew whenever it is scored, so that its random numbers repeat."""

from collections.abc import Sequence
from typing import Any

import mteb

from pipeline.errors import ConfigError
from pipeline.evaluation.card_tasks import CARD_TASKS, KINDS, CardTask, card_task
from pipeline.evaluation.mini_tasks import MINI_TASKS, mini_task

SETS = {"cmteb": CARD_TASKS, "mini": MINI_TASKS}


def chosen_tasks(names: Sequence[str]) -> tuple[CardTask, ...]:
    """Return the tasks of these names, each once.

    Args:
        names: of sets (cmteb, mini), of tasks as a card has them, or of any text task of mteb.

    Raises:
        ConfigError: a name is of none of them, or of a kind that no C-MTEB card has.
    """
    return tuple(dict.fromkeys(task for name in names for task in _named(name)))


def mteb_task(task: CardTask) -> Any:
    """Return a new task of mteb for the split and subset of the card, without data."""
    if task in MINI_TASKS:
        return mini_task(task)
    return mteb.get_task(task.mteb_name, eval_splits=[task.split], hf_subsets=[task.subset])


def _named(name: str) -> tuple[CardTask, ...]:
    if name in SETS:
        return SETS[name]
    known = card_task(name) or next((task for task in MINI_TASKS if task.name == name), None)
    if known is not None:
        return (known,)
    try:
        metadata = mteb.get_task(name).metadata
    except KeyError as error:
        raise ConfigError(f"evaluation.tasks: {name} is no task of mteb, and none of {', '.join(SETS)}") from error
    kind = next((kind for kind in KINDS if kind == metadata.type), None)
    if kind is None:
        raise ConfigError(f"evaluation.tasks: {name} is of kind {metadata.type}; expected one of {', '.join(KINDS)}")
    split = "test" if "test" in metadata.eval_splits else metadata.eval_splits[0]
    return tuple(CardTask(name, kind, split, subset) for subset in metadata.hf_subsets)
