"""The sample of vectors of a report: from many Parts, laid flat, coloured by a kept column, with texts if asked."""

from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.__main__ import main
from pipeline import open_snapshot
from pipeline.config_file import load_config
from pipeline.errors import SourceError
from pipeline.execution.reporting import run_report
from pipeline.execution.reporting.metrics import RunReport
from pipeline.execution.reporting.vector_map import POINTS, nearest_texts, read_vectors, vector_map
from pipeline.storage.filesystem import Store
from pipeline.storage.snapshots import Snapshot
from tests.inline import run_inline
from tests.running import written_config
from tests.without_ray import run_in_process


def corpus(folder: Path, files: int, rows: int) -> None:
    folder.mkdir()
    for number in range(files):
        ids = range(number * rows, (number + 1) * rows)
        texts = ["aaaa" * 20 if id % 2 else "zzzz" * 20 for id in ids]
        labels = [["even", "odd"][id % 2] for id in ids]
        columns = {
            "id": list(ids),
            "text": [f"{text} {id}" for text, id in zip(texts, ids, strict=True)],
            "label": labels,
        }
        pq.write_table(pa.table(columns), folder / f"{number}.parquet")


@pytest.fixture
def config_path(tmp_path: Path) -> str:
    corpus(tmp_path / "in", files=6, rows=250)
    return written_config(
        tmp_path / "job.yaml",
        source={"uri": str(tmp_path / "in"), "keep_columns": ["label"]},
        recipe={"model": "hashing://32", "stored": "int8"},
        output={"uri": str(tmp_path / "out"), "partition_by": ["label"], "rows_per_part": 100},
    )


@pytest.fixture
def snapshot(config_path: str) -> Snapshot:
    config = load_config(config_path)
    run_inline(config)
    return open_snapshot(config.output.uri)


def test_a_sample_is_of_many_parts_and_of_bounded_size(snapshot: Snapshot) -> None:
    sample = read_vectors(snapshot)
    assert sample is not None
    assert len(sample.vectors_ND) == sample.rows.num_rows <= POINTS
    assert len(sample.rows["_block"].unique()) > 1
    assert np.linalg.norm(sample.vectors_ND, axis=1) == pytest.approx(1, abs=0.02)


def test_a_snapshot_without_a_row_has_no_map_and_a_report_all_the_same(tmp_path: Path) -> None:
    corpus(tmp_path / "in", files=1, rows=0)
    config = written_config(
        tmp_path / "job.yaml",
        source={"uri": str(tmp_path / "in")},
        recipe={"model": "hashing://8"},
        output={"uri": str(tmp_path / "out")},
    )
    report = run_in_process(config)
    assert read_vectors(open_snapshot(str(tmp_path / "out"))) is None
    assert report.report_uri == f"{tmp_path}/out/reports/{report.run_key}.html"
    assert Path(report.report_uri).is_file()


def test_a_page_that_cannot_be_drawn_leaves_the_report_for_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def undrawable(*_: object) -> str:
        raise ValueError("no chart")

    monkeypatch.setattr(run_report, "render_html", undrawable)
    report, store = (
        RunReport("failed", str(tmp_path), run_key="k", folder=f"{tmp_path}/snapshots/f"),
        Store(str(tmp_path)),
    )
    run_report.save_report(store, report, has_page=True)
    assert report.report_uri == f"{tmp_path}/reports/k.json"
    assert orjson.loads(Path(report.report_uri).read_bytes())["outcome"] == "failed"


def test_points_are_coloured_by_the_partition_and_explain_no_more_than_all(snapshot: Snapshot) -> None:
    sample = read_vectors(snapshot)
    assert sample is not None
    drawn = vector_map(sample)
    assert drawn is not None
    assert drawn.column == "label"
    assert set(drawn.groups) == {"even", "odd"} == {group for *_, group in drawn.points}
    assert 0 < drawn.explained <= 1
    assert drawn.rows == 1500


