"""The progress display: a bar on a terminal, few lines elsewhere."""

import io
import re
import time

import pytest
from rich.console import Console
from rich.text import Text

from sacref.training.progress import TrainingProgress
from tests.fake_agent import FakeAgent


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def run(console: Console, clock: list[float], *, timesteps: int, start: int = 0, num_envs: int = 1, enabled: bool = True) -> None:
    """A timestep takes a hundredth of a second."""
    with TrainingProgress(FakeAgent(), timesteps=timesteps, start=start, num_envs=num_envs, enabled=enabled, console=console) as bar:
        for finished in range(start + 1, timesteps + 1):
            clock[0] += 0.01
            bar.update(finished)


def test_without_a_terminal_a_run_prints_twenty_lines(clock: list[float]) -> None:
    output = io.StringIO()
    run(Console(file=output, force_terminal=False), clock, timesteps=1000, num_envs=2)
    lines = output.getvalue().splitlines()
    assert len(lines) == 20
    assert lines[0] == "  5% | step 100 | 200 steps/s | return 3.0 (last 3) | alpha 0.25 | 0:00:10 left"
    assert lines[-1] == "100% | step 2,000 | 200 steps/s | return 3.0 (last 3) | alpha 0.25 | 0:00:00 left"


def test_a_resumed_run_counts_on_and_its_speed_is_its_own(clock: list[float]) -> None:
    output = io.StringIO()
    run(Console(file=output, force_terminal=False), clock, timesteps=1000, start=900)
    lines = output.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(" 95% | step 950 | 100 steps/s")


@pytest.mark.parametrize("random_timesteps", [200, 80])
def test_before_learning_starts_a_line_says_that_nothing_is_learned_and_why(clock: list[float], random_timesteps: int) -> None:
    output = io.StringIO()
    with TrainingProgress(
        FakeAgent(), timesteps=1000, num_envs=2, random_timesteps=random_timesteps, learning_starts=200, console=Console(file=output)
    ) as bar:
        for finished in range(1, 301):
            clock[0] += 0.01
            bar.update(finished)
    filling = ["random actions fill the memory" if finished <= random_timesteps else "the memory fills" for finished in (50, 100, 150, 200)]
    lines = [line.split(" | ") for line in output.getvalue().splitlines()]
    assert [line[1] for line in lines[:4]] == [f"nothing learned yet: {how} until step 400" for how in filling]
    assert [line[2:5] for line in lines[:1]] == [["step 100", "200 steps/s", "return 3.0 (last 3)"]]
    assert [line[4] for line in lines[4:]] == ["alpha 0.25", "alpha 0.25"]


def test_a_narrow_terminal_shows_why_nothing_is_learned_and_the_time_left(clock: list[float]) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=80, no_color=True)
    with TrainingProgress(FakeAgent(), timesteps=10_000, random_timesteps=5_000, learning_starts=5_000, console=console) as bar:
        for finished in range(1, 301):
            clock[0] += 0.01
            bar.update(finished)
    shown = Text.from_ansi(output.getvalue().replace("\r", "\n")).plain.splitlines()
    assert len(shown[-1]) == 80 and re.search(r"  3% left +\S+$", shown[-1])
    assert shown[-1].startswith("nothing learned yet: random actions fill the memory")


def test_on_a_terminal_a_bar_shows_speed_returns_alpha_and_the_time_left(clock: list[float]) -> None:
    output = io.StringIO()
    run(Console(file=output, force_terminal=True, width=150), clock, timesteps=1000)
    shown = output.getvalue()
    assert "step 1,000 | 100 steps/s | return 3.0 (last 3) | alpha 0.25" in shown
    assert "100%" in shown
    assert "left" in shown


def test_a_terminals_bar_does_not_read_alpha_at_each_step(clock: list[float]) -> None:
    reads = 0

    class Counting(FakeAgent):
        @property
        def alpha(self) -> float:  # type: ignore[override]  # counted
            nonlocal reads
            reads += 1
            return 1.0

    with TrainingProgress(Counting(), timesteps=1000, console=Console(file=io.StringIO(), force_terminal=True)) as bar:
        reads = 0
        for finished in range(1, 1001):
            clock[0] += 0.01
            bar.update(finished)
    assert 15 <= reads <= 25


def test_nothing_is_shown_when_it_is_off(clock: list[float]) -> None:
    for terminal in (False, True):
        output = io.StringIO()
        run(Console(file=output, force_terminal=terminal), clock, timesteps=100, enabled=False)
        assert output.getvalue() == ""
