"""Where episodes end: the true successor of each observation, and the rows that are no transition."""

from collections.abc import Mapping
from typing import Any, Generic, Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray

from sacref.spec.arrays import ArrayT, namespace
from sacref.tree import Tree, leaves, map_leaves


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
            infos: the environments' infos. `final_obs` is read where it is a mapping: an object array with None where no episode
                ended (Gymnasium's SAME_STEP), or an array or tensor `(envs, *observation)`; `_final_obs` masks it. Of a Dict space
                either a dict of such, or an object array of dicts.

        Returns:
            The next observations with the final ones in place, `(envs, *observation)`; keep, `(envs,)`: False where the row is a
            NEXT_STEP reset.

        Raises:
            ValueError: if `final_obs` does not have the observations' shape.
        """
        xp = cast(_Namespace, namespace(*leaves(observations), *leaves(next_observations), terminated, truncated))
        ended = xp.logical_or(terminated, truncated)
        replaced, successors = _apply_final_observations(xp, next_observations, ended, infos)
        keep = xp.ones_like(ended)
        if self._expects_reset is not None:
            reset = xp.logical_and(self._expects_reset, _equal_rows(xp, observations, self._last_observations))
            # A reset never ends an episode: a row that does is a transition, as in a task of one step and one observation.
            keep = xp.logical_not(xp.logical_and(reset, xp.logical_not(ended)))
        # A reset row ends nothing, and an environment that delivered its final observation has been reset already.
        self._expects_reset = xp.logical_and(xp.logical_and(ended, keep), xp.logical_not(replaced))
        # A copy: vector environments write every step into the same buffer.
        self._last_observations = map_leaves(lambda leaf: xp.asarray(leaf, copy=True), successors)
        self.starts = xp.logical_or(ended, xp.logical_not(keep))
        return successors, keep


def _equal_rows(xp: _Namespace, a: Tree, b: Tree) -> Any:
    """`(envs,)`: whether all numbers of a row are equal."""
    equal = [xp.all(xp.reshape(left == right, (left.shape[0], -1)), axis=1) for left, right in zip(leaves(a), leaves(b), strict=True)]
    together = equal[0]
    for more in equal[1:]:
        together = xp.logical_and(together, more)
    return together


def _apply_final_observations(xp: _Namespace, next_observations: Tree, ended: Any, infos: Any) -> tuple[Any, Tree]:
    """Which rows hold a final observation, `(envs,)`, and the next observations with those in place."""
    final = infos.get("final_obs") if isinstance(infos, Mapping) else None
    if final is None:
        return xp.zeros_like(ended), next_observations
    return _apply_final(xp, next_observations, ended, final, infos.get("_final_obs"))


def _apply_final(xp: _Namespace, next_observations: Tree, ended: Any, final: Any, mask: Any) -> tuple[Any, Tree]:
    if isinstance(next_observations, Mapping):
        if not isinstance(final, Mapping):
            rows = list(final)
            final = {key: [None if row is None else row[key] for row in rows] for key in next_observations}
        replaced, applied = ended, {}
        for key, branch in next_observations.items():
            own = final.get(f"_{key}", mask)
            replaced, applied[key] = _apply_final(xp, branch, ended, final[key], own)
        return replaced, applied
    shape = tuple(next_observations.shape)
    device = getattr(next_observations, "device", None)
    if isinstance(final, list | tuple) or (isinstance(final, np.ndarray) and final.dtype == object):
        final, present = _dense(final, mask, shape)
        replaced = xp.asarray(present, device=device)
    else:
        if tuple(final.shape) != shape:
            raise ValueError(
                f"infos['final_obs'] has shape {tuple(final.shape)}, expected {shape} as next_observations: "
                f"give one final observation per environment (rows of running episodes are not read)"
            )
        replaced = ended if mask is None else xp.logical_and(ended, xp.asarray(mask, device=device))
    final = xp.asarray(final, dtype=next_observations.dtype, device=device)
    axes = (1,) * (len(shape) - 1)
    return replaced, xp.where(xp.reshape(replaced, (shape[0], *axes)), final, next_observations)


def _dense(final: Any, mask: Any, shape: tuple[int, ...]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Gymnasium's object array as one array and the mask of the rows that it holds. Host values: nothing is read from a device."""
    if len(final) != shape[0]:
        raise ValueError(f"infos['final_obs'] has {len(final)} entries, expected {shape[0]}: one per environment, None where none ended")
    present = np.array([row is not None for row in final])
    if mask is not None:
        present &= np.asarray(mask, bool)
    rows = {index: np.asarray(final[index]) for index in np.flatnonzero(present)}
    for index, row in rows.items():
        if row.shape != shape[1:]:
            raise ValueError(
                f"infos['final_obs'] of environment {index} has shape {row.shape}, expected {shape[1:]} as next_observations: "
                f"give it the shape of one observation"
            )
    dense = np.zeros(shape, next(iter(rows.values())).dtype if rows else np.float32)
    for index, row in rows.items():
        dense[index] = row
    return dense, present
