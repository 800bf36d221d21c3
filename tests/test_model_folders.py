"""Model folders from a store: none lands outside the cache or is used half or changed, no code of theirs runs."""

import pickle
import shutil
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import orjson
import pytest

from jobs.demo.local_s3 import LocalS3
from pipeline.encoder.loading import load_model
from pipeline.errors import EncoderError, StorageError
from pipeline.storage import folder_cache
from pipeline.storage.folder_cache import fetch_folder, remote_folder_identity
from tests.running import embed, written_config

FILES = {"modules.json": b"[]", "1_Pooling/config.json": b"{}", "weights": b"weights" * 100}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BATCH_EMBEDDINGS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def model(s3: LocalS3, bucket: str) -> str:
    """The address of a folder on S3."""
    for name, content in FILES.items():
        s3.filesystem().pipe_file(f"{bucket}/model/{name}", content)
    return f"s3://{bucket}/model"


def fetched(uri: str) -> Path:
    return fetch_folder(uri, remote_folder_identity(uri))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_fetched_whole_and_for_its_owner_alone(cache: Path, model: str) -> None:
    folder = fetched(model)
    assert contents(folder) == FILES
    assert [stat.S_IMODE(path.stat().st_mode) for path in (cache, folder)] == [0o700, 0o700]


def test_a_folder_that_is_there_is_not_fetched_again(cache: Path, model: str) -> None:
    folder = fetched(model)
    before = (folder / "weights").stat().st_ino
    assert (fetched(model) / "weights").stat().st_ino == before


