"""A sentence-transformers model from a folder, in the number type that it is to compute in."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from pipeline.encoder.model_folder import check_folder
from pipeline.errors import EncoderError, in_a_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(folder: str, compute: str, trust_remote_code: bool, allow_pickled_weights: bool, device: str) -> Any:
    """Return the SentenceTransformer of a folder, its Transformer in the number type asked for.

    Only the Transformer computes in `compute`; pooling and all after it stay float32, which costs nothing and
    keeps their sums exact.

    Raises:
        EncoderError: the folder is no sentence-transformers model, or needs a right it was not given.
    """
    check_folder(Path(folder), trust_remote_code, allow_pickled_weights)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    weights = {"dtype": DTYPES[compute]} | ({} if allow_pickled_weights else {"use_safetensors": True})
    try:
        model = SentenceTransformer(
            folder,
            device=device,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            model_kwargs=weights,
        )
    except pickle.UnpicklingError as error:
        raise EncoderError(
            f"{folder}: its pickled weights hold more than numbers, which may be code, and were not loaded"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        why = in_a_line(error)  # one line: the last one of a child's stderr is all that its parent sees
        if "trust_remote_code" in why and not trust_remote_code:
            why += " (here: recipe.trust_remote_code: true, if you have read that code)"
        raise EncoderError(f"{folder}: cannot be loaded as a sentence-transformers model: {why}") from error
    for module in list(model)[1:]:
        module.float()
    return model.eval()
