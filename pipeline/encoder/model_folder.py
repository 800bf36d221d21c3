"""What a model's folder must be before anything of it is loaded."""

import json
from pathlib import Path

from pipeline.errors import EncoderError


def check_folder(folder: Path, trust_remote_code: bool, allow_pickled_weights: bool) -> None:
    """Refuse a folder that would make the loader guess, unpickle or run code.

    Raises:
        EncoderError: with what is missing or not allowed, and the key that allows it.
    """
    if not (folder / "modules.json").is_file():
        raise EncoderError(
            f"{folder} has no modules.json, so it does not say how tokens become a vector; save the model with "
            "SentenceTransformer(...).save(folder)"
        )
    modules = json.loads((folder / "modules.json").read_text())
    foreign = [m["type"] for m in modules if not m["type"].startswith("sentence_transformers.")]
    if foreign and not trust_remote_code:
        raise EncoderError(
            f"{folder} brings code of its own ({', '.join(foreign)}); set recipe.trust_remote_code: true if you have "
            "read it"
        )
    places = [folder / module.get("path", "") for module in modules]
    outside = [str(place) for place in places if not place.resolve().is_relative_to(folder.resolve())]
    if outside:
        raise EncoderError(
            f"{folder}: its modules.json leads out of the folder, to {outside[0]}; do not use this model"
        )
    pickled = [place for place in places if any(place.glob("*.bin")) and not any(place.glob("*.safetensors"))]
    if pickled and not allow_pickled_weights:
        raise EncoderError(
            f"{folder} has pickled weights only (.bin); convert them to safetensors, or set "
            "recipe.allow_pickled_weights: true (they are loaded with weights_only, so no code in them runs)"
        )
