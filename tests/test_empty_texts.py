"""What becomes of empty and whitespace-only texts: `source.empty_text: quarantine | zero | embed`."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from pipeline.encoder.hashing import HashingEncoder
from pipeline.encoder.packed import encode_or_zero, encode_packed, only
from pipeline.execution.verification.verify import verify
from pipeline.records import TokenBatch
from pipeline.storage.snapshots import Snapshot
from tests.running import written_config
from tests.without_ray import published_in_process, run_in_process

TEXTS = ["good", "", " \t\u3000", "also good"]


def config(folder: Path, policy: str | None, **recipe: Any) -> str:
    pq.write_table(pa.table({"id": range(4), "text": TEXTS}), folder / "in.parquet")
    return written_config(
        folder / "job.yaml",
        source={"uri": str(folder / "in.parquet")} | ({"empty_text": policy} if policy else {}),
        recipe={"model": "hashing://16"} | recipe,
        output={"uri": str(folder / "out")},
        runtime={"max_quarantined_fraction": 0.5},
    )


def rows_of(snapshot: Snapshot) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = snapshot.to_table().sort_by("id").to_pylist()
    return rows


class OnlyTexts(HashingEncoder):
    """Refuses rows without tokens, as a model may."""

    def encode(self, batch: TokenBatch) -> NDArray[np.float32]:
        assert batch.lengths_N.min() > 0
        return super().encode(batch)


@pytest.mark.parametrize("stored", ["float32", "float16", "int8", "binary"])
def test_zero_gives_an_empty_text_a_zero_vector_and_no_token_and_verify_agrees(tmp_path: Path, stored: str) -> None:
    snapshot = published_in_process(config(tmp_path, "zero", stored=stored))
    rows = rows_of(snapshot)
    assert [row["tokens"] == 0 for row in rows] == [False, True, True, False]
    assert [not any(row["embedding"]) for row in rows] == [False, True, True, False]
    assert [row["truncated"] for row in rows] == [False] * 4
    result = verify(snapshot)
    assert result.is_sound, result.findings


def test_quarantine_is_the_default_and_keeps_what_stood_there(tmp_path: Path) -> None:
    snapshot = published_in_process(config(tmp_path, None))
    assert [row["id"] for row in rows_of(snapshot)] == [0, 3]
    entries = pq.read_table(tmp_path / "out" / "quarantine").to_pylist()
    assert [(e["row"], e["id"], e["reason"], e["raw_bytes"]) for e in entries] == [
        (1, "1", "empty_text", 0),
        (2, "2", "empty_text", 5),
    ]


def test_embed_gives_the_vector_that_the_model_gives(tmp_path: Path) -> None:
    snapshot = published_in_process(config(tmp_path, "embed"))
    rows = rows_of(snapshot)
    assert [row["id"] for row in rows] == [0, 1, 2, 3]
    assert all(row["tokens"] > 0 for row in rows)


def test_another_policy_embeds_what_it_concerns(tmp_path: Path) -> None:
    path = config(tmp_path, "zero")
    assert run_in_process(path).embedded == 4
    report = run_in_process(path, "source.empty_text=quarantine")
    assert (report.embedded, report.taken_over) == (0, 2)
    assert run_in_process(path, "source.empty_text=embed").embedded == 2


@pytest.mark.parametrize("empty", [[], [0], [1, 3], [0, 1, 2, 3, 4]])
def test_rows_without_tokens_never_reach_the_encoder_and_move_no_other(empty: list[int]) -> None:
    tokens = TokenBatch(np.arange(15, dtype=np.int32), np.array([0, 1, 4, 6, 10, 15]))
    is_kept_N = ~np.isin(np.arange(5), empty)
    found = encode_or_zero(OnlyTexts(8), only(tokens, is_kept_N), 16)
    expected_ND = encode_packed(HashingEncoder(8), tokens, 16).vectors_ND * is_kept_N[:, None]
    np.testing.assert_array_equal(found.vectors_ND, expected_ND)
    assert found.done_N.all()
    assert not found.failures
