"""evaluate in processes that end themselves by SIGKILL: `python -m tests.evaluating CONFIG WHERE [CONFIG WHERE]…`.

Each is a process of its own, one after the other, forked once everything is imported: `block:N` dies when N Blocks are
journalled and the next one is written, `task:N` when N tasks are scored, `never` not at all. The file `encoded` beside
a config gets a line for each Block that is encoded; the last line of stdout tells what became of each process.
"""

import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import orjson
import sentence_transformers  # noqa: F401  as the others here, imported once for all processes

from jobs import evaluate
from pipeline.config import Output
from pipeline.config_file import load_config
from pipeline.evaluation import collect, page  # noqa: F401
from pipeline.execution import stages
from tests.inline import inline

ROWS_PER_PART = 8


def attempt(config_path: Path, where: str) -> dict[str, Any]:
    """Evaluate, until death or to the end; return the facts."""
    stage, _, number = where.partition(":")
    config = load_config(str(config_path))
    assert config.evaluation is not None
    encode, scored = stages.EncodeBlocks.encode, 0

    def die(at: str, count: int) -> None:
        if (stage, number) == (at, str(count)):
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(self: Any, shard: Any, block: Any) -> Any:
        encoded = encode(self, shard, block)
        with config_path.with_name("encoded").open("a") as lines:
            lines.write(f"{block.number} {block.documents.num_rows}\n")
        return encoded

    def tell(task: Any) -> None:
        nonlocal scored
        die("task", scored)
        scored += 1

    with (
        inline(partial(die, "block")),
        patch.object(stages.EncodeBlocks, "encode", watched),
        patch.object(collect, "Output", partial(Output, rows_per_part=ROWS_PER_PART)),
        patch.object(evaluate, "_tell", tell),
    ):
        facts: dict[str, Any] = evaluate.evaluate(config, config.evaluation, None)["facts"]
    return facts


def main(arguments: list[str]) -> list[Any]:
    """Return for each process the signal that ended it, or its facts."""
    became: list[Any] = []
    for config_path, where in zip(map(Path, arguments[::2]), arguments[1::2], strict=True):
        facts = config_path.with_name("facts.json")
        child = os.fork()
        if not child:
            facts.write_bytes(orjson.dumps(attempt(config_path, where)))
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        became.append(orjson.loads(facts.read_bytes()) if ended == 0 else -ended)
    return became


if __name__ == "__main__":
    print(orjson.dumps(main(sys.argv[1:])).decode())
