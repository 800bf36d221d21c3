"""The page of an evaluation: what it says, that it is whole, and that every kind is drawn beside its measure."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.evaluation.card_tasks import CARD_TASKS, KINDS, CardTask
from pipeline.evaluation.comparison import compare, main_scores
from pipeline.evaluation.gate import drops
from pipeline.evaluation.model_index import Card
from pipeline.evaluation.page import evaluation_html, task_scores
from pipeline.evaluation.report import read_card
from pipeline.evaluation.score import Scored
from tests.browsing import PAPERS, Browse, first_pixel, text_of

REFERENCE = str(Path(__file__).parents[1] / "configs" / "reference" / "xiaobu-embedding-v2.yaml")


@pytest.fixture(scope="module")
def reference() -> Card:
    return replace(read_card(REFERENCE), model="the-reference")


@pytest.fixture(scope="module")
def scored(reference: Card) -> Scored:
    """Scores of all 35 tasks: those of the reference, half a point lower."""
    points = {task: main_scores(reference)[task.dataset_name][1] - 0.5 for task in CARD_TASKS}
    results = []
    for result in reference.results:
        lower = replace(result, metric_value=result.metric_value - 0.5)
        results.append(lower)
    return Scored("x", Card("m3e-<small>", tuple(results)), points, 35)


def gate_points(points: dict[CardTask, float], more: float = 0.0) -> dict[str, Any]:
    by_kind = {kind: {task.name: p + more for task, p in points.items() if task.kind == kind} for kind in KINDS}
    return {"data": "x", "points": by_kind}


@pytest.fixture(scope="module")
def snapshot() -> Any:
    recipe = {"model": "m3e-<small>", "stored": "float16", "normalize": True, "dimensions": None}
    return SimpleNamespace(number=3, recipe=recipe, totals={"rows": 1900}, record=SimpleNamespace(dimension=512))


@pytest.fixture(scope="module")
def page(scored: Scored, reference: Card, snapshot: Any) -> str:
    baseline = gate_points(scored.points, more=0.3)
    found = drops(gate_points(scored.points), baseline, {"STS": 0.4})
    return evaluation_html(scored, snapshot, compare(scored.card, reference, True), baseline, found)


def test_the_page_says_how_far_the_model_is_from_the_reference_and_from_the_baseline(page: str) -> None:
    text = text_of(page)
    assert "m3e-<small>: 71.93 on 35 tasks" in text
    assert "On the 35 tasks that both have, the-reference has 72.43 and this model 71.93 (−0.50)" in text
    assert "STSB cos_sim_spearman 81.55 82.05 81.85 −0.50" in text
    assert "Clustering 64.97 64.67 −0.30 −1.50 ✓" in text
    assert "STS 64.33 64.03 −0.30 −0.40 ✓" in text
    assert "Retrieval 76.29 75.99 −0.30 −0.20 ✗" in text
    assert "metric is defined otherwise today" in text


def test_what_was_not_compared_is_not_spoken_of(scored: Scored, snapshot: Any) -> None:
    one = replace(scored, points={CARD_TASKS[0]: 61.2})
    page = evaluation_html(one, snapshot, None, None, [])
    text = text_of(page)
    assert "61.20 on 1 task " in text
    assert not {"reference", "baseline", "difference", "Gate"} & set(text.split())
    assert page.count("<figure") == 1


def test_scores_are_laid_beside_the_reference_first_and_else_beside_the_baseline(scored: Scored) -> None:
    both = gate_points(scored.points, more=1.0)
    assert task_scores(scored, None, both)[0].difference == pytest.approx(-1)
    assert task_scores(scored, None, None)[0].difference is None


def test_the_page_loads_nothing_and_tells_the_browser_so(page: str) -> None:
    assert "default-src 'none'" in page
    loaded = r"<(script|link rel=.stylesheet|img|iframe)|url\((?!['\"]?#)|@import|https?://(?!www\.w3\.org)"
    assert not re.search(loaded, page)
    assert "m3e-<small>" not in page.replace("m3e-&lt;small&gt;", "")


def test_a_browser_draws_every_kind_beside_reference_and_baseline(page: str, browse: Browse) -> None:
    dom, complaints = browse(page)
    assert complaints == []
    for kind in KINDS:
        figure = re.search(rf'<figure id="{kind}">.*?</figure>', dom, re.DOTALL)
        assert figure, kind
        tasks = sum(task.kind == kind for task in CARD_TASKS)
        for mark in ("bar", "tick", "point"):
            assert len(re.findall(f'aria-roledescription="{mark}"', figure.group())) == tasks, (kind, mark)


@pytest.mark.parametrize(("arguments", "paper"), PAPERS)
def test_the_page_follows_the_theme_of_the_reader(
    page: str, browse: Browse, tmp_path: Path, arguments: tuple[str, ...], paper: tuple[int, ...]
) -> None:
    shot = tmp_path / "page.png"
    browse(page, *arguments, f"--screenshot={shot}", "--window-size=1200,2600")
    assert first_pixel(shot.read_bytes()) == paper
