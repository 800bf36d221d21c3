"""One corpus that holds everything that can be wrong, run from end to end: what is good is published, the rest told."""

import gzip
import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline import open_snapshot
from pipeline.arrow import vectors_of
from pipeline.encoder.hashing import HashingEncoder
from pipeline.execution.verification.verify import verify
from pipeline.text.tokenizer import ByteTokenizer
from tests.running import Finished, embed, written_config

Entry = tuple[str, int, int | None, str]
"""File, row, rows, reason."""


@dataclass(frozen=True)
class Corpus:
    """What was written, and what must become of it."""

    folder: Path
    good: dict[str, str]
    """id → text."""
    bad: list[Entry]
    unreadable_bytes: int

    @property
    def lost_rows(self) -> int:
        return sum(1 if rows is None else rows for _, _, rows, _ in self.bad)


def table_of(name: str, rows: int) -> pa.Table:
    return pa.table(
        {"id": [f"{name}-{row}" for row in range(rows)], "text": [f"{name} 好 {row}" for row in range(rows)]}
    )


def json_lines(name: str, rows: int) -> bytes:
    pairs = ((f"{name}-{row}", f"{name} 好 {row}") for row in range(rows))
    return "".join(f'{{"id":"{id}","text":"{text}"}}\n' for id, text in pairs).encode()


def write_corpus(folder: Path) -> Corpus:
    """Write one file of each fault, the first of them in the order of their names unreadable."""
    folder.mkdir()
    good: dict[str, str] = {}
    bad: list[Entry] = []
    lost: list[int] = []

    def add_good(name: str, rows: Any) -> None:
        good.update({f"{name}-{row}": f"{name} 好 {row}" for row in rows})

    # Whole files
    (folder / "a.parquet").write_bytes(b"PAR1 this is no Parquet file PAR1")
    (folder / "b.parquet").write_bytes(b"")
    (folder / "c.jsonl.gz").write_bytes(json_lines("c", 9))
    for name in ("a.parquet", "b.parquet", "c.jsonl.gz"):
        bad.append((name, 0, None, "unreadable_file"))
        lost.append((folder / name).stat().st_size)
    pq.write_table(table_of("d", 30).rename_columns(["id", "body"]), folder / "d.parquet")
    pq.write_table(table_of("e", 20).set_column(0, "id", pa.array(range(20))), folder / "e.parquet")
    (folder / "f.csv").write_bytes(b"id,body\na,b\n")
    bad += [("d.parquet", 0, 30, "missing_column"), ("e.parquet", 0, 20, "wrong_type")]
    bad.append(("f.csv", 0, None, "missing_column"))
    lost += [(folder / name).stat().st_size for name in ("d.parquet", "e.parquet", "f.csv")]
    for name in ("g.jsonl", "g.csv", "g.txt"):
        (folder / name).write_bytes(b"")

    # Stretches
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    pq.write_table(table_of("h", 200), folder / "h.parquet", row_group_size=50, **options)
    content = bytearray((folder / "h.parquet").read_bytes())
    content[content.index("h 好 70".encode())] ^= 1
    (folder / "h.parquet").write_bytes(content)
    add_good("h", [*range(50), *range(100, 200)])
    bad.append(("h.parquet", 50, 50, "unreadable_stretch"))
    lost.append(len(content) * 50 // 200)
    whole = [
        gzip.compress(json_lines("i", 60)),
        zstandard.ZstdCompressor(write_checksum=True).compress(json_lines("j", 60)),
    ]
    (folder / "i.jsonl.gz").write_bytes(whole[0][:-3])
    (folder / "j.jsonl.zst").write_bytes(whole[1] + b"and something else")
    for name in ("i", "j"):
        add_good(name, range(60))
        file = next(folder.glob(f"{name}.*"))
        bad.append((file.name, 60, None, "unreadable_stretch"))
        lost.append(file.stat().st_size)

    # Rows
    lines = json_lines("k", 20).splitlines()
    wrong = {
        1: (b'{"id":"k-1","text":null}', "null_text"),
        2: (b'{"id":"k-2","text":""}', "empty_text"),
        3: (' {"id":"k-3","text":" \u3000"}'.encode(), "empty_text"),
        4: (b'{"id":"k-4","text":"caf\xe9"}', "invalid_utf8"),
        5: (rb'{"id":"k-5","text":"\ud83d"}', "invalid_unicode"),
        6: (b'{"id":"k-6","text":"\x00"}', "invalid_json"),
        7: (b'{"id":"k-7","text":"t"', "invalid_json"),
        8: (b'["k-8","t"]', "not_an_object"),
        9: (b'{"id":9,"text":"t"}', "wrong_type"),
        10: (b'{"id":"k-10"}', "missing_column"),
        11: (b'{"text":"t"}', "missing_id"),
        12: (b'{"id":"k-12","text":"' + b"x" * (17 * 2**20) + b'"}', "line_too_long"),
    }
    for row, (line, reason) in wrong.items():
        lines[row] = line
        bad.append(("k.jsonl", row, 1, reason))
    add_good("k", sorted(set(range(20)) - wrong.keys()))
    (folder / "k.jsonl").write_bytes(b"\n".join(lines))
    (folder / "l.csv").write_bytes("id,text\nl-0,l 好 0\nx,y,z\nl-2,l 好 2\nl-3,\n".encode())
    add_good("l", [0, 2])
    bad += [("l.csv", 1, 1, "invalid_csv"), ("l.csv", 3, 1, "empty_text")]
    (folder / "m.txt").write_bytes(b"one\n\n\xff\nfour\n")
    good |= {"m.txt#0": "one", "m.txt#3": "four"}
    bad.append(("m.txt", 2, 1, "invalid_utf8"))
    pq.write_table(table_of("n", 300), folder / "n.parquet")
    add_good("n", range(300))
    return Corpus(folder, good, sorted(bad), sum(lost))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("bad") / "corpus")


