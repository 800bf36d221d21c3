"""What is ended, in which order and when, all drawn from a seed; and the count of what has really happened."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

ENCODER_TITLE = "EncodeBlocks"


class Target(StrEnum):
    """What is ended."""

    ENCODER = "encoder actor"
    READER = "reader task"
    TOKENIZER = "tokenizer task"
    WRITER = "writer task"
    NODE = "worker node"
    NETWORK = "network of a worker"
    DRIVER = "driver"
    HEAD = "head node"
    DRIVER_TERM = "driver (SIGTERM)"
    S3 = "S3 server"


TITLES = {
    Target.ENCODER: ENCODER_TITLE,
    Target.READER: "read_blocks",
    Target.TOKENIZER: "tokenize_blocks",
    Target.WRITER: "write_blocks",
}
"""What a Ray worker calls itself while it is at this stage."""

ENDS_DRIVER = {Target.DRIVER, Target.HEAD, Target.DRIVER_TERM}


@dataclass(frozen=True, slots=True)
class Kill:
    """One disturbance to come."""

    target: Target
    delay_seconds: float
    """After Blocks are seen to be written since the kill before."""
    pause_seconds: float
    """Until what was lost is replaced: a node, the S3 server."""


ROUND = Counter(
    {
        Target.ENCODER: 4,
        Target.READER: 3,
        Target.TOKENIZER: 3,
        Target.WRITER: 3,
        Target.NODE: 2,
        Target.NETWORK: 1,
        Target.DRIVER: 2,
        Target.HEAD: 1,
        Target.DRIVER_TERM: 1,
        Target.S3: 1,
    }
)
"""How often each target falls in a full round of 21: what costs a new driver or a new cluster less often."""

SHORT = ROUND - Counter(dict.fromkeys(TITLES, 2)) - Counter([*ENDS_DRIVER, Target.NODE, Target.NETWORK])
"""For `make test`, where a test of its own ends the driver by SIGTERM."""


def planned_kills(seed: int, targets: Counter[Target] = ROUND) -> list[Kill]:
    """Return one kill for every target that is asked for, in an order and with delays drawn from the seed."""
    generator = random.Random(seed)
    order = generator.sample(sorted(targets.elements()), targets.total())
    return [Kill(target, generator.uniform(0.1, 3.0), generator.uniform(0.2, 4.0)) for target in order]


@dataclass(slots=True)
class Tally:
    """What has really happened, over all tests of a session."""

    network: str = ""
    kills: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    exit_codes: Counter[str] = field(default_factory=Counter)
    snapshots: int = 0
    journal_entries: int = 0
    rows: int = 0
    lost: int = 0
    duplicated: int = 0
    sigterm_seconds: list[float] = field(default_factory=list)
    """From SIGTERM to the end of the driver; 3 s are what Ray's job server gives."""

    def lines(self) -> list[str]:
        """Return it as a table."""
        groups: dict[str, Counter[str]] = {"kills": self.kills, "faults": self.faults, "exit codes": self.exit_codes}
        counts = {
            "runs": self.runs,
            "snapshots": self.snapshots,
            "journal entries": self.journal_entries,
            "rows compared": self.rows,
            "rows lost": self.lost,
            "rows duplicated": self.duplicated,
        }
        lines = [f"{name:<16} {count:>8,}" for name, count in counts.items()]
        for group, counter in groups.items():
            lines.append(f"{group:<16} {counter.total():>8,}")
            lines += [f"  {name!s:<22} {count:>6,}" for name, count in counter.most_common()]
        return [*lines, f"SIGTERM to exit  {', '.join(f'{seconds:.1f} s' for seconds in self.sigterm_seconds)}"]
