"""A text whose vector is known is not encoded again, wherever it stands; what is published is as if it had been."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.arrow import vectors_of
from pipeline.config_file import load_config
from pipeline.encoder.protocol import Encoder
from pipeline.execution import encode_stage, lending, reuse
from pipeline.execution.planning.model import ModelReference, open_encoder
from pipeline.execution.reporting.metrics import RunReport
from pipeline.execution.verification.verify import verify
from pipeline.records import Reason
from pipeline.storage import known, text_index
from pipeline.storage.filesystem import Store
from pipeline.storage.parquet import part_key
from pipeline.storage.snapshots import Snapshot, open_snapshot
from tests import without_ray
from tests.inline import Killed, run_inline
from tests.running import written_config
from tests.without_ray import run_in_process

TIMES = ["created_timestamp", "event_timestamp"]


def rows_of(numbers: Sequence[int], changed: Sequence[int] = ()) -> pa.Table:
    """Return a row per number; its text depends on it alone, and on whether it was changed."""
    texts = [f"{'changed' if n in changed else 'text'} {n} " + "好" * (n % 30) for n in numbers]
    return pa.table({"id": [f"r{n:04d}" for n in numbers], "text": texts, "label": [f"l{n % 3}" for n in numbers]})


class Corpus:
    """A folder of Parquet files, rewritten every night, and the job that embeds it."""

    def __init__(self, folder: Path, uri: str = "", **sections: Mapping[str, Any]) -> None:
        self.folder = folder / "corpus"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.output = uri or str(folder / "out")
        self.sections: dict[str, dict[str, Any]] = {
            "source": {"uri": str(self.folder), "keep_columns": ["label"]},
            "recipe": {"model": "hashing://16"},
            "output": {"uri": self.output, "rows_per_part": 16},
            "runtime": {},
        }
        for name, section in sections.items():
            self.sections[name] |= section
        self.config = written_config(folder / "job.yaml", **self.sections)

    def write(self, **files: pa.Table) -> None:
        """Put these files in place of all that were there."""
        for path in self.folder.iterdir():
            path.unlink()
        for name, table in files.items():
            pq.write_table(table, self.folder / f"{name}.parquet")

    def night(self, *overrides: str) -> RunReport:
        reuse._opened.cache_clear()  # the workers of a night are processes of its own
        report = run_in_process(self.config, *overrides)
        assert report.rows_read == report.accounted
        return report

    @property
    def snapshot(self) -> Snapshot:
        return open_snapshot(self.output)

    def rows(self, number: int | None = None) -> pa.Table:
        """Return what is published, ordered by id and chunk."""
        table = open_snapshot(self.output, number).to_table()
        keys = [name for name in ("id", "chunk") if name in table.column_names]
        return table.sort_by([(key, "ascending") for key in keys]).combine_chunks()

    def from_scratch(self, *overrides: str) -> pa.Table:
        """Return what a run into an empty output publishes, without the times."""
        scratch = f"{self.output}-scratch-{len(list(Path(self.output).parent.glob('out-scratch-*')))}"
        run_in_process(self.config, f"output.uri={scratch}", *overrides)
        table = open_snapshot(scratch).to_table()
        keys = [name for name in ("id", "chunk") if name in table.column_names]
        return table.sort_by([(key, "ascending") for key in keys]).combine_chunks().drop_columns(TIMES)

    def index_files(self) -> list[Path]:
        return sorted(Path(self.output, "_meta", "snapshots").glob("*.index/*"))


def with_one_night(folder: Path, rows: int = 90, **sections: Mapping[str, Any]) -> Corpus:
    """Return a corpus of three files that was embedded once."""
    corpus = Corpus(folder, "", **sections)
    third = rows // 3
    corpus.write(**{f"day1-{n}": rows_of(range(third * n, third * (n + 1))) for n in range(3)})
    assert corpus.night().encoded_texts == rows
    return corpus


def test_a_corpus_under_other_names_encodes_nothing_and_keeps_every_vector_and_its_times(
    store: Store, tmp_path: Path
) -> None:
    corpus = Corpus(tmp_path, store.uri)
    corpus.write(a=rows_of(range(40)), b=rows_of(range(40, 90)))
    corpus.night()
    corpus.write(dt1=rows_of(range(40)), dt2=rows_of(range(40, 90)))
    report = corpus.night()
    assert (report.encoded_texts, report.embedded, report.reused, report.taken_over) == (0, 0, 90, 90)
    assert (report.shards_reused, report.tokens, report.warnings) == (0, 0, [])
    assert corpus.rows().equals(corpus.rows(1))
    assert verify(corpus.snapshot).is_sound


def test_changed_new_and_deleted_rows_in_other_files_encode_the_new_texts_and_equal_a_run_from_scratch(
    tmp_path: Path,
) -> None:
    corpus = with_one_night(tmp_path)
    numbers = [n for n in range(93) if n != 45]  # 3 new, 1 deleted
    today = rows_of(numbers, changed=[7, 30, 31, 32, 88]).take(pa.array([(37 * row) % 92 for row in range(92)]))
    corpus.write(**{f"day2-{n}": today.slice(23 * n, 23) for n in range(4)})
    report = corpus.night()
    assert (report.encoded_texts, report.embedded, report.taken_over) == (3 + 5, 3 + 5, 92 - 8)
    assert corpus.rows().drop_columns(TIMES).equals(corpus.from_scratch())
    assert verify(corpus.snapshot).is_sound
    before = {id: row for id, *row in zip(*(corpus.rows(1)[name].to_pylist() for name in ["id", *TIMES]), strict=True)}
    for row in corpus.rows().to_pylist():
        is_old = row["id"] in before and row["id"] not in ("r0007", "r0030", "r0031", "r0032", "r0088")
        assert ([row[name] for name in TIMES] == before.get(row["id"])) == is_old


def test_kept_columns_and_ids_are_of_today_while_the_vector_is_of_yesterday(tmp_path: Path) -> None:
    corpus = with_one_night(tmp_path, rows=30, output={"partition_by": ["label"]})
    today = rows_of(range(30)).set_column(0, "id", pa.array([f"new {n}" for n in range(30)]))
    corpus.write(today=today.set_column(2, "label", pa.array(["one"] * 29 + ["\0"])))
    report = corpus.night("runtime.max_quarantined_fraction=0.1")
    assert (report.encoded_texts, report.taken_over, report.reasons) == (0, 29, {"partition_value": 1})
    assert pc.all(pc.equal(corpus.rows()["label"], "one")).as_py()
    assert corpus.rows()["id"].to_pylist() == sorted(f"new {n}" for n in range(29))
    assert sorted(corpus.rows()["embedding"].to_pylist()) == sorted(corpus.rows(1)["embedding"].to_pylist()[:29])


@pytest.mark.parametrize("stored", ["float32", "float16", "int8", "binary"])
def test_vectors_of_every_type_are_taken_over_to_the_bit_beside_new_ones(tmp_path: Path, stored: str) -> None:
    corpus = with_one_night(tmp_path, rows=30, recipe={"stored": stored})
    corpus.write(x=rows_of(range(31), changed=[4]))
    report = corpus.night()
    assert (report.encoded_texts, report.taken_over) == (2, 29)
    assert corpus.rows().drop_columns(TIMES).equals(corpus.from_scratch())


def test_chunks_are_taken_over_one_by_one(tmp_path: Path, m3e_small: Path) -> None:
    recipe = {"model": str(m3e_small), "compute": "float32", "max_tokens": 16, "long_text": "chunk"}
    corpus = Corpus(tmp_path, recipe=recipe, output={"rows_per_part": 4})
    long = ["".join(f"第{n}句很好, number {n * k}. " for n in range(12)) for k in range(1, 7)]
    table = pa.table({"id": range(6), "text": long, "label": ["x"] * 6})
    corpus.write(a=table)
    first = corpus.night()
    assert first.encoded_texts > 30
    ended = long[2][: len(long[2]) // 2] + " An end that no text had before."
    corpus.write(b=table.take([5, 4, 3, 2, 1, 0]).set_column(1, "text", pa.array([*long[:2:-1], ended, *long[1::-1]])))
    report = corpus.night()
    assert (report.embedded, report.taken_over) == (1, 5)
    assert 0 < report.encoded_texts < first.encoded_texts / 6 + 1
    rows, scratch = corpus.rows().drop_columns(TIMES), corpus.from_scratch()
    assert rows.drop_columns(["embedding"]).equals(scratch.drop_columns(["embedding"]))
    assert verify(corpus.snapshot, sample=rows.num_rows).is_sound


def test_a_changed_recipe_takes_nothing_over_and_a_changed_layout_everything(tmp_path: Path) -> None:
    corpus = with_one_night(tmp_path, rows=30)
    report = corpus.night("recipe.dimensions=8")
    assert (report.encoded_texts, report.taken_over) == (30, 0)
    assert corpus.index_files() == []
    report = corpus.night("recipe.dimensions=8", "output.rows_per_part=7")
    assert (report.encoded_texts, report.taken_over) == (0, 30)


def test_an_empty_text_is_known_to_no_other_way_of_treating_it(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, source={"empty_text": "zero"})
    corpus.write(a=pa.table({"id": range(4), "text": ["", "a", "  ", "b"], "label": ["x"] * 4}))
    assert corpus.night().encoded_texts == 2
    embedded = corpus.night("source.empty_text=embed")
    assert (embedded.encoded_texts, embedded.taken_over) == (2, 2)
    assert corpus.rows().drop_columns(TIMES).equals(corpus.from_scratch("source.empty_text=embed"))
    zero = corpus.night()
    assert (zero.encoded_texts, zero.taken_over, zero.embedded) == (0, 2, 2)
    assert corpus.rows().drop_columns(TIMES).equals(corpus.from_scratch())
    assert verify(corpus.snapshot).is_sound


def removed(path: Path) -> None:
    path.unlink()


def replaced(path: Path, content: bytes) -> None:
    """Put another file in place of one that may be mapped into memory."""
    path.unlink()
    path.write_bytes(content)


def cut(path: Path) -> None:
    replaced(path, path.read_bytes()[:-8])


def scrambled(path: Path) -> None:
    """Change the places of an index, or the vectors of a Part."""
    content, start, end = path.read_bytes(), path.stat().st_size // 2, path.stat().st_size
    if path.suffix == ".parquet":
        group = pq.read_metadata(path).row_group(0)
        columns = [group.column(number) for number in range(group.num_columns)]
        (vectors,) = (column for column in columns if column.path_in_schema.startswith("embedding"))
        start, end = vectors.data_page_offset + 60, vectors.data_page_offset + 64
    replaced(path, content[:start] + bytes(byte ^ 21 for byte in content[start:end]) + content[end:])


@pytest.mark.parametrize("damage", [removed, cut])
@pytest.mark.parametrize("suffix", ["json", "bin"])
def test_an_index_that_is_gone_or_short_is_made_anew(
    tmp_path: Path, damage: Callable[[Path], None], suffix: str
) -> None:
    corpus = with_one_night(tmp_path, rows=30)
    corpus.write(x=rows_of(range(30)), bad=pa.table({"id": ["a"], "text": [None], "label": ["b"]}))
    with pytest.raises(Exception, match="max_quarantined_fraction"):
        corpus.night("runtime.max_quarantined_fraction=0")
    (path,) = (path for path in corpus.index_files() if path.suffix == f".{suffix}")
    before = path.read_bytes()
    damage(path)
    corpus.write(y=rows_of(range(30)))
    assert corpus.night().taken_over == 30
    assert path.read_bytes() == before


def test_an_index_that_leads_astray_costs_an_encoding_and_never_a_wrong_vector(tmp_path: Path) -> None:
    corpus = with_one_night(tmp_path, rows=30)
    corpus.write(x=rows_of(range(30)), bad=pa.table({"id": ["a"], "text": [None], "label": ["b"]}))
    with pytest.raises(Exception, match="max_quarantined_fraction"):
        corpus.night("runtime.max_quarantined_fraction=0")
    scrambled(next(path for path in corpus.index_files() if path.suffix == ".bin"))
    corpus.write(y=rows_of(range(30)))
    report = corpus.night()
    assert (report.encoded_texts, report.taken_over) == (30, 0)
    assert report.warnings == [w for w in report.warnings if w.startswith("30 known texts were encoded again")] != []
    assert corpus.rows().drop_columns(TIMES).equals(corpus.from_scratch())


@pytest.mark.parametrize("damage", [removed, cut, scrambled])
def test_a_part_that_is_gone_or_damaged_costs_the_encoding_of_its_texts(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    corpus = with_one_night(tmp_path, rows=48)
    part = next(p for p in corpus.snapshot.parts.to_pylist() if p["rows"] == 16)
    damage(Path(corpus.output, part_key("embeddings", part["folder"], part["path"])))
    corpus.write(x=rows_of(range(48)))
    report = corpus.night()
    assert (report.encoded_texts, report.taken_over) == (16, 32)
    reasons = ["1 Part of snapshot 1 cannot be read", "16 known texts were encoded again"]
    assert reasons[damage is scrambled] in report.warnings[0]
    assert corpus.rows().drop_columns(TIMES).equals(corpus.from_scratch())


def test_a_part_that_vanishes_once_the_index_is_made_costs_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = with_one_night(tmp_path, rows=48)
    paths = [
        Path(corpus.output, part_key("embeddings", p["folder"], p["path"])) for p in corpus.snapshot.parts.to_pylist()
    ]
    find = text_index.TextIndex.find

    def finds_and_loses(index: text_index.TextIndex, hashes: pa.Array) -> Any:
        paths[0].unlink(missing_ok=True)
        return find(index, hashes)

    lost = pq.read_metadata(paths[0]).num_rows
    monkeypatch.setattr(text_index.TextIndex, "find", finds_and_loses)
    corpus.write(x=rows_of(range(48)))
    report = corpus.night()
    assert (report.encoded_texts, report.taken_over) == (lost, 48 - lost)
    assert [warning.split(":")[0] for warning in report.warnings] == [f"{lost} known texts were encoded again"]
    assert corpus.rows().drop_columns(TIMES).equals(corpus.from_scratch())


def test_a_corpus_shuffled_over_many_small_parts_encodes_nothing(tmp_path: Path) -> None:
    corpus = with_one_night(tmp_path, rows=150, output={"rows_per_part": 2})
    assert corpus.snapshot.parts.num_rows == 75
    corpus.write(x=rows_of([(67 * n) % 150 for n in range(150)]))
    report = corpus.night("output.rows_per_part=150")
    assert (report.encoded_texts, report.taken_over) == (0, 150)
    assert corpus.rows().equals(corpus.rows(1))


def test_texts_that_lie_too_scattered_are_encoded_again_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = with_one_night(tmp_path, rows=48)
    monkeypatch.setattr(known, "MANY_BYTES", 0)
    monkeypatch.setattr(known, "FEW_ROWS", 0.5)
    monkeypatch.setattr(known, "CACHE_BYTES", 0)
    corpus.write(x=rows_of([*range(12), 16, 40]))
    report = corpus.night()
    assert 0 < report.encoded_texts <= 2
    assert report.encoded_texts + report.taken_over == 14
    assert "scattered" in report.warnings[0]


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_a_night_that_was_killed_goes_on_and_equals_a_run_from_scratch(tmp_path: Path, blocks: int) -> None:
    corpus = with_one_night(tmp_path)
    corpus.write(x=rows_of(range(50), changed=[3, 40]), y=rows_of(range(50, 92)))
    with pytest.raises(Killed):
        run_inline(load_config(corpus.config), dies_after_blocks=blocks)
    assert corpus.snapshot.number == 1
    report = corpus.night()
    assert (report.snapshot, report.rows_read, report.quarantined) == (2, 92, 0)
    assert report.encoded_texts <= 4
    assert corpus.rows().drop_columns(TIMES).equals(corpus.from_scratch())
    assert verify(corpus.snapshot).is_sound


def test_a_node_that_cannot_keep_a_copy_of_the_index_encodes_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = with_one_night(tmp_path, rows=30)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reuse, "open_index", full)
    corpus.write(x=rows_of(range(30)))
    report = corpus.night()
    assert (report.encoded_texts, report.taken_over) == (30, 0)


def test_a_night_without_a_new_text_loads_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = list[ModelReference]()

    def noted(model: ModelReference, *facts: Any) -> Encoder:
        opened.append(model)
        return open_encoder(model, *facts)

    monkeypatch.setattr(encode_stage, "open_encoder", noted)
    corpus = Corpus(tmp_path, source={"empty_text": "zero"})
    rows = rows_of(range(30))
    corpus.write(x=pa.concat_tables([rows, pa.table({"id": ["e"], "text": [" "], "label": ["l0"]})]))
    corpus.night()
    assert len(opened) == 1
    corpus.write(y=pa.concat_tables([rows, pa.table({"id": ["e", "f"], "text": ["", " "], "label": ["l0", "l0"]})]))
    report = corpus.night()
    assert (report.encoded_texts, report.taken_over, len(opened)) == (0, 30, 1)
    assert verify(corpus.snapshot, sample=32).is_sound
    monkeypatch.setattr(without_ray, "repeated_texts", lambda of_shards: (np.empty((0, 2), np.uint64), 0))
    corpus.write(z=rows_of(range(31)))
    report = corpus.night()
    assert (report.encoded_texts, len(opened)) == (1, 2), "what nobody has expected is encoded all the same"


def test_a_text_that_stands_more_than_once_in_a_block_is_encoded_once(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path)
    texts = ["a", "b", "a", "c", "b", "a"]
    corpus.write(a=pa.table({"id": range(6), "text": texts, "label": ["x"] * 6}))
    report = corpus.night()
    assert (report.rows_read, report.embedded, report.encoded_texts, report.repeated_texts) == (6, 6, 3, 3)
    vectors = corpus.rows()["embedding"].to_pylist()
    assert vectors[0] == vectors[2] == vectors[5] != vectors[1] == vectors[4] != vectors[3]
    assert verify(corpus.snapshot, sample=6).is_sound


def test_a_text_that_stands_in_several_blocks_and_files_is_encoded_once(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path)
    texts = [f"text {(7 * n) % 40}" for n in range(90)]
    table = pa.table({"id": range(90), "text": texts, "label": ["x"] * 90})
    corpus.write(a=table.slice(0, 45), b=table.slice(45))
    report = corpus.night()
    assert (report.embedded, report.encoded_texts, report.repeated_texts, report.reused) == (90, 40, 50, 0)
    vectors: dict[str, list[float]] = {}
    for text, vector in zip(texts, corpus.rows()["embedding"].to_pylist(), strict=True):
        assert vectors.setdefault(text, vector) == vector
    assert verify(corpus.snapshot, sample=90).is_sound
    corpus.write(c=table.append_column("more", table["id"]), d=pa.table({"id": [90], "text": ["new"], "label": ["x"]}))
    report = corpus.night()
    assert (report.encoded_texts, report.taken_over, report.repeated_texts) == (1, 90, 0)


def test_texts_that_there_is_no_room_to_lend_are_encoded_once_per_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lending, "LENT_BYTES", 5 * 4 * 16)
    corpus = Corpus(tmp_path)
    corpus.write(a=pa.table({"id": range(32), "text": [f"{n % 16}" for n in range(32)], "label": ["x"] * 32}))
    assert corpus.night().encoded_texts == 16 + 16 - 5


def test_a_repeated_text_without_a_vector_puts_all_its_rows_aside_and_no_other(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path, runtime={"max_quarantined_fraction": 1.0})
    texts = ["!frail", "b", "!frail", "c", "b"]
    corpus.write(a=pa.table({"id": range(5), "text": texts, "label": ["x"] * 5}))
    report = run_inline(load_config(corpus.config), is_sick=True)
    assert (report.embedded, report.reasons) == (3, {"not_finite": 2})
    assert corpus.rows()["id"].to_pylist() == [1, 3, 4]
    again = run_inline(load_config(corpus.config), retry=frozenset(Reason))
    assert (again.embedded, again.taken_over, again.encoded_texts, again.quarantined) == (2, 3, 1, 0)
    assert corpus.rows().drop_columns(TIMES).equals(corpus.from_scratch())


@pytest.mark.slow
@pytest.mark.long
def test_on_real_reviews_a_night_encodes_the_distinct_new_texts_and_equals_a_run_from_scratch(
    tmp_path: Path, m3e_small: Path, reviews: pa.Table
) -> None:
    recipe = {"model": str(m3e_small), "compute": "float32", "max_tokens": 64}
    corpus = Corpus(tmp_path, recipe=recipe, output={"rows_per_part": 128, "partition_by": ["label"]})
    rows = reviews.slice(0, 600).select(["id", "text", "label"])
    corpus.write(**{f"dt-1-{n}": rows.slice(150 * n, 150) for n in range(4)})
    corpus.night()
    texts = rows["text"].to_pylist()
    changed = range(0, 600, 20)  # 5 %; 1 % is new, 1 % is gone
    for row in changed:
        texts[row] = "变了。" + texts[row]
    today = rows.set_column(1, "text", pa.array(texts)).filter(pa.array([row % 100 != 1 for row in range(600)]))
    new = reviews.slice(600, 6).select(["id", "text", "label"])
    today = pa.concat_tables([today, new]).take(pa.array([(211 * row) % 600 for row in range(600)]))
    corpus.write(**{f"dt-2-{n}": today.slice(87 * n, 87) for n in range(7)})
    report = corpus.night()
    fresh = set(today["text"].to_pylist()) - set(rows["text"].to_pylist())
    assert (report.rows_read, report.encoded_texts) == (600, len(fresh))
    assert len(fresh) == len(changed) + 6
    found, scratch = corpus.rows().drop_columns(TIMES), corpus.from_scratch()
    assert found.drop_columns(["embedding"]).equals(scratch.drop_columns(["embedding"]))
    vectors_ND, expected_ND = (vectors_of(table["embedding"]) for table in (found, scratch))
    assert np.allclose(vectors_ND, expected_ND, rtol=0, atol=1e-6)
    assert verify(corpus.snapshot, sample=100).is_sound
