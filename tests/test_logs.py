"""What stands on stderr: lines for people, or one JSON object each for machines, and nothing between them."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.logs import JsonLines, are_json, set_up_logs
from jobs.progress import Progress, Status, advanced, chosen_mode, live_texts
from tests.running import jobs


@pytest.fixture
def bare_root() -> Iterator[logging.Logger]:
    """The root logger without handlers; what a test adds goes away after it."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    root.handlers.clear()
    yield root
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)


def line_of(message: str, *arguments: object, **extra: str) -> dict[str, object]:
    """Return the line of a message as an object."""
    record = logging.LogRecord("pipeline.x", logging.WARNING, __file__, 1, message, arguments, None)
    record.__dict__ |= extra
    line: dict[str, object] = json.loads(JsonLines().format(record))
    return line


def test_the_fields_of_a_message_are_fields_of_its_object_numbers_as_numbers() -> None:
    line = line_of("event=quarantined shard=%s block=%d share=0.5 first=s3://in/a.parquet:17", "1f2e", 3)
    assert line["event"] == "quarantined"
    assert line["shard"] == "1f2e"
    assert (line["block"], line["share"]) == (3, 0.5)
    assert line["first"] == "s3://in/a.parquet:17"
    assert (line["level"], line["logger"]) == ("WARNING", "pipeline.x")


def test_a_progress_line_is_an_event_of_that_name() -> None:
    line = line_of("progress phase=encoding rows=30 done=0.250")
    assert (line["event"], line["phase"], line["rows"], line["done"]) == ("progress", "encoding", 30, 0.25)


def test_an_error_is_given_whole() -> None:
    assert line_of("failed kind=ConfigError", error="two words\nand a line")["error"] == "two words\nand a line"


def test_where_lines_are_for_machines_no_bar_is_drawn(
    bare_root: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    set_up_logs("text")
    assert not are_json()
    assert chosen_mode("auto", terminal) == "live"
    bare_root.handlers.clear()
    set_up_logs("json")
    assert are_json()
    assert chosen_mode("auto", terminal) == "lines"


def test_progress_tells_how_busy_the_encoders_are_where_there_is_room(caplog: pytest.LogCaptureFixture) -> None:
    status = advanced(Status("encoding"), 0.0, 10, 40, 500, 0.25, 0, 0.875)
    assert "encoders 88 % busy" in live_texts(status, 0.0, 120)
    assert "encoders 88 % busy" not in live_texts(status, 0.0, 50)
    caplog.set_level(logging.INFO)
    now = 0.0
    with Progress("lines", io.StringIO(), lambda: now) as progress:
        progress.update(10, 40, 500, 0.25, 0, 0.875)
        now = 31.0
        progress.update(20, 40, 1000, 0.5, 0, 0.9)
    assert "encoder_busy=0.90" in caplog.text
    assert "rows_total=40" in caplog.text


def test_a_failure_is_one_object_on_stdout_and_objects_alone_on_stderr(tmp_path: Path) -> None:
    finished = jobs("embed", str(tmp_path / "none.yaml"), "--json", "--log-format", "json")
    assert finished.code == 2
    assert finished.report["outcome"] == "failed"
    lines = [json.loads(line) for line in finished.stderr.splitlines()]
    assert lines[-1]["event"] == "failed"
    assert "no such config file" in lines[-1]["error"]
