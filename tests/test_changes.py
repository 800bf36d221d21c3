"""Change feeds: whoever takes them in one after the other has what the newest snapshot holds, whatever happens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.__main__ import main
from pipeline import open_changes, open_snapshot
from pipeline.config import JobConfig
from pipeline.config_file import load_config
from pipeline.errors import ConfigError, StorageError
from pipeline.execution import change_feed
from pipeline.execution import run as execution
from pipeline.execution.change_feed import write_feeds
from pipeline.storage.changes import ChangeFeed, feed_numbers
from pipeline.storage.expiry import expire
from pipeline.storage.filesystem import Store
from pipeline.storage.parquet import put_or_adopt
from pipeline.storage.rollback import roll_back
from tests.inline import run_inline
from tests.running import written_config
from tests.test_feature_readers import example, names_after

Rows = dict[str, str]
Kept = dict[Any, Any]


def sections(folder: Path, output: str = "", **options: Any) -> dict[str, Any]:
    recipe = {"model": "hashing://8", "stored": options.pop("stored", "float32")}
    return {
        "source": {"uri": str(folder / "corpus")},
        "recipe": recipe,
        "output": {"uri": output or str(folder / "out"), "rows_per_part": 3, "changes": True, **options},
    }


def config_of(folder: Path, output: str = "", **options: Any) -> JobConfig:
    return JobConfig.model_validate(sections(folder, output, **options))


def write(folder: Path, *files: Rows) -> None:
    """Put these files, id → text each, in the place of all that were there; what is as it was is left alone.

    Texts are so long that a file of some rows is a Shard of its own.
    """
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    contents = {
        f"{number}.jsonl": b"".join(
            orjson.dumps({"id": id, "text": f"{text} " + "x" * 400}) + b"\n" for id, text in rows.items()
        )
        for number, rows in enumerate(files)
    }
    for path in corpus.iterdir():
        if path.read_bytes() != contents.get(path.name):
            path.unlink()
    for name, content in contents.items():
        if not (corpus / name).exists():
            (corpus / name).write_bytes(content)


def key_of(row: dict[str, Any]) -> Any:
    return row["id"], row.get("chunk")


def value_of(row: dict[str, Any]) -> Any:
    return row["embedding"], row.get("scale"), row["text_hash"]


def take_in(kept: Kept, feeds: list[ChangeFeed]) -> None:
    """Do to a key-value store what the feeds say; of an insert, an update or a delete see that it can be one."""
    for feed in feeds:
        if feed.starts_from_nothing:
            kept.clear()
        for row in (row for batch in feed.batches() for row in batch.to_pylist()):
            assert (row["op"] == "insert") == (key_of(row) not in kept)
            if row["op"] == "delete":
                assert row["embedding"] is None
                del kept[key_of(row)]
            else:
                kept[key_of(row)] = value_of(row)


def held(uri: str, number: int | None = None) -> Kept:
    """Return what a snapshot holds."""
    return {key_of(row): value_of(row) for row in open_snapshot(uri, number).to_table().to_pylist()}


def ops_of(feed: ChangeFeed) -> list[tuple[str, str]]:
    return [(row["op"], row["id"]) for batch in feed.batches() for row in batch.to_pylist()]


def test_a_feed_says_what_was_inserted_updated_and_deleted(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    write(tmp_path, {"a": "one", "b": "two", "c": "three"}, {"d": "four"})
    run_inline(config)
    write(tmp_path, {"d": "four", "c": "THREE"}, {"a": "one", "e": "five"})
    run_inline(config)
    first, second = open_changes(config.output.uri)
    assert sorted(ops_of(first)) == [("insert", id) for id in "abcd"]
    assert sorted(ops_of(second)) == [("delete", "b"), ("insert", "e"), ("update", "c")]
    assert second.record.totals == {"insert": 1, "update": 1, "delete": 1}
    assert (first.starts_from_nothing, second.record.since) == (True, 1)
    assert second.schema.names == ["op", "id", "text_hash", "timestamp", "embedding"]
    files = Store(config.output.uri).files("snapshots").keys()
    assert all("/00000001-" in key or "/00000002-" in key for key in files)


STANDING = {f"standing {number}": "text" for number in range(8)}
"""A file that is the same every night."""


def test_parts_that_both_snapshots_have_stand_in_no_feed(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    for night in ("one", "two"):
        write(tmp_path, STANDING, {f"changing {number}": night for number in range(8)})
        run_inline(config)
    both = [{*open_snapshot(config.output.uri, number).parts["path"].to_pylist()} for number in (1, 2)]
    assert len(both[0] & both[1]) == len(both[0] - both[1]) == 3
    assert open_changes(config.output.uri, after=1)[0].record.totals == {"insert": 0, "update": 8, "delete": 0}


NIGHTS = st.lists(
    st.lists(st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from(["x", "y", "z"]), max_size=6), max_size=3),
    min_size=1,
    max_size=5,
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NIGHTS, st.integers(0, 5), st.sampled_from(["float32", "int8"]), st.sampled_from(["copy", "reference"]))
def test_the_feeds_of_random_nights_taken_in_order_give_the_newest_snapshot(
    tmp_path_factory: pytest.TempPathFactory, nights: list[list[Rows]], back: int, stored: str, carry: str
) -> None:
    folder, kept, at = tmp_path_factory.mktemp("nights"), dict[Any, Any](), 0
    config = config_of(folder, stored=stored, carry=carry)
    for night, files in enumerate(nights):
        seen = set[str]()
        distinct = [{id: text for id, text in rows.items() if not (id in seen or seen.add(id))} for rows in files]  # type: ignore[func-returns-value]
        write(folder, STANDING, *distinct)
        run_inline(config)
        if night == back:
            roll_back(Store(config.output.uri), 1)
            write_feeds(Store(config.output.uri))
        if night % 2:  # of two nights together, and of each alone
            feeds = open_changes(config.output.uri, at)
            take_in(kept, feeds)
            at = feeds[-1].number if feeds else at
            assert kept == held(config.output.uri)
    from_nothing: Kept = {}
    take_in(from_nothing, open_changes(config.output.uri))
    assert from_nothing == held(config.output.uri)


def test_another_recipe_updates_every_vector(tmp_path: Path) -> None:
    config, kept = config_of(tmp_path), dict[Any, Any]()
    write(tmp_path, {"a": "one", "b": "two"})
    run_inline(config)
    run_inline(config_of(tmp_path, stored="int8"))
    take_in(kept, open_changes(config.output.uri)[:1])
    take_in(kept, open_changes(config.output.uri, after=1))
    assert open_changes(config.output.uri)[1].record.totals == {"insert": 0, "update": 2, "delete": 0}
    assert kept == held(config.output.uri)


def dying_after(puts: int) -> Callable[..., bytes]:
    left = iter(range(puts))

    def put(*arguments: Any) -> bytes:
        if next(left, None) is None:
            raise StorageError("dead")
        return put_or_adopt(*arguments)

    return put


@pytest.mark.parametrize("puts", [0, 1, 2])
def test_a_feed_that_was_not_finished_shows_nobody_anything_and_is_written_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, puts: int
) -> None:
    monkeypatch.setattr(change_feed, "FILE_BYTES", 32)
    config = config_of(tmp_path)
    write(tmp_path, {id: id for id in "abcdefghi"})
    with monkeypatch.context() as patch:
        patch.setattr(change_feed, "put_or_adopt", dying_after(puts))
        report = run_inline(config)
    assert report.outcome == "published"
    assert "the next run or `changes` does it: dead" in report.warnings[-1]
    assert open_changes(config.output.uri) == []
    again = run_inline(config)
    assert (again.outcome, again.warnings) == ("nothing_to_do", [])
    (feed,) = open_changes(config.output.uri)
    assert len(feed.record.files) == 3
    kept: Kept = {}
    take_in(kept, [feed])
    assert kept == held(config.output.uri)


def test_no_feed_tells_of_a_run_that_published_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dead(*arguments: Any) -> None:
        raise StorageError("dead")

    write(tmp_path, {"a": "one"})
    with monkeypatch.context() as patch:
        patch.setattr(execution, "publish", dead)
        with pytest.raises(StorageError, match="dead"):
            run_inline(config_of(tmp_path))
    assert Store(str(tmp_path / "out")).files("changes") == {}
    assert feed_numbers(Store(str(tmp_path / "out"))) == []


def nights(folder: Path, config: JobConfig, count: int) -> None:
    for night in range(count):
        write(folder, {"a": f"text of night {night}", "b": "two"})
        run_inline(config)


def test_feeds_go_with_their_snapshots_and_whoever_is_behind_is_told_where_to_begin(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    nights(tmp_path, config, 4)
    store = Store(config.output.uri)
    would = expire(store, 2, float("inf"), is_dry_run=True)
    expire(store, 2, float("inf"), is_dry_run=False)
    assert feed_numbers(store) == [3, 4]
    assert {key[len("changes/") :][:8] for key in store.files("changes")} == {"00000003", "00000004"}
    assert {removal.name for removal in would.removals} >= {"snapshot 1", "snapshot 2"}
    kept = held(config.output.uri, 3)
    take_in(kept, open_changes(config.output.uri, after=3))
    assert kept == held(config.output.uri)
    with pytest.raises(StorageError, match=r"no feeds lead from an empty store to snapshot 4.*starts from snapshot 2"):
        open_changes(config.output.uri)


def test_a_snapshot_that_a_feed_still_starts_from_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path)
    nights(tmp_path, config, 2)
    with monkeypatch.context() as patch:
        patch.setattr(change_feed, "put_or_adopt", dying_after(0))
        nights(tmp_path, config, 3)
    store = Store(config.output.uri)
    assert expire(store, 1, float("inf"), is_dry_run=False).kept == (2, 5)
    assert [feed.record.since for feed in write_feeds(store)] == [2]
    kept = held(config.output.uri, 2)
    take_in(kept, open_changes(config.output.uri, after=2))
    assert kept == held(config.output.uri)


def test_feeds_that_begin_later_begin_from_nothing(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    nights(tmp_path, config.model_copy(update={"output": config.output.model_copy(update={"changes": False})}), 2)
    assert feed_numbers(Store(config.output.uri)) == []
    write(tmp_path, {"a": "one"})
    run_inline(config)
    (feed,) = open_changes(config.output.uri, after=2)
    assert feed.starts_from_nothing
    kept: Kept = {("stale", None): None}
    take_in(kept, [feed])
    assert kept == held(config.output.uri)


def test_ids_that_may_stand_twice_have_no_feed(tmp_path: Path) -> None:
    path = written_config(tmp_path / "job.yaml", **sections(tmp_path))
    with pytest.raises(ConfigError, match=r"output\.changes needs ids that name one row"):
        load_config(path, ["source.duplicate_ids=allow"])


def test_a_rollback_to_where_ids_may_stand_twice_has_no_feed_and_the_next_night_has(tmp_path: Path) -> None:
    path = written_config(tmp_path / "job.yaml", **sections(tmp_path))
    for number, options in enumerate((["source.duplicate_ids=allow", "output.changes=false"], []), 1):
        write(tmp_path, {"a": f"night {number}", "b": "two"})
        run_inline(load_config(path, options))
    assert main(["nightly", path, "--rollback", "1"]) == 0
    kept = held(str(tmp_path / "out"), 2)
    write(tmp_path, {"a": "night 4"})
    assert run_inline(load_config(path, [])).warnings == []
    take_in(kept, open_changes(str(tmp_path / "out"), after=2))
    assert kept == held(str(tmp_path / "out"))


def test_a_rollback_whose_feed_cannot_be_written_is_published_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nights(tmp_path, config_of(tmp_path), 2)
    monkeypatch.setattr(change_feed, "put_or_adopt", dying_after(0))
    path = written_config(tmp_path / "job.yaml", **sections(tmp_path))
    assert main(["nightly", path, "--rollback", "1"]) == 0
    assert "warning     a feed of changes is not written yet" in capsys.readouterr().out
    assert open_snapshot(str(tmp_path / "out")).number == 3


def test_the_command_writes_what_is_missing_and_says_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, {"a": "one", "b": "two"})
    run_inline(config_of(tmp_path, changes=False))
    assert main(["changes", str(tmp_path / "out")]) == 0
    assert "0 feeds of changes written, 0 there" in capsys.readouterr().out
    assert main(["changes", written_config(tmp_path / "job.yaml", **sections(tmp_path))]) == 0
    told = capsys.readouterr().out
    assert "1 feed of changes written, 1 there\n  snapshot 1, from nothing: 2 inserted, 0 updated, 0 deleted" in told
    assert main(["changes", str(tmp_path / "out"), "--json"]) == 0
    assert orjson.loads(capsys.readouterr().out)["feeds"][0]["insert"] == 2
    assert main(["changes", str(tmp_path / "nowhere")]) == 1
    assert "no snapshot is published there" in capsys.readouterr().err


def test_a_store_is_kept_in_step_as_the_readme_says(tmp_path: Path, bucket: str) -> None:
    config = config_of(tmp_path, f"s3://{bucket}/out")
    write(tmp_path, {"a": "one", "b": "two"})
    run_inline(config)
    names = names_after(example("# a store"), {"uri": config.output.uri, "vectors": {}, "at": 0})
    write(tmp_path, {"a": "ONE", "c": "three"})
    run_inline(config)
    names = names_after(
        example("# a store"), {"uri": config.output.uri, "vectors": names["vectors"], "at": names["at"]}
    )
    assert names["at"] == 2
    assert names["vectors"] == {id: value[0] for (id, _), value in held(config.output.uri).items()}
