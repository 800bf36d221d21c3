"""`plan`: say what a run would do; with --estimate, from a sample and a measurement, what it would take and cost."""

import argparse
from typing import TYPE_CHECKING

from jobs.embed import show_plan
from jobs.summary import aligned, plan_text
from pipeline.config_file import load_config
from pipeline.units import byte_size, counted, duration, money, percent, thousands

if TYPE_CHECKING:
    from pipeline.execution.sizing.forecast import Forecast


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    config = load_config(options.config, options.overrides)
    if not options.estimate:
        return show_plan(config, options.json)
    import orjson

    from pipeline.execution.planning.estimate import estimate, keep_forecast
    from pipeline.execution.planning.plan import make_plan
    from pipeline.execution.sizing.forecast import forecast
    from pipeline.storage.filesystem import Store

    store = Store(config.output.uri)
    plan = make_plan(config, store)
    summary = estimate(plan)
    made = forecast(config, plan, options.tokens_per_second, options.price) if plan.embed else None
    kept = keep_forecast(store, made.run_key, made.to_json()) if made else ""
    if options.json:
        print(orjson.dumps(summary | {"estimate": made.to_json() if made else None}).decode())
    else:
        print(plan_text(summary))
        if made:
            print(forecast_text(made, config.output.rows_per_part, config.runtime.batch_tokens))
            print(f"  kept as     {kept}")
    return 0


def forecast_text(made: "Forecast", rows_per_part: int, batch_tokens: int) -> str:
    """Return an estimate in aligned lines.

    Args:
        rows_per_part: of the config, as `batch_tokens`.
    """
    of = "all of" if made.shards_read == made.shards else f"{made.shards_read:,} of"
    known = "" if not made.tokens_error else f" ± {percent(made.tokens_error)}"
    how = "measured here" if made.is_measured else "as given"
    repeated = "at least " if made.shards_read < made.shards and made.repeated_fraction else ""
    taken = f"{percent(made.known_fraction)} known, " if made.known_fraction else ""
    phases = ", ".join(f"{name} {duration(spent)}" for name, spent in made.seconds.items() if spent and name != "total")
    where = " ".join(filter(None, [made.device, made.engine]))
    lines = {
        "sample": f"{of} {counted(made.shards, 'shard')} to embed, read and tokenised",
        "tokens": f"{thousands(made.tokens)}{known} of {thousands(made.rows)} rows",
        "texts": f"{taken}{percent(made.truncated_fraction)} truncated, {repeated}"
        f"{percent(made.repeated_fraction)} repeated, {percent(made.quarantined_fraction)} without a vector",
        "output": f"{byte_size(made.output_bytes)} of Parts",
        "pace": f"{thousands(made.tokens_per_second)} tokens/s an encoder, {how} ({where}), "
        f"{percent(made.padding_fraction)} padding",
        "time": f"{duration(made.seconds['total'])} on {counted(made.encoders, 'encoder')} ({phases})",
        "encoders": f"{made.encoder_hours:.3g} hours" + ("" if made.cost is None else f", cost {money(made.cost)}"),
        "cores": f"{made.cores_per_encoder:.1f} for an encoder on a GPU" if made.cores_per_encoder else "",
        "better": "; ".join(_changes(made, rows_per_part, batch_tokens)) or "rows_per_part and batch_tokens are good",
        "note": "; ".join(made.notes),
    }
    return "\n".join(aligned(lines))


def _changes(made: "Forecast", rows_per_part: int, batch_tokens: int) -> list[str]:
    """Return the lines of the config that the measurement would have otherwise."""
    found = (
        ("output.rows_per_part", made.rows_per_part, rows_per_part),
        ("runtime.batch_tokens", made.batch_tokens, batch_tokens),
    )
    return [f"{key}={value} instead of {own}" for key, value, own in found if value != own]
