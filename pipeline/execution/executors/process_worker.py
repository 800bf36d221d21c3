"""The worker of a run without Ray: a process that takes Blocks through all stages, three of them at a time."""

import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import PipelineError
from pipeline.execution.child_process import end_with_driver, run_and_exit
from pipeline.execution.encode_stage import EncodeBlocks
from pipeline.execution.executors.executor import Todo
from pipeline.execution.executors.worker_line import WorkerLine
from pipeline.execution.lending import Ledger
from pipeline.execution.repeats import unknown_hashes
from pipeline.execution.stage_settings import StageSettings
from pipeline.execution.stages import read_blocks, tokenize_blocks, write_blocks
from pipeline.execution.told_by_stage import told_by_stage
from pipeline.parallel import merged
from pipeline.records import BlockReceipt

Beside = Callable[[Iterable[pa.Table]], Iterator[pa.Table]]
"""How a stage draws its input: in a thread that is ahead of it, or when it wants it."""


def in_a_thread(rows: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Draw from an iterator in a thread that is never far ahead."""
    return merged(iter, [rows], 1)


def looked_through(todo: Sequence[Todo], settings: StageSettings) -> Iterator[NDArray[np.void]]:
    """Yield `unknown_hashes` of each Shard, in their order."""
    for one in todo:
        yield unknown_hashes(one.shard, one.done_blocks, settings)


def stages_at_once(
    todo: Sequence[Todo], settings: StageSettings, repeated_R2: NDArray[np.uint64]
) -> Iterator[BlockReceipt]:
    """Yield the receipts of all missing Blocks: one is written while the next is encoded and another one tokenised."""
    return _receipts(todo, settings, repeated_R2, in_a_thread)


def one_stage_at_a_time(
    todo: Sequence[Todo], settings: StageSettings, repeated_R2: NDArray[np.uint64]
) -> Iterator[BlockReceipt]:
    """Yield the receipts of all missing Blocks; if this process dies, it was over the one Block it had begun."""
    return _receipts(todo, settings, repeated_R2, iter)


def _receipts(
    todo: Sequence[Todo], settings: StageSettings, repeated_R2: NDArray[np.uint64], beside: Beside
) -> Iterator[BlockReceipt]:
    if len(repeated_R2):
        settings = replace(settings, ledger=Ledger(repeated_R2, settings.model_dimension))
    tokenised = (
        block
        for one in todo
        for read in read_blocks(_table(one), settings)
        for block in tokenize_blocks(read, settings)
    )
    for encoded in beside(_encoded(beside(tokenised), settings)):
        for written in write_blocks(encoded, settings):
            for receipt in written["receipt"].to_pylist():
                yield BlockReceipt.from_json(orjson.loads(receipt))


def _table(one: Todo) -> pa.Table:
    schema = pa.schema([("shard", pa.binary()), ("done_blocks", pa.list_(pa.int64())), ("dropped", pa.binary())])
    return pa.Table.from_pylist([one.to_row()], schema=schema)


def _encoded(tokenised: Iterator[pa.Table], settings: StageSettings) -> Iterator[pa.Table]:
    encode = EncodeBlocks(settings)
    for block in tokenised:
        yield from encode(block)


def serve(line: WorkerLine) -> None:
    """Do what the driver asks for, until it leaves."""
    with suppress(EOFError, ConnectionError):
        while True:
            function, arguments = line.asked()
            try:
                for result in function(*arguments):
                    line.tell("result", result)
                line.tell("end")
            except PipelineError as error:
                line.tell("failed", error)
            except (EOFError, ConnectionError):
                raise
            except Exception as error:  # noqa: BLE001  whatever a stage raises is told to the driver
                line.tell("failed", told_by_stage(error, "".join(traceback.format_exception(error))))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to answer, who ends this process
    end_with_driver()
    run_and_exit(partial(serve, WorkerLine(Connection(int(sys.argv[1])))))
