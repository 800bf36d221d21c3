"""The card of a trained model: the mini set before and after by kind, and what the training was."""

from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from pipeline.config import Recipe
from pipeline.evaluation.comparison import Comparison, Line, compare
from pipeline.evaluation.model_index import Card, table_of

TAGS = ["sentence-transformers", "sentence-similarity", "feature-extraction"]


def trained_card(before: Card, after: Card, record: Mapping[str, Any], recipe: Recipe) -> str:
    """Return the README of a model's folder; its metadata hold the scores after the training.

    Args:
        record: the content of its `training.json`.
        recipe: how the vectors of both were made.
    """
    data = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=TAGS,
        model_name=after.model,
        eval_results=list(after.results),
    )
    chosen = record["training"]
    kinds = ", ".join(dict.fromkeys(examples["kind"] for examples in record["sets"]))
    saved_with = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    names = ("", "metric", "before", "after", "difference")
    rows = [(line.name, line.metric, *figures(line)) for line in lines_of(compare(after, before, recipe.normalize))]
    body = f"""# {after.model}

{before.model} after {chosen["steps"]} steps of {chosen["batch_rows"]} examples ({kinds}), loss `{chosen["loss"]}`,
learning rate {chosen["learning_rate"]:g}, texts of {chosen["max_tokens"]} tokens.
{_weights_told(chosen["base_weight"], before.model)}
All else is in `training.json`. Saved with {saved_with}.

{table_of(names, rows)}

By mteb on six small sets, in points of the main metric, 0 to 100: texts of {recipe.max_tokens} tokens, computed in
{recipe.compute}.
"""
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _weights_told(base_weight: float, base: str) -> str:
    if not base_weight:
        return "Its weights are as they were trained."
    return f"Its weights are {100 * base_weight:g} % those of {base}, the rest as trained (WiSE-FT, arXiv 2109.01903)."


def comparison_text(comparison: Comparison) -> str:
    """Return the same table for a terminal."""
    rows = [("", "before", "after", ""), *((line.name, *figures(line)) for line in lines_of(comparison))]
    return "\n".join(f"  {name:<19} {here:>6} {there:>6} {by:>6}" for name, here, there, by in rows)


def lines_of(comparison: Comparison) -> Iterator[Line]:
    """Yield the six kinds and the mean over them."""
    yield from comparison.kinds
    yield comparison.average


def figures(line: Line) -> tuple[str, str, str]:
    """Return before, after and the difference, as they are shown."""
    assert line.reference is not None
    assert line.ours is not None
    assert line.difference is not None
    return f"{line.reference:.2f}", f"{line.ours:.2f}", f"{line.difference:+.2f}"
