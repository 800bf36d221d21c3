"""The gate of a run: an encoder that gives pinned texts other vectors than it should writes nothing."""

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from jobs.__main__ import main
from pipeline.arrow import fixed_size_list
from pipeline.encoder.canary import Bounds
from pipeline.encoder.hashing import HashingEncoder
from pipeline.encoder.packed import encode_packed
from pipeline.encoder.sentence_transformer import SentenceTransformerEncoder
from pipeline.errors import ConfigError, GateFailed
from pipeline.execution import run as execution
from pipeline.execution.canary_gate import MIN_COSINE, Canary, check_encoder
from pipeline.records import TokenBatch
from pipeline.storage.filesystem import Store
from pipeline.storage.snapshots import open_snapshot
from tests import without_ray
from tests.benchmarks.random_model import Shape, make_model
from tests.running import written_config
from tests.without_ray import run_in_process

WIDTH = 16
TEXTS = [f"文本 {number}" for number in range(12)]


@pytest.fixture
def config(tmp_path: Path) -> str:
    (tmp_path / "in").mkdir()
    ids = pa.array(range(len(TEXTS)), pa.int64())
    pq.write_table(pa.table({"id": ids, "text": TEXTS}), tmp_path / "in" / "a.parquet")
    return written_config(
        tmp_path / "job.yaml",
        source={"uri": str(tmp_path / "in")},
        recipe={"model": f"hashing://{WIDTH}"},
        output={"uri": str(tmp_path / "out")},
    )


def vectors_of_run(config: str) -> NDArray[np.float32]:
    """Run without a gate; return the vectors in the order of TEXTS."""
    rows = open_snapshot(run_in_process(config).output_uri).to_table().sort_by("id")
    return np.stack(rows["embedding"].to_numpy()).astype(np.float32)


def pinned(folder: Path, vectors_ND: NDArray[np.float32]) -> str:
    """Write a canary file; return the argument that names it."""
    vectors = fixed_size_list(np.ascontiguousarray(vectors_ND), pa.list_(pa.float32(), vectors_ND.shape[1]))
    pq.write_table(pa.table({"text": TEXTS, "embedding": vectors}), folder / "canary.parquet")
    return f"gate.canary={folder / 'canary.parquet'}"


def test_an_encoder_that_gives_the_references_passes_and_nothing_is_embedded_anew(config: str, tmp_path: Path) -> None:
    canary = pinned(tmp_path, vectors_of_run(config))
    assert run_in_process(config, canary).outcome == "nothing_to_do"
    assert run_in_process(config, canary, f"output.uri={tmp_path / 'other'}").embedded == len(TEXTS)


def test_the_references_are_cut_to_the_dimensions_of_the_recipe(config: str, tmp_path: Path) -> None:
    canary = pinned(tmp_path, vectors_of_run(config))
    assert run_in_process(config, canary, "recipe.dimensions=8", "gate.min_cosine=0.9999").embedded == len(TEXTS)


def test_an_encoder_that_has_drifted_writes_nothing_and_ends_with_exit_code_4(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    canary = pinned(tmp_path, vectors_of_run(config))
    other = tmp_path / "other"
    encode = HashingEncoder.encode

    def drifted(self: HashingEncoder, batch: object) -> NDArray[np.float32]:
        vectors_BD = encode(self, batch)  # type: ignore[arg-type]
        return np.roll(vectors_BD, 1, axis=1)

    with (
        patch.object(HashingEncoder, "encode", drifted),
        patch.object(execution, "_encode_missing", without_ray._encode_missing),
    ):
        assert main(["embed", config, canary, f"output.uri={other}"]) == 4
    said = capsys.readouterr().err
    assert "does not give the vectors of gate.canary: cosine to the reference" in said
    assert not any(text in said for text in TEXTS)
    assert [key for key in Store(str(other)).files("") if key.startswith("snapshots/")] == []


def sharpened(model: Path) -> str:
    """Let the layers of a random model say more beside the embeddings, which are exact in any number type."""
    (file,) = (path for path in model.rglob("model.safetensors") if path.stat().st_size > 50_000)
    weights = load_file(file)
    save_file(
        {name: 8 * w if ".layer." in name and w.ndim == 2 else w for name, w in weights.items()}, file, {"format": "pt"}
    )
    return str(model)


def test_a_recipe_in_float32_is_not_computed_in_bfloat16(tmp_path: Path) -> None:
    shape = Shape(layers=2, hidden=64, heads=2, inner=128, dimensions=32, vocabulary=200, max_tokens=32)
    model = sharpened(make_model(tmp_path / "model", shape))
    reference, drifted = (
        SentenceTransformerEncoder(model, compute, device="cpu") for compute in ("float32", "bfloat16")
    )
    lengths_N = np.arange(2, 22)
    tokens = TokenBatch(
        np.random.default_rng(0).integers(4, 200, lengths_N.sum(), np.int32), np.append(0, lengths_N.cumsum())
    )
    references_ND = encode_packed(reference, tokens, 1024).vectors_ND
    in_float32, in_bfloat16 = (
        Canary(tokens, references_ND, Bounds(MIN_COSINE[compute])) for compute in ("float32", "bfloat16")
    )
    check_encoder(in_float32, reference, 1024, None)
    check_encoder(in_bfloat16, drifted, 1024, None)
    with pytest.raises(GateFailed, match=r"cosine to the reference .* at least 0\.999990 expected"):
        check_encoder(in_float32, drifted, 1024, None)


def test_references_of_fewer_numbers_than_the_vectors_are_refused(config: str, tmp_path: Path) -> None:
    canary = pinned(tmp_path, vectors_of_run(config)[:, :8])
    with pytest.raises(GateFailed, match="references of 8 numbers, vectors of 16"):
        run_in_process(config, canary, f"output.uri={tmp_path / 'other'}")


def test_a_canary_that_is_none_is_told_before_anything_is_encoded(config: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no"):
        run_in_process(config, f"gate.canary={tmp_path / 'nowhere.parquet'}")
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "canary.parquet")
    with pytest.raises(ConfigError, match="no Parquet file with `text` and `embedding`"):
        run_in_process(config, f"gate.canary={tmp_path / 'canary.parquet'}")
