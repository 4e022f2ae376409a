"""A stretch ends when the device is idle, contenders take turns, and compiling is told apart."""

import time

import pytest

from bench.core import timing
from bench.core.samples import Timing
from bench.core.timing import Timed
from tests.clock import Clock


class Device:
    """Finishes what it was handed when it is waited for."""

    def __init__(self, name: str, log: list[str], seconds: float = 0.0, compiling: float = 0.0) -> None:
        self.name, self.log, self.seconds, self.compiling = name, log, seconds, compiling
        self.queued = 0

    def call(self) -> None:
        time.sleep(self.compiling)
        self.compiling = 0.0
        self.queued += 1
        self.log.append(self.name)

    def synchronise(self) -> None:
        time.sleep(self.queued * self.seconds)
        self.queued = 0

    def timed(self, count: int = 1) -> Timed:
        return Timed(call=self.call, synchronise=self.synchronise, count=count)


def test_a_stretch_starts_and_ends_with_an_idle_device(clock: Clock) -> None:
    device = Device("a", [], seconds=0.02)
    device.queued = 10
    found = timing.stretch(device.timed(count=4), 3)
    assert found.count == 12
    # What was queued before the stretch is not in it; what the stretch queued is.
    assert found.seconds == pytest.approx(0.06)
    assert device.queued == 0


def test_a_round_is_filled_and_the_first_call_kept_apart(clock: Clock) -> None:
    first, calls = timing.warm(Device("a", [], seconds=0.002, compiling=0.1).timed(), 0.05)
    assert first == pytest.approx(0.102)
    assert calls == 25


def test_a_call_longer_than_a_round_is_a_round(clock: Clock) -> None:
    assert timing.warm(Device("a", [], seconds=0.03).timed(), 0.001)[1] == 1


def test_contenders_take_turns() -> None:
    log: list[str] = []
    contenders = {name: (Device(name, log).timed(), calls) for name, calls in (("a", 2), ("b", 1))}
    found = timing.interleave(contenders, 3)
    assert log == ["a", "a", "b"] * 3
    assert {name: [one.count for one in timings] for name, timings in found.items()} == {"a": [2, 2, 2], "b": [1, 1, 1]}


def test_compiling_is_what_the_first_call_took_beyond_the_median() -> None:
    timings = [Timing(count=10, seconds=seconds) for seconds in (1.0, 2.0, 9.0)]
    assert timing.compile_seconds(5.0, 4, timings) == pytest.approx(5.0 - 4 * 0.2)
    assert timing.compile_seconds(0.1, 4, timings) == 0.0
