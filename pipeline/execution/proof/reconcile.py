"""The proof at the end of a run: every row read is accounted for, in every Shard, or nothing is published."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from pipeline.errors import ReconciliationError
from pipeline.fingerprint import JsonValue
from pipeline.records import BlockReceipt, Shard, Span


def reconcile(wanted: Sequence[Shard], receipts: Iterable[BlockReceipt], chunked: bool) -> list[dict[str, Any]]:
    """Check that the receipts stand for every Block of every wanted Shard, once, and that their counts add up.

    Args:
        wanted: the Shards of the plan.
        receipts: all Blocks, new and carried.
        chunked: whether a row may have become several.

    Returns:
        One row of `snapshots.SHARDS` per Shard, in the order of the plan.

    Raises:
        ReconciliationError: the message names the Shard and the inequality.
    """
    by_shard: dict[str, list[BlockReceipt]] = defaultdict(list)
    for receipt in receipts:
        by_shard[receipt.shard_id].append(receipt)
    strangers = by_shard.keys() - {shard.shard_id for shard in wanted}
    if strangers:
        raise ReconciliationError(f"Shard {min(strangers)} was written but not planned; nothing was published")
    return [_check_shard(shard, by_shard[shard.shard_id], chunked) for shard in wanted]


def _check_shard(shard: Shard, receipts: Sequence[BlockReceipt], chunked: bool) -> dict[str, Any]:
    blocks = sum(int(receipt.metrics.get("blocks", 1)) for receipt in receipts)
    last = [receipt.block for receipt in receipts if receipt.is_last]
    numbers = {receipt.block for receipt in receipts}
    if len(last) != 1 or blocks != last[0] + 1 or len(numbers) != len(receipts):
        raise _failure(shard, f"Blocks {sorted(numbers)} written, last ones {last}; expected 0 to the last, each once")
    for receipt in receipts:
        rows = Counter({part.kind: 0 for part in receipt.parts})
        for part in receipt.parts:
            rows[part.kind] += part.rows
        if receipt.rows_read != receipt.embedded + receipt.quarantined + receipt.deduplicated:
            raise _failure(
                shard,
                f"Block {receipt.block}: {receipt.rows_read} rows read, {receipt.embedded} embedded + "
                f"{receipt.quarantined} quarantined + {receipt.deduplicated} deduplicated",
            )
        vectors = rows["embeddings"]
        off = vectors < receipt.embedded if chunked else vectors != receipt.embedded
        entries = receipt.quarantine_lines
        if off or rows["quarantine"] != entries:
            raise _failure(
                shard,
                f"Block {receipt.block}: its Parts hold {rows['embeddings']} + {rows['quarantine']} rows, expected "
                f"{receipt.embedded} + {entries}",
            )
        if not entries <= receipt.quarantined == sum(receipt.reasons.values()):
            raise _failure(
                shard,
                f"Block {receipt.block}: {entries} entries of quarantine for {receipt.quarantined} rows, by reason "
                f"{receipt.reasons}",
            )
    rows_read = sum(receipt.rows_read for receipt in receipts)
    footer = [span.rows for span in shard.spans]
    if None not in footer and sum(rows for rows in footer if rows is not None) != rows_read:
        raise _failure(shard, f"{rows_read} rows read, {footer} by the footers of its files")
    return {
        "shard_id": shard.shard_id,
        "sources": orjson.dumps([_source(span) for span in shard.spans]).decode(),
        "blocks": blocks,
        "rows_read": rows_read,
        "embedded": sum(receipt.embedded for receipt in receipts),
        "quarantined": sum(receipt.quarantined for receipt in receipts),
        "entries": sum(receipt.quarantine_lines for receipt in receipts),
        "unreadable_bytes": int(sum(receipt.metrics.get("unreadable_bytes", 0) for receipt in receipts)),
        "reasons": orjson.dumps(dict(sum((Counter(r.reasons) for r in receipts), Counter()))).decode(),
        "deduplicated": sum(receipt.deduplicated for receipt in receipts),
    }


def _source(span: Span) -> list[JsonValue]:
    """Return what is needed to read the same rows again: `recount.shard_of` does."""
    file = span.file
    return [file.uri, file.version, span.position, file.format, file.size_bytes]


def _failure(shard: Shard, what: str) -> ReconciliationError:
    uris = ", ".join(span.file.uri for span in shard.spans[:3])
    return ReconciliationError(f"Shard {shard.shard_id} ({uris}): {what}. Nothing was published; please report this.")
