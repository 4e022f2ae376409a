"""The whole state of a vector environment as arrays and JSON, so that another one goes on from it bit for bit.

A snapshot holds the vector environment's own flags and, for each environment, its random generator, the state of each wrapper, and that of
the task: MuJoCo's integration state with what else of the simulation is read before it is stepped. It leaves out what no step depends on:
contacts and constraints (MuJoCo computes them again), pictures, and the generators of the spaces' `sample`. The clock of
`RecordEpisodeStatistics` goes on where it stood.

Wrappers and tasks of Gymnasium and of this library are known by name. Any other takes part by two methods of its own: `get_state()`, which
returns numbers, text, NumPy arrays, or lists and dicts of those, and `set_state(state)`, which takes the same. A task derived from
Gymnasium's `MujocoEnv`, whose `set_state` takes something else, redefines it, and gets and sets its simulation by `simulation_state` and
`set_simulation_state`. The generator `np_random` of a task is captured beside.

A vector environment that keeps its copies in arrays of its own takes part by the same two methods, as `BatchedVectorEnv` does.
"""

import importlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias, cast

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from sacref.algorithm.tree import Tree, leaves, map_leaves, named_leaves
from sacref.config.train_config import Environment
from sacref.envs.dm_control import DmControl
from sacref.envs.interface import Envs, SyncEnvs, layers_of
from sacref.envs.partial import DictObservation, HideVelocities, PrivilegedState
from sacref.envs.vector import Batched
from sacref.spec.arrays import NumpyArray
from sacref.storage.checkpoint import one_line
from sacref.storage.values import UnsupportedError, decode, encode

Arrays: TypeAlias = dict[str, NumpyArray]
State: TypeAlias = dict[str, Any]
"""Name -> value that `storage.values` encodes."""
SyncVector: TypeAlias = SyncVectorEnv[Any, Any]

VERSION = 1

_VECTOR = ("_env_obs", "_observations", "_rewards", "_terminations", "_truncations", "_autoreset_envs")
"""Attributes of a `SyncVectorEnv` that outlive a step; the last says whose next step is a reset."""

_RUNNING = ("mean", "var", "count")
_WRAPPERS: Mapping[str, tuple[str, ...]] = {
    "Autoreset": ("autoreset",),
    "ClipAction": (),
    "ClipReward": (),
    "DelayObservation": ("observation_queue",),
    "DtypeObservation": (),
    "FilterObservation": (),
    "FlattenObservation": (),
    "FrameStackObservation": ("obs_queue", "padding_value"),
    "MaxAndSkipObservation": ("_obs_buffer",),
    "NormalizeObservation": (*(f"obs_rms.{name}" for name in _RUNNING), "_update_running_mean"),
    "NormalizeReward": (*(f"return_rms.{name}" for name in _RUNNING), "discounted_reward", "_update_running_mean"),
    "OrderEnforcing": ("_has_reset",),
    # It compares what the first steps return, and changes nothing.
    "PassiveEnvChecker": (),
    "RecordEpisodeStatistics": (
        "episode_count",
        "episode_start_time",
        "episode_returns",
        "episode_lengths",
        "time_queue",
        "return_queue",
        "length_queue",
    ),
    "RepeatAction": (),
    "RescaleAction": (),
    "RescaleObservation": (),
    "ReshapeObservation": (),
    "StickyAction": ("last_action", "is_sticky_actions", "num_repeats", "repeats_taken"),
    "TimeAwareObservation": ("timesteps",),
    "TimeLimit": ("_elapsed_steps",),
}
"""Wrapper of `gymnasium.wrappers` -> attributes that outlive a step. Those that call a user's function are left out: it may keep state."""
_STATELESS_WRAPPERS = (DictObservation, DmControl, HideVelocities, PrivilegedState)
_CHECKS = ("checked_reset", "checked_step", "checked_data_reuse")
"""Flags of `PassiveEnvChecker`, whose first step asks for what its first reset returned."""

