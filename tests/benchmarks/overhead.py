"""What a whole run costs beside the encoding itself: m3e-small over the reviews, S3 to S3, float32."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from jobs.demo.corpus import write_corpus
from jobs.demo.fetch import fetch_model, fetch_reviews
from jobs.demo.local_s3 import local_s3
from tests.benchmarks.measuring import embed

CONFIG = """\
source: {{uri: "s3://bench/reviews/", keep_columns: [label]}}
recipe: {{model: "{model}", compute: float32}}
output: {{uri: "s3://bench/features-{stamp}/", rows_per_part: 4096}}
runtime: {{without_ray_bytes: 0}}
"""


def measure(folder: Path, rounds: int, rows: int) -> Iterator[dict[str, object]]:
    """Yield one line: seconds of the encoder loop alone, of the whole run, and the median of their ratios."""
    model, reviews = fetch_model(), fetch_reviews().slice(0, rows)
    alone: list[float] = []
    whole: list[float] = []
    start: list[float] = []
    tokens = 0
    with local_s3(folder / "s3") as server:
        os.environ.update(server.environment)
        if not server.filesystem().exists("bench"):
            server.create_bucket("bench")
        write_corpus(reviews, server.filesystem(), "bench/reviews")
        config = folder / "overhead.yaml"
        for repetition in range(rounds):
            alone.append(encode_in_a_child(model, rows))
            stamp = f"{int(time.time())}-{repetition}"
            config.write_text(CONFIG.format(model=model, stamp=stamp), encoding="utf-8")
            run = embed(config)
            whole.append(run.wall_seconds)
            start.append(run.report["seconds"]["start"])
            tokens = run.report["tokens"]
    started = [(run - before) / encode for run, before, encode in zip(whole, start, alone, strict=True)]
    ratios = [run / encode for run, encode in zip(whole, alone, strict=True)]
    yield {
        "benchmark": f"m3e-small float32, {reviews.num_rows:,} reviews, S3 to S3",
        "encode_alone_seconds": round(statistics.median(alone), 1),
        "whole_run_seconds": round(statistics.median(whole), 1),
        "of_it_start_seconds": round(statistics.median(start), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_start_apart": round(statistics.median(started), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "tokens": tokens,
    }


def encode_in_a_child(model: Path, rows: int) -> float:
    """Return the seconds our encoder takes for the first reviews, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.overhead", str(model), str(rows)]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    child = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(json.loads(child.stdout)["seconds"])


def encode_alone(model: Path, texts: pa.Array) -> float:
    """Return the seconds our encoder takes for the texts in this process: tokens in, vectors out, model loaded."""
    from pipeline.encoder.describe import describe_model
    from pipeline.encoder.packed import encode_packed
    from pipeline.encoder.sentence_transformer import SentenceTransformerEncoder
    from pipeline.storage.folder_cache import cache_root, local_folder_identity
    from pipeline.text.tokenizer import TokenizerSpec, load_tokenizer

    cache_file = cache_root() / "descriptions" / f"bench-{local_folder_identity(model)}.json"
    description = describe_model(str(model), cache_file)
    tokenize = load_tokenizer(TokenizerSpec(description.max_tokens, "", description.tokenizer_json))
    tokens, _ = tokenize(texts, description.max_tokens)
    encoder = SentenceTransformerEncoder(str(model), "float32", threads=os.cpu_count() or 1)
    return encode_packed(encoder, tokens, 16384).seconds


if __name__ == "__main__":
    reviews = fetch_reviews().slice(0, int(sys.argv[2]))["text"].combine_chunks()
    print(json.dumps({"seconds": encode_alone(Path(sys.argv[1]), reviews)}))