def test_kept_columns_that_name_no_group_and_folders_of_odd_names_draw_a_page_too(tmp_path: Path) -> None:
    rows, column = 40, "d=x/y"
    kept = {
        "tags": [["a", "b"]] * rows,
        "map": pa.array([[("k", 1)]] * rows, pa.map_(pa.string(), pa.int64())),
        "bytes": [b"\xff"] * rows,
        "word": pa.array(["x", "y"] * (rows // 2)).dictionary_encode(),
        column: ["p q", "r"] * (rows // 2),
    }
    names = [str(row) for row in range(rows)]
    pq.write_table(pa.table({"id": names, "text": names} | kept), tmp_path / "a.parquet")
    config = written_config(
        tmp_path / "job.yaml",
        source={"uri": str(tmp_path / "*.parquet"), "keep_columns": list(kept)},
        recipe={"model": "hashing://8"},
        output={"uri": str(tmp_path / "out"), "partition_by": [column]},
    )
    run_in_process(config)
    assert len(list(tmp_path.glob("out/reports/*.html"))) == 1
    sample = read_vectors(open_snapshot(str(tmp_path / "out")))
    assert sample is not None
    assert {"word", column} == {*sample.rows.column_names} & kept.keys()
    drawn = vector_map(sample)
    assert drawn is not None
    assert (drawn.column, sorted(drawn.groups)) == (column, ["p q", "r"])


def test_two_directions_of_flat_vectors_explain_everything(snapshot: Snapshot) -> None:
    sample = read_vectors(snapshot)
    assert sample is not None
    flat_ND = np.zeros_like(sample.vectors_ND)
    flat_ND[:, :2] = np.random.default_rng(1).normal(size=(len(flat_ND), 2))
    sample.vectors_ND[:] = flat_ND
    drawn = vector_map(sample)
    assert drawn is not None
    assert drawn.explained == pytest.approx(1, abs=1e-5)


def test_neighbours_are_those_of_the_greatest_cosine_with_the_texts_of_the_source(snapshot: Snapshot) -> None:
    sample = read_vectors(snapshot)
    assert sample is not None
    ids = [int(id) for id in sample.rows["id"].to_pylist()]
    for one in nearest_texts(sample):
        row = ids.index(int(one.text.split()[1]))
        cosines_N = sample.vectors_ND @ sample.vectors_ND[row]
        cosines_N /= np.linalg.norm(sample.vectors_ND, axis=1) * np.linalg.norm(sample.vectors_ND[row])
        cosines_N[row] = -1
        assert one.nearest[0][0] == pytest.approx(cosines_N.max(), abs=1e-5)
        found = ids.index(int(one.nearest[0][1].split()[1]))
        assert cosines_N[found] == pytest.approx(cosines_N.max(), abs=1e-5)


def test_texts_of_a_source_that_was_changed_are_not_shown(snapshot: Snapshot, tmp_path: Path) -> None:
    sample = read_vectors(snapshot)
    assert sample is not None
    for path in (tmp_path / "in").iterdir():
        pq.write_table(pa.table({"id": [1], "text": ["another"], "label": ["x"]}), path)
    with pytest.raises(SourceError):
        nearest_texts(sample)


def test_the_command_says_where_the_page_lies_and_draws_texts_only_where_it_is_told_to(
    config_path: str, snapshot: Snapshot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", config_path, "--json"]) == 0
    told = orjson.loads(capsys.readouterr().out)
    assert told["page"] == snapshot.store.uri_of(f"reports/{snapshot.record.run_key}.html")
    page = tmp_path / "page.html"
    assert main(["report", config_path, "--to", str(page)]) == 0
    assert "Nearest neighbours" not in page.read_text("utf-8")
    assert main(["report", config_path, "--with-texts", "--to", str(page)]) == 0
    assert "Nearest neighbours" in page.read_text("utf-8")
    assert "aaaa" in page.read_text("utf-8")
    assert not list(Path(snapshot.store.path_of("reports")).glob("*texts*"))