def config_of(corpus: Corpus, name: str, **source: Any) -> str:
    return written_config(
        corpus.folder.parent / f"{name}.yaml",
        source={"uri": str(corpus.folder)} | source,
        recipe={"model": "hashing://16"},
        output={"uri": str(corpus.folder.parent / name), "rows_per_part": 16},
    )


@pytest.fixture(scope="module")
def published(corpus: Corpus) -> Finished:
    """The run that allows for all of it."""
    finished = embed(config_of(corpus, "out"), "runtime.max_quarantined_fraction=1")
    assert finished.code == 0, finished.stderr
    return finished


def test_every_good_row_of_a_bad_corpus_is_embedded_once(corpus: Corpus, published: Finished) -> None:
    rows = open_snapshot(str(corpus.folder.parent / "out")).to_table().sort_by("id")
    assert rows["id"].to_pylist() == sorted(corpus.good)
    tokens, _ = ByteTokenizer()(pa.array([corpus.good[id] for id in rows["id"].to_pylist()]), 512)
    expected_ND = HashingEncoder(16).encode(tokens)
    expected_ND /= np.linalg.norm(expected_ND, axis=1, keepdims=True)
    assert np.allclose(vectors_of(rows["embedding"]), expected_ND, rtol=0, atol=1e-6)


def test_the_account_of_a_bad_corpus_is_exact(corpus: Corpus, published: Finished) -> None:
    report = published.report
    assert (report["rows_read"], report["embedded"]) == (len(corpus.good) + corpus.lost_rows, len(corpus.good))
    assert (report["quarantined"], report["reused"], report["deduplicated"]) == (corpus.lost_rows, 0, 0)
    reasons: Counter[str] = Counter()
    for _, _, rows, reason in corpus.bad:
        reasons[reason] += 1 if rows is None else rows
    assert report["reasons"] == reasons
    assert report["unreadable_bytes"] == corpus.unreadable_bytes


def test_quarantine_holds_every_bad_row_and_every_stretch_and_nothing_else(corpus: Corpus, published: Finished) -> None:
    entries = pq.read_table(corpus.folder.parent / "out" / "quarantine").to_pylist()
    names = [(Path(e["source_uri"]).name, e["row"], e["rows"], e["reason"]) for e in entries]
    assert sorted(names) == corpus.bad
    long = next(entry for entry in entries if entry["reason"] == "line_too_long")
    line = (corpus.folder / "k.jsonl").read_bytes().split(b"\n")[12]
    assert (long["raw"], long["raw_bytes"]) == (line[:1024], len(line))
    assert long["raw_hash"] == hashlib.sha256(line).hexdigest()
    assert not any(b"x" * 20 in entry["error"].encode() for entry in entries)


def test_a_snapshot_of_a_bad_corpus_is_sound_and_stands_when_run_again(corpus: Corpus, published: Finished) -> None:
    result = verify(open_snapshot(str(corpus.folder.parent / "out")))
    assert result.is_sound, result.findings
    again = embed(config_of(corpus, "out"), "runtime.max_quarantined_fraction=1")
    assert (again.code, again.report["outcome"]) == (0, "nothing_to_do")
    assert again.report["rows_read"] == published.report["rows_read"]
    assert again.report["unreadable_bytes"] == published.report["unreadable_bytes"]


def test_a_bad_corpus_within_no_limit_publishes_nothing_and_what_was_done_is_reused(corpus: Corpus) -> None:
    failed = embed(config_of(corpus, "limited", empty_text="zero"))
    assert failed.code == 1
    assert "runtime.max_quarantined_fraction 0.01" in failed.errors[0]
    assert not (corpus.folder.parent / "limited" / "_meta" / "snapshots").exists()
    allowed = embed(config_of(corpus, "limited", empty_text="zero"), "runtime.max_quarantined_fraction=1")
    assert allowed.code == 0, allowed.stderr
    assert (allowed.report["embedded"], allowed.report["reused"]) == (0, len(corpus.good) + 3)
    rows = {row["id"]: row for row in open_snapshot(str(corpus.folder.parent / "limited")).to_table().to_pylist()}
    for id in ("k-2", "k-3", "l-3"):
        assert (rows[id]["tokens"], rows[id]["truncated"], set(rows[id]["embedding"])) == (0, False, {0.0})
    assert verify(open_snapshot(str(corpus.folder.parent / "limited"))).is_sound
