"""Where episodes end: the true successor of each observation, and the rows that are no transition."""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, Generic, cast

import numpy as np
from jaxtyping import Bool

from sacref.algorithm.tree import Tree, leaves, map_leaves
from sacref.spec.arrays import Array, ArrayT, Namespace, NumpyArray, as_numpy, namespace

_NAME = "infos['final_obs']"
_FORMER = "final_observation"
_RENAME = "hand it over under that name, and its mask as '_final_obs' (docs/device-environments.md has an adapter for ManiSkill)"

DROPPED = "sacref.dropped"
"""Key of infos: `(envs,)`, bool: whose rows are no transition but the end of an episode that is left out, as where a simulation has
diverged. Their next rows come from freshly reset environments."""

NO_RESET_ROWS = "sacref.no_reset_rows"
"""Key of infos: True where the environments' autoreset mode is known to be another than NEXT_STEP, so that each row is a transition."""


class EpisodeBoundaries(Generic[ArrayT]):
    """Turns the rows of any vector environment into transitions, whatever its autoreset mode.

    SAME_STEP: the row that ends an episode holds the next episode's first observation as its successor, and the true one in
    `infos["final_obs"]`. NEXT_STEP: the row after it ignores the action and leads from the last observation to the next
    episode's first; it is no transition. DISABLED, or a trainer that calls `reset`: nothing is to be done. The rows themselves tell
    the mode, unless infos have `NO_RESET_ROWS`: an episode that begins with the observation that the last one ended with looks like a
    reset.

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

    def state(self, to_numpy: Callable[[object], Array]) -> dict[str, Tree]:
        """Copy the state to the host."""
        state = {"expects_reset": self._expects_reset, "last_observations": self._last_observations, "starts": self.starts}
        return {name: map_leaves(to_numpy, tree) for name, tree in state.items()}

    def set_state(self, state: Mapping[str, Tree]) -> None:
        """Go on from what `state` returned."""
        self._expects_reset, self._last_observations, self.starts = state["expects_reset"], state["last_observations"], state["starts"]

    @property
    def latest(self) -> ArrayT | None:
        """An array of the library and device of the row before, `(envs,)`; None before the first one."""
        return self._expects_reset

    def resolve(
        self,
        *,
        observations: Tree,
        next_observations: Tree,
        terminated: Bool[ArrayT, "envs"],
        truncated: Bool[ArrayT, "envs"],
        infos: object,
    ) -> tuple[Tree, Bool[ArrayT, "envs"]]:
        """Return the true next observations of one row, and which environments' transitions are to be stored.

        Called once for every row, in order. All arrays belong to one library and device.

        Args:
            observations: what the actions were chosen on, `(envs, *observation)`; of a Dict space a dict of such.
            next_observations: what the environments returned, `(envs, *observation)`.
            terminated, truncated: `(envs,)`, bool.
            infos: the environments' infos, where they are a mapping. `final_obs` is read: an object array with None where no episode
                ended (Gymnasium's SAME_STEP), or an array or tensor `(envs, *observation)`; `_final_obs` masks it. Of a Dict space
                either a dict of such, or an object array of dicts. And `DROPPED` and `NO_RESET_ROWS`.

        Returns:
            The next observations with the final ones in place, `(envs, *observation)`; keep, `(envs,)`: False where the row is a
            NEXT_STEP reset.

        Raises:
            ValueError: if `final_obs` does not have the observations' shape or keys, or `DROPPED` not an entry for each environment; if
                it has Gymnasium's former name, where the arrays are on a device.
        """
        arrays = (*leaves(observations), *leaves(next_observations), terminated, truncated)
        # NumPy is such a namespace itself; to find that out takes as long as all that follows does to one environment's row.
        on_host = all(type(array) is np.ndarray for array in arrays)
        xp = cast(Namespace, np if on_host else namespace(*arrays))
        ended = xp.logical_or(terminated, truncated)
        replaced, successors = _apply_final_observations(xp, next_observations, ended, infos)
        keep = xp.ones_like(ended)
        # On the host the rows are compared only where a reset may be.
        if self._expects_reset is not None and not (on_host and not np.count_nonzero(np.asarray(self._expects_reset))):
            reset = xp.logical_and(self._expects_reset, _equal_rows(xp, observations, self._last_observations))
            # A reset never ends an episode: a row that does is a transition, as in a task of one step and one observation.
            keep = xp.logical_not(xp.logical_and(reset, xp.logical_not(ended)))
        dropped = dropped_rows(infos, ended)
        if dropped is not None:
            keep = xp.logical_and(keep, xp.logical_not(dropped))
        # A reset row ends nothing, and an environment that delivered its final observation has been reset already.
        self._expects_reset = xp.logical_and(xp.logical_and(ended, keep), xp.logical_not(replaced))
        if isinstance(infos, Mapping) and infos.get(NO_RESET_ROWS):
            self._expects_reset = xp.zeros_like(ended)
        # A copy: vector environments write every step into the same buffer.
        self._last_observations = map_leaves(lambda leaf: xp.asarray(leaf, copy=True), successors)
        self.starts = xp.logical_or(ended, xp.logical_not(keep))
        return successors, keep


def dropped_rows(infos: object, like: Bool[ArrayT, "envs"]) -> Bool[ArrayT, "envs"] | None:
    """Return which rows infos say are dropped, as an array of the library of `like`; None where they say nothing about it.

    Raises:
        ValueError: if there is not an entry for each environment.
    """
    mask = infos.get(DROPPED) if isinstance(infos, Mapping) else None
    if mask is None:
        return None
    if tuple(np.shape(mask)) != tuple(like.shape):
        raise ValueError(f"infos[{DROPPED!r}] has shape {tuple(np.shape(mask))}, expected {tuple(like.shape)}: a bool per environment")
    dropped: ArrayT = namespace(like).asarray(mask, dtype=like.dtype, device=getattr(like, "device", None))
    return dropped


def _equal_rows(xp: Namespace, a: Tree, b: Tree) -> Any:
    """Tell whether all numbers of a row are equal, `(envs,)`, in the narrower dtype: a device or a trainer may have rounded one of them."""
    alike = []
    for left, right in zip(leaves(a), leaves(b), strict=True):
        if left.dtype != right.dtype:
            floats = all(xp.isdtype(array.dtype, "real floating") for array in (left, right))
            narrower = left if floats and left.dtype.itemsize < right.dtype.itemsize else right
            left, right = (_rounded(xp, array, narrower.dtype) for array in (left, right))
        alike.append(xp.all(xp.reshape(left == right, (left.shape[0], -1)), axis=1))
    return reduce(xp.logical_and, alike)


def _rounded(xp: Namespace, array: Array, dtype: object) -> Array:
    with np.errstate(over="ignore"):  # a number that the device does not have equals none of its
        rounded: Array = xp.asarray(array, dtype=dtype)
        return rounded


def _apply_final_observations(xp: Namespace, next_observations: Tree, ended: ArrayT, infos: object) -> tuple[ArrayT, Tree]:
    """Return which rows hold a final observation, `(envs,)`, and the next observations with those in place."""
    final = infos.get("final_obs") if isinstance(infos, Mapping) else None
    if not isinstance(infos, Mapping) or final is None:
        # On the host an info of one environment may have this name.
        if type(ended) is not np.ndarray and isinstance(infos, Mapping) and _FORMER in infos:
            raise ValueError(f"infos have {_FORMER!r}, Gymnasium's former name, expected 'final_obs': {_RENAME}")
        return xp.zeros_like(ended), next_observations
    mask, device = infos.get("_final_obs"), getattr(ended, "device", None)
    if has_entries(final):
        # Host values: nothing is read from a device.
        if len(final) != ended.shape[0]:
            raise ValueError(f"{_NAME} has {len(final)} entries, expected {ended.shape[0]}: one per environment, None where none ended")
        present = np.array([row is not None for row in final])
        if mask is not None:
            present &= np.asarray(mask, bool)
        rows = {index: final[index] for index in np.flatnonzero(present).tolist()}
        final = _dense(rows, next_observations, _NAME)
        replaced = xp.asarray(present, device=device)
    else:
        replaced = ended if mask is None else xp.logical_and(ended, xp.asarray(mask, device=device))
    return replaced, _replace(xp, replaced, final, next_observations, _NAME)


def has_entries(final: object) -> bool:
    """Tell whether final observations are an entry for each environment, None where none ended, and not arrays `(envs, ...)`."""
    return isinstance(final, list | tuple) or (isinstance(final, np.ndarray) and final.dtype == object)


def select_rows(xp: Namespace, mask: Array, new: Array, old: ArrayT) -> ArrayT:
    """Return `old`, `(envs, ...)`, with the rows of `new` where `mask`, `(envs,)`, in the dtype and on the device of `old`."""
    device = getattr(old, "device", None)
    lifted = xp.reshape(xp.asarray(mask, device=device), (old.shape[0], *(1 for _ in old.shape[1:])))
    selected: ArrayT = xp.where(lifted, xp.asarray(new, dtype=old.dtype, device=device), old)
    return selected


def _replace(xp: Namespace, mask: Array, final: Tree, next_observations: Tree, name: str) -> Tree:
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
        final = final.copy()
        final[~mask] = 0
        with np.errstate(invalid="ignore"):
            stored = final.astype(next_observations.dtype)
        if not np.array_equal(stored, final):
            raise ValueError(
                f"{name} hold numbers that {next_observations.dtype}, in which observations are stored, has not: give the space the dtype "
                f"that the environment returns"
            )
        final = stored
    return select_rows(xp, mask, final, next_observations)


def _dense(rows: Mapping[int, Tree], like: Tree, name: str) -> Tree:
    """Return the final observations of some environments as arrays with a row for each environment."""
    if isinstance(like, Mapping):
        return {
            key: _dense({i: _branch(row, key, f"{name} of environment {i}") for i, row in rows.items()}, branch, f"{name}[{key!r}]")
            for key, branch in like.items()
        }
    shape = tuple(like.shape)
    arrays = {index: as_numpy(row, f"{name} of environment {index}") for index, row in rows.items()}
    for index, array in arrays.items():
        if array.shape != shape[1:]:
            raise ValueError(
                f"{name} of environment {index} has shape {array.shape}, expected {shape[1:]} as next_observations: "
                f"give it the shape of one observation"
            )
    return dense_rows(arrays, shape)


def dense_rows(rows: Mapping[int, NumpyArray], shape: tuple[int, ...]) -> NumpyArray:
    """Return the rows of some environments as an array of `shape`, `(envs, ...)`, of a dtype that holds all of them; zeros elsewhere."""
    dense = np.zeros(shape, np.result_type(*rows.values()) if rows else np.float32)
    for index, row in rows.items():
        dense[index] = row
    return dense


def _branch(tree: Tree, key: str, name: str) -> Tree:
    if not isinstance(tree, Mapping) or key not in tree:
        found = f"has the keys {sorted(tree)}" if isinstance(tree, Mapping) else f"is a {type(tree).__name__}"
        raise ValueError(f"{name} {found}, expected a dict with {key!r} as next_observations: give it every key of the Dict space")
    return tree[key]
