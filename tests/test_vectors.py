"""Vectors: equal to what sentence-transformers itself gives, for texts that nobody chose."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.transformer import Transformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling

from pipeline.encoder.describe import ModelDescription, describe_model
from pipeline.encoder.loading import load_model
from pipeline.encoder.model_folder import check_folder
from pipeline.encoder.packed import encode_packed
from pipeline.encoder.sentence_transformer import SentenceTransformerEncoder
from pipeline.encoder.vectors import finish, to_stored
from pipeline.errors import EncoderError
from pipeline.text.tokenizer import TokenizerSpec, load_tokenizer, with_prompt

TEXTS = [
    "",
    " ",
    " \t\n\r\f\v ",
    "\u3000\u00a0\u2028",
    "好",
    "价格便宜,送货很快,屏幕清楚,就是声音有点小。",
    "😀👍🏽👨‍👩‍👧‍👦🇨🇳",
    "很长" * 5000,
    "word " * 2000,
    "一二三four пять ستة שבע แปด ९ δέκα",
    "\x00\x01\x1f\x7f\x80\x9f",
    "mixed\x00inside\x1btext",
    "\u202eאבג abc 123\u202c",
    "zero\u200bwidth\u200d\ufeffjoin\u00ad",
    "[CLS] [SEP] [PAD] [MASK] [UNK]",
    "<script>alert(1)</script> ${x} %s {0}",
    "ＦＵＬＬ　ｗｉｄｔｈ ﬁ ﬂ ①②③",
    "e\u0301 é Å Å",
    "𠀀𪚥 \U0010ffff \ufffd",
    "a" * 3000,
    "。" * 600,
]
PROMPT = "为这个句子生成表示："


def described(folder: Path) -> ModelDescription:
    return describe_model(str(folder), folder.parent / f"{folder.name}.description.json")


def embedded(
    folder: Path,
    texts: Sequence[str] = TEXTS,
    compute: str = "float32",
    prompt: str | None = None,
    dimensions: int | None = None,
) -> NDArray[np.float32]:
    """Embed as the stages of a run do: describe, tokenise, pack, encode, finish."""
    description = described(folder)
    prompt = description.default_prompt if prompt is None else prompt
    spec = TokenizerSpec(min(512, description.max_tokens), prompt, description.tokenizer_json)
    tokens, _ = load_tokenizer(spec)(with_prompt(pa.array(texts, pa.string()), prompt), spec.max_tokens)
    encoder = SentenceTransformerEncoder(str(folder), compute, prompt, threads=1)
    assert encoder.dimension == description.dimension
    return finish(encode_packed(encoder, tokens, 2048).vectors_ND, dimensions, normalize=True)


def reference(folder: Path, texts: Sequence[str] = TEXTS, truncate_dim: int | None = None, **how: Any) -> Any:
    """Embed as the documentation of sentence-transformers says."""
    model = SentenceTransformer(str(folder), device="cpu", truncate_dim=truncate_dim, local_files_only=True)
    return model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False, **how)


def cosines(ours_ND: NDArray[Any], theirs_ND: NDArray[Any]) -> NDArray[np.float64]:
    a, b = ours_ND.astype(np.float64), theirs_ND.astype(np.float64)
    return np.asarray((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


def assert_equal(ours_ND: NDArray[np.float32], theirs_ND: NDArray[np.float32]) -> None:
    assert ours_ND.shape == theirs_ND.shape
    assert ours_ND.dtype == np.float32
    assert cosines(ours_ND, theirs_ND).min() >= 0.99999
    assert np.abs(np.linalg.norm(ours_ND.astype(np.float64), axis=1) - 1).max() < 1e-5


@pytest.fixture(scope="module")
def m3e(m3e_small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A link to m3e-small in a folder of the tests, beside which its description is kept."""
    link = tmp_path_factory.mktemp("models") / "m3e"
    link.symlink_to(m3e_small)
    return link


@pytest.fixture(scope="module")
def ours(m3e: Path) -> NDArray[np.float32]:
    return embedded(m3e)


@pytest.fixture(scope="module")
def theirs(m3e: Path) -> Any:
    return reference(m3e)


def test_float32_vectors_are_those_of_sentence_transformers(
    ours: NDArray[np.float32], theirs: NDArray[np.float32]
) -> None:
    assert_equal(ours, theirs)


def test_a_prompt_stands_before_every_text(m3e: Path, ours: NDArray[np.float32]) -> None:
    prompted = embedded(m3e, prompt=PROMPT)
    assert_equal(prompted, reference(m3e, prompt=PROMPT))
    assert cosines(prompted, ours).min() < 0.99


def test_truncated_dimensions_are_normalised_again(m3e: Path) -> None:
    assert_equal(embedded(m3e, dimensions=128), reference(m3e, truncate_dim=128))


