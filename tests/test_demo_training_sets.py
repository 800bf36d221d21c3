"""The training sets of the demo: none of their texts is in the mini set, nor among the reviews that are held out."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.demo.debian import ManPage, Passage, _man_page
from jobs.demo.mini_sets import REVIEWS, build_mini_sets
from jobs.demo.training_sets import HELD_OUT, build_training_sets
from pipeline.config_file import load_config
from pipeline.training.sets import distinct_examples
from tests.running import ROOT

OWN = [f"第{number}页的说明，" * 8 for number in range(12)]


def strings_of(value: Any) -> set[str]:
    if isinstance(value, str):
        return {value}
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {text for one in inner for text in strings_of(one)}


def texts_below(folder: Path) -> set[str]:
    rows = [row for path in folder.rglob("*.parquet") for row in pq.read_table(path).to_pylist()]
    return {text for text in strings_of(rows) if len(text) > 3}


@pytest.fixture
def built(reviews: pa.Table, tmp_path: Path) -> Path:
    """The mini set of a book, and training sets of man pages, of which some are in the book."""
    book = [Passage("甲乙"[n % 2], f"章{n % 4}", f"标题第{n}", f"正文第{n}段，" * 8) for n in range(40)]
    book.append(Passage("man", "man1", "共有的名称", OWN[0]))
    own = [ManPage(str(1 + n % 3), f"命令第{n}", (OWN[n], f"另一段{n}，" * 12)) for n in range(12)]
    asked = [ManPage("1", "标题第3", ("只有标题相同的一页，" * 5,)), ManPage("2", "别的名称", (book[5].text,))]
    build_mini_sets(reviews, book, tmp_path / "mini")
    mini = {text for passage in book for text in (passage.heading, passage.text)}
    build_training_sets(reviews, [*own, *asked], mini, tmp_path / "training")
    return tmp_path


def test_no_text_of_the_mini_set_is_trained_on(built: Path) -> None:
    trained = set().union(*(strings_of(pq.read_table(path).to_pylist()) for path in (built / "training").glob("*.p*")))
    mini = texts_below(built / "mini")
    assert len(mini) > 80
    assert len(trained) > 1000
    assert not mini & trained


def test_no_review_that_is_held_out_is_trained_on_or_in_the_mini_set(built: Path, reviews: pa.Table) -> None:
    held_out = texts_below(built / "training" / "held-out")
    trained = set(pq.read_table(built / "training" / "reviews.parquet")["text"].to_pylist())
    assert len(trained) == len(reviews) - REVIEWS - HELD_OUT
    assert len(held_out) > HELD_OUT - 200
    assert not held_out & trained
    assert not held_out & texts_below(built / "mini")


def test_every_set_is_one_that_training_reads(built: Path) -> None:
    for name, kind in (("reviews", "class"), ("search", "retrieval"), ("pairs", "pair")):
        examples = distinct_examples(name, kind, None, pq.read_table(built / "training" / f"{name}.parquet"))
        assert len(examples) > 8, name
    grades = set(pq.read_table(built / "training" / "pairs.parquet")["score"].to_pylist())
    assert grades == {0.0, 1.0, 2.0, 3.0}


def test_of_a_man_page_its_name_and_its_telling_sections_are_read() -> None:
    import gzip

    told = "将文件连接起来并写到标准输出；没有文件时从标准输入读取，直到结束为止。如果给出若干文件，就按顺序读取。"
    page = f".TH CAT 1\n.SH NAME(名称)\ncat \\- 连接文件\n.SH 描述\n{told}\n.SH 选项\n太短\n.SH 作者\n{told}作者\n"
    assert _man_page("1", gzip.compress(page.encode())) == ManPage("1", "连接文件", (told,))


def test_the_config_of_the_demo_trains_on_the_sets_that_are_made(built: Path) -> None:
    training = load_config(str(ROOT / "configs" / "train_mini.yaml")).training
    assert training is not None
    for wanted in training.sets:
        (uri,) = wanted.uri
        table = pq.read_table(built / "training" / Path(uri).name)
        assert len(distinct_examples(uri, wanted.kind, None, table)) > 8, uri
