"""The account at the end of a run, where an entry of quarantine can stand for many rows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import JobConfig
from pipeline.errors import ReconciliationError
from pipeline.execution.proof.reconcile import reconcile
from pipeline.execution.publish import check_quarantine
from pipeline.execution.reporting.metrics import RunReport
from pipeline.records import BlockReceipt, Part, Shard, SourceFile, Span
from pipeline.storage.filesystem import Store

SHARD = Shard("s1", (Span(SourceFile("in/a.parquet", "v1", 1000, "parquet"), 0, 2, 100),))


def part(kind: Any, rows: int) -> Part:
    return Part(kind, "s1-00000.parquet", "s1", 0, rows, 10, "etag", "hash", "hash")


RECEIPT = BlockReceipt(
    "s1",
    0,
    True,
    rows_read=100,
    embedded=60,
    quarantined=40,
    parts=(part("embeddings", 60), part("quarantine", 3)),
    metrics={"unreadable_bytes": 380.0},
    reasons={"null_text": 2, "unreadable_stretch": 38},
    entries=3,
)
"""60 good rows, 2 bad ones, and a stretch of 38."""


def test_a_stretch_counts_as_its_rows_and_is_one_line_of_its_part() -> None:
    [row] = reconcile([SHARD], [RECEIPT], chunked=False)
    assert (row["rows_read"], row["embedded"], row["quarantined"]) == (100, 60, 40)
    assert (row["entries"], row["unreadable_bytes"]) == (3, 380)


@pytest.mark.parametrize(
    "changed",
    [
        {"entries": 4},
        {"entries": None},
        {"parts": (part("embeddings", 60), part("quarantine", 2))},
        {"parts": (part("embeddings", 60),)},
        {"parts": (part("embeddings", 59), part("quarantine", 3))},
        {"reasons": {"null_text": 2, "unreadable_stretch": 1}},
        {"quarantined": 39},
        {"quarantined": 39, "rows_read": 99, "reasons": {"unreadable_stretch": 39}},
        {
            "embedded": 60,
            "quarantined": 2,
            "rows_read": 62,
            "reasons": {"null_text": 2},
        },
    ],
    ids=str,
)
def test_any_other_count_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ReconciliationError, match="Nothing was published"):
        reconcile([SHARD], [replace(RECEIPT, **changed)], chunked=False)


def test_a_receipt_of_before_there_were_stretches_has_as_many_lines_as_rows() -> None:
    old = replace(RECEIPT, entries=None, parts=(part("embeddings", 60), part("quarantine", 40)))
    assert reconcile([SHARD], [old], chunked=False)[0]["entries"] == 40


def test_a_lost_tail_of_a_large_file_does_not_pass_as_one_row(tmp_path: Path) -> None:
    config = JobConfig.model_validate(
        {"source": {"uri": "in"}, "recipe": {"model": "hashing://8"}, "output": {"uri": str(tmp_path)}}
    )
    report = RunReport("failed", str(tmp_path), rows_read=10_000, embedded=9_999, quarantined=1, source_bytes=10_000)
    report.reasons = {"unreadable_stretch": 1}
    store = Store(str(tmp_path))
    report.unreadable_bytes = 100
    check_quarantine(config, report, store, "folder")
    report.unreadable_bytes = 101
    with pytest.raises(ReconciliationError, match="101 of 10000 bytes of the source could not be read"):
        check_quarantine(config, report, store, "folder")
