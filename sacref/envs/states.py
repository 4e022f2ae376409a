"""Privileged states, which vector environments hand over for the critics alone."""

from collections.abc import Mapping
from functools import reduce
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from sacref.algorithm.tree import Tree, leaves, map_leaves, map_named
from sacref.envs.device import is_on_device
from sacref.envs.episodes import dense_rows, select_rows
from sacref.envs.interface import Envs, Space
from sacref.envs.spaces import exactly
from sacref.spec.arrays import Array, NumpyArray, as_numpy, namespace

_FIX = 'put it into info["state"] on every reset and step, or give the environment a method `state()`'


def state_space_of(envs: Envs) -> Space | None:
    """Return the space of one environment's state; None where there is none.

    It is the attribute `state_space` of each environment, or `single_state_space` of a vector environment that is no set of environments.

    What an environment without one puts into `info["state"]` is its own, and is not read.

    Args:
        envs: looked through for the attribute in the environments and in the wrappers around them.

    Raises:
        TypeError: if `state_space` is no space. ValueError: if it differs between the environments.
    """
    if isinstance(space := getattr(envs, "single_state_space", None), gymnasium.Space):
        return space
    if have(envs, "state_space"):
        spaces = _call(envs, "state_space")
        if any(space != spaces[0] for space in spaces):
            raise ValueError(f"state_space differs between the environments, {spaces[0]} and others: give all copies the same")
        if spaces[0] is not None:
            if not isinstance(spaces[0], gymnasium.Space):
                raise TypeError(
                    f"state_space is a {type(spaces[0]).__name__}, expected a gymnasium.Space: give the environment one, or None"
                )
            return spaces[0]
    return None


def states_of(
    envs: Envs,
    infos: object,
    space: Space | None,
    *,
    previous: Tree | None = None,
    reset_mask: Array | None = None,
) -> Tree | None:
    """Return the states after a reset or step of the vector environment.

    They are read from `infos["state"]`, else from a method `state()` of each environment. Where the environment has been reset within the
    step (SAME_STEP), it is the state of the next episode, as the observation is; see `final_states`.

    Args:
        envs: which have just been reset or stepped.
        infos: what that gave.
        space: of one environment's state, as `state_space_of` gives it; None for environments without.
        previous, reset_mask: after a reset of some environments (`options={"reset_mask": ...}`): the states before it, which the others
            keep, and which environments it was, `(envs,)`.

    Returns:
        `(envs, *state)` of the space's dtype, or a dict of those; None if `space` is None.

    Raises:
        ValueError, TypeError: if an environment hands over no state, or another than its space says.
    """
    if space is None:
        return None
    handed = infos.get("state") if isinstance(infos, Mapping) else None
    if isinstance(infos, Mapping) and handed is not None:
        everywhere = np.ones(envs.num_envs, np.bool_)
        mask = infos.get("_state", everywhere)
        mask = everywhere if is_on_device(mask) else mask  # where nothing is looked at
        states, present = _gather("info['state']", handed, np.asarray(mask, np.bool_), space)
    elif have(envs, "state"):
        states, present = _gather("state()", map_named(_stack, "state()", *_call(envs, "state")), np.ones(envs.num_envs, np.bool_), space)
    else:
        states, present = None, np.zeros(envs.num_envs, np.bool_)
    expected = reset_mask if isinstance(reset_mask, np.ndarray) else np.ones(envs.num_envs, np.bool_)
    missing = np.flatnonzero(expected & ~present)[:5].tolist()
    if missing:
        raise ValueError(f"environments {missing} have a state_space, {space}, but handed over no state: {_FIX}")
    if reset_mask is None:
        return states
    return map_leaves(lambda new, old: select_rows(namespace(new), reset_mask, new, old), states, previous)


