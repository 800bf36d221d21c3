"""Live progress: the arithmetic of rate and ETA on a clock of our own, and what is shown where."""

import io
import logging
import sys
import time
from itertools import pairwise

import pytest

from jobs.pace import Curve, amount_at, expected_end, extended, recent_rate, smoothed
from jobs.progress import Progress, Status, advanced, chosen_mode, line_text, live_texts


def curve_of(*points: tuple[float, float]) -> Curve:
    curve: Curve = ()
    for seconds, done in points:
        curve = extended(curve, seconds, done)
    return curve


def run_of(ends: list[float], start: float = 0.0, poll_seconds: float = 0.5) -> list[tuple[float, Status]]:
    """Return the status at every poll of a run whose equal Blocks end at the given times."""
    seen, status, now = [], Status(), start
    while now <= ends[-1]:
        done = sum(end <= now for end in ends)
        share = done / len(ends)
        status = advanced(status, now, done * 100, len(ends) * 100, done * 7000, share, 0)
        seen.append((now, status))
        now += poll_seconds
    return seen


def status_after_ten_seconds(rows: int, rows_total: int, fraction: float, quarantined: int = 0) -> Status:
    """Return the status of a steady run that has encoded 14,500 tokens in 10 s, seen 4 s later."""
    status = Status(phase="embedding")
    for second, share in ((0, 0.0), (5, 0.5), (10, 1.0), (14, 1.0)):
        status = advanced(
            status,
            second,
            round(rows * share),
            rows_total,
            round(14_500 * share),
            fraction * share,
            quarantined,
        )
    return status


class TerminalStream(io.StringIO):
    """A stream that says a person watches it."""

    def isatty(self) -> bool:
        return True


def test_the_rate_is_the_recent_one_and_not_the_average_since_the_start() -> None:
    slow_then_fast = curve_of(
        *((t, t * 10) for t in range(0, 100, 5)), *((t, t * 100 - 9000) for t in range(100, 200, 5))
    )
    assert recent_rate(slow_then_fast, 195) == pytest.approx(100, rel=0.05)


def test_there_is_no_rate_before_the_first_step() -> None:
    assert recent_rate((), 10) is None
    assert recent_rate(curve_of((0, 0), (5, 0)), 10) is None


def test_blocks_that_end_together_count_as_one_step() -> None:
    """Eight encoders that each need 40 s per Block and end within a second: 8 Blocks per 40 s."""
    burst = curve_of((0, 0), *((40 + n / 10, n + 1) for n in range(8)), *((80 + n / 10, n + 9) for n in range(8)))
    assert len(burst) == 3
    assert recent_rate(burst, 81) == pytest.approx(8 / 40, rel=0.05)


def test_waiting_for_the_next_block_is_no_slowdown_but_a_stall_is() -> None:
    steady = curve_of(*((t, t) for t in range(0, 101, 10)))
    assert recent_rate(steady, 109) == pytest.approx(1.0)
    assert recent_rate(steady, 300) == pytest.approx(0, abs=0.5)


def test_the_time_before_the_first_block_does_not_count_as_slowness() -> None:
    assert recent_rate(curve_of((0, 0), (30, 1), (35, 2), (40, 3)), 40) == pytest.approx(0.2)


def test_work_that_an_earlier_run_has_done_does_not_count_as_speed() -> None:
    resumed = curve_of((0, 0.90), (10, 0.91), (20, 0.92))
    assert recent_rate(resumed, 20) == pytest.approx(0.001)


def test_the_amount_is_linear_between_two_steps_and_level_outside() -> None:
    curve = ((10.0, 0.0), (20.0, 100.0))
    assert [amount_at(curve, seconds) for seconds in (0, 10, 15, 20, 99)] == [0, 0, 50, 100, 100]


def test_a_curve_does_not_grow_with_the_length_of_the_run() -> None:
    curve: Curve = ()
    for second in range(20_000):
        curve = extended(curve, second, second)
    assert len(curve) < 400
    assert recent_rate(curve, 20_000) == pytest.approx(1, rel=0.02)


def test_a_new_estimate_moves_what_is_shown_half_of_the_way_in_a_half_life() -> None:
    assert smoothed(None, 8, 0, 100) == 8
    assert smoothed(4, 8, 10, 100) == 6
    assert smoothed(4, 8, 0, 100) == 4
    assert smoothed(4, 8, 2, 10) == 6


def test_no_end_is_expected_before_there_are_two_whole_steps() -> None:
    assert expected_end(curve_of((0, 0.0)), 10) is None
    assert expected_end(curve_of((0, 0.0), (60, 0.1)), 65) is None
    assert expected_end(curve_of((0, 0.0), (60, 0.1), (70, 0.2)), 71) is None
    assert expected_end(curve_of((0, 0.0), (10, 0.1), (20, 0.2)), 25) == pytest.approx(100)


