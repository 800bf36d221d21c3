"""What a person reads at the end of a run, and the units it is written in."""

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.summary import plan_text, print_summary, summary_text
from pipeline import units
from pipeline.execution.planning.estimate import PlanSummary
from pipeline.execution.reporting.metrics import RunReport
from tests.example_report import FOLDER, example_report

PLAN = PlanSummary(
    files=40,
    shards=40,
    shards_redone=0,
    rows_retried=0,
    shards_done=2,
    rows=8000,
    rows_are_exact=True,
    source_bytes=1_934_112,
    bytes_to_read=1_800_000,
    is_done=False,
    snapshot=41,
)


def test_a_summary_says_the_whole_run_in_at_most_ten_aligned_lines() -> None:
    lines = summary_text(example_report()).splitlines()
    assert len(lines) <= 10
    assert lines[0] == "Snapshot 42 published in 45 s"
    assert lines[1] == ("  rows        8,000 read = 7,240 embedded + 600 reused + 23 quarantined + 137 deduplicated ✓")
    assert lines[5] == "  quarantine  17 empty_text, 4 invalid_utf8, 2 null_text"
    assert f"{FOLDER} (80 Parts, 52.1 MB written, 1,792 dimensions)" in lines[6]
    assert lines[7].startswith(f'  read with   polars.scan_parquet("{FOLDER}/**/*.parquet"')
    assert all(line[:2] == "  " and line[13] == " " and line[14] != " " for line in lines[1:])


def test_what_does_not_apply_is_left_out() -> None:
    text = summary_text(RunReport("nothing_to_do", "s3://features/reviews/", snapshot=41, seconds={"total": 2.1}))
    assert text.splitlines() == [
        "Nothing to do: snapshot 41 stands, compared in 2.1 s",
        "  output      s3://features/reviews/",
    ]


def test_a_failed_run_begins_with_its_reason() -> None:
    failed = RunReport("failed", "s3://features/reviews/", error="The bucket corpus does not exist.")
    assert summary_text(failed).startswith("Run failed: The bucket corpus does not exist.\n")


def test_rows_that_do_not_add_up_are_marked() -> None:
    assert "✗ does not add up" in summary_text(replace(example_report(), embedded=7000))


def test_a_summary_is_printed_where_it_is_asked_to_be() -> None:
    file = io.StringIO()
    print_summary(example_report(), file)
    assert file.getvalue() == summary_text(example_report()) + "\n"


def test_a_plan_says_what_is_there_what_is_done_and_what_is_left() -> None:
    assert plan_text(PLAN).splitlines() == [
        "38 of 40 shards to embed",
        "  source      40 files, 1.93 MB",
        "  rows        8,000",
        "  shards      40, of which 2 are done",
        "  to read     1.80 MB",
        "  snapshot    41 stands",
    ]


def test_a_plan_admits_what_it_does_not_know() -> None:
    text = plan_text({**PLAN, "rows_are_exact": False, "snapshot": None})
    assert "  rows        about 8,000" in text
    assert "  snapshot    none yet" in text


def test_a_plan_with_every_shard_done_is_nothing_to_do() -> None:
    assert plan_text({**PLAN, "shards_done": 40, "is_done": True}).startswith("nothing to do")


def test_a_plan_whose_blocks_are_all_written_but_not_published_says_so() -> None:
    assert plan_text({**PLAN, "shards_done": 40}).startswith("nothing to embed; a new snapshot")


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.7, "1.00 kB"),
        (32_149_000, "32.1 MB"),
        (999_960, "1.00 MB"),
        (1.2e12, "1.20 TB"),
    ],
)
def test_sizes_have_three_figures(size_bytes: float, text: str) -> None:
    assert units.byte_size(size_bytes) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.42, "0.42 s"),
        (0.999, "1.0 s"),
        (9.97, "10 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (86_399, "1 d 0 h"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations_have_at_most_two_units(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (0, "0 %"),
        (0.0001, "<0.1 %"),
        (0.041, "4.1 %"),
        (0.81, "81 %"),
        (0.996, "99.6 %"),
        (0.99999, ">99.9 %"),
        (1, "100 %"),
    ],
)
def test_a_share_is_whole_only_when_it_is(fraction: float, text: str) -> None:
    assert units.percent(fraction) == text


def test_counts_are_short_where_room_is_short() -> None:
    assert [units.short_count(number) for number in (0, 9840, 15_310, 580_213, 1_240_000)] == [
        "0", "9,840", "15.3k", "580k", "1.24M",
    ]  # fmt: skip
    assert units.counted(1, "row") == "1 row"
    assert units.counted(8000, "row") == "8,000 rows"


def test_importing_summary_and_progress_loads_nothing_heavy() -> None:
    program = (
        "import sys, jobs.summary, jobs.progress;"
        "print(sorted({'rich', 'altair', 'jinja2', 'numpy', 'pyarrow', 'ray', 'torch'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[1]
    seen = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert seen.stdout.strip() == "[]"


def test_bytes_that_could_not_be_read_are_told_beside_the_reasons() -> None:
    text = summary_text(replace(example_report(), unreadable_bytes=3_400_000))
    assert "  quarantine  17 empty_text, 4 invalid_utf8, 2 null_text; 3.40 MB unreadable" in text.splitlines()
