"""What a model is, asked once in a child process, so that planners and tokenising workers never import torch."""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.encoder.model_folder import check_folder
from pipeline.errors import EncoderError

CHILD_SECONDS = 600
"""How long loading a model may take before it counts as hung."""


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """The facts about a model that others than the encoder need."""

    dimension: int
    max_tokens: int
    default_prompt: str
    """What the model itself puts before every text unless told otherwise; mostly empty."""
    tokenizer_json: str | None
    """The fast tokenizer, configured as the model's modules configure it; None = bytes are tokens."""


def describe_model(
    folder: str, cache_file: Path, trust_remote_code: bool = False, allow_pickled_weights: bool = False
) -> ModelDescription:
    """Return the description of a local model folder, from the cache if it was asked before.

    Args:
        folder: a sentence-transformers folder.
        cache_file: where the answer is kept; its name must change with the folder's content.

    Raises:
        EncoderError: the folder cannot be loaded; the message says why.
    """
    if not cache_file.is_file():
        check_folder(Path(folder), trust_remote_code, allow_pickled_weights)  # told at once, before torch is imported
        command = [sys.executable, "-m", "pipeline.encoder.describe", folder, str(cache_file)]
        command += [str(int(trust_remote_code)), str(int(allow_pickled_weights))]
        try:
            child = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise EncoderError(f"{folder}: the model was not loaded within {CHILD_SECONDS} seconds") from error
        if child.returncode or not cache_file.is_file():
            last = (child.stderr.strip().splitlines() or ["no message"])[-1]
            own = "pipeline.errors.EncoderError: "
            raise EncoderError(
                last.removeprefix(own) if last.startswith(own) else f"{folder}: cannot be loaded as a model: {last}"
            )
    return ModelDescription(**json.loads(cache_file.read_text(encoding="utf-8")))


def hashing_description(dimension: int) -> ModelDescription:
    """Return the description of a HashingEncoder."""
    return ModelDescription(dimension, 1 << 20, "", None)


def _describe(folder: str, trust_remote_code: bool, allow_pickled_weights: bool) -> ModelDescription:
    from pipeline.encoder.loading import load_model

    model = load_model(folder, "float32", trust_remote_code, allow_pickled_weights, "cpu")
    tokenizer: Any = getattr(model[0], "tokenizer", None)
    if not getattr(tokenizer, "is_fast", False) or type(model[0]).__name__ != "Transformer":
        raise EncoderError(
            f"{folder} begins with {type(model[0]).__name__}, which has no fast tokenizer; this version embeds text "
            "models that begin with a Transformer module"
        )
    prompt = model.prompts.get(model.default_prompt_name or "", "") or ""
    max_tokens = int(model.max_seq_length or tokenizer.model_max_length)
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    return ModelDescription(int(model.get_embedding_dimension()), max_tokens, prompt, backend.to_str())


def main(arguments: list[str]) -> None:
    """Write the description of a folder to a file, whole or not at all."""
    folder, target, trust, pickled = arguments
    description = _describe(folder, trust == "1", pickled == "1")
    path = Path(target)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    staging = path.with_suffix(f".{id(path)}.tmp")
    staging.write_text(json.dumps(asdict(description)), encoding="utf-8")
    staging.rename(path)


if __name__ == "__main__":
    main(sys.argv[1:])
