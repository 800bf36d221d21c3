"""What the processes of a run show to others while it runs, read from /proc."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Listener:
    """A TCP socket that takes connections."""

    address: Address
    port: int
    program: str
    """The beginning of the command line of who holds it."""


def family_of(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended meanwhile
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def command_line(pid: int) -> str:
    """Return what `ps` shows of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def listeners_of(pid: int) -> set[Listener]:
    """Return the listening TCP sockets of a process; none if it has ended."""
    found = set()
    try:
        links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
        tables = [Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:] for table in ("tcp", "tcp6")]
    except OSError:
        return set()
    inodes = {link.removeprefix("socket:[").rstrip("]") for link in links if link.startswith("socket:[")}
    for line in (line for table in tables for line in table):
        _, local, _, state, *rest = line.split()
        if state == "0A" and rest[5] in inodes:
            address, _, port = local.partition(":")
            found.add(Listener(_address(address), int(port, 16), command_line(pid)[:200]))
    return found


def _address(hexadecimal: str) -> Address:
    """Return the address that the kernel writes as 32-bit words in its own byte order."""
    raw = bytes.fromhex(hexadecimal)
    address = ipaddress.ip_address(b"".join(raw[word : word + 4][::-1] for word in range(0, len(raw), 4)))
    return getattr(address, "ipv4_mapped", None) or address
