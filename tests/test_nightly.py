"""`nightly` and `diff`: what has changed is published, what nobody meant to delete is not, and both can be told."""

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.__main__ import main
from pipeline.config_file import load_config
from pipeline.errors import DeletionRefused, SourceError
from pipeline.execution.planning.plan import make_plan
from pipeline.execution.proof import guards
from pipeline.execution.proof.difference import Difference, difference, parts_of
from pipeline.execution.verification.verify import verify
from pipeline.storage.claim import Claim
from pipeline.storage.filesystem import Store
from pipeline.storage.snapshots import open_snapshot, snapshot_numbers
from tests.running import jobs, written_config
from tests.without_ray import run_in_process

LIMIT = 0.2


class Corpus:
    """A folder of JSONL files, id → text each, and the job that embeds it."""

    def __init__(self, folder: Path, **output: Any) -> None:
        self.folder, self.output = folder / "corpus", str(folder / "out")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config = written_config(
            folder / "job.yaml",
            source={"uri": str(self.folder)},
            recipe={"model": "hashing://8"},
            output={"uri": self.output, "rows_per_part": 8} | output,
        )

    def write(self, **files: Mapping[str, str]) -> None:
        """Put these files in place of all that were there; what is as it was is left alone."""
        for path in self.folder.iterdir():
            if path.stem not in files:
                path.unlink()
        for name, of_file in files.items():
            content = b"".join(orjson.dumps({"id": id, "text": text}) + b"\n" for id, text in of_file.items())
            path = self.folder / f"{name}.jsonl"
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)

    def night(self, max_deleted: float | None = LIMIT) -> int:
        """Return the number of the snapshot that stands after it."""
        return run_in_process(self.config, max_deleted=max_deleted).snapshot or 0

    def difference(self, before: int, after: int) -> Difference:
        old, new = (open_snapshot(self.output, number) for number in (before, after))
        return difference(old.store, parts_of(old), parts_of(new))

    @property
    def ids(self) -> list[str]:
        return sorted(open_snapshot(self.output).to_table(["id"])["id"].to_pylist())


def rows(first: int, stop: int, text: str = "text") -> dict[str, str]:
    """Return id → text, so long that a file of twenty is a Shard of its own."""
    return {f"r{n:03d}": f"{text} {n} " + "x" * 90 for n in range(first, stop)}


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Two files of 20 rows, published once."""
    corpus = Corpus(tmp_path)
    corpus.write(a=rows(0, 20), b=rows(20, 40))
    assert corpus.night() == 1
    return corpus


def test_more_deletes_than_allowed_publish_nothing_until_they_are_allowed(corpus: Corpus) -> None:
    corpus.write(a=rows(0, 20), b=rows(29, 40))
    with pytest.raises(DeletionRefused, match=r"9 ids of snapshot 1 would go \(22.*%.*r02.*--allow-deletes"):
        corpus.night()
    assert snapshot_numbers(Store(corpus.output)) == [1]
    assert len(corpus.ids) == 40
    assert corpus.night(max_deleted=None) == 2
    assert corpus.ids == [*rows(0, 20), *rows(29, 40)]
    assert verify(open_snapshot(corpus.output)).is_sound


def test_as_many_deletes_as_allowed_are_published(corpus: Corpus) -> None:
    corpus.write(a=rows(0, 20), b=rows(28, 40))
    assert corpus.night() == 2
    assert len(corpus.ids) == 32


def test_ids_that_were_exchanged_for_others_are_deleted_too(corpus: Corpus) -> None:
    corpus.write(a=rows(0, 20), b=rows(120, 140))
    with pytest.raises(DeletionRefused, match="20 ids"):
        corpus.night()


def test_the_share_that_goes_is_one_of_texts_and_not_of_the_chunks_they_are_cut_into(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 40 texts 9 go; the Parts that stay hold 310 chunks of the others."""
    found = Difference(carried=310, unchanged=0, changed=0, added=0, removed=9, examples={"removed": ["r031"]})
    monkeypatch.setattr(guards, "difference", lambda *_: found)
    plan = make_plan(load_config(corpus.config), Store(corpus.output))
    with pytest.raises(DeletionRefused, match=r"9 ids of snapshot 1 would go \(22"):
        guards.check_deletes(plan, [], LIMIT)


def test_another_text_and_another_file_are_no_delete(corpus: Corpus) -> None:
    corpus.write(c=rows(10, 40, "changed"), d=rows(0, 10))
    assert corpus.night(max_deleted=0.0) == 2


def test_a_file_that_is_empty_and_was_not_is_an_error(corpus: Corpus) -> None:
    corpus.write(a=rows(0, 20), b={})
    with pytest.raises(SourceError, match=r"1 file of 0 bytes held rows in snapshot 1, for instance .*b\.jsonl"):
        corpus.night()
    assert len(corpus.ids) == 40
    assert corpus.night(max_deleted=None) == 2
    corpus.write(a=rows(0, 21), b={})
    assert corpus.night() == 3


