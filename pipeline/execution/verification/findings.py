"""What `verify` has looked at, and what it found to be wrong."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

MAX_LISTED = 100
"""Findings of one check that are listed one by one; beyond that only counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    check: str
    """missing, size, content, stray, rows, place, recipe, duplicate_id, width, not_finite, norm, zero, source, text,
    vector or sample."""
    path: str
    """The file, below the output; for the whole of a snapshot its folder, for a source its address."""
    detail: str
    row: int | None = None
    """Row of the file, from 0."""


@dataclass(frozen=True, slots=True)
class Recount:
    """The source, counted again."""

    shards: int = 0
    rows: int = 0
    not_compared: int = 0
    """Shards whose source was changed since, is gone or cannot be read."""
    why: str = ""
    """The first reason."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows whose texts were found again in the source and encoded again in float32."""

    rows: int = 0
    not_compared: int = 0
    """Rows whose source was changed since, is gone or cannot be read."""
    why: str = ""
    """The first reason."""
    min_cosine: float | None = None
    mean_cosine: float | None = None
    expected: float = 0.0
    """The least cosine that the recipe's number types explain."""


@dataclass(slots=True)
class Verification:
    """What was looked at, and what was found."""

    snapshot: int
    parts: int = 0
    rows: int = 0
    ids_are_unique: bool | None = None
    """None if the snapshot was published with `duplicate_ids: allow`."""
    findings: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    recount: Recount = Recount()
    sample: Sample | None = None

    @property
    def is_sound(self) -> bool:
        return not self.counts

    def add(self, finding: Finding) -> None:
        """Take in a finding."""
        self.counts[finding.check] += 1
        if self.counts[finding.check] <= MAX_LISTED:
            self.findings.append(finding)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self) | {"is_sound": self.is_sound, "counts": dict(self.counts)}
