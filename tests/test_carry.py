"""Parts of earlier runs in a new snapshot: what stands under their names already is adopted, never mistaken."""

import os
from pathlib import Path

import orjson
import pytest

from pipeline import open_snapshot
from pipeline.config import JobConfig
from pipeline.execution.verification.verify import verify
from tests.inline import Killed, run_inline


def write(corpus: Path, name: str) -> None:
    """Write a file that is a Shard of its own, with one Block."""
    rows = [{"id": f"{name}-{row}", "text": f"{name} {row} " + "x" * 300} for row in range(3)]
    (corpus / name).write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    os.utime(corpus / name, ns=(10**9, 10**9))


@pytest.mark.parametrize("carry", ["copy", "reference"])
def test_a_block_written_by_two_runs_is_published_as_it_stands(tmp_path: Path, bucket: str, carry: str) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        write(corpus, name)
    for output in (str(tmp_path / "out"), f"s3://{bucket}/out"):
        config = JobConfig.model_validate(
            {
                "source": {"uri": str(corpus)},
                "recipe": {"model": "hashing://8"},
                "output": {"uri": output, "rows_per_part": 3, "carry": carry},
            }
        )
        with pytest.raises(Killed):
            run_inline(config, dies_after_blocks=0)  # the Part of a.jsonl is written and not journalled
        write(corpus, "c.jsonl")
        with pytest.raises(Killed):
            run_inline(config, dies_after_blocks=1)  # another run has written and journalled a.jsonl
        (corpus / "c.jsonl").unlink()
        report = run_inline(config)  # the first run again: it carries a.jsonl to where it stands already
        assert (report.reused, report.embedded) == (3, 3)
        snapshot = open_snapshot(output)
        assert verify(snapshot).is_sound
        assert {part["folder"] for part in snapshot.parts.to_pylist()} == {snapshot.record.folder}
