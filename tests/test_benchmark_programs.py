"""Programs that benchmarks ask: they answer, and say why they do not."""

import sys

import pytest

from tests.benchmarks.programs import ProgramFailed, answering

BEGINNING = "import sys; from multiprocessing.connection import Connection; line = Connection(int(sys.argv[1])); "


def test_a_program_is_asked_until_it_is_no_longer_needed() -> None:
    program = BEGINNING + "line.send('ready'); [line.send(line.recv() + [sys.argv[2]]) for _ in range(9)]"
    with answering([sys.executable, "-c", program], "argument") as ask:
        assert ask(["first"]) == ["first", "argument"]
        assert ask(["second"]) == ["second", "argument"]


def test_a_program_that_does_not_start_says_why() -> None:
    program = BEGINNING + "raise ImportError('no such backend')"
    with pytest.raises(ProgramFailed, match="ImportError: no such backend"), answering([sys.executable, "-c", program]):
        pass


def test_a_program_that_ends_when_it_is_asked_says_why() -> None:
    program = BEGINNING + "line.send('ready'); line.recv(); sys.exit('out of memory')"
    with answering([sys.executable, "-c", program]) as ask, pytest.raises(ProgramFailed, match="out of memory"):
        ask(["text"])
