"""`report`: the page about the newest run of an output: where it lies, in a browser, or drawn anew with texts."""

import argparse
import tempfile
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config_file import output_of
from pipeline.errors import StorageError

if TYPE_CHECKING:
    from pipeline.storage.filesystem import Store

DRAWN_TO = "report.html"
"""Where a page that is drawn anew goes unless --to says otherwise."""


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code."""
    import orjson

    from pipeline.storage.filesystem import Store

    store = Store(output_of(options.output, options.overrides).uri)
    store.check_reachable()
    run_key = _newest(store)
    if options.with_texts or options.to:
        path = Path(options.to or DRAWN_TO)
        path.write_text(drawn_anew(store, run_key, options.with_texts), "utf-8")
        place, local = str(path.resolve()), path.resolve()
    else:
        place, local = store.uri_of(f"reports/{run_key}.html"), None
    if options.open:
        webbrowser.open((local or _fetched(store, run_key)).as_uri())
    print(orjson.dumps({"run_key": run_key, "page": place}).decode() if options.json else place)
    return 0


def _newest(store: "Store") -> str:
    """Return the key of the run whose report was written last.

    Raises:
        StorageError: there is none.
    """
    reports = {key: stat for key, stat in store.files("reports").items() if key.endswith(".json")}
    if not reports:
        raise StorageError(f"{store.uri}: no run has left a report there; check the address, or run `embed` first")
    newest = max(reports, key=lambda key: reports[key].modified_at)
    return newest.removeprefix("reports/").removesuffix(".json")


def drawn_anew(store: "Store", run_key: str, with_texts: bool) -> str:
    """Return the page of a run, from its JSON, its snapshot and, for texts, the source.

    Raises:
        SourceError: texts are asked for, and the source no longer holds them.
    """
    import orjson

    from pipeline.execution.reporting.metrics import RunReport
    from pipeline.execution.reporting.report import render_html
    from pipeline.execution.reporting.vector_map import nearest_texts, read_vectors, vector_map
    from pipeline.storage.snapshots import load_snapshot

    report = RunReport.from_json(orjson.loads(store.read(f"reports/{run_key}.json") or b"{}"))
    snapshot = None if report.snapshot is None or report.outcome == "failed" else load_snapshot(store, report.snapshot)
    sample = read_vectors(snapshot) if snapshot else None
    if sample is None:
        return render_html(report)
    return render_html(report, vector_map(sample), nearest_texts(sample) if with_texts else ())


def _fetched(store: "Store", run_key: str) -> Path:
    """Return a local file with the page of a run: the page itself if it lies on this machine."""
    content = store.read(f"reports/{run_key}.html")
    if content is None:
        content = drawn_anew(store, run_key, with_texts=False).encode()
    place = Path(store.path_of(f"reports/{run_key}.html"))
    if store.uri_of("").startswith("/") and place.is_file():
        return place
    path = Path(tempfile.mkdtemp(prefix="report-")) / f"{run_key}.html"
    path.write_bytes(content)
    return path
