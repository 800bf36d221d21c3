"""What can be said on the command line: the commands, and the arguments of each."""

import argparse
import sys
from collections.abc import Callable, Sequence

from pipeline import __version__

COMMANDS = {
    "embed": "bring an output up to date with its source, and publish it as one snapshot",
    "plan": "say what a run would do; with --estimate, sample, measure and say what it would take and cost",
    "nightly": "embed what has changed, publish it unless too much would be deleted, and remove old snapshots",
    "diff": "say which ids one snapshot has that another has not, and which have another text",
    "changes": "write the feeds of changes that are missing, and say which there are",
    "status": "show what is published in an output, which run works on it, and what a run now would do",
    "report": "say where the page about the newest run lies, open it, or draw it anew with texts",
    "requeue": "embed anew what went to quarantine, after its cause was mended; keep everything else",
    "features": "make a table of vectors per entity and time of what is published, for training and for Feast",
    "export": "write a published snapshot as a Delta table, a Lance dataset or a FAISS index",
    "evaluate": "embed labelled tasks by the config's recipe and score the vectors with mteb, beside a model card",
    "expire": "remove snapshots beyond output.keep_snapshots, old feature tables, and what dead runs have left",
    "verify": "read a published snapshot whole, compare it with what it says of itself and with its source",
    "train": "train the model of the recipe on sets of examples, and put the result into a folder to embed with",
    "tune": "try settings on texts of the source, in under two minutes, and print the fastest ones to paste",
    "submit": "run another command on a Ray cluster, follow it, and end with its exit code",
    "demo": "run the whole job on real reviews, with a real model and a real S3 server, on this machine",
}
EXIT_CODES = """\
exit codes:
  0  done, or nothing to do
  1  failed; nothing was published, what was encoded is kept
  2  the config or the arguments are wrong
  3  another run holds or published the output
  4  a check or gate failed
"""
OVERRIDE_HELP = "change one value of the config, written as in YAML"


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments; `section.key=value` may also stand behind an option, where argparse would not take it."""
    parser = _parser()
    given, remote = _divided(sys.argv[1:] if arguments is None else list(arguments))
    options, behind = parser.parse_known_args(given)
    takes = "overrides" if "overrides" in options else "words"
    strangers = [argument for argument in behind if argument.startswith("-") or takes not in options]
    if strangers:
        parser.error(f"unrecognized arguments: {' '.join(strangers)}")
    if behind:
        setattr(options, takes, [*getattr(options, takes), *behind])
    options.remote = remote
    return options


def _divided(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments of `submit`, and those behind -- which are for the run on the cluster."""
    if arguments[:1] != ["submit"] or "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jobs",
        description="Distributed batch embedding: text on object storage to embeddings as Parquet.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_text in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        ARGUMENTS[name](command)
        command.add_argument("--json", action="store_true", help="print one JSON object on stdout, logs on stderr")
        lines = "log lines on stderr, progress among them: for people, or one JSON object each (%(default)s)"
        command.add_argument("--log-format", choices=("text", "json"), default="text", help=lines)
    return parser


Command = argparse.ArgumentParser


def _config(command: Command) -> None:
    command.add_argument("config", help="YAML file with the sections source, recipe, output, …")
    _overrides(command)


def _config_and_dry_run(command: Command) -> None:
    _config(command)
    command.add_argument("--dry-run", action="store_true", help="print what would be done; touch nothing")


def _output(command: Command) -> None:
    command.add_argument("output", help="address of an output, or the config file (.yaml) that names it")


def _overrides(command: Command) -> None:
    command.add_argument("overrides", nargs="*", default=[], metavar="section.key=value", help=OVERRIDE_HELP)


def _output_and_overrides(command: Command) -> None:
    _output(command)
    _overrides(command)


def _plan(command: Command) -> None:
    _config(command)
    command.add_argument("--estimate", action="store_true", help="sample the source and measure this machine")
    rate = "of one encoder on the device that will run it, for instance by `tune` there; nothing is measured here"
    command.add_argument("--tokens-per-second", type=_amount, metavar="N", help=rate)
    _price(command)


def _price(command: Command) -> None:
    command.add_argument("--price", type=_amount, metavar="P", help="of an encoder per hour, in any currency")


def _nightly(command: Command) -> None:
    _config_and_dry_run(command)
    _grace(command)
    allow = "publish whatever is deleted, whatever output.max_deleted_fraction says"
    command.add_argument("--allow-deletes", action="store_true", help=allow)
    back = "publish snapshot N again, as the newest one, and do nothing else; copies nothing"
    command.add_argument("--rollback", type=_at_least_one, metavar="N", help=back)


def _diff(command: Command) -> None:
    _output(command)
    command.add_argument("before", type=int, help="number of a snapshot")
    command.add_argument("after", type=int, help="number of another")
    vectors = "compare the vectors of a sample of the texts that both have, across recipes too"
    command.add_argument("--vectors", action="store_true", help=vectors)
    ids = "write all ids that were added, changed or removed into this Parquet file: change, id"
    command.add_argument("--ids", metavar="FILE", help=ids)
    _overrides(command)


def _status(command: Command) -> None:
    _output_and_overrides(command)
    _price(command)
    command.add_argument("--watch", action="store_true", help="show it again and again until no run works on it")


def _report(command: Command) -> None:
    _output_and_overrides(command)
    command.add_argument("--open", action="store_true", help="show it in a browser")
    texts = "draw the page anew, with texts of the source and their nearest neighbours; written to --to only"
    command.add_argument("--with-texts", action="store_true", help=texts)
    command.add_argument("--to", metavar="FILE", help="draw the page anew into this file (report.html with texts)")


