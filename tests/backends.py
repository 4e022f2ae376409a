"""One handle on either backend, so that a test of the agents is written once. `backend = pytest.fixture(params=BACKENDS)(load_backend)`."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import gymnasium
import jaxtyping
import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from sacref.agent.metrics import unmeasured
from sacref.algorithm.data import METRICS, Batch, Noise
from sacref.config import ExperimentConfig, SACConfig

BACKENDS = ["torch", "jax"]

jax_in_full = pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.full)], indirect=True)
"""For a test of what both backends share: the full run alone waits for what JAX compiles."""


@dataclass(frozen=True)
class Backend:
    """A backend's package, and the few things that its arrays differ in."""

    name: str

    def module(self, name: str) -> ModuleType:
        """`sacref.<backend>.<name>`."""
        return importlib.import_module(f"sacref.{self.name}.{name}")

    @property
    def package(self) -> Any:
        return importlib.import_module(f"sacref.{self.name}")

    @property
    def array_type(self) -> type:
        library = importlib.import_module(self.name)
        found: type = library.Tensor if self.name == "torch" else library.Array
        return found

    def array(self, values: ArrayLike) -> Any:
        """`values` as an array of this backend, of the same dtype."""
        host = np.array(values)
        if self.name == "torch":
            return importlib.import_module("torch").from_numpy(host)
        return importlib.import_module("jax.numpy").asarray(host)

    def numpy(self, array: Any) -> NDArray[Any]:
        """An array of this backend on the host, as a copy."""
        return np.array(array.detach().numpy() if self.name == "torch" else array)

    def tree(self, tree: Any) -> Any:
        """A dict of dicts of array-likes as one of this backend's arrays."""
        return {name: self.tree(branch) for name, branch in tree.items()} if isinstance(tree, Mapping) else self.array(tree)

    def agent(self, spaces: "Spaces | None" = None, **options: Any) -> Any:
        """A small agent in training mode; for the options see `make_agent`."""
        return make_agent(self, spaces or Spaces(), **options)


def load_backend(request: pytest.FixtureRequest) -> Backend:
    """The body of the `backend` fixture: skips where the backend is not installed."""
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return Backend(request.param)


