"""Which engine computes a model fastest here, measured on texts of the run."""

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.encoder.packed import computed_by, encode_packed, lanes_of, passes_of, take
from pipeline.encoder.protocol import Encoder
from pipeline.errors import EncoderError, SickDevice
from pipeline.records import TokenBatch

TRIAL_SECONDS = 2.0
"""Of forward passes, over all engines; loading them comes on top."""

LEAST_TURNS, SLOW_SECONDS = 2, 5.0
"""Every engine has so many turns, unless one of all engines has taken so long: one alone would tell of one length."""

PASSES_OF_A_TURN = 4
"""That a device beside the CPU makes in one turn of a trial: as in a run it computes one of them while the host is at
another. On a CPU a turn is a single pass, or where passes are computed side by side two for each lane."""

GOLDEN = 0.6180339887
"""Multiples of it, without what is before the point, are spread over 0 to 1 however many there are."""

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
    batch_tokens: int,
    seconds: float = TRIAL_SECONDS,
) -> tuple[Encoder, EngineChoice]:
    """Measure engines in turns on the same texts; return the encoder to go on with, and close all others.

    Args:
        at_work: name of the engine that the encoder runs on now.
        encoder: the encoder that stays unless another one is faster.
        others: what opens an encoder of the same model and number type on another engine.
        tokens: texts that the encoder has encoded; those that are taken are spread over their lengths.
        batch_tokens: of the run; every engine packs them as it would there.
        seconds: after which no engine has another turn, once each has had LEAST_TURNS.
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
    rates = _rates(encoders, tokens, batch_tokens, seconds, passed_over) if len(encoders) > 1 else {}
    best = max(rates, key=lambda name: rates[name], default=at_work)
    if rates.get(best, 0.0) < WORTHWHILE * rates.get(at_work, 0.0):
        best = at_work
    for name in encoders.keys() - {best}:
        encoders[name].close()
    return encoders[best], EngineChoice(best, rates, passed_over)


def _rates(
    encoders: Mapping[str, Encoder],
    tokens: TokenBatch,
    batch_tokens: int,
    seconds: float,
    passed_over: dict[str, str],
) -> dict[str, float]:
    """Return tokens per second by engine; one that fails is left out, and why is added to `passed_over`.

    All tokens stand in a line, those of the longest rows first. One place in it after the other is taken, the middle at
    first, and each engine has the turn that holds it, however it has cut the line. What the padding of all its passes
    comes to is known without computing them, so that is not left to the few turns.
    """
    lengths_N = tokens.lengths_N
    passes = {name: passes_of(encoder, lengths_N, batch_tokens) for name, encoder in encoders.items()}
    turns = {name: _turns(encoder, passes[name]) for name, encoder in encoders.items()}
    budgets = {  # which gives a turn the passes of the run
        name: min(batch_tokens, max(computed_by(encoders[name], lengths_N[rows_B]) for rows_B in of_it))
        for name, of_it in passes.items()
    }
    ends = {name: np.cumsum([lengths_N[rows_B].sum() for rows_B in of_it]) for name, of_it in turns.items()}
    token_seconds: dict[str, list[float]] = {name: [] for name in encoders}
    started = time.perf_counter()
    for number in itertools.count(1):
        place = int((0.5 + (number - 1) * GOLDEN) % 1 * len(tokens.token_ids_T))
        for name in tuple(token_seconds):
            turn = take(tokens, turns[name][int(np.searchsorted(ends[name], place, side="right"))])
            try:  # twice: the first pass over a shape may have kernels to make
                token_seconds[name].append(min(_token_seconds(encoders[name], turn, budgets[name]) for _ in range(2)))
            except Exception as error:  # noqa: BLE001  an engine that fails is one that is not taken
                is_ours = type(error) is EncoderError
                passed_over[name] = str(error) if is_ours else f"it fails with {type(error).__name__}"
                del token_seconds[name]
        spent = time.perf_counter() - started
        if len(token_seconds) < 2 or (spent >= seconds and (number >= LEAST_TURNS or spent >= SLOW_SECONDS)):
            break
    rates: dict[str, float] = {}
    for name, each in token_seconds.items():
        seconds_of_all = float(np.mean(each)) * _computed(encoders[name], lengths_N, passes[name])
        rates[name] = round(len(tokens.token_ids_T) / seconds_of_all, 1)
    return rates


def _computed(encoder: Encoder, lengths_N: NDArray[np.int64], passes: list[NDArray[np.int64]]) -> int:
    return sum(computed_by(encoder, lengths_N[rows_B]) for rows_B in passes)


def _turns(encoder: Encoder, passes: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Return the rows of each turn, longest first: those of neighbouring passes of a run over the same texts."""
    lanes = lanes_of(encoder)
    at_once = PASSES_OF_A_TURN if encoder.device != "cpu" else 2 * lanes if lanes > 1 else 1
    cuts = [*range(0, max(1, len(passes) // at_once) * at_once, at_once), len(passes)]
    return [np.concatenate(passes[first:end]) for first, end in pairwise(cuts)]


def _token_seconds(encoder: Encoder, turn: TokenBatch, batch_tokens: int) -> float:
    """Return the seconds of a turn per token that was computed, padding included."""
    try:
        encoded = encode_packed(encoder, turn, batch_tokens)
    except SickDevice:
        encoder.encode(turn)  # raises its own error
        raise
    if encoded.splits or not encoded.done_N.all():
        raise EncoderError("it fails on some texts, or for want of memory")
    return encoded.seconds / encoded.padded_tokens
