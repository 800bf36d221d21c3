"""`python -m jobs COMMAND …`: logging and exit codes. Imports nothing heavy before it knows the command."""

import importlib
import json
import logging
import os
import sys
from collections.abc import Sequence

from jobs.arguments import parsed
from jobs.logs import are_json, set_up_logs
from pipeline.errors import PipelineError, Stopped

MODULES = {"demo": "jobs.demo.command"}
"""Where a command is not the module of its name."""

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code of the process.
    """
    options = parsed(arguments)
    set_up_logs(options.log_format)
    try:
        module = importlib.import_module(MODULES.get(options.command, f"jobs.{options.command}"))
        return int(module.run(options))
    except Stopped as error:
        _tell(error, options.json)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(
            error.exit_code
        )  # Ray ends with this process; to wait for it would outlast the patience of who stops us
    except PipelineError as error:
        _tell(error, options.json)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; what was encoded is kept, run the same command to go on", file=sys.stderr)
        return INTERRUPTED


def _tell(error: PipelineError, as_json: bool) -> None:
    report_uri = error.report.report_uri if error.report else None
    if are_json():
        place = f" report={report_uri}" if report_uri else ""
        logging.getLogger(__name__).error("failed kind=%s%s", type(error).__name__, place, extra={"error": str(error)})
    else:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
    if as_json:
        print(_failure_json(error))
    if report_uri and not are_json():
        print(f"report: {report_uri}", file=sys.stderr)


def _failure_json(error: PipelineError) -> str:
    """Return what a failed command prints under --json: the report of the run, or if there was none, the error."""
    if error.report is None:
        return json.dumps({"outcome": "failed", "error": str(error)}, ensure_ascii=False)
    from pipeline.execution.reporting.report import report_json

    return report_json(error.report).decode()


if __name__ == "__main__":
    sys.exit(main())
