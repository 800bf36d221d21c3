"""`verify`: read a published snapshot whole and compare it with what it says of itself."""

import argparse

from pipeline.config_file import load_config
from pipeline.units import counted, thousands

FAILED_CHECK = 4


def run(options: argparse.Namespace) -> int:
    """Run the command; return 0 if the snapshot is sound, 4 if not."""
    from pipeline.execution.verify import verification_json, verify
    from pipeline.storage.snapshots import open_snapshot

    is_config = options.output.endswith((".yaml", ".yml"))
    uri = load_config(options.output, options.overrides).output.uri if is_config else options.output
    snapshot = open_snapshot(uri)
    result = verify(snapshot)
    if options.json:
        print(verification_json(result).decode())
    else:
        looked_at = f"snapshot {result.snapshot}: {thousands(result.rows)} rows in {counted(result.parts, 'Part')}"
        print(f"{looked_at}: {'sound' if result.is_sound else 'NOT sound'}")
        for finding in result.findings:
            print(f"  {finding.check:<12} {finding.path}: {finding.detail}")
        hidden = sum(result.counts.values()) - len(result.findings)
        if hidden:
            print(f"  … and {counted(hidden, 'finding')} more")
    return 0 if result.is_sound else FAILED_CHECK
