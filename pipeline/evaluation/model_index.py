"""The table of scores of a model card (`model-index`), read and written with huggingface_hub's own classes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index, model_index_to_eval_results

from pipeline.errors import SourceError
from pipeline.evaluation.card_tasks import CardTask, metrics_of

DATASET_KEYS = ("type", "name", "config", "split", "revision")
"""Order in which cards write them; huggingface_hub puts the name first."""


@dataclass(frozen=True)
class Card:
    """The metadata of a model card: whose scores, and each metric of each task, in the order of the file."""

    model: str
    results: tuple[EvalResult, ...]

    def metrics(self) -> dict[str, dict[str, float]]:
        """Return by task, as `dataset.name` has it, the value of each metric; 0 to 100."""
        found: dict[str, dict[str, float]] = {}
        for result in self.results:
            found.setdefault(result.dataset_name, {})[result.metric_type] = result.metric_value
        return found

    def of_task(self, dataset_name: str) -> EvalResult | None:
        """Return the first result of a task: what data at which revision and split."""
        return next((result for result in self.results if result.dataset_name == dataset_name), None)


def parse_card(text: str, where: str) -> Card:
    """Read the metadata of a card: YAML, or the README that begins with it between two lines `---`.

    Raises:
        SourceError: it holds no `model-index` that huggingface_hub reads.
    """
    try:
        content = yaml.safe_load(text.split("---\n")[1] if text.startswith("---\n") else text)
        model, results = model_index_to_eval_results(content["model-index"])
    except (yaml.YAMLError, KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise SourceError(
            f"{where} is no model card with a table of scores (model-index): {type(error).__name__}. "
            "Give the README.md of a model on the hub, or the YAML between its first two lines `---`."
        ) from error
    return Card(model, tuple(results))


def card_yaml(card: Card) -> str:
    """Return the card's metadata as YAML, in the layout that mteb gave the cards of C-MTEB."""
    index = eval_results_to_model_index(card.model, list(card.results))
    for result in index[0]["results"]:
        dataset = result["dataset"]
        result["dataset"] = {key: dataset[key] for key in DATASET_KEYS if key in dataset}
    content = {"tags": ["mteb"], "model-index": index, "library_name": "sentence-transformers"}
    return str(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def results_of(
    task: CardTask, scores: Mapping[str, Any], dataset_path: str, dataset_revision: str
) -> Iterable[EvalResult]:
    """Yield what a card says of a task.

    Args:
        scores: of mteb for its split and subset, 0 to 1.
        dataset_path: where the data comes from.
        dataset_revision: and at which revision.
    """
    for name, key in metrics_of(task).items():
        yield EvalResult(
            task_type=task.kind,
            dataset_type=dataset_path,
            dataset_name=task.dataset_name,
            dataset_config=task.subset,
            dataset_split=task.split,
            dataset_revision=dataset_revision,
            metric_type=name,
            metric_value=100 * scores[key],
        )


def table_of(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are aligned to the right."""
    lines = [names, ["---", *(["---:"] * (len(names) - 1))], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
