"""Protocol of a backend: what a library must provide to learn and act with."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any, Generic, NamedTuple, Protocol

import numpy as np

from sacref.agent.execution import Act, Actor, AgentRunner, AnyStreams, Bounds, DrawSpec, Fused, Learn
from sacref.algorithm.data import Metrics, Noise
from sacref.algorithm.optimizer import Average, Parameters
from sacref.algorithm.sequences import Follow
from sacref.algorithm.tree import Tree
from sacref.algorithm.update import State
from sacref.config import Execution
from sacref.ranks import Ranks
from sacref.spec.arrays import ArrayT, NumpyArray


class BackendError(ImportError):
    """A backend that is not installed, finds no device, or is unknown; the message names the fix."""


class Functions(NamedTuple, Generic[ArrayT]):
    """The functions that learning and acting call, as fast as the execution makes them."""

    step: Callable[[State[ArrayT], Any, Noise[ArrayT]], tuple[State[ArrayT], Metrics[ArrayT]]]
    """`(state, batch, noise) -> (state, metrics)`."""
    learn: Learn[ArrayT, Any, Any]
    act: Mapping[str, Act[ArrayT, Any]]
    """By mode: "greedy", "random" or "sampled"."""
    fused: Fused[ArrayT, Any, Any] | None
    """The strict step in one call; None where the execution, the number of devices, or a schedule on the host has none."""


class Backend(Protocol[ArrayT]):
    """A library that computes, with one agent's device and dtype."""

    name: str
    """As checkpoints hold it."""
    device: Any
    dtype: Any
    """float32 or float64, as the library names it: the models' dtype, see `take_dtype`."""
    ranks: Ranks
    """The processes that train this agent together."""
    longest_integer: np.dtype[np.generic]
    """Dtype of the longest integers that its arrays hold."""
    reuses_functions: bool
    """Permission to use the functions of an earlier mode of the models again: they hold nothing of an agent's state."""

    # Arrays.

    def is_array(self, value: object, /) -> bool:
        """Tell whether a value is an array of this library."""

    def to_numpy(self, array: object, /) -> NumpyArray:
        """Copy an array to the host."""

    def upload(self, array: object, /, *, copy: bool = False) -> ArrayT:
        """Put an array, of this library, of PyTorch or JAX, or of any that NumPy reads, on the device.

        float32 and float64 become the agent's dtype, all else keeps its own. The result has no gradients. With `copy` it shares nothing
        with the array.
        """

    def as_floats(self, array: ArrayT, /) -> ArrayT:
        """Convert a device array to the agent's dtype."""

    def like(self, array: NumpyArray, like: ArrayT, /) -> ArrayT:
        """Put a host array on the device of `like`, in its dtype."""

    def copy(self, array: ArrayT, /) -> ArrayT: ...

    def act_inputs(self, tree: Tree, /) -> Tree:
        """Convert observations, states or a carry to what the functions of acting take."""

    def update_moments(self, held: Tree, arrays: Mapping[str, Mapping[str, NumpyArray]], /) -> Tree:
        """Return the preprocessors' arrays as the functions of learning and acting take them; `held` are those of before."""

    def fetch(self, metrics: Sequence[ArrayT], /) -> NumpyArray:
        """Read packed metrics, `(gradient step, metric)` each, from the device at once; concatenate them."""

    def synchronise(self, tree: Tree, /) -> None:
        """Wait until the device has computed the arrays of a tree."""

    # Models.

    weights: ModuleType
    """The library's module `weights`: a model's parameters and constants, their common names, and what a model may not do."""

    def own_copies(self, models: Mapping[str, Any], /) -> dict[str, Any]: ...

    def take_dtype(self, arrays: Mapping[str, Parameters[ArrayT]], mixed_precision: bool, /) -> None:
        """Set `dtype` to the models'. Raises TypeError if they have several, ConfigError if mixed precision has no use for it."""

    def function(self, name: str, model: Any, precision: str | None, /) -> Callable[..., Any]:
        """Return a model as a function of its parameters, computed in a low `precision` where one is given."""

    def example_draws(self, model: Any, rows: tuple[int, ...], /) -> list[ArrayT]:
        """Return what the random layers of a critic may take for `rows` of inputs."""

    def on_trial(self, function: Callable[..., object], /) -> Callable[..., Any]:
        """Return a function whose results have at least the shapes and dtypes of those of `function`."""

    def trial(self) -> AbstractContextManager[object]:
        """Refuse random numbers of global generators, while a model is tried; take no gradients."""

    def switch_mode(self, models: Mapping[str, Any], training: bool, check: Callable[[], None], /) -> bool:
        """Set the models' training mode; tell whether their functions are to be made again.

        Args:
            check: tries the models. It is called where tracing their functions again would not do that.
        """

    def set_constants(
        self, models: Mapping[str, Any], held: Mapping[str, Parameters[ArrayT]], constants: Mapping[str, Parameters[ArrayT]], /
    ) -> dict[str, Any] | None:
        """Let the models compute with other constants than those `held`.

        Returns:
            New models where those given cannot be written into, else None.
        """

    # Learning and acting.

    optim: ModuleType
    """The library's module `optim`: `Optimizer`, `Frozen` and `Update`."""
    average: Average | None
    """`tree -> tree`: the average over ranks and devices; None for one."""

    def streams(self, seeds: Sequence[np.random.SeedSequence], held: AnyStreams | None = None, /) -> AnyStreams:
        """Return the random streams that begin at these seeds, which take the place of `held`."""

    def stream_states(self, streams: AnyStreams, models: Mapping[str, Any], /) -> dict[str, NumpyArray]:
        """Return the states of the random streams, those of the models included."""

    def set_stream_states(self, streams: AnyStreams, models: Mapping[str, Any], states: Mapping[str, NumpyArray], /) -> AnyStreams:
        """Return the streams at these states."""

    def exploration(self, streams: AnyStreams, /) -> object:
        """Return the state of the exploration stream, which stays as it is when the stream goes on."""

    def with_exploration(self, streams: AnyStreams, state: object, /) -> AnyStreams:
        """Return the streams with that of exploration at a state, also one that was copied to the host."""

    def runner(self, state: State[ArrayT], /) -> AgentRunner[ArrayT, Any, Any]:
        """Return what holds an agent's state, learns and acts."""

    def choose_execution(self, execution: Execution, default_models: bool, /) -> Execution:
        """Return how updates run. Raises ValueError if the library has no such execution."""

    def draw_spec(self, models: Mapping[str, Any], follow: Follow, /, **options: object) -> DrawSpec[ArrayT, Any, Any]:
        """Return where a batch and its random numbers come from."""

    def functions(
        self,
        update: Any,
        draw_spec: Any,
        actor: Actor[ArrayT],
        bounds: Bounds[ArrayT],
        execution: Execution,
        block: int,
        /,
    ) -> Functions[ArrayT]:
        """Make the functions of an execution.

        Args:
            draw_spec: as of `draw_spec`. block: gradient steps between two actions, as a rule.
        """

    def prepare_step(self, update: Any, state: State[ArrayT], /) -> None:
        """Do what has to happen on the host before each gradient step."""