def test_float16_keeps_the_direction_to_four_digits(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
    (column,) = to_stored(ours, "float16")
    assert column.type.value_type == pa.float16()
    assert cosines(column.flatten().to_numpy(zero_copy_only=False).reshape(ours.shape), theirs).min() >= 0.9999


def test_int8_times_its_scale_keeps_the_direction_to_three_digits(
    ours: NDArray[np.float32], theirs: NDArray[np.float32]
) -> None:
    codes, scale = to_stored(ours, "int8")
    codes_ND = codes.flatten().to_numpy().reshape(ours.shape)
    assert np.abs(codes_ND.astype(np.int16)).max() == 127
    assert cosines(codes_ND * scale.to_numpy()[:, None], theirs).min() >= 0.999
    assert np.abs(codes_ND * scale.to_numpy()[:, None] - ours).max() <= scale.to_numpy().max() / 2 + 1e-7


def test_binary_keeps_the_sign_of_every_number(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
    (column,) = to_stored(ours, "binary")
    bits_ND = np.unpackbits(np.array([np.frombuffer(row, np.uint8) for row in column.to_pylist()]), axis=1)
    is_clear_ND = np.abs(theirs) > 1e-5
    assert (bits_ND.astype(bool) == (theirs > 0))[is_clear_ND].all()


@pytest.mark.parametrize("stored", ["float32", "float16", "int8", "binary"])
def test_a_vector_of_zeros_and_no_vectors_at_all_can_be_stored(stored: str) -> None:
    zeros = finish(np.zeros((1, 16), np.float32), None, normalize=True)
    assert not zeros.any()
    assert [len(column) for column in to_stored(zeros, stored)] == [1] * (2 if stored == "int8" else 1)
    assert all(len(column) == 0 for column in to_stored(np.zeros((0, 16), np.float32), stored))


@pytest.fixture(scope="module")
def dense(m3e_small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Transformer → Pooling → Dense(512→896) → Normalize, with random weights in the head and a default prompt."""
    torch.manual_seed(1)
    transformer = Transformer(str(m3e_small), max_seq_length=128)
    head = Dense(512, 896, activation_function=torch.nn.Tanh())
    modules = [transformer, Pooling(512, pooling_mode="mean"), head, Normalize()]
    prompts = {"query": "查询：", "document": "文档："}
    model = SentenceTransformer(modules=modules, prompts=prompts, default_prompt_name="document", device="cpu")
    folder = tmp_path_factory.mktemp("models") / "dense"
    model.save(str(folder), create_model_card=False)
    return folder


def test_the_description_of_a_model_comes_from_its_last_module_and_its_own_config(dense: Path, m3e: Path) -> None:
    description = described(dense)
    assert (description.dimension, description.max_tokens, description.default_prompt) == (896, 128, "文档：")
    assert (described(m3e).dimension, described(m3e).max_tokens, described(m3e).default_prompt) == (512, 512, "")


def test_a_dense_head_and_the_models_default_prompt_are_honoured(dense: Path) -> None:
    assert_equal(embedded(dense), reference(dense))
    assert_equal(embedded(dense, prompt=""), reference(dense, prompt=""))


def test_bfloat16_stays_close_to_float32(dense: Path) -> None:
    assert cosines(embedded(dense, compute="bfloat16"), reference(dense)).min() >= 0.999


def test_a_prompt_that_the_model_leaves_out_of_the_pooling_stays_out(
    m3e_small: Path, tmp_path: Path, ours: NDArray[np.float32]
) -> None:
    modules = [Transformer(str(m3e_small)), Pooling(512, pooling_mode="mean", include_prompt=False)]
    folder = tmp_path / "instructed"
    SentenceTransformer(modules=modules, device="cpu").save(str(folder), create_model_card=False)
    texts = [text for text in TEXTS if len(text) < 600]
    assert_equal(embedded(folder, texts, prompt=PROMPT), reference(folder, texts, prompt=PROMPT))


def test_a_folder_without_modules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"has no modules\.json"):
        describe_model(str(tmp_path), tmp_path / "description.json")


def linked_copy(folder: Path, target: Path) -> Path:
    """Return a copy of a model folder whose large files are links."""
    shutil.copytree(folder, target, copy_function=lambda source, to: Path(to).symlink_to(source))
    return target


def test_weights_that_are_only_pickled_are_refused_unless_allowed(m3e_small: Path, tmp_path: Path) -> None:
    folder = linked_copy(m3e_small, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="allow_pickled_weights: true"):
        check_folder(folder, False, False)
    check_folder(folder, False, True)


def test_code_that_a_model_brings_is_refused_unless_allowed(m3e_small: Path, tmp_path: Path) -> None:
    folder = linked_copy(m3e_small, tmp_path / "foreign")
    (folder / "modules.json").unlink()
    modules = [{"idx": 0, "name": "0", "path": "", "type": "evil.Transformer"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(EncoderError, match=r"evil\.Transformer.*trust_remote_code: true"):
        load_model(str(folder), "float32", False, False, "cpu")


def test_weights_that_are_damaged_are_told_in_one_line(m3e_small: Path, tmp_path: Path) -> None:
    folder = linked_copy(m3e_small, tmp_path / "damaged")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0garbage!")
    with pytest.raises(EncoderError) as caught:
        describe_model(str(folder), tmp_path / "description.json")
    assert "\n" not in str(caught.value)
    assert "damaged" in str(caught.value)
