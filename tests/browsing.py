"""Pages as a browser shows them: their DOM, what they complain of, their text and their paper."""

import html.parser
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

BROWSER_ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--v=0"),
]
"""`--v=0` brings what a page writes to its console to stderr, marked CONSOLE."""

Browse = Callable[..., tuple[str, list[str]]]

DARK = "--blink-settings=preferredColorScheme=0"
"""The only switch that makes headless Chromium (156, tried 2026-10) answer `prefers-color-scheme: dark`."""


def find_browser() -> str | None:
    """Return a Chromium to look at pages with, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


PAPERS = ((), (251, 250, 248)), ((DARK,), (19, 21, 24))
"""Arguments of the browser, and the colour of the paper with them: light and dark."""


def looking(folder: Path) -> Browse:
    """Return what shows pages to Chromium, and gives the DOM and what was written to the console."""
    browser = find_browser()
    if browser is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on this machine")

    def look(page: str, *arguments: str) -> tuple[str, list[str]]:
        path = folder / "report.html"
        path.write_text(page, "utf-8")
        profile = f"--user-data-dir={folder / 'profile'}"
        command = [browser, *BROWSER_ARGUMENTS, profile, *arguments, "--dump-dom", path.as_uri()]
        seen = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return seen.stdout, [line for line in seen.stderr.splitlines() if "CONSOLE" in line]

    return look


def text_of(page: str) -> str:
    """Return the text a reader sees, white space folded."""
    pieces: list[str] = []
    parser = html.parser.HTMLParser()
    parser.handle_data = pieces.append  # type: ignore[assignment, method-assign]
    parser.feed(re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))
    return " ".join(" ".join(pieces).split())


def first_pixel(png: bytes) -> tuple[int, ...]:
    """Return red, green, blue of a PNG's upper left corner, which no row filter changes."""
    chunks: dict[bytes, bytes] = {}
    position = 8
    while position < len(png):
        length, kind = struct.unpack_from(">I4s", png, position)
        chunks[kind] = chunks.get(kind, b"") + png[position + 8 : position + 8 + length]
        position += 12 + length
    return tuple(zlib.decompress(chunks[b"IDAT"])[1:4])