_TASKS: Mapping[str, tuple[str, ...]] = {
    "pendulum:PendulumEnv": ("state", "last_u"),
    "continuous_mountain_car:Continuous_MountainCarEnv": ("state",),
}
"""Module and class of `gymnasium.envs.classic_control` -> attributes that outlive a step."""

_DERIVED = (
    *("xpos", "xquat", "xmat", "xipos", "ximat", "xanchor", "xaxis", "subtree_com", "subtree_linvel", "subtree_angmom"),
    *("geom_xpos", "geom_xmat", "site_xpos", "site_xmat", "cam_xpos", "cam_xmat", "light_xpos", "light_xdir"),
    *("cinert", "cvel", "cacc", "cfrc_int", "cfrc_ext", "qacc", "qfrc_actuator", "qfrc_passive", "qfrc_bias", "qfrc_constraint"),
    *("act_dot", "actuator_length", "actuator_velocity", "actuator_force", "ten_length", "ten_velocity", "sensordata", "energy"),
)
"""Fields that MuJoCo computes from the integration state and tasks read before they step. `mj_forward` does not reproduce them: after a
step they belong to the substep before the last. Numbers, no indices: a forged file cannot lead MuJoCo out of its memory."""

_DM_CONTROL = "shimmy.dm_control_compatibility:DmControlCompatibilityV0"
_MODEL = (
    *("body_pos", "body_quat", "dof_damping", "geom_pos", "geom_size"),
    *("hfield_data", "jnt_stiffness", "site_pos", "site_size", "wrap_prm"),
)
"""Fields of the model that tasks of the DeepMind Control Suite draw, at an episode's begin or when they are made; all else is constant."""

_PLACES: Mapping[str, tuple[str, str | None, int, int]] = {"MT19937": ("pos", "state", 0, 624), "Philox": ("buffer_pos", None, 1, 4)}
"""Bit generator -> number in its state by which NumPy indexes memory unchecked; the dict that holds it; its least and largest value."""
_BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")


class SnapshotError(ValueError):
    """A snapshot that cannot be restored; the message says what it holds, what was expected, and the fix. No environment was changed."""


class SeededGenerator(NamedTuple):
    """A generator, and the seed that it was made from."""

    seed: int | None
    generator: np.random.Generator


class Simulation(NamedTuple):
    """MuJoCo's own two objects, as a `MujocoEnv` has them."""

    model: Any
    data: Any


class Snapshot(NamedTuple):
    """The state of a vector environment."""

    arrays: Arrays
    metadata: State
    """JSON, which names the arrays."""


def capture(envs: Envs) -> Snapshot | str:
    """Copy the whole state of a vector environment, between two steps.

    Args:
        envs: a `SyncVectorEnv`, or a vector environment with methods of its own, as `sacref.envs.make` makes.

    Returns:
        The state; or, where something cannot be captured, a sentence that says what and why.
    """
    arrays: Arrays = {}
    own = _own(envs)
    try:
        if own is not None:
            layer = {"is": _name(envs), "state": encode(_call(own, "get_state"), "vector", arrays)}
            header = _header(_mujoco_version(own), own.metadata["autoreset_mode"])
            return Snapshot(arrays, {**header, "kind": _name(envs), "vector": None, "environments": [[layer]]})
        sync = _sync(envs)
        vector = encode({name: getattr(sync, name) for name in _VECTOR}, "vector", arrays)
        environments = [
            [
                {"is": _name(layer), "state": encode(_get(layer), f"environment_{number}.{depth}.{type(layer).__name__}", arrays)}
                for depth, layer in enumerate(layers_of(env))
            ]
            for number, env in enumerate(sync.envs)
        ]
    except UnsupportedError as error:
        return str(error)
    header = _header(_mujoco_version(sync), sync.autoreset_mode)
    return Snapshot(arrays, {**header, "gymnasium": gymnasium.__version__, "vector": vector, "environments": environments})


