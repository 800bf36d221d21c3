"""evaluate on labelled sets that somebody brings: every kind, in a folder or on S3; what lacks is named."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3fs import S3FileSystem

from jobs.evaluate import evaluate
from pipeline.config_file import load_config
from pipeline.errors import ConfigError, SourceError
from pipeline.evaluation.collect import Collected, collect
from pipeline.evaluation.tasks import chosen_tasks
from pipeline.storage.filesystem import Store
from tests.labelled_sets import KNOWN, OWN, write_sets, write_split
from tests.running import written_config
from tests.without_ray import without_ray

NAMES = (*KNOWN, *(f"{name}:{kind}" for name, kind in OWN.items() if kind != "Classification"))
"""A classification is trained twenty times for its score; one of mteb's is enough."""


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory, reviews: pa.Table) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets") / "mirror", reviews)


def evaluated(folder: Path, mirror: str, *names: str) -> dict[str, Any]:
    """Return the facts of an evaluation of hashed texts, in this process."""
    config = written_config(
        folder / "job.yaml",
        source={"uri": "in"},
        recipe={"model": "hashing://64"},
        output={"uri": "out"},
        evaluation={"uri": str(folder / "evaluation"), "tasks": list(names), "mirror": mirror},
    )
    loaded = load_config(config)
    assert loaded.evaluation is not None
    with without_ray():
        facts: dict[str, Any] = evaluate(loaded, loaded.evaluation, None)["facts"]
    return facts


def collected(folder: Path, mirror: str, *names: str) -> Collected:
    return collect(Store(str(folder / "evaluation")), chosen_tasks(names), mirror)


def test_sets_of_every_kind_and_layout_are_scored_and_those_of_the_same_rows_alike(
    mirror: Path, tmp_path: Path
) -> None:
    points = evaluated(tmp_path, str(mirror), *NAMES)["points"]
    assert len(points) == len(NAMES)
    assert all(-100 <= of_task <= 100 for of_task in points.values()), points
    for known, own in zip(
        ("CLSClusteringS2S", "Ocnli", "T2Reranking", "T2Retrieval", "STSB"), list(OWN)[1:], strict=True
    ):
        assert points[known] == pytest.approx(points[own]), known
    assert points["CMedQAv1"] == pytest.approx(points["T2Reranking"])
    assert points["Search"] < points["Choice"]


def test_a_mirror_on_s3_gives_the_rows_of_the_folder_it_was_copied_from(
    mirror: Path, tmp_path: Path, bucket: str
) -> None:
    S3FileSystem().put(str(mirror), f"{bucket}/mirror", recursive=True)
    names = ("Ocnli", "T2Reranking", "Search:Retrieval")
    there, here = (collected(tmp_path, where, *names) for where in (f"s3://{bucket}/mirror", str(mirror)))
    assert there.texts == here.texts > 0
    for task in here.tasks:
        ours, theirs = (side.loaded(task).dataset for side in (here, there))
        assert str(ours) == str(theirs)
    ranked = [side.loaded(here.tasks[1]).dataset["default"]["dev"]["top_ranked"] for side in (here, there)]
    assert ranked[0] == ranked[1]


