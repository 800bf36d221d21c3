"""Whole jobs side by side, from S3 to S3: the textbook Ray Data job, Daft, and ours through the command line."""

import io
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from numpy.typing import NDArray

from jobs.demo.local_s3 import LocalS3, local_s3
from pipeline import open_snapshot
from pipeline.arrow import one_array
from tests.benchmarks import corpora, quiet
from tests.benchmarks.budget import UNLIMITED, Budget
from tests.benchmarks.models import Model, m3e_small
from tests.benchmarks.overhead import encode_in_a_child
from tests.benchmarks.programs import ProgramFailed, daft_python, seconds_of
from tests.benchmarks.rounds import least, min_cosine
from tests.benchmarks.samples import named

Line = dict[str, object]

BUCKET, FILES, FEW_ROWS, COMPARED_ROWS = "bench", 8, 64, 256

BEST_ROWS = 1024
"""Rows of a batch from which on a larger one gains `encode` nothing."""


class Writes(Enum):
    """What a way leaves behind."""

    FILES = 0
    SNAPSHOT = 1
    COMPARED = 2
    """A Snapshot, by the run that all others are compared with."""


CONFIG = """\
source: {{uri: "s3://{source}/"}}
recipe: {{model: "{model}", compute: {precision}}}
output: {{uri: "s3://{target}/", rows_per_part: 4096}}
runtime: {{without_ray_bytes: 0}}
"""

OURS = {"float32": 1.0, "bfloat16": 1.8}
"""What is expected of ours, by number type."""

Command = Callable[[str, str], list[str]]
"""From source and target, both `bucket/path`, to the arguments of a program."""


@dataclass(slots=True)
class Peer:
    """One way to do the whole job, and what was measured of it."""

    name: str
    precision: str
    expected: float
    """Its rate over that of our float32 encoder loop; only decides how many rows it is given."""
    command: Command
    batch_rows: int = 1
    writes: Writes = Writes.FILES
    is_extra: bool = False
    """Whether it is left out where time is limited, unless it is asked for."""
    is_once: bool = False
    """Whether one round of it is enough where time is limited, unless it is asked for."""
    is_reference: bool = False
    """Whether the others are compared with its vectors, all of them; itself it is compared with a few of `encode`."""
    start_seconds: list[float] = field(default_factory=list)
    wall_seconds: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    rows: int = 0
    min_cosine: float | None = None
    compared_rows: int = 0
    failure: str = ""


def measure(
    folder: Path, rounds: int, seconds: float, most_rows: int, budget: Budget = UNLIMITED, ways: str = ""
) -> Iterator[Line]:
    """Yield one line per way.

    Args:
        rounds: each takes the ways in turn; fewer, if the budget ends before.
        seconds: about how long each may encode per round.
        most_rows: reviews there are.
        budget: where it is limited, extra ways are left out, so that it is enough for the rounds of the others: most of
            its time are starts.
        ways: only those that hold one of these in their name and precision, with commas between them, and ours beside
            them if it is not among them; extra ways too.
    """
    model = m3e_small()
    texts = corpora.reviews(most_rows)
    tokens, _ = model.tokenize(pa.array(texts), model.description.max_tokens)
    known = pa.table({"id": pa.array(range(len(texts))), "text": texts, "tokens": tokens.lengths_N})
    rows_per_second = 512 / encode_in_a_child(model.folder, 512)
    few_ND = all_ND = _reference(model, texts[:COMPARED_ROWS])
    peers = chosen(_peers(folder, model), ways)
    peers = [peer for peer in peers if ways or not (budget.is_limited and peer.is_extra)]
    with local_s3(folder / "s3") as server:
        os.environ.update(server.environment)
        if not server.filesystem().exists(BUCKET):
            server.create_bucket(BUCKET)
        for peer in peers:
            peer.rows = rows_of(peer, rows_per_second * peer.expected * seconds, most_rows)
        for number in budget.rounds(rounds):
            for peer in peers[number % len(peers) :] + peers[: number % len(peers)]:
                if number and budget.is_limited and peer.is_once and not ways:
                    continue
                expected_seconds = peer.rows / (rows_per_second * peer.expected)
                reference_ND = few_ND if peer.is_reference else all_ND
                written_ND = _measure(server, peer, known, reference_ND, 60 + 10 * expected_seconds)
                if peer.is_reference and written_ND is not None:
                    all_ND = written_ND
    yield from (_line(peer, peers) for peer in peers)


def chosen(peers: Sequence[Peer], ways: str) -> list[Peer]:
    """Return the ways that hold one of these, with commas between them, and if ours is none of them ours beside each.

    "1024 rows" stands for both precisions, "1024 rows float32" for one.
    """
    names = set(named((f"{peer.name} {peer.precision}" for peer in peers), ways))
    asked = [peer for peer in peers if f"{peer.name} {peer.precision}" in names]
    if any(peer.writes is Writes.COMPARED for peer in asked):
        return asked
    precisions = {peer.precision for peer in asked}
    return [
        peer for peer in peers if peer in asked or (peer.writes is Writes.COMPARED and peer.precision in precisions)
    ]


