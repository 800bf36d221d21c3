"""An HTTP/1.1 proxy before an S3 server that fails by rule: errors, resets, short, stalled and lost answers.

The head of a request is passed on as it came, `Host` included: S3 clients sign it, so the signature stays valid.
Every request has a connection of its own to the server; the client's connection is kept alive.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from typing import Self
from urllib.parse import urlsplit

HEAD_BYTES = 1 << 20
READ_BYTES = 1 << 16


class Fault(StrEnum):
    """What can become of a request."""

    INTERNAL_ERROR = "500 InternalError"
    SLOW_DOWN = "503 SlowDown"
    ACCESS_DENIED = "403 AccessDenied"
    EXPIRED_TOKEN = "400 ExpiredToken"
    RESET = "connection reset"
    LOST_RESPONSE = "lost response"
    TRUNCATED = "truncated body"
    STALLED = "stalled body"
    SLOW = "slow response"


ERRORS = {
    Fault.INTERNAL_ERROR: ("500 Internal Server Error", "InternalError"),
    Fault.SLOW_DOWN: ("503 Slow Down", "SlowDown"),
    Fault.ACCESS_DENIED: ("403 Forbidden", "AccessDenied"),
    Fault.EXPIRED_TOKEN: ("400 Bad Request", "ExpiredToken"),
}
"""Answers that the proxy gives in place of the server: status line and S3 error code."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Which requests meet a fault; the first rule that strikes decides, in the order they are given."""

    fault: Fault
    methods: frozenset[str] = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE"})
    path: str = ""
    """A regular expression that is searched in the path with its query, as it travels (percent-encoded)."""
    skip: int = 0
    """Matching requests that pass before the first can be struck."""
    count: int | None = None
    """How often it strikes at most; None = without limit."""
    probability: float = 1.0
    burst: int = 1
    """How many matching requests in a row it strikes, once it does."""
    seconds: float = 0.5
    """How long a SLOW answer is held back, and a STALLED one stands still before it is cut off."""


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault that really happened."""

    fault: Fault
    method: str
    path: str


@dataclass(slots=True)
class _Armed:
    """A rule in use, and how far its counters are."""

    rule: Rule
    pattern: re.Pattern[str]
    seen: int = 0
    strikes: int = 0
    burst_left: int = 0

    def takes(self, method: str, path: str, generator: random.Random) -> bool:
        rule = self.rule
        if method not in rule.methods or not self.pattern.search(path):
            return False
        self.seen += 1
        if self.seen <= rule.skip or self.strikes == rule.count:
            return False
        if not self.burst_left:
            if generator.random() >= rule.probability:
                return False
            self.burst_left = rule.burst
        self.burst_left -= 1
        self.strikes += 1
        return True


@dataclass(frozen=True, slots=True)
class _Head:
    """The first line and the headers of a request or an answer."""

    raw: bytes
    first_line: tuple[str, str, str]
    headers: dict[str, str]


class FaultProxy:
    """Stands before the server at a loopback address, in a thread of its own, from `with` to its end.

    Args:
        upstream: address of the real server.
        seed: of the generator that all rules with a probability draw from.
        host: the address to listen at.
    """

    def __init__(self, upstream: str, seed: int = 0, host: str = "127.0.0.1") -> None:
        self._upstream = (urlsplit(upstream).hostname, urlsplit(upstream).port)
        self._generator, self._host, self._port = random.Random(seed), host, 0
        self._armed: list[_Armed] = []
        self.strikes: list[Strike] = []
        self.requests = 0
        self._is_listening = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="fault-proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._is_listening.wait(10):
            raise RuntimeError("the fault proxy could not listen")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._is_over.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._port}"

    @property
    def hits(self) -> Counter[str]:
        """How often each fault has happened."""
        return Counter(strike.fault.value for strike in self.strikes)

    def environment(self, of_the_server: Mapping[str, str]) -> dict[str, str]:
        """Return the variables that lead AWS-style clients through this proxy instead of straight to the server."""
        return {**of_the_server, "AWS_ENDPOINT_URL": self.url, "AWS_ENDPOINT_URL_S3": self.url}

    def set_rules(self, rules: Sequence[Rule]) -> None:
        """Go by these rules from the next request on; what has happened so far stays counted."""
        self._armed = [_Armed(rule, re.compile(rule.path)) for rule in rules]

    async def _serve(self) -> None:
        self._loop, self._is_over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._converse, self._host, 0, limit=HEAD_BYTES)
        self._port = server.sockets[0].getsockname()[1]
        self._is_listening.set()
        await self._is_over.wait()
        server.close()  # asyncio.run ends the conversations that are still going on

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one client connection until either side ends it."""
        with closing(writer):
            try:
                while await self._answer(reader, writer):
                    pass
            except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                _reset(writer)  # the server, the client or this proxy has gone

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Pass on one request and its answer, or fail at it; return whether the connection can be used again."""
        request = await _read_head(reader)
        method, path, _ = request.first_line
        self.requests += 1
        armed = next((one for one in self._armed if one.takes(method, path, self._generator)), None)
        fault = armed.rule.fault if armed else None
        if armed and fault in (Fault.RESET, Fault.SLOW, *ERRORS):
            self.strikes.append(Strike(armed.rule.fault, method, path))
        if fault is Fault.RESET:
            _reset(writer)
            return False
        if "expect" in request.headers:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault in ERRORS:
            async for _ in _body(reader, request):
                pass
            writer.write(_error(method, *ERRORS[fault]))
            await writer.drain()
            return True
        if armed and fault is Fault.SLOW:
            await asyncio.sleep(armed.rule.seconds)
        from_server, to_server = await asyncio.open_connection(*self._upstream, limit=HEAD_BYTES)
        with closing(to_server):
            to_server.write(request.raw)
            async for piece in _body(reader, request):
                to_server.write(piece)
                await to_server.drain()
            response = await _read_head(from_server)
            while response.first_line[1].startswith("1"):
                response = await _read_head(from_server)
            is_bare = method == "HEAD" or response.first_line[1] in ("204", "304")
            pieces = _nothing() if is_bare else _body(from_server, response, until_closed=True)
            if armed and fault in (Fault.LOST_RESPONSE, Fault.TRUNCATED, Fault.STALLED):
                body = b"".join([piece async for piece in pieces])
                if response.first_line[1].startswith("2") and (body or fault is Fault.LOST_RESPONSE):
                    self.strikes.append(Strike(armed.rule.fault, method, path))
                    await _spoil(armed.rule, response.raw + body[: len(body) // 2], writer)
                    return False
                armed.strikes -= 1  # there is nothing to lose in this answer
                pieces = _one(body)
            writer.write(response.raw)
            async for piece in pieces:
                writer.write(piece)
                await writer.drain()
            await writer.drain()
            return is_bare or bool({"content-length", "transfer-encoding"} & response.headers.keys())


async def _spoil(rule: Rule, first_half: bytes, writer: asyncio.StreamWriter) -> None:
    """Give the client nothing of an answer, or its first half and then silence or an early end."""
    if rule.fault is not Fault.LOST_RESPONSE:
        writer.write(first_half)
        await writer.drain()
    if rule.fault is Fault.STALLED:
        await asyncio.sleep(rule.seconds)
    if rule.fault is not Fault.TRUNCATED:
        _reset(writer)


async def _read_head(reader: asyncio.StreamReader) -> _Head:
    raw = await reader.readuntil(b"\r\n\r\n")
    first, *lines = raw.decode("latin-1").split("\r\n")
    one, two, three = f"{first}  ".split(" ", 2)
    pairs = (line.partition(":") for line in lines if line)
    return _Head(raw, (one, two, three.strip()), {name.strip().lower(): value.strip() for name, _, value in pairs})


async def _body(reader: asyncio.StreamReader, head: _Head, until_closed: bool = False) -> AsyncIterator[bytes]:
    """Yield the bytes that follow a head, framing included.

    Args:
        until_closed: an answer without a length ends with its connection.
    """
    if "chunked" in head.headers.get("transfer-encoding", "").lower():
        async for piece in _chunks(reader):
            yield piece
        return
    left = int(head.headers.get("content-length", "-1" if until_closed else "0"))
    while left:
        piece = await reader.read(READ_BYTES if left < 0 else min(left, READ_BYTES))
        if not piece:
            if left < 0:
                return
            raise ConnectionResetError("the body is shorter than its head says")
        left -= len(piece) if left > 0 else 0
        yield piece


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    size = -1
    while size:
        line = await reader.readuntil(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        yield line
        if size:
            yield await reader.readexactly(size + 2)
    while line != b"\r\n":
        line = await reader.readuntil(b"\r\n")
        yield line


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


async def _one(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _error(method: str, status: str, code: str) -> bytes:
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{code} by rule</Message></Error>"
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head if method == "HEAD" else head + body).encode()


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST, as a crash or a firewall would, and not with an orderly FIN."""
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