def test_a_file_that_cannot_be_read_any_more_is_no_delete(corpus: Corpus) -> None:
    corpus.write(a=rows(0, 20))
    (corpus.folder / "b.jsonl.gz").write_bytes(b"no gzip at all")
    loose = "runtime.max_quarantined_fraction=1"
    with pytest.raises(DeletionRefused, match=r"14 B of the source cannot be read.*20 ids"):
        run_in_process(corpus.config, loose, max_deleted=1.0)
    assert len(corpus.ids) == 40


@pytest.mark.parametrize(
    "content",
    [b"<html>503</html>", b'{"id":"r040","text":"t"}\n' + b"x" * (16 * 2**20 + 1)],
    ids=["an error page", "lines that ran together"],
)
def test_what_stands_in_place_of_a_files_rows_deletes_none_of_them(corpus: Corpus, content: bytes) -> None:
    corpus.write(a=rows(0, 20), b=rows(20, 40), c=rows(40, 42))
    assert corpus.night() == 2
    (corpus.folder / "c.jsonl").write_bytes(content)
    with pytest.raises(DeletionRefused, match=r"of the source cannot be read .*c\.jsonl\), and [12] ids? of"):
        run_in_process(corpus.config, "runtime.max_quarantined_fraction=1", max_deleted=LIMIT)


def test_a_file_that_was_mended_does_not_make_up_for_one_that_cannot_be_read_any_more(corpus: Corpus) -> None:
    broken, loose = b"no gzip, and longer than what is lost tomorrow", "runtime.max_quarantined_fraction=1"
    mended, whole = (
        gzip.compress(b"".join(orjson.dumps({"id": id, "text": "t"}) + b"\n" for id in rows(*few)))
        for few in ((40, 42), (42, 44))
    )
    (corpus.folder / "c.jsonl.gz").write_bytes(broken)
    (corpus.folder / "d.jsonl.gz").write_bytes(whole)
    run_in_process(corpus.config, loose)
    (corpus.folder / "c.jsonl.gz").write_bytes(mended)
    (corpus.folder / "d.jsonl.gz").write_bytes(broken[:7])
    with pytest.raises(DeletionRefused, match=r"7 B of the source .* \(in 1 file, .*d\.jsonl\.gz\), and 2 ids"):
        run_in_process(corpus.config, loose, max_deleted=1.0)
    (corpus.folder / "c.jsonl.gz").write_bytes(broken)
    (corpus.folder / "d.jsonl.gz").unlink()
    assert run_in_process(corpus.config, loose, max_deleted=1.0).snapshot == 3, "what was unreadable before is no news"
    (corpus.folder / "c.jsonl.gz").rename(corpus.folder / "c-of-today.jsonl.gz")
    corpus.write(a=rows(0, 20), b=rows(20, 39))
    (corpus.folder / "c-of-today.jsonl.gz").write_bytes(broken)
    assert run_in_process(corpus.config, loose, max_deleted=1.0).snapshot == 4, "nor is it under another name"


@pytest.mark.parametrize(
    "kept",
    [
        pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
        pa.array(["x", None], pa.string_view()),
        pa.array([[{"a": "x"}], None]),
        pa.array(["x", None]).dictionary_encode(),
        pa.array([b"\x00" * 16, None], pa.uuid()),
    ],
    ids=lambda kept: str(kept.type),
)
def test_a_kept_column_of_any_type_makes_no_night_embed_again(tmp_path: Path, kept: pa.Array) -> None:
    pq.write_table(pa.table({"id": ["a", "b"], "text": ["one", "two"], "kept": kept}), tmp_path / "a.parquet")
    config = written_config(
        tmp_path / "job.yaml",
        source={"uri": str(tmp_path / "*.parquet"), "keep_columns": ["kept"]},
        recipe={"model": "hashing://8"},
        output={"uri": str(tmp_path / "out")},
    )
    run_in_process(config)
    assert make_plan(load_config(config), Store(str(tmp_path / "out"))).embed == ()
    pq.write_table(pa.table({"id": ["c", "d"], "text": ["three", "four"], "kept": kept}), tmp_path / "b.parquet")
    assert run_in_process(config).encoded_texts == 2
    rows = open_snapshot(str(tmp_path / "out")).to_table(["id", "kept"]).sort_by("id").to_pylist()
    assert [row["kept"] for row in rows] == kept.to_pylist() * 2


def test_a_first_night_has_nothing_to_lose(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path)
    corpus.write(a=rows(0, 3), b={})
    assert corpus.night(max_deleted=0.0) == 1


