"""Preprocessing of observations and states before a model sees them."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import gymnasium
import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from sacref.spec.arrays import ArrayT, NumpyArray
from sacref.spec.moments import merge, standardise


@runtime_checkable
class Preprocessor(Protocol):
    """Interface of a preprocessor; one is made for each Box of a space.

    Its state lives on the host, in NumPy arrays of float64. The agent copies `arrays()` to its device, in its own dtype, and calls
    `transform` there, inside of compiled code.
    """

    def update(self, rows: ArrayLike) -> None:
        """Learn from fresh rows, `(n, *shape)`; each is handed over once."""
        ...

    def arrays(self) -> dict[str, NumpyArray]:
        """Return the state, arrays of fixed names and shapes. They are saved with the agent."""
        ...

    def set_arrays(self, arrays: Mapping[str, NumpyArray]) -> None:
        """Set the state to what `arrays` returned.

        Raises:
            ValueError: if they are another preprocessor's.
        """
        ...

    def transform(self, arrays: Mapping[str, ArrayT], values: ArrayT) -> ArrayT:
        """Transform `values`, `(*batch, *shape)`, for the models; the same shape and dtype.

        Pure: it reads `arrays`, on the device of `values` and in their dtype, and no state that `update` changes. It is written
        in functions that both backends have (`sacref.spec.arrays.namespace`), or those of the one backend that it is used with.
        """
        ...


PreprocessorFactory: TypeAlias = Callable[..., Preprocessor]
"""A class such as `RunningStandardScaler`: called with a Box, and with the configuration's keywords."""


class RunningStandardScaler:
    """Preprocessor that standardises each number by the mean and the population variance of all rows seen so far.

    Before the first row it only cuts.

    Args:
        space: a Box of any shape, of floats, integers or booleans.
        epsilon: added to the variance, in squared units of the values.
        clip: the largest magnitude that the models see, in standard deviations.

    Raises:
        TypeError: if the space is no Box. ValueError: if `epsilon` or `clip` is not a positive, finite number.
    """

    def __init__(self, space: gymnasium.Space[Any], *, epsilon: float = 1e-8, clip: float = 5.0) -> None:
        if not isinstance(space, gymnasium.spaces.Box):
            raise TypeError(f"space is {space}, expected a gymnasium.spaces.Box: make one scaler for each Box of a Dict space")
        for name, value in (("epsilon", epsilon), ("clip", clip)):
            if isinstance(value, bool) or not isinstance(value, float | int) or not 0 < value < math.inf:
                raise ValueError(f"RunningStandardScaler: {name} is {value!r}, expected a positive, finite number")
        self.epsilon: float = float(epsilon)
        self.clip: float = float(clip)
        self._shape = tuple(space.shape)
        self._count = np.zeros((), np.float64)
        self._mean = np.zeros(self._shape, np.float64)
        self._variance = np.ones(self._shape, np.float64)

    def update(self, rows: ArrayLike) -> None:
        """Include rows in the moments.

        Args:
            rows: `(n, *shape)`.

        Raises:
            ValueError: if they have another shape, or hold NaN or infinity: the moments are then as before.
        """
        given = np.asarray(rows)
        if given.shape[1:] != self._shape or given.ndim != len(self._shape) + 1:
            raise ValueError(
                f"RunningStandardScaler: rows have shape {given.shape}, expected (n, *shape) with *shape {self._shape} as the space"
            )
        # Of float64 before anything is summed, whatever the environment's own dtype.
        fresh = given.astype(np.float64)
        bad = np.flatnonzero(~np.isfinite(fresh).all(axis=tuple(range(1, fresh.ndim))))
        if bad.size:
            raise ValueError(
                f"RunningStandardScaler: rows {bad[:5].tolist()} of {len(fresh)} hold NaN or infinity, expected finite numbers, since they "
                f"would spoil the moments for ever: mend the environment"
            )
        if not len(fresh):
            return
        mean = fresh.mean(axis=0)
        m2 = np.square(fresh - mean).sum(axis=0)
        # The variance is kept, not m2: it is what `transform` needs, and nothing is then stored twice.
        count, self._mean, m2 = merge(
            self._count, self._mean, self._variance * self._count, np.asarray(float(len(fresh))), np.asarray(mean), np.asarray(m2)
        )
        self._count, self._variance = np.asarray(count), m2 / count

    def arrays(self) -> dict[str, NumpyArray]:
        """Copy the float64 accumulators.

        Returns:
            count: `()`, rows seen; mean and variance: `(*shape)`, 0 and 1 before the first row.
        """
        return {"count": np.array(self._count), "mean": np.array(self._mean), "variance": np.array(self._variance)}

    def set_arrays(self, arrays: Mapping[str, NumpyArray]) -> None:
        """Set the moments to another scaler's `arrays`.

        Raises:
            ValueError: if a name or shape differs, or a number cannot be a moment.
        """
        expected = {"count": (), "mean": self._shape, "variance": self._shape}
        if arrays.keys() != expected.keys():
            raise ValueError(f"RunningStandardScaler: got arrays {sorted(arrays)}, expected {sorted(expected)}: load what `arrays` gave")
        taken = {}
        for name, shape in expected.items():
            array = np.array(arrays[name], np.float64)
            if array.shape != shape:
                raise ValueError(
                    f"RunningStandardScaler: {name} has shape {array.shape}, expected {shape} as the space: load the moments of this space"
                )
            if not np.isfinite(array).all() or (name != "mean" and (array < 0).any()):
                raise ValueError(
                    f"RunningStandardScaler: {name} holds numbers that no rows can have given (NaN, infinity, or negative): "
                    f"load an undamaged file"
                )
            taken[name] = array
        self._count, self._mean, self._variance = taken["count"], taken["mean"], taken["variance"]

    def transform(self, arrays: Mapping[str, ArrayT], values: Float[ArrayT, "..."]) -> Float[ArrayT, "..."]:
        """Return (values - mean) / sqrt(variance + epsilon), cut at -clip and clip; see `sacref.spec.moments.standardise`.

        Args:
            arrays: `mean` and `variance`, `(*shape)`, of the dtype and on the device of `values`.
            values: `(*batch, *shape)`, float32 or float64.
        """
        return standardise(values, arrays["mean"], arrays["variance"], epsilon=self.epsilon, clip=self.clip)
