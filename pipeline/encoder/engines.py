"""Which engine computes a model fastest here, measured on texts of the run."""

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

import numpy as np

from pipeline.encoder.batching import pack_by_tokens
from pipeline.encoder.packed import take
from pipeline.encoder.protocol import Encoder
from pipeline.errors import EncoderError
from pipeline.records import TokenBatch

TRIAL_SECONDS = 2.0
"""Of forward passes, over all engines; loading them comes on top."""

TRIAL_TOKENS = 1024
"""Padded tokens of a pass in a trial on a CPU: enough for every engine to be at its pace, few enough for many lengths.
A GPU is at its pace with the batches of the run only."""

TRIAL_AFTER_SECONDS = 60.0
"""Of encoding, after which an encoder tries other engines: a run that ends before is what it would be without them."""

TRIAL_COST_SECONDS = 10.0
"""What a trial takes, mostly to load the other engines."""

EARNED_BACK_SECONDS = 240.0
"""Of encoding that an encoder must still have before it: an engine that is faster by a twentieth earns in so long what
the trial has cost."""

WORTHWHILE = 1.03
"""An engine that is not faster by this factor than the one at work does not take its place."""


def first_engine(asked: str, compute: str) -> str:
    """Return the engine that an encoder begins with, and for int8 stays with.

    Args:
        asked: `runtime.engine`.
        compute: `recipe.compute`.
    """
    return ("openvino" if compute == "int8" else "torch") if asked == "auto" else asked


def engines_to_try(compute: str, is_cpu: bool) -> tuple[str, ...]:
    """Return the engines beside torch that may be faster on a device, in this number type."""
    if not is_cpu:
        return ("torch-compile",)
    has_onnx = compute == "float32" and find_spec("onnxruntime") is not None
    return ("openvino", "onnx") if has_onnx else ("openvino",)


def trial_pays(tokens: float, rate: float) -> bool:
    """Whether an encoder with so many tokens before it tries other engines, which a run decides likewise.

    Args:
        rate: tokens per second of the engine that it begins with.
    """
    return tokens / rate - TRIAL_AFTER_SECONDS >= EARNED_BACK_SECONDS


def rate_with_trial(tokens: float, rate: float, faster_rate: float) -> float:
    """Return the tokens per second of an encoder over all its work: before, in and after a trial."""
    later = tokens - rate * TRIAL_AFTER_SECONDS
    return tokens / (TRIAL_AFTER_SECONDS + TRIAL_COST_SECONDS + later / faster_rate)


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """Which engine an encoder goes on with, and why."""

    engine: str
    tokens_per_second: dict[str, float] = field(default_factory=dict)
    """By engine, of those that were measured."""
    passed_over: dict[str, str] = field(default_factory=dict)
    """By engine, why it was not."""


def fastest(
    at_work: str,
    encoder: Encoder,
    others: Mapping[str, Callable[[], Encoder]],
    tokens: TokenBatch,
    seconds: float = TRIAL_SECONDS,
    trial_tokens: int = TRIAL_TOKENS,
) -> tuple[Encoder, EngineChoice]:
    """Measure engines in turns on the same batches; return the encoder to go on with, and close all others.

    Args:
        at_work: name of the engine that the encoder runs on now.
        encoder: the encoder that stays unless another one is faster.
        others: what opens an encoder of the same model and number type on another engine.
        tokens: texts that the encoder has encoded; which of them are taken is drawn at random.
        seconds: how long passes are measured; every engine makes at least two.
        trial_tokens: padded tokens of a pass.
    """
    encoders: dict[str, Encoder] = {at_work: encoder}
    passed_over: dict[str, str] = {}
    for name, opened in others.items():
        try:
            encoders[name] = opened()
        except EncoderError as error:
            passed_over[name] = str(error)
        except Exception as error:  # noqa: BLE001  an engine that fails is one that is not taken
            passed_over[name] = f"it cannot be loaded: {type(error).__name__}"
    rates = _rates(encoders, tokens, seconds, trial_tokens, passed_over) if len(encoders) > 1 else {}
    best = max(rates, key=lambda name: rates[name], default=at_work)
    if rates.get(best, 0.0) < WORTHWHILE * rates.get(at_work, 0.0):
        best = at_work
    for name in encoders.keys() - {best}:
        encoders[name].close()
    return encoders[best], EngineChoice(best, rates, passed_over)


def _rates(
    encoders: Mapping[str, Encoder],
    tokens: TokenBatch,
    seconds: float,
    trial_tokens: int,
    passed_over: dict[str, str],
) -> dict[str, float]:
    """Return tokens per second by engine; one that fails is left out, and why is added to `passed_over`."""
    lengths_N = tokens.lengths_N
    batches = pack_by_tokens(lengths_N, max(trial_tokens, int(lengths_N.max())))
    order = np.random.default_rng(0).permutation(len(batches))
    spent, done_tokens, end = dict.fromkeys(encoders, 0.0), 0, time.perf_counter() + seconds
    for number in itertools.cycle(order):
        batch = take(tokens, batches[number])
        for name in tuple(spent):
            try:  # twice: the first pass over a shape may have kernels to make
                spent[name] += min(_seconds_of_pass(encoders[name], batch) for _ in range(2))
            except Exception as error:  # noqa: BLE001  an engine that fails is one that is not taken
                passed_over[name] = f"it fails with {type(error).__name__}"
                del spent[name]
        done_tokens += len(batch.token_ids_T)
        if time.perf_counter() >= end:
            break
    return {name: round(done_tokens / in_seconds, 1) for name, in_seconds in spent.items()}


def _seconds_of_pass(encoder: Encoder, batch: TokenBatch) -> float:
    started = time.perf_counter()
    encoder.encode(batch)
    return time.perf_counter() - started
