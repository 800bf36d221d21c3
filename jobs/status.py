"""`status`: what is published in an output, which run works on it and when it will end, what a run now would do."""

import argparse
import time
from typing import TYPE_CHECKING, Any

from jobs.pace import Curve, expected_end, extended, recent_rate
from jobs.summary import plan_text, reasons_text
from pipeline.config_file import load_config, output_of
from pipeline.errors import PipelineError, StorageError
from pipeline.units import byte_size, counted, duration, money, percent, thousands

if TYPE_CHECKING:
    from pipeline.execution.planning.estimate import PlanSummary
    from pipeline.execution.planning.standing import Published, Standing, Unfinished
    from pipeline.storage.filesystem import Store

FATES = ("embedded", "reused", "quarantined", "deduplicated")

WATCH_SECONDS = 3.0
"""A run journals as often as that."""

PATIENCE_SECONDS = 60.0
"""Of --watch, with a run that has been submitted and still plans."""

SHOWN_SNAPSHOTS = 10


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    import orjson

    from pipeline.storage.filesystem import Store

    store = Store(output_of(options.output, options.overrides).uri)
    standing = _read(store, PATIENCE_SECONDS if options.watch else 0.0)
    if options.watch:
        standing = watch(store, standing, options)
    plan = None if options.watch else _plan_of(options)
    if options.json:
        print(orjson.dumps(facts(store, standing, plan, options.price)).decode())
    elif not options.watch:
        print(status_text(store, standing, options.price, time.time()))
        if plan:
            print(f"a run now: {plan if isinstance(plan, str) else plan_text(plan)}")
    return 0


def _read(store: "Store", patience_seconds: float = 0.0) -> "Standing":
    """Return what stands in an output.

    Args:
        patience_seconds: how long a run that has just been submitted may take to claim it.

    Raises:
        StorageError: nothing does, neither a Snapshot nor a run.
    """
    from pipeline.execution.planning.standing import read_standing

    store.check_reachable()
    deadline = time.monotonic() + patience_seconds
    while not (standing := read_standing(store)).published and not standing.unfinished:
        if time.monotonic() >= deadline:
            raise StorageError(
                f"{store.uri}: no snapshot is published there, and no run works on it yet; check the address, run "
                "`embed` first, or --watch for a run that was just submitted"
            )
        time.sleep(WATCH_SECONDS)
    return standing


def _plan_of(options: argparse.Namespace) -> "PlanSummary | str | None":
    """Return what a run of a config would do now, or why that cannot be said; None without a config."""
    if not options.output.endswith((".yaml", ".yml")):
        return None
    from pipeline.execution.planning.estimate import estimate
    from pipeline.execution.planning.plan import make_plan
    from pipeline.storage.filesystem import Store

    config = load_config(options.output, options.overrides)
    try:
        return estimate(make_plan(config, Store(config.output.uri)))
    except PipelineError as error:
        return f"would fail, {error}"


def watch(store: "Store", standing: "Standing", options: argparse.Namespace) -> "Standing":
    """Show the status again and again on stderr until no run works on the output; return the last one."""
    import sys

    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True)
    if not console.is_terminal:
        while any(run.is_alive for run in standing.unfinished):
            for unfinished in standing.unfinished:
                print("\n".join(_run_lines(unfinished, time.time())), file=sys.stderr, flush=True)
            time.sleep(10 * WATCH_SECONDS)
            standing = _read(store)
        print(status_text(store, standing, options.price, time.time()), file=sys.stderr)
        return standing
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(Text(status_text(store, standing, options.price, time.time())), refresh=True)
            if not any(run.is_alive for run in standing.unfinished):
                return standing
            time.sleep(WATCH_SECONDS)
            standing = _read(store)


def status_text(store: "Store", standing: "Standing", price: float | None, now: float) -> str:
    """Return the published Snapshots as a table, what the newest holds, then the runs that have not ended."""
    published = standing.published
    newest = f", newest {published[-1].snapshot.number}" if published else ""
    lines = [f"{store.uri}: {counted(len(published), 'snapshot')}{newest}"]
    if published:
        lines += _table([_cells(one, price) for one in published[-SHOWN_SNAPSHOTS:]])
        record = published[-1].snapshot.record
        recipe = record.recipe
        lines += [
            f"  recipe      {recipe['model']}, {record.dimension} dimensions, {recipe['compute']}, {recipe['stored']}"
            f" ({record.fingerprint[:12]})",
            "  became      " + ", ".join(f"{thousands(record.totals[fate])} {fate}" for fate in FATES),
            *([f"  quarantine  {reasons_text(published[-1].quarantined)}"] if published[-1].quarantined else []),
            f"  rows in     {published[-1].snapshot.folder}",
        ]
    for unfinished in standing.unfinished:
        lines += _run_lines(unfinished, now)
    return "\n".join(lines)


