"""The four stages a Block passes through, each a thin adapter between Ray Data and pure functions.

A Ray Data row is a whole Block: its tables travel as Arrow IPC, so that schemas arrive as they were sent and one call
of a stage is exactly one Block, whatever Ray would make of its size.
"""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, BinaryIO, NoReturn

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.arrow import hash_strings, one_array
from pipeline.encoder.packed import Encoded, encode_or_zero, only, take
from pipeline.encoder.protocol import Encoder
from pipeline.encoder.vectors import finish, to_stored
from pipeline.errors import PipelineError, SickDevice, SourceError
from pipeline.execution.attempts import Attempts, Marks, Verdict, marked, replace_process
from pipeline.execution.isolated import IsolatedEncoder, survivors
from pipeline.execution.metrics import TOKEN_BUCKETS
from pipeline.execution.model import ModelReference, open_encoder
from pipeline.isolation import ProcessDied
from pipeline.records import Block, BlockReceipt, Part, Reason, Shard, SourceFile, TokenBatch
from pipeline.schemas import BYTE_OFFSET, ROW, SPAN, SPANS_PER_SHARD, TEXT, TOKEN_IDS, rows_counted
from pipeline.storage.filesystem import Store, open_source
from pipeline.storage.parquet import PartName, publish_part
from pipeline.storage.partitions import split_by_partition
from pipeline.storage.readers import ReadColumns, read_shard
from pipeline.storage.rows import Bad, Entry, empty_texts, quarantine_of
from pipeline.text.chunking import chunk_texts
from pipeline.text.tokenizer import Tokenizer, TokenizerSpec, load_tokenizer, with_prompt


@dataclass(frozen=True, slots=True)
class StageSettings:
    """Plain values, the same for every Block of a run; holds no credential."""

    columns: ReadColumns
    rows_per_part: int
    tokenizer: TokenizerSpec
    chunk_overlap_tokens: int | None
    """None = long texts are truncated."""
    model: ModelReference
    compute: str
    threads: int
    batch_tokens: int
    dimensions: int | None
    normalize: bool
    stored: str
    output_uri: str
    snapshot_folder: str
    partition_by: tuple[str, ...]
    part_schema: pa.Schema
    metadata: dict[str, Any]
    event_time: pa.Scalar
    """First run that saw the text, where the source has no time of its own."""
    attempts: Marks = field(default_factory=Attempts)
    """Where workers mark what they begin and end."""


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
        counted = CountedOpener()
        blocks = read_shard(shard, settings.columns, settings.rows_per_part, counted, frozenset(done))
        for number in itertools.count():
            with marked(settings.attempts, "read", shard, number) as verdict:
                _check_readable(shard, verdict)
                block = next(blocks, None)
            if block is None:
                break
            block = _without_dropped(block, dropped)
            yield to_row(shard, replace(block, metrics=block.metrics | {"source_bytes": counted.taken()}))


def _check_readable(shard: Shard, verdict: Verdict) -> None:
    if verdict.is_deadly:
        uris = ", ".join(span.file.uri for span in shard.spans[:3])
        raise SourceError(
            f"reading {uris} has killed {verdict.deaths} workers; leave the file out or write it again, and look for "
            "what ended them (want of memory, for instance)"
        )


def _without_dropped(block: Block, dropped: list[int]) -> Block:
    """Return the Block without the documents at these positions; how many there were goes along with it."""
    if not dropped:
        return block
    stays = pc.invert(pc.is_in(_positions(block.documents), value_set=pa.array(dropped, pa.int64())))
    documents = block.documents.filter(stays)
    left_out = float(block.documents.num_rows - documents.num_rows)
    return replace(block, documents=documents, metrics=block.metrics | {"deduplicated": left_out})


def tokenize_blocks(batch: pa.Table, settings: StageSettings) -> Iterator[pa.Table]:
    """Cut long texts if asked to, and add token ids, token counts and text hashes."""
    for shard, block in from_rows(batch):
        started = time.perf_counter()
        with marked(settings.attempts, "tokenize", shard, block.number) as verdict:
            if verdict.is_deadly:
                block = tokenize_survivors(shard, block, settings)
            else:
                block = replace(block, documents=tokenize_documents(block.documents, settings))
        metrics = block.metrics | _token_metrics(block.documents)
        metrics["tokenize_seconds"] = time.perf_counter() - started
        yield to_row(shard, replace(block, metrics=metrics))


