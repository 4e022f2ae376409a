"""Returns and lengths of an agent's episodes, read from the rows of its transitions."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace, is_torch_array
from numpy.typing import NDArray

from sacref.spec.arrays import Array, ArrayT, Namespace, NumpyArray


class Summary(NamedTuple):
    """Episodes and rewards since the last summary; empty arrays where there were none."""

    returns: NDArray[np.float64]
    """Undiscounted sums of rewards of the finished episodes."""
    lengths: NDArray[np.int64]
    """Their lengths in timesteps."""
    rewards: NDArray[np.float64]
    """The rewards of the rows kept."""


RECENT = 100
"""Returns of the last finished episodes that are remembered."""
UNREAD = 128
"""Rows of device arrays whose returns wait to be read before they are packed into the last `RECENT`."""


class EpisodeStatistics:
    """Accumulates rewards per environment; works on NumPy arrays at once and on device arrays without waiting for them.

    Rows are referenced until `summary` fetches them: where nobody calls it, `add` must be told not to keep them.
    """

    def __init__(self) -> None:
        self.recent_returns: deque[float] = deque(maxlen=RECENT)
        """Those that are on the host; see `read_returns`."""
        self._unread: list[tuple[Array, Array]] = []
        """Returns and which of them are of finished episodes, `(envs,)` each, on the device; packed ones are `(at most RECENT,)`."""
        self._running: tuple[Array, Array] | None = None
        self._rows: list[tuple[Array, Array, Array, Array, Array]] = []

    @property
    def latest(self) -> Array | None:
        """An array of the unfinished episodes, `(envs,)`; None where there is none."""
        return None if self._running is None else self._running[0]

    def convert(self, convert: Callable[[object], Array], to_numpy: Callable[[object], NumpyArray]) -> None:
        """Convert the unfinished episodes, where rows come in arrays of another kind from now on."""
        self.read_returns(to_numpy)  # those of before come first
        if self._running is not None:
            self._running = (convert(self._running[0]), convert(self._running[1]))

    def add(self, *, rewards: Array, ended: Array, keep: Array, dropped: Array | None = None, for_summary: bool = True) -> None:
        """Count one row per environment: `rewards`, `ended` (terminated or truncated) and `keep`, each `(envs,)`.

        Where `dropped`, `(envs,)`, the current episode is forgotten: it is neither finished nor goes on.
        `recent_returns` follows at once for NumPy arrays, and at the next `read_returns` or `summary` for device arrays.
        """
        on_host = all(type(array) is np.ndarray for array in (rewards, ended, keep))
        xp: Any = np if on_host else array_namespace(rewards, ended, keep)
        # A copy: environments on a device write every step into the same buffer.
        rewards = np.array(rewards, np.float64) if on_host else xp.asarray(rewards, copy=True)
        zeros = np.zeros(rewards.shape) if on_host else xp.zeros_like(rewards)
        returns, lengths = self._running or (zeros, zeros)
        # Choosing rows takes longer than adding them: on the host it is left out where all are kept, and where no episode is over.
        all_kept = on_host and np.count_nonzero(np.asarray(keep)) == zeros.size
        returns = returns + (rewards if all_kept else xp.where(keep, rewards, zeros))
        lengths = lengths + (1.0 if all_kept else xp.where(keep, zeros + 1.0, zeros))
        finished = xp.logical_and(ended, keep)
        if for_summary:
            self._rows.append((rewards, keep, finished, returns, lengths))
        over = finished if dropped is None else xp.logical_or(finished, dropped)
        self._running = returns, lengths
        if not on_host or np.count_nonzero(over):
            self._running = xp.where(over, zeros, returns), xp.where(over, zeros, lengths)
        if not on_host:
            self._unread.append((returns, finished))
            if len(self._unread) == UNREAD:
                self._unread = [_last_finished(xp, self._unread)]
        elif np.count_nonzero(finished):
            self.recent_returns.extend(returns[finished].tolist())

    def read_returns(self, to_numpy: Callable[[object], NumpyArray]) -> tuple[float, ...]:
        """Fetch the returns that are on the device; give those of the last finished episodes, oldest first, at most `RECENT`."""
        unread, self._unread = self._unread, []
        for returns, finished in unread:
            self.recent_returns.extend(to_numpy(returns)[to_numpy(finished)].tolist())
        return tuple(self.recent_returns)

    def summary(self, to_numpy: Callable[[object], NumpyArray]) -> Summary:
        """Fetch and forget the rows since the last call; the unfinished episodes go on."""
        self.read_returns(to_numpy)
        rows, self._rows = self._rows, []
        if not rows:
            return Summary(np.empty(0), np.empty(0, np.int64), np.empty(0))
        rewards, keep, finished, returns, lengths = (_joined([row[i] for row in rows], to_numpy) for i in range(5))
        return Summary(returns[finished].astype(np.float64), lengths[finished].astype(np.int64), rewards[keep].astype(np.float64))

    def state(self, to_numpy: Callable[[object], NumpyArray]) -> dict[str, object]:
        """Return the state, on the host."""
        widths = {row[0].shape[0] for row in self._rows}
        width = widths.pop() if len(widths) == 1 else 1  # Evaluations may have other numbers of environments.
        rows = [_joined([row[i] for row in self._rows], to_numpy).reshape(-1, width) for i in range(5)] if self._rows else None
        running = None if self._running is None else [to_numpy(array) for array in self._running]
        return {"recent_returns": list(self.read_returns(to_numpy)), "running": running, "rows": rows}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.recent_returns, self._unread = deque(state["recent_returns"], maxlen=RECENT), []
        running, rows = state["running"], state["rows"]
        self._running = None if running is None else (running[0], running[1])
        self._rows = [] if rows is None else [(a, b, c, d, e) for a, b, c, d, e in zip(*rows, strict=True)]

    def hand_out(self, parts: Sequence[tuple[slice, "EpisodeStatistics", bool]]) -> None:
        """Give the rows since the last call, and the unfinished episodes, to the statistics of some environments each.

        Args:
            parts: which environments, their statistics, and whether these keep rows for a summary. Rows are NumPy arrays.
        """
        rows, self._rows = self._rows, []
        for own, part, for_summary in parts:
            for row in rows:
                rewards, keep, finished, returns, lengths = (array[own] for array in row)
                if for_summary:
                    part._rows.append((rewards, keep, finished, returns, lengths))
                if finished.any():
                    part.recent_returns.extend(returns[finished].tolist())
            if self._running is not None:
                part._running = (self._running[0][own], self._running[1][own])

    def take_over(self, parts: Sequence["EpisodeStatistics"], envs: int, to_numpy: Callable[[object], NumpyArray]) -> None:
        """Go on with the unfinished episodes of other statistics, of so many environments each."""
        zeros = np.zeros(envs)
        running = [(zeros, zeros) if part._running is None else part._running for part in parts]
        returns, lengths = (np.concatenate([to_numpy(each[field]) for each in running]) for field in (0, 1))
        self._running = returns, lengths

    def forget_running(self) -> None:
        """Drop the episodes that have not finished, as after a reset of all environments."""
        self._running = None

    def forget_rows(self) -> None:
        """Drop the rows that no summary has fetched; the unfinished episodes go on."""
        self._rows = []


def _joined(rows: Sequence[Array], to_numpy: Callable[[object], NumpyArray]) -> NumpyArray:
    """Return rows, `(envs,)` each, one after the other on the host; those of PyTorch in one copy. JAX would compile one for each number."""
    if all(map(is_torch_array, rows)):
        return to_numpy(array_namespace(*rows).concat(rows))
    return np.concatenate([to_numpy(row) for row in rows])


def _last_finished(xp: Namespace, blocks: list[tuple[ArrayT, ArrayT]]) -> tuple[ArrayT, ArrayT]:
    """Return the last `RECENT` returns of finished episodes, in order, and a mask of those that are one; do not wait for the device."""
    returns, finished = (xp.concat([block[part] for block in blocks]) for part in (0, 1))
    # Of 0, 1, ... where an episode has finished: in order, behind all else.
    places = xp.cumulative_sum(xp.astype(finished, xp.int32)) * xp.astype(finished, xp.int32)
    last = xp.argsort(places)[-RECENT:]
    return returns[last], finished[last]
