"""What a stage has raised on its worker is told to the user in one line, without what Ray adds to it."""

import traceback

import pytest

from pipeline.errors import PipelineError, StorageError
from pipeline.execution.attempts import Attempts, marked
from pipeline.execution.told_by_stage import told_by_stage
from pipeline.records import Shard, SourceFile, Span

OURS = "cannot write s3://features/part.parquet: access denied (AccessDenied); check the rights"


def test_the_message_of_a_stage_comes_without_the_lines_that_ray_appends() -> None:
    told = told_by_stage(StorageError(f"{OURS}\nFailed to apply UDF transform after 1/1 attempts.\nTo change …"))
    assert (type(told), str(told)) == (StorageError, OURS)


def test_an_error_of_another_kind_is_told_with_its_shard_its_block_and_its_file() -> None:
    shard = Shard("1f2e", (Span(SourceFile("s3://corpus/a.parquet", "1", 10, "parquet")),))
    with pytest.raises(ZeroDivisionError) as caught, marked(Attempts(), "encode", shard, 3):
        print(1 / 0)
    told = str(told_by_stage(caught.value))
    assert "ZeroDivisionError" in told
    assert "in encode of Shard 1f2e, Block 3 (s3://corpus/a.parquet); this is a bug" in told
    beyond_ray = RuntimeError("".join(traceback.format_exception(caught.value)))  # where only the text is left of it
    assert "in encode of Shard 1f2e, Block 3 (s3://corpus/a.parquet); this is a bug" in str(told_by_stage(beyond_ray))


def test_an_error_of_another_kind_is_called_a_bug_and_its_message_is_not_repeated() -> None:
    told = told_by_stage(ValueError("a text of the corpus"))
    assert type(told) is PipelineError
    assert "ValueError" in str(told)
    assert "corpus" not in str(told)
