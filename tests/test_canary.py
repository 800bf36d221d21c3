"""The canary: what it tells apart, and what it lets pass."""

import numpy as np
import pytest

from pipeline.encoder.canary import Bounds, compare

PLANE_42 = np.array([[1, 0], [0.9, 0.1], [0.5, 0.5], [0, 1]], np.float32)


def test_the_same_directions_are_alike_whatever_their_length() -> None:
    found = compare(3 * PLANE_42, PLANE_42)
    assert found.min_cosine == pytest.approx(1)
    assert (found.texts, found.neighbours_kept, found.order_kept) == (4, 1.0, 1.0)
    assert Bounds(0.999999, 1.0, 1.0).findings(found) == []


def test_two_vectors_that_changed_places_are_found_though_every_one_is_a_good_vector() -> None:
    found = compare(PLANE_42[[1, 0, 2, 3]], PLANE_42)
    assert found.min_cosine == pytest.approx(0.9 / np.hypot(0.9, 0.1))
    assert found.worst_row in (0, 1)
    assert found.order_kept < 1


def test_neighbours_that_are_others_are_found_where_no_vector_is_far_from_its_reference() -> None:
    angles_N = np.array([0.00, 0.10, 0.21, 0.30])
    moved_N = np.array([0.00, 0.20, 0.11, 0.30])
    references, vectors = (np.stack([np.cos(a), np.sin(a)], axis=1).astype(np.float32) for a in (angles_N, moved_N))
    found = compare(vectors, references, neighbours=1)
    assert found.min_cosine > 0.99
    assert found.neighbours_kept == 0.0
    assert Bounds(0.99, neighbours_kept=0.5).findings(found) == [
        "share of nearest neighbours kept 0.000000, at least 0.500000 expected"
    ]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_a_vector_without_a_direction_has_no_cosine_and_never_passes(bad: float) -> None:
    vectors = PLANE_42.copy()
    vectors[2] = bad
    found = compare(vectors, PLANE_42)
    assert (found.min_cosine, found.worst_row) == (0.0, 2)
    assert "worst: text 2" in Bounds(0.5).findings(found)[0]


def test_one_text_is_judged_by_its_cosine_and_none_by_nothing() -> None:
    assert compare(PLANE_42[:1], PLANE_42[:1]).order_kept == 1.0
    assert Bounds(0.0).findings(compare(PLANE_42[:0], PLANE_42[:0])) == ["no text to compare"]
    with pytest.raises(ValueError, match="shape"):
        compare(PLANE_42, PLANE_42[:2])