def test_encoders_of_a_node_that_start_together_fetch_a_folder_once(
    cache: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads: list[str] = []
    download = folder_cache._download

    def counted(uri: str, *arguments: Any) -> None:
        downloads.append(uri)
        download(uri, *arguments)

    monkeypatch.setattr(folder_cache, "_download", counted)
    with ThreadPoolExecutor(4) as encoders:
        folders = set(encoders.map(fetched, [model] * 4))
    assert len(folders) == 1
    assert downloads == [model]


def emptied(folder: Path) -> None:
    (folder / "weights").write_bytes(b"")


def with_a_file_less(folder: Path) -> None:
    (folder / "weights").unlink()


def with_a_file_more(folder: Path) -> None:
    (folder / "modeling.py").write_bytes(b"print('mine')")


def with_a_link_in_it(folder: Path) -> None:
    elsewhere = folder.parents[2] / "elsewhere"
    (folder / "weights").rename(elsewhere)
    (folder / "weights").symlink_to(elsewhere)


def as_a_link(folder: Path) -> None:
    folder.rename(folder.parents[2] / "elsewhere")
    folder.symlink_to(folder.parents[2] / "elsewhere")


def without_its_list(folder: Path) -> None:
    folder.with_suffix(".json").unlink()


def with_half_a_list(folder: Path) -> None:
    folder.with_suffix(".json").write_bytes(b'{"weights": 7')


TAMPERING = [emptied, with_a_file_less, with_a_file_more, with_a_link_in_it, as_a_link, without_its_list]
TAMPERING += [with_half_a_list]


@pytest.mark.parametrize("tamper", TAMPERING)
def test_a_copy_that_is_not_as_it_was_fetched_is_fetched_again(
    cache: Path, model: str, tamper: Callable[[Path], None]
) -> None:
    folder = fetched(model)
    tamper(folder)
    kept = contents(folder.parents[2] / "elsewhere")
    assert fetched(model) == folder
    assert not folder.is_symlink()
    assert contents(folder) == FILES
    assert contents(folder.parents[2] / "elsewhere") == kept


def test_a_folder_that_changes_is_not_taken_for_the_one_that_was_planned(cache: Path, s3: LocalS3, model: str) -> None:
    planned = remote_folder_identity(model)
    s3.filesystem().pipe_file(f"{model.removeprefix('s3://')}/weights", b"others")
    with pytest.raises(StorageError, match="was changed since this run was planned"):
        fetch_folder(model, planned)
    assert not any(path.is_dir() for path in cache.iterdir())


class Hostile(fsspec.AbstractFileSystem):  # type: ignore[misc]
    """A store that lists whatever names it was given; real servers refuse some of them."""

    protocol = "hostile"
    cachable = False
    files: ClassVar[dict[str, bytes]] = {}

    def find(self, path: str, maxdepth: int | None = None, withdirs: bool = False, **_: Any) -> dict[str, Any]:
        return {name: {"name": name, "size": len(f), "type": "file", "ETag": "1"} for name, f in self.files.items()}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return self.files[path][start:end]


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    fsspec.register_implementation("hostile", Hostile, clobber=True)
    monkeypatch.setattr(Hostile, "files", {"models/m/modules.json": b"[]"})
    return Hostile.files


def test_a_store_of_another_kind_is_fetched_too(cache: Path, hostile: dict[str, bytes]) -> None:
    assert contents(fetched("hostile://models/m")) == {"modules.json": b"[]"}


@pytest.mark.parametrize(
    "name",
    ["m/../x", "m/a/../../x", "m//etc/x", "m/..", "m/./x", "m/..\\x", "m/C:\\x", "m/a\0b", "other/x", "m-x/y", "../x"],
)
def test_a_file_whose_name_leads_elsewhere_is_refused(
    cache: Path, tmp_path: Path, hostile: dict[str, bytes], name: str
) -> None:
    hostile[f"models/{name}"] = b"evil"
    with pytest.raises(StorageError, match="would land outside its copy"):
        fetch_folder("hostile://models/m", "identity")
    written = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert written in ([], ["identity.lock"])


def test_a_name_that_is_a_file_and_a_folder_is_refused(cache: Path, hostile: dict[str, bytes]) -> None:
    hostile["models/m/modules.json/x"] = b"evil"
    with pytest.raises(StorageError, match="both as a file and as a folder"):
        fetch_folder("hostile://models/m", "identity")


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def pickled(mark: Path) -> dict[str, bytes]:
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    return {"modules.json": orjson.dumps(modules), "pytorch_model.bin": pickle.dumps(Evil(mark))}


def bringing_code(mark: Path) -> dict[str, bytes]:
    modules = [{"idx": 0, "name": "0", "path": "", "type": "custom.Module"}]
    return {"modules.json": orjson.dumps(modules), "custom.py": f"open({str(mark)!r}, 'w')".encode()}


def leading_out(mark: Path) -> dict[str, bytes]:
    modules = [{"idx": 0, "name": "0", "path": "../..", "type": "sentence_transformers.models.Transformer"}]
    return {"modules.json": orjson.dumps(modules)}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (pickled, "recipe.allow_pickled_weights: true"),
        (bringing_code, "recipe.trust_remote_code: true"),
        (leading_out, "leads out of the folder"),
    ],
)
def test_a_model_on_s3_that_would_run_code_is_refused_with_what_allows_it(
    tmp_path: Path, s3: LocalS3, bucket: str, files: Callable[[Path], dict[str, bytes]], words: str
) -> None:
    mark = tmp_path / "code-has-run"
    for name, content in files(mark).items():
        s3.filesystem().pipe_file(f"{bucket}/model/{name}", content)
    (tmp_path / "a.jsonl").write_bytes(b'{"id": 1, "text": "a"}\n')
    path = written_config(
        tmp_path / "job.yaml",
        source={"uri": str(tmp_path / "a.jsonl")},
        recipe={"model": f"s3://{bucket}/model"},
        output={"uri": str(tmp_path / "out")},
    )
    run = embed(path, environment=s3.environment | {"BATCH_EMBEDDINGS_CACHE": str(tmp_path / "cache")})
    assert run.code == EncoderError("").exit_code
    assert len(run.errors) == 1, run.stderr
    assert words in run.errors[0]
    assert "Traceback" not in run.stderr
    assert not mark.exists()


def test_pickled_weights_that_are_allowed_run_no_code_either(m3e_small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(m3e_small, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "code-has-run"), protocol=2))
    with pytest.raises(EncoderError, match="pickled weights hold more than numbers"):
        load_model(str(folder), "float32", trust_remote_code=False, allow_pickled_weights=True, device="cpu")
    assert not (tmp_path / "code-has-run").exists()
