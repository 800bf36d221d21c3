"""What a stage has raised on its worker, told as the PipelineError it is, or as one that says where it was."""

import re
from typing import cast

from pipeline import errors
from pipeline.errors import PipelineError

RAY_APPENDS = "\nFailed to apply UDF transform"
"""Beginning of what Ray 2.60 adds to the message of every exception that a stage raises."""


def told_by_stage(error: BaseException, traceback: str | None = None) -> PipelineError:
    """Return the PipelineError that a stage has raised on its worker, or one that says what went wrong there.

    Ray gives an error back as a class of its own that also derives from the class that was raised.

    Args:
        traceback: on the worker; None = it stands in the message, where Ray puts it.
    """
    cause: BaseException = error
    while (inner := getattr(cause, "cause", None) or cause.__cause__) is not None:
        cause = inner
    own = [kind for kind in type(cause).__mro__ if kind.__module__ == PipelineError.__module__]
    if own:
        return cast(PipelineError, own[0](str(cause.args[0] if cause.args else cause).split(RAY_APPENDS)[0]))
    text = traceback or str(error)
    where = f"{_place(text)}{_work(cause, text)}"
    return _told_by_text(text) or PipelineError(
        f"a stage failed with {type(cause).__name__} at {where}; this is a bug or a broken installation"
    )


def _work(cause: BaseException, text: str) -> str:
    """Return which Block was worked on, as `marked` has noted it; empty where the failure was outside of one."""
    notes = [*getattr(cause, "__notes__", ()), text]
    found = re.findall(r"in \w+ of Shard \w+, Block \d+ \([^\n]+\)", "\n".join(notes))
    return f", {found[-1]}" if found else ""


def _place(text: str) -> str:
    """Return the last line of our code in a traceback; the message itself may quote the data."""
    found = re.findall(r'File ".*?((?:pipeline|jobs)/[\w/]+\.py)", line (\d+)', text)
    return ":".join(found[-1]) if found else "a place unknown"


def _told_by_text(text: str) -> PipelineError | None:
    """Return the PipelineError that a dying actor has left behind only in the text of Ray's message."""
    found = re.findall(rf"{PipelineError.__module__}\.(\w+): (.+)", text)
    kind = getattr(errors, found[-1][0], PipelineError) if found else None
    return cast(PipelineError, kind(found[-1][1])) if kind else None