def restore(envs: Envs, snapshot: Snapshot) -> None:
    """Bring a vector environment into a state that `capture` has returned: it then steps as the captured one would have.

    Args:
        envs: made as the captured one was. It need not have been reset.
        snapshot: as captured, or read back from files.

    Raises:
        SnapshotError: if it is of other environments, another version of MuJoCo, or damaged.
    """
    own = _own(envs)
    setters: list[Callable[[], None]] = []
    try:
        if (other := of_other_kind(envs, snapshot.metadata)) is not None:
            raise SnapshotError(f"{other}: make the environments as they were, or reset them instead")
        if own is not None:
            # An older one of a `BatchedVectorEnv` has the version in the state alone.
            version = None if snapshot.metadata["mujoco"] is None else _mujoco_version(own)
            _require_header(snapshot, _header(version, own.metadata["autoreset_mode"]), [[_name(envs)]])
            ((layer,),) = snapshot.metadata["environments"]
            setters = [partial(own.set_state, decode(layer["state"], snapshot.arrays))]
        else:
            setters = list(_setters(_sync(envs), snapshot))
    except SnapshotError:
        raise
    except (TypeError, ValueError, LookupError, AttributeError, OverflowError) as error:
        raise SnapshotError(f"the snapshot cannot be restored: {one_line(error)}: reset the environments instead") from error
    try:
        for setter in setters:
            setter()
    except Exception as error:  # whatever the method of another's task or wrapper raises
        raise SnapshotError(
            f"the snapshot cannot be restored ({type(error).__name__}: {one_line(error)}): make the environments anew"
        ) from error


def with_methods(envs: Envs) -> list[Environment]:
    """List the wrappers and tasks of a `SyncVectorEnv` that take part by methods of their own."""
    return [layer for env in envs.envs for layer in layers_of(env) if _has_methods(layer)] if isinstance(envs, SyncVectorEnv) else []


def refused(envs: Envs) -> str | None:
    """Try the methods `get_state` and `set_state` of wrappers and tasks; return what is wrong with one, and the fix, or None.

    Each `set_state` is given what `get_state` has just returned, which must leave the environment as it was.

    Args:
        envs: after a reset. Where the answer is a sentence, their state may have become anything.
    """
    for layer in with_methods(envs):
        generator = None if isinstance(layer, gymnasium.Wrapper) else layer._np_random
        states: list[tuple[object, Arrays]] = []
        try:
            for _ in range(2):
                arrays: Arrays = {}
                states.append((encode(_call(layer, "get_state"), _name(layer), arrays, depth=1), arrays))
                before = None if generator is None else dict(generator.bit_generator.state)
                _call(layer, "set_state", decode(states[-1][0], arrays))
                if generator is not None and before is not None:
                    generator.bit_generator.state = before
        except UnsupportedError as error:
            return str(error)
        if not _same_state(*states):
            return (
                f"set_state of {_name(layer)} does not restore what get_state returned: get_state returns something else after it. "
                f"Take back in set_state(self, state) all that get_state(self) returns"
            )
    return None


def of_other_kind(envs: Envs, metadata: object) -> str | None:
    """Return why a snapshot of another kind of vector environment, or version of MuJoCo, is of no use; None where both are the same.

    Args:
        metadata: of the snapshot.
    """
    if not isinstance(metadata, Mapping):  # a damaged one is for `restore`
        return None
    here = _name_of(SyncVectorEnv) if type(envs) is SyncEnvs else _name(envs)
    there = metadata.get("kind", _name_of(SyncVectorEnv))
    if here != there:
        return f"the environments were stepped by {one_line(there)}, and are by {here}"
    version, present = metadata.get("mujoco"), _mujoco_version(envs)
    if isinstance(version, str) and present is not None and version != present:
        return f"the snapshot's mujoco is {one_line(version)}, expected {present}"
    return None


