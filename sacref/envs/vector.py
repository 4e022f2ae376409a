"""Vector environments from a Gymnasium id or from the user's own environments."""

import importlib
import inspect
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar, runtime_checkable

import gymnasium
from gymnasium.vector import AutoresetMode, VectorEnv

from sacref.config.callables import description
from sacref.config.train_config import Environment, EnvironmentFactory, VectorEnvironmentFactory, Vectorization, Wrapper
from sacref.envs.divergence import ReportDivergence
from sacref.envs.dm_control import DM_CONTROL, OF_ITS_OWN, DmControl, register_dm_control
from sacref.envs.interface import AsyncEnvs, Envs, EnvWrapper, SyncEnvs, check_interface, layers_of
from sacref.envs.mujoco_log import redirect_mujoco_warnings

VectorT = TypeVar("VectorT", bound=Envs | None)

TIME_LIMIT = "sacref.time_limit"
"""Key of a vector environment's metadata: steps after which its copies' episodes are truncated, where they run in other processes."""

logger: logging.Logger = logging.getLogger(__name__)


class EnvError(ValueError):
    """An environment that cannot be made; the message says why, and the fix."""


@runtime_checkable
class Batched(Protocol):
    """A vector environment whose copies are made from one environment."""

    @property
    def prototype(self) -> Environment: ...


def make(
    env: str | EnvironmentFactory,
    num_envs: int,
    *,
    seed: int | None = None,
    vectorization: Vectorization = "sync",
    autoreset_mode: AutoresetMode = AutoresetMode.NEXT_STEP,
    env_kwargs: Mapping[str, object] | None = None,
    wrappers: Sequence[Wrapper] = (),
) -> Envs:
    """Make `num_envs` copies of an environment, stepped together.

    Args:
        env: a registered Gymnasium id, or a callable that makes one environment.
        num_envs: the number of copies, at least 1.
        seed: resets the copies once, with seed, seed + 1, ..., which also fixes what later calls of `reset()` return.
            None: unseeded until `reset(seed=...)`.
        vectorization: "sync" steps the copies in turn in this process; "async" gives each a process of its own, which is started
            afresh (a script then needs `if __name__ == "__main__":`); "batched" steps copies of Gymnasium's MuJoCo tasks in threads of
            this process, with the same numbers as "sync" (`sacref.envs.batched` says which tasks).
        autoreset_mode: what happens after an episode's end. The agents store the same transitions under every mode.
        env_kwargs: passed on to each environment.
        wrappers: put around each environment, the first one innermost.

    Returns:
        The vector environment, to be closed by the caller.

    Raises:
        EnvError: if the environment is unknown, cannot be made, or needs a package that is not installed; if two copies are one.
            TypeError, ValueError: if an argument is of another type or out of range.
    """
    if not isinstance(env, str) and not callable(env):
        raise TypeError(
            f"env is {env!r}, expected a Gymnasium id or a callable that makes an environment: "
            f"pass its class or a function, as each copy needs an environment of its own"
        )
    if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
        raise ValueError(f"num_envs is {num_envs!r}, expected an integer of at least 1")
    if vectorization not in ("sync", "async", "batched"):
        raise ValueError(f'vectorization is {vectorization!r}, expected "sync", "async" or "batched"')
    around = (*wrappers, ReportDivergence, _InProcess) if vectorization == "async" else tuple(wrappers)
    factory = _Factory(env, dict(env_kwargs or {}), around)
    envs: Envs
    if vectorization == "batched":
        # Imported here: it needs MuJoCo, which other environments do without.
        batched = importlib.import_module("sacref.envs.batched")
        envs = batched.BatchedVectorEnv(factory(), num_envs, autoreset_mode=autoreset_mode)
    elif vectorization == "sync":
        envs = SyncEnvs([factory] * num_envs, autoreset_mode=autoreset_mode)
        require_separate(envs)
    else:
        # Spawned, not forked: a fork copies the locks of torch's and JAX's threads, and the copy may wait for them for ever.
        try:
            envs = AsyncEnvs([factory] * num_envs, context="spawn", autoreset_mode=autoreset_mode)
            envs.metadata[TIME_LIMIT] = envs.get_attr("time_limit")[0]
        except (ConnectionError, EOFError) as error:
            raise EnvError(
                f"a process of vectorization='async' ended before its environment was there ({type(error).__name__}): each imports the "
                f'script, so put what the script does below `if __name__ == "__main__":`, or see what the process has said'
            ) from error
    if seed is not None:
        envs.reset(seed=seed)
    return envs


