"""`demo`: the whole job on this machine, with nothing faked: real S3 server, real model, real reviews."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import s3fs

from jobs.demo.corpus import write_corpus
from jobs.demo.fetch import fetch_model, fetch_reviews
from jobs.demo.local_s3 import LocalS3, local_s3
from pipeline.arrow import vectors_of

CONFIG = Path(__file__).parents[2] / "configs" / "demo.yaml"
BUCKET, CORPUS, MODEL, OUTPUT = "demo", "demo/reviews", "demo/models/m3e-small", "s3://demo/features/reviews"
QUERIES, NEIGHBOURS = 3, 3
SHOWN_CHARACTERS = 60


def run(options: argparse.Namespace) -> int:
    """Run the command; return the exit code of `embed`."""
    folder = Path(options.folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    out = sys.stderr if options.json else sys.stdout
    _say(out, "1/4 fetching the model m3e-small and the reviews (89 + 38 MB the first time)")
    model, reviews = fetch_model(), fetch_reviews().slice(0, options.rows)
    _say(out, "2/4 starting an S3 server on this machine")
    with local_s3(folder / "s3") as server:
        os.environ.update(server.environment)
        _say(out, f"3/4 uploading {reviews.num_rows:,} reviews and the model to {server.endpoint_url}")
        upload(server.filesystem(), model, reviews)
        command = [sys.executable, "-m", "jobs", "embed", str(CONFIG), *(["--json"] if options.json else [])]
        _say(out, f"4/4 python -m jobs embed configs/{CONFIG.name}\n")
        code = subprocess.run(command, check=False).returncode
        if code == 0:
            _show_neighbours(reviews, out)
            _keep_report(server, folder / "report.html", out)
    return code


def _say(out: object, text: str) -> None:
    print(text, file=out, flush=True)  # type: ignore[call-overload]


def upload(filesystem: s3fs.S3FileSystem, model: Path, reviews: pa.Table) -> None:
    """Put corpus and model where the config expects them, unless an earlier demo has."""
    if not filesystem.exists(BUCKET):
        filesystem.call_s3("create_bucket", Bucket=BUCKET)
    marker = f"{BUCKET}/uploaded-{reviews.num_rows}"
    if filesystem.exists(marker):
        return
    if filesystem.exists(CORPUS):
        filesystem.rm(CORPUS, recursive=True)
    write_corpus(reviews, filesystem, CORPUS)
    for path in sorted(model.rglob("*")):
        if path.is_file():
            filesystem.put_file(str(path), f"{MODEL}/{path.relative_to(model).as_posix()}")
    filesystem.pipe_file(marker, b"")


def _show_neighbours(reviews: pa.Table, out: object) -> None:
    """Print a few reviews and those whose vectors are nearest to theirs."""
    from pipeline import open_snapshot

    rows = open_snapshot(OUTPUT).to_table(columns=["id", "label", "embedding"]).sort_by("id")
    vectors_ND = vectors_of(rows["embedding"])
    texts = dict(zip(reviews["id"].to_pylist(), reviews["text"].to_pylist(), strict=True))
    ids, labels = rows["id"].to_pylist(), rows["label"].to_pylist()
    _say(out, "\nNearest neighbours, straight from the Parquet files:")
    lengths_N = np.array([len(texts[id]) for id in ids])
    medium = np.flatnonzero((lengths_N > 15) & (lengths_N < SHOWN_CHARACTERS))
    for query in medium[np.linspace(0, len(medium) - 1, QUERIES + 2, dtype=int)[1:-1]]:
        cosine_N = vectors_ND @ vectors_ND[query]
        _say(out, f"\n  {labels[query]}   {texts[ids[query]]}")
        for row in np.argsort(-cosine_N, kind="stable")[: NEIGHBOURS + 1]:
            if row != query:
                text = texts[ids[row]]
                short = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
                _say(out, f"   {cosine_N[row]:.3f}  {labels[row]}  {short}")


def _keep_report(server: LocalS3, path: Path, out: object) -> None:
    """Copy the report page out of the server, which ends with the demo."""
    from pipeline import open_snapshot

    key = f"{OUTPUT}/reports/{open_snapshot(OUTPUT).record.run_key}.html"
    path.write_bytes(server.filesystem().cat_file(key.removeprefix("s3://")))
    _say(out, f"\nreport page: {path}")
