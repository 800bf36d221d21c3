"""What a run takes around its encoding: as the last one of its output, or as one of a few rows that is really made."""

import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import orjson

from pipeline.config import JobConfig, Output, Source
from pipeline.errors import PipelineError
from pipeline.execution.executors.choice import needs_ray
from pipeline.execution.planning.plan import Plan, looks_for_repeats
from pipeline.execution.sizing.corpus_sample import CorpusSample, Seen
from pipeline.isolation import Isolated, ProcessDied

START_SECONDS = 12.0
"""From the start of Ray to the first Block where it was not measured: Ray, its workers, a small model (2026-11, two
cores: 11 to 12 s)."""

LOOK_SECONDS = 4.0
"""What a look for repeated texts takes beyond the reading (2026-11, two cores)."""

ASSUMED = "the start of a run was not measured on the machine that will run it"

ROWS = 8
FILE = "texts.jsonl"


def seconds_around(config: JobConfig, plan: Plan, is_here: bool) -> tuple[dict[str, float], list[str]]:
    """Return the seconds before the first Block and after the last, and a note where they are only assumed.

    The last run on this output tells them; without one a run of a few rows is made.

    Args:
        is_here: this machine, and no cluster's, will run it.
    """
    if spent := _last_seconds(plan):
        return _start_and_finish(spent), []
    if is_here and not (config.runtime.ray_address or os.environ.get("RAY_ADDRESS")):
        with suppress(PipelineError, ProcessDied):  # for instance: the config is for GPUs, and there are none here
            return _measured(config, needs_ray(config, plan)), []
    return {"start": START_SECONDS, "finish": 0.0}, [ASSUMED]


def look_seconds(config: JobConfig, plan: Plan, sample: CorpusSample, whole: Seen) -> float:
    """Return how long a run looks for repeated texts: as the last one did, or by what was read."""
    if spent := _last_seconds(plan):
        return spent.get("look through", 0.0)
    if not looks_for_repeats(config, plan):
        return 0.0
    reading = sample.read_seconds * whole.bytes / sum(seen.bytes for seen in sample.by_kind.values())
    return LOOK_SECONDS + reading / len(os.sched_getaffinity(0))


def _last_seconds(plan: Plan) -> dict[str, float]:
    """Return what the last run on this output took, by phase; nothing where it has encoded nothing."""
    if plan.parent is None:
        return {}
    report = orjson.loads(plan.parent.store.read(f"reports/{plan.parent.record.run_key}.json") or b"{}")
    seconds: dict[str, float] = report.get("seconds", {})
    return seconds if "start" in seconds else {}


def _start_and_finish(report_seconds: Mapping[str, float]) -> dict[str, float]:
    """Return what the report of a run says of its `start`, and of its `finish`: publishing, and leaving Ray."""
    spent = {"start": report_seconds["start"]}
    return spent | {"finish": sum(report_seconds.get(name, 0.0) for name in ("publish", "stop"))}


def _measured(config: JobConfig, is_on_ray: bool) -> dict[str, float]:
    """Make a run with this recipe and runtime over a few rows in a local folder; return what it took around them.

    Args:
        is_on_ray: whether that of the config will be, which has more to do.

    Raises:
        PipelineError: it failed, as the run itself would.
        ProcessDied: its process did.
    """
    with tempfile.TemporaryDirectory(prefix="start-") as folder:
        rows = [orjson.dumps({"id": row, "text": f"text {row}"}) + b"\n" for row in range(ROWS)]
        Path(folder, FILE).write_bytes(b"".join(rows))
        executor = {"without_ray_bytes": 0} if is_on_ray else {}
        small = JobConfig(
            source=Source(uri=(f"{folder}/{FILE}",)),
            recipe=config.recipe,
            output=Output(uri=f"{folder}/out"),
            runtime=config.runtime.model_copy(update=executor),
        )
        child = Isolated(_runner)
        try:
            return _start_and_finish(child(small))
        finally:
            child.close()


def _runner() -> Callable[[JobConfig], dict[str, float]]:
    return _seconds_of


def _seconds_of(config: JobConfig) -> dict[str, float]:
    from pipeline.execution.run import run

    return run(config, lambda _: None).seconds
