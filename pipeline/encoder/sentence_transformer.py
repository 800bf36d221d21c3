"""A sentence-transformers model as an Encoder: its own modules, fed with token batches, padded or laid end to end."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.encoder.arithmetic import is_native
from pipeline.encoder.batching import FILL_TOKENS, pad
from pipeline.encoder.calibration import MODEL_FILE, facts_of
from pipeline.encoder.compiled import compile_layers
from pipeline.encoder.equal_lengths import pass_tokens_of
from pipeline.encoder.flat import PADDED, Attention, apply_attention, attentions_to_try, lay_end_to_end
from pipeline.encoder.lanes import DEFAULT_THREADS, Lanes, keeps_state
from pipeline.encoder.loading import DTYPES, load_model
from pipeline.encoder.onnx_body import OnnxBody, check_onnx
from pipeline.encoder.openvino_body import OpenVinoBody, check_arithmetic, converted, read_model
from pipeline.encoder.prepacked import can_prepack, prepack
from pipeline.encoder.probe import LONG, Reference, affordable_tokens, probe_of, reference_of
from pipeline.encoder.transfer import Transfer
from pipeline.errors import EncoderError, in_a_line
from pipeline.records import TokenBatch

TORCH_ENGINES = ("torch", "torch-compile")


class SentenceTransformerEncoder:
    """Holds a model on one device.

    In bfloat16 a CPU multiplies in that type and adds up between the layers in float32, which costs it 1 to 3 % and
    halves the angle to the vectors of float32; a GPU computes the whole body in bfloat16.

    Args:
        folder: a local sentence-transformers folder.
        compute: float32 | bfloat16 | float16 | int8.
        prompt: the prompt that stands before every text, for models that leave it out of the pooling.
        threads: CPU threads, of one forward pass or of several side by side; 0 leaves the default.
        engine: torch; torch-compile, which compiles the layers of the Transformer for the device; or openvino or onnx,
            which compute the Transformer on the CPU. The other modules are torch in any case.
        device: cpu, or auto: a GPU where this process sees one.
        attention: padded, flash_attention_2, torch_varlen, equal_lengths or reference_varlen; None chooses.
        calibration: folder of the quantised body; needed for int8, and for nothing else.

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
        attention: str | None = None,
        device: str = "auto",
        calibration: str | None = None,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        is_torch = engine in TORCH_ENGINES
        if not is_torch:
            (check_onnx if engine == "onnx" else check_arithmetic)(compute)  # before a model is loaded for nothing
        if compute == "int8" and (engine != "openvino" or calibration is None):
            raise EncoderError("recipe.compute: int8 needs runtime.engine: openvino and a calibration")
        torch.set_float32_matmul_precision("highest")  # float32 is never TF32, whatever others in this process have set
        place = "cuda" if is_torch and device == "auto" and torch.cuda.is_available() else "cpu"
        self.emulates = (is_torch or compute == "int8") and not is_native(compute, place)
        is_packed = engine == "torch" and place == "cpu" and not self.emulates and can_prepack()
        is_mixed = is_packed and compute == "bfloat16"
        load = partial(load_model, folder, trust_remote_code=trust_remote_code, device=place)
        load = partial(load, allow_pickled_weights=allow_pickled_weights)
        model = load(compute=compute if is_torch and not is_mixed else "float32")
        transformer = model[0]
        self.engine, self._is_short = engine, compute != "float32" and not self.emulates
        self.dimension = int(model.get_embedding_dimension())
        self.max_tokens = int(model.max_seq_length or transformer.tokenizer.model_max_length)
        self.device = torch.cuda.get_device_name() if place == "cuda" else "cpu"
        self._pad_token_id = int(transformer.tokenizer.pad_token_id or 0)
        self._place = torch.device(place)
        self._transfer = Transfer(self._place)
        self._lanes: Lanes | None = None
        at_work = threads or DEFAULT_THREADS
        may_keep_state = trust_remote_code or keeps_state(transformer)
        if place == "cpu" and engine != "torch-compile" and at_work > 1 and not may_keep_state:
            lanes = Lanes(at_work)
            # one session of ONNX Runtime has one pool of threads, which passes would share as it comes
            self._lanes = None if engine == "onnx" and lanes.threads_each > 1 else lanes
        self._extra: dict[str, Any] = {"modality": "text"}
        if prompt:
            self._extra["prompt_length"] = transformer._get_prompt_length(prompt)
        self._modules, self._is_mixed = list(model), False
        capability = torch.cuda.get_device_capability() if place == "cuda" else None
        self.attention = Attention(PADDED, f"engine {engine} takes padded rows")
        tried = attentions_to_try(place, compute, capability)
        if attention:
            tried = [Attention(attention, "asked for"), Attention(PADDED, "")]
        elif engine == "torch-compile" and place == "cpu":
            tried = [self.attention]  # shapes that a compiler could count on; the lengths of a batch are none
        if calibration is not None:
            body = read_model(str(Path(calibration, MODEL_FILE)))
            facts = facts_of(Path(calibration))
            self._modules[0] = OpenVinoBody(body, facts.rest, threads, self.lanes, facts.is_exact and self.emulates)
            return
        reference = self._reference(compute)
        if is_torch:
            self._hasten(tried, compute, reference, load if is_packed else None)
        else:
            self._convert(compute, threads, reference)
        if engine == "torch-compile":
            self._compile(reference)

    @property
    def is_flat(self) -> bool:
        """Whether rows lie end to end in a batch, without padding."""
        return self.attention.is_flat

    @property
    def fill_tokens(self) -> int:
        """Tokens of which a batch without padding is a multiple: on a CPU shapes need not repeat."""
        return 1 if self._place.type == "cpu" else FILL_TOKENS

    @property
    def pass_tokens(self) -> int | None:
        """Tokens of a pass beyond which a CPU is slower."""
        threads = self._lanes.threads_each if self._lanes else torch.get_num_threads()
        return pass_tokens_of(threads, self._is_short) if self._place.type == "cpu" else None

    @property
    def lanes(self) -> int:
        """Passes that it computes side by side: several on a CPU, one on a GPU, whose cores share it."""
        return self._lanes.count if self._lanes else 1

    def _reference(self, compute: str) -> Reference:
        """Return what the model gives now, before anything of it is exchanged."""
        body, longest = self._modules[0], LONG if self._place.type == "cuda" else 0
        if self._place.type == "cpu" and not self.emulates:
            linear = (layer for layer in body.modules() if isinstance(layer, torch.nn.Linear))
            longest = affordable_tokens(sum(layer.weight.numel() for layer in linear))
        prompt_tokens = self._extra.get("prompt_length") or 0
        probe = probe_of(self.max_tokens, len(body.tokenizer), prompt_tokens, longest)
        return reference_of(probe, self.encode, compute)

    def _hasten(
        self, tried: Sequence[Attention], compute: str, reference: Reference, load: Callable[..., Any] | None
    ) -> None:
        """Exchange what makes torch faster and leaves the vectors of the reference as they are.

        Args:
            load: loads the model anew, in a number type; None = its layers are not to be prepacked.
        """
        passed_over: list[str] = []
        if load:
            prepack(self._modules[0], DTYPES[compute])
            self._is_mixed = compute == "bfloat16"
            if self._attend(tried, reference, passed_over, is_prepacked=True):
                return
            passed_over.append("so its layers are not prepacked")
            self._modules, self._is_mixed = list(load(compute=compute)), False
            reference = self._reference(compute)
        self._attend(tried, reference, passed_over)

    def _attend(
        self, tried: Sequence[Attention], reference: Reference, passed_over: list[str], is_prepacked: bool = False
    ) -> bool:
        """Take to the first attention that gives the vectors of the reference; return whether there is one.

        Args:
            passed_over: what was tried before, and why it was not taken; what is tried here is added.
            is_prepacked: whether layers were exchanged already; then padded rows are compared as well.
        """
        for attention in tried:
            why = self._why_not(attention, reference) if attention.is_flat or is_prepacked else ""
            if not why:
                reasons = [*passed_over, attention.reason]
                self.attention = replace(attention, reason="; ".join(filter(None, reasons)))
                return True
            passed_over.append(f"{attention.name} {why}")
        return False

    def _why_not(self, attention: Attention, reference: Reference) -> str:
        """Exchange the attention of the model; return why that cannot be, and then leave it as it was."""
        body = self._modules[0]
        before_attention, before = self.attention, body.model.config._attn_implementation
        try:
            if attention.is_flat:
                apply_attention(body, attention.name)
            self.attention = attention
            other = reference.why_not(self.encode)
            why = other and f"gives {other}"
        except Exception as error:  # noqa: BLE001  what a kernel says of a model or a device that it does not fit
            why = f"fails on this model: {in_a_line(error, 200) or type(error).__name__}"
        if why:
            self.attention = before_attention
            if attention.is_flat:
                body.model.set_attn_implementation(before)
        return why

    def _compile(self, reference: Reference) -> None:
        """Compile the layers of torch's body, if they then give the same vectors."""
        try:
            if not compile_layers(self._modules[0]):
                raise ValueError("it has no repeated layers")
            other = reference.why_not(self.encode)
        except Exception as error:
            why = in_a_line(error, 300)
            raise EncoderError(f"runtime.engine: torch-compile cannot compile this model here: {why}") from error
        self._refuse(other)

    def _convert(self, compute: str, threads: int, reference: Reference) -> None:
        """Put another engine's body in the place of torch's, if it gives the same vectors."""
        if self.engine == "onnx":
            self._modules[0] = OnnxBody(self._modules[0], 1 if self._lanes else threads)
        else:
            self._modules[0] = OpenVinoBody(converted(self._modules[0]), compute, threads, self.lanes)
        self._refuse(reference.why_not(self.encode))

    def _refuse(self, other: str) -> None:
        if other:
            raise EncoderError(f"runtime.engine: {self.engine} gives {other}; use runtime.engine: torch")

    def encode(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Return the vectors, (B, D) float32, as the model's last module gives them."""
        return cast("NDArray[np.float32]", self._forward(batch)())

    def begin(self, batch: TokenBatch) -> Callable[[], NDArray[np.float32]]:
        """Begin with a batch; return what waits for its vectors, (B, D) float32."""
        if self._lanes:
            return self._lanes.begin(self.encode, batch)
        return cast("Callable[[], NDArray[np.float32]]", self._forward(batch))

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def _forward(self, batch: TokenBatch) -> Callable[[], NDArray[np.float32]]:
        features = self._features_of(batch) | self._extra
        for number, module in enumerate(self._modules):
            with torch.autocast(self._place.type, torch.bfloat16, enabled=self._is_mixed and number == 0):
                features = module(features)
            if number == 0:
                hidden = features["token_embeddings"]
                hidden = hidden[:, : len(batch.token_ids_T)] if self.is_flat else hidden  # without the filling
                features["token_embeddings"] = hidden.float()
        return self._transfer.to_host(features["sentence_embedding"].float())

    def _features_of(self, batch: TokenBatch) -> dict[str, Any]:
        """Return a batch as the Transformer module takes it, on the device."""
        if not self.is_flat:
            ids_BT, mask_BT = pad(batch.token_ids_T, batch.offsets_N1, np.arange(len(batch)), self._pad_token_id)
            return dict(self._transfer.to_device({"input_ids": ids_BT, "attention_mask": mask_BT}))
        first = self._modules[0]._infer_flatten_position_offset()
        laid = lay_end_to_end(batch, self._pad_token_id, first, self.fill_tokens)
        features: dict[str, Any] = self._transfer.to_device(laid)
        longest = int(batch.lengths_N.max())
        return features | {
            "cu_seq_lens_k": features["cu_seq_lens_q"],
            "max_length_q": longest,
            "max_length_k": longest,
        }

    def close(self) -> None:
        """Unload the model, so that another process finds the device's memory free."""
        if self._lanes:
            self._lanes.close()
        del self._modules
        self.free_cache()

    def free_cache(self) -> None:
        """Give the memory of passes that have ended back to the device."""
        gc.collect()  # an error that was caught may be held in a circle, and hold what its pass had computed
        if self._place.type == "cuda":
            torch.cuda.empty_cache()
