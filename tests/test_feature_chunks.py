"""Long texts as features: one row of all their chunks, and known from when the last of them was."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tests.test_feature_table import Job, embeddings_of, rows_of, unit
from tests.test_feature_times import known_at, now


def test_the_chunks_of_a_long_text_become_one_row_by_each_way_of_pooling(tmp_path: Path, m3e_small: Path) -> None:
    table = pa.table({"id": ["long", "short"], "text": ["这家酒店很好，早餐也不错。" * 6, "一般"]})
    job = Job(tmp_path, table)
    recipe = ["max_tokens=24", "long_text=chunk", "compute=float32", f"model={m3e_small}"]
    chunks = job.embed(*(f"recipe.{override}" for override in recipe)).to_table().sort_by("chunk")
    assert chunks.num_rows >= 5
    vectors_ND = embeddings_of(chunks.filter(pc.equal(chunks["id"], "long")))
    tokens_N1 = chunks.filter(pc.equal(chunks["id"], "long"))["tokens"].to_numpy()[:, None]
    expected = {
        "mean": vectors_ND.mean(axis=0),
        "max": vectors_ND.max(axis=0),
        "first": vectors_ND[0],
        "by_tokens": (vectors_ND * tokens_N1).sum(axis=0),
    }
    for pool, vector_D in expected.items():
        run = job.features(f"features.pool={pool}")
        assert rows_of(run)["id"].to_pylist() == ["long", "short"]
        np.testing.assert_allclose(embeddings_of(rows_of(run))[0], unit(vector_D), atol=1e-6)
        assert run.table.record.totals["documents"] == 2


def test_a_long_text_whose_end_was_changed_or_cut_off_is_not_known_before_it(tmp_path: Path, m3e_small: Path) -> None:
    recipe = [f"recipe.model={m3e_small}", "recipe.max_tokens=24", "recipe.long_text=chunk", "recipe.compute=float32"]
    table = pa.table({"id": [1, 2], "text": ["这家酒店很好，早餐也不错。" * 4, "一般"]})
    job = Job(tmp_path, table)

    def night(text: str) -> pa.Table:
        pq.write_table(table.set_column(1, "text", pa.array([text, "一般"])), job.file)
        return job.embed(*recipe).to_table().sort_by([("id", "ascending"), ("chunk", "ascending")])

    text = table["text"][0].as_py()
    chunks = night(text)
    for changed in (f"{text}但是房间很小。", text[: chunks["char_end"][0].as_py()]):
        between = now()
        chunks = night(changed)
        assert chunks["created_timestamp"][0].as_py() < between, "the first chunk has the vector of before"
        before, after = known_at(job, 1, between, now())
        assert before is None
        assert after is not None
        np.testing.assert_allclose(after, embeddings_of(job.features().table.dataset().to_table())[0])
        assert known_at(job, 2, between)[0] is not None
