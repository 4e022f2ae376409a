"""Soft Actor-Critic on PyTorch: what the agents' parts need of the library, and the agents."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

import sacref.torch.optim as optim
import sacref.torch.weights as weights
from sacref.agent.agent import Agent
from sacref.agent.backend import Functions
from sacref.agent.carry import Carry
from sacref.agent.execution import Actor, AgentRunner, Bounds, Streams
from sacref.agent.model_checks import draw_widths
from sacref.algorithm.sequences import Follow
from sacref.algorithm.tree import Tree, map_leaves
from sacref.config import ConfigError, Execution, SACConfig
from sacref.envs.device import is_on_device, transferred
from sacref.envs.interface import Space
from sacref.ranks import Ranks
from sacref.spec.arrays import NumpyArray, as_numpy
from sacref.torch.device import device_of, synchronise
from sacref.torch.execution import DrawSpec, actors, advance_schedules, choose, fuse, learner, stepper
from sacref.torch.memory import MemoryState, ReplayMemory, sampler
from sacref.torch.modes import in_no_mode
from sacref.torch.optim import State, Update, average_over_ranks
from sacref.torch.precision import low_precision
from sacref.torch.ranks import ranks

Parameters = dict[str, Tensor]


class TorchBackend:
    """PyTorch, with the device and dtype of one agent; see `sacref.agent.backend.Backend`."""

    name = "torch"
    reuses_functions = False  # Recordings hold the state's addresses.
    longest_integer: np.dtype[np.generic] = np.dtype(np.int64)
    dtype: torch.dtype
    optim: ModuleType = optim
    weights: ModuleType = weights

    def __init__(self, device: str | torch.device | None) -> None:
        self.device: torch.device = device_of(device)
        self.ranks: Ranks = ranks()
        self.average: Callable[[Tree], Tree] | None = average_over_ranks if self.ranks.size > 1 else None

    # Arrays.

    def is_array(self, value: object) -> bool:
        return isinstance(value, Tensor)

    def to_numpy(self, array: object) -> NumpyArray:
        return np.array(array.detach().cpu().numpy() if isinstance(array, Tensor) else array)

    def upload(self, array: object, *, copy: bool = False) -> Tensor:
        # Detached: what is handed over is data, whatever it was computed from.
        if is_on_device(array) and not isinstance(array, Tensor):
            array = transferred(array, torch, self.device)  # of JAX, whose arrays nobody writes into
        tensor = array.detach() if isinstance(array, Tensor) else torch.from_numpy(np.array(as_numpy(array, "the array"), copy=True))
        dtype = self.dtype if tensor.dtype in (torch.float32, torch.float64) else tensor.dtype
        return tensor.to(device=self.device, dtype=dtype, copy=copy and isinstance(array, Tensor))

    def as_floats(self, array: Tensor) -> Tensor:
        return array.to(self.dtype)

    def like(self, array: NumpyArray, like: Tensor) -> Tensor:
        return torch.from_numpy(np.array(array, copy=True)).to(like)

    def copy(self, array: Tensor) -> Tensor:
        return array.clone()

    def act_inputs(self, tree: Tree) -> Tree:
        return map_leaves(self.upload, tree)

    def update_moments(self, held: Tree, arrays: Mapping[str, Mapping[str, NumpyArray]]) -> Tree:
        for name, own in arrays.items():
            tensors = held.setdefault(name, {})
            for key, array in own.items():
                tensor = torch.as_tensor(array, dtype=self.dtype, device="cpu")
                if key in tensors:
                    tensors[key].copy_(tensor)  # where it is: a captured graph reads it there
                else:
                    tensors[key] = tensor.to(self.device, copy=True)
        return held

    def fetch(self, metrics: Sequence[Tensor]) -> NumpyArray:
        return self.to_numpy(torch.cat(list(metrics)))

    def synchronise(self, tree: Tree) -> None:
        synchronise(self.device)

    # Models.

    def own_copies(self, models: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        return weights.own_copies(models, self.device)

    def take_dtype(self, arrays: Mapping[str, Parameters], mixed_precision: bool) -> None:
        found = {name: {p.dtype for p in tensors.values() if p.is_floating_point()} for name, tensors in arrays.items()}
        dtypes = set.union(*found.values())
        if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.float64}:
            raise TypeError(f"models have parameters of dtypes {found}, expected all float32 or all float64: convert them, model.float()")
        if mixed_precision and dtypes != {torch.float32}:
            raise ConfigError("mixed_precision is True and the models are float64, expected float32 parameters: build the models with them")
        self.dtype = dtypes.pop()

    def function(self, name: str, model: nn.Module, precision: str | None) -> Callable[..., Any]:
        return weights.functional(model) if precision is None else low_precision(model, precision, self.device)

    def example_draws(self, model: nn.Module, rows: tuple[int, ...]) -> list[Tensor]:
        return [torch.ones((*rows, width), dtype=self.dtype, device=self.device) for width in draw_widths(model)]

    def on_trial(self, function: Callable[..., object]) -> Callable[..., Any]:
        return function

    @contextmanager
    def trial(self) -> Iterator[None]:
        with torch.no_grad(), weights.refuse_draws():
            yield

    def switch_mode(self, models: Mapping[str, nn.Module], training: bool, check: Callable[[], None]) -> bool:
        changed = any(layer.training != training for model in models.values() for layer in model.modules())
        for model in models.values():
            model.train(training)
        if not changed or all(isinstance(model, weights.CommonLayout) and not draw_widths(model) for model in models.values()):
            return False
        states = {generator: generator.get_state() for generator in _generators(models).values()}
        check()
        for generator, state in states.items():
            generator.set_state(state)
        return True  # what was recorded may have read the mode

    def set_constants(self, models: Mapping[str, nn.Module], held: Mapping[str, Parameters], constants: Mapping[str, Parameters]) -> None:
        for name, own in constants.items():
            weights.set_constants(models[name], own)

    # Learning and acting.

    def streams(self, seeds: Sequence[np.random.SeedSequence], held: Streams[torch.Generator] | None = None) -> Streams[torch.Generator]:
        begun = Streams(*(torch.Generator(self.device).manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1)) for seed in seeds))
        if held is None:
            return begun
        for generator, other in zip(held, begun, strict=True):
            generator.set_state(other.get_state())  # in place: a captured graph draws from it
        return held

    def stream_states(self, streams: Streams[torch.Generator], models: Mapping[str, nn.Module]) -> dict[str, NumpyArray]:
        generators = {**streams._asdict(), **_generators(models)}
        return {name: generator.get_state().numpy() for name, generator in generators.items()}

    def set_stream_states(
        self, streams: Streams[torch.Generator], models: Mapping[str, nn.Module], states: Mapping[str, NumpyArray]
    ) -> Streams[torch.Generator]:
        for name, generator in {**streams._asdict(), **_generators(models)}.items():
            _set_state(generator, torch.from_numpy(np.array(states[name])))
        return streams

    def exploration(self, streams: Streams[torch.Generator]) -> Tensor:
        return streams.exploration.get_state()

    def with_exploration(self, streams: Streams[torch.Generator], state: object) -> Streams[torch.Generator]:
        _set_state(streams.exploration, torch.as_tensor(state, device="cpu"))
        return streams

    def runner(self, state: State) -> AgentRunner[Tensor, MemoryState, torch.Generator]:
        return AgentRunner(state)

    def choose_execution(self, execution: Execution, default_models: bool) -> Execution:
        return choose(execution, self.device, own_models=default_models, ranks=self.ranks.size)

    def draw_spec(self, models: Mapping[str, nn.Module], follow: Follow, /, **options: Any) -> DrawSpec:
        return DrawSpec(sample=sampler(follow), generators=tuple(dict.fromkeys(_generators(models).values())), **options)

    def functions(
        self, update: Update, draw_spec: DrawSpec, actor: Actor[Tensor], bounds: Bounds[Tensor], execution: Execution, block: int
    ) -> Functions[Tensor]:
        learn, acts = learner(update, draw_spec, execution=execution), actors(actor, bounds, execution=execution)
        fused = fuse(update, draw_spec, actor, bounds, learn, acts, execution=execution, steps=block)
        return Functions(stepper(update), learn, acts, fused)

    def prepare_step(self, update: Update, state: State) -> None:
        advance_schedules(update, state)


def _set_state(generator: torch.Generator, state: Tensor) -> None:
    """Let a generator go on from a state.

    Raises:
        ValueError: if no generator of its kind has this state. It is then as it was before.
    """
    before = generator.get_state()
    try:
        generator.set_state(state)
    except (RuntimeError, TypeError) as error:
        generator.set_state(before)  # one of CUDA has taken the seed when it refuses the offset
        raise ValueError(f"the state of a random stream is none of a {generator.device.type} generator's ({error})") from error


def _generators(models: Mapping[str, nn.Module]) -> dict[str, torch.Generator]:
    """Return those that layers of a user's own models draw from, as `<model>.<layer>`."""
    return {f"{name}.{path}": found for name, model in models.items() for path, found in weights.generators(model).items()}


@in_no_mode
class SAC(Agent[Tensor]):
    """Soft Actor-Critic on PyTorch (Haarnoja et al. 2018b, arXiv:1812.05905).

    Args:
        models, memory, observation_space, state_space, action_space, cfg: see `sacref.agent.agent.Agent`.
            Parameters that do not require gradients, and buffers, do not learn.
        device: where to compute; None for the first CUDA device where there is one, else the CPU.
    """

    backend = "torch"

    def __init__(
        self,
        *,
        models: Mapping[str, nn.Module],
        memory: ReplayMemory | None = None,
        observation_space: Space,
        state_space: Space | None = None,
        action_space: Space,
        device: str | torch.device | None = None,
        cfg: SACConfig | Mapping[str, object] | None = None,
    ) -> None:
        if memory is not None and not isinstance(memory, ReplayMemory):
            raise TypeError(f"memory is a {type(memory).__name__}, expected a sacref.torch.ReplayMemory, which lies where the agent learns")
        super().__init__(
            TorchBackend(device),
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


@in_no_mode
class SAC_RNN(SAC):
    """`SAC` over sequences, whose models may have a carry: see `sacref.agent.carry.Carry`."""

    carry_type: ClassVar[type[Carry[Any]]] = Carry
