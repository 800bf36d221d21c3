"""What mteb wants to know of a model."""

from typing import Any

from mteb.models.model_meta import ModelMeta, ScoringFunction


def meta_of(name: str, dimension: int) -> Any:
    """Return the description of a model that compares by cosine; mteb wants its name as owner/name."""
    owner_and_name = "/".join(name.rstrip("/").split("/")[-2:]) if "/" in name else f"local/{name}"
    values = {
        "name": owner_and_name,
        "revision": "local",
        "embed_dim": dimension,
        "similarity_fn_name": ScoringFunction.COSINE,
    }
    return ModelMeta.create_empty().model_copy(update=values)
