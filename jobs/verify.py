"""`verify`: read a published snapshot whole, compare it with what it says of itself and with its source."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.config_file import output_of
from pipeline.units import counted, thousands

if TYPE_CHECKING:
    from pipeline.execution.verification.findings import Finding, Verification

FAILED_CHECK = 4
SHOWN = 3
"""Rows of a file that a person is shown for one check; `--json` has a hundred."""


def run(options: argparse.Namespace) -> int:
    """Run the command; return 0 if the snapshot is sound, 4 if not."""
    import orjson

    from pipeline.execution.verification.verify import verify
    from pipeline.storage.snapshots import open_snapshot

    uri = output_of(options.output, options.overrides).uri
    result = verify(open_snapshot(uri), options.sample, options.seed)
    print(orjson.dumps(result.to_json()).decode() if options.json else verification_text(result))
    return 0 if result.is_sound else FAILED_CHECK


def verification_text(result: "Verification") -> str:
    """Return what a person reads: the verdict, what was compared, and what is wrong."""
    looked_at = f"snapshot {result.snapshot}: {thousands(result.rows)} rows in {counted(result.parts, 'Part')}"
    lines = [f"{looked_at}: {'sound' if result.is_sound else 'NOT sound'}", f"  source       {_source(result)}"]
    if result.ids_are_unique is None:
        lines.append("  ids          not compared: published with source.duplicate_ids: allow")
    if result.sample:
        lines.append(f"  sample       {_sample(result)}")
    return "\n".join([*lines, *_findings(result)])


def _findings(result: "Verification") -> Iterator[str]:
    """Yield a line per file, and below it what is wrong with it; of many rows with one fault the first few."""
    by_path: dict[str, dict[str, list[Finding]]] = {}
    for finding in result.findings:
        by_path.setdefault(finding.path, {}).setdefault(finding.check, []).append(finding)
    for path, checks in by_path.items():
        yield path
        for check, findings in checks.items():
            for finding in findings[:SHOWN]:
                yield f"  {check:<12} {'' if finding.row is None else f'row {finding.row}: '}{finding.detail}"
            if len(findings) > SHOWN:
                yield f"  {check:<12} … and {counted(len(findings) - SHOWN, 'row')} more"
    if hidden := sum(result.counts.values()) - len(result.findings):
        yield f"… and {counted(hidden, 'finding')} more"


def _source(result: "Verification") -> str:
    found = result.recount
    text = f"{thousands(found.rows)} rows in {counted(found.shards, 'Shard')} counted again"
    return text + _not_compared(found.not_compared, "Shard", found.why)


def _sample(result: "Verification") -> str:
    assert result.sample is not None
    found, text = result.sample, "no row was encoded again"
    if found.min_cosine is not None:
        cosines = f"cosine at least {found.min_cosine:.6f}, mean {found.mean_cosine:.6f}"
        text = f"{counted(found.rows, 'row')} encoded again in float32: {cosines} ({found.expected:.6f} expected)"
    return text + _not_compared(found.not_compared, "row", found.why)


def _not_compared(number: int, noun: str, why: str) -> str:
    return f"; {counted(number, noun)} could not be compared ({why})" if number else ""