def test_two_mirrors_with_one_folder_name_have_scores_of_their_own(tmp_path: Path, reviews: pa.Table) -> None:
    points = {}
    for side, seed in (("a", 1), ("b", 2)):
        where = write_sets(tmp_path / side / "mirror", reviews, seed)
        (where / "STSB" / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: data/*\n---\n")
        points[side] = evaluated(tmp_path, str(where), "Halves:PairClassification", "STSB")["points"]
    assert points["a"]["Halves"] != points["b"]["Halves"]
    assert points["a"]["STSB"] != points["b"]["STSB"]
    again = evaluated(tmp_path, str(tmp_path / "a" / "mirror"), "Halves:PairClassification", "STSB")
    assert again["points"] == points["a"]
    assert (again["encoded"], again["scored"]) == (0, 0)


def broken(mirror: Path, folder: Path, name: str, key: str, rename: Mapping[str, str]) -> str:
    """Return a mirror with one set in which a column has another name."""
    shutil.copytree(mirror / name, folder / "broken" / name)
    path = next((folder / "broken" / name / key).glob("*.parquet"))
    table = pq.read_table(path)
    pq.write_table(table.rename_columns([rename.get(column, column) for column in table.column_names]), path)
    return str(folder / "broken")


@pytest.mark.parametrize(
    ("task", "key", "column", "told"),
    [
        ("STSB", "data", "score", "test of STSB has no column score; its columns are sentence1, sentence2, other"),
        ("AmazonReviewsClassification", "zh", "text", "has no column text"),
        ("CLSClusteringS2S", "data", "labels", "has no column labels"),
        ("Halves:PairClassification", "data", "sentence2", "test of Halves has no column sentence2"),
        ("Search:Retrieval", "qrels", "corpus-id", "Search: the table judged has no column corpus-id"),
        ("T2Reranking", "top_ranked", "corpus-ids", "the table top_ranked has no column corpus-ids"),
        ("T2Retrieval", "corpus", "text", "the table corpus has no column text; its columns are _id, title, other"),
    ],
)
def test_a_column_that_lacks_is_named_with_those_that_are_there(
    mirror: Path, tmp_path: Path, task: str, key: str, column: str, told: str
) -> None:
    where = broken(mirror, tmp_path, task.split(":")[0], key, {column: "other"})
    with pytest.raises(SourceError, match=told):
        collected(tmp_path, where, task)


def test_a_column_that_a_task_of_mteb_renames_is_missed_as_well(mirror: Path, tmp_path: Path) -> None:
    shutil.copytree(mirror / "Halves", tmp_path / "mirror" / "Ocnli")
    path = next((tmp_path / "mirror" / "Ocnli" / "data").glob("*"))
    path.rename(path.with_name("validation-00000-of-00001.parquet"))
    with pytest.raises(SourceError, match=r"the data of Ocnli is not as on the hub: .*sent1"):
        collected(tmp_path, str(tmp_path / "mirror"), "Ocnli")


def test_a_retrieval_in_the_layout_that_cmteb_began_with_has_the_same_rows(mirror: Path, tmp_path: Path) -> None:
    tables = {kind: next((mirror / "T2Retrieval" / kind).glob("*")) for kind in ("corpus", "queries", "qrels")}
    there, names = tmp_path / "mirror", {"_id": "id", "query-id": "qid", "corpus-id": "pid"}
    for kind, folder, split in (
        ("corpus", "T2Retrieval", "corpus"),
        ("queries", "T2Retrieval", "queries"),
        ("qrels", "T2Retrieval-qrels", "dev"),
    ):
        rows = [{names.get(name, name): row[name] for name in row} for row in pq.read_table(tables[kind]).to_pylist()]
        write_split(there / folder / "data", split, rows)
    began, now = (collected(tmp_path, str(where), "T2Retrieval") for where in (there, mirror))
    rows_of = [side.loaded(side.tasks[0]).dataset["default"]["dev"] for side in (began, now)]
    assert rows_of[0]["relevant_docs"] == rows_of[1]["relevant_docs"]
    for name in ("corpus", "queries"):
        assert rows_of[0][name].to_list() == rows_of[1][name].to_list()
    shutil.rmtree(there / "T2Retrieval-qrels")
    with pytest.raises(SourceError, match=r"no judgements: expected T2Retrieval-qrels/data/dev-\*\.parquet"):
        collected(tmp_path, str(there), "T2Retrieval")


@pytest.mark.parametrize(
    ("name", "lacking", "told"),
    [
        ("AmazonReviewsClassification", "zh/train-00000-of-00001.parquet", "no split train, only test"),
        ("AmazonReviewsClassification", "zh/test-00000-of-00001.parquet", "no split test, only train"),
        ("Search:Retrieval", "qrels/test-00000-of-00001.parquet", r"no qrels/test-\*.parquet among .*corpus/test"),
        ("Choice:Reranking", "corpus/test-00000-of-00001.parquet", r"no corpus/test-\*.parquet"),
    ],
)
def test_a_split_or_table_that_lacks_is_named(mirror: Path, tmp_path: Path, name: str, lacking: str, told: str) -> None:
    folder = name.split(":")[0]
    shutil.copytree(mirror / folder, tmp_path / "mirror" / folder)
    (tmp_path / "mirror" / folder / lacking).unlink()
    with pytest.raises(SourceError, match=told):
        collected(tmp_path, str(tmp_path / "mirror"), name)


def test_candidates_and_judgements_that_lead_nowhere_are_named(mirror: Path, tmp_path: Path) -> None:
    for name in ("Choice", "Search"):
        shutil.copytree(mirror / name, tmp_path / "mirror" / name)
    top = [{"query-id": f"q{n}", "corpus-ids": ["d1", "gone"] if n == 3 else ["d1"]} for n in range(40)]
    write_split(tmp_path / "mirror" / "Choice" / "top_ranked", "test", top)
    with pytest.raises(SourceError, match="candidate gone of query q3 is not in the table corpus"):
        collected(tmp_path, str(tmp_path / "mirror"), "Choice:Reranking")
    write_split(tmp_path / "mirror" / "Choice" / "top_ranked", "test", top[1:])
    with pytest.raises(SourceError, match="query q0 has no candidates"):
        collected(tmp_path, str(tmp_path / "mirror"), "Choice:Reranking")
    strangers = [{"query-id": "nobody", "corpus-id": "1", "score": 1}]
    write_split(tmp_path / "mirror" / "Search" / "qrels", "test", strangers)
    with pytest.raises(SourceError, match="of the 1 queries that are judged none is in the table queries"):
        collected(tmp_path, str(tmp_path / "mirror"), "Search:Retrieval")


def test_a_file_that_was_changed_since_it_was_listed_or_is_no_parquet_ends_the_evaluation(
    mirror: Path, tmp_path: Path
) -> None:
    shutil.copytree(mirror / "STSB", tmp_path / "mirror" / "STSB")
    found = collected(tmp_path, str(tmp_path / "mirror"), "STSB")
    path = next((tmp_path / "mirror" / "STSB" / "data").glob("*"))
    path.write_bytes(b"no Parquet at all")
    with pytest.raises(SourceError, match="was changed while it was evaluated; run again"):
        found.loaded(found.tasks[0])
    with pytest.raises(SourceError, match="is no Parquet file"):
        collected(tmp_path, str(tmp_path / "mirror"), "STSB")


def test_without_a_mirror_and_without_the_hub_is_said_which_data_and_revision_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in ("datasets.config.HF_HUB_OFFLINE", "huggingface_hub.constants.HF_HUB_OFFLINE"):
        monkeypatch.setattr(program, True)
    with pytest.raises(
        SourceError, match=r"the data of STSB could not be had from the hub .*mteb/STSB at revision e036"
    ):
        collect(Store(str(tmp_path / "evaluation")), chosen_tasks(["STSB"]), None)


def test_a_set_of_a_kind_that_there_is_not_is_refused() -> None:
    assert [(task.name, task.kind) for task in chosen_tasks(["Tickets:STS"])] == [("Tickets", "STS")]
    with pytest.raises(ConfigError, match="Tickets:Sts is of kind Sts; expected one of STS, Classification"):
        chosen_tasks(["Tickets:Sts"])
