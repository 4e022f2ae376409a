"""The rollout suite: rounds of the loop leave out what entering it costs, and the parts add up to the whole."""

import importlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from bench.core import machine, precisions, runner
from bench.suites.rollout import measure as rollout
from bench.suites.rollout.measure import PARTS, PRESETS, Loop, PartClock, Sizes
from bench.suites.rollout.samples import EnvironmentCell
from tests.clock import Clock

SIZES = Sizes(envs=("InvertedPendulum-v5",), num_envs=(1, 2), rounds=2, round_seconds=0.0, loop_steps=4)


@pytest.fixture(autouse=True)
def process_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precisions, "use", lambda backend, name: None)
    monkeypatch.setattr(rollout, "CAPACITY", 10_000)


@pytest.fixture(params=["torch", pytest.param("jax", marks=pytest.mark.full)])
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    """A loop of two environments."""
    pytest.importorskip(request.param)
    pytest.importorskip("mujoco")
    loop = Loop(request.param, 2, seed=0)
    yield loop
    loop.close()


def gradient_steps(loop: Loop) -> int:
    return int(loop.agent.arrays()["gradient_steps"])


def test_a_round_is_of_environment_steps_with_a_gradient_step_each(loop: Loop) -> None:
    found = loop.advance(4)
    # Two timesteps of two environments, behind one that is not counted.
    assert found.count == 4
    assert gradient_steps(loop) == 6
    loop.advance(6)
    assert gradient_steps(loop) == 6 + 8