def tokenize_survivors(shard: Shard, block: Block, settings: StageSettings) -> Block:
    """Tokenise a Block that has killed its workers; the rows that do it go to quarantine."""
    build = partial(_tokenizing, replace(settings, attempts=Attempts()))
    tables, deadly = survivors(block.documents, build)
    documents = pa.concat_tables([*tables, tokenize_documents(block.documents.slice(0, 0), settings)])
    if len(deadly):
        error = "tokenising this text alone ends its process"
        block = _quarantined(shard, block, block.documents.take(pa.array(deadly)), Reason.KILLS_PROCESS, error)
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
    tokens, truncated_N = _tokenizer(spec)(sent, spec.max_tokens)
    if settings.columns.empty_text == "zero":
        is_sent_N = np.ones(len(texts), np.bool_)
        is_sent_N[empty_texts(texts)] = False
        tokens, truncated_N = only(tokens, is_sent_N), truncated_N & is_sent_N
    ids = pa.ListArray.from_arrays(pa.array(tokens.offsets_N1, pa.int32()), pa.array(tokens.token_ids_T))
    return (
        documents.append_column("tokens", pa.array(tokens.lengths_N, pa.int32()))
        .append_column("truncated", pa.array(truncated_N))
        .append_column("text_hash", hash_strings(sent))
        .append_column(TOKEN_IDS, ids)
    )


@lru_cache(maxsize=1)
def _tokenizer(spec: TokenizerSpec) -> Tokenizer:
    return load_tokenizer(spec)


def _token_metrics(documents: pa.Table) -> dict[str, float]:
    tokens_N = documents["tokens"].to_numpy()
    buckets = np.bincount(np.searchsorted(TOKEN_BUCKETS, tokens_N), minlength=len(TOKEN_BUCKETS) + 1)
    return {
        "tokens": float(tokens_N.sum()),
        "truncated": float(pc.sum(documents["truncated"]).as_py() or 0),
        **{f"tokens_bucket_{bucket}": float(rows) for bucket, rows in enumerate(buckets)},
    }


