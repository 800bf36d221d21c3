"""How log lines look: text for people, or with `--log-format json` one JSON object a line for machines."""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]

NOISY = ("botocore", "aiobotocore", "httpx", "py.warnings", "ray", "filelock", "fsspec", "faiss")
"""Loggers of others, who tell of their own affairs: only errors are shown."""

FIELD = re.compile(r"(\w+)=(\S+)")


class JsonLines(logging.Formatter):
    """One object per line: `time`, `level`, `logger`, `message`, and the `key=value` fields of the message by name.

    What holds blanks is given whole as extra: `error`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        message = record.getMessage()
        fields: dict[str, Any] = {name: _value(text) for name, text in FIELD.findall(message)}
        first = message.partition(" ")[0]
        if "event" not in fields and first.isidentifier():
            fields = {"event": first} | fields
        if hasattr(record, "error"):
            fields["error"] = record.error
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        head = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
        }
        return json.dumps(fields | head, ensure_ascii=False)


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def set_up_logs(log_format: LogFormat) -> None:
    """Send log lines to stderr in this format, and of other libraries only their errors."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler.setFormatter(JsonLines() if log_format == "json" else text)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)


def are_json() -> bool:
    """Whether log lines are for machines; then nothing else may stand between them."""
    return any(isinstance(handler.formatter, JsonLines) for handler in logging.getLogger().handlers)
