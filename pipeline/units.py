"""Numbers as people read them: counts, sizes, durations and shares."""

from collections.abc import Sequence


def thousands(number: float) -> str:
    """Return a count with thousands separators: `580,213`."""
    return f"{round(number):,}"


def counted(number: int, noun: str) -> str:
    """Return a count with its noun in the right number: `1 row`, `8,000 rows`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def short_count(number: float) -> str:
    """Return a count in at most four figures: `9,840`, `15.3k`, `580k`, `1.24M`."""
    return thousands(number) if round(number) < 10_000 else _scaled(number, ("k", "M", "G", "T"))


def byte_size(size_bytes: float) -> str:
    """Return a size in decimal units and three figures: `512 B`, `32.1 MB`, `1.20 TB`."""
    return (
        f"{size_bytes:.0f} B" if round(size_bytes) < 1000 else _scaled(size_bytes, (" kB", " MB", " GB", " TB", " PB"))
    )


def _scaled(number: float, suffixes: Sequence[str]) -> str:
    """Return a number in three figures with the suffix of its power of a thousand, the first being 1,000."""
    scaled, power = number / 1000, 0
    while scaled >= 999.5 and power < len(suffixes) - 1:
        scaled, power = scaled / 1000, power + 1
    decimals = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
    return f"{scaled:.{decimals}f}{suffixes[power]}"


def duration(seconds: float) -> str:
    """Return a time in at most two units: `0.42 s`, `8.1 s`, `41 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 0.995:
        return f"{seconds:.2f} s" if seconds >= 0.005 else "0 s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def percent(fraction: float) -> str:
    """Return a share that says 0 % or 100 % only when it is: `<0.1 %`, `4.1 %`, `81 %`, `>99.9 %`."""
    if 0 < fraction < 0.001:
        return "<0.1 %"
    if 0.999 < fraction < 1:
        return ">99.9 %"
    decimals = 1 if 0 < fraction < 0.0995 or 0.99 < fraction < 1 else 0
    return f"{100 * fraction:.{decimals}f} %"


def money(amount: float) -> str:
    """Return an amount in the currency of its price, to the cent, or to two figures below one: `12.40`, `0.0031`."""
    return f"{amount:,.2f}" if amount >= 1 or not amount else f"{amount:.2g}"
