"""What a training is worth: `evaluate` on the mini set with the model before and after, and the card that says so."""

from typing import TYPE_CHECKING, Any

from jobs.evaluate import evaluate, mirror_of
from pipeline.config import Evaluation, JobConfig
from pipeline.optional import library

if TYPE_CHECKING:
    from pipeline.evaluation.comparison import Comparison
    from pipeline.evaluation.model_index import Card


def comparison_settings(config: JobConfig) -> Evaluation | None:
    """Return how the mini set is scored, None unless `training.compare`; its data is at hand then.

    The data is that of `evaluation.mirror`, else made from packages.

    Raises:
        ConfigError: a package of the extra `evaluation` is missing.
        SourceError: the data of a task is.
    """
    if config.training is None or not config.training.compare:
        return None
    library("mteb", "evaluation", "training.compare")
    from pipeline.evaluation.mini_tasks import MINI_TASKS
    from pipeline.evaluation.mirror import mirrored_files
    from pipeline.storage.filesystem import Store

    mirror = config.evaluation.mirror if config.evaluation else None
    settings = Evaluation(uri=f"{config.training.uri.rstrip('/')}-compared", tasks=("mini",), mirror=mirror)
    settings = settings.model_copy(update={"mirror": mirror_of(settings)})
    for task in MINI_TASKS:
        mirrored_files(Store(str(settings.mirror)), task, task.name)
    return settings


def score_before(config: JobConfig, settings: Evaluation) -> "Card":
    """Return the scores of the model that is to be trained; errors as `evaluate`."""
    return _scored(config, settings, "before")


def compare_after(config: JobConfig, settings: Evaluation, before: "Card", record: dict[str, Any]) -> "Comparison":
    """Score the trained model, and put its card into its folder.

    Args:
        record: the content of its `training.json`.
    """
    from pipeline.evaluation.comparison import compare
    from pipeline.evaluation.trained_card import trained_card
    from pipeline.storage.filesystem import Store

    assert config.training is not None
    trained = config.recipe.model_copy(update={"model": config.training.uri, "revision": None})
    after = _scored(config.model_copy(update={"recipe": trained}), settings, "after")
    card = trained_card(before, after, record, trained)
    store = Store(config.training.uri)
    store.put("README.md", card.encode())
    store.remove_empty_folders("_meta")  # of what is written whole or not at all
    return compare(after, before, trained.normalize)


def _scored(config: JobConfig, settings: Evaluation, side: str) -> "Card":
    from pipeline.evaluation.report import read_card

    ungated = config.model_copy(update={"gate": None})  # the references of a canary are vectors of one model
    result = evaluate(ungated, settings.model_copy(update={"uri": f"{settings.uri}/{side}"}), None)
    return read_card(f"{result['facts']['folder']}/model_index.yaml")
