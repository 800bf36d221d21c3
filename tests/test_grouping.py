"""Small files: put together to Shards of about one Part, whose ends stay where they are when files come and go."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import orjson
import pyarrow.compute as pc
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.config import JobConfig
from pipeline.execution.planning.grouping import group_ends
from pipeline.execution.planning.shards import BYTES_PER_ROW, FILES_PER_SHARD, cut_shards
from pipeline.records import Shard, SourceFile
from pipeline.storage.snapshots import open_snapshot
from tests.inline import run_inline

ROWS_PER_PART = 16
FULL = ROWS_PER_PART * BYTES_PER_ROW

FEW = 4
"""Shards that one file may concern: its own, one on either side whose end moves, and what a large file parts."""

SIZES = st.one_of(
    st.lists(st.integers(0, FULL // 20), min_size=1, max_size=200),
    st.lists(st.integers(0, 2 * FULL), min_size=1, max_size=60),
    st.lists(st.sampled_from([0, 1, FULL // 2, FULL - 1, FULL, 10 * FULL]), min_size=1, max_size=60),
)
SEEDS = st.integers(0, 2**32)


def files_of(sizes: Sequence[int], seed: int = 0) -> list[SourceFile]:
    return [SourceFile(f"{seed}/{n:05d}.jsonl", "v1", size, "jsonl") for n, size in enumerate(sizes)]


def cut(files: Sequence[SourceFile], rows_per_part: int = ROWS_PER_PART) -> tuple[Shard, ...]:
    return cut_shards(files, {}, "recipe", rows_per_part, {})


def ids(shards: Sequence[Shard]) -> set[str]:
    return {shard.shard_id for shard in shards}


@given(SIZES, SEEDS)
def test_a_shard_of_several_files_weighs_between_half_of_a_part_and_two(sizes: list[int], seed: int) -> None:
    shards = cut(files_of(sizes, seed))
    assert [span.file for shard in shards for span in shard.spans] == files_of(sizes, seed)
    for before, shard, after in zip([None, *shards], shards, [*shards[1:], None], strict=False):
        weight = sum(max(span.file.size_bytes, FULL // FILES_PER_SHARD) for span in shard.spans)
        assert len(shard.spans) == 1 or weight < 2 * FULL
        beside = [one for one in (before, after) if one is not None]
        is_between_large_ones = all(one.size_bytes >= FULL and len(one.spans) == 1 for one in beside)
        assert weight >= FULL / 2 or is_between_large_ones, "two small ones stand side by side"


@settings(max_examples=300)
@given(SIZES, SEEDS, st.integers(0, 200), st.integers(0, 2 * FULL), st.sampled_from(["insert", "remove", "change"]))
@example([100] * 200, 1, 100, 100, "insert")
def test_a_file_that_comes_goes_or_is_changed_changes_few_shards(
    sizes: list[int], seed: int, position: int, size: int, what: str
) -> None:
    files = files_of(sizes, seed)
    at = position % len(files)
    changed = {
        "insert": [*files[:at], SourceFile(f"{seed}/{at - 1:05d}.new.jsonl", "v1", size, "jsonl"), *files[at:]],
        "remove": files[:at] + files[at + 1 :],
        "change": [*files[:at], SourceFile(files[at].uri, "v2", size, "jsonl"), *files[at + 1 :]],
    }[what]
    before, after = ids(cut(files)), ids(cut(changed))
    assert len(before - after) <= FEW
    assert len(after - before) <= FEW + 1
    assert what == "insert" or before != after


def test_a_million_tiny_files_are_a_few_thousand_groups_and_a_new_one_moves_few_of_their_ends() -> None:
    random = np.random.default_rng(1)
    draws_N, sizes_N = random.integers(0, 2**63, 1_000_000, np.uint64), random.integers(100, 4000, 1_000_000)
    full = 16384 * BYTES_PER_ROW
    weights_N = np.maximum(sizes_N, full // FILES_PER_SHARD)
    is_end_N = group_ends(draws_N, weights_N, full)
    assert 1000 < is_end_N.sum() < 4000
    for position in random.integers(0, len(draws_N), 5).tolist():
        draws, weights = (np.insert(of_all, position, of_all[0] // 2) for of_all in (draws_N, weights_N))
        is_end = np.delete(group_ends(draws, weights, full), position)
        assert (is_end != is_end_N).sum() <= FEW


def written(corpus: Path, number: int, version: int = 0) -> None:
    rows = [
        {"id": f"{number}-{row}", "text": f"text {version if row == 0 else 0} of {number} {row}"} for row in range(3)
    ]
    (corpus / f"{number:04d}.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))


def test_one_changed_file_of_four_hundred_rewrites_one_shard_and_encodes_its_changed_row(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(400):
        written(corpus, number)
    config = JobConfig.model_validate(
        {
            "source": {"uri": str(corpus)},
            "recipe": {"model": "hashing://8"},
            "output": {"uri": str(tmp_path / "out"), "rows_per_part": ROWS_PER_PART},
        }
    )
    run_inline(config)
    written(corpus, 150, version=1)
    report = run_inline(config)
    first, second = (open_snapshot(config.output.uri, number).parts for number in (1, 2))
    rewritten = second.filter(pc.invert(pc.is_in(second["file_hash"], first["file_hash"])))
    assert (report.shards > 5, report.shards - report.shards_reused) == (True, 1)
    assert len(set(rewritten["shard_id"].to_pylist())) == 1
    assert (report.encoded_texts, report.taken_over) == (1, pc.sum(rewritten["rows"]).as_py() - 1)
    (corpus / "0050.jsonl").unlink()
    written(corpus, 1000)
    report = run_inline(config)
    assert report.shards - report.shards_reused <= 2 * FEW
    assert report.encoded_texts == 3
