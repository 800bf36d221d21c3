"""The report page: what it says, that it is whole, safe and drawn."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.execution.reporting import charts
from pipeline.execution.reporting.comparison import compared
from pipeline.execution.reporting.metrics import RunReport
from pipeline.execution.reporting.report import (
    bottleneck,
    headline,
    reading_snippets,
    render_html,
    report_json,
    sentence,
)
from pipeline.execution.reporting.vector_map import Neighbours
from tests.browsing import PAPERS, Browse, first_pixel, text_of
from tests.example_report import example_map, example_report


@pytest.fixture(scope="module")
def page() -> str:
    return render_html(example_report(), example_map())


def test_the_page_says_what_came_of_the_run_and_of_every_row(page: str) -> None:
    text = text_of(page)
    assert "Snapshot 42 published" in text
    assert "8,000 rows read = 7,240 embedded + 600 reused + 23 quarantined + 137 deduplicated ✓" in text
    assert all(figure in text for figure in ("580,213", "15,110", "52.1 MB"))
    assert "1,792" in text
    assert "61 of 7,240 rows (0.8 %)" in text


def test_rows_that_are_missing_are_shown_as_missing() -> None:
    text = text_of(render_html(replace(example_report(), embedded=7233)))
    assert "✗ 7 unaccounted for" in text
    assert "✓" not in text


def test_quarantine_is_listed_by_reason_and_only_if_there_is_any(page: str) -> None:
    assert re.search("Quarantine empty_text 17 .* invalid_utf8 4 .* null_text 2", text_of(page))
    clean = render_html(replace(example_report(), embedded=7263, quarantined=0, reasons={}))
    assert "Quarantine" not in text_of(clean)


def test_bytes_that_could_not_be_read_are_told(page: str) -> None:
    assert "could not be read" not in text_of(page)
    broken = render_html(replace(example_report(), unreadable_bytes=3_400_000))
    assert "3.40 MB of the source could not be read" in text_of(broken)


def test_what_comes_from_outside_is_escaped() -> None:
    attack = "</td><script>alert(1)</script>"
    report = replace(
        example_report(),
        error=attack,
        outcome="failed",
        output_uri=f"s3://{attack}",
        folder=f"s3://{attack}",
        recipe={attack: attack, "model": attack},
        versions={attack: attack},
        device=attack,
        reasons={attack: 1},
    )
    page = render_html(report)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_page_refers_to_nothing_outside_itself(page: str) -> None:
    assert re.findall(r"""(?:src|href|action|data|poster)\s*=\s*["']?(?!data:,)[^\s"'>]+""", page) == []
    assert re.findall(r"url\((?!#)|@import|<script|<iframe|<object", page) == []
    assert "default-src 'none'" in page


def test_element_ids_are_unique_although_several_drawings_share_the_page(page: str) -> None:
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    "report",
    [
        RunReport("nothing_to_do", "s3://features/reviews/", snapshot=41),
        RunReport("failed", "s3://features/reviews/", error="The bucket corpus does not exist."),
        replace(example_report(), timeline=[(1.0, 8000, 580_213)]),
        replace(example_report(), timeline=[(1.0, 10, 10), (1.0, 20, 20)]),
    ],
    ids=["nothing to do", "failed", "one moment", "two points, one moment"],
)
def test_a_chart_without_data_is_a_sentence(report: RunReport) -> None:
    page = render_html(report)
    assert "Too short to draw" in page
    assert page.count("<svg") == (2 if report.tokens else 0)


def test_a_failed_run_says_why_and_that_nothing_was_published() -> None:
    report = RunReport("failed", "s3://features/reviews/", error="The bucket corpus does not exist.")
    assert headline(report) == "Run failed"
    assert sentence(report) == "The bucket corpus does not exist. Nothing was published."
    assert "is kept and will be used by the next run" in sentence(replace(report, parts=3))


def test_busy_encoders_are_named_as_the_bottleneck_and_idle_ones_are_not() -> None:
    assert "88 % of the run: they set the pace" in str(bottleneck(example_report()))
    starved = replace(example_report(), stage_seconds={"read": 2.0, "tokenize": 60.0, "encode": 20.0, "write": 1.0})
    assert "waited for the rest. Of the other stages tokenize took the most time" in str(bottleneck(starved))
    assert bottleneck(RunReport("nothing_to_do", "s3://features/reviews/")) is None


def test_throughput_keeps_every_token_and_does_not_follow_bursts() -> None:
    burst = [(0.0, 0, 0), (9.9, 10, 100), (10.0, 20, 200), (19.9, 30, 300), (20.0, 40, 400)]
    stretches = charts.throughput(burst)
    assert sum((one["end"] - one["start"]) * one["rate"] for one in stretches) == pytest.approx(400)
    assert max(one["rate"] for one in stretches) < 40


def test_only_buckets_between_the_shortest_and_the_longest_text_are_drawn() -> None:
    buckets = charts.token_buckets([0, 3, 0, 12_345, 0, 0, 0, 0, 0, 0, 0, 0])
    assert [(one["tokens"], one["label"]) for one in buckets] == [
        ("≤ 16", "3"),
        ("≤ 32", ""),
        ("≤ 64", "12.3k"),
    ]


