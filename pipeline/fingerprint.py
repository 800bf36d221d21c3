"""One way to name things by their content: 128 bits of SHA-256 over canonical JSON."""

import hashlib
import json
from collections.abc import Mapping, Sequence

JsonValue = None | bool | int | float | str | Sequence["JsonValue"] | Mapping[str, "JsonValue"]


def fingerprint(value: JsonValue) -> str:
    """Return 32 hex characters that depend on the value only, not on key order, platform or version.

    Raises:
        ValueError: the value holds NaN or an infinity, which JSON cannot say.
    """
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def content_hash(content: bytes | memoryview) -> str:
    """Return the 32 hex characters that name these bytes."""
    return hashlib.sha256(content).hexdigest()[:32]
