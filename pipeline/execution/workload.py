"""How much of its work a run has done: by tokens, as the plan's estimate and the Shards done tell them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.execution.sizing.corpus_sample import Seen, kind_of, seen_like
from pipeline.records import BlockReceipt, Shard

WHOLE = 0.99
"""Share of a Shard's bytes up to which its reader is believed; all of them are done with its last Block."""


class Workload:
    """The Shards of a run, and what is done of them.

    Args:
        shards: what is to be done.
        estimate: as `Forecast.to_json` gave it; None = how many tokens a byte holds is learnt from what is done.
    """

    def __init__(self, shards: Sequence[Shard], estimate: Mapping[str, Any] | None = None) -> None:
        self._sizes = {shard.shard_id: shard.size_bytes for shard in shards}
        self._kinds = {shard.shard_id: kind_of(shard) for shard in shards}
        self._done_bytes = dict.fromkeys(self._sizes, 0.0)
        self._left: dict[str, float] = defaultdict(float)
        for shard in shards:
            self._left[self._kinds[shard.shard_id]] += shard.size_bytes
        self._known: dict[str, Seen] = defaultdict(Seen)
        for kind, seen in (estimate or {}).get("by_kind", {}).items():
            self._known[kind] = Seen(**seen)
        self._done = Seen()
        self._encode_seconds = 0.0

    def add(self, receipt: BlockReceipt) -> None:
        """Take in that a Block is done."""
        shard, kind = receipt.shard_id, self._kinds[receipt.shard_id]
        before, size = self._done_bytes[shard], self._sizes[shard]
        behind = min(before + receipt.metrics.get("source_bytes", 0.0), WHOLE * size)
        after = float(size) if receipt.is_last else max(before, behind)
        tokens = receipt.metrics.get("tokens", 0.0)
        self._done_bytes[shard] = after
        self._encode_seconds += receipt.metrics.get("encode_seconds", 0.0)
        self._left[kind] -= after - before
        self._known[kind].add(after - before, receipt.rows_read, tokens)
        self._done.add(after - before, receipt.rows_read, tokens)

    @property
    def left(self) -> Seen:
        """What is still to be done, if the rest of each kind is like what is known of it."""
        left = Seen()
        for kind, size in self._left.items():
            seen = seen_like(self._known, kind)
            if seen.bytes:
                left.add(size, size * seen.rows / seen.bytes, size * seen.tokens / seen.bytes)
            else:
                left.add(size, 0.0, 0.0)
        return left

    @property
    def fraction(self) -> float:
        """Share of the tokens that is done; of the bytes while no token is known of. 0 to 1."""
        left, done = self.left, self._done
        if left.tokens + done.tokens > 0:
            return done.tokens / (left.tokens + done.tokens)
        return done.bytes / (left.bytes + done.bytes) if left.bytes + done.bytes else 1.0

    def seconds_left(self, encoders: int) -> float:
        """Return how long each of the encoders will still encode at the pace so far; 0 while nothing is known of it."""
        tokens = self._done.tokens
        return self.left.tokens * self._encode_seconds / tokens / encoders if tokens else 0.0

    @property
    def rows_total(self) -> int | None:
        """Rows of the whole work; None while nothing is known of any."""
        rows = self.left.rows + self._done.rows
        return round(rows) if rows else None

    @property
    def tokens_total(self) -> int | None:
        """Tokens of the whole work; None while nothing is known of any."""
        tokens = self.left.tokens + self._done.tokens
        return round(tokens) if tokens else None