def simulation_state(env: Any) -> Arrays:
    """Copy MuJoCo's state of a `MujocoEnv`: the integration state, and the fields computed from it, by name."""
    mujoco = importlib.import_module("mujoco")
    state = np.empty(mujoco.mj_stateSize(env.model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(env.model, env.data, state, mujoco.mjtState.mjSTATE_INTEGRATION)
    derived = {name: np.array(array) for name in _DERIVED if (array := getattr(env.data, name, None)) is not None and array.size}
    return {"integration": state, **derived}


def set_simulation_state(env: Any, state: Mapping[str, NumpyArray]) -> None:
    """Bring the simulation of a `MujocoEnv` into a state that `simulation_state` has returned.

    Raises:
        ValueError: if it is of another model.
    """
    expected = simulation_state(env)
    require_alike("the simulation", state, expected)
    mujoco = importlib.import_module("mujoco")
    mujoco.mj_setState(env.model, env.data, state["integration"], mujoco.mjtState.mjSTATE_INTEGRATION)
    for name in sorted(expected.keys() - {"integration"}):
        getattr(env.data, name)[...] = state[name]


def generator_state(task: Environment) -> State | None:
    """Copy the state of `np_random`; None before it was asked for."""
    generator = task._np_random
    if generator is None:
        return None
    kind = type(generator.bit_generator).__name__
    if type(generator) is not np.random.Generator or kind not in _BIT_GENERATORS:
        raise UnsupportedError(
            f"np_random of {_name(task)} is a {type(generator).__name__} of {kind}, expected a numpy.random.Generator of NumPy's own"
        )
    return {"seed": task._np_random_seed, "state": dict(generator.bit_generator.state)}


def generator_of(state: State | None) -> SeededGenerator | None:
    """Make a generator from a state.

    Raises:
        ValueError: if it is no state of one.
    """
    if state is None:
        return None
    kind = state["state"]["bit_generator"]
    if kind not in _BIT_GENERATORS:
        raise ValueError(f"a generator is of {kind!r}, expected one of {', '.join(_BIT_GENERATORS)}")
    bits = getattr(np.random, kind)()
    if kind in _PLACES:
        name, within, least, most = _PLACES[kind]
        place = (state["state"][within] if within else state["state"])[name]
        if type(place) is not int or not least <= place <= most:
            raise ValueError(f"{name} of a generator {kind} is {place!r}, expected an integer from {least} to {most}")
    bits.state = state["state"]
    if not (state["seed"] is None or type(state["seed"]) is int):
        raise ValueError(f"a generator's seed is {state['seed']!r}, expected an integer")
    return SeededGenerator(state["seed"], np.random.Generator(bits))


def set_generator(task: Environment, found: SeededGenerator | None) -> None:
    """Let a task draw from a generator."""
    if found is None:
        task._np_random = None
        return
    task._np_random_seed = found.seed
    here = task._np_random
    if here is not None and type(here.bit_generator) is type(found.generator.bit_generator):
        # In place: a task may hold it under another name, too.
        here.bit_generator.state = found.generator.bit_generator.state
    else:
        task._np_random = found.generator


def require_alike(what: str, found: Tree, expected: Tree) -> None:
    """Refuse arrays of other names, shapes or dtypes than expected, with a ValueError."""
    described = [
        {path: (np.shape(leaf), np.asarray(leaf).dtype.newbyteorder("=").name) for path, leaf in named_leaves(tree).items()}
        for tree in (found, expected)
    ]
    if described[0] != described[1]:
        raise ValueError(f"{what} has the arrays {described[0]}, expected {described[1]}")


def _own(envs: object) -> Any:
    """Return a vector environment that takes part by methods of its own; None for another."""
    return envs if hasattr(type(envs), "get_state") and hasattr(type(envs), "set_state") else None


def _header(mujoco: str | None, mode: AutoresetMode) -> State:
    return {"version": VERSION, "mujoco": mujoco, "autoreset_mode": mode.value}


def _require_header(snapshot: Snapshot, header: Mapping[str, object], layers: list[list[str]]) -> None:
    here = {**header, "environments": layers}
    found = {name: snapshot.metadata[name] for name in here}
    found["environments"] = [[layer["is"] for layer in layers] for layers in found["environments"]]
    for name, expected in here.items():
        if found[name] != expected:
            raise SnapshotError(
                f"the snapshot's {name} is {one_line(found[name])}, expected {expected}: "
                f"make the environments as they were, or reset them instead"
            )


def _sync(envs: Envs) -> SyncVector:
    if isinstance(envs, AsyncVectorEnv):
        # Gymnasium keeps the flag of the next reset in a variable of the environment's process, where nothing can set it.
        raise UnsupportedError(
            "the environments run in processes of their own, which keep a part of their state: take vectorization='sync'"
        )
    if type(envs) not in (SyncEnvs, SyncVectorEnv):
        raise UnsupportedError(
            f"the vector environment is a {type(envs).__module__}.{type(envs).__qualname__}, expected a gymnasium.vector.SyncVectorEnv: "
            f"take wrappers of single environments"
        )
    return cast(SyncVector, envs)


def _name(layer: object) -> str:
    return _name_of(type(layer))


def _name_of(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _get(layer: Environment) -> State:
    """Read the state of a wrapper or a task; UnsupportedError says why it cannot be captured."""
    state: State = {} if isinstance(layer, gymnasium.Wrapper) else {"generator": generator_state(layer)}
    if _has_methods(layer):
        return state | {"own": _call(layer, "get_state")}
    if _is_mujoco_task(layer):
        return state | simulation_state(layer)
    if _name(layer) == _DM_CONTROL:
        return state | _suite_state(layer)
    for path in _attributes(layer):
        value = attrgetter(path)(layer)
        if path == "episode_start_time":
            value = time.perf_counter() - value
        state[path] = list(value) if isinstance(value, deque) else value
    return state


def _call(layer: object, method: str, *arguments: object) -> Any:
    """Call a method of a user's wrapper, task or vector environment; UnsupportedError for whatever it raises."""
    try:
        return getattr(layer, method)(*arguments)
    except UnsupportedError:
        raise
    except Exception as error:  # of code that is not ours
        raise UnsupportedError(
            f"{method} of {_name(layer)} raised {type(error).__name__} ({one_line(error)}): define get_state(self), and "
            f"set_state(self, state), which takes what get_state returned; or give them other names, if they are for something else"
        ) from error


def _same_state(one: tuple[object, Arrays], other: tuple[object, Arrays]) -> bool:
    """Tell whether two encoded states are equal, NaN included."""
    (value, arrays), (again, others) = one, other
    same = repr(value) == repr(again) and arrays.keys() == others.keys()  # as text: NaN differs from itself
    return same and all(array.dtype == others[name].dtype and array.tobytes() == others[name].tobytes() for name, array in arrays.items())


def _setters(envs: SyncVector, snapshot: Snapshot) -> Iterator[Callable[[], None]]:
    """Yield the calls that restore each part, after checking all that can be checked before."""
    metadata = snapshot.metadata
    layers = [[_name(layer) for layer in layers_of(env)] for env in envs.envs]
    _require_header(snapshot, _header(_mujoco_version(envs), envs.autoreset_mode), layers)
    vector = decode(metadata["vector"], snapshot.arrays)
    own = {name: getattr(envs, name) for name in _VECTOR}
    if vector.keys() != own.keys():
        raise ValueError(f"the vector environment has {sorted(vector)}, expected {sorted(own)}")
    require_alike("the vector environment", *({**values, "_env_obs": None} for values in (vector, own)))
    if not _fits(vector["_env_obs"], own["_env_obs"]) or len(vector["_env_obs"]) != envs.num_envs:
        raise ValueError("the vector environment has observations of other shapes or types than these environments'")
    # Its byte order is the space's, not the file's.
    vector["_observations"] = map_leaves(_as_here, vector["_observations"], own["_observations"])
    yield lambda: vars(envs).update(vector)
    for env, layers in zip(envs.envs, metadata["environments"], strict=True):
        for layer, written in zip(layers_of(env), layers, strict=True):
            yield _setter(layer, decode(written["state"], snapshot.arrays))


def _as_here(found: NumpyArray, here: NumpyArray) -> NumpyArray:
    return found.astype(here.dtype, copy=False)


def _setter(layer: Environment, state: State) -> Callable[[], None]:
    generator = None if isinstance(layer, gymnasium.Wrapper) else generator_of(state.pop("generator"))
    own: Callable[[], None]
    if _has_methods(layer):
        own = partial(attrgetter("set_state")(layer), state["own"])
    elif _is_mujoco_task(layer):
        require_alike(_name(layer), state, simulation_state(layer))
        own = partial(set_simulation_state, layer, state)
    elif _name(layer) == _DM_CONTROL:
        own = _suite_setter(layer, state)
    else:
        if state.keys() != set(_attributes(layer)):
            raise ValueError(f"{_name(layer)} has the state of {sorted(state)}, expected {sorted(_attributes(layer))}")
        try:
            here = _get(layer)
        except AttributeError:
            here = {}  # it has never been reset, and keeps nothing yet
        for name, value in here.items():
            if name != "generator" and not _fits(state[name], value):
                raise ValueError(f"{_name(layer)} has {name} = {one_line(state[name])}, expected something like {one_line(value)}")
        if here.get("_has_reset") and not state["_has_reset"]:
            raise ValueError("the environments were never reset, and those here are")
        own = partial(_set_attributes, layer, state)

    def everything() -> None:
        own()
        # Behind the task's own, which may draw.
        if not isinstance(layer, gymnasium.Wrapper):
            set_generator(layer, generator)

    return everything


def _suite_state(task: Any) -> State:
    """Read the state of a task of the DeepMind Control Suite."""
    environment = task.unwrapped._env
    if not type(environment.task).__module__.startswith("dm_control.suite."):
        raise UnsupportedError(f"what the task {_name(environment.task)} keeps is not known: of dm_control's those of its suite are")
    model, data = environment.physics.model.ptr, environment.physics.data.ptr
    return {
        "steps": environment._step_count,
        "ended": environment._reset_next_step,
        "random": task.np_random.get_state(legacy=False),
        "model": {name: np.array(getattr(model, name)) for name in _MODEL},
        "simulation": simulation_state(Simulation(model, data)),
    }


def _suite_setter(task: Any, state: State) -> Callable[[], None]:
    random, here = state.pop("random"), _suite_state(task)
    del here["random"]
    require_alike(_name(task), state, here)
    if random["bit_generator"] != "MT19937":
        raise ValueError(f"the generator of {_name(task)} is of {random['bit_generator']!r}, expected MT19937")
    generator_of({"seed": None, "state": {name: random[name] for name in ("bit_generator", "state")}})  # it checks where it stands
    mujoco, environment = importlib.import_module("mujoco"), task.unwrapped._env
    simulation = Simulation(environment.physics.model.ptr, environment.physics.data.ptr)

    def set_all() -> None:
        for name, array in state["model"].items():
            getattr(simulation.model, name)[...] = array
        set_simulation_state(simulation, state["simulation"])
        # dm_control ends a step with this, and begins the next one with the contacts and constraints that it leaves.
        mujoco.mj_step1(*simulation)
        set_simulation_state(simulation, state["simulation"])
        environment._step_count, environment._reset_next_step = state["steps"], state["ended"]
        task.np_random.set_state(random)

    return set_all


def _set_attributes(layer: Environment, state: State) -> None:
    for path, value in state.items():
        parent, _, last = path.rpartition(".")
        holder = attrgetter(parent)(layer) if parent else layer
        if path == "episode_start_time":
            value = time.perf_counter() - value
        if isinstance(queue := getattr(holder, last, None), deque):
            queue.clear()
            queue.extend(value)
        else:
            setattr(holder, last, value)
    if type(layer) is gymnasium.wrappers.PassiveEnvChecker:
        for name in _CHECKS:
            setattr(layer, name, True)


def _has_methods(layer: Environment) -> bool:
    """Tell whether a layer has methods for its state; `MujocoEnv.set_state` sets positions and velocities."""
    get, set_ = getattr(type(layer), "get_state", None), getattr(type(layer), "set_state", None)
    mujoco_env = _mujoco_env()
    return get is not None and set_ is not None and (set_ is not getattr(mujoco_env, "set_state", None))


def _is_mujoco_task(layer: Environment) -> bool:
    """Tell whether a layer is one of Gymnasium's own MuJoCo tasks, which keep nothing beside their simulation."""
    mujoco_env = _mujoco_env()
    return mujoco_env is not None and isinstance(layer, mujoco_env) and type(layer).__module__.startswith("gymnasium.envs.mujoco.")


def _mujoco_env() -> type | None:
    """Return Gymnasium's class, or None where it is not imported: no environment can be of it then."""
    module = sys.modules.get("gymnasium.envs.mujoco.mujoco_env")
    return getattr(module, "MujocoEnv", None)


def _mujoco_version(envs: Envs) -> str | None:
    """Return MuJoCo's version; None where no task is known to use it."""
    mujoco_env = _mujoco_env() or ()
    copies = [envs.prototype] if isinstance(envs, Batched) else envs.envs if isinstance(envs, SyncVectorEnv) else ()
    if not any(isinstance(env.unwrapped, mujoco_env) or _name(env.unwrapped) == _DM_CONTROL for env in copies):
        return None
    return str(importlib.import_module("mujoco").__version__)


def _attributes(layer: Environment) -> tuple[str, ...]:
    if isinstance(layer, gymnasium.Wrapper):
        name = type(layer).__name__
        if name in _WRAPPERS and type(layer) is getattr(gymnasium.wrappers, name, None):
            return _WRAPPERS[name]
        if type(layer) in _STATELESS_WRAPPERS:
            return ()
    else:
        package, _, name = _name(layer).rpartition(".")
        if package == "gymnasium.envs.classic_control" and name in _TASKS:
            return _TASKS[name]
    what = "wrapper" if isinstance(layer, gymnasium.Wrapper) else "task"
    raise UnsupportedError(f"what the {what} {_name(layer)} keeps is not known: give it the methods get_state() and set_state(state)")


def _fits(found: Any, here: Any) -> bool:
    """Tell whether a layer that keeps the one value now could keep the other at another step: numbers, arrays of the same shape."""
    if found is None or here is None:  # before the first step
        values = found if here is None else here
        return all(
            value is None or np.asarray(value).dtype.kind in "fiub"
            for value in leaves(tuple(values) if isinstance(values, list) else values)
        )
    if isinstance(here, bool | np.bool_ | int | np.integer):
        return isinstance(found, bool | np.bool_ | int | np.integer) and bool(found >= 0)
    if isinstance(here, float | np.number):
        return isinstance(found, int | float | np.number) or (_is_array(found, ()) and found.dtype.kind in "fiu")
    if isinstance(here, np.ndarray):
        return _is_array(found, here.shape) and found.dtype.newbyteorder("=") == here.dtype.newbyteorder("=")
    if isinstance(here, list):
        return isinstance(found, list) and all(_fits(inner, here[0] if here else None) for inner in found)
    if isinstance(here, dict):
        return isinstance(found, dict) and found.keys() == here.keys() and all(_fits(found[key], here[key]) for key in here)
    return isinstance(found, tuple) and isinstance(here, tuple) and len(found) == len(here) and all(map(_fits, found, here))


def _is_array(value: object, shape: tuple[int, ...]) -> bool:
    # Arithmetic makes scalars of arrays of shape (), which a wrapper may begin with.
    return isinstance(value, np.ndarray | np.generic) and value.shape == shape
