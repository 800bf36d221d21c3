"""evaluate: the texts of tasks through the pipeline, scored by mteb from the Parts, and gated by a baseline."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mteb.models.abs_encoder import AbsEncoder
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from jobs.__main__ import main
from jobs.demo.debian import Passage, _passages_of, passages
from jobs.demo.mini_sets import build_mini_sets
from pipeline.encoder.vectors import to_stored
from pipeline.errors import ConfigError, SourceError
from pipeline.evaluation.card_tasks import MAIN_METRIC, METRICS, CardTask
from pipeline.evaluation.collect import Collected, collect
from pipeline.evaluation.gate import drops
from pipeline.evaluation.mini_tasks import MINI_TASKS
from pipeline.evaluation.model_index import parse_card
from pipeline.evaluation.model_meta import meta_of
from pipeline.evaluation.rehearsal import texts_of
from pipeline.evaluation.report import baseline_points
from pipeline.evaluation.search import top_documents
from pipeline.evaluation.stored_encoder import StoredEncoder
from pipeline.evaluation.stored_vectors import StoredVectors
from pipeline.evaluation.tasks import chosen_tasks
from pipeline.storage.filesystem import Store
from pipeline.storage.snapshots import open_snapshot
from tests.running import written_config
from tests.searching import Held, blocks_of
from tests.without_ray import without_ray

MAX_TOKENS = 48
FAQ_BOOK = "debian-faq-zh-cn"


@pytest.fixture(scope="session")
def small_mirror(tmp_path_factory: pytest.TempPathFactory, reviews: pa.Table) -> Path:
    """The mini set of half the reviews, of a fifth of the passages, and of all of one book."""
    try:
        texts = passages()
    except SourceError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("mirror")
    build_mini_sets(
        reviews.slice(0, 900), [text for n, text in enumerate(texts) if n % 5 == 0 or text.book == FAQ_BOOK], folder
    )
    return folder


@dataclass(frozen=True)
class Evaluated:
    """An evaluation of m3e-small on the small mirror."""

    config: str
    folder: Path
    facts: dict[str, Any]


def run_evaluate(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    with without_ray():
        code = main(["evaluate", *arguments, "--json"])
    return code, orjson.loads(capsys.readouterr().out)


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory, small_mirror: Path, m3e_small: Path) -> Evaluated:
    folder = tmp_path_factory.mktemp("evaluation")
    config = written_config(
        folder / "job.yaml",
        source={"uri": str(folder / "in")},
        recipe={"model": str(m3e_small), "compute": "float32", "max_tokens": MAX_TOKENS},
        output={"uri": str(folder / "out")},
        runtime={"engine": "torch"},
        evaluation={"uri": str(folder / "evaluation"), "tasks": ["mini"], "mirror": str(small_mirror)},
    )
    from jobs.evaluate import evaluate
    from pipeline.config_file import load_config

    loaded = load_config(config)
    assert loaded.evaluation is not None
    with without_ray():
        facts = evaluate(loaded, loaded.evaluation, None)["facts"]
    return Evaluated(config, folder / "evaluation", facts)


@pytest.fixture(scope="module")
def collected(evaluated: Evaluated, small_mirror: Path) -> Collected:
    return collect(Store(str(evaluated.folder)), MINI_TASKS, str(small_mirror))


class PlainEncoder(AbsEncoder):  # type: ignore[misc]
    """The oracle: sentence-transformers alone, normalised; the search is mteb's own."""

    def __init__(self, folder: Path) -> None:
        self.model = SentenceTransformer(str(folder), device="cpu")
        self.model.max_seq_length = MAX_TOKENS
        self.mteb_model_meta = meta_of("oracle", 512)

    def encode(self, inputs: Any, **asked: Any) -> NDArray[np.float32]:
        return np.asarray(self.model.encode(texts_of(inputs), normalize_embeddings=True, show_progress_bar=False))


def scores_of(encoder: Any, collected: Collected, task: CardTask, every: int = 1) -> dict[str, float]:
    """Return the metrics of a card, 0 to 100; of a clustering over every so manieth text of its sets."""
    import mteb

    made = collected.loaded(task)
    if every > 1:
        made.dataset["test"] = made.dataset["test"].map(lambda row: {name: row[name][::every] for name in row})
    found = mteb.evaluate(encoder, made, cache=None, co2_tracker=False, show_progress_bar=False)
    scores: dict[str, float] = found.task_results[0].scores[task.split][0]
    return {name: 100 * scores[key] for name, key in METRICS[task.kind].items()}