def _cells(one: "Published", price: float | None) -> tuple[str, ...]:
    record = one.snapshot.record
    cost = cost_of(one, price)
    return (
        str(record.number),
        record.published_at,
        thousands(record.totals["rows"]),
        thousands(record.totals["parts"]),
        byte_size(record.totals["bytes"]),
        record.fingerprint[:12],
        duration(one.seconds) if one.seconds is not None else "–",
        money(cost) if cost is not None else "–",
    )


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Return rows under a heading, columns aligned to the right."""
    heading = ("number", "published", "rows", "Parts", "size", "recipe", "took", "cost")
    cells = [heading, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heading))]
    return ["  " + "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]


def cost_of(one: "Published", price: float | None) -> float | None:
    """Return what the encoders of a run cost at a price per hour; None if price or hours are not known."""
    price = one.price_per_hour if price is None else price
    return None if price is None or one.encoder_hours is None else price * one.encoder_hours


def _run_lines(run: "Unfinished", now: float) -> list[str]:
    """Return how far a run is, how fast, and when it will end; or that nobody works on it."""
    last = run.steps[-1] if run.steps else None
    done = f"{run.shards_done:,} of {counted(run.shards, 'shard')}"
    if last:
        done = f"{percent(last.fraction)}, {thousands(last.rows)} rows, {thousands(last.tokens)} tokens, {done}"
    written = f"{counted(run.parts, 'Part')}, {byte_size(run.bytes_written)} written"
    if not run.is_alive:
        return [
            f"run {run.run_key[:12]} for snapshot {run.number} has ended without publishing; run the same command "
            "to go on",
            f"  done        {done}; {written}",
            *([f"  quarantine  {reasons_text(run.quarantined)}"] if run.quarantined else []),
        ]
    assert run.holder is not None
    lines = [
        f"run {run.run_key[:12]} for snapshot {run.number} works (process {run.holder.pid} on {run.holder.host})",
        f"  done        {done}; {written}",
    ]
    rate, end = pace_of(run, now)
    if rate is not None:
        left = f", {duration(max(0.0, end - now))} left" if end is not None else ""
        lines.append(f"  pace        {thousands(rate)} tokens/s{left}")
    if last:
        lines.append(f"  journalled  {duration(max(0.0, now - last.at_seconds))} ago")
    return [*lines, *([f"  quarantine  {reasons_text(run.quarantined)}"] if run.quarantined else [])]


def pace_of(run: "Unfinished", now: float) -> tuple[float | None, float | None]:
    """Return tokens per second over the recent window, and the moment at which the run will end.

    Args:
        now: on the clock of the store, seconds since the epoch.
    """
    tokens: Curve = ()
    work: Curve = ()
    for step in run.steps:
        tokens = extended(tokens, step.at_seconds, step.tokens)
        work = extended(work, step.at_seconds, step.fraction)
    if not work:
        return None, None
    now = max(now, work[-1][0])
    return recent_rate(tokens, now), expected_end(work, now)


def facts(
    store: "Store", standing: "Standing", plan: "PlanSummary | str | None", price: float | None
) -> dict[str, Any]:
    """Return the status as plain JSON values."""
    now = time.time()
    runs = []
    for run in standing.unfinished:
        rate, end = pace_of(run, now)
        last = run.steps[-1] if run.steps else None
        runs.append(
            {
                "run_key": run.run_key,
                "snapshot": run.number,
                "is_alive": run.is_alive,
                "host": run.holder.host if run.holder else None,
                "shards": run.shards,
                "shards_done": run.shards_done,
                "rows": last.rows if last else 0,
                "tokens": last.tokens if last else 0,
                "fraction": last.fraction if last else 0.0,
                "tokens_per_second": rate,
                "eta_seconds": None if end is None else max(0.0, end - now),
                "quarantined": run.quarantined,
                "bytes_written": run.bytes_written,
            }
        )
    return {
        "output": store.uri,
        "folder": standing.published[-1].snapshot.folder if standing.published else None,
        "snapshots": [_snapshot_facts(one, price) for one in standing.published],
        "runs": runs,
        "plan": {"error": plan} if isinstance(plan, str) else plan,
    }


def _snapshot_facts(one: "Published", price: float | None) -> dict[str, Any]:
    record = one.snapshot.record
    return {
        "number": record.number,
        "published_at": record.published_at,
        "fingerprint": record.fingerprint,
        "totals": record.totals,
        "recipe": record.recipe,
        "seconds": one.seconds,
        "encoder_hours": one.encoder_hours,
        "cost": cost_of(one, price),
        "quarantined": one.quarantined,
    }
