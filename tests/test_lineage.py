"""The OpenLineage event of a run: valid by the specification's own requirements, and true."""

import uuid
from dataclasses import replace
from datetime import datetime
from typing import Any

import jsonschema
import pytest

from pipeline.execution.reporting.lineage import run_event
from pipeline.execution.reporting.metrics import RunReport
from tests.example_report import example_report

URI = {"type": "string", "pattern": "^[a-z][a-z0-9+.-]*:"}
FACETS = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "required": ["_producer", "_schemaURL"],
        "properties": {"_producer": URI, "_schemaURL": URI},
    },
}
DATASET = {
    "type": "object",
    "required": ["namespace", "name"],
    "properties": {
        "namespace": {"type": "string"},
        "name": {"type": "string"},
        "facets": FACETS,
        "inputFacets": FACETS,
        "outputFacets": FACETS,
    },
}
RUN_EVENT: dict[str, Any] = {
    "type": "object",
    "required": ["eventTime", "producer", "schemaURL", "run", "job"],
    "properties": {
        "eventType": {"enum": ["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]},
        "eventTime": {"type": "string"},
        "producer": URI,
        "schemaURL": URI,
        "run": {"type": "object", "required": ["runId"], "properties": {"runId": {"type": "string"}, "facets": FACETS}},
        "job": {"type": "object", "required": ["namespace", "name"], "properties": {"facets": FACETS}},
        "inputs": {"type": "array", "items": DATASET},
        "outputs": {"type": "array", "items": DATASET},
    },
    "additionalProperties": False,
}
"""What OpenLineage 2-0-2 requires of a RunEvent, its runs, jobs, data sets and facets."""


@pytest.mark.parametrize(
    "report",
    [
        example_report(),
        RunReport(
            "nothing_to_do", "/data/out", source=["/data/in"], snapshot=3, started_at="2026-10-14T02:00:07+00:00"
        ),
        RunReport("failed", "s3://features/x", source=["s3://a/b", "gs://c/d"], error="The bucket does not exist."),
    ],
    ids=["published", "nothing to do", "failed before it began"],
)
def test_every_event_has_what_the_specification_requires(report: RunReport) -> None:
    event = run_event(report)
    jsonschema.validate(event, RUN_EVENT)
    assert str(uuid.UUID(event["run"]["runId"])) == event["run"]["runId"]
    assert datetime.fromisoformat(event["eventTime"]).tzinfo is not None


def test_inputs_and_outputs_are_named_as_openlineage_names_files() -> None:
    event = run_event(replace(example_report(), source=["s3://corpus/reviews/", "/data/more"]))
    assert [(one["namespace"], one["name"]) for one in event["inputs"]] == [
        ("s3://corpus", "reviews"),
        ("file", "/data/more"),
    ]
    (output,) = event["outputs"]
    assert (output["namespace"], output["name"]) == ("s3://features", "reviews")
    assert output["facets"]["version"]["datasetVersion"] == "42"


def test_the_end_of_a_run_is_told_with_its_counts() -> None:
    event = run_event(example_report())
    assert event["eventType"] == "COMPLETE"
    assert event["eventTime"] == "2026-10-14T02:00:52.400000+00:00"
    assert event["inputs"][0]["inputFacets"]["inputStatistics"]["rowCount"] == 8000
    assert event["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 7240
    failed = run_event(replace(example_report(), outcome="failed", error="No room."))
    assert failed["eventType"] == "FAIL"
    assert failed["run"]["facets"]["errorMessage"]["message"] == "No room."


def test_ray_is_named_where_it_ran_the_stages_and_only_there() -> None:
    facets = run_event(example_report())["run"]["facets"]
    assert facets["processing_engine"]["name"] == "Ray"
    assert "processing_engine" not in run_event(replace(example_report(), executor="process"))["run"]["facets"]


def test_two_runs_have_two_ids_and_one_report_has_one() -> None:
    first, later = example_report(), replace(example_report(), started_at="2026-10-15T02:00:07+00:00")
    assert run_event(first)["run"] == run_event(first)["run"]
    assert run_event(first)["run"]["runId"] != run_event(later)["run"]["runId"]
