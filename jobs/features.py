"""`features`: make a table of vectors per entity and time of what is published, for training and for Feast."""

import argparse
from typing import TYPE_CHECKING

from pipeline.config_file import load_config
from pipeline.units import byte_size, counted, duration, thousands

if TYPE_CHECKING:
    from pipeline.execution.feature_tables.feature_plan import FeaturePlan
    from pipeline.execution.feature_tables.feature_table import FeatureRun


EMPTY = "no document has both a key and a time, the table is empty; look at features.entity and features.event_time"


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    import orjson

    from pipeline.execution.feature_tables.feature_plan import plan_features
    from pipeline.execution.feature_tables.feature_table import make_features

    config = load_config(options.config, options.overrides)
    if options.dry_run:
        plan = plan_features(config)
        print(orjson.dumps(plan_facts(plan)).decode() if options.json else plan_text(plan))
        return 0
    result = make_features(config)
    print(orjson.dumps(features_facts(result)).decode() if options.json else features_text(result))
    return 0


def plan_facts(plan: "FeaturePlan") -> dict[str, object]:
    """Return what a machine reads of a dry run."""
    snapshot = plan.origin.snapshot
    outcome = "nothing to do" if plan.is_done else "would publish"
    return {"outcome": outcome, "number": plan.number, "snapshot": snapshot.number, "rows": snapshot.totals["rows"]}


def plan_text(plan: "FeaturePlan") -> str:
    """Return what a person reads of a dry run."""
    if plan.is_done:
        return f"Feature table {plan.number - 1} stands; nothing to do"
    snapshot = plan.origin.snapshot
    made_of = f"{thousands(snapshot.totals['rows'])} rows of snapshot {snapshot.number} of {snapshot.store.uri}"
    return f"Feature table {plan.number} would be made of {made_of}; columns {', '.join(plan.origin.schema.names)}"


def features_facts(result: "FeatureRun") -> dict[str, object]:
    """Return what a machine reads."""
    table = result.table
    return {
        "outcome": "published" if result.is_new else "nothing to do",
        "number": table.record.number,
        "folder": table.folder,
        "snapshot": table.record.snapshot,
        "totals": table.record.totals,
        "transform": table.record.transform,
        "feature_view": table.store.uri_of("feature_view.py"),
        "seconds": round(result.seconds, 3),
    }


def features_text(result: "FeatureRun") -> str:
    """Return what a person reads: where the rows are, how many, and what became of the documents."""
    from pipeline.storage.feature_tables import transform_path

    table, record = result.table, result.table.record
    totals, settings = record.totals, record.settings
    came = f"published in {duration(result.seconds)}" if result.is_new else "stands; nothing to do"
    window = f", mean of {settings['window_days']:g} days" if settings["aggregate"] == "mean" else ""
    left_out = f"{thousands(totals['superseded'])} superseded + {thousands(totals['unkeyed'])} without key or time"
    return "\n".join(
        [
            f"Feature table {record.number} {came}",
            f"  snapshot    {record.snapshot['number']} of {record.snapshot['output']}",
            f"  documents   {thousands(totals['documents'])} = {thousands(totals['rows'])} rows + {left_out}",
            *([f"  warning     {EMPTY}"] if totals["documents"] and not totals["rows"] else []),
            f"  entity      {', '.join(settings['entity'])}, as of {settings['event_time']}{window}",
            *([f"  fit         {table.store.uri_of(transform_path(record.transform))}"] if record.transform else []),
            f"  folder      {table.folder} ({counted(len(record.files), 'file')}, {byte_size(totals['bytes'])})",
            f"  Feast       {table.store.uri_of('feature_view.py')}",
        ]
    )