@pytest.mark.slow
def test_vectors_and_scores_are_those_of_sentence_transformers_and_mteb_alone(
    evaluated: Evaluated, collected: Collected, m3e_small: Path
) -> None:
    plain = PlainEncoder(m3e_small)
    for task in MINI_TASKS:
        expected = scores_of(plain, collected, task)[MAIN_METRIC[task.kind]]
        allowed = 0.1 if task.kind == "Clustering" else 0.01
        assert evaluated.facts["points"][task.name] == pytest.approx(expected, abs=allowed), task.name
    texts = collected.loaded(MINI_TASKS[1]).dataset["test"]["sentences"][0]
    vectors = StoredVectors(open_snapshot(evaluated.facts["vectors"]))
    found_ND = vectors.vectors(vectors.places(texts))
    np.testing.assert_allclose(found_ND, plain.encode([{"text": texts}]), atol=1e-5)


def test_a_second_evaluation_encodes_and_scores_nothing_and_says_the_same(
    evaluated: Evaluated, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (evaluated.facts["encoded"], evaluated.facts["scored"]) == (evaluated.facts["texts"], 6)
    code, again = run_evaluate(capsys, evaluated.config)
    assert (code, again["encoded"], again["scored"]) == (0, 0, 0)
    assert again["points"] == evaluated.facts["points"]


def test_the_card_it_writes_has_the_metrics_of_each_kind_in_the_order_of_c_mteb(evaluated: Evaluated) -> None:
    folder = Path(evaluated.facts["folder"])
    card = parse_card((folder / "model_index.yaml").read_text(encoding="utf-8"), "model_index.yaml")
    assert parse_card((folder / "README.md").read_text(encoding="utf-8"), "README.md") == card
    found = card.metrics()
    assert {task.kind: list(found[task.dataset_name]) for task in MINI_TASKS} == {
        k: list(m) for k, m in METRICS.items()
    }
    for task in MINI_TASKS:
        assert found[task.dataset_name][MAIN_METRIC[task.kind]] == evaluated.facts["points"][task.name]


def test_a_text_without_a_vector_is_an_error_and_is_never_encoded(evaluated: Evaluated) -> None:
    vectors = StoredVectors(open_snapshot(evaluated.facts["vectors"]))
    with pytest.raises(SourceError, match="1 of 2 texts have no vector"):
        vectors.places(["不在任何任务里的文本", vectors_text(evaluated)])


def vectors_text(evaluated: Evaluated) -> str:
    """Return a text that was collected."""
    path = next((evaluated.folder / "texts").glob("*.parquet"))
    return str(pq.read_table(path)["text"][0])


def test_two_mirrors_whose_folders_have_one_name_give_different_rows(tmp_path: Path) -> None:
    rows = {}
    for side, score in (("a", 1.0), ("b", 3.0)):
        folder = tmp_path / side / "MiniNearness" / "data"
        folder.mkdir(parents=True)
        firsts = [f"甲{side}", f"乙{side}", f"丙{side}"]
        table = pa.table({"sentence1": firsts, "sentence2": ["天", "地", "人"], "score": [0.0, score, 2.0]})
        pq.write_table(table, folder / "test-00000-of-00001.parquet")
        readme = "---\nconfigs:\n- config_name: default\n  data_files: data/test-*\n---\n"
        (folder.parent / "README.md").write_text(readme)
        found = collect(Store(str(tmp_path / "evaluation")), MINI_TASKS[-1:], str(tmp_path / side))
        rows[side] = (found.key, found.loaded(MINI_TASKS[-1]).dataset["test"]["sentence1"][0])
    assert (rows["a"][1], rows["b"][1]) == ("甲a", "甲b")
    assert rows["a"][0] != rows["b"][0]


def test_a_mirror_without_a_task_is_told_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no data of STSB: expected Parquet files"):
        collect(Store(str(tmp_path / "evaluation")), chosen_tasks(["STSB"]), str(tmp_path / "mirror"))


def test_names_of_tasks_are_those_of_the_card_of_mteb_and_of_sets() -> None:
    assert [task.mteb_name for task in chosen_tasks(["CMedQAv1", "CMedQAv1-reranking", "Banking77Classification"])] == [
        "CMedQAv1-reranking",
        "Banking77Classification",
    ]
    assert (len(chosen_tasks(["cmteb", "STSB"])), len(chosen_tasks(["mini"]))) == (35, 6)
    with pytest.raises(ConfigError, match="TNewz is no task of mteb"):
        chosen_tasks(["TNewz"])
    with pytest.raises(ConfigError, match="BitextMining"):
        chosen_tasks(["BUCC.v2"])


@pytest.mark.parametrize("block", [1, 7, 64, 300])
def test_search_in_blocks_finds_what_one_product_of_all_finds(block: int) -> None:
    rng = np.random.default_rng(0)
    queries_QD, documents_ND = (rng.normal(size=(rows, 16)).astype(np.float32) for rows in (20, 300))
    scores_QK, numbers_QK = top_documents(queries_QD, blocks_of(documents_ND, block), 10)
    exact_QN = queries_QD @ documents_ND.T
    expected_QK = np.argsort(-exact_QN, axis=1)[:, :10]
    assert numbers_QK.tolist() == expected_QK.tolist()
    np.testing.assert_allclose(scores_QK, np.take_along_axis(exact_QN, expected_QK, 1), rtol=1e-5)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_of_documents_equally_near_those_of_an_earlier_block_are_found(block: int) -> None:
    documents_ND = np.repeat(np.eye(3, dtype=np.float32), 64, axis=0)[np.random.default_rng(0).permutation(192)]
    _, numbers_QK = top_documents(np.eye(3, dtype=np.float32), blocks_of(documents_ND, block), 20)
    for query, found_K in enumerate(numbers_QK):
        nearest_K = np.flatnonzero(documents_ND[:, query])[:20]
        assert (found_K // block).tolist() == (nearest_K // block).tolist()
        assert documents_ND[found_K, query].all()


def test_search_for_more_documents_than_there_are_finds_all() -> None:
    scores_QK, numbers_QK = top_documents(np.eye(2, dtype=np.float32), [Held(0, np.eye(2, dtype=np.float32))], 10)
    assert numbers_QK.tolist() == [[0, 1], [1, 0]]
    assert scores_QK.tolist() == [[1, 0], [1, 0]]


def with_vectors(vectors: StoredVectors, stored_ND: NDArray[np.float32]) -> StoredEncoder:
    """Return an encoder over other vectors of the same texts."""
    other = StoredVectors.__new__(StoredVectors)
    other.__dict__.update(vectors.__dict__)
    column = pa.FixedSizeListArray.from_arrays(pa.array(stored_ND.reshape(-1), pa.float32()), stored_ND.shape[1])
    other.rows = pa.table({"embedding": column})
    return StoredEncoder(other, "variant", stored_ND.shape[1])


def test_rounding_moves_the_score_of_a_clustering_only_where_a_cluster_may_be_one_text(
    evaluated: Evaluated, collected: Collected
) -> None:
    vectors = StoredVectors(open_snapshot(evaluated.facts["vectors"]))
    exact_ND = vectors.vectors(np.arange(vectors.rows.num_rows))

    def scores(every: int, draws: int) -> list[float]:
        """Return what mteb says of the same vectors, moved by as much as float32 rounds."""
        drawn = (np.random.default_rng(seed).normal(scale=1e-7, size=exact_ND.shape) for seed in range(draws))
        moved = (with_vectors(vectors, (exact_ND + noise_ND).astype(np.float32)) for noise_ND in drawn)
        return [scores_of(encoder, collected, MINI_TASKS[1], every)["v_measure"] for encoder in moved]

    assert np.ptp(scores(every=1, draws=3)) <= 0.1
    assert np.ptp(scores(every=5, draws=10)) > 1


def test_int8_with_a_scale_per_row_passes_and_raw_codes_per_dimension_do_not(
    evaluated: Evaluated, collected: Collected
) -> None:
    vectors = StoredVectors(open_snapshot(evaluated.facts["vectors"]))
    exact_ND = vectors.vectors(np.arange(vectors.rows.num_rows))
    codes, scales = to_stored(exact_ND, "int8")
    codes_ND = codes.flatten().to_numpy().reshape(exact_ND.shape).astype(np.float32)
    least_D, step_D = exact_ND.min(0), np.ptp(exact_ND, axis=0) / 255
    raw_ND = np.floor((exact_ND - least_D) / step_D) - 128
    variants = {"scale": codes_ND * scales.to_numpy()[:, None], "raw": raw_ND.astype(np.float32)}
    reviews = MINI_TASKS[0]
    baseline = {"data": "x", "points": {reviews.kind: {reviews.name: evaluated.facts["points"][reviews.name]}}}
    is_within = {}
    for name, stored_ND in variants.items():
        points = scores_of(with_vectors(vectors, stored_ND), collected, reviews)["accuracy"]
        ours = {"data": "x", "points": {reviews.kind: {reviews.name: points}}}
        is_within[name] = drops(ours, baseline, {})[0].is_within
    assert is_within == {"scale": True, "raw": False}


def test_a_gate_allows_each_kind_what_the_config_says_and_no_more() -> None:
    baseline = {"data": "x", "points": {"STS": {"a": 80.0, "b": 60.0}, "Clustering": {"c": 50.0}}}
    ours = {"data": "x", "points": {"STS": {"a": 79.0, "b": 60.4}, "Clustering": {"c": 48.6}}}
    assert [(drop.kind, drop.is_within) for drop in drops(ours, baseline, {})] == [("STS", False), ("Clustering", True)]
    assert all(drop.is_within for drop in drops(ours, baseline, {"STS": 0.31}))


def test_scores_of_other_data_are_no_baseline(evaluated: Evaluated) -> None:
    with pytest.raises(ConfigError, match="other tasks"):
        baseline_points(Store(str(evaluated.folder)), "0" * 32)


def test_vectors_worse_than_the_baseline_end_with_exit_code_4(
    evaluated: Evaluated, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for written in ("reports", "latest"):
        shutil.copytree(evaluated.folder / written, tmp_path / written)
    scores = tmp_path / "reports" / Path(evaluated.facts["folder"]).name / "scores.json"
    better = orjson.loads(scores.read_bytes())
    better["points"]["STS"]["MiniNearness"] += 0.5
    scores.write_bytes(orjson.dumps(better))
    code, facts = run_evaluate(capsys, evaluated.config, "--gate", str(tmp_path))
    assert (code, facts["outcome"]) == (4, "failed")
    assert "worse than the baseline" in facts["error"]
    assert [kind for kind, gate in facts["gate"].items() if not gate["passed"]] == ["STS"]
    assert run_evaluate(capsys, evaluated.config, "--gate", evaluated.config)[0] == 0


def test_a_config_that_cannot_be_evaluated_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = written_config(
        tmp_path / "job.yaml", source={"uri": "in"}, recipe={"model": "hashing://8"}, output={"uri": "out"}
    )
    assert main(["evaluate", config]) == 2
    assert "evaluation.uri" in capsys.readouterr().err
    folder = f"evaluation.uri={tmp_path / 'evaluation'}"
    assert main(["evaluate", config, folder, "--gate", str(tmp_path / "nothing")]) == 2
    assert "holds no evaluation" in capsys.readouterr().err


def test_sections_of_a_book_are_read_with_their_headings() -> None:
    page = """<h1 class="title">第 2 章 包</h1><p><strong>目录</strong></p><p>甲<code>apt</code>乙</p>
    <ul><li>不要</li></ul>
    <h2 class="title" style="x">2.1. 前提</h2><p>一</p><p>二</p>"""
    found = list(_passages_of("book", "./usr/share/debian-reference/ch02.zh-cn.html", page.encode()))
    assert found == [Passage("book", "ch02", "包", "甲apt乙"), Passage("book", "ch02", "前提", "一 二")]


def test_a_man_page_is_read_without_the_marks_of_roff() -> None:
    import gzip

    page = ".TH CAT 1\n.SH 名称\ncat \\- 连接文件\n.SH 描述\n.PP\n将\\fB文件\\fP\\-列表\n.TP\n输出\n"
    found = list(_passages_of("man", "./usr/share/man/zh_CN/man1/cat.1.gz", gzip.compress(page.encode())))
    assert found == [Passage("man", "man1", "连接文件", "将文件-列表 输出")]