def make_vector(
    factory: VectorEnvironmentFactory,
    num_envs: int,
    *,
    seed: int | None = None,
    env_kwargs: Mapping[str, object] | None = None,
    made: Envs | None = None,
) -> Envs:
    """Make a vector environment by a factory of the user's.

    Args:
        factory: called with `num_envs`, with `env_kwargs`, and with `seed` where it has a parameter of that name.
        num_envs: how many environments it has to have.
        seed: for the factory alone; see `reset` for that of the first episodes.
        env_kwargs: passed on.
        made: what the factory has made before, and may give again, with as many environments as it has.

    Returns:
        The vector environment, to be closed by the caller. Its arrays may be NumPy's, PyTorch's or JAX's.

    Raises:
        EnvError: if the factory made something else, or another number of environments, or one that does not say when it resets them.
    """
    name = description(factory)
    seeded = {"seed": seed} if seed is not None and "seed" in inspect.signature(factory).parameters else {}
    envs: object = factory(num_envs=num_envs, **seeded, **(env_kwargs or {}))
    if made is not None and envs is made:
        return made
    if not isinstance(envs, VectorEnv):
        raise EnvError(
            f"vector_env {name} made a {type(envs).__name__}, expected a gymnasium.vector.VectorEnv: return one, or an adapter that is "
            f"one (docs/device-environments.md has some)"
        )
    if envs.num_envs != num_envs:
        raise EnvError(
            f"vector_env {name} made {envs.num_envs} environments, expected {num_envs}: make as many as its argument num_envs says"
        )
    if not isinstance(mode := envs.metadata.get("autoreset_mode"), AutoresetMode):
        raise EnvError(
            f"vector_env {name} made a {type(envs).__name__} whose metadata['autoreset_mode'] is {mode!r}, expected a "
            f"gymnasium.vector.AutoresetMode: say in its class when it resets an environment whose episode has ended, "
            f'metadata = {{"autoreset_mode": AutoresetMode.SAME_STEP}}'
        )
    return envs


@contextmanager
def closing(envs: VectorT) -> Iterator[VectorT]:
    """Close environments at the end. Failing to is logged as a warning, so that what was done in them is not lost."""
    try:
        yield envs
    finally:
        if envs is not None:
            _close(envs)


def _close(envs: Envs) -> None:
    inner = envs.unwrapped
    try:
        envs.close()
    except Exception as error:  # of an environment, which may raise anything
        logger.warning(_NOT_CLOSED, type(error).__name__, error)
        inner.closed = True  # or it would be tried again, and fail, when it is collected
        for env in getattr(inner, "envs", ()):  # those behind the one that raised
            with suppress(Exception):
                env.close()


_NOT_CLOSED = "an environment could not be closed (%s: %s): its results are kept; mend its close()"


def require_separate(*vectors: Envs | None) -> None:
    """Refuse copies of an environment that are one and the same, or share an environment or a simulation inside.

    Raises:
        EnvError: naming what is shared.
    """
    owners: dict[int, object] = {}
    for vector in vectors:
        inner = None if vector is None else vector.unwrapped
        for number, env in enumerate(_copies(inner)):
            for part in _parts(env):
                if owners.setdefault(id(part), owner := (id(inner), number)) != owner:
                    factory = getattr(inner, "env_fns", [None])[0]
                    made_by = f"env {factory.env!r}" if isinstance(factory, _Factory) else "the environments' factory"
                    kind = kind_of(part).replace(":", ".")
                    raise EnvError(
                        f"{made_by} gave one and the same {kind} to two copies, which would reset and step it in each other's episodes: "
                        f"expected an environment of its own for each copy, in training and in evaluation; make a new one in each call"
                    )


def kind_of(value: object) -> str:
    """Return the module and name of a value's type."""
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _copies(inner: Envs | None) -> Sequence[Environment]:
    return [inner.prototype] if isinstance(inner, Batched) else getattr(inner, "envs", ())


def _parts(env: Environment) -> Iterator[object]:
    """Yield an environment, and the environments and MuJoCo's simulations inside it, each once."""
    mujoco = sys.modules.get("mujoco")
    kinds = (gymnasium.Env, VectorEnv) if mujoco is None else (gymnasium.Env, VectorEnv, mujoco.MjData)
    seen: set[int] = {id(env)}
    found: list[object] = [env]
    for part in found:
        yield part
        inside = [value for value in getattr(part, "__dict__", {}).values() if isinstance(value, kinds) and id(value) not in seen]
        seen |= {id(value) for value in inside}
        found += inside


