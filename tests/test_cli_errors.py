"""What a user gets wrong ends in one clear line and the right exit code, without a traceback."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from jobs.demo.local_s3 import LocalS3
from pipeline.errors import PipelineError
from tests.running import Finished, embed, jobs, written_config

Embed = Callable[..., Finished]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with one file of three rows."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    pq.write_table(pa.table({"id": [1, 2, 3], "text": ["a", "b", "c"], "n": [1.5] * 3}), folder / "a.parquet")
    return folder


@pytest.fixture
def embed_here(capsys: pytest.CaptureFixture[str]) -> Embed:
    """Run `embed … --json` in this process: what is refused before anything starts is tried without a new Python."""

    def run(*arguments: str) -> Finished:
        code = main(["embed", *arguments, "--json"])
        return Finished(code, *capsys.readouterr())

    return run


def config(tmp_path: Path, source: object, output: object, **sections: dict[str, Any]) -> str:
    addresses = {"source": {"uri": str(source)}, "output": {"uri": str(output)}}
    return written_config(tmp_path / "job.yaml", **{"recipe": {"model": "hashing://8"}} | addresses | sections)


def assert_told(run: Finished, code: int, *words: str) -> None:
    """The run has failed with this code and one line that holds these words; nothing else looks like a crash."""
    assert run.code == code, run.stderr
    assert "Traceback" not in run.stderr
    assert len(run.errors) == 1, run.stderr
    for word in words:
        assert word in run.errors[0]


def test_an_unknown_command_is_refused_with_the_list_of_commands() -> None:
    run = jobs("embedd")
    assert run.code == 2
    assert "Traceback" not in run.stderr
    assert "embed" in run.stderr


def test_an_unknown_key_is_refused_with_its_line(tmp_path: Path, corpus: Path, embed_here: Embed) -> None:
    path = config(tmp_path, corpus, tmp_path / "out", runtime={"batch_tokns": 4})
    assert_told(embed_here(path), 2, "job.yaml:", "runtime.batch_tokns", "did you mean runtime.batch_tokens?")


def test_a_config_that_is_not_there_is_named() -> None:
    assert_told(embed("nowhere.yaml"), 2, "nowhere.yaml")


def test_a_missing_column_is_named_with_the_nearest_one(tmp_path: Path, corpus: Path, embed_here: Embed) -> None:
    path = config(tmp_path, corpus, tmp_path / "out")
    assert_told(
        embed_here(path, "source.text_column=txt"), 2, "'txt'", "did you mean 'text'?", "a.parquet", "text_column"
    )


@pytest.mark.parametrize("key", ["text_column", "id_column"])
def test_a_column_of_the_wrong_type_is_named_with_its_type(
    tmp_path: Path, corpus: Path, key: str, embed_here: Embed
) -> None:
    path = config(tmp_path, corpus, tmp_path / "out")
    assert_told(embed_here(path, f"source.{key}=n"), 1, "'n'", "double")


@pytest.mark.parametrize("pattern", ["corpus/*.jsonl", "nothing", "nothing.parquet"])
def test_a_source_without_files_is_named(tmp_path: Path, corpus: Path, pattern: str, embed_here: Embed) -> None:
    assert_told(embed_here(config(tmp_path, tmp_path / pattern, tmp_path / "out")), 1, "no files matched", pattern)
    assert not (tmp_path / "out").exists()


def test_files_of_another_kind_are_pointed_to(tmp_path: Path, embed_here: Embed) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.docx").write_bytes(b"x")
    assert_told(embed_here(config(tmp_path, tmp_path / "in", tmp_path / "out")), 1, "a.docx", "source.format")


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path, corpus: Path, embed_here: Embed) -> None:
    (corpus / "a.parquet").write_bytes(b"this is no Parquet file")
    assert_told(embed_here(config(tmp_path, corpus, tmp_path / "out")), 1, "a.parquet")


@pytest.mark.parametrize("model", ["folder", "nowhere/at/all"])
def test_a_model_folder_that_is_none_is_named(tmp_path: Path, corpus: Path, model: str) -> None:
    (tmp_path / "folder").mkdir()
    path = config(tmp_path, corpus, tmp_path / "out", recipe={"model": str(tmp_path / model)})
    cache = {"BATCH_EMBEDDINGS_CACHE": str(tmp_path / "cache")}
    assert_told(embed(path, environment=cache), 1, model, "modules.json" if model == "folder" else "no such folder")


@pytest.mark.parametrize("model", ["hashing://", "hashing://x", "hashing://0"])
def test_a_hashing_model_needs_a_dimension(tmp_path: Path, corpus: Path, model: str, embed_here: Embed) -> None:
    assert_told(embed_here(config(tmp_path, corpus, tmp_path / "out", recipe={"model": model})), 2, model)


def test_more_dimensions_than_the_model_has_are_refused(tmp_path: Path, corpus: Path, embed_here: Embed) -> None:
    path = config(tmp_path, corpus, tmp_path / "out", recipe={"model": "hashing://8", "dimensions": 9})
    assert_told(embed_here(path), 2, "recipe.dimensions is 9", "8")


def test_a_partition_column_that_cannot_name_folders_is_refused(
    tmp_path: Path, corpus: Path, embed_here: Embed
) -> None:
    path = config(tmp_path, corpus, tmp_path / "out")
    assert_told(embed_here(path, "source.keep_columns=[n]", "output.partition_by=[n]"), 2, "partition_by", "double")


def test_an_output_below_a_file_is_told(tmp_path: Path, corpus: Path, embed_here: Embed) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert_told(embed_here(config(tmp_path, corpus, tmp_path / "file" / "out")), 1, str(tmp_path / "file" / "out"))


def test_an_output_that_is_a_file_is_told(tmp_path: Path, corpus: Path, embed_here: Embed) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert_told(embed_here(config(tmp_path, corpus, tmp_path / "file")), 1, str(tmp_path / "file"))
    assert (tmp_path / "file").read_bytes() == b"content"


def test_status_of_an_empty_output_is_told(tmp_path: Path) -> None:
    assert_told(jobs("status", str(tmp_path)), 1, "no snapshot is published there")


@pytest.mark.parametrize("side", ["source", "output"])
def test_a_missing_bucket_is_named(tmp_path: Path, s3: LocalS3, corpus: Path, side: str) -> None:
    sides = {"source": corpus, "output": tmp_path / "out"} | {side: "s3://no-such-bucket/x"}
    run = embed(config(tmp_path, sides["source"], sides["output"]), environment=s3.environment)
    assert_told(run, 1, "the bucket no-such-bucket does not exist")


def test_an_output_that_may_only_be_read_is_told(tmp_path: Path, s3: LocalS3, bucket: str, corpus: Path) -> None:
    run = embed(config(tmp_path, corpus, f"s3://{bucket}/out"), environment=s3.environment_of(s3.read_only))
    assert_told(run, 1, "access denied", f"s3://{bucket}/out")
    assert_no_secret(s3, run.stdout + run.stderr)


def test_a_source_that_may_not_be_read_is_told(tmp_path: Path, s3: LocalS3, bucket: str) -> None:
    s3.filesystem().pipe_file(f"{bucket}/in/a.jsonl", b'{"id": 1, "text": "a"}\n')
    path = config(tmp_path, f"s3://{bucket}/in/", tmp_path / "out")
    run = embed(path, environment=s3.environment_of(s3.without_rights))
    assert_told(run, 1, "access denied", f"s3://{bucket}/in/")
    assert_no_secret(s3, run.stdout + run.stderr)


def test_a_wrong_secret_is_told(tmp_path: Path, s3: LocalS3, bucket: str) -> None:
    wrong = s3.environment | {"AWS_SECRET_ACCESS_KEY": "planted-secret-planted-secret"}
    run = embed(config(tmp_path, f"s3://{bucket}/in/", tmp_path / "out"), environment=wrong)
    assert_told(run, 1, "access denied")
    assert "planted-secret" not in run.stdout + run.stderr


@pytest.mark.parametrize("side", ["source", "output", "model"])
def test_an_endpoint_that_is_down_is_told_within_seconds(tmp_path: Path, s3: LocalS3, corpus: Path, side: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    down = s3.environment | {"AWS_ENDPOINT_URL": url, "AWS_ENDPOINT_URL_S3": url}
    sides = {"source": corpus, "output": tmp_path / "out", "model": "hashing://8"} | {side: "s3://bucket/x"}
    path = config(tmp_path, sides["source"], sides["output"], recipe={"model": sides["model"]})
    run = embed(path, environment=down, seconds=25)
    assert_told(run, 1, "no answer from the storage endpoint", "AWS_ENDPOINT_URL", "s3://bucket/x")


def test_a_store_of_an_unknown_kind_is_told(tmp_path: Path, corpus: Path, embed_here: Embed) -> None:
    assert_told(embed_here(config(tmp_path, corpus, "nosuchstore://x/y")), 1, "nosuchstore://x/y")


def test_a_dry_run_touches_nothing_and_prints_one_object(tmp_path: Path, corpus: Path, embed_here: Embed) -> None:
    run = embed_here(config(tmp_path, corpus, tmp_path / "out"), "--dry-run")
    assert run.code == 0, run.stderr
    assert (run.report["files"], run.report["rows"], run.report["shards_done"]) == (1, 3, 0)
    assert not (tmp_path / "out").exists()


def assert_no_secret(s3: LocalS3, text: str) -> None:
    for identity in (s3.admin, s3.read_only, s3.without_rights):
        assert identity.secret_key not in text


def test_what_ray_prints_meanwhile_does_not_stand_beside_the_json(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: object) -> None:
        print("(raylet) A worker died or was killed while executing a task by an unexpected system error.")
        raise PipelineError("ended")

    monkeypatch.setattr("pipeline.execution.run.run", run)
    assert main(["embed", config(tmp_path, corpus, tmp_path / "out"), "--json"]) == 1
    said = capsys.readouterr()
    assert orjson.loads(said.out) == {"outcome": "failed", "error": "ended"}
    assert "(raylet)" in said.err
