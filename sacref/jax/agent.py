"""Soft Actor-Critic on JAX: what the agents' parts need of the library, and the agents."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import ModuleType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from array_api_compat import is_torch_array
from flax import nnx
from jax import Array

import sacref.jax.optim as optim
import sacref.jax.weights as weights
from sacref.agent.agent import Agent
from sacref.agent.backend import Functions
from sacref.agent.carry import Carry
from sacref.agent.execution import Actor, Bounds, Streams
from sacref.agent.model_checks import draw_widths
from sacref.algorithm.sequences import Follow
from sacref.algorithm.tree import Tree, map_leaves
from sacref.config import ConfigError, Execution, SACConfig
from sacref.envs.device import transferred
from sacref.envs.interface import Space
from sacref.jax.device import Device, device_of, devices_of
from sacref.jax.execution import DrawSpec, Runner, actors, choose, fuse, learner, stepper
from sacref.jax.memory import ReplayMemory, sampler
from sacref.jax.mesh import DataParallel, average
from sacref.jax.optim import State, Update
from sacref.jax.precision import low_precision
from sacref.jax.ranks import ranks
from sacref.ranks import Ranks
from sacref.spec.arrays import NumpyArray, as_numpy

Parameters = dict[str, Array]


class JaxBackend:
    """JAX, with the devices and dtype of one agent; see `sacref.agent.backend.Backend`."""

    name = "jax"
    reuses_functions = True
    dtype: np.dtype[np.generic]
    optim: ModuleType = optim
    weights: ModuleType = weights

    def __init__(self, device: str | Device | None) -> None:
        self.device: Device = device_of(device)
        self.ranks: Ranks = ranks()
        self.longest_integer: np.dtype[np.generic] = np.dtype(jax.dtypes.canonicalize_dtype(np.int64))
        devices = devices_of(device)
        self.parallel: DataParallel | None = DataParallel(devices) if self.ranks.size > 1 or len(devices) > 1 else None
        self.average: Callable[[Tree], Tree] | None = average if self.parallel is not None else None

    # Arrays.

    def is_array(self, value: object) -> bool:
        if not isinstance(value, Array):
            return False
        if isinstance(value, jax.core.Tracer):
            raise TypeError(
                f"an array is traced ({value.aval}), expected one that holds numbers, since they are stored: call the agent outside of "
                f"functions under jax.jit, jax.grad or jax.vmap"
            )
        return True

    def to_numpy(self, array: object) -> NumpyArray:
        return np.array(array)

    def upload(self, array: object, *, copy: bool = False) -> Array:
        if is_torch_array(array):  # a copy, for JAX may read it after its owner has written into it again
            array = transferred(array.detach().clone(), jnp, self.device)
        # JAX's own arrays cannot be written into: they need no copy.
        if isinstance(array, Array):
            dtype = self.dtype if array.dtype in (np.float32, np.float64) else array.dtype
            uploaded: Array = jax.device_put(jnp.asarray(array, dtype), self.device)
            return uploaded
        with np.errstate(over="ignore"):  # what is infinite then is looked for on the device
            host = self._in_own_dtype(as_numpy(array, "the array"))
        uploaded = jax.device_put(host, self.device)
        return uploaded

    def _in_own_dtype(self, array: Any) -> NumpyArray:
        """Copy a host array, in the dtype it has on the device."""
        return np.array(array, self.dtype if array.dtype in (np.float32, np.float64) else array.dtype)

    def as_floats(self, array: Array) -> Array:
        return array.astype(self.dtype)

    def like(self, array: NumpyArray, like: Array) -> Array:
        uploaded: Array = jax.device_put(np.array(array, like.dtype), self.device)
        return uploaded

    def copy(self, array: Array) -> Array:
        return jnp.array(array, copy=True)

    def act_inputs(self, tree: Tree) -> Tree:
        # Host arrays go into the compiled call as they are: an upload of its own costs more than the call.
        return map_leaves(lambda leaf: self.upload(leaf) if isinstance(leaf, Array) else self._in_own_dtype(leaf), tree)

    def update_moments(self, held: Tree, arrays: Mapping[str, Mapping[str, NumpyArray]]) -> Tree:
        # Host arrays go into compiled calls as they are.
        return {name: {key: array.astype(self.dtype) for key, array in own.items()} for name, own in arrays.items()}

    def fetch(self, metrics: Sequence[Array]) -> NumpyArray:
        return np.concatenate(jax.device_get(list(metrics)))

    def synchronise(self, tree: Tree) -> None:
        wait: Callable[[object], object] = jax.block_until_ready
        wait(tree)

    # Models.

    own_copies = staticmethod(weights.own_copies)

    def take_dtype(self, arrays: Mapping[str, Parameters], mixed_precision: bool) -> None:
        found = {name: {np.dtype(p.dtype) for p in own.values() if jnp.issubdtype(p.dtype, jnp.floating)} for name, own in arrays.items()}
        dtypes = set.union(*found.values())
        if len(dtypes) != 1 or not dtypes <= {np.dtype(np.float32), np.dtype(np.float64)}:
            raise TypeError(f"models have parameters of dtypes {found}, expected all float32 or all float64: build them with one dtype")
        if mixed_precision and dtypes != {np.dtype(np.float32)}:
            raise ConfigError("mixed_precision is True and the models are float64, expected float32 parameters: build the models with them")
        self.dtype = dtypes.pop()

    def function(self, name: str, model: nnx.Module, precision: str | None) -> Callable[..., Any]:
        if precision is None:
            return weights.functional(model)
        arguments = 1 + (name != "policy") + hasattr(model, "initial_carry")
        return low_precision(model, precision, arguments=arguments)

    def example_draws(self, model: nnx.Module, rows: tuple[int, ...]) -> list[Array]:
        draws = [jnp.ones((*rows, width), self.dtype) for width in draw_widths(model)]
        return [*draws, jnp.zeros(2, jnp.uint32)] if weights.random_state(model) else draws

    def on_trial(self, function: Callable[..., object]) -> Callable[..., Any]:
        return partial(jax.eval_shape, function)

    def trial(self) -> AbstractContextManager[object]:
        return nullcontext()

    def switch_mode(self, models: Mapping[str, nnx.Module], training: bool, check: Callable[[], None]) -> bool:
        before = [nnx.graphdef(model) for model in models.values()]
        for model in models.values():
            switch: Any = model.train if training else model.eval
            switch()
        return [nnx.graphdef(model) for model in models.values()] != before

    def set_constants(
        self, models: Mapping[str, nnx.Module], held: Mapping[str, Parameters], constants: Mapping[str, Parameters]
    ) -> dict[str, nnx.Module] | None:
        if all(np.array_equal(own[key], array) for name, own in held.items() for key, array in constants[name].items()):
            return None  # nothing is compiled again
        return {name: weights.set_constants(model, constants[name]) for name, model in models.items()}

    # Learning and acting.

    def streams(self, seeds: Sequence[np.random.SeedSequence], held: Streams[Array] | None = None) -> Streams[Array]:
        return Streams(*(self._key(seed.generate_state(2, np.uint32)) for seed in seeds))

    def _key(self, data: NumpyArray) -> Array:
        key: Array = jax.device_put(np.array(data, np.uint32), self.device)
        return key

    def stream_states(self, streams: Streams[Array], models: Mapping[str, nnx.Module]) -> dict[str, NumpyArray]:
        return {name: np.array(key) for name, key in streams._asdict().items()}

    def set_stream_states(
        self, streams: Streams[Array], models: Mapping[str, nnx.Module], states: Mapping[str, NumpyArray]
    ) -> Streams[Array]:
        return Streams(*(self._key(states[name]) for name in Streams._fields))

    def exploration(self, streams: Streams[Array]) -> Array:
        return streams.exploration

    def with_exploration(self, streams: Streams[Array], state: object) -> Streams[Array]:
        return streams._replace(exploration=state if isinstance(state, Array) else self._key(np.asarray(state)))

    def runner(self, state: State) -> Runner:
        return Runner(state)

    def choose_execution(self, execution: Execution, default_models: bool) -> Execution:
        return choose(execution)

    def draw_spec(self, models: Mapping[str, nnx.Module], follow: Follow, /, **options: Any) -> DrawSpec:
        keyed = frozenset(name for name, model in models.items() if name != "policy" and weights.random_state(model))
        return DrawSpec(sample=sampler(follow), keyed=keyed, **options)

    def functions(
        self, update: Update, draw_spec: DrawSpec, actor: Actor[Array], bounds: Bounds[Array], execution: Execution, block: int
    ) -> Functions[Array]:
        learn = learner(update, draw_spec, execution=execution, block=block, parallel=self.parallel)
        fuses = execution == "scan" and self.parallel is None
        fused = fuse(update, draw_spec, actor, bounds, steps=block, dtype=self.dtype) if fuses else None
        return Functions(stepper(update, self.parallel), learn, actors(actor, bounds), fused)

    def prepare_step(self, update: Update, state: State) -> None:
        """Do nothing: schedules are computed within the step."""


class SAC(Agent[Array]):
    """Soft Actor-Critic on JAX (Haarnoja et al. 2018b, arXiv:1812.05905).

    Args:
        models, memory, observation_space, state_space, action_space, cfg: see `sacref.agent.agent.Agent`.
            Variables that are no nnx.Param, and plain arrays, do not learn.
        device: where to compute, as "cuda" or "cuda:1"; None for JAX's default device. Of several, "cuda:0,cuda:1" or "cuda:all", each
            computes a part of every batch; acting and the memory are on the first.
    """

    backend = "jax"

    def __init__(
        self,
        *,
        models: Mapping[str, nnx.Module],
        memory: ReplayMemory | None = None,
        observation_space: Space,
        state_space: Space | None = None,
        action_space: Space,
        device: str | Device | None = None,
        cfg: SACConfig | Mapping[str, object] | None = None,
    ) -> None:
        if memory is not None and not isinstance(memory, ReplayMemory):
            raise TypeError(f"memory is a {type(memory).__name__}, expected a sacref.jax.ReplayMemory, which lies where the agent learns")
        super().__init__(
            JaxBackend(device),
            models=models,
            memory=memory,
            observation_space=observation_space,
            state_space=state_space,
            action_space=action_space,
            cfg=cfg,
        )

    def post_interaction(self, *, timestep: int, timesteps: int) -> None:
        """Learn, while training and from `learning_starts` on; then track and checkpoint."""
        self.learn_if_due(timestep=timestep, timesteps=timesteps)
        super().post_interaction(timestep=timestep, timesteps=timesteps)


class SAC_RNN(SAC):
    """`SAC` over sequences, whose models may have a carry: see `sacref.agent.carry.Carry`."""

    carry_type: ClassVar[type[Carry[Any]]] = Carry