def _requeue(command: Command) -> None:
    _config_and_dry_run(command)
    reasons = "only rows quarantined for this reason, and the others of their shards; may be given several times"
    command.add_argument("--reason", action="append", default=[], metavar="R", help=reasons)


def _export(command: Command) -> None:
    _output_and_overrides(command)
    formats = "delta, lance or faiss, and the address to write to"
    command.add_argument("--to", nargs=2, required=True, metavar=("FORMAT", "URI"), help=formats)
    command.add_argument("--snapshot", type=int, metavar="N", help="which (the newest)")


def _evaluate(command: Command) -> None:
    _config(command)
    command.add_argument("--mini", action="store_true", help="the six small sets, instead of evaluation.tasks")
    command.add_argument("--tasks", metavar="T,…", help="these tasks, instead of evaluation.tasks")
    gate = "folder or config of another evaluation; exit code 4 if a kind falls further than evaluation.max_drop"
    command.add_argument("--gate", metavar="BASELINE", help=gate)


def _expire(command: Command) -> None:
    _output_and_overrides(command)
    command.add_argument("--keep", type=_at_least_one, help="snapshots that stay (output.keep_snapshots, or 7)")
    command.add_argument("--dry-run", action="store_true", help="print what would be removed; touch nothing")
    _grace(command)


def _grace(command: Command) -> None:
    grace = "what is younger stays; must be longer than a driver can stand still and go on (%(default)g)"
    command.add_argument("--grace-hours", type=_hours, default=24.0, metavar="H", help=grace)


def _verify(command: Command) -> None:
    _output_and_overrides(command)
    sample = "encode the texts of N random rows again and compare"
    command.add_argument("--sample", type=_count, default=0, metavar="N", help=sample)
    command.add_argument("--seed", type=int, default=0, help="which rows are drawn (%(default)s)")


def _tune(command: Command) -> None:
    _config(command)
    budget = "after so many, from the start of the command on, no new setting is tried (%(default)g)"
    command.add_argument("--seconds", type=float, default=90.0, help=budget)


def _demo(command: Command) -> None:
    command.add_argument("--folder", default=".demo", help="where the S3 server keeps its files (%(default)s)")
    command.add_argument("--rows", type=int, default=8000, help="distinct reviews to embed (%(default)s)")


def _submit(command: Command) -> None:
    words = "a command with its config and overrides, as without `submit`; options of its own stand behind --"
    command.add_argument("words", nargs="*", default=[], metavar="COMMAND CONFIG", help=words)
    address = "http(s)://HOST:PORT of the head's dashboard ($RAY_API_SERVER_ADDRESS)"
    command.add_argument("--address", metavar="URL", help=address)
    name = "of the run; else command, output and date (UTC), so that a night is submitted once"
    command.add_argument("--name", metavar="N", help=name)
    waits = argparse.BooleanOptionalAction
    command.add_argument("--wait", action=waits, default=True, help="follow the run to its end (%(default)s)")
    ship = "send this checkout along; --no-ship where the nodes have this package (%(default)s)"
    command.add_argument("--ship", action=waits, default=True, help=ship)
    instead = command.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="show the runs that the cluster knows")
    instead.add_argument("--stop", metavar="NAME", help="end a run as Ctrl-C would, and wait until it has ended")
    instead.add_argument("--logs", metavar="NAME", help="show what a run has written, and follow it")
    on = command.add_argument_group("on Kubernetes, with KubeRay; the code is that of the image")
    kinds = "make a RayJob; or every night one, by a RayCronJob (alpha in KubeRay 1.6) or a plain CronJob"
    on.add_argument("--kubernetes", nargs="?", const="rayjob", choices=("rayjob", "raycronjob", "cronjob"), help=kinds)
    on.add_argument("--dry-run", action="store_true", help="print the objects as YAML, for kubectl; create nothing")
    on.add_argument("--image", metavar="I", help="built of docker/Dockerfile; the same for all pods")
    on.add_argument("--namespace", default="default", metavar="N", help="(%(default)s)")
    secret = "whose keys become the environment of the pods: endpoint and credentials of the storage (%(default)s)"
    on.add_argument("--secret", default="embedding-storage", metavar="S", help=secret)
    on.add_argument("--schedule", default="0 2 * * *", metavar="CRON", help="of a nightly run, in UTC (%(default)s)")


def _count(text: str) -> int:
    """Return a number of rows.

    Raises:
        argparse.ArgumentTypeError: it is none; the process ends with exit code 2.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of rows; expected 1 or more")
    return int(text)


def _at_least_one(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("the newest snapshot always stays: 1 or more")
    return number


def _amount(text: str) -> float:
    if not 0 < (amount := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError("expected more than 0")
    return amount


def _hours(text: str) -> float:
    if not 0 <= (hours := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError("hours: 0 or more")
    return hours


ARGUMENTS: dict[str, Callable[[Command], None]] = {
    "embed": _config_and_dry_run,
    "plan": _plan,
    "nightly": _nightly,
    "diff": _diff,
    "changes": _output_and_overrides,
    "status": _status,
    "report": _report,
    "requeue": _requeue,
    "features": _config_and_dry_run,
    "export": _export,
    "evaluate": _evaluate,
    "expire": _expire,
    "verify": _verify,
    "train": _config_and_dry_run,
    "tune": _tune,
    "submit": _submit,
    "demo": _demo,
}