def final_states(infos: object, next_states: Tree | None, ended: Array | None = None) -> Tree | None:
    """Return the true successors: where an episode ended and was reset within the step (SAME_STEP), the state that it ended in.

    Args:
        infos: what the step gave. Gymnasium puts the last info of an episode into `infos["final_info"]`, with the masks `_final_info`
            of the environments, and `_state` of those that handed over a state.
        next_states: `(envs, *state)`, or a dict of those, as arrays of any library; or None. They are not written to.
        ended: `(envs,)`, bool: where an episode ended, beyond which last infos are not read; None where that is not known.

    Returns:
        The same with those rows in place, `next_states` itself where there are none.

    Raises:
        ValueError: if an episode was reset within the step but its last info holds no state.
    """
    if next_states is None or not isinstance(infos, Mapping):
        return next_states
    final = infos.get("final_info", {})
    if not isinstance(final, Mapping):
        raise TypeError(f"infos['final_info'] is a {type(final).__name__}, expected a mapping of arrays, as Gymnasium >= 1.0 gives it")
    envs = int(leaves(next_states)[0].shape[0])
    mask = infos.get("_final_info", infos.get("_final_obs"))
    masks = [each for each in (mask, ended) if each is not None]
    if masks and is_on_device(masks[0]) and "state" in final:  # where nothing is looked at
        like = leaves(next_states)[0]
        xp, device = namespace(like), getattr(like, "device", None)
        which = reduce(xp.logical_and, (xp.asarray(each, device=device) for each in masks))
        return map_leaves(lambda old, new: select_rows(namespace(old), which, new, old), next_states, final["state"])
    # A final observation without a final info: an episode was reset, and its last state is missing.
    reset = np.asarray(np.full(envs, bool(final)) if mask is None else mask, np.bool_)
    if ended is not None and not is_on_device(ended):
        reset = reset & as_numpy(ended, "ended")
    handed = final.get("state")
    if handed is None:
        states, present = None, np.zeros(envs, np.bool_)
    else:
        states, present = _gather("final_info['state']", handed, np.asarray(final.get("_state", reset), np.bool_), next_states)
    if not present[reset].all():
        missing = np.flatnonzero(reset & ~present)[:5].tolist()
        raise ValueError(
            f"environments {missing} were reset within the step (SAME_STEP), but their final_info holds no state: "
            f'put it into info["state"] on every step, or take autoreset_mode=NEXT_STEP'
        )
    if not reset.any():
        return next_states
    return map_leaves(lambda old, new: select_rows(namespace(old), reset, new, old), next_states, states)


def have(envs: Envs, name: str) -> bool:
    """Tell whether each environment, or a wrapper around it, has the attribute. Asking for a missing one would end its process."""
    return hasattr(envs.unwrapped, "call") and all(_call(envs, "has_wrapper_attr", name))


def _call(envs: Envs, name: str, *arguments: object) -> tuple[object, ...]:
    inner: Any = envs.unwrapped
    return tuple(inner.call(name, *arguments))


def _gather(name: str, value: Tree, mask: NDArray[np.bool_], like: Tree) -> tuple[Tree, NDArray[np.bool_]]:
    """Return states that Gymnasium gathered from infos as a tree of arrays, and a mask of the environments that handed over all of it.

    Args:
        like: the space of one row, or a tree of such rows in arrays.
    """
    branches = like.spaces if isinstance(like, gymnasium.spaces.Dict) else like
    if isinstance(branches, Mapping):
        if not isinstance(value, Mapping):
            raise TypeError(f"{name} is a {type(value).__name__}, expected a dict with the keys {list(branches)}, as state_space says")
        unknown = [key for key in value if key not in branches and not (key[:1] == "_" and key[1:] in value)]
        if unknown or branches.keys() - value.keys():
            missing = [key for key in branches if key not in value]
            raise ValueError(
                f"{name} lacks the keys {missing} and has the unknown keys {unknown}, expected {list(branches)} as state_space says"
            )
        tree = {}
        for key, branch in branches.items():
            tree[key], present = _gather(f"{name}[{key!r}]", value[key], np.asarray(value.get(f"_{key}", mask), np.bool_), branch)
            mask = mask & present
        return tree, mask
    shape = tuple(like.shape) if isinstance(like, gymnasium.spaces.Box) else tuple(like.shape)[1:]
    if isinstance(value, Mapping):
        raise TypeError(f"{name} is a dict, expected an array of shape {shape}, as state_space says: make state_space a Dict")
    if is_on_device(value):
        _require_shape(name, tuple(value.shape)[1:], shape)
        return value, mask
    rows = as_numpy(value, name)
    if rows.dtype == object:
        # Lists and tensors: Gymnasium gathers NumPy arrays alone.
        given = {index: as_numpy(rows[index], name) for index in np.flatnonzero(mask).tolist()}
        for row in given.values():
            _require_shape(name, row.shape, shape)
        rows = dense_rows(given, (len(rows), *shape))
    _require_shape(name, rows.shape[1:], shape)
    if isinstance(like, gymnasium.spaces.Box):
        if not np.can_cast(rows.dtype, like.dtype, "same_kind"):
            raise TypeError(
                f"{name} has dtype {rows.dtype}, expected {like.dtype} as state_space says: give state_space the dtype of the state"
            )
        rows = exactly(rows, np.dtype(like.dtype), name)
    return rows, mask


def _require_shape(name: str, got: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if got != expected:
        raise ValueError(f"{name} has shape {got}, expected {expected} as state_space says: give state_space the shape of the state")


def _stack(name: str, *rows: object) -> NumpyArray:
    return np.stack([as_numpy(row, name) for row in rows])
