"""A rank of the exactness tests: updates on its part of each batch, or from a memory of its own, and writes what it has learned."""

import json
import sys
from dataclasses import replace
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np

from sacref.algorithm.data import Sequences
from sacref.algorithm.tree import map_leaves
from sacref.parity.data import NumpyBatch, NumpyNoise
from sacref.parity.drivers import BackendAgent, Problem
from sacref.preprocessing import RunningStandardScaler
from tests.backends import Backend, draw_row, make_agent
from tests.backends import Spaces as TaskSpaces
from tests.parity.features import FEATURES, PLAIN

WHOLE: dict[str, Problem] = {
    "clipped, adaptive": replace(
        PLAIN,
        grad_norm_clip=0.2,
        schedule=("kl_adaptive", "cosine", "exponential"),
        schedule_kwargs=({"kl_threshold": 4e-4}, {"steps": 80, "end": 0.1}, {"decay": 0.98}),
    ),
    "n-step, mask": FEATURES["n-step, mask"],
    "recurrent with everything": replace(FEATURES["recurrent with everything"], batch_size=8),
}
"""Problems whose batches are divided."""


def part_of(batch: Any, noise: Any, part: int, parts: int) -> tuple[Any, Any]:
    """Rows of a batch, or columns of sequences, and their noise."""

    def cut(axis: int) -> Any:
        def rows(array: Any) -> Any:
            return np.split(array, parts, axis)[part]

        return rows

    axis = batch.actions.ndim - 2
    if isinstance(batch, Sequences):
        mine: Any = batch._replace(carry=None).map(cut(axis))._replace(carry=map_leaves(cut(0), batch.carry))
    else:
        mine = batch.map(cut(axis))
    return mine, noise.map(lambda array: cut(axis)(array) if array.ndim > 1 else array)


def after_parts(backend: str, problem: Problem, updates: int, part: int, parts: int, device: str = "cpu") -> dict[str, Any]:
    """The agent's arrays after so many updates on the part of each batch."""
    driven = BackendAgent(backend, problem, problem.initial_state(), device)
    for batch, noise in islice(problem.draws(), updates):
        mine: tuple[NumpyBatch, NumpyNoise] = part_of(batch, noise, part, parts)
        with driven._precision():
            driven.agent.update_on(*mine)
    arrays: dict[str, Any] = driven.agent.arrays()
    return arrays


def after_own_rows(backend: str, rank: int, updates: int, device: str) -> dict[str, Any]:
    """The agent's arrays after so many updates in float16 from a memory of its own, where rank 1 has rewards whose gradients overflow."""
    agent = make_agent(
        Backend(backend),
        TaskSpaces(),
        seed=3,
        capacity=64,
        batch_size=8,
        mixed_precision=True,
        precision="float16",
        grad_norm_clip=1.0,
        observation_preprocessor=RunningStandardScaler,
        chunk=50,
        gradient_steps=50,
        device=device,
    )
    generator = np.random.default_rng(rank)
    for row in range(64):
        reward = 1e5 if rank == 1 and row % 16 == 0 else generator.normal()
        agent.record_transition(**draw_row(agent, generator, rewards=np.full((1, 1), reward), terminated=np.full((1, 1), row % 16 == 0)))
    for _ in range(updates // 50):
        agent.update(timestep=0, timesteps=1)
    arrays: dict[str, Any] = agent.arrays()
    return arrays


def main(backend: str, device: str, out: str, updates: str, own_updates: str, *cases: str) -> None:
    """Write `<out>/<case>-<rank>.npz` for each case, and what comes of rows of its own, and of models of its own."""
    jaxtyping.config.update("jaxtyping_disable", True)
    ranks = import_module(f"sacref.{backend}.ranks").join("cpu", timeout=60)
    for case in cases:
        np.savez(Path(out) / f"{case}-{ranks.rank}.npz", **after_parts(backend, WHOLE[case], int(updates), ranks.rank, ranks.size, device))
    np.savez(Path(out) / f"own-{ranks.rank}.npz", **after_own_rows(backend, ranks.rank, int(own_updates), device))
    # What the models are drawn from may differ; the ranks begin alike all the same.
    agent = make_agent(Backend(backend), TaskSpaces(), seed=ranks.rank)
    np.savez(Path(out) / f"begin-{ranks.rank}.npz", **agent.arrays())
    (Path(out) / f"{ranks.rank}.json").write_text(json.dumps({"rank": ranks.rank, "size": ranks.size, "execution": agent.execution}))
    ranks.wait()  # who leaves early closes the connections of who is still at work


if __name__ == "__main__":
    main(*sys.argv[1:])
