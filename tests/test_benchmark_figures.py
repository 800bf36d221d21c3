"""What the tables of the benchmarks say: medians within rounds with their spread, and nothing that was not measured."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from ray.data.extensions import ArrowTensorArray

from tests.benchmarks import encoders, growth, loop_profile, measuring, peers
from tests.benchmarks.ceiling import gemm_flops
from tests.benchmarks.chart import write_chart
from tests.benchmarks.rounds import Outcome, Timed, Variant


def nothing(texts: list[str]) -> NDArray[np.float32]:
    return np.empty((0, 1), np.float32)


def outcome(name: str, precision: str, *tokens: int) -> Outcome:
    return Outcome(
        Variant(name, precision, lambda: nullcontext(nothing)), [Timed(1, one, 1.0, 1.0, 0.0, None) for one in tokens]
    )


def test_a_precision_that_encode_does_not_offer_is_compared_with_no_encode_of_the_same() -> None:
    outcomes = [
        outcome("encode", "float32", 100, 200),
        outcome("encode, pool of 2 processes", "float32", 100, 100),
        outcome("ours, openvino", "float32", 150, 250),
        outcome("ours, openvino", "int8", 300, 400),
    ]
    ceilings = {"float32": [1.0, 1.0], "int8": [1.0, 1.0]}
    lines = [encoders._line(one, outcomes, ceilings) for one in outcomes]
    assert [line["to_encode_same_precision"] for line in lines] == [1.0, 0.75, 1.38, None]
    assert [line["to_encode_float32"] for line in lines] == [1.0, 0.75, 1.38, 2.5]
    assert [line["min_cosine"] for line in lines] == [None] * 4


def peer(name: str, *rates: float, writes: peers.Writes = peers.Writes.FILES, precision: str = "float32") -> peers.Peer:
    measured = peers.Peer(name, precision, 1.0, lambda source, target: [], writes=writes)
    measured.rates = [*rates]
    measured.start_seconds = measured.wall_seconds = measured.others = [1.0] * len(rates)
    return measured


def test_ours_is_compared_with_a_peer_within_each_round_and_the_spread_is_told() -> None:
    both = [peer("ours", 10, 30, 20, writes=peers.Writes.COMPARED), peer("theirs", 10, 10, 5)]
    line = peers._line(both[1], both)
    assert (line["ours_in_same_precision_is"], line["lowest"], line["highest"]) == (3.0, 1.0, 4.0)
    assert (line["rounds"], line["min_cosine"], line["ours_in_bfloat16_is"]) == (3, None, None)


@pytest.mark.parametrize(
    ("ways", "names"),
    [
        ("", ["32 rows", "1024 rows", "1024 rows", "ours", "ours", "loop"]),
        ("loop", ["ours", "loop"]),
        ("32 ROWS, loop,", ["32 rows", "ours", "loop"]),
        ("1024 rows", ["1024 rows", "1024 rows", "ours", "ours"]),
        ("1024 rows bfloat16", ["1024 rows", "ours"]),
        ("1024 rows float32, ours bfloat16", ["1024 rows", "ours"]),
    ],
)
def test_ways_are_chosen_by_their_names_and_stand_beside_ours(ways: str, names: list[str]) -> None:
    both = ("float32", "bfloat16")
    textbook = [peer("32 rows"), *(peer("1024 rows", precision=one) for one in both)]
    ours = [peer("ours", writes=peers.Writes.COMPARED, precision=one) for one in both]
    assert [one.name for one in peers.chosen([*textbook, *ours, peer("loop")], ways)] == names


def test_vectors_are_compared_by_the_id_that_they_were_written_with() -> None:
    ids = pa.array([2, 0, 1])
    vectors_ND = np.array([[5, 6], [1, 2], [3, 4]], np.float32)
    lists = pa.array(vectors_ND.tolist(), pa.list_(pa.float32()))
    for column in (lists, lists.cast(pa.list_(pa.float32(), 2)), ArrowTensorArray.from_numpy(vectors_ND)):
        written = pa.table({"id": ids, "embedding": column})
        in_files = pa.concat_tables([written.slice(0, 2), written.slice(2)])
        np.testing.assert_array_equal(peers.vectors_by_id(in_files, 3), [[1, 2], [3, 4], [5, 6]])


@pytest.mark.parametrize(
    ("ids", "told"),
    [([0, 1], "2 rows were written for 3, and 1 ids"), ([0, 0, 1], "3 rows were written for 3, and 1 ids")],
)
def test_a_way_that_loses_or_doubles_rows_is_found_out(ids: list[int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        peers.vectors_by_id(pa.table({"id": ids, "embedding": [[1.0]] * len(ids)}), 3)


def test_the_cosine_over_more_rows_counts_and_the_least_of_rounds_of_as_many() -> None:
    one, axes_ND = peer("ours"), np.eye(3, dtype=np.float32)
    slanted_ND = axes_ND + 0.1
    for vectors_ND, compared, cosine in (
        (axes_ND[:1], 1, 1.0),
        (axes_ND, 3, 1.0),
        (slanted_ND, 3, 1.1 / np.sqrt(1.1**2 + 2 * 0.1**2)),
        (axes_ND, 3, 1.1 / np.sqrt(1.1**2 + 2 * 0.1**2)),
        (-axes_ND[:2], 3, 1.1 / np.sqrt(1.1**2 + 2 * 0.1**2)),
    ):
        peers._compare(one, vectors_ND, axes_ND)
        assert one.compared_rows == compared
        assert one.min_cosine == pytest.approx(cosine)


def test_a_way_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(SystemExit, match=r"nothing is called 'dfat'; there are: ours float32; Daft float32"):
        peers.chosen([peer("ours", 1, writes=peers.Writes.COMPARED), peer("Daft", 1)], "dfat")


def test_variants_are_chosen_by_their_names_and_stand_beside_encode() -> None:
    variants = [outcome(name, "float32").variant for name in ("encode", "ours, torch", "ours, openvino")]
    names = [[one.name for one in encoders.chosen(variants, ways)] for ways in ("", "openvino", "torch, onnx")]
    assert names == [
        ["encode", "ours, torch", "ours, openvino"],
        ["encode", "ours, openvino"],
        ["encode", "ours, torch"],
    ]


@pytest.mark.parametrize(
    ("batch_rows", "wanted", "rows"),
    [(1, 300, 364), (1, 10, 320), (1024, 300, 1088), (32, 300, 352), (1, math.inf, 5000), (1024, math.inf, 4160)],
)
def test_a_peer_is_given_whole_batches_beyond_the_rows_of_its_start(batch_rows: int, wanted: float, rows: int) -> None:
    one = peers.Peer("theirs", "float32", 1.0, lambda source, target: [], batch_rows)
    assert peers.rows_of(one, wanted, most_rows=5000) == rows


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_ceiling_is_measured_without_another_number_of_threads_left_behind(precision: str) -> None:
    before = torch.get_num_threads()
    assert gemm_flops([(64, 64), (64, 64), (64, 128)], precision) > 0
    assert torch.get_num_threads() == before


def test_growth_says_no_more_than_its_spread_allows() -> None:
    straight, bent = {10: 1.0, 100: 10.0, 1000: 100.0}, {10: 1.0, 100: 12.0, 1000: 100.0}
    assert growth.bend(straight) == pytest.approx(0)
    assert growth.bend(bent) == pytest.approx(0.2)
    assert growth.spread([0.012, -0.034, 0.051]) == "+1% (-3% to +5%)"
    assert growth.spread([]) is None


@pytest.mark.parametrize(
    ("command_line", "kind"),
    [
        (b"ray::MapWorker(MapBatches(EncodeBlocks)).submit", "encoder"),
        (b"/usr/bin/python\0-m\0pipeline.execution.joined_encoder", "encoder"),
        (b"ray::MapBatches(tokenize_blocks)", "stages"),
        (b"/usr/bin/python\0-m\0pipeline.execution.executors.process_worker\x005", "stages"),
        (b"ray::IDLE", "other worker"),
        (b"/ray/core/src/ray/raylet/raylet\0--raylet_socket_name=x", "Ray itself"),
        (b"/usr/bin/python\0-m\0jobs\0embed", None),
    ],
)
def test_a_process_of_a_run_is_known_by_its_command_line(command_line: bytes, kind: str | None) -> None:
    assert measuring.kind_of(command_line) == kind


def test_a_worker_counts_with_its_peak_among_those_of_the_work_it_has_done() -> None:
    watch = measuring.Watch()
    for pid, kind, megabytes in [(1, "driver", 5), (2, "other worker", 9), (2, "stages", 7), (3, "encoder", 4)]:
        watch.note(pid, kind, megabytes)
    watch.note(2, "other worker", 8)
    measured = measuring.Measured({}, 1.0, watch.peak_bytes())
    assert measured.peak_bytes == {"driver": 5, "stages": 9, "encoder": 4}
    assert (measured.driver_bytes, measured.worker_bytes) == (5, 9)


def test_the_picture_has_a_bar_for_every_variant_that_has_a_ratio(tmp_path: Path) -> None:
    bars: dict[str, Any] = {"to_encode_float32": 1.5, "lowest": 1.25, "highest": 1.75, "precision": "float32"}
    lines: list[dict[str, Any]] = [
        {"benchmark": "encoders, small, reviews", "variant": "ours, torch"} | bars,
        {"benchmark": "encoders, small, reviews", "variant": "broken", "precision": "int8", "failed": "no such type"},
        {"benchmark": "GEMM ceiling", "precision": "float32", "lowest": 1, "highest": 2},
    ]
    path = tmp_path / "encoders.svg"
    assert write_chart(lines, path)
    picture = path.read_text(encoding="utf-8")
    assert all(told in picture for told in ("small, reviews", "ours, torch, float32", "1.50"))
    assert "broken" not in picture
    assert not write_chart(lines[1:], tmp_path / "none.svg")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", "kernels"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "kernels"),
        ("mkldnn::_linear_pointwise", "kernels"),
        ("aten::copy_", "copies"),
        ("aten::view", "shapes"),
        ("aten::item", "bookkeeping"),
        ("aten::unique_consecutive", "bookkeeping"),
        ("aten::an_operation_of_a_later_torch", "bookkeeping"),
        (loop_profile.MODEL, "python_of_the_model"),
        (loop_profile.LOOP, "bookkeeping"),
    ],
)
def test_only_arithmetic_of_the_model_counts_as_kernels(name: str, kind: str) -> None:
    assert loop_profile.kind_of(name) == kind


def test_linear_layers_and_attention_are_told_apart_from_the_other_kernels() -> None:
    parts = {
        "linear_layers": ("aten::addmm", "mkldnn::_linear_pointwise"),
        "attention": ("aten::bmm", "aten::_softmax", "aten::_scaled_dot_product_flash_attention_for_cpu"),
        None: ("aten::add", "aten::copy_", "aten::item"),
    }
    assert {part: {loop_profile.part_of(name) for name in names} for part, names in parts.items()} == {
        part: {part} for part in parts
    }
