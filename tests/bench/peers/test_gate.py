"""The gate: a loop stops after exactly as many steps of its environment as were asked for, and what lies between is timed."""

import io
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

from bench.peers import gate
from bench.peers.gate import Gate
from tests.clock import Clock


class Toy(gymnasium.Env[Any, Any]):
    """Takes a millisecond a step."""

    observation_space = Box(-1.0, 1.0, (1,))
    action_space = Box(-1.0, 1.0, (1,))

    def __init__(self, **_: Any) -> None:
        """Every environment is made with keywords."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(0.001)
        return np.zeros(1, np.float32), 0.0, False, False, {}


@pytest.fixture
def toy() -> Iterator[str]:
    """A registered environment, forgotten afterwards."""
    gymnasium.register("Toy-v3", Toy)
    yield "Toy-v3"
    del gymnasium.registry["Toy-v3"]


def reader(requests: str, on_read: Callable[[], object] = lambda: None) -> Callable[[], str]:
    """Reads a request at a time, after `on_read`."""
    lines = io.StringIO(requests)

    def read() -> str:
        on_read()
        return lines.readline()

    return read


def train(requests: str, env: str, synchronise: Callable[[], None] = lambda: None) -> tuple[list[dict[str, Any]], list[int]]:
    """Train until the requests end; the answers, and the environment steps that were taken at each request."""
    answers = io.StringIO()
    taken = 0
    at_requests: list[int] = []
    door = Gate(reader(requests, lambda: at_requests.append(taken)), answers, synchronise)
    door.describe = lambda: {"hello": "there"}
    made = gymnasium.make(gate.count_steps(env, door))
    made.reset()
    with pytest.raises(SystemExit):
        while True:
            made.step(np.zeros(1, np.float32))
            taken += 1
    return [json.loads(line) for line in answers.getvalue().splitlines()], at_requests


def test_the_loop_stops_before_its_first_step_and_after_the_steps_of_each_request(toy: str) -> None:
    answers, at_requests = train("advance 3\nadvance 20\n", toy)
    assert at_requests == [0, 3, 23]
    assert answers[0] == {"hello": "there"}
    assert [answer["steps"] for answer in answers[1:]] == [3, 20]


def test_a_stretch_is_timed_from_an_idle_device_to_an_idle_device(toy: str, clock: Clock) -> None:
    answers, _ = train("advance 20\nadvance 20\n", toy, synchronise=lambda: clock.sleep(0.2))
    for answer in answers[1:]:
        # 20 steps of a millisecond, and the wait for the device at the end; not that before.
        assert answer["seconds"] == pytest.approx(0.22)


def test_the_time_that_a_contender_stands_still_is_told_and_not_timed(toy: str, clock: Clock) -> None:
    answers = io.StringIO()

    def wait() -> None:
        clock.sleep(0.3)
        clock.work(0.04)

    door = Gate(reader("advance 5\n", wait), answers, lambda: None)
    made = gymnasium.make(gate.count_steps(toy, door))
    made.reset()
    with pytest.raises(SystemExit):
        while True:
            made.step(np.zeros(1, np.float32))
    answer = json.loads(answers.getvalue().splitlines()[1])
    assert answer["seconds"] == pytest.approx(0.005)
    assert answer["waited_seconds"] == pytest.approx(0.34)
    assert answer["waited_cpu_seconds"] == pytest.approx(0.04)


def test_the_environment_keeps_its_id_its_spec_and_its_wrappers(toy: str) -> None:
    plain = gymnasium.make(toy)
    door = Gate(reader("advance 100\n"), io.StringIO(), lambda: None)
    assert gate.count_steps(toy, door) == toy
    counted = gymnasium.make(toy)
    assert type(counted) is type(plain)
    assert isinstance(counted.unwrapped, Toy)
    assert counted.spec is not None
    assert counted.spec.id == toy


def test_an_older_gymnasium_gives_the_newest_version_that_it_has(toy: str) -> None:
    gymnasium.register("Toy-v2", Toy)
    try:
        assert gate.count_steps("Toy-v7", Gate(reader(""), io.StringIO(), lambda: None)) == "Toy-v3"
    finally:
        del gymnasium.registry["Toy-v2"]
    with pytest.raises(ValueError, match="no version of environment 'Nowhere-v1' is registered"):
        gate.count_steps("Nowhere-v1", Gate(reader(""), io.StringIO(), lambda: None))
