"""A model that kills its process, runs out of memory, falls sick or stands still: what becomes of the run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from pipeline import open_snapshot
from pipeline.execution.attempts import MAX_DEATHS
from tests.faulty_model import Faults, write_faulty_model
from tests.running import ROOT, Finished, embed, written_config

FILES, ROWS = 3, 16

CURSE, SECOND_CURSE = "鑫", "魏"
"""Characters with tokens of their own that stand in one text each."""


def on(*executors: str, later: str = "") -> pytest.MarkDecorator:
    """Return the mark of a test that runs on these executors, and on another one in `make chaos` only."""
    bytes_of = {"Ray": 0, "processes": 2**40}
    params = [pytest.param(bytes_of[name], id=f"on {name}") for name in executors]
    params += [pytest.param(bytes_of[name], id=f"on {name}", marks=pytest.mark.long) for name in later.split()]
    return pytest.mark.parametrize("without_ray_bytes", params)


pytestmark = [pytest.mark.slow, pytest.mark.chaos]


@pytest.fixture(scope="module")
def model(m3e_small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_faulty_model(m3e_small, tmp_path_factory.mktemp("models") / "faulty")


@pytest.fixture(scope="module")
def curses(model: Path) -> tuple[int, int]:
    """The token ids of CURSE and SECOND_CURSE."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    (first,), (second,) = (tokenizer.encode(curse, add_special_tokens=False).ids for curse in (CURSE, SECOND_CURSE))
    return first, second


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 texts of growing length, no two alike (equal ones are encoded once); rows 5 and 11 of file 1 are cursed."""
    folder = tmp_path_factory.mktemp("corpus")
    for file in range(FILES):
        rows = [{"id": f"{file}-{row}", "text": f"第{file}家" + "很好的酒店" * (row + 1)} for row in range(ROWS)]
        if file == 1:
            rows[5]["text"] += CURSE
            rows[11]["text"] += SECOND_CURSE
        (folder / f"{file}.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return folder


def run(
    folder: Path,
    model: Path,
    corpus: Path,
    faults: Faults,
    without_ray_bytes: int,
    runtime: Mapping[str, Any] | None = None,
) -> tuple[Finished, str]:
    """Embed the corpus with the faulty model; return how it ended, and the output."""
    output = str(folder / "out")
    config = written_config(
        folder / "job.yaml",
        source={"uri": str(corpus)},
        recipe={"model": str(model), "compute": "float32", "trust_remote_code": True, "max_tokens": 128},
        output={"uri": output, "rows_per_part": 8},
        runtime={"max_quarantined_fraction": 0.1, "batch_tokens": 2048, "without_ray_bytes": without_ray_bytes}
        | dict(runtime or {}),
    )
    return embed(config, environment=faults.environment, seconds=280), output


def quarantine_of(output: str) -> list[tuple[str, str]]:
    """Return (id, reason) of every row in quarantine."""
    paths = sorted(Path(output).glob("quarantine/*/*.parquet"))
    return [(row["id"], row["reason"]) for path in paths for row in pq.read_table(path).to_pylist()]


@on(later="Ray processes")
def test_a_row_that_kills_its_process_is_found_and_costs_no_other_row(
    tmp_path: Path, model: Path, corpus: Path, curses: tuple[int, int], without_ray_bytes: int
) -> None:
    faults = Faults(tmp_path, kills=curses[0])
    finished, output = run(tmp_path, model, corpus, faults, without_ray_bytes)
    assert finished.code == 0, finished.stderr[-3000:]
    assert quarantine_of(output) == [("1-5", "kills_process")]
    assert len(set(open_snapshot(output).to_table(["id"])["id"].to_pylist())) == FILES * ROWS - 1
    assert (finished.report["embedded"], finished.report["quarantined"]) == (FILES * ROWS - 1, 1)
    deaths = {process for process, _ in faults.noted("kills")}
    assert len(deaths) >= 3 + 2 + 2  # three encoders, then children: a batch and its halves, and the row alone twice
    assert any("killed their workers" in warning for warning in finished.report["warnings"])


LETHAL = """
import builtins, io, os, sys

class Lethal(io.FileIO):
    def readall(self):
        self.strike()

    def readinto(self, buffer):
        self.strike()

    def strike(self):
        with open(os.environ["DEATHS"], "a") as log:
            log.write(f"{os.getpid()}\\n")
        os._exit(139)

def open_lethally(file, mode="r", *others, **named):
    is_lethal = str(file).endswith("lethal.jsonl") and mode == "rb" and "jobs" not in sys.argv[0]
    return io.BufferedReader(Lethal(file)) if is_lethal else opened(file, mode, *others, **named)

