"""Drift: what is said of the vectors of two snapshots is what brute force finds, whatever recipe each has."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from jobs.__main__ import main
from pipeline.arrow import dequantised, fixed_size_list, vectors_of
from pipeline.config_file import load_config
from pipeline.execution.proof import common_texts as sampling
from pipeline.execution.proof.drift import NEIGHBOURS, Drift, drift
from pipeline.storage.filesystem import Store
from pipeline.storage.parquet import read_columns
from pipeline.storage.snapshots import Snapshot, open_snapshot
from tests.inline import run_inline
from tests.running import written_config
from tests.tampering import part_keys, rewrite

DIMENSION = 24
OTHER_RECIPE = "recipe.max_tokens=500"
"""Gives the same vectors of short texts, in Parts of its own."""

Vectors = NDArray[np.float32]


def text_of(number: int) -> str:
    return " ".join(str(word) for word in np.random.default_rng(number).integers(0, 40, size=12))


class Output:
    """An output over some files of rows, id → text."""

    def __init__(self, folder: Path) -> None:
        self.corpus, self.uri = folder / "in", str(folder / "out")
        self.corpus.mkdir()
        self.config = written_config(
            folder / "job.yaml",
            source={"uri": str(self.corpus)},
            recipe={"model": f"hashing://{DIMENSION}"},
            output={"uri": self.uri, "rows_per_part": 40},
        )

    def write(self, rows: dict[str, str], name: str = "a") -> None:
        lines = [orjson.dumps({"id": id, "text": text}) + b"\n" for id, text in rows.items()]
        (self.corpus / f"{name}.jsonl").write_bytes(b"".join(lines))

    def run(self, *overrides: str) -> Snapshot:
        run_inline(load_config(self.config, overrides))
        return open_snapshot(self.uri)

    def change_newest(self, change: Callable[[Vectors], Vectors], keys: Sequence[str] = ()) -> None:
        """Put other vectors into these Parts of the newest snapshot, or into all."""

        def changed(rows: pa.Table) -> pa.Table:
            vectors_ND = np.ascontiguousarray(change(vectors_of(rows["embedding"]).astype(np.float32)))
            at = rows.column_names.index("embedding")
            return rows.set_column(at, "embedding", fixed_size_list(vectors_ND, rows["embedding"].type))

        store = Store(self.uri)
        for key in keys or part_keys(store):
            rewrite(store, key, changed)

    def drift(self) -> Drift:
        return drift(open_snapshot(self.uri, 1), open_snapshot(self.uri, 2))


@pytest.fixture
def output(tmp_path: Path) -> Output:
    """Of 200 texts, published once."""
    output = Output(tmp_path)
    output.write({f"r{n}": text_of(n) for n in range(200)})
    output.run()
    return output


def brute_force(before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """Return cosines and overlap by a look at every row, texts being ids here."""
    tables = [snapshot.to_table().sort_by("id") for snapshot in (before, after)]
    ids = sorted(set(tables[0]["id"].to_pylist()) & set(tables[1]["id"].to_pylist()))
    units = []
    for table, snapshot in zip(tables, (before, after), strict=True):
        at = [table["id"].to_pylist().index(id) for id in ids]
        vectors = dequantised(table.take(pa.array(at)).combine_chunks(), snapshot.recipe["stored"]).astype(np.float64)
        units.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    cosines = [unit @ unit.T - 9 * np.eye(len(ids)) for unit in units]
    near = [[set(np.argsort(-of_text)[:NEIGHBOURS].tolist()) for of_text in of_side] for of_side in cosines]
    shared = sum(len(old & new) for old, new in zip(*near, strict=True))
    overlap = shared / len(ids) / NEIGHBOURS
    alike = units[0].shape == units[1].shape
    return {"texts": len(ids), "overlap": overlap, "cosines": (units[0] * units[1]).sum(1) if alike else None}


def test_vectors_that_are_the_same_have_not_moved(output: Output) -> None:
    output.run(OTHER_RECIPE)
    found = output.drift()
    assert (found.texts, found.looked_at, found.same_ids, found.overlap) == (200, 200, 200, 1.0)
    assert found.cosines is not None
    assert found.cosines.least == pytest.approx(1)
    assert found.mean_cosine == pytest.approx(1)
    assert found.mean_distance == pytest.approx(0)
    assert found.before.norms == found.after.norms == pytest.approx((1, 1, 1))


def test_rotated_vectors_are_far_from_what_they_were_and_keep_their_neighbours(output: Output) -> None:
    output.run(OTHER_RECIPE)
    turn_DD = np.linalg.qr(np.random.default_rng(1).normal(size=(DIMENSION, DIMENSION)))[0].astype(np.float32)
    output.change_newest(lambda vectors_ND: vectors_ND @ turn_DD)
    found = output.drift()
    assert found.cosines is not None
    assert abs(found.cosines.mean) < 0.5
    assert found.overlap == pytest.approx(1, abs=0.01)
    assert found.mean_distance is not None
    assert found.mean_distance > 0.1


def test_vectors_that_were_exchanged_are_named(output: Output) -> None:
    output.run(OTHER_RECIPE)
    key = part_keys(Store(output.uri))[0]
    first, second = read_columns(Store(output.uri), key, ["id"])["id"].to_pylist()[:2]
    output.change_newest(lambda vectors_ND: vectors_ND[[1, 0, *range(2, len(vectors_ND))]], [key])
    found = output.drift()
    assert found.cosines is not None
    assert set(found.cosines.farthest[:2]) == {first, second}
    assert found.cosines.least < 0.99 < found.cosines.quantiles["0.1"]


@pytest.mark.parametrize("stored", ["float16", "int8", "binary"])
def test_what_is_said_of_another_precision_is_what_brute_force_finds(output: Output, stored: str) -> None:
    before, after = open_snapshot(output.uri), output.run(f"recipe.stored={stored}")
    found, expected = drift(before, after), brute_force(before, after)
    assert found.cosines is not None
    assert found.texts == expected["texts"]
    assert found.overlap == pytest.approx(expected["overlap"], abs=0.002 if stored != "binary" else 0.1)
    assert found.cosines.least == pytest.approx(expected["cosines"].min(), abs=1e-6)
    assert found.cosines.mean == pytest.approx(expected["cosines"].mean(), abs=1e-6)
    assert found.cosines.quantiles["0.5"] == pytest.approx(np.median(expected["cosines"]), abs=1e-6)


def test_of_other_dimensions_only_lengths_and_neighbours_are_compared(output: Output) -> None:
    before, after = open_snapshot(output.uri), output.run("recipe.dimensions=8")
    found = drift(before, after)
    assert (found.cosines, found.mean_cosine, found.mean_distance) == (None, None, None)
    assert (found.before.dimension, found.after.dimension) == (DIMENSION, 8)
    assert found.overlap == pytest.approx(brute_force(before, after)["overlap"], abs=0.002)


def test_texts_are_compared_by_what_they_say_and_by_id_where_they_stand_twice(output: Output) -> None:
    twice, moved = text_of(0), text_of(1)
    output.write({f"r{n}": text_of(n) for n in range(2, 100)} | {"other": moved, "a copy": twice, "r0": twice})
    output.run()
    found = output.drift()
    assert (found.texts, found.looked_at, found.same_ids) == (100, 100, 99)
    assert found.cosines is not None
    assert found.cosines.least == pytest.approx(1)


def test_snapshots_without_a_text_in_common_say_so(output: Output, capsys: pytest.CaptureFixture[str]) -> None:
    output.write({f"s{n}": text_of(1000 + n) for n in range(50)})
    output.run()
    assert main(["diff", output.uri, "1", "2", "--vectors", "--json"]) == 0
    told = orjson.loads(capsys.readouterr().out)["vectors"]
    assert (told["texts"], told["looked_at"], told["cosines"], told["overlap"]) == (0, 50, None, None)
    assert main(["diff", output.uri, "1", "2", "--vectors"]) == 0
    assert "vectors of 0 texts that both have" in capsys.readouterr().out


def test_a_sample_is_the_same_again_and_reads_the_vectors_of_few_parts(
    output: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = open_snapshot(output.uri), output.run(OTHER_RECIPE)
    monkeypatch.setattr(sampling, "PARTS", 2)
    monkeypatch.setattr(sampling, "ROWS", 1)
    columns_of: list[tuple[str, tuple[str, ...]]] = []

    def watched(store: Store, key: str, names: list[str]) -> pa.Table:
        columns_of.append((key, tuple(names)))
        return read_columns(store, key, names)

    monkeypatch.setattr(sampling, "read_columns", watched)
    first = sampling.common_texts(before, after, texts=30)
    assert len(first.ids) == 30
    with_vectors = [key for key, names in columns_of if "embedding" in names]
    assert len(with_vectors) == len(set(with_vectors)) == 4
    assert not {"embedding", "_text"} & {name for _, names in columns_of[:-4] for name in names}
    again = sampling.common_texts(before, after, texts=30)
    assert again.ids == first.ids
    np.testing.assert_array_equal(again.after_ND, first.after_ND)


def test_the_command_tells_people_and_machines_of_vectors_only_when_asked(
    output: Output, capsys: pytest.CaptureFixture[str]
) -> None:
    output.run("recipe.stored=int8")
    assert main(["diff", output.config, "1", "2"]) == 0
    assert "vectors" not in capsys.readouterr().out
    assert main(["diff", output.config, "1", "2", "--vectors"]) == 0
    told = capsys.readouterr().out
    assert "vectors of 200 texts that both have (200 of them under one id), out of 200 that were sought" in told
    assert f"{DIMENSION} × int8, lengths" in told
    assert "of the 10 nearest are the same" in told
