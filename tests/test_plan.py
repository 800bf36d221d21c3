"""Plans: the same files give the same Shards, and only what decides a vector or the layout changes their names."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import JobConfig
from pipeline.errors import ConfigError, SnapshotConflict, SourceError
from pipeline.execution import run as execution
from pipeline.execution.planning import shards as cutting
from pipeline.execution.planning.plan import Plan, make_plan
from pipeline.execution.planning.shards import cut_shards, row_groups_of
from pipeline.records import Shard, SourceFile
from pipeline.storage.claim import Claim
from pipeline.storage.filesystem import Store
from pipeline.storage.listing import list_source

SIZES = st.lists(st.integers(0, 20_000), max_size=40)
ROWS_PER_PART = 16


def files_of(sizes: Sequence[int]) -> list[SourceFile]:
    return [SourceFile(f"in/{n:05d}.jsonl", "v1", size, "jsonl") for n, size in enumerate(sizes)]


def cut(files: Sequence[SourceFile], **changed: Any) -> tuple[Shard, ...]:
    how: dict[str, Any] = {
        "layout": {"a": 1},
        "recipe": "r",
        "rows_per_part": ROWS_PER_PART,
        "row_groups": {},
    } | changed
    return cut_shards(files, **how)


def ids(shards: Sequence[Shard]) -> set[str]:
    return {shard.shard_id for shard in shards}


@given(SIZES)
def test_every_file_is_in_exactly_one_shard_in_order(sizes: list[int]) -> None:
    files = files_of(sizes)
    shards = cut(files)
    assert [span.file for shard in shards for span in shard.spans] == files
    assert len(ids(shards)) == len(shards)
    assert cut(files) == shards


@given(SIZES.filter(bool))
def test_a_change_of_recipe_layout_or_version_renames_the_shards(sizes: list[int]) -> None:
    files = files_of(sizes)
    before = ids(cut(files))
    assert not before & ids(cut(files, recipe="other"))
    assert not before & ids(cut(files, layout={"a": 2}))
    assert not before & ids(cut([SourceFile(f.uri, "v2", f.size_bytes, f.format) for f in files]))


def test_a_shard_survives_json() -> None:
    (shard, *_) = cut(files_of([10, 20]))
    assert Shard.from_json(orjson.loads(orjson.dumps(shard.to_json()))) == shard


def test_a_giant_parquet_file_is_cut_by_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "giant.parquet"
    pq.write_table(pa.table({"id": range(1000), "text": ["x" * 50] * 1000}), path, row_group_size=100)
    monkeypatch.setattr(cutting, "SPLIT_BYTES", path.stat().st_size // 3)
    files = list_source([str(path)], "auto")
    shards = cut(files, row_groups=row_groups_of(files))
    spans = [span for shard in shards for span in shard.spans]
    assert len(shards) > 2
    assert sum(span.rows or 0 for span in spans) == 1000
    covered = [
        group for s in spans for group in range(s.first_row_group or 0, (s.first_row_group or 0) + (s.row_groups or 0))
    ]
    assert covered == list(range(10))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(3):
        lines = (orjson.dumps({"id": 10 * number + row, "text": f"text {row}"}) for row in range(3))
        (folder / f"{number}.jsonl").write_bytes(b"\n".join(lines))
    return folder


def config_of(corpus: Path, **sections: dict[str, Any]) -> JobConfig:
    values: dict[str, Any] = {"source": {"uri": str(corpus)}, "output": {"uri": str(corpus.parent / "out")}}
    return JobConfig.model_validate(values | {"recipe": {"model": "hashing://8"}} | sections)


def plan_of(corpus: Path, **sections: dict[str, Any]) -> Plan:
    config = config_of(corpus, **sections)
    return make_plan(config, Store(config.output.uri))


def test_changing_the_runtime_changes_no_name(corpus: Path) -> None:
    before = plan_of(corpus)
    after = plan_of(corpus, runtime={"encoders": 7, "batch_tokens": 512, "max_quarantined_fraction": 1})
    assert (after.run_key, after.wanted, after.recipe_fingerprint) == (
        before.run_key,
        before.wanted,
        before.recipe_fingerprint,
    )


@pytest.mark.parametrize(
    "recipe",
    [{"stored": "float16"}, {"prompt": "p"}, {"max_tokens": 64}, {"dimensions": 4}, {"model": "hashing://16"}],
    ids=str,
)
def test_changing_the_recipe_changes_every_shard(corpus: Path, recipe: dict[str, Any]) -> None:
    before, after = plan_of(corpus), plan_of(corpus, recipe={"model": "hashing://8"} | recipe)
    assert before.run_key != after.run_key
    assert not ids(before.wanted) & ids(after.wanted)


def test_changing_the_rows_per_part_changes_every_shard(corpus: Path) -> None:
    output = {"uri": str(corpus.parent / "out"), "rows_per_part": 2}
    assert not ids(plan_of(corpus).wanted) & ids(plan_of(corpus, output=output).wanted)


def test_moving_a_model_folder_changes_nothing_and_touching_its_content_does(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "modules.json").write_text("[]")
    before = plan_of(corpus, recipe={"model": str(tmp_path / "model")})
    shutil.move(tmp_path / "model", tmp_path / "moved")
    moved = plan_of(corpus, recipe={"model": str(tmp_path / "moved")})
    assert (moved.recipe_fingerprint, moved.run_key) == (before.recipe_fingerprint, before.run_key)
    (tmp_path / "moved" / "modules.json").write_text("[1]")
    assert plan_of(corpus, recipe={"model": str(tmp_path / "moved")}).recipe_fingerprint != before.recipe_fingerprint


def test_planning_writes_nothing(corpus: Path) -> None:
    plan = plan_of(corpus)
    assert (plan.number, plan.parent, len(plan.files), plan.embed) == (1, None, 3, plan.wanted)
    assert not (corpus.parent / "out").exists()


def test_a_partition_column_of_a_type_that_cannot_name_folders_is_refused(corpus: Path) -> None:
    (corpus / "0.jsonl").write_bytes(b'{"id": 1, "text": "a", "score": 0.5}\n')
    sections = {
        "source": {"uri": str(corpus / "0.jsonl"), "keep_columns": ["score"]},
        "output": {"uri": str(corpus.parent / "out"), "partition_by": ["score"]},
    }
    with pytest.raises(ConfigError, match="score, which is double"):
        plan_of(corpus, **sections)


def test_a_driver_that_finds_the_output_held_writes_no_report(corpus: Path) -> None:
    config = config_of(corpus)
    store = Store(config.output.uri)
    with Claim(store, 1), pytest.raises(SnapshotConflict):
        execution.run(config, lambda progress: None)
    assert store.files("reports") == {}


def test_an_empty_listing_is_an_error_and_not_an_empty_snapshot(corpus: Path) -> None:
    for path in corpus.iterdir():
        path.unlink()
    with pytest.raises(SourceError, match="no files matched"):
        plan_of(corpus)