def rows_of(peer: Peer, wanted: float, most_rows: int) -> int:
    """Return how many rows a way is given, about so many: beyond those of its start, whole batches of its own."""
    most_batches = (most_rows - FEW_ROWS) // peer.batch_rows
    wanted_batches = min(max(wanted, COMPARED_ROWS) / peer.batch_rows, most_batches)
    return FEW_ROWS + peer.batch_rows * max(1, round(wanted_batches))


def _peers(folder: Path, model: Model) -> list[Peer]:
    """Return the ways in float32, and in bfloat16 where this CPU has it; in the faster of these all of ours."""
    textbook = "Ray Data, map_batches of encode, {} rows"
    has_bfloat16 = model.compute == "bfloat16"
    peers = []
    for rows, precision, expected in (
        (32, "float32", 0.2),
        (256, "float32", 0.4),
        (BEST_ROWS, "float32", 0.7),
        (BEST_ROWS, "bfloat16", 1.3),
    ):
        job = _textbook(model, precision, rows)
        one = Peer(textbook.format(rows), precision, expected, job, rows, is_extra=rows < BEST_ROWS)
        one.is_reference = (rows, precision) == (BEST_ROWS, "float32")
        peers.append(one)
    for name, precision, expected in (("embed_text", "float32", 0.7), ("a class with encode", "bfloat16", 1.3)):
        job = _daft(folder, model, precision)
        is_extra = has_bfloat16 and precision == "float32"
        peers.append(Peer(f"Daft, {name}, {BEST_ROWS} rows", precision, expected, job, BEST_ROWS, is_extra=is_extra))
    for precision, expected in OURS.items():
        job, is_extra = _ours(folder, model, precision), has_bfloat16 and precision == "float32"
        name = "ours, python -m jobs embed"
        peers.append(Peer(name, precision, expected, job, 1, Writes.COMPARED, is_extra=is_extra))
    for override, is_once in (("runtime.encoders=2", True), ("runtime.engine=torch", False)):
        job, expected, how = _ours(folder, model, model.compute, override), OURS[model.compute], Writes.SNAPSHOT
        name = f"ours, {override}"
        peers.append(Peer(name, model.compute, expected, job, 1, how, is_extra=not is_once, is_once=is_once))
    loop = _program([sys.executable, "-m", "tests.benchmarks.plain_loop"], model, model.compute)
    peers.append(Peer("our loop without Ray", model.compute, OURS[model.compute], loop, is_once=True))
    return [peer for peer in peers if peer.precision in ("float32", model.compute)]


def _program(program: list[str], model: Model, precision: str, *more: str) -> Command:
    return lambda source, target: [*program, source, target, str(model.folder), precision, *more]


def _textbook(model: Model, precision: str, rows: int) -> Command:
    return _program([sys.executable, "-m", "tests.benchmarks.textbook_ray"], model, precision, str(rows))


def _daft(folder: Path, model: Model, precision: str) -> Command:
    program = str(Path(__file__).parent / "daft_job.py")
    return lambda *ends: _program([daft_python(folder), program], model, precision, str(BEST_ROWS))(*ends)


def _ours(folder: Path, model: Model, precision: str, *overrides: str) -> Command:
    def command(source: str, target: str) -> list[str]:
        config = folder / "peers.yaml"
        text = CONFIG.format(source=source, target=target, model=model.folder, precision=precision)
        config.write_text(text, encoding="utf-8")
        return [sys.executable, "-m", "jobs", "embed", str(config), *overrides, "--json"]

    return command


def _reference(model: Model, texts: list[str]) -> NDArray[np.float32]:
    """Return the float32 vectors of `SentenceTransformer.encode`."""
    from tests.benchmarks.variants import peers

    with peers(model, with_pool=False)[0].open() as encode:
        return encode(texts)


_numbers = count(int(time.time()))


def _measure(
    server: LocalS3, peer: Peer, known: pa.Table, reference_ND: NDArray[np.float32], limit: float
) -> NDArray[np.float32] | None:
    """Run one way on few rows, which is its start-up, and on all of its own; the difference gives its rate.

    Returns:
        The vectors that it has written, by id; None if it fails.
    """
    if peer.failure:
        return None
    print(f"  {peer.name}, {peer.precision}: {peer.rows:,} rows", file=sys.stderr, flush=True)
    tokens_N = known["tokens"].to_numpy()
    since = quiet.now()
    try:
        start, _ = _timed(server, peer, known, FEW_ROWS, limit)
        wall, target = _timed(server, peer, known, peer.rows, limit)
        vectors_ND = vectors_by_id(_written(server, peer, target), peer.rows)
        server.filesystem().rm(target, recursive=True)
        peer.others.append(quiet.cores_of_others(since))
        peer.start_seconds.append(start)
        peer.wall_seconds.append(wall)
        peer.rates.append(float(tokens_N[FEW_ROWS : peer.rows].sum()) / max(wall - start, 1e-3))
        print(
            f"    {peer.rates[-1]:,.0f} tokens/s, start {start:.1f} s, wall {wall:.1f} s", file=sys.stderr, flush=True
        )
        _compare(peer, vectors_ND, reference_ND)
    except Exception as error:  # noqa: BLE001  one way that fails must not end the others
        what = str(error) if isinstance(error, ProgramFailed) else f"{type(error).__name__}: {error}"
        peer.failure = " ".join(what.split())[:400]
        print(f"    failed: {peer.failure}", file=sys.stderr, flush=True)
        return None
    return vectors_ND


