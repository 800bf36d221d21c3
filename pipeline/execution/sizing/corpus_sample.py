"""Whole Shards from all over what a run has to read, tokenised: what the rest of it will hold."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.arrow import hash_strings, one_array
from pipeline.config import JobConfig
from pipeline.encoder.describe import ModelDescription
from pipeline.encoder.packed import take
from pipeline.errors import SourceError
from pipeline.execution.planning.plan import Plan, read_columns_of
from pipeline.execution.settings import tokenizer_spec
from pipeline.execution.stages import CountedOpener
from pipeline.records import Block, Shard, TokenBatch
from pipeline.schemas import TEXT
from pipeline.storage.filesystem import Store
from pipeline.storage.readers import read_shard
from pipeline.storage.rows import empty_texts
from pipeline.storage.text_index import open_index
from pipeline.text.chunking import chunk_texts
from pipeline.text.tokenizer import load_tokenizer, with_prompt

SAMPLE_SECONDS = 20.0
"""After so long no new Shard is begun; a corpus that is read whole by then is known and not estimated."""

LEAST_SHARDS = 4
"""Are read however long it takes."""

MOST_ROWS = 32_768
"""Of one Shard: of a giant one its beginning stands for it."""

KEPT_DOCUMENTS = 4096
"""Whose columns are kept, to see how large a Part becomes."""


@dataclass(slots=True)
class Seen:
    """What was read of the Shards of one kind, or is expected of all of them."""

    bytes: float = 0.0
    rows: float = 0.0
    tokens: float = 0.0
    """For the encoders: of texts that are known none, of a repeated one once."""

    def add(self, bytes: float, rows: float, tokens: float) -> None:
        self.bytes, self.rows, self.tokens = self.bytes + bytes, self.rows + rows, self.tokens + tokens


@dataclass(slots=True)
class CorpusSample:
    """Tokenised texts, and all that was seen on the way."""

    tokens: TokenBatch
    """Of the texts that were read, in the order of the Shards and their rows; of repeated ones the first only."""
    shards: int
    shards_read: int
    blocks: int
    vectors: int
    """Texts or chunks, repeated ones included."""
    truncated: int
    repeated: int
    """Texts that stand before among those read."""
    known: int
    """Texts whose vectors the Snapshot before has."""
    quarantined: int
    read_seconds: float
    tokenize_seconds: float
    documents: pa.Table
    """Some documents, without their texts."""
    by_kind: dict[str, Seen] = field(default_factory=dict)
    shares: list[tuple[float, float]] = field(default_factory=list)
    """(bytes, tokens for the encoders) of every Shard that was read."""

    @property
    def is_whole(self) -> bool:
        return self.shards_read == self.shards

    @property
    def repeated_fraction(self) -> float:
        return self.repeated / self.vectors if self.vectors else 0.0


def kind_of(shard: Shard) -> str:
    """Return format and compression, within which Shards hold about as many tokens per byte."""
    file = shard.spans[0].file
    return "".join(PurePosixPath(file.uri).suffixes[-2:]) + file.format


def spread(count: int) -> list[int]:
    """Return 0 … count - 1 in an order of which every beginning is spread over all of them (van der Corput)."""
    bits = max(1, (count - 1).bit_length())
    reversed_ = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(1 << bits))
    return [number for number in reversed_ if number < count]


def read_sample(
    config: JobConfig, plan: Plan, description: ModelDescription, seconds: float = SAMPLE_SECONDS
) -> CorpusSample:
    """Read Shards that a run has to do, spread over all of them, until the time is over.

    Args:
        plan: with the index of known texts, if there are any.

    Raises:
        SourceError: there is no text in them.
    """
    reading = _Reading(config, plan, description)
    deadline = time.monotonic() + seconds
    for done, number in enumerate(spread(len(plan.embed))):
        if done >= LEAST_SHARDS and time.monotonic() > deadline:
            break
        reading.take_in(plan.embed[number])
    sample = reading.sample()
    if not len(sample.tokens):
        where = plan.embed[0].spans[0].file.uri
        raise SourceError(f"{where}: no text in {sample.shards_read} Shards, so nothing can be said of the rest")
    return sample


class _Reading:
    """Takes in one Shard after the other."""

    def __init__(self, config: JobConfig, plan: Plan, description: ModelDescription) -> None:
        self.config, self.plan = config, plan
        self.columns = read_columns_of(plan.layout)
        self.spec = tokenizer_spec(config.recipe, description)
        self.tokenize = load_tokenizer(self.spec)
        self.counts: Counter[str] = Counter()
        self.read_seconds = self.tokenize_seconds = 0.0
        self.by_kind: dict[str, Seen] = defaultdict(Seen)
        self.shares: list[tuple[float, float]] = []
        self.batches: list[TokenBatch] = []
        self.hashes: set[bytes] = set()
        self.index = open_index(Store(plan.known.output_uri), plan.known) if plan.known else None
        self.documents: list[pa.Table] = []

    def take_in(self, shard: Shard) -> None:
        opener, rows, began, is_whole = CountedOpener(), 0, self.counts["tokens"], False
        blocks = read_shard(shard, self.columns, self.config.output.rows_per_part, opener)
        started = time.perf_counter()
        for block in blocks:
            self.read_seconds += time.perf_counter() - started
            rows, is_whole = rows + block.rows_read, block.is_last
            self._count(block)
            if rows >= MOST_ROWS and _can_be_left(shard):
                break
            started = time.perf_counter()
        size = shard.size_bytes * (1.0 if is_whole else _share_of(shard, rows, opener.bytes_read))
        tokens = self.counts["tokens"] - began
        self.by_kind[kind_of(shard)].add(size, rows, tokens)
        self.shares.append((size, tokens))
        self.counts["shards"] += 1

    def _count(self, block: Block) -> None:
        started = time.perf_counter()
        texts = one_array(block.documents[TEXT]).cast(pa.string())
        if self.columns.empty_text == "zero":
            texts = texts.filter(pc.invert(empty_texts(texts)))
        if self.config.recipe.long_text == "chunk":
            texts = chunk_texts(texts, self.spec, self.config.recipe.chunk_overlap_tokens).texts
        sent = with_prompt(texts, self.spec.prompt)
        tokens, truncated_N = self.tokenize(sent, self.spec.max_tokens)
        hashes = hash_strings(sent)
        new_N = self._new(hashes)
        known_N = self.index.find(hashes) >= 0 if self.index else np.zeros(len(hashes), np.bool_)
        self.tokenize_seconds += time.perf_counter() - started
        self.batches.append(take(tokens, np.flatnonzero(new_N)))
        self.counts.update(
            blocks=1,
            vectors=len(texts),
            tokens=int(tokens.lengths_N[new_N & ~known_N].sum()),
            truncated=int(truncated_N.sum()),
            repeated=int(len(texts) - new_N.sum()),
            known=int(known_N.sum()),
            quarantined=block.rows_read - block.documents.num_rows,
        )
        if sum(table.num_rows for table in self.documents) < KEPT_DOCUMENTS:
            self.documents.append(block.documents.drop_columns([TEXT]))

    def _new(self, hashes: pa.Array) -> NDArray[np.bool_]:
        """Return which texts stand here for the first time."""
        firsts = pc.dictionary_encode(hashes)
        _, first_of = np.unique(firsts.indices.to_numpy(), return_index=True)
        new_N = np.zeros(len(hashes), np.bool_)
        candidates = hashes.take(pa.array(first_of)).to_pylist()
        new_N[first_of[[name not in self.hashes for name in candidates]]] = True
        self.hashes.update(candidates)
        return new_N

    def sample(self) -> CorpusSample:
        counts = self.counts
        return CorpusSample(
            tokens=_joined(self.batches),
            shards=len(self.plan.embed),
            shards_read=counts["shards"],
            blocks=counts["blocks"],
            vectors=counts["vectors"],
            truncated=counts["truncated"],
            repeated=counts["repeated"],
            known=counts["known"],
            quarantined=counts["quarantined"],
            read_seconds=self.read_seconds,
            tokenize_seconds=self.tokenize_seconds,
            documents=pa.concat_tables(self.documents).slice(0, KEPT_DOCUMENTS) if self.documents else pa.table({}),
            by_kind=dict(self.by_kind),
            shares=self.shares,
        )


def _can_be_left(shard: Shard) -> bool:
    """Whether it can be told how much of a Shard its beginning is."""
    return all(span.rows is not None or span.file.format != "parquet" for span in shard.spans)


def _share_of(shard: Shard, rows: int, bytes_read: int) -> float:
    """Return which share of a Shard was read: by the rows of its footers, of line files by the bytes."""
    total = sum(span.rows or 0 for span in shard.spans)
    return min(1.0, rows / total if total else bytes_read / shard.size_bytes)


def _joined(batches: Sequence[TokenBatch]) -> TokenBatch:
    lengths_N = np.concatenate([batch.lengths_N for batch in batches] or [np.empty(0, np.int64)])
    ids_T = np.concatenate([batch.token_ids_T for batch in batches] or [np.empty(0, np.int32)])
    return TokenBatch(ids_T, np.concatenate(([0], np.cumsum(lengths_N))))


def expected(sample: CorpusSample, shards: Iterable[Shard]) -> Seen:
    """Return bytes, rows and tokens of Shards, if those of each kind are like those of it that were read."""
    per_kind: dict[str, float] = defaultdict(float)
    for shard in shards:
        per_kind[kind_of(shard)] += shard.size_bytes
    whole = Seen()
    for kind, size in per_kind.items():
        seen = seen_like(sample.by_kind, kind)
        whole.add(size, size * seen.rows / seen.bytes, size * seen.tokens / seen.bytes)
    return whole


def seen_like(by_kind: Mapping[str, Seen], kind: str) -> Seen:
    """Return what was seen of a kind, or of all if nothing of it was read."""
    if kind in by_kind and by_kind[kind].bytes:
        return by_kind[kind]
    every = Seen()
    for seen in by_kind.values():
        every.add(seen.bytes, seen.rows, seen.tokens)
    return every


def relative_error(sample: CorpusSample) -> float:
    """Return the half width of the 95 % interval of the tokens, as a share of them; 0 if all was read.

    The estimate is a ratio (tokens per byte) over a simple random sample of Shards without replacement (Cochran 1977,
    6.13); the difference between kinds is counted as if it were chance, so it is rather too wide.
    """
    if sample.is_whole or len(sample.shares) < 2:
        return 0.0 if sample.is_whole else 1.0
    sizes_S, tokens_S = np.array(sample.shares, np.float64).T
    ratio, count = tokens_S.sum() / sizes_S.sum(), len(sizes_S)
    residuals_S = tokens_S - ratio * sizes_S
    unread = 1.0 - sample.shards_read / sample.shards
    error = np.sqrt(unread * (residuals_S**2).sum() / (count - 1) / count) / sizes_S.mean()
    return float(1.96 * error / ratio) if ratio else 1.0
