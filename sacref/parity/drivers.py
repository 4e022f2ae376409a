"""The compared implementations behind one interface: set the state, make updates, get all results."""

import importlib
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import gymnasium
import numpy as np

from sacref.algorithm.data import Batch, Noise
from sacref.config import SACConfig
from sacref.envs.interface import Space
from sacref.envs.spaces import DType
from sacref.parity.data import draws, initial_state, sequence_draws, split_observations, synthetic_replay
from sacref.parity.networks import Arrays, Floats
from sacref.parity.oracle import Data, Settings
from sacref.parity.oracle import update as update_oracle
from sacref.parity.schedules import Schedule, make

Draw: TypeAlias = tuple[Data, Noise[Floats]]
Kwargs: TypeAlias = dict[str, Any]

BACKENDS = ("torch", "jax")
REQUIRES = {"torch": ("torch",), "jax": ("jax", "flax", "optax")}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Sizes and settings, the same for every implementation."""

    observation: int = 17
    action: int = 6
    hidden: tuple[int, ...] = (256, 256)
    critics: int = 2
    batch_size: int = 256
    replay_size: int = 10_000
    dtype: str = "float64"
    seed: int = 0
    discount_factor: float = 0.99
    polyak: float = 0.005
    learning_rate: tuple[float, float, float] = (3e-4, 3e-4, 3e-4)
    """Policy, critics, temperature."""
    grad_norm_clip: float = 0.0
    learn_entropy: bool = True
    initial_entropy_value: float = 1.0
    target_entropy: float | None = None
    """In nats; None means minus the number of action dimensions."""
    states: int = 0
    """Width of the privileged states that the critics see; 0 for none."""
    dict_observations: bool = False
    """Whether observations are a dict of "positions" and "velocities"."""
    masked: bool = False
    """Whether some rows of each batch do not count."""
    n_step: int = 1
    target_subset: int | None = None
    policy_value: Literal["min", "mean"] = "min"
    policy_delay: int = 1
    network: str = "mlp"
    critic_hidden: tuple[int, ...] | None = None
    """Widths of the critics' hidden layers, or residual blocks; None is `hidden`."""
    layer_norm: bool = False
    dropout: float = 0.0
    schedule: tuple[str | None, str | None, str | None] = (None, None, None)
    """Names of schedules: policy, critics, temperature."""
    schedule_kwargs: tuple[Kwargs, Kwargs, Kwargs] = ({}, {}, {})
    recurrent: str | None = None
    """Kind of the networks' cells: "rnn", "gru", "lstm"; None for feed-forward networks."""
    recurrent_size: int = 128
    feed_previous: tuple[str, ...] = ("actions",)
    """Inputs of cells from the step before: "actions", "rewards"."""
    sequence_length: int = 32
    burn_in: int = 0

    def __post_init__(self) -> None:
        if self.recurrent is not None and (self.masked or self.n_step > 1):
            raise ValueError(
                f"Problem: recurrent is {self.recurrent!r} with masked {self.masked} and n_step {self.n_step}, expected False and 1: "
                f"sequences have a mask of their own, and steps of one"
            )
        if self.dict_observations and self.observation < 2:
            raise ValueError(f"Problem: observation is {self.observation}, expected at least 2 to be split into a dict")

    def to_dict(self) -> dict[str, object]:
        """Return the fields as JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def settings(self) -> Settings:
        """Return the settings of the oracle."""
        return Settings(
            target_entropy=-float(self.action) if self.target_entropy is None else self.target_entropy,
            discount_factor=self.discount_factor,
            polyak=self.polyak,
            learning_rates=self.learning_rate,
            grad_norm_clip=self.grad_norm_clip,
            learn_entropy=self.learn_entropy,
            policy_value=self.policy_value,
            policy_delay=self.policy_delay,
            schedules=self._schedules(),
            dropout=self.dropout,
            feed_previous=self.feed_previous,
        )

    def config(self) -> SACConfig:
        """Return the configuration of the agents."""
        sequences: Kwargs = {"sequence_length": self.sequence_length, "burn_in": self.burn_in} if self.recurrent else {}
        return SACConfig(
            batch_size=self.batch_size,
            discount_factor=self.discount_factor,
            polyak=self.polyak,
            learning_rate=self.learning_rate,
            grad_norm_clip=self.grad_norm_clip,
            learn_entropy=self.learn_entropy,
            initial_entropy_value=self.initial_entropy_value,
            target_entropy=self.target_entropy,
            n_step=self.n_step,
            target_subset=self.target_subset,
            policy_value=self.policy_value,
            policy_delay=self.policy_delay,
            learning_rate_scheduler=self.schedule,
            learning_rate_scheduler_kwargs=self.schedule_kwargs,
            **sequences,
        )

    def spaces(self) -> dict[str, Space | None]:
        """Return the spaces of the agents."""

        def box(width: int) -> Space:
            return gymnasium.spaces.Box(-math.inf, math.inf, (width,), np.float64)

        observations = split_observations(np.zeros(self.observation)) if self.dict_observations else np.zeros(self.observation)
        return {
            "observation_space": gymnasium.spaces.Dict({name: box(len(part)) for name, part in observations.items()})
            if isinstance(observations, dict)
            else box(self.observation),
            "state_space": box(self.states) if self.states > 0 else None,
            "action_space": gymnasium.spaces.Box(-1.0, 1.0, (self.action,), np.float64),
        }

    def initial_state(self) -> Arrays:
        """Return the state in which every implementation starts, in `dtype`."""
        return initial_state(
            observation=self.observation,
            action=self.action,
            hidden=self.hidden,
            critics=self.critics,
            alpha=self.initial_entropy_value,
            learn_entropy=self.learn_entropy,
            seed=self.seed,
            dtype=self.dtype,
            states=self.states,
            network=self.network,
            critic_hidden=self.critic_hidden,
            layer_norm=self.layer_norm,
            recurrent=self.recurrent,
            recurrent_size=self.recurrent_size,
            fed=("actions" in self.feed_previous) * self.action + ("rewards" in self.feed_previous),
            learning_rates=self.learning_rate,
            schedules=self._schedules(),
            policy_delay=self.policy_delay,
        )

    def draws(self) -> Iterator[Draw]:
        """Draw batches with their noise for every implementation, in `dtype`; without end."""
        pairs: Iterator[Draw]
        sizes: Kwargs = {"observation": self.observation, "action": self.action, "states": self.states}
        drawn: Kwargs = {
            "batch_size": self.batch_size,
            "seed": self.seed,
            "critics": self.critics,
            "target_subset": self.target_subset,
            "dropout_widths": (self.critic_hidden or self.hidden) if self.dropout > 0 else (),
        }
        dtype = np.dtype(self.dtype)
        if self.recurrent is None:
            replay = synthetic_replay(
                self.replay_size, **sizes, seed=self.seed, dtype=dtype, n_step=self.n_step, discount_factor=self.discount_factor
            )
            pairs = draws(replay, **drawn, masked=self.masked)
        else:
            carry = (self.recurrent_size,) * (2 if self.recurrent == "lstm" else 1)
            pairs = sequence_draws(**sizes, **drawn, carry=carry, sequence_length=self.sequence_length, burn_in=self.burn_in, dtype=dtype)
        return map(self._with_leaves, pairs) if self.dict_observations else pairs

    def _with_leaves(self, pair: Draw) -> Draw:
        batch, noise = pair
        batch = batch._replace(observations=split_observations(batch.observations))
        if isinstance(batch, Batch):
            batch = batch._replace(next_observations=split_observations(batch.next_observations))
        return batch, noise

    def _schedules(self) -> tuple[Schedule | None, Schedule | None, Schedule | None]:
        policy, critics, temperature = (make(name, kwargs) for name, kwargs in zip(self.schedule, self.schedule_kwargs, strict=True))
        return policy, critics, temperature


class Outcome(NamedTuple):
    """Results of one update."""

    metrics: Arrays
    gradients: Arrays
    """Gradients before clipping, by the names of their parameters."""
    state: Arrays
    """Parameters, log alpha, moments and counts after the update."""


class Implementation(Protocol):
    """An agent or oracle that updates."""

    def reset(self, state: Arrays) -> None:
        """Go on from `state`."""
        ...

    def update(self, batch: Data, noise: Noise[Floats]) -> Outcome:
        """Make one update."""
        ...


class Oracle:
    """The NumPy oracle, in a floating type of its own: in float64 it is the truth that float32 drifts from."""

    def __init__(self, problem: Problem, state: Arrays, dtype: str = "float64") -> None:
        self.settings: Settings = problem.settings()
        self.dtype: DType = np.dtype(dtype)
        self.reset(state)

    def reset(self, state: Arrays) -> None:
        self.state: Arrays = {name: self._cast(array) for name, array in state.items()}

    def update(self, batch: Data, noise: Noise[Floats]) -> Outcome:
        batch = batch.map(self._cast)
        noise = noise.map(self._cast)
        self.state, metrics, gradients = update_oracle(self.state, batch, noise, self.settings)
        return Outcome(metrics, gradients, self.state)

    def _cast(self, array: Floats) -> Floats:
        return array.astype(self.dtype) if array.dtype.kind == "f" else array


class BackendAgent:
    """A backend's agent with its default models on a device."""

    def __init__(self, backend: str, problem: Problem, state: Arrays, device: str | None = None) -> None:
        module = importlib.import_module(f"sacref.{backend}")
        self.dtype: str = problem.dtype
        self.backend: str = backend
        spaces = problem.spaces()
        cell: Kwargs = {}
        if problem.recurrent is not None:
            cell = {"recurrent": problem.recurrent, "recurrent_size": problem.recurrent_size, "feed_previous": problem.feed_previous}
        with self._precision():
            models = module.default_models(
                **spaces,
                hidden=problem.hidden,
                seed=problem.seed,
                dtype=problem.dtype,
                num_critics=problem.critics,
                network=problem.network,
                critic_hidden=problem.critic_hidden,
                layer_norm=problem.layer_norm,
                dropout=problem.dropout,
                **cell,
            )
            make = module.SAC if problem.recurrent is None else module.SAC_RNN
            self.agent: Any = make(models=models, memory=None, **spaces, device=device, cfg=problem.config())
            self.agent.keep_gradients()
        self.reset(state)

    def reset(self, state: Arrays) -> None:
        with self._precision():
            self.agent.set_arrays(state)

    def update(self, batch: Data, noise: Noise[Floats]) -> Outcome:
        with self._precision():
            metrics = self.agent.update_on(batch, noise)
            return Outcome(dict(metrics), self.agent.gradients(), self.agent.arrays())

    @contextmanager
    def _precision(self) -> Iterator[None]:
        # JAX keeps float64 only where its 64-bit mode is on, and both may multiply float32 in TF32 on a GPU; the process's settings stay.
        with ExitStack() as settings:
            if self.backend == "jax":
                jax = importlib.import_module("jax")
                settings.enter_context(jax.default_matmul_precision("highest"))
                if self.dtype == "float64":
                    settings.enter_context(jax.enable_x64(True))
            else:
                torch = importlib.import_module("torch")
                settings.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
                settings.callback(setattr, torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
                torch.set_float32_matmul_precision("highest")
                torch.backends.cudnn.allow_tf32 = False
            yield


def installed_backends() -> list[str]:
    """List the backends whose libraries are installed."""
    return [backend for backend in BACKENDS if all(find_spec(library) is not None for library in REQUIRES[backend])]


def implementations(problem: Problem, backends: list[str]) -> dict[str, Implementation]:
    """Make the agents of `backends` and the oracle, all in one state.

    In float32 there are two oracles: `numpy` stays in float64, as the truth, and `numpy_float32` shows how far rounding alone drifts.
    """
    state = problem.initial_state()
    found: dict[str, Implementation] = {backend: BackendAgent(backend, problem, state) for backend in backends}
    if problem.dtype == "float32":
        found["numpy_float32"] = Oracle(problem, state, "float32")
    return found | {"numpy": Oracle(problem, state)}
