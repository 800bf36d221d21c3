"""Texts that stand in several Blocks of a run, found by a look through what it will read."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.arrow import hash_strings, one_array
from pipeline.execution.reuse import is_known
from pipeline.execution.stage_settings import StageSettings
from pipeline.records import Shard
from pipeline.schemas import TEXT
from pipeline.storage.filesystem import open_source
from pipeline.storage.readers import read_shard
from pipeline.storage.rows import empty_texts
from pipeline.storage.uniqueness import placed, repeated
from pipeline.text.tokenizer import with_prompt

logger = logging.getLogger(__name__)


def unknown_hashes(shard: Shard, done_blocks: frozenset[int], settings: StageSettings) -> NDArray[np.void]:
    """Return the hashes of the texts of a Shard that are not known, 16 bytes each, once for every Block they stand in.

    Raises:
        SourceError: the store does not give a file.
    """
    found = [np.empty(0, "V16")]
    for block in read_shard(shard, settings.columns, settings.rows_per_part, open_source, done_blocks):
        texts = one_array(block.documents[TEXT])
        hashes = hash_strings(with_prompt(texts, settings.tokenizer.prompt))
        is_new_N = ~is_known(hashes, settings)
        if settings.columns.empty_text == "zero":
            is_new_N[empty_texts(texts)] = False
        found.append(np.unique(np.frombuffer(hashes.buffers()[1], "V16", count=len(hashes))[is_new_N]))
    return np.concatenate(found)


def look_through(
    shards: Iterable[tuple[Shard, frozenset[int]]], settings: StageSettings, cpus: float, patience_seconds: float
) -> Iterator[NDArray[np.void]]:
    """Yield, by workers of the Ray cluster, the `unknown_hashes` of every Shard, in any order.

    A Shard that cannot be read, or ends the process that reads it, gives none: it is a matter for those who read it in
    earnest. So is one that stands still.

    Args:
        shards: with the Blocks of each that need no work.
        cpus: that a worker reserves.
        patience_seconds: longest wait for any Shard; then no further one is waited for.
    """
    import ray
    import ray.exceptions

    look = ray.remote(num_cpus=cpus, max_retries=0)(unknown_hashes)
    shared, waiting = ray.put(settings), list[Any]()
    at_once = 2 * max(1, int(ray.cluster_resources().get("CPU", 1) / cpus))
    for one in chain(shards, repeat(None, at_once)):
        if one is not None:
            waiting.append(look.remote(*one, shared))
        if waiting and (one is None or len(waiting) >= at_once):
            ready, waiting = ray.wait(waiting, timeout=patience_seconds)
            if not ready:
                logger.warning("event=look_through_ended reason=no_shard_was_read seconds=%s", patience_seconds)
                for standing in waiting:
                    ray.cancel(standing, force=True)
                return
            with suppress(ray.exceptions.RayError):
                yield ray.get(ready[0])


def repeated_texts(of_shards: Iterable[NDArray[np.void]]) -> tuple[NDArray[np.uint64], int]:
    """Return the hashes that stand in several Blocks, each once, as two numbers, ordered by the first.

    Args:
        of_shards: what `unknown_hashes` gives for each Shard of a run.

    Returns:
        The hashes, (R, 2), and how many there were of any kind.
    """
    count = 0

    def counted() -> Iterator[NDArray[np.void]]:
        nonlocal count
        for hashes_N in of_shards:
            count += len(hashes_N)
            yield placed(hashes_N, 0)

    found = [np.stack([piece["high"], piece["low"]], axis=1) for piece in repeated(counted())]
    return np.concatenate([np.empty((0, 2), np.uint64), *found]), count
