"""A real model whose encoder is killed, with its storage behind the fault proxy: the vectors are the model's own."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer

from jobs.demo.local_s3 import LocalS3
from pipeline.storage.filesystem import Store
from tests.chaos.conftest import MILD
from tests.chaos.disturbed import FLIGHT_SECONDS, World
from tests.chaos.kills import ENCODER_TITLE
from tests.chaos.proxy import FaultProxy
from tests.chaos.rows import check_folder, folder_rows
from tests.running import written_config

TEXTS = 192

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(1800)]


@pytest.mark.long
def test_a_killed_encoder_of_a_real_model_changes_no_vector(
    world: World, proxy: FaultProxy, straight: LocalS3, m3e_small: Path, reviews: pa.Table, tmp_path: Path
) -> None:
    texts = reviews.slice(0, TEXTS)
    world.s3.create_bucket("real")
    sink = pa.BufferOutputStream()
    pq.write_table(texts, sink)
    Store("s3://real/texts").put("reviews.parquet", sink.getvalue().to_pybytes())
    path = written_config(
        tmp_path / "real.yaml",
        source={"uri": "s3://real/texts/"},
        recipe={"model": str(m3e_small), "compute": "float32"},
        output={"uri": "s3://real/out", "rows_per_part": 8},
    )
    before = proxy.hits.total()
    proxy.set_rules(MILD)
    try:
        driver = world.start_driver(path, tmp_path / "real.log")
        busy = f"{ENCODER_TITLE})).submit"  # it has loaded its model and is encoding
        victim = driver.is_seen(lambda: world.cluster.find(busy, random.Random(0)), FLIGHT_SECONDS)
        assert victim is not None, driver.said[-3000:]
        assert victim.kill()
        world.tally.kills["encoder actor"] += 1
        assert driver.wait() == 0, driver.said[-3000:]
    finally:
        proxy.set_rules([])
    assert proxy.hits.total() > before
    check_folder("s3://real/out")
    rows, texts = folder_rows("s3://real/out"), texts.sort_by("id")
    assert rows["id"].to_pylist() == texts["id"].to_pylist()
    oracle_ND = SentenceTransformer(str(m3e_small), device="cpu").encode(
        texts["text"].to_pylist(), normalize_embeddings=True, convert_to_numpy=True
    )
    vectors_ND = np.stack(rows["embedding"].to_numpy(zero_copy_only=False))
    assert (vectors_ND * oracle_ND).sum(1).min() > 0.9999
