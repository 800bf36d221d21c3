"""The commit protocol holds under every interleaving that was tried, and the trial finds protocols that do not."""

import os

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.protocol.machine import Protocol

EXAMPLES = int(os.environ.get("PROTOCOL_EXAMPLES", "40"))
STEPS = 50


def tried(machine: type[Protocol], examples: int, phases: tuple[Phase, ...] = (Phase.generate,)) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=True,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            phases=phases,
        ),
    )


def test_snapshots_are_exact_and_immutable_in_any_order_of_events() -> None:
    Protocol.counts.clear()
    tried(Protocol, EXAMPLES)
    print(Protocol.counts)
