"""Benchmarks of the agent's calls with pytest-benchmark: `pytest bench/micro -p benchmark --benchmark-json FILE`.

For work on a single call: `python -m pytest_benchmark compare FILE FILE` shows two runs beside each other. The records of results/ come
from the suites, whose rounds alternate between the contenders; here each test runs all of its rounds at once.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.core import precisions, synthetic

ROUNDS, WARMUP = 20, 3
CALLS = {"act": 50, "record_transition": 50, "sample": 50, "update": 4}
"""Calls in a round."""
STORED, CAPACITY = 10_000, 1_000_000
CLOCK = {"timestep": 0, "timesteps": 1}


@pytest.fixture(params=["torch", "jax"])
def agent(request: pytest.FixtureRequest) -> Any:
    """Make an agent of the default size, its memory of a million transitions partly filled."""
    pytest.importorskip(request.param)
    precisions.use(request.param, "float32")
    return synthetic.agent(request.param, batch_size=256, width=256, stored=STORED, capacity=CAPACITY)


def measure(benchmark: BenchmarkFixture, agent: Any, name: str, call: Callable[[], object]) -> None:
    """Time rounds of several calls, each until the device is idle."""

    def several() -> None:
        for _ in range(CALLS[name]):
            call()
        agent.synchronise()

    benchmark.extra_info.update(calls=CALLS[name], execution=agent.execution)
    benchmark.pedantic(several, rounds=ROUNDS, warmup_rounds=WARMUP)  # type: ignore[no-untyped-call]  # It is left unannotated.


def test_act(benchmark: BenchmarkFixture, agent: Any) -> None:
    observations = np.asarray(synthetic.replay(STORED, 0).observations[:1], np.float64)
    measure(benchmark, agent, "act", lambda: agent.to_numpy(agent.act(observations, None, **CLOCK)[0]))


def test_record_transition(benchmark: BenchmarkFixture, agent: Any) -> None:
    rows = synthetic.replay(STORED, 0).map(lambda array: array[:1])
    transition: dict[str, Any] = {
        "observations": rows.observations,
        "states": None,
        "actions": rows.actions,
        "rewards": rows.rewards[:, None],
        "next_observations": rows.next_observations,
        "next_states": None,
        "terminated": np.zeros((1, 1), np.bool_),
        "truncated": np.zeros((1, 1), np.bool_),
        "infos": {},
    }
    measure(benchmark, agent, "record_transition", partial(agent.record_transition, **transition, **CLOCK))


def test_sample(benchmark: BenchmarkFixture, agent: Any) -> None:
    """Sample as the update does: compiled on JAX."""
    library = importlib.import_module(type(agent).__module__.split(".")[1])
    sample = importlib.import_module(type(agent.memory).__module__).sample
    if library.__name__ == "jax":
        sample, source = library.jit(sample, static_argnums=1), library.random.key(0)
    else:
        source = library.Generator(agent.device).manual_seed(0)
    measure(benchmark, agent, "sample", lambda: wait(library, sample(agent.memory.state, 256, source)))


def wait(library: Any, batch: Any) -> None:
    """Wait for JAX, which computes after it has returned, where no agent does."""
    if library.__name__ == "jax":
        library.block_until_ready(batch)


def test_update(benchmark: BenchmarkFixture, agent: Any) -> None:
    measure(benchmark, agent, "update", partial(agent.update, **CLOCK))