def test_the_clock_starts_behind_the_first_timestep(loop: Loop, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    reset, step = loop.envs.reset, loop.envs.step

    def slow(**arguments: Any) -> Any:
        clock.work(0.6)
        return reset(**arguments)

    def stepped(actions: Any) -> Any:
        clock.work(0.1)
        return step(actions)

    monkeypatch.setattr(loop.envs, "reset", slow)
    monkeypatch.setattr(loop.envs, "step", stepped)
    loop.advance(2)
    started: list[int] = []
    assert loop.advance(2, lambda: started.append(gradient_steps(loop))).seconds == pytest.approx(0.1)
    # Behind four of the first round and two of this one.
    assert started == [6]


class Sleepy:
    """An agent and environments whose calls take known times."""

    def act(self) -> None:
        time.sleep(0.06)
        self.to_numpy()

    def to_numpy(self) -> None:
        time.sleep(0.1)

    def record_transition(self) -> None:
        time.sleep(0.2)

    def update(self) -> None:
        self.queued = 0.5

    queued = 0.0

    def synchronise(self) -> None:
        time.sleep(self.queued)
        self.queued = 0.0

    def write_tracking_data(self) -> None:
        self.to_numpy()

    def step(self) -> None:
        time.sleep(0.3)


def test_each_part_has_its_time_and_the_device_s_belongs_to_the_update(clock: Clock) -> None:
    agent, envs = Sleepy(), Sleepy()
    parts = PartClock(agent, envs)
    agent.act()
    parts.restart()
    began = time.perf_counter()
    agent.act()
    envs.step()
    agent.record_transition()
    agent.update()
    agent.write_tracking_data()
    found = parts.split(time.perf_counter() - began)
    assert tuple(found) == ("act", "environment", "record", "update", "rest") == PARTS
    assert list(found.values()) == pytest.approx([0.16, 0.3, 0.2, 0.5, 0.1])


def test_parts_of_the_real_loop_add_up_to_it(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("mujoco")
    loop = Loop("torch", 1, seed=0)
    takes = {"act": 0.1, "record_transition": 0.2, "update": 0.3, "step": 0.5}
    for name, seconds in takes.items():
        place: Any = loop.envs if name == "step" else loop.agent
        monkeypatch.setattr(place, name, taking(clock, seconds, getattr(place, name)))
    split = PartClock(loop.agent, loop.envs)
    found = loop.advance(3, split.restart)
    parts = split.split(found.seconds)
    loop.close()
    assert found.seconds == pytest.approx(3 * sum(takes.values()))
    assert parts == pytest.approx({"act": 0.3, "environment": 1.5, "record": 0.6, "update": 0.9, "rest": 0.0})


def taking(clock: Clock, seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that takes so many seconds."""

    def slow(*arguments: Any, **keywords: Any) -> Any:
        clock.work(seconds)
        return function(*arguments, **keywords)

    return slow


def test_environments_are_stepped_by_every_number() -> None:
    pytest.importorskip("mujoco")
    ways: list[rollout.Way] = [("sync", 1), ("batched", 2)]
    found = rollout.measure_environment("InvertedPendulum-v5", SIZES, 0, ways).environments
    assert [(cell.stepped_by, cell.threads, cell.num_envs, len(cell.timings), cell.timings[0].count % cell.num_envs) for cell in found] == [
        ("sync", 1, 1, 2, 0),
        ("sync", 1, 2, 2, 0),
        ("batched", 2, 1, 2, 0),
        ("batched", 2, 2, 2, 0),
    ]
    for env, said in {"NoSuchTask-v5": "NoSuchTask-v5", "Pendulum-v1": "Pendulum-v1 is not stepped in batches"}.items():
        missing = [cell for cell in rollout.measure_environment(env, SIZES, 0, ways).environments if cell.stepped_by == "batched"]
        assert [cell.timings for cell in missing] == [[], []]
        assert all(cell.missing is not None and said in cell.missing for cell in missing)


def test_one_task_is_stepped_in_every_way_on_one_thread_and_on_all() -> None:
    on = {by: [1, 4] for by in ("batched", "rollout, closed loop", "rollout, open loop")}
    assert rollout.ways_of(rollout.LOOP_ENV, 4) == [
        ("sync", 1),
        ("async", 1),
        *((by, threads) for by, each in on.items() for threads in each),
    ]
    assert rollout.ways_of(rollout.LOOP_ENV, 1)[2:] == [(by, 1) for by in on]
    assert rollout.ways_of("Ant-v5", 4) == [("sync", 1), ("batched", 4)]


def test_each_way_steps_as_many_environments_as_it_says() -> None:
    pytest.importorskip("mujoco")
    mujoco_rollout = importlib.import_module("mujoco.rollout")
    inner = mujoco_rollout.Rollout
    seen: list[tuple[int, int, int, Any]] = []

    class Watched:
        def __init__(self, *, nthread: int) -> None:
            self.inner = inner(nthread=nthread)

        def rollout(self, model: Any, data: Any, initial_state: Any, control: Any, **options: Any) -> Any:
            seen.append((len(model), len(data), control.shape[1], initial_state[0, 1]))
            return self.inner.rollout(model, data, initial_state, control, **options)

        def close(self) -> None:
            self.inner.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mujoco_rollout, "Rollout", Watched)
        for by, threads, count, steps in (("rollout, closed loop", 2, 3, 5), ("rollout, open loop", 1, 3 * 64, 5 * 64)):
            cell: Any = EnvironmentCell(env="HalfCheetah-v5", num_envs=3, stepped_by=by, threads=threads, timings=[], missing=None)  # type: ignore[arg-type]  # Each is a way.
            timed, close = rollout._open(cell, seed=0)
            assert timed.count == count
            timed.call()
            timed.call()
            close()
            first, second = seen[-2:]
            assert first[:3] == second[:3] == (3, threads, steps)
            # The closed loop goes on from where it was, the open one begins anew.
            assert (first[3] == second[3]) == (by == "rollout, open loop")
    cell = EnvironmentCell(env="HalfCheetah-v5", num_envs=3, stepped_by="async", threads=1, timings=[], missing=None)
    timed, close = rollout._open(cell, seed=0)
    timed.call()
    close()
    assert timed.count == 3


def test_acting_is_from_host_to_host_and_a_missing_backend_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(runner, "missing_backends", lambda: {"jax": "no jax"})
    agent = rollout._agent("torch", 2, seed=0)
    actions = rollout._acting(agent, 2, seed=0)()
    assert isinstance(actions, np.ndarray)
    assert actions.shape == (2, 6)
    again = rollout._acting(agent, 2, seed=0)()
    assert isinstance(again, np.ndarray)
    assert not np.array_equal(actions, again)  # Sampled, as in training.
    found = rollout.measure_acts(SIZES, seed=0).acts
    assert [(cell.backend, cell.num_envs, len(cell.timings), cell.missing) for cell in found] == [
        ("torch", 1, 2, None),
        ("torch", 2, 2, None),
        ("jax", 1, 0, "no jax"),
        ("jax", 2, 0, "no jax"),
    ]


def test_loops_and_parts_of_the_backends_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("mujoco")
    monkeypatch.setattr(runner, "missing_backends", lambda: {"jax": "no jax"})
    loops = rollout.measure_loops(2, SIZES, seed=0).loops
    assert [(cell.backend, [timing.count for timing in cell.timings], cell.missing) for cell in loops] == [
        ("torch", [4, 4], None),
        ("jax", [], "no jax"),
    ]
    assert loops[0].execution is not None
    parts = rollout.measure_parts(SIZES, seed=0).parts
    assert [(cell.backend, cell.part) for cell in parts] == [("torch", part) for part in PARTS]
    assert all([timing.count for timing in cell.timings] == [4, 4] for cell in parts)


def test_the_presets_plan_what_they_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_accelerator", lambda: None)
    assert rollout.estimated_seconds("smoke", 2) < 60
    assert rollout.estimated_seconds("cpu", 2) < 15 * 60
    # Every timed stretch is of whole timesteps.
    assert all(sizes.loop_steps % num_envs == 0 for sizes in PRESETS.values() for num_envs in sizes.num_envs)
