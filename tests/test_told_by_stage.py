"""What a stage has raised on its worker is told to the user in one line, without what Ray adds to it."""

from pipeline.errors import PipelineError, StorageError
from pipeline.execution.streaming import told_by_stage

OURS = "cannot write s3://features/part.parquet: access denied (AccessDenied); check the rights"


def test_the_message_of_a_stage_comes_without_the_lines_that_ray_appends() -> None:
    told = told_by_stage(StorageError(f"{OURS}\nFailed to apply UDF transform after 1/1 attempts.\nTo change …"))
    assert (type(told), str(told)) == (StorageError, OURS)


def test_an_error_of_another_kind_is_called_a_bug_and_its_message_is_not_repeated() -> None:
    told = told_by_stage(ValueError("a text of the corpus"))
    assert type(told) is PipelineError
    assert "ValueError" in str(told)
    assert "corpus" not in str(told)
