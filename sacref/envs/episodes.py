"""Where episodes end: the true successor of each observation, and the rows that are no transition."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Bool

from sacref.algorithm.tree import Tree, leaves, map_leaves
from sacref.spec.arrays import ArrayT, as_numpy, namespace

_NAME = "infos['final_obs']"

DROPPED = "sacref.dropped"
"""Key of infos: `(envs,)`, bool, which environments' rows are no transition but the end of an episode that counts for nothing, as where a
simulation has diverged. Their next rows are of freshly reset environments."""


@runtime_checkable
class _Namespace(Protocol):
    """The functions of the array API standard that the bookkeeping calls."""

    def all(self, x: Any, /, *, axis: int) -> Any: ...
    def asarray(self, x: Any, /, *, dtype: Any = None, device: Any = None, copy: bool | None = None) -> Any: ...
    def logical_and(self, x1: Any, x2: Any, /) -> Any: ...
    def logical_not(self, x: Any, /) -> Any: ...
    def logical_or(self, x1: Any, x2: Any, /) -> Any: ...
    def ones_like(self, x: Any, /) -> Any: ...
    def reshape(self, x: Any, /, shape: tuple[int, ...]) -> Any: ...
    def where(self, condition: Any, x1: Any, x2: Any, /) -> Any: ...
    def zeros_like(self, x: Any, /) -> Any: ...


class EpisodeBoundaries(Generic[ArrayT]):
    """Turns the rows of any vector environment into transitions, whatever its autoreset mode.

    SAME_STEP: the row that ends an episode holds the next episode's first observation as its successor, and the true one in
    `infos["final_obs"]`. NEXT_STEP: the row after it ignores the action and leads from the last observation to the next
    episode's first; it is no transition. DISABLED, or a trainer that calls `reset`: nothing is to be done. Nothing is asked
    about the mode: the rows themselves tell.

    It decides on the arrays' own device and never reads a value to the host.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the previous row: the next one comes from freshly reset environments."""
        self._expects_reset: ArrayT | None = None
        self._last_observations: Tree | None = None
        self.starts: ArrayT | None = None
        """`(envs,)`, bool: where the next row begins an episode, or follows one that is no transition; None where all do."""

    def state(self, to_numpy: Callable[[Any], Any]) -> dict[str, Any]:
        """All that it knows, on the host."""
        return {
            "expects_reset": map_leaves(to_numpy, self._expects_reset),
            "last_observations": map_leaves(to_numpy, self._last_observations),
            "starts": map_leaves(to_numpy, self.starts),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._expects_reset, self._last_observations, self.starts = (
            state[name] for name in ("expects_reset", "last_observations", "starts")
        )

    @property
    def latest(self) -> ArrayT | None:
        """An array of those that the row before has left, `(envs,)`; None where there is none. All are of its kind."""
        return self._expects_reset

    def resolve(
        self,
        *,
        observations: Tree,
        next_observations: Tree,
        terminated: Bool[ArrayT, "envs"],
        truncated: Bool[ArrayT, "envs"],
        infos: Any,
    ) -> tuple[Tree, Bool[ArrayT, "envs"]]:
        """The true next observations of one row, and which environments' transitions are to be stored.

        To be called once for every row, in order. All arrays belong to one library and device.

        Args:
            observations: what the actions were chosen on, `(envs, *observation)`; of a Dict space a dict of such.
            next_observations: what the environments returned, `(envs, *observation)`.
            terminated, truncated: `(envs,)`, bool.
            infos: the environments' infos, where they are a mapping. `final_obs` is read: an object array with None where no episode
                ended (Gymnasium's SAME_STEP), or an array or tensor `(envs, *observation)`; `_final_obs` masks it. Of a Dict space
                either a dict of such, or an object array of dicts. And `DROPPED`.

        Returns:
            The next observations with the final ones in place, `(envs, *observation)`; keep, `(envs,)`: False where the row is a
            NEXT_STEP reset.

        Raises:
            ValueError: if `final_obs` does not have the observations' shape or keys, or `DROPPED` not an entry for each environment.
        """
        arrays = (*leaves(observations), *leaves(next_observations), terminated, truncated)
        # NumPy is such a namespace itself; to find that out takes as long as all that follows does to one environment's row.
        xp = cast(_Namespace, np if all(type(array) is np.ndarray for array in arrays) else namespace(*arrays))
        ended = xp.logical_or(terminated, truncated)
        replaced, successors = _apply_final_observations(xp, next_observations, ended, infos)
        keep = xp.ones_like(ended)
        if self._expects_reset is not None:
            reset = xp.logical_and(self._expects_reset, _equal_rows(xp, observations, self._last_observations))
            # A reset never ends an episode: a row that does is a transition, as in a task of one step and one observation.
            keep = xp.logical_not(xp.logical_and(reset, xp.logical_not(ended)))
        dropped = dropped_rows(infos, ended)
        if dropped is not None:
            keep = xp.logical_and(keep, xp.logical_not(dropped))
        # A reset row ends nothing, and an environment that delivered its final observation has been reset already.
        self._expects_reset = xp.logical_and(xp.logical_and(ended, keep), xp.logical_not(replaced))
        # A copy: vector environments write every step into the same buffer.
        self._last_observations = map_leaves(lambda leaf: xp.asarray(leaf, copy=True), successors)
        self.starts = xp.logical_or(ended, xp.logical_not(keep))
        return successors, keep


def dropped_rows(infos: Any, like: Bool[ArrayT, "envs"]) -> Bool[ArrayT, "envs"] | None:
    """What infos say is dropped, as an array of the library of `like`; None where they do not speak of it.

    Raises:
        ValueError: if there is not an entry for each environment.
    """
    mask = infos.get(DROPPED) if isinstance(infos, Mapping) else None
    if mask is None:
        return None
    if tuple(np.shape(mask)) != tuple(like.shape):
        raise ValueError(f"infos[{DROPPED!r}] has shape {tuple(np.shape(mask))}, expected {tuple(like.shape)}: a bool per environment")
    dropped: ArrayT = cast(_Namespace, namespace(like)).asarray(mask, dtype=like.dtype, device=getattr(like, "device", None))
    return dropped


def _equal_rows(xp: _Namespace, a: Tree, b: Tree) -> Any:
    """`(envs,)`: whether all numbers of a row are equal, in the dtype of `b`: what was on the device may have been rounded there."""
    pairs = zip(leaves(a), leaves(b), strict=True)
    alike = [(left if left.dtype == right.dtype else _rounded(xp, left, right.dtype), right) for left, right in pairs]
    equal = [xp.all(xp.reshape(left == right, (left.shape[0], -1)), axis=1) for left, right in alike]
    together = equal[0]
    for more in equal[1:]:
        together = xp.logical_and(together, more)
    return together


def _rounded(xp: _Namespace, array: Any, dtype: Any) -> Any:
    with np.errstate(over="ignore"):  # a number that the device does not have equals none of its
        return xp.asarray(array, dtype=dtype)


def _apply_final_observations(xp: _Namespace, next_observations: Tree, ended: Any, infos: Any) -> tuple[Any, Tree]:
    """Which rows hold a final observation, `(envs,)`, and the next observations with those in place."""
    final = infos.get("final_obs") if isinstance(infos, Mapping) else None
    if final is None:
        return xp.zeros_like(ended), next_observations
    mask, device = infos.get("_final_obs"), getattr(ended, "device", None)
    if has_entries(final):
        # Host values: nothing is read from a device.
        if len(final) != ended.shape[0]:
            raise ValueError(f"{_NAME} has {len(final)} entries, expected {ended.shape[0]}: one per environment, None where none ended")
        present = np.array([row is not None for row in final])
        if mask is not None:
            present &= np.asarray(mask, bool)
        final = _dense({index: final[index] for index in np.flatnonzero(present).tolist()}, next_observations, _NAME)
        replaced = xp.asarray(present, device=device)
    else:
        replaced = ended if mask is None else xp.logical_and(ended, xp.asarray(mask, device=device))
    return replaced, _replace(xp, replaced, final, next_observations, _NAME)


def has_entries(final: Any) -> bool:
    """Tell whether final observations are an entry for each environment, None where none ended, and not arrays `(envs, ...)`."""
    return isinstance(final, list | tuple) or (isinstance(final, np.ndarray) and final.dtype == object)


def _replace(xp: _Namespace, mask: Any, final: Tree, next_observations: Tree, name: str) -> Tree:
    """`next_observations` with the rows of `final` where `mask`."""
    if isinstance(next_observations, Mapping):
        return {key: _replace(xp, mask, _branch(final, key, name), old, f"{name}[{key!r}]") for key, old in next_observations.items()}
    shape = tuple(next_observations.shape)
    if isinstance(final, Mapping):
        raise ValueError(f"{name} is a dict, expected an array of shape {shape} as next_observations")
    if tuple(final.shape) != shape:
        raise ValueError(
            f"{name} has shape {tuple(final.shape)}, expected {shape} as next_observations: "
            f"give one final observation per environment (rows of running episodes are not read)"
        )
    if isinstance(final, np.ndarray) and isinstance(next_observations, np.ndarray) and next_observations.dtype.kind in "iub":
        # Rows of running episodes are not read, and may hold anything.
        final = np.where(mask.reshape(_lifted(mask, final)), final, np.zeros((), final.dtype))
        with np.errstate(invalid="ignore"):
            stored = final.astype(next_observations.dtype)
        if not np.array_equal(stored, final):
            raise ValueError(
                f"{name} hold numbers that {next_observations.dtype}, in which observations are stored, has not: give the space the dtype "
                f"that the environment returns"
            )
        final = stored
    final = xp.asarray(final, dtype=next_observations.dtype, device=getattr(next_observations, "device", None))
    return xp.where(xp.reshape(mask, _lifted(mask, final)), final, next_observations)


def _lifted(mask: Any, like: Any) -> tuple[int, ...]:
    """The shape in which a mask, `(envs,)`, chooses among rows, `(envs, ...)`."""
    return (mask.shape[0], *(1 for _ in like.shape[1:]))


def _dense(rows: Mapping[int, Any], like: Tree, name: str) -> Tree:
    """The final observations of some environments, as arrays with a row for each environment."""
    if isinstance(like, Mapping):
        return {
            key: _dense({i: _branch(row, key, f"{name} of environment {i}") for i, row in rows.items()}, branch, f"{name}[{key!r}]")
            for key, branch in like.items()
        }
    shape = tuple(like.shape)
    arrays = {index: as_numpy(row, f"{name} of environment {index}") for index, row in rows.items()}
    dense = np.zeros(shape, np.result_type(*arrays.values()) if arrays else np.float32)
    for index, array in arrays.items():
        if array.shape != shape[1:]:
            raise ValueError(
                f"{name} of environment {index} has shape {array.shape}, expected {shape[1:]} as next_observations: "
                f"give it the shape of one observation"
            )
        dense[index] = array
    return dense


def _branch(tree: Any, key: str, name: str) -> Any:
    if not isinstance(tree, Mapping) or key not in tree:
        found = f"has the keys {sorted(tree)}" if isinstance(tree, Mapping) else f"is a {type(tree).__name__}"
        raise ValueError(f"{name} {found}, expected a dict with {key!r} as next_observations: give it every key of the Dict space")
    return tree[key]
