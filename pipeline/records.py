"""The nouns of a run: SourceFile, Shard, Block, Part, and what is said of them."""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

FileFormat = Literal["parquet", "jsonl", "csv", "text"]


class Reason(StrEnum):
    """Why a row stands in quarantine; the list is closed so that counts can be compared between runs."""

    NULL_TEXT = "null_text"
    EMPTY_TEXT = "empty_text"
    MISSING_ID = "missing_id"
    MISSING_COLUMN = "missing_column"
    WRONG_TYPE = "wrong_type"
    INVALID_UTF8 = "invalid_utf8"
    INVALID_UNICODE = "invalid_unicode"
    INVALID_JSON = "invalid_json"
    NOT_AN_OBJECT = "not_an_object"
    INVALID_CSV = "invalid_csv"
    LINE_TOO_LONG = "line_too_long"
    PARTITION_VALUE = "partition_value"
    UNREADABLE_FILE = "unreadable_file"
    UNREADABLE_STRETCH = "unreadable_stretch"
    AMBIGUOUS_COLUMN = "ambiguous_column"
    NOT_FINITE = "not_finite"
    TOKENIZE_FAILED = "tokenize_failed"
    ENCODE_FAILED = "encode_failed"
    KILLS_PROCESS = "kills_process"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One input file at one version."""

    uri: str
    """Where it lies, with its scheme; a local file is a plain absolute path."""
    version: str
    """ETag without quotes; for local files `<size>-<mtime in ns>`."""
    size_bytes: int
    format: FileFormat


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of one SourceFile: all of it, or consecutive row groups of a Parquet file."""

    file: SourceFile
    first_row_group: int | None = None
    """None = the whole file."""
    row_groups: int | None = None
    rows: int | None = None
    """Rows by the file's own footer, where the plan has read it; None = unknown until read."""
    stretch_bytes: int | None = None
    """Bytes of these row groups; None = all of the file."""

    @property
    def position(self) -> str:
        """`all` or `g<first>+<count>`: the part of the Shard's name that says which stretch it is."""
        return "all" if self.first_row_group is None else f"g{self.first_row_group}+{self.row_groups}"


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of planning and retry: one Span, or several small neighbouring files."""

    shard_id: str
    spans: tuple[Span, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the source it stands for."""
        return sum(span.file.size_bytes if span.stretch_bytes is None else span.stretch_bytes for span in self.spans)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> "Shard":
        spans = tuple(Span(**{**span, "file": SourceFile(**span["file"])}) for span in value["spans"])
        return Shard(value["shard_id"], spans)


@dataclass(frozen=True, slots=True)
class Block:
    """At most `output.rows_per_part` consecutive rows of a Shard; what travels through Ray."""

    shard_id: str
    number: int
    """0, 1, 2 … within the Shard."""
    rows_read: int
    """Source rows this Block stands for: its documents plus its quarantined rows, stretches by what they count."""
    is_last: bool
    """True on the Shard's last Block; every Shard has exactly one, be it empty."""
    documents: pa.Table
    """`schemas.document_schema`, growing by columns from stage to stage."""
    quarantine: pa.Table
    """`schemas.QUARANTINE`."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Seconds per stage (`read_seconds`, …) and counters (`tokens`, `padded_tokens`, …)."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Token ids of N texts, flat: row i is `token_ids_T[offsets_N1[i]:offsets_N1[i + 1]]`."""

    token_ids_T: NDArray[np.int32]
    offsets_N1: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets_N1) - 1

    @property
    def lengths_N(self) -> NDArray[np.int64]:
        """Tokens per row, special tokens included."""
        return np.diff(self.offsets_N1)


@dataclass(frozen=True, slots=True)
class Part:
    """One immutable Parquet file: of embeddings, or (kind `quarantine`) of rows that have none."""

    kind: Literal["embeddings", "quarantine"]
    path: str
    """Below the snapshot's folder: `[label=pos/]<shard_id>-<block>.parquet`."""
    shard_id: str
    block: int
    rows: int
    size_bytes: int
    etag: str
    file_hash: str
    """128 bits of SHA-256 over the file, by which a changed byte is found."""
    content_hash: str
    """Of the rows without their vectors: equal for two writers of the same Block, whatever the device."""


@dataclass(frozen=True, slots=True)
class BlockReceipt:
    """What the driver learns when a Block is written; what the Journal keeps of it."""

    shard_id: str
    block: int
    is_last: bool
    rows_read: int
    embedded: int
    quarantined: int
    parts: tuple[Part, ...]
    metrics: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)
    """Quarantined rows by Reason."""
    deduplicated: int = 0
    """Rows left out because their id stands before them in the plan (`duplicate_ids: keep_first`)."""
    entries: int | None = None
    """Lines of the quarantine Part: fewer than `quarantined` where one stands for a stretch; None = as many."""
    first_bad: str | None = None
    """File and row of the first of its quarantined rows: `<uri>:<row>`."""

    @property
    def quarantine_lines(self) -> int:
        return self.quarantined if self.entries is None else self.entries

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> "BlockReceipt":
        return BlockReceipt(**{**value, "parts": tuple(Part(**part) for part in value["parts"])})