def test_positions_of_quarantined_rows_stand_beside_their_reason(page: str) -> None:
    assert "null_text 2 <0.1 % s3://corpus/reviews/part-0003.parquet, row 17" in text_of(page)


def test_what_was_estimated_stands_beside_what_happened(page: str) -> None:
    figures = {one.name: one for one in compared(example_report())}
    assert figures["Tokens"].off == pytest.approx(571_000 / 580_213 - 1)
    assert figures["Time in all"].told == "+3.5 %"
    assert "Tokens 571,000 580,213 −1.6 %" in text_of(page)
    assert "from 12 of 37 Shards; the machine was busy" in text_of(page)
    assert compared(replace(example_report(), estimate=None)) == []
    assert compared(replace(example_report(), outcome="failed")) == []


def test_the_cost_is_that_of_the_encoders_for_as_long_as_they_were_held() -> None:
    report = example_report()
    assert report.cost == pytest.approx(2.5 * 2 * (5.9 + 38.4) / 3600)
    assert replace(report, estimate=None).cost is None


def test_the_map_tells_which_colour_is_which_value_and_how_much_it_shows(page: str) -> None:
    text = text_of(page)
    assert "300 of 7,840 vectors on their two main directions, which hold 21 % of the variance" in text
    assert "label = pos label = neg label = null" in text
    assert 'id="map"' not in render_html(example_report())


def test_texts_stand_in_the_page_only_where_they_are_given(page: str) -> None:
    assert "Nearest neighbours" not in text_of(page)
    shown = render_html(example_report(), example_map(), [Neighbours("a <b> text", ((0.912, "its neighbour"),))])
    assert "a &lt;b&gt; text" in shown
    assert "0.912 its neighbour" in text_of(shown)


def test_a_report_is_drawn_alike_from_its_json() -> None:
    again = RunReport.from_json(json.loads(report_json(example_report())))
    assert again == example_report()
    assert RunReport.from_json({"outcome": "failed", "output_uri": "out", "of_another_version": 1}).outcome == "failed"


def test_the_json_keeps_the_order_of_the_fields_and_derived_figures() -> None:
    report = json.loads(report_json(example_report()))
    assert list(report)[:3] == ["outcome", "output_uri", "run_key"]
    assert report["accounted"] == report["rows_read"] == 8000
    assert report["timeline"][0] == [0.0, 0, 0]


@pytest.mark.parametrize("library", ["pyarrow", "DuckDB", "Polars"])
def test_the_snippets_on_the_page_read_a_partitioned_folder(library: str, tmp_path: Path) -> None:
    folder = tmp_path / "it's a folder"
    vectors = pa.array([[0.6, 0.8]], pa.list_(pa.float32(), 2))
    for label in ("pos", "neg"):
        (folder / f"label={label}").mkdir(parents=True)
        pq.write_table(pa.table({"id": [label], "embedding": vectors}), folder / f"label={label}" / "a-0.parquet")
    module = {"DuckDB": "duckdb", "Polars": "polars"}.get(library, "pyarrow")
    pytest.importorskip(module)
    names: dict[str, Any] = {}
    snippet = reading_snippets(str(folder))[library]
    assert len(snippet.splitlines()) == 3
    exec(snippet, names)
    table = names["rows"].to_table() if library == "pyarrow" else names["vectors"]
    assert sorted(map(str, table["id"].to_pylist() if library != "Polars" else table["id"])) == ["neg", "pos"]


def test_importing_the_report_loads_no_chart_library() -> None:
    chart_libraries = "{'altair', 'vl_convert', 'jinja2'}"
    program = f"import sys, pipeline.execution.reporting.report; print({chart_libraries} & set(sys.modules))"
    root = Path(__file__).parents[1]
    seen = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert seen.stdout.strip() == "set()"


def test_a_browser_draws_every_chart_and_complains_of_nothing(page: str, browse: Browse) -> None:
    dom, complaints = browse(page)
    assert complaints == []
    for chart in ("throughput", "rows", "histogram", "stages", "map"):
        figure = re.search(rf'<figure id="{chart}">.*?</figure>', dom, re.DOTALL)
        assert figure, chart
        marks = re.findall(r'aria-roledescription="(?:area mark|bar|circle)"', figure.group())
        assert marks, chart


def test_the_complaints_of_a_page_would_be_seen(page: str, browse: Browse) -> None:
    broken = page.replace("<body>", '<body><img src="http://127.0.0.1:9/x.png">')
    assert "Content Security Policy" in "".join(browse(broken)[1])


@pytest.mark.parametrize(("arguments", "paper"), PAPERS)
def test_the_page_follows_the_theme_of_the_reader(
    page: str, browse: Browse, tmp_path: Path, arguments: tuple[str, ...], paper: tuple[int, ...]
) -> None:
    shot = tmp_path / "page.png"
    browse(page, *arguments, f"--screenshot={shot}", "--window-size=1200,1800")
    assert first_pixel(shot.read_bytes()) == paper