def _compare(peer: Peer, vectors_ND: NDArray[np.float32], reference_ND: NDArray[np.float32]) -> None:
    """Note the smallest cosine over as many rows as both have; that of more rows counts."""
    rows = min(len(vectors_ND), len(reference_ND))
    if rows > peer.compared_rows:
        peer.compared_rows, peer.min_cosine = rows, None
    if rows == peer.compared_rows:
        peer.min_cosine = least([peer.min_cosine, min_cosine(vectors_ND[:rows], reference_ND[:rows])])


def _timed(server: LocalS3, peer: Peer, known: pa.Table, rows: int, limit: float) -> tuple[float, str]:
    """Run one way on the first rows; return its wall time and where its output lies."""
    source, target = f"{BUCKET}/peers/source-{rows}", f"{BUCKET}/peers/output-{next(_numbers)}"
    if not server.filesystem().exists(source):
        _write_source(server, source, known.slice(0, rows).select(["id", "text"]))
    command = peer.command(source, target)
    environment = server.environment | {"OMP_WAIT_POLICY": "PASSIVE"}
    return seconds_of(command, environment, limit), target


def _write_source(server: LocalS3, source: str, rows: pa.Table) -> None:
    for number in range(FILES):
        start, end = (rows.num_rows * edge // FILES for edge in (number, number + 1))
        sink = io.BytesIO()
        pq.write_table(rows.slice(start, end - start), sink)
        server.filesystem().pipe_file(f"{source}/{number:02d}.parquet", sink.getvalue())


def _written(server: LocalS3, peer: Peer, target: str) -> pa.Table:
    """Return ids and vectors of an output."""
    if peer.writes is not Writes.FILES:
        return open_snapshot(f"s3://{target}/").to_table(columns=["id", "embedding"])
    dataset = pads.dataset(target, filesystem=server.filesystem(), format="parquet")
    return dataset.to_table(columns=["id", "embedding"])


def vectors_by_id(written: pa.Table, rows: int) -> NDArray[np.float32]:
    """Return the vectors of ids 0 to N - 1 in their order, (N, D), whichever list type holds them.

    Raises:
        ValueError: an id is not there, or there twice.
    """
    ids_N = written["id"].to_numpy()
    if not np.array_equal(np.sort(ids_N), np.arange(rows)):
        missing = len(np.setdiff1d(np.arange(rows), ids_N))
        raise ValueError(f"{len(ids_N):,} rows were written for {rows:,}, and {missing:,} ids are missing")
    column = one_array(written["embedding"])
    lists = column.storage if isinstance(column, pa.ExtensionArray) else column
    values_ND = lists.flatten().to_numpy(zero_copy_only=False).reshape(rows, -1)
    vectors_ND = np.empty(values_ND.shape, np.float32)
    vectors_ND[ids_N] = values_ND
    return vectors_ND


def _line(peer: Peer, peers: Sequence[Peer]) -> Line:
    line: Line = {"benchmark": "whole jobs, S3 to S3, m3e-small, reviews", "variant": peer.name}
    line["precision"] = peer.precision
    if peer.failure:
        line["failed"] = peer.failure
    if not peer.rates:
        return line
    in_bfloat16, in_same = (ratios(peers, precision, peer) for precision in ("bfloat16", peer.precision))
    return line | {
        "tokens_per_second": round(statistics.median(peer.rates)),
        "ours_in_bfloat16_is": round(statistics.median(in_bfloat16), 2) if in_bfloat16 else None,
        "ours_in_same_precision_is": round(statistics.median(in_same), 2) if in_same else None,
        "lowest": round(min(in_same or in_bfloat16), 2) if in_same or in_bfloat16 else None,
        "highest": round(max(in_same or in_bfloat16), 2) if in_same or in_bfloat16 else None,
        "min_cosine": None if peer.min_cosine is None else round(peer.min_cosine, 7),
        "compared_rows": peer.compared_rows,
        "start_seconds": round(statistics.median(peer.start_seconds), 1),
        "wall_seconds": round(statistics.median(peer.wall_seconds), 1),
        "rows": peer.rows,
        "rounds": len(peer.rates),
        "others_cores": round(max(peer.others), 2),
    }


def ratios(peers: Sequence[Peer], precision: str, peer: Peer) -> list[float]:
    """Return how many times its rate ours has, once per round that both have finished."""
    ours = [other for other in peers if other.writes is Writes.COMPARED and other.precision == precision]
    return [our / their for our, their in zip(ours[0].rates, peer.rates, strict=False)] if ours else []