class EncodeBlocks:
    """The encoder actor: holds the model and gives every Block its vectors."""

    def __init__(self, settings: StageSettings) -> None:
        self.settings, self.batch_tokens = settings, settings.batch_tokens
        self.witness: TokenBatch | None = None
        """A text that this process has encoded."""
        spec = settings
        self._open = partial(open_encoder, spec.model, spec.compute, spec.tokenizer.prompt, spec.threads)
        self.encoder = self._opened()

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for shard, block in from_rows(batch):
            yield to_row(shard, self.encode(shard, block))

    def encode(self, shard: Shard, block: Block) -> Block:
        """Return the Block with its vector column(s); rows without a finite vector go to quarantine.

        Raises:
            SickDevice: the device fails on good texts, as it did for others on this node; where it is the first to
                fail so, its process ends to be replaced.
        """
        ids = one_array(block.documents[TOKEN_IDS])
        tokens = TokenBatch(ids.values.to_numpy(), ids.offsets.to_numpy().astype(np.int64))
        try:
            with marked(self.settings.attempts, "encode", shard, block.number) as verdict:
                self.batch_tokens = min(self.batch_tokens, verdict.batch_tokens or self.batch_tokens)
                encoded = self._encode_isolated(tokens) if verdict.is_deadly else self._encode(self.encoder, tokens)
        except SickDevice as error:
            self._give_up(error)
        block = replace(block, metrics=block.metrics | {"isolated": float(verdict.is_deadly)})
        return self._with_vectors(shard, block, encoded)

    def _encode(self, encoder: Encoder, tokens: TokenBatch) -> Encoded:
        encoded = encode_or_zero(encoder, tokens, self.batch_tokens, self.witness)
        if encoded.safe_batch_tokens:
            self.batch_tokens = max(encoded.safe_batch_tokens, self.settings.tokenizer.max_tokens)
            self.settings.attempts.lower(self.batch_tokens)
        passed = np.flatnonzero(encoded.done_N & (tokens.lengths_N > 0))
        if self.witness is None and len(passed):
            self.witness = take(tokens, passed[-1:])
        return encoded

    def _encode_isolated(self, tokens: TokenBatch) -> Encoded:
        """Encode a Block that has killed encoders in a child process; the device is free for it meanwhile."""
        isolated = IsolatedEncoder(self.encoder, self._open)
        self.encoder.close()
        try:
            return self._encode(isolated, tokens)
        finally:
            isolated.close()
            self.encoder = self._opened()

    def _opened(self) -> Encoder:
        try:
            return self._open()
        except PipelineError:
            raise
        except Exception as error:  # noqa: BLE001  what a sick device raises is anybody's guess
            place = " ".join(str(error).split())[:300]
            self._give_up(SickDevice(f"the model cannot be loaded on its device: {type(error).__name__}: {place}"))

    def _give_up(self, error: SickDevice) -> NoReturn:
        """Leave the work to a fresh process, or end the round if this node has failed too often."""
        if self.settings.attempts.strike(str(error)):
            replace_process()
        raise error

    def _with_vectors(self, shard: Shard, block: Block, encoded: Encoded) -> Block:
        settings, documents = self.settings, block.documents.drop_columns([TOKEN_IDS])
        vectors_ND = finish(encoded.vectors_ND, settings.dimensions, settings.normalize)
        if not encoded.done_N.all():
            block, good_N = _without_vectors(shard, block, documents, encoded.done_N, encoded.failures)
            documents, vectors_ND = documents.filter(pa.array(good_N)), vectors_ND[good_N]
        names = ["embedding", "scale"] if settings.stored == "int8" else ["embedding"]
        for name, column in zip(names, to_stored(vectors_ND, settings.stored), strict=True):
            documents = documents.append_column(name, column)
        now = pa.scalar(time.time_ns() // 1000, pa.timestamp("us", tz="UTC"))
        documents = documents.append_column("created_timestamp", pa.repeat(now, documents.num_rows))
        metrics = block.metrics | {
            "padded_tokens": float(encoded.padded_tokens),
            "encode_seconds": encoded.seconds,
            "emulated_compute": float(self.encoder.emulates),
            "safe_batch_tokens": float(encoded.safe_batch_tokens or 0),
        }
        return replace(block, documents=documents, metrics=metrics)


def _without_vectors(
    shard: Shard, block: Block, documents: pa.Table, good_N: NDArray[np.bool_], failures: dict[int, str]
) -> tuple[Block, NDArray[np.bool_]]:
    """Quarantine the documents of which a row has no vector, all their chunks with them; return who is left."""
    positions = one_array(_positions(documents))

    def documents_of(rows: Iterable[int]) -> pa.Array:
        return pc.is_in(positions, value_set=positions.take(pa.array(list(rows), pa.int64())))

    killed = documents_of(row for row, name in failures.items() if name == ProcessDied.__name__)
    raised = pc.and_not(documents_of(failures), killed)
    bad = documents_of(np.flatnonzero(~good_N))
    not_finite = pc.and_not(bad, pc.or_(raised, killed))
    names = ", ".join(sorted(set(failures.values())))
    for rows, reason, error in (
        (killed, Reason.KILLS_PROCESS, "encoding this text alone ends its process"),
        (raised, Reason.ENCODE_FAILED, f"the forward pass raises even for this text alone: {names}"),
        (not_finite, Reason.NOT_FINITE, "the model gave NaN or an infinity"),
    ):
        if pc.any(rows).as_py():
            block = _quarantined(shard, block, documents.filter(rows), reason, error)
    return block, np.logical_not(bad.to_numpy(zero_copy_only=False))


def write_blocks(batch: pa.Table, settings: StageSettings) -> Iterator[pa.Table]:
    """Publish the Parts of each Block and return its receipt, as JSON; no vector goes to the driver."""
    store = _store(settings.output_uri)
    for shard, block in from_rows(batch):
        started = time.perf_counter()
        with marked(settings.attempts, "write", shard, block.number):
            receipt = write_block(store, shard, block, settings)
        receipt.metrics["write_seconds"] = time.perf_counter() - started
        yield pa.table({"receipt": pa.array([orjson.dumps(receipt.to_json())], pa.binary())})


@lru_cache(maxsize=1)
def _store(uri: str) -> Store:
    return Store(uri)


def write_block(store: Store, shard: Shard, block: Block, settings: StageSettings) -> BlockReceipt:
    """Publish one Part per partition of a Block, and one of its quarantined rows if there are any."""
    sources = [[span.file.uri, span.file.version, span.position] for span in shard.spans]
    metadata = settings.metadata | {"sources": sources}
    parts: list[Part] = []
    documents_read = len(pc.unique(_positions(block.documents)))
    for partition, rows in split_by_partition(block.documents, settings.partition_by):
        documents = block.documents.take(rows) if settings.partition_by else block.documents
        if partition is None:
            columns = ", ".join(settings.partition_by)
            block = _quarantined(shard, block, documents, Reason.PARTITION_VALUE, f"{columns}: cannot name a folder")
            documents_read -= len(pc.unique(_positions(documents)))
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
        dict(block.metrics),
        dict(reasons),
        int(block.metrics.get("deduplicated", 0)),
        block.quarantine.num_rows,
    )