def time_limit(envs: Envs) -> int | None:
    """Return the steps after which a `TimeLimit` truncates the episodes of all copies; None where there is none, or none is known."""
    if TIME_LIMIT in envs.metadata:
        known: int | None = envs.metadata[TIME_LIMIT]
        return known
    limits = [time_limits(env) for env in _copies(envs.unwrapped)]
    return max(map(min, limits), default=None) if all(limits) else None


def time_limits(env: Environment) -> list[int]:
    """List the steps after which each `TimeLimit` around an environment truncates its episodes."""
    return [layer._max_episode_steps for layer in layers_of(env) if isinstance(layer, gymnasium.wrappers.TimeLimit)]


class _InProcess(EnvWrapper):
    """Wrapper of an environment in a process of its own, which tells its time limit and logs there that it cannot be closed."""

    @property
    def time_limit(self) -> int | None:
        return min(time_limits(self), default=None)

    def close(self) -> None:
        try:
            super().close()
        except Exception as error:  # of an environment, which may raise anything
            logger.warning(_NOT_CLOSED, type(error).__name__, error)


class _Factory:
    """Constructor of one environment, which is sent to another process under "async"."""

    def __init__(self, env: str | EnvironmentFactory, kwargs: dict[str, object], wrappers: tuple[Wrapper, ...]) -> None:
        self.env = env
        self.kwargs = kwargs
        self.wrappers = wrappers
        if isinstance(env, str) and env.startswith(DM_CONTROL) and not register_dm_control():
            raise EnvError(f"env {env!r} needs shimmy and dm-control, which are not installed: {OF_ITS_OWN}")
        # Environments that this process has registered by hand are unknown in another: the specification travels along.
        self.spec = gymnasium.registry.get(env) if isinstance(env, str) else None

    def __call__(self) -> Environment:
        redirect_mujoco_warnings(import_mujoco=self.spec is not None and "mujoco" in str(self.spec.entry_point))
        env = self._make()
        redirect_mujoco_warnings()
        check_interface(env.unwrapped)
        if env is not env.unwrapped and not isinstance(self.env, str):
            check_interface(env)
        for wrapper in self.wrappers:
            env = wrapper(env)
            if not isinstance(env, gymnasium.Env):
                raise EnvError(f"wrapper {wrapper!r} made a {type(env).__name__}, expected a gymnasium.Env: return one from it")
            if not isinstance(env, ReportDivergence | _InProcess):
                check_interface(env)
        return env

    def _make(self) -> Environment:
        if not isinstance(self.env, str):
            env = self.env(**self.kwargs)
            if not isinstance(env, gymnasium.Env):
                raise EnvError(f"env {self.env!r} made a {type(env).__name__}, expected a gymnasium.Env: return one from it")
            return env
        known = self.spec if self.spec is not None and self.env not in gymnasium.registry else self.env
        try:
            options: Any = self.kwargs
            made = gymnasium.make(known, **options)
        except gymnasium.error.DependencyNotInstalled as error:
            fix = 'pip install "sacref[mujoco]"' if "mujoco" in str(error).lower() else "install what it names"
            raise EnvError(f"env {self.env!r} needs a package that is not installed ({error}): {fix}") from error
        except AttributeError as error:
            if not self.env.startswith(DM_CONTROL):
                raise
            raise EnvError(f"env {self.env!r} cannot be made with this version of MuJoCo ({error}): {OF_ITS_OWN}") from error
        except gymnasium.error.UnregisteredEnv as error:
            raise EnvError(
                f"env {self.env!r} is unknown ({error}) Expected a registered Gymnasium id: see gymnasium.pprint_registry(), "
                f'or import the package that registers it, as "module:id"'
            ) from error
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise EnvError(f"env {self.env!r} cannot be made ({type(error).__name__}: {error}): choose another, or mend that") from error
        if made.spec is not None and made.spec.id != self.env.rpartition(":")[2]:
            made.close()
            raise EnvError(
                f"env {self.env!r} names no version, and each version has returns of its own: expected {made.spec.id!r}, which is the "
                f"newest, or an older one"
            )
        return DmControl(made) if self.env.startswith(DM_CONTROL) else made
