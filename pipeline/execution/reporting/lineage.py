"""The run as others keep track of it: one OpenLineage RunEvent, whose inputs and outputs tell what came from what."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from pipeline.execution.reporting.metrics import RunReport

PRODUCER = "urn:batch-embeddings"
SPEC = "https://openlineage.io/spec"
EVENT_SCHEMA = f"{SPEC}/2-0-2/OpenLineage.json#/$defs/RunEvent"
EVENT_TYPES = {"published": "COMPLETE", "nothing_to_do": "COMPLETE", "failed": "FAIL"}


def run_event(report: RunReport) -> dict[str, Any]:
    """Return the RunEvent that ends a run (OpenLineage 2-0-2): its sources, its output, and how many rows and bytes.

    The run's id follows from its key and the time of its start, so that the same report gives the same event.
    """
    started = datetime.fromisoformat(report.started_at) if report.started_at else datetime.fromtimestamp(0, UTC)
    ended = started + timedelta(seconds=report.seconds.get("total", 0.0))
    namespace, name = _dataset_name(report.output_uri)
    facets: dict[str, Any] = {
        "nominalTime": _facet("NominalTimeRunFacet", "1-0-1", nominalStartTime=started.isoformat()),
    }
    if report.executor == "ray":
        of_ray = {"name": "Ray", "version": report.versions.get("ray", "unknown")}
        facets["processing_engine"] = _facet("ProcessingEngineRunFacet", "1-1-1", **of_ray)
    if report.error:
        message = _facet("ErrorMessageRunFacet", "1-0-1", message=report.error, programmingLanguage="Python")
        facets["errorMessage"] = message
    return {
        "eventType": EVENT_TYPES[report.outcome],
        "eventTime": ended.isoformat(),
        "run": {"runId": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{report.run_key}{report.started_at}")), "facets": facets},
        "job": {"namespace": namespace, "name": name, "facets": {}},
        "inputs": [_input(report, uri) for uri in report.source],
        "outputs": [_output(report)],
        "producer": PRODUCER,
        "schemaURL": EVENT_SCHEMA,
    }


def _input(report: RunReport, uri: str) -> dict[str, Any]:
    namespace, name = _dataset_name(uri)
    source = _facet("DatasourceDatasetFacet", "1-0-1", name=namespace, uri=uri)
    dataset: dict[str, Any] = {"namespace": namespace, "name": name, "facets": {"dataSource": source}}
    if len(report.source) == 1:  # of several addresses only the sum is counted
        counts = {"rowCount": report.rows_read, "size": report.source_bytes, "fileCount": report.source_files}
        dataset["inputFacets"] = {"inputStatistics": _facet("InputStatisticsInputDatasetFacet", "1-0-0", **counts)}
    return dataset


def _output(report: RunReport) -> dict[str, Any]:
    namespace, name = _dataset_name(report.output_uri)
    source = _facet("DatasourceDatasetFacet", "1-0-1", name=namespace, uri=report.folder or report.output_uri)
    facets = {"dataSource": source}
    if report.snapshot is not None:
        facets["version"] = _facet("DatasetVersionDatasetFacet", "1-0-1", datasetVersion=str(report.snapshot))
    written = report.embedded if report.outcome == "published" else 0
    counts = {"rowCount": written, "size": report.bytes_written}
    statistics = _facet("OutputStatisticsOutputDatasetFacet", "1-0-2", **counts)
    return {"namespace": namespace, "name": name, "facets": facets, "outputFacets": {"outputStatistics": statistics}}


def _facet(kind: str, of_version: str, /, **values: Any) -> dict[str, Any]:
    return {"_producer": PRODUCER, "_schemaURL": f"{SPEC}/facets/{of_version}/{kind}.json#/$defs/{kind}"} | values


def _dataset_name(uri: str) -> tuple[str, str]:
    """Return namespace and name as OpenLineage names files: `s3://bucket` and the key, `file` and the path."""
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        return "file", parts.path or uri
    return f"{parts.scheme}://{parts.netloc}", parts.path.strip("/") or "/"