@pytest.mark.parametrize(
    "ends",
    [
        [5.0 * n for n in range(1, 41)],
        [20.0 * (n // 4 + 1) + 0.3 * (n % 4) for n in range(40)],
        [12 + 4.0 * n + (1.7 if n % 3 else 0) for n in range(50)],
        [8 + 0.7 * n for n in range(60)],
    ],
    ids=["evenly", "four at once", "after a slow start, unevenly", "a short run of small Blocks"],
)
def test_the_expected_end_does_not_jump_and_is_right(ends: list[float]) -> None:
    run = run_of(ends)
    expected = [(now, status.finish_at) for now, status in run if status.finish_at and now > 0.3 * ends[-1]]
    assert all(abs(finish - ends[-1]) < 0.15 * ends[-1] for _, finish in expected)
    assert all(abs(later[1] - sooner[1]) < 0.03 * ends[-1] for sooner, later in pairwise(expected))


def test_the_eta_goes_by_work_and_not_by_rows() -> None:
    """Half of the rows are done, but they were the short ones: a tenth of the work in 10 s leaves 90 s."""
    status = status_after_ten_seconds(rows=500, rows_total=1000, fraction=0.1)
    assert status.finish_at == pytest.approx(100)


def test_a_plain_line_says_what_is_known_as_keys_and_values() -> None:
    status = advanced(Status(phase="starting encoders"), 0, 0, None, 0, 0.0, 0)
    assert line_text(status, 0) == "progress phase=starting_encoders rows=0 tokens=0 done=0.000 quarantined=0"
    status = status_after_ten_seconds(rows=200, rows_total=2000, fraction=0.1, quarantined=3)
    assert line_text(status, 14) == (
        "progress phase=embedding rows=200 rows_total=2000 tokens=14500 tokens_per_second=1450 "
        "done=0.100 eta_seconds=86 quarantined=3"
    )


def test_the_bar_says_less_where_there_is_less_room() -> None:
    status = status_after_ten_seconds(rows=800, rows_total=8000, fraction=0.1, quarantined=12)
    full = ["10 %", "800 of 8,000 rows", "1,450 tokens/s", "90 s left", "12 quarantined"]
    assert live_texts(status, 10, 120) == [text.replace("90 s", "1 min 30 s") for text in full]
    assert live_texts(status, 70, 120)[3] == "30 s left"
    assert live_texts(status, 70, 76) == ["10 %", "800 of 8,000 rows", "30 s left", "12 quarantined"]
    assert live_texts(status, 70, 20) == ["10 %"]


def test_quarantine_is_shown_only_when_there_is_some() -> None:
    status = advanced(Status(), 0, 10, None, 10, 0.1, 0)
    assert not any("quarantined" in text for text in live_texts(status, 0, 120))


def test_a_terminal_gets_a_bar_and_a_file_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert chosen_mode("auto", TerminalStream()) == "live"
    assert chosen_mode("auto", io.StringIO()) == "lines"
    assert chosen_mode("quiet", TerminalStream()) == "quiet"
    monkeypatch.setenv("TERM", "dumb")
    assert chosen_mode("auto", TerminalStream()) == "lines"


def test_lines_come_at_most_every_thirty_seconds_and_at_each_phase(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = 0.0
    with Progress("lines", io.StringIO(), lambda: now) as progress:
        progress.phase("embedding")
        for second in range(100):
            now = float(second)
            progress.update(second, None, second * 10, second / 100, 0)
        progress.phase("publishing")
    rows = [line.split()[2] for line in caplog.messages if "rows=" in line]
    assert rows == ["rows=30", "rows=60", "rows=90"]
    assert caplog.messages[0] == "progress phase=embedding"
    assert caplog.messages[-1] == "progress phase=publishing"


def test_a_phase_in_which_nothing_is_heard_for_long_is_told_again_with_its_time(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("jobs.progress.LINE_SECONDS", 0.06)
    with Progress("lines", io.StringIO()) as progress:
        progress.phase("waiting for the first Block")
        deadline = time.monotonic() + 30
        while len(caplog.messages) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert caplog.messages[1:3] == ["progress phase=waiting_for_the_first_Block seconds=0"] * 2


def test_quiet_shows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stream = TerminalStream()
    with Progress("quiet", stream) as progress:
        progress.phase("embedding")
        progress.update(1, 2, 3, 0.5, 0)
    assert stream.getvalue() == ""
    assert caplog.messages == []


def test_log_lines_stand_above_the_bar_and_go_back_to_stderr_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = TerminalStream()
    monkeypatch.setattr(sys, "stderr", terminal)
    handler = logging.StreamHandler(terminal)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with Progress("live", terminal) as progress:
            progress.phase("embedding")
            progress.update(800, 8000, 58_000, 0.1, 0)
            logging.getLogger("pipeline").warning("shard=7 retried")
            assert handler.stream is not terminal
        assert handler.stream is terminal
    finally:
        root.removeHandler(handler)
    lines = [line.strip() for line in terminal.getvalue().splitlines()]
    assert any(line.endswith("shard=7 retried") for line in lines)
    assert any("800 of 8,000 rows" in line for line in lines)


def test_an_error_passes_through_and_the_terminal_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    terminal = TerminalStream()
    with pytest.raises(RuntimeError, match="boom"), Progress("live", terminal):
        raise RuntimeError("boom")
    assert terminal.getvalue().endswith("\x1b[?25h")