def test_a_difference_names_what_was_added_changed_and_removed(corpus: Corpus) -> None:
    corpus.write(a=rows(0, 20), b=rows(22, 37) | rows(37, 40, "changed") | rows(40, 47))
    corpus.night()
    found = corpus.difference(1, 2)
    assert (found.carried, found.unchanged, found.changed, found.added, found.removed) == (20, 15, 3, 7, 2)
    assert found.examples["changed"] == ["r037", "r038", "r039"] == sorted(found.examples["changed"])
    assert sorted(found.examples["removed"]) == ["r020", "r021"]
    assert set(found.examples["added"]) < set(rows(40, 47))
    assert len(found.examples["added"]) == 5
    file = corpus.folder.parent / "ids.parquet"
    assert main(["diff", corpus.output, "1", "2", "--ids", str(file)]) == 0
    ids = pq.read_table(file).to_pydict()
    told = sorted(zip(ids["change"], ids["id"], strict=True))
    assert [kind for kind, _ in told] == ["added"] * 7 + ["changed"] * 3 + ["removed"] * 2
    assert {id for _, id in told} == set(rows(40, 47)) | set(rows(37, 40)) | set(rows(20, 22))
    back = corpus.difference(2, 1)
    assert (back.added, back.removed, back.changed) == (2, 7, 3)
    same = corpus.difference(2, 2)
    assert (same.carried, same.unchanged, same.removed) == (45, 0, 0)


NIGHT = st.dictionaries(st.integers(0, 12).map("r{}".format), st.sampled_from("ab"), min_size=1)


@settings(max_examples=15)
@given(before=NIGHT, after=NIGHT, cut=st.integers(0, 12))
def test_a_difference_is_that_of_two_dictionaries(
    tmp_path_factory: pytest.TempPathFactory, before: dict[str, str], after: dict[str, str], cut: int
) -> None:
    corpus = Corpus(tmp_path_factory.mktemp("nights"), rows_per_part=3)
    corpus.write(a=before)
    first = corpus.night(None)
    names = list(after)
    corpus.write(a={id: after[id] for id in names[:cut]} or {"x": "x"}, b={id: after[id] for id in names[cut:]})
    after = after if names[:cut] else after | {"x": "x"}
    second = corpus.night(None)
    found, both = corpus.difference(first, second), before.keys() & after.keys()
    assert found.added == len(after.keys() - before.keys())
    assert found.removed == len(before.keys() - after.keys())
    assert found.changed == sum(before[id] != after[id] for id in both)
    assert found.unchanged + found.carried == sum(before[id] == after[id] for id in both)


def test_the_command_refuses_with_exit_code_4_publishes_when_allowed_and_removes_old_snapshots(corpus: Corpus) -> None:
    corpus.write(a=rows(0, 20))
    refused = jobs("nightly", corpus.config, "--json")
    assert (refused.code, refused.report["outcome"]) == (4, "failed")
    assert "--allow-deletes" in refused.errors[0]
    options = ["output.keep_snapshots=1", "--grace-hours", "0", "--json"]
    allowed = jobs("nightly", corpus.config, "--allow-deletes", *options)
    assert allowed.code == 0, allowed.stderr
    assert (allowed.report["snapshot"], allowed.report["embedded"], allowed.report["reused"]) == (2, 0, 20)
    assert "snapshot 1" in allowed.report["expired"]["removed"]
    assert snapshot_numbers(Store(corpus.output)) == [2]
    again = jobs("nightly", corpus.config)
    assert again.code == 0
    assert "Nothing to do: snapshot 2 stands" in again.stdout


def test_a_nightly_or_a_rollback_beside_another_run_ends_with_exit_code_3(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus.write(a=rows(0, 20), b=rows(20, 41))
    assert corpus.night() == 2
    corpus.write(a=rows(0, 20), b=rows(20, 42))
    with Claim(Store(corpus.output), 3):
        for options in ([], ["--rollback", "1"]):
            assert main(["nightly", corpus.config, *options]) == 3
            assert "holds the output" in capsys.readouterr().err
    assert snapshot_numbers(Store(corpus.output)) == [1, 2]
    assert corpus.night() == 3


def test_diff_is_printed_for_people_and_machines(corpus: Corpus) -> None:
    corpus.write(a=rows(0, 21), b=rows(22, 40))
    corpus.night()
    told = jobs("diff", corpus.config, "1", "2")
    assert told.code == 0, told.stderr
    assert "removed    1 id, for instance r021" in told.stdout
    machine = jobs("diff", corpus.output, "1", "2", "--json").report
    assert (machine["before"], machine["after"], machine["removed"], machine["unchanged"] + machine["carried"]) == (
        1,
        2,
        1,
        39,
    )
    missing = jobs("diff", corpus.output, "1", "9")
    assert (missing.code, "snapshot 9 is not published" in missing.errors[0]) == (1, True)
