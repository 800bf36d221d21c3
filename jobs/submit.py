"""`submit`: run another command on a Ray cluster, follow it, and end with its exit code."""

import argparse
import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from jobs.checkout import packed
from jobs.submit_config import config_text, wanted
from pipeline.errors import ConfigError
from pipeline.units import duration

if TYPE_CHECKING:
    from pipeline.execution.clusters.submission import Cluster, Submitted

INTERRUPTED = 130
QUESTION = "\nThe run goes on without this terminal. [d]etach, [s]top it, or [f]ollow on? "


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code of the remote run, or 0 of one that is not waited for."""
    if options.kubernetes:
        from jobs import kubernetes_submit

        return kubernetes_submit.run(options)
    if given := [name for name in ("dry_run", "image") if getattr(options, name)]:
        raise ConfigError(f"--{given[0].replace('_', '-')} goes with --kubernetes")
    if not (options.list or options.stop or options.logs):
        return _submit(options)
    if options.words:
        raise ConfigError("--list, --stop and --logs take no command and no config; --address says which cluster")
    cluster = _cluster(options.address)
    if options.list:
        return _list(cluster, options.json)
    if options.stop:
        return _stop(cluster, options.stop, options.json)
    out = sys.stderr if options.json else sys.stdout
    if options.wait:
        return _follow(cluster, options.logs, out, options.json)
    out.write(cluster.log(options.logs))
    return _tell(cluster, cluster.run(options.logs), options.json)


def _submit(options: argparse.Namespace) -> int:
    asked = wanted(options.words, options.remote)
    from pipeline.execution.clusters.submission import NAME, entrypoint, night_name

    name = options.name or night_name(asked.command, asked.output, datetime.now(UTC).date())
    if not NAME.fullmatch(name):
        raise ConfigError(f"--name {name!r}: expected at most 100 letters, digits, points, dashes and underscores")
    out = sys.stderr if options.json else sys.stdout
    cluster = _cluster(options.address)
    name = cluster.attempt(name)
    as_json = ["--json"] if options.json else []
    line = entrypoint([asked.command, "-", *asked.options, *as_json], config_text(asked.config))
    about = {"command": asked.command, "output": asked.output}
    with tempfile.TemporaryDirectory() as folder:
        package = None
        if options.ship:
            package = packed(Path(folder) / "checkout.zip")
            print(f"shipping    {package.files} files, {package.size_bytes / 1e6:.1f} MB", file=out)
        cluster.submit(name, line, about, package.path if package else None)
    print(f"submitted   {name}\ndashboard   {cluster.link(name)}", file=out, flush=True)
    if options.wait:
        return _follow(cluster, name, out, options.json)
    print(f"follow it   python -m jobs submit --logs {name}", file=out)
    return _tell(cluster, cluster.run(name), options.json, is_awaited=False)


def _cluster(address: str | None) -> "Cluster":
    from pipeline.execution.clusters.submission import Cluster

    return Cluster(address)


def _follow(cluster: "Cluster", name: str, out: IO[str], as_json: bool) -> int:
    """Show what the run writes until it ends; Ctrl-C asks what is to become of it."""
    log = _Kept(out)
    while True:
        try:
            for _ in cluster.follow(name, log.write, log.characters):
                out.flush()
            return _tell(cluster, cluster.run(name), as_json, report=log.report())
        except KeyboardInterrupt:
            answer = _asked()
            if answer == "s":
                print("stopping; what it has journalled is kept", file=sys.stderr)
                cluster.stop(name)
            elif answer == "d":
                print(f"the run goes on: python -m jobs submit --logs {name}", file=sys.stderr)
                return INTERRUPTED


def _asked() -> str:
    """Return d, s or f; without a terminal nobody is asked, and the run goes on by itself."""
    if not sys.stdin.isatty():
        return "d"
    print(QUESTION, end="", file=sys.stderr, flush=True)
    try:
        return sys.stdin.readline().strip().lower()[:1] or "f"
    except KeyboardInterrupt:
        return "d"


class _Kept:
    """Passes text on and keeps it: what a run under --json says at its end is the last object in it."""

    def __init__(self, out: IO[str]) -> None:
        self._out, self._text = out, ""

    @property
    def characters(self) -> int:
        return len(self._text)

    def write(self, text: str) -> None:
        self._out.write(text)
        self._text += text

    def report(self) -> Any:
        """Return the report of the run, None if it wrote none."""
        _, opening, rest = f"\n{self._text}".rpartition("\n{")
        try:
            return json.loads(opening + rest)
        except ValueError:
            return None


def _tell(cluster: "Cluster", run: "Submitted", as_json: bool, report: Any = None, is_awaited: bool = True) -> int:
    """Say how a run stands, and return its exit code; 0 for one that goes on."""
    code = run.code if run.is_over else 0
    if as_json:
        print(json.dumps(_facts(run) | {"link": cluster.link(run.name), "report": report}, ensure_ascii=False))
    elif is_awaited:
        took = f" after {duration(run.seconds)}" if run.seconds is not None else ""
        print(f"{run.name}: {run.status.lower()}{took}, exit code {code}" if run.is_over else f"{run.name}: goes on")
    return code


def _facts(run: "Submitted") -> dict[str, Any]:
    return {
        "name": run.name,
        "status": run.status,
        "command": run.command,
        "output": run.output,
        "started_at": run.started_at.isoformat() if run.started_at else None,
        "seconds": run.seconds,
        "exit_code": run.code if run.is_over else None,
    }


def _list(cluster: "Cluster", as_json: bool) -> int:
    runs = cluster.runs()
    if as_json:
        print(json.dumps([_facts(run) for run in runs], ensure_ascii=False))
        return 0
    wide = max((len(run.name) for run in runs), default=0)
    for run in runs:
        since = run.started_at.astimezone().strftime("%m-%d %H:%M") if run.started_at else "waits"
        took = duration(run.seconds) if run.seconds is not None else ""
        print(f"{run.name:<{wide}}  {run.status.lower():<9}  {since:<11}  {took:<12}  {run.output}".rstrip())
    if not runs:
        print(f"no run is known at {cluster.address}")
    return 0


def _stop(cluster: "Cluster", name: str, as_json: bool) -> int:
    was_running = cluster.stop(name)
    if was_running:
        for _ in cluster.follow(name, lambda _: None):
            pass
    run = cluster.run(name)
    if as_json:
        print(json.dumps(_facts(run), ensure_ascii=False))
    else:
        print(f"{name}: {'stopped; what it has journalled is kept' if was_running else run.status.lower()}")
    return 0