opened, builtins.open = builtins.open, open_lethally
"""
"""Lets one file end every process that reads it, but not the one that plans."""


@on("processes", later="Ray")
def test_a_file_that_kills_its_readers_is_set_aside_and_costs_no_other_row(
    tmp_path: Path, without_ray_bytes: int
) -> None:
    corpus, site = tmp_path / "corpus", tmp_path / "site"
    corpus.mkdir()
    site.mkdir()
    (site / "sitecustomize.py").write_text(LETHAL, encoding="utf-8")
    for name in ("a", "lethal", "z"):
        rows = ({"id": f"{name}-{row}", "text": f"text {row}"} for row in range(ROWS))
        (corpus / f"{name}.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    output, deaths = str(tmp_path / "out"), tmp_path / "deaths"
    config = written_config(
        tmp_path / "job.yaml",
        source={"uri": str(corpus)},
        recipe={"model": "hashing://64"},
        output={"uri": output},
        runtime={"max_quarantined_fraction": 0.5, "without_ray_bytes": without_ray_bytes},
    )
    environment = {"PYTHONPATH": f"{site}:{ROOT}", "DEATHS": str(deaths)}
    finished = embed(config, environment=environment)
    assert finished.code == 0, finished.stderr[-3000:]
    assert len(set(deaths.read_text().split())) == MAX_DEATHS + 2  # workers, then children
    ids = open_snapshot(output).to_table(["id"])["id"].to_pylist()
    assert sorted(ids) == sorted(f"{name}-{row}" for name in "az" for row in range(ROWS))
    assert finished.report["reasons"] == {"kills_process": 1}
    assert any("killed their workers" in warning for warning in finished.report["warnings"])


@on("processes", later="Ray")
def test_a_row_whose_forward_raises_or_gives_nan_costs_no_other_row(
    tmp_path: Path, model: Path, corpus: Path, curses: tuple[int, int], without_ray_bytes: int
) -> None:
    faults = Faults(tmp_path, raises=curses[0], nan=curses[1])
    finished, output = run(tmp_path, model, corpus, faults, without_ray_bytes)
    assert finished.code == 0, finished.stderr[-3000:]
    assert sorted(quarantine_of(output)) == [("1-11", "not_finite"), ("1-5", "encode_failed")]
    assert len(faults.noted("raises")) > 1  # in its batch, and alone
    assert len(faults.noted("nan")) > 1
    assert finished.report["embedded"] == FILES * ROWS - 2


@on("processes", later="Ray")
def test_out_of_memory_is_learnt_once_and_the_config_key_to_lower_is_named(
    tmp_path: Path, model: Path, corpus: Path, without_ray_bytes: int
) -> None:
    faults = Faults(tmp_path, memory_tokens=320)
    finished, _ = run(tmp_path, model, corpus, faults, without_ray_bytes)
    assert finished.code == 0, finished.stderr[-3000:]
    assert finished.report["embedded"] == FILES * ROWS
    failed = faults.noted("memory")
    assert failed
    assert len(failed) <= 4, "the budget was not kept for the Blocks after"
    (warning,) = [text for text in finished.report["warnings"] if "out of memory" in text]
    assert "runtime.batch_tokens" in warning


@on("Ray", later="processes")
def test_a_sick_encoder_is_replaced_by_a_fresh_process(
    tmp_path: Path, model: Path, corpus: Path, without_ray_bytes: int
) -> None:
    faults = Faults(tmp_path, first_process_is_sick=True)
    finished, output = run(tmp_path, model, corpus, faults, without_ray_bytes)
    assert finished.code == 0, finished.stderr[-3000:]
    assert len({process for process, _ in faults.noted("sick")}) == 1
    assert quarantine_of(output) == []
    assert finished.report["embedded"] == FILES * ROWS


@on(later="Ray processes")
def test_without_a_healthy_encoder_the_run_ends_and_says_so(
    tmp_path: Path, model: Path, corpus: Path, without_ray_bytes: int
) -> None:
    faults = Faults(tmp_path, sick_address="all")
    finished, output = run(tmp_path, model, corpus, faults, without_ray_bytes)
    assert finished.code == 1
    assert len({process for process, _ in faults.noted("sick")}) == 3
    (error,) = finished.errors
    assert "no healthy encoder is left" in error
    assert "NaN" in error
    assert "Traceback" not in finished.stderr
    assert not Path(output, "_meta", "snapshots").exists()
    assert quarantine_of(output) == []


@on("processes", later="Ray")
def test_a_run_that_stands_still_ends_and_names_stage_and_shard(
    tmp_path: Path, model: Path, corpus: Path, curses: tuple[int, int], without_ray_bytes: int
) -> None:
    faults = Faults(tmp_path, sleeps=curses[0])
    finished, _ = run(tmp_path, model, corpus, faults, without_ray_bytes, {"stall_minutes": 0.7})
    assert finished.code == 1
    assert faults.noted("sleeps")
    (error,) = finished.errors
    assert "stall_minutes" in error
    assert "encode of Shard" in error
    assert "1.jsonl" in error