def _positions(documents: pa.Table) -> pa.Array:
    """Return one number per row that is equal for the chunks of one document only."""
    row, span = documents[ROW].cast(pa.int64()), documents[SPAN].cast(pa.int64())
    return pc.add(pc.multiply(row, pa.scalar(SPANS_PER_SHARD, pa.int64())), span)


def _part_table(documents: pa.Table, settings: StageSettings) -> pa.Table:
    times = pa.repeat(settings.event_time, documents.num_rows)
    return (
        documents.append_column("event_timestamp", times).select(settings.part_schema.names).cast(settings.part_schema)
    )


def _quarantined(shard: Shard, block: Block, documents: pa.Table, reason: Reason, error: str) -> Block:
    """Return the Block with these documents added to its quarantine (chunks count once, by their first)."""
    if "chunk" in documents.column_names:
        documents = documents.filter(pc.equal(documents["chunk"], 0))
    why = Bad(reason, error)
    columns = (documents[name] for name in (SPAN, ROW, BYTE_OFFSET, "id", TEXT))
    entries = [
        Entry(shard.spans[span].file.uri, row, byte_offset, str(id), text.encode(), why)
        for span, row, byte_offset, id, text in zip(*(column.to_pylist() for column in columns), strict=True)
    ]
    added = pa.Table.from_batches([quarantine_of(entries)])
    return replace(block, quarantine=pa.concat_tables([block.quarantine, added]))


def to_row(shard: Shard, block: Block) -> pa.Table:
    """Return a Block as one Ray Data row."""
    head = {"number": block.number, "rows_read": block.rows_read, "is_last": block.is_last, "metrics": block.metrics}
    return pa.table(
        {
            "shard": pa.array([orjson.dumps(shard.to_json())], pa.binary()),
            "head": pa.array([orjson.dumps(head)], pa.binary()),
            "documents": _to_ipc(block.documents),
            "quarantine": _to_ipc(block.quarantine),
        }
    )


def from_rows(batch: pa.Table) -> Iterator[tuple[Shard, Block]]:
    """Yield the Blocks of Ray Data rows; their tables are views of the row's memory."""
    for row in range(batch.num_rows):
        shard = Shard.from_json(orjson.loads(batch["shard"][row].as_py()))
        head = orjson.loads(batch["head"][row].as_py())
        documents, quarantine = (
            pa.ipc.open_stream(batch[name][row].as_buffer()).read_all() for name in ("documents", "quarantine")
        )
        yield shard, Block(shard.shard_id, documents=documents, quarantine=quarantine, **head)


def _to_ipc(table: pa.Table) -> pa.Array:
    """Return a table as one large_binary value, without copying what is serialised."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue()
    offsets = pa.py_buffer(np.array([0, content.size], np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, content])
