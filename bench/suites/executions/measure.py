"""Executions that agents choose, each beside the plain one: `python -m bench executions`.

Two agents with one seed are driven through their life cycle with the same observations and rewards: one with the execution that it chooses
on this device, one plain. Actions, parameters, moments and counters are compared after a hundred updates, in float64 where the case allows
it. The members of a population, which trains in environments, are held against runs of their seeds alone.
"""

import importlib
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args

import gymnasium
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from bench.core import runner
from bench.core.stage import Preset
from bench.suites.executions.samples import Case, ExecutionCell, ExecutionsSamples

OBSERVATION, ACTION = 17, 6
RANDOM_STEPS = 20
"""Timesteps before the first update."""
MEMBERS = 2
UPDATES: dict[Preset, int] = {"smoke": 10, "cpu": 100, "gpu": 100}
SECONDS = 6.0
"""For the estimate: a case of one backend, compiling included."""

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Agents:
    """The agents of a case."""

    dtype: str = "float64"
    recurrent: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of `SACConfig`."""


AGENTS: dict[Case, Agents] = {
    "SAC": Agents(),
    "SAC_RNN": Agents(recurrent="gru", settings={"batch_size": 4, "sequence_length": 8}),
    "AMP": Agents(dtype="float32", settings={"mixed_precision": True, "precision": "bfloat16"}),
}
"""All cases but the population."""


def plan(preset: Preset, threads: int, seed: int) -> runner.Plan[ExecutionsSamples]:
    """Plan a preset."""
    updates = UPDATES[preset]
    return runner.Plan(
        title=f"Executions beside plain, {updates} updates",
        configuration={"updates": updates, "hidden": [32, 32], "batch_size": 32, "members": MEMBERS, "matmul_precision": "highest"},
        pieces=[
            runner.Piece(name=f"{backend}, {case}", seconds=SECONDS, measure=partial(measure, backend, case, updates, seed))
            for backend in runner.BACKENDS
            for case in get_args(Case)
        ],
    )


def measure(backend: str, case: Case, updates: int, seed: int) -> ExecutionsSamples:
    """Compare the execution that a backend chooses with the plain one."""
    dtype = AGENTS[case].dtype if case in AGENTS else "float32"
    cell = ExecutionCell(
        backend=backend,
        case=case,
        execution=None,
        dtype=dtype,
        updates=updates,
        difference=None,
        missing=runner.missing_backends().get(backend),
    )
    if cell.missing is None:
        # Imported here, as the process must be bound to its cores first.
        from bench.core import precisions

        precisions.use(backend, "float32")
        execution, difference = population(backend, updates, seed) if case == "population" else single(backend, AGENTS[case], updates, seed)
        cell = replace(cell, execution=execution, difference=difference if math.isfinite(difference) else None)
    return ExecutionsSamples(cells=[cell])


def single(backend: str, agents: Agents, updates: int, seed: int) -> tuple[str, float]:
    """Return the execution that an agent chooses, and its largest difference from the plain one."""
    with _dtype(backend, agents.dtype):
        chosen, plain = (_agent(backend, agents, execution, seed) for execution in ("auto", "plain"))
        found = [drive(agent, updates, seed) for agent in (chosen, plain)]
    return chosen.execution, largest_difference(*found)


@contextmanager
def _dtype(backend: str, dtype: str) -> Iterator[None]:
    if backend == "jax" and dtype == "float64":
        import jax

        with jax.enable_x64(True):
            yield
    else:
        yield


def _agent(backend: str, agents: Agents, execution: str, seed: int) -> Any:
    library = importlib.import_module(f"sacref.{backend}")
    spaces = {
        "observation_space": gymnasium.spaces.Box(-math.inf, math.inf, (OBSERVATION,), np.float64),
        "action_space": gymnasium.spaces.Box(-1.0, 1.0, (ACTION,), np.float64),
    }
    cell = {} if agents.recurrent is None else {"recurrent": agents.recurrent, "recurrent_size": 16}
    made = (library.SAC if agents.recurrent is None else library.SAC_RNN)(
        models=library.default_models(**spaces, hidden=(32, 32), seed=seed, dtype=agents.dtype, **cell),
        memory=library.ReplayMemory(1_000, 1),
        cfg={
            "batch_size": 32,
            "random_timesteps": RANDOM_STEPS,
            "learning_starts": RANDOM_STEPS,
            "execution": execution,
            "seed": seed,
            "experiment": {"write_interval": 0, "checkpoint_interval": 0},
            **agents.settings,
        },
        **spaces,
    )
    made.init()
    made.enable_training_mode(True, apply_to_models=True)
    return made


def drive(agent: Any, updates: int, seed: int) -> dict[str, NDArray[Any]]:
    """Let an agent act and learn on random observations and rewards; return its arrays and actions."""
    generator = np.random.default_rng(seed)
    timesteps = RANDOM_STEPS + updates
    observations = generator.normal(size=(1, OBSERVATION))
    taken = []
    for timestep in range(timesteps):
        clock = {"timestep": timestep, "timesteps": timesteps}
        agent.pre_interaction(**clock)
        actions = agent.to_numpy(agent.act(observations, None, **clock)[0])
        taken.append(actions)
        following = generator.normal(size=(1, OBSERVATION))
        agent.record_transition(
            observations=observations,
            states=None,
            actions=actions,
            rewards=generator.normal(size=(1, 1)),
            next_observations=following,
            next_states=None,
            terminated=np.zeros((1, 1), np.bool_),
            truncated=np.zeros((1, 1), np.bool_),
            infos={},
            **clock,
        )
        agent.post_interaction(**clock)
        observations = following
    return {**agent.arrays(), "actions": np.concatenate(taken)}


def population(backend: str, updates: int, seed: int) -> tuple[str, float]:
    """Return the execution that a population chooses, and its members' largest difference from plain runs of their seeds alone."""
    import sacref

    def settings(execution: str) -> dict[str, Any]:
        experiment = {"write_interval": 0, "checkpoint_interval": 0}
        starts = {"random_timesteps": RANDOM_STEPS, "learning_starts": RANDOM_STEPS}
        return {"batch_size": 32, "execution": execution, "experiment": experiment, **starts}

    arguments: Any = {
        "backend": backend,
        "env": "Pendulum-v1",
        "steps": RANDOM_STEPS + updates,
        "hidden": (32, 32),
        "evaluation_episodes": 1,
        "progress": False,
    }
    seeds = range(seed, seed + MEMBERS)
    with tempfile.TemporaryDirectory(prefix="sacref-bench-") as folder:
        together = sacref.train_population(seeds=seeds, run_dir=Path(folder) / "together", cfg=settings("auto"), **arguments)
        members: dict[str, Any] = {name: result.agent for name, result in together.members.items()}
        differences = []
        for each in seeds:
            alone: Any = sacref.train(seed=each, run_dir=Path(folder) / str(each), cfg=settings("plain"), **arguments).agent
            differences.append(largest_difference(members[f"seed={each}"].arrays(), alone.arrays()))
    return members[f"seed={seed}"].execution, max(differences)


def largest_difference(found: Arrays, beside: Arrays) -> float:
    """Return the largest max|a - b| / max|b| of the arrays; NaN if one is not finite.

    Raises:
        ValueError: if the two have other arrays.
    """
    if found.keys() != beside.keys():
        raise ValueError(f"arrays {sorted(found.keys() ^ beside.keys())} are on one side alone, expected the same on both")
    differences = []
    for name, array in beside.items():
        apart = np.abs(found[name].astype(np.float64) - array.astype(np.float64)).max(initial=0.0)
        differences.append(apart / largest if (largest := np.abs(array.astype(np.float64)).max(initial=0.0)) else apart)
    return float(np.max(differences))


SWEEP = runner.Sweep(ExecutionsSamples, plan)
main, stages, estimated_seconds = SWEEP.main, SWEEP.stages, SWEEP.estimated_seconds
