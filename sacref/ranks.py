"""The processes that train one agent together: their messages to each other, on the host.

A rank is one of these processes. Each has environments, a replay memory and random streams of its own; parameters are equal on all. A
backend's `ranks.py` moves the bytes; every call here is made by all ranks, in the same order.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TIMEOUT = 120.0
"""Seconds after which a rank that does not answer is given up. One whose process ended is noticed at once."""


class LostRankError(RuntimeError):
    """Another rank ended, or did not answer in time; the message says what to do."""


def says_a_rank_is_lost(error: BaseException) -> bool:
    """Return whether a library's error, raised wherever the result of an exchange was read, says that another rank is gone.

    The libraries raise RuntimeError. A connection of an environment's own is an OSError, and is no rank's.
    """
    return isinstance(error, RuntimeError) and re.search(_LOST, str(error), re.IGNORECASE) is not None


_LOST = "gloo|nccl|connection (closed|reset|refused)|coordination service"


class Ranks:
    """Exchanges of one rank with the others. This class is that of a process that trains alone."""

    rank: int = 0
    """The number of this process, from 0. Rank 0 tracks and writes."""
    size: int = 1
    """Number of ranks."""

    def all_gather(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return the arrays of all ranks, `(size, *shape)`, bit for bit.

        Args:
            array: of one shape and dtype on every rank.

        Raises:
            LostRankError: if a rank ended or does not answer.
        """
        array = np.asarray(array)
        gathered = self._exchange(np.frombuffer(array.tobytes(), np.uint8))
        return np.frombuffer(gathered.tobytes(), array.dtype).reshape((self.size, *array.shape)).copy()

    def gather(self, value: object) -> list[Any]:
        """Return the values of all ranks, in their order.

        Args:
            value: what JSON can hold (NaN and infinity too), of any length on each rank.
        """
        encoded = np.frombuffer(json.dumps(value).encode(), np.uint8)
        return [json.loads(part.tobytes()) for part in self._parts(encoded)]

    def rows(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return the rows of all ranks, `(n_0 + n_1 + ..., *shape)`, in the ranks' order.

        Args:
            array: `(n, *shape)`, whose n may differ between the ranks.
        """
        return np.concatenate(self._parts(np.asarray(array)))

    def from_first(self, arrays: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """Return the arrays of rank 0.

        Raises:
            ValueError: if they have other names, shapes or dtypes on another rank.
        """
        arrays = {name: np.asarray(array) for name, array in arrays.items()}
        tables = self.gather([[name, list(array.shape), array.dtype.str] for name, array in arrays.items()])
        for rank, table in enumerate(tables):
            if table != tables[0]:
                differing = [entry for entry in (*table, *tables[0]) if entry not in table or entry not in tables[0]]
                raise ValueError(
                    f"the arrays of rank {rank} are not those of rank 0: {differing or 'they come in another order'}; "
                    f"start every rank with the same arguments"
                )
        return {name: np.asarray(self.all_gather(array)[0]) for name, array in arrays.items()}  # a scalar stays an array

    def wait(self) -> None:
        """Wait until all ranks have come here."""
        self._exchange(np.zeros(1, np.uint8))

    def _parts(self, array: NDArray[np.generic]) -> list[NDArray[np.generic]]:
        """Return the arrays of all ranks, whose first axes differ."""
        lengths = self.all_gather(np.array(len(array), np.int64))
        padded = np.zeros((int(lengths.max()), *array.shape[1:]), array.dtype)
        padded[: len(array)] = array
        return [part[:length] for part, length in zip(self.all_gather(padded), lengths, strict=True)]

    def _exchange(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the bytes of all ranks, `(size, bytes)`: as many from each."""
        return data[None]

    def lost(self, error: Exception) -> LostRankError:
        """Return the error to raise for a library's error of an exchange."""
        return LostRankError(
            f"rank {self.rank} of {self.size} lost another rank, which ended or did not answer in time ({str(error).strip()}). "
            f"To go on from the last checkpoint: sacref train --resume --run-dir RUN_DIR"
        )


@dataclass(frozen=True)
class Launch:
    """The place of a process among the ranks, as a launcher (torchrun, `sacref train --ranks`, or a person) tells it."""

    rank: int
    size: int
    local_rank: int
    """Number of the process among those of its machine."""
    local_size: int
    """Processes of its machine."""
    address: str
    """Host of rank 0."""
    port: int
    """A free port there."""

    def begin(self, initialise: Callable[[], object]) -> None:
        """Call the library's function that meets the other ranks.

        Raises:
            LostRankError: if they do not come.
        """
        try:
            initialise()
        except RuntimeError as error:
            alone = Ranks()
            alone.rank, alone.size = self.rank, self.size
            raise alone.lost(error) from error


def launched() -> Launch | None:
    """Read the place among the ranks from the environment, in torchrun's variables; None for a process that trains alone.

    RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are needed; LOCAL_RANK (0) and LOCAL_WORLD_SIZE (1) where a machine has several.

    Raises:
        ValueError: if a variable is missing or no number in its range.
    """
    size = _number("WORLD_SIZE", 1, default=1)
    if size == 1:
        return None
    local_size = _number("LOCAL_WORLD_SIZE", 1, default=1)
    address = os.environ.get("MASTER_ADDR", "")
    if not address:
        raise ValueError(f"WORLD_SIZE is {size} and MASTER_ADDR is not set, expected the address of rank 0: {_FIX}")
    return Launch(
        rank=_number("RANK", 0, size - 1),
        size=size,
        local_rank=_number("LOCAL_RANK", 0, local_size - 1, default=0),
        local_size=local_size,
        address=address,
        port=_number("MASTER_PORT", 1, 65535),
    )


_FIX = "start with torchrun or sacref train --ranks, or unset WORLD_SIZE for a process that trains alone"


def _number(name: str, low: int, high: int | None = None, default: int | None = None) -> int:
    text = os.environ.get(name, "")
    if not text and default is not None:
        return default
    wanted = f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    if not (text.isascii() and text.isdecimal() and low <= int(text) and (high is None or int(text) <= high)):
        raise ValueError(f"the environment variable {name} is {text!r}, expected {wanted}: {_FIX}")
    return int(text)
