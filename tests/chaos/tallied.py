"""A plugin that shows at the end of a session what has happened to whom, whichever process it happened in."""

import orjson
import pytest
from pydantic import TypeAdapter
from xdist.workermanage import WorkerController

from tests.chaos.kills import Tally
from tests.running import ROOT

TALLY = pytest.StashKey[Tally]()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the tally on from a process of `-n` to the one that shows it."""
    if TALLY in session.config.stash and hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tally"] = orjson.dumps(session.config.stash[TALLY])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: WorkerController) -> None:
    """Take the tally of a process that has ended."""
    if tally := getattr(node, "workeroutput", {}).get("tally"):
        node.config.stash[TALLY] = TypeAdapter(Tally).validate_json(tally)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show what has happened to whom, and keep it below .bench/."""
    tally = config.stash.get(TALLY, None)
    if tally is None or not tally.kills:
        return
    terminalreporter.section(f"chaos, seed {config.getoption('--seed')}, {tally.network}")
    for line in tally.lines():
        terminalreporter.write_line(line)
    path = ROOT / ".bench" / "chaos.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(orjson.dumps(tally, option=orjson.OPT_INDENT_2))