@contextmanager
def without_shape_checks() -> Iterator[None]:
    """For hundreds of updates: the checks take most of the time of an eager one."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def installed_backends() -> list[Backend]:
    """Both backends, for tests that compare them."""
    for name in BACKENDS:
        pytest.importorskip(name, reason=f"{name} is not installed")
    return [Backend(name) for name in BACKENDS]


class Spaces(NamedTuple):
    """Spaces of a small task."""

    observation: gymnasium.Space[Any] = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64)
    action: gymnasium.Space[Any] = gymnasium.spaces.Box(-2.0, 2.0, (2,), np.float32)
    state: gymnasium.Space[Any] | None = None


def box(low: ArrayLike, high: ArrayLike, shape: tuple[int, ...] | None = None, dtype: Any = np.float32) -> gymnasium.spaces.Box:
    """A Box; `shape` only where the bounds are numbers."""
    if shape is not None:
        return gymnasium.spaces.Box(float(np.asarray(low)), float(np.asarray(high)), shape, dtype)
    return gymnasium.spaces.Box(np.asarray(low, dtype), np.asarray(high, dtype), dtype=dtype)


def make_agent(
    backend: Backend,
    spaces: Spaces,
    *,
    capacity: int | None = 32,
    num_envs: int = 1,
    hidden: tuple[int, ...] = (8,),
    num_critics: int = 2,
    models: Mapping[str, Any] | None = None,
    networks: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    training: bool = True,
    seed: int = 0,
    device: Any = None,
    algorithm: str = "SAC",
    memory: Any = None,
    **cfg: Any,
) -> Any:
    """An agent of tiny networks. `cfg` holds fields of SACConfig; the batch is 4 unless given, and no files are written.

    Args:
        capacity: of the memory; None for an agent without one. seed: of the networks and of the agent's streams.
        networks: further options of default_models. memory: None for one of its own.
    """
    package = backend.package
    if models is None:
        models = package.default_models(
            observation_space=spaces.observation,
            state_space=spaces.state,
            action_space=spaces.action,
            hidden=hidden,
            seed=seed,
            dtype=dtype,
            num_critics=num_critics,
            **(networks or {}),
        )
    quiet = ExperimentConfig(write_interval=0, checkpoint_interval=0)
    agent = getattr(package, algorithm)(
        models=models,
        memory=memory if memory is not None or capacity is None else package.ReplayMemory(capacity, num_envs),
        observation_space=spaces.observation,
        state_space=spaces.state,
        action_space=spaces.action,
        device=device,
        cfg=SACConfig(**{"experiment": quiet, "batch_size": min(4, capacity or 4), "seed": seed, **cfg}),
    )
    agent.init()
    agent.enable_training_mode(training)
    return agent


def draw_row(agent: Any, generator: np.random.Generator, **given: Any) -> dict[str, Any]:
    """The arguments of one `record_transition`, drawn at random but for those that are given; NumPy arrays."""
    envs = agent.memory.num_envs if agent.memory is not None else 1
    action = agent.action_space

    def of(space: Any) -> Any:
        if space is None:
            return None
        if isinstance(space, gymnasium.spaces.Dict):
            return {key: of(inner) for key, inner in space.spaces.items()}
        shape = (envs, *space.shape)
        if np.issubdtype(space.dtype, np.floating):
            return generator.normal(size=shape).astype(space.dtype)
        return generator.integers(0, 256, shape).astype(space.dtype)

    row: dict[str, Any] = {
        "observations": of(agent.observation_space),
        "states": of(agent.state_space),
        "actions": generator.uniform(action.low, action.high, (envs, *action.shape)).astype(action.dtype),
        "rewards": generator.normal(size=(envs, 1)).astype(np.float32),
        "next_observations": of(agent.observation_space),
        "next_states": of(agent.state_space),
        "terminated": generator.random((envs, 1)) < 0.2,
        "truncated": np.zeros((envs, 1), bool),
        "infos": {},
        "timestep": 0,
        "timesteps": 1000,
    }
    return {**row, **given}


def fill(agent: Any, rows: int, seed: int = 0) -> None:
    """Record `rows` random rows."""
    generator = np.random.default_rng(seed)
    for _ in range(rows):
        agent.record_transition(**draw_row(agent, generator))


def draw_batch(agent: Any, size: int, seed: int = 0) -> tuple[Any, Any]:
    """A random batch and its noise for `update_on`, as NumPy arrays in float64."""
    generator = np.random.default_rng(seed)
    shape, actions = agent.observation_space.shape, int(np.prod(agent.action_space.shape))
    batch = Batch(
        observations=generator.normal(size=(size, *shape)),
        states=None,
        actions=generator.uniform(-0.9, 0.9, (size, actions)),
        rewards=generator.normal(size=size),
        next_observations=generator.normal(size=(size, *shape)),
        next_states=None,
        terminated=generator.random(size) < 0.3,
    )
    return batch, Noise(next_actions=generator.normal(size=(size, actions)), actions=generator.normal(size=(size, actions)))


def assert_same_arrays(a: Mapping[str, NDArray[Any]], b: Mapping[str, NDArray[Any]]) -> None:
    """Bit for bit."""
    assert set(a) == set(b)
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def forward(arrays: Mapping[str, NDArray[Any]], model: str, inputs: NDArray[Any]) -> NDArray[Any]:
    """A default model by hand, from the arrays of an agent: dense layers with ReLU between them; `(batch, outputs)`."""
    i = 0
    while f"{model}.hidden.{i}.kernel" in arrays:
        inputs = np.maximum(inputs @ arrays[f"{model}.hidden.{i}.kernel"] + arrays[f"{model}.hidden.{i}.bias"], 0.0)
        i += 1
    outputs: NDArray[Any] = inputs @ arrays[f"{model}.head.kernel"] + arrays[f"{model}.head.bias"]
    return outputs


def metrics_of(agent: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, NDArray[Any]]]:
    """A list that grows by the metrics of each update that the agent takes from its memory."""
    seen: list[dict[str, NDArray[Any]]] = []

    def spy(packed: list[Any]) -> None:
        names = [name for name in METRICS if name not in unmeasured(agent.cfg)]
        sizes = [len(agent.learner.state.critics) if name.startswith("q_") else 1 for name in names]
        for row in np.concatenate([agent.to_numpy(matrix) for matrix in packed]):
            parts = np.split(row, np.cumsum(sizes)[:-1])
            seen.append({name: part if part.size > 1 else part[0] for name, part in zip(names, parts, strict=True)})

    monkeypatch.setattr(agent.metrics, "track_updates", spy)
    return seen
