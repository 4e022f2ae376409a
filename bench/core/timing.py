"""Timing on a device: every stretch begins and ends with an idle device, and the contenders of a comparison take turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from bench.core.samples import Timing

MOST_CALLS = 1_000_000

Key = TypeVar("Key")


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A call to be timed."""

    call: Callable[[], object]
    """Does `count` operations, or hands them to the device."""
    synchronise: Callable[[], object]
    """Waits until the device is idle."""
    count: int = 1


def stretch(timed: Timed, calls: int) -> Timing:
    """Time `calls` calls, from an idle device to an idle device."""
    timed.synchronise()
    began = time.perf_counter()
    for _ in range(calls):
        timed.call()
    timed.synchronise()
    return Timing(count=calls * timed.count, seconds=time.perf_counter() - began)


def warm(timed: Timed, seconds: float) -> tuple[float, int]:
    """Call for the first time, which may compile, and find how many calls fill a round.

    Args:
        timed: never called before.
        seconds: least duration of a round of more than one call.

    Returns:
        Seconds of the first call, and calls in a round.
    """
    return fill(partial(stretch, timed), seconds)


def fill(timed: Callable[[int], Timing], seconds: float) -> tuple[float, int]:
    """As `warm`, for a function that times so many calls."""
    first = timed(1).seconds
    calls = 1
    while (took := timed(calls).seconds) < seconds / 2 and calls < MOST_CALLS:
        # At most tenfold: a single call may mostly wait for the device.
        calls = min(MOST_CALLS, 10 * calls, max(2 * calls, int(calls * seconds / took)))
    return first, max(1, round(calls * seconds / took))


def interleave(contenders: Mapping[Key, tuple[Timed, int]], rounds: int) -> dict[Key, list[Timing]]:
    """Time warm contenders in turn (A B C A B C ...), so that a machine that slows down slows all of them down.

    Args:
        contenders: name -> call, and the number of calls in a round.
        rounds: number of rounds of each contender.
    """
    timings: dict[Key, list[Timing]] = {key: [] for key in contenders}
    for _ in range(rounds):
        for key, (timed, calls) in contenders.items():
            timings[key].append(stretch(timed, calls))
    return timings


def compile_seconds(first: float, count: int, timings: list[Timing]) -> float:
    """Return the time of the first call, of `count` operations, beyond the steady state of `timings`."""
    steady = statistics.median(timing.seconds / timing.count for timing in timings)
    return max(0.0, first - count * steady)


def said(seconds: float) -> str:
    """Format an estimate: in seconds below two minutes, in minutes below ten hours, else in hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 36_000 else f"{seconds / 3_600:.0f} h"
