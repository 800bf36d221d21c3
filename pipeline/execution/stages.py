"""The stages a Block passes through besides encoding, each a thin adapter between Ray Data and pure functions."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from typing import BinaryIO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.arrow import hash_strings, one_array
from pipeline.execution.attempts import Attempts, marked
from pipeline.execution.encode_stage import EncodeBlocks
from pipeline.execution.isolated import in_halves, survivors
from pipeline.execution.reuse import find_known, with_stored
from pipeline.execution.stage_settings import StageSettings
from pipeline.execution.telemetry import tell_block
from pipeline.execution.travelling import from_rows, positions, quarantined, to_row
from pipeline.records import Block, BlockReceipt, Part, Reason, Shard, SourceFile, TokenBatch
from pipeline.schemas import FATE, TEXT, TOKEN_IDS, rows_counted
from pipeline.storage.filesystem import Store, open_source
from pipeline.storage.isolated_reader import isolated_rows
from pipeline.storage.known import Fate
from pipeline.storage.parquet import PartName, publish_part
from pipeline.storage.partitions import split_by_partition
from pipeline.storage.readers import read_shard
from pipeline.storage.rows import empty_texts
from pipeline.text.chunking import chunk_texts
from pipeline.text.tokenizer import Tokenizer, TokenizerSpec, load_tokenizer, with_prompt

__all__ = [
    "EncodeBlocks",
    "StageSettings",
    "read_blocks",
    "tokenize_blocks",
    "tokenize_documents",
    "write_block",
    "write_blocks",
]


class CountedOpener:
    """Opens source files and counts the bytes that are read from them, for the progress bar."""

    def __init__(self) -> None:
        self.bytes_read = 0

    @contextmanager
    def __call__(self, file: SourceFile) -> Iterator[BinaryIO]:
        with open_source(file) as stream:
            read = stream.read

            def counted(size: int = -1, /) -> bytes:
                content = read(size)
                self.bytes_read += len(content)
                return content

            stream.read = counted  # type: ignore[method-assign]
            yield stream

    def taken(self) -> float:
        """Return the bytes read since this was last asked."""
        count, self.bytes_read = self.bytes_read, 0
        return float(count)


def read_blocks(batch: pa.Table, settings: StageSettings) -> Iterator[pa.Table]:
    """Read Shards, Block by Block; input: one row per Shard, its JSON, the Blocks that need no work, rows to leave."""
    columns = (batch[name].to_pylist() for name in ("shard", "done_blocks", "dropped"))
    for shard_json, done, dropped in zip(*columns, strict=True):
        shard = Shard.from_json(orjson.loads(shard_json))
        counted, done_blocks = CountedOpener(), frozenset(done)
        asked = (shard, settings.columns, settings.rows_per_part)
        blocks, is_isolated = read_shard(*asked, counted, done_blocks), False
        for number in (number for number in itertools.count() if number not in done_blocks):
            with marked(settings.attempts, "read", shard, number) as verdict:
                if verdict.is_deadly and not is_isolated:
                    skipped = done_blocks | frozenset(range(number))
                    blocks, is_isolated = read_shard(*asked, open_source, skipped, rows_of=isolated_rows), True
                block = next(blocks, None)
            if block is None:
                break
            block = _without_dropped(block, np.frombuffer(dropped, np.int64))
            noted = {"source_bytes": counted.taken(), "isolated": float(is_isolated)}
            yield to_row(shard, replace(block, metrics=block.metrics | noted))


def _without_dropped(block: Block, dropped_R: NDArray[np.int64]) -> Block:
    """Return the Block without the documents at these positions, ascending; how many there were goes along with it."""
    if not len(dropped_R) or not block.documents.num_rows:
        return block
    positions_N = one_array(positions(block.documents)).to_numpy()
    nearest_N = np.minimum(np.searchsorted(dropped_R, positions_N), len(dropped_R) - 1)
    documents = block.documents.filter(pa.array(dropped_R[nearest_N] != positions_N))
    left_out = float(block.documents.num_rows - documents.num_rows)
    return replace(block, documents=documents, metrics=block.metrics | {"deduplicated": left_out})


def tokenize_blocks(batch: pa.Table, settings: StageSettings) -> Iterator[pa.Table]:
    """Cut long texts if asked to, and add token ids, token counts and text hashes."""
    for shard, block in from_rows(batch):
        started = time.perf_counter()
        with marked(settings.attempts, "tokenize", shard, block.number) as verdict:
            block = (tokenize_survivors if verdict.is_deadly else tokenize)(shard, block, settings)
        metrics = block.metrics | {"tokenize_seconds": time.perf_counter() - started}
        yield to_row(shard, replace(block, metrics=metrics))


def tokenize(shard: Shard, block: Block, settings: StageSettings) -> Block:
    """Tokenise a Block; rows on which the tokenizer fails go to quarantine."""
    tables, failed = in_halves(block.documents, partial(tokenize_documents, settings=settings), Exception)
    if len(failed):
        error = "the tokenizer fails on this text alone"
        block = quarantined(shard, block, block.documents.take(pa.array(failed)), Reason.TOKENIZE_FAILED, error)
    return replace(block, documents=pa.concat_tables(tables))


def tokenize_survivors(shard: Shard, block: Block, settings: StageSettings) -> Block:
    """Tokenise a Block that has killed its workers; the rows that do it go to quarantine."""
    build = partial(_tokenizing, replace(settings, attempts=Attempts(), ledger=None))
    tables, deadly = survivors(block.documents, build)
    documents = pa.concat_tables(tables)
    if len(deadly):
        error = "tokenising this text alone ends its process"
        block = quarantined(shard, block, block.documents.take(pa.array(deadly)), Reason.KILLS_PROCESS, error)
    return replace(block, documents=documents, metrics=block.metrics | {"isolated": 1.0})


def _tokenizing(settings: StageSettings) -> Callable[[pa.Table], pa.Table]:
    return partial(tokenize_documents, settings=settings)


def tokenize_documents(documents: pa.Table, settings: StageSettings) -> pa.Table:
    """Return the documents (or their chunks) with `tokens`, `truncated`, `text_hash` and the ids themselves."""
    spec = settings.tokenizer
    texts = one_array(documents[TEXT])
    if settings.chunk_overlap_tokens is not None:
        chunks = chunk_texts(texts, spec, settings.chunk_overlap_tokens)
        documents = documents.take(pa.array(chunks.document_M)).drop_columns([TEXT]).append_column(TEXT, chunks.texts)
        for name, values in (
            ("chunk", chunks.number_M),
            ("char_start", chunks.char_start_M),
            ("char_end", chunks.char_end_M),
        ):
            documents = documents.append_column(name, pa.array(values))
        texts = chunks.texts
    sent = with_prompt(texts, spec.prompt)
    hashes = hash_strings(sent)
    is_sent_N = np.ones(len(texts), np.bool_)
    if settings.columns.empty_text == "zero":
        is_sent_N[empty_texts(texts)] = False
    found = find_known(hashes, documents, is_sent_N, settings)
    is_known_N = found.fate_N == Fate.KNOWN
    tokens, truncated_N = _tokenized(sent, is_sent_N & ~is_known_N, spec)
    counts_N = tokens.lengths_N
    if found.stored.num_rows:
        counts_N[is_known_N] = found.stored["tokens"].to_numpy()
        truncated_N[is_known_N] = found.stored["truncated"].to_numpy()
    ids = pa.ListArray.from_arrays(pa.array(tokens.offsets_N1, pa.int32()), pa.array(tokens.token_ids_T))
    documents = (
        documents.append_column("tokens", pa.array(counts_N, pa.int32()))
        .append_column("truncated", pa.array(truncated_N))
        .append_column("text_hash", hashes)
        .append_column(TOKEN_IDS, ids)
    )
    return with_stored(documents, found, settings)


def _tokenized(
    sent: pa.Array, is_asked_N: NDArray[np.bool_], spec: TokenizerSpec
) -> tuple[TokenBatch, NDArray[np.bool_]]:
    """Return the tokens of N texts and which were cut; those not asked for have none."""
    asked, is_cut_M = _tokenizer(spec)(sent.filter(pa.array(is_asked_N)), spec.max_tokens)
    lengths_N, truncated_N = np.zeros(len(sent), np.int64), np.zeros(len(sent), np.bool_)
    lengths_N[is_asked_N], truncated_N[is_asked_N] = asked.lengths_N, is_cut_M
    return TokenBatch(asked.token_ids_T, np.concatenate(([0], np.cumsum(lengths_N)))), truncated_N


@lru_cache(maxsize=1)
def _tokenizer(spec: TokenizerSpec) -> Tokenizer:
    return load_tokenizer(spec)


def write_blocks(batch: pa.Table, settings: StageSettings) -> Iterator[pa.Table]:
    """Publish the Parts of each Block and return its receipt, as JSON; no vector goes to the driver."""
    store = _store(settings.output_uri)
    for shard, block in from_rows(batch):
        started = time.perf_counter()
        with marked(settings.attempts, "write", shard, block.number):
            receipt = write_block(store, shard, block, settings)
        receipt.metrics["write_seconds"] = time.perf_counter() - started
        tell_block(receipt, settings.output_uri)
        yield pa.table({"receipt": pa.array([orjson.dumps(receipt.to_json())], pa.binary())})


@lru_cache(maxsize=1)
def _store(uri: str) -> Store:
    return Store(uri)


def write_block(store: Store, shard: Shard, block: Block, settings: StageSettings) -> BlockReceipt:
    """Publish one Part per partition of a Block, and one of its quarantined rows if there are any."""
    sources = [[span.file.uri, span.file.version, span.position] for span in shard.spans]
    metadata = settings.metadata | {"sources": sources}
    parts: list[Part] = []
    documents_read, encoded = _documents(block.documents)
    for partition, rows in split_by_partition(block.documents, settings.partition_by):
        documents = block.documents.take(rows) if settings.partition_by else block.documents
        if partition is None:
            columns = ", ".join(settings.partition_by)
            block = quarantined(shard, block, documents, Reason.PARTITION_VALUE, f"{columns}: cannot name a folder")
            left_out, left_out_encoded = _documents(documents)
            documents_read, encoded = documents_read - left_out, encoded - left_out_encoded
        elif documents.num_rows:
            name = PartName("embeddings", settings.snapshot_folder, partition, shard.shard_id, block.number)
            parts.append(publish_part(store, name, _part_table(documents, settings), metadata))
    if block.quarantine.num_rows:
        name = PartName("quarantine", settings.snapshot_folder, "", shard.shard_id, block.number)
        parts.append(publish_part(store, name, block.quarantine, metadata))
    counted = rows_counted(block.quarantine)
    reasons: Counter[str] = Counter()
    for why, rows_of_it in zip(block.quarantine["reason"].to_pylist(), counted.to_pylist(), strict=True):
        reasons[why] += rows_of_it
    return BlockReceipt(
        shard.shard_id,
        block.number,
        block.is_last,
        block.rows_read,
        documents_read,
        reasons.total(),
        tuple(parts),
        block.metrics | {"reused": float(documents_read - encoded)},
        dict(reasons),
        int(block.metrics.get("deduplicated", 0)),
        block.quarantine.num_rows,
        _first_bad(block.quarantine),
    )


def _first_bad(quarantine: pa.Table) -> str | None:
    """Return file and row of the first entry."""
    return f"{quarantine['source_uri'][0].as_py()}:{quarantine['row'][0].as_py()}" if quarantine.num_rows else None


def _documents(rows: pa.Table) -> tuple[int, int]:
    """Return how many documents these rows are of, and of how many a row was encoded in this run."""
    is_encoded = pc.not_equal(rows[FATE], Fate.KNOWN)
    return len(pc.unique(positions(rows))), len(pc.unique(positions(rows.filter(is_encoded))))


def _part_table(documents: pa.Table, settings: StageSettings) -> pa.Table:
    return documents.select(settings.part_schema.names).cast(settings.part_schema)
