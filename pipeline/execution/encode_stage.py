"""The encoder actor, and what it does about a model that fails, a device that is sick and a text that kills."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.arrow import one_array
from pipeline.encoder.engines import TRIAL_AFTER_SECONDS, engines_to_try, fastest, first_engine
from pipeline.encoder.packed import Encoded, bearable_batch_tokens, encode_or_zero, take
from pipeline.encoder.protocol import Encoder, Overlapping
from pipeline.encoder.vectors import finish, to_stored
from pipeline.errors import PipelineError, SickDevice, in_a_line
from pipeline.execution.attempts import marked, replace_process
from pipeline.execution.canary_gate import check_encoder
from pipeline.execution.isolated import IsolatedEncoder
from pipeline.execution.joined_encoder import joined
from pipeline.execution.lending import Borrower
from pipeline.execution.planning.model import open_encoder
from pipeline.execution.reporting.metrics import TOKEN_BUCKETS
from pipeline.execution.reuse import Texts, counts_of, texts_of, with_vectors
from pipeline.execution.stage_settings import StageSettings
from pipeline.execution.telemetry import BusyGauge
from pipeline.execution.travelling import from_rows, positions, quarantined, to_row
from pipeline.isolation import ProcessDied
from pipeline.records import Block, Reason, Shard, TokenBatch
from pipeline.schemas import TOKEN_IDS

TRIAL_TEXTS = 2048


CALLS_AT_ONCE = 2
"""Of an encoder actor: while one Block is on the device, the one before it is put in its columns and sent on."""


class EncodeBlocks:
    """The encoder actor: holds the model and gives every Block its vectors."""

    def __init__(self, settings: StageSettings) -> None:
        self.settings, self.batch_tokens = settings, settings.batch_tokens
        self.witness: TokenBatch | None = None
        """A text that this process has encoded."""
        self._open = self._opening(first_engine(settings.engine, settings.compute))
        self._early = settings.early_encoder
        self._device = ThreadPoolExecutor(1, "device")
        """The thread that alone meets the model: what libraries keep per thread is made once."""
        self._encoder = self._device.submit(self._opened).result() if settings.has_new_texts else None
        self.borrower = Borrower(settings.ledger) if settings.ledger else None
        has_choice = settings.model.kind != "hashing" and settings.compute != "int8"
        self.may_try_engines = settings.engine == "auto" and has_choice
        self.encoded_seconds = 0.0
        self.busy = BusyGauge(settings.output_uri)

    @property
    def encoder(self) -> Encoder:
        """The model, loaded now if it was not yet."""
        if self._encoder is None:
            self._encoder = self._opened()
        return self._encoder

    @encoder.setter
    def encoder(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for shard, block in from_rows(batch):
            yield to_row(shard, self.encode(shard, block))

    def encode(self, shard: Shard, block: Block) -> Block:
        """Return the Block with its vector column(s); rows without a finite vector go to quarantine.

        Of several callers at once the device serves one after the other; around it they do not wait for each other.

        Raises:
            SickDevice: the device fails on good texts, as it did for others on this node; where it is the first to
                fail so, its process ends to be replaced.
        """
        ids, texts = one_array(block.documents[TOKEN_IDS]), texts_of(block.documents)
        tokens = TokenBatch(ids.values.to_numpy(), ids.offsets.to_numpy().astype(np.int64))
        if len(texts.rows_M) < len(tokens):
            tokens = take(tokens, texts.rows_M)
        block, encoded = self._device.submit(self._on_device, shard, block, texts, tokens).result()
        return self._with_vectors(shard, block, texts, encoded)

    def _on_device(self, shard: Shard, block: Block, texts: Texts, tokens: TokenBatch) -> tuple[Block, Encoded]:
        """Return the vectors of the M texts of a Block, and the Block with what they have cost."""
        try:
            with marked(self.settings.attempts, "encode", shard, block.number) as verdict:
                self.batch_tokens = min(self.batch_tokens, verdict.batch_tokens or self.batch_tokens)
                encode = self._encode_isolated if verdict.is_deadly else self._encode_here
                if self.borrower:
                    hashes = block.documents["text_hash"].take(pa.array(texts.rows_M))
                    encoded, borrowed_M = self.borrower.encode(hashes, tokens, encode, verdict.is_deadly)
                else:
                    encoded, borrowed_M = encode(tokens), np.zeros(len(tokens), np.bool_)
        except SickDevice as error:
            self._give_up(error)
        self.busy.tell(encoded.seconds)
        if self.may_try_engines:
            self._try_engines(tokens, encoded)
        metrics = _token_metrics(tokens.lengths_N[~borrowed_M])
        metrics |= counts_of(block.documents, texts, tokens.lengths_N, borrowed_M)
        metrics["retries"] = block.metrics.get("retries", 0.0) + min(verdict.deaths, 1)
        if verdict.is_deadly:
            metrics["isolated"] = 1.0
        metrics["emulated_compute"] = float(self._encoder is not None and self._encoder.emulates)
        return replace(block, metrics=block.metrics | metrics), encoded

    def _encode_here(self, tokens: TokenBatch) -> Encoded:
        if not len(tokens.token_ids_T):  # all of the Block is known, or empty: no reason to load a model
            vectors_ND = np.zeros((len(tokens), self.settings.model_dimension), np.float32)
            return Encoded(vectors_ND, np.ones(len(tokens), np.bool_))
        return self._encode(self.encoder, tokens)

    def _encode(self, encoder: Encoder, tokens: TokenBatch) -> Encoded:
        encoded = encode_or_zero(encoder, tokens, self.batch_tokens, self.witness)
        if encoded.safe_batch_tokens:
            self._lower(max(encoded.safe_batch_tokens, self.settings.tokenizer.max_tokens))
        passed = np.flatnonzero(encoded.done_N & (tokens.lengths_N > 0))
        if self.witness is None and len(passed):
            self.settings.attempts.forgive()
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

    def _opening(self, engine: str) -> Callable[[], Encoder]:
        spec = self.settings
        device = "cpu" if spec.threads else "auto"  # Ray 2.60 shows all GPUs of a node to who has reserved none
        return partial(open_encoder, spec.model, spec.compute, spec.tokenizer.prompt, spec.threads, engine, device)

    def _try_engines(self, tokens: TokenBatch, encoded: Encoded) -> None:
        """Go on with the fastest engine of the device, once this encoder has worked long and has long to go.

        Args:
            tokens: texts just encoded; those that have a vector are what engines are tried on.
        """
        self.encoded_seconds += encoded.seconds
        good = np.flatnonzero(encoded.done_N & (tokens.lengths_N > 0))[:TRIAL_TEXTS]
        if self.encoded_seconds < TRIAL_AFTER_SECONDS or not len(good):
            return
        if not self.settings.attempts.begin_trial():
            return
        names = engines_to_try(self.settings.compute, is_cpu=self.encoder.device == "cpu")
        others = {name: self._opening(name) for name in names}
        self.encoder, choice = fastest("torch", self.encoder, others, take(tokens, good), self.batch_tokens)
        self._open, self.may_try_engines = self._opening(choice.engine), False
        if choice.engine != "torch":
            self._check(self.encoder)
        self.settings.attempts.end_trial(choice)

    def _check(self, encoder: Encoder) -> None:
        if self.settings.canary:
            check_encoder(self.settings.canary, encoder, self.batch_tokens, self.settings.dimensions)

    def _lower(self, batch_tokens: int) -> None:
        self.batch_tokens = batch_tokens
        self.settings.attempts.lower(batch_tokens)

    def _opened(self) -> Encoder:
        try:
            early, self._early = self._early, None
            encoder = (joined(early) if early else None) or self._open()
            if isinstance(encoder, Overlapping):
                self.settings.attempts.note_attention(str(encoder.attention))
            if encoder.device != "cpu":  # want of memory shows now, and not where the longest texts stand
                longest = self.settings.tokenizer.max_tokens
                bearable = bearable_batch_tokens(encoder, self.batch_tokens, longest)
                if bearable < self.batch_tokens:
                    self._lower(bearable)
            self._check(encoder)
            return encoder
        except PipelineError:
            raise
        except Exception as error:  # noqa: BLE001  what a sick device raises is anybody's guess
            place = in_a_line(error, 300)
            self._give_up(SickDevice(f"the model cannot be loaded on its device: {type(error).__name__}: {place}"))

    def _give_up(self, error: SickDevice) -> NoReturn:
        """Leave the work to a fresh process, or end the round if this node has failed too often."""
        if self.settings.attempts.strike(str(error)):
            replace_process()
        raise error

    def _with_vectors(self, shard: Shard, block: Block, texts: Texts, encoded: Encoded) -> Block:
        settings, documents, text_N = self.settings, block.documents.drop_columns([TOKEN_IDS]), texts.text_N
        vectors_MD = finish(encoded.vectors_ND, settings.dimensions, settings.normalize)
        if not encoded.done_N.all():
            failed_N = np.flatnonzero(np.isin(text_N, list(encoded.failures))).tolist()
            failures = {row: encoded.failures[int(text_N[row])] for row in failed_N}
            block, good_N = _without_vectors(shard, block, documents, texts.spread(encoded.done_N), failures)
            documents, text_N = documents.filter(pa.array(good_N)), text_N[good_N]
            vectors_MD = vectors_MD[encoded.done_N]
        names = ["embedding", "scale"] if settings.stored == "int8" else ["embedding"]
        now = pa.scalar(time.time_ns() // 1000, pa.timestamp("us", tz="UTC"))
        new = dict(zip(names, to_stored(vectors_MD, settings.stored), strict=True))
        for name, time_of_it in (("created_timestamp", now), ("event_timestamp", settings.event_time)):
            new[name] = pa.repeat(time_of_it, len(vectors_MD))
        documents = with_vectors(documents, text_N, encoded.done_N, pa.table(new))
        lowered = self.batch_tokens if self.batch_tokens < settings.batch_tokens else 0
        metrics = block.metrics | {
            "padded_tokens": float(encoded.padded_tokens),
            "encode_seconds": encoded.seconds,
            "batches": float(encoded.batches),
            "batch_splits": float(encoded.splits),
            "safe_batch_tokens": float(lowered or encoded.safe_batch_tokens or 0),
        }
        return replace(block, documents=documents, metrics=metrics)


def _token_metrics(lengths_M: NDArray[np.int64]) -> dict[str, float]:
    """Return the tokens of the texts that are encoded, and their histogram; empty texts have none."""
    sent_M = lengths_M[lengths_M > 0]
    buckets = np.bincount(np.searchsorted(TOKEN_BUCKETS, sent_M), minlength=len(TOKEN_BUCKETS) + 1)
    counts = {f"tokens_bucket_{bucket}": float(rows) for bucket, rows in enumerate(buckets)}
    return {"tokens": float(sent_M.sum()), **counts}


def _without_vectors(
    shard: Shard, block: Block, documents: pa.Table, good_N: NDArray[np.bool_], failures: dict[int, str]
) -> tuple[Block, NDArray[np.bool_]]:
    """Quarantine the documents of which a row has no vector, all their chunks with them; return who is left."""
    places = one_array(positions(documents))

    def documents_of(rows: Iterable[int]) -> pa.Array:
        return pc.is_in(places, value_set=places.take(pa.array(list(rows), pa.int64())))

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
            block = quarantined(shard, block, documents.filter(rows), reason, error)
    return block, np.logical_not(bad.to_numpy(zero_copy_only=False))
