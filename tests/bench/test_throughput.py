"""Throughput: contenders are timed in turn, compiling is told apart, and one that is missing is said to be."""

import io
import os
import time
from pathlib import Path

import pytest
from rich.console import Console

from bench import record, throughput
from bench.peers import CONTENDERS, Contender
from bench.peers.setting import Setting

SETTING = Setting(env="Task-v0", seed=0, random_steps=100)


class Sleeper:
    """Sleeps through its steps, and through its compiling before the first that learns."""

    def __init__(self, name: str, seconds: float, compiling: float, calls: list[tuple[str, int]]) -> None:
        self.name, self.seconds, self.compiling, self.calls = name, seconds, compiling, calls
        self.steps = 0
        self.closed = False

    def advance(self, steps: int) -> None:
        self.calls.append((self.name, steps))
        if self.steps == SETTING.random_steps:
            time.sleep(self.compiling)
        time.sleep(self.seconds * steps)
        self.steps += steps

    def close(self) -> None:
        self.closed = True


def measure(contenders: dict[str, Contender], missing: dict[str, str] | None = None, rounds: int = 3) -> record.ThroughputSamples:
    console = Console(file=io.StringIO())
    return throughput.measure(contenders, missing or {}, rounds=rounds, steps=50, warm_up=100, console=console)


def test_rounds_alternate_after_every_contender_is_warm() -> None:
    calls: list[tuple[str, int]] = []
    sleepers = {name: Sleeper(name, 0.0, 0.0, calls) for name in ("a", "b")}
    measure(dict(sleepers.items()))
    assert [name for name, steps in calls if steps == 50] == ["a", "b", "a", "b", "a", "b"]
    assert calls.index(("a", 50)) > max(i for i, (_, steps) in enumerate(calls) if steps != 50)
    assert all(sleeper.closed for sleeper in sleepers.values())


def test_speed_and_compiling_are_told_apart() -> None:
    found = measure({"a": Sleeper("a", 0.002, 0.4, [])}).contenders[0]
    assert [timed.steps for timed in found.rounds] == [50, 50, 50]
    assert all(0.1 <= timed.seconds < 0.4 for timed in found.rounds)
    assert found.compile_seconds == pytest.approx(0.4, abs=0.3)


def test_no_compiling_is_none_and_never_negative() -> None:
    compiling = measure({"a": Sleeper("a", 0.001, 0.0, [])}).contenders[0].compile_seconds
    assert compiling is not None
    assert 0.0 <= compiling < 0.3


def test_a_contender_that_is_not_installed_is_named_with_the_reason() -> None:
    def absent(setting: Setting) -> Contender:
        raise ModuleNotFoundError("No module named 'peer'")

    console = Console(file=io.StringIO())
    made, missing = throughput.make({"own": lambda setting: Sleeper("own", 0.0, 0.0, []), "peer": absent}, SETTING, console)
    assert list(made) == ["own"]
    found = measure(made, missing, rounds=1).contenders
    assert [(one.name, one.missing, len(one.rounds)) for one in found] == [("own", None, 1), ("peer", "No module named 'peer'", 0)]


@pytest.mark.parametrize("arguments", [{"threads": 10_000}, {"rounds": 0}, {"steps": 0}, {"warm_up": throughput.FIRST_STEPS - 1}])
def test_settings_that_measure_nothing_are_refused(arguments: dict[str, int], tmp_path: Path) -> None:
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    with pytest.raises(SystemExit, match="expected --threads 1 to"):
        throughput.main(results=tmp_path, **arguments)  # type: ignore[arg-type]  # Each is an int.
    assert affinity is None or os.sched_getaffinity(0) == affinity


@pytest.mark.parametrize(
    ("name", "library"), [("sacref torch", "torch"), ("sacref jax", "jax"), ("Stable-Baselines3", "stable_baselines3")]
)
def test_each_contender_learns_and_goes_on_where_it_stopped(name: str, library: str) -> None:
    pytest.importorskip(library)
    pytest.importorskip("mujoco")
    contender = CONTENDERS[name](Setting(env="InvertedPendulum-v5", seed=0, random_steps=10, batch_size=8, memory_capacity=100))
    contender.advance(10)
    contender.advance(5)
    assert updates(contender) in (5, 6)  # At step `random_steps` some have had an update already, others not.
    contender.advance(5)
    assert updates(contender) in (10, 11)
    contender.close()


def updates(contender: object) -> int:
    """Gradient steps that a contender has done."""
    model = getattr(contender, "_model", None)
    if model is not None:
        return int(model._n_updates)
    agent = contender._agent  # type: ignore[attr-defined]  # It is what the contenders of bench.peers.own have.
    counts = [int(array) for name, array in agent.arrays().items() if name.endswith("count")]
    return counts[0]
