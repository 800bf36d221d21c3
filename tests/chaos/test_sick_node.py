"""A node whose device gives NaN for everything: its encoders are replaced, it is left out, and the run finishes."""

from pathlib import Path

import orjson
import pytest

from pipeline import open_snapshot
from pipeline.execution.attempts import MAX_STRIKES
from tests.chaos.cluster import RayCluster
from tests.chaos.network import Loopback
from tests.faulty_model import Faults, write_faulty_model
from tests.running import embed, written_config

ROWS = 96

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.long, pytest.mark.timeout(900)]


def test_a_sick_node_is_left_out_and_the_others_finish_the_run(tmp_path: Path, m3e_small: Path) -> None:
    model = write_faulty_model(m3e_small, tmp_path / "model")
    rows = ({"id": row, "text": f"第{row}家酒店"} for row in range(ROWS))
    (tmp_path / "corpus.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    faults = Faults(tmp_path)
    with RayCluster(Loopback(), faults.environment) as cluster:
        faults.set(sick_address=cluster.workers[0].place.address, processes=MAX_STRIKES)
        config = written_config(
            tmp_path / "job.yaml",
            source={"uri": str(tmp_path / "corpus.jsonl")},
            recipe={"model": str(model), "compute": "float32", "trust_remote_code": True, "max_tokens": 32},
            output={"uri": str(tmp_path / "out"), "rows_per_part": 4},
            runtime={"ray_address": cluster.address, "batch_tokens": 1024, "encoders": 2},
        )
        finished = embed(config, environment=cluster.environment | faults.environment, seconds=800)
    assert finished.code == 0, finished.stderr[-3000:]
    assert len({process for process, _ in faults.noted("sick")}) == MAX_STRIKES
    snapshot = open_snapshot(str(tmp_path / "out"))
    assert sorted(snapshot.to_table(["id"])["id"].to_pylist()) == list(range(ROWS))
    assert (finished.report["embedded"], finished.report["quarantined"]) == (ROWS, 0)
    assert any("was left out" in warning for warning in finished.report["warnings"])
