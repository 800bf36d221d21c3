"""A sentence-transformers model as an Encoder: its own modules, fed with padded token batches."""

import gc
import json
import os
import pickle
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.encoder.batching import pad
from pipeline.encoder.openvino_body import OpenVinoBody, number_type
from pipeline.encoder.prepacked import can_prepack, prepack
from pipeline.errors import EncoderError
from pipeline.records import TokenBatch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

SAME_MODEL = 0.99
"""Cosine below which two engines do not differ by rounding only: a converted model is another one."""


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
        why = " ".join(str(error).split())  # one line: the last one of a child's stderr is all that its parent sees
        if "trust_remote_code" in why and not trust_remote_code:
            why += " (here: recipe.trust_remote_code: true, if you have read that code)"
        raise EncoderError(f"{folder}: cannot be loaded as a sentence-transformers model: {why}") from error
    for module in list(model)[1:]:
        module.float()
    return model.eval()


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


def _is_native(compute: str, place: str) -> bool:
    """Whether the device has instructions for this number type."""
    if compute == "float32":
        return True
    if place == "cuda":
        return compute == "float16" or torch.cuda.is_bf16_supported(including_emulation=False)
    mkldnn = torch.ops.mkldnn
    supported = mkldnn._is_mkldnn_bf16_supported if compute == "bfloat16" else mkldnn._is_mkldnn_fp16_supported
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    wanted = ("avx512_bf16", "amx_bf16") if compute == "bfloat16" else ("avx512_fp16", "amx_fp16")
    return bool(supported()) and (not flags or any(flag in flags for flag in wanted) or "aarch64" in os.uname().machine)


class SentenceTransformerEncoder:
    """Holds a model on one device.

    In bfloat16 a CPU multiplies in that type and adds up between the layers in float32, which costs it 1 to 3 % and
    halves the angle to the vectors of float32; a GPU computes the whole body in bfloat16.

    Args:
        folder: a local sentence-transformers folder.
        compute: float32 | bfloat16 | float16.
        prompt: the prompt that stands before every text, for models that leave it out of the pooling.
        threads: CPU threads of the forward pass; 0 leaves the default.
        engine: torch, or openvino, which computes the Transformer on the CPU; the other modules are torch in any case.

    Raises:
        EncoderError: the folder cannot be loaded, or the engine cannot be had or gives other vectors than torch.
    """

    def __init__(
        self,
        folder: str,
        compute: str,
        prompt: str = "",
        threads: int = 0,
        trust_remote_code: bool = False,
        allow_pickled_weights: bool = False,
        engine: str = "torch",
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        is_torch = engine == "torch"
        if not is_torch:
            number_type(compute)  # before a model is loaded for nothing
        place = "cuda" if is_torch and torch.cuda.is_available() else "cpu"
        self.emulates = is_torch and not _is_native(compute, place)
        is_packed = is_torch and place == "cpu" and not self.emulates and can_prepack()
        self._is_mixed = is_packed and compute == "bfloat16"
        loaded = compute if is_torch and not self._is_mixed else "float32"
        model = load_model(folder, loaded, trust_remote_code, allow_pickled_weights, place)
        transformer = model[0]
        self.engine = engine
        self.dimension = int(model.get_embedding_dimension())
        self.max_tokens = int(model.max_seq_length or transformer.tokenizer.model_max_length)
        self.device = torch.cuda.get_device_name() if place == "cuda" else "cpu"
        self._pad_token_id = int(transformer.tokenizer.pad_token_id or 0)
        self._place = torch.device(place)
        self._extra: dict[str, Any] = {"modality": "text"}
        if prompt:
            self._extra["prompt_length"] = transformer._get_prompt_length(prompt)
        self._modules = list(model)
        if not is_torch:
            self._compile(compute, threads)
        elif is_packed:
            prepack(transformer, DTYPES[compute])

    def _compile(self, compute: str, threads: int) -> None:
        """Put OpenVINO's body in the place of torch's, if it gives the same vectors."""
        probe = _probe(self.max_tokens, len(self._modules[0].tokenizer))
        expected_BD = self.encode(probe).astype(np.float64)
        self._modules[0] = OpenVinoBody(self._modules[0], compute, threads)
        found_BD = self.encode(probe).astype(np.float64)
        norms_B = np.linalg.norm(expected_BD, axis=1) * np.linalg.norm(found_BD, axis=1)
        cosine = float((np.einsum("bd,bd->b", expected_BD, found_BD) / norms_B).min())
        if not cosine >= SAME_MODEL:
            raise EncoderError(
                f"runtime.engine: openvino gives other vectors of this model than torch (cosine {cosine:.4f}); use "
                "runtime.engine: torch"
            )

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def encode(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Return the vectors, (B, D) float32, as the model's last module gives them."""
        rows_B = np.arange(len(batch))
        ids_BT, mask_BT = pad(batch.token_ids_T, batch.offsets_N1, rows_B, self._pad_token_id)
        features: dict[str, Any] = {
            "input_ids": torch.from_numpy(ids_BT).to(self._place, non_blocking=True),
            "attention_mask": torch.from_numpy(mask_BT).to(self._place, non_blocking=True),
            **self._extra,
        }
        for number, module in enumerate(self._modules):
            with torch.autocast(self._place.type, torch.bfloat16, enabled=self._is_mixed and number == 0):
                features = module(features)
            hidden = features.get("token_embeddings")
            if hidden is not None and hidden.dtype is not torch.float32:
                features["token_embeddings"] = hidden.float()
        return cast("NDArray[np.float32]", features["sentence_embedding"].float().cpu().numpy())

    def close(self) -> None:
        """Unload the model, so that another process finds the device's memory free."""
        del self._modules
        gc.collect()
        if self._place.type == "cuda":
            torch.cuda.empty_cache()


def _probe(max_tokens: int, vocabulary: int) -> TokenBatch:
    """Return a batch of four rows of random tokens, of very different lengths, the same for the same model."""
    longest = min(max_tokens, 160)
    lengths_B = np.array([longest, longest // 2, 3, 1])
    offsets_B1 = np.concatenate(([0], np.cumsum(lengths_B)))
    ids_T = np.random.default_rng(1).integers(0, vocabulary, int(offsets_B1[-1]), np.int32)
    return TokenBatch(ids_T, offsets_B1)
