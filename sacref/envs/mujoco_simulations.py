"""Many simulations of one MuJoCo model, stepped by threads outside Python's lock, each equal to the bit to a single one.

A simulation's warm start is its own: the constraint solver begins where it ended in the step before, and a simulation that begins elsewhere
drifts apart within a hundred steps. Two ways to step, whose numbers are equal:

- `BatchSimulations`, by `mujoco.batch` (MuJoCo >= 4): the loop over the simulations is MuJoCo's own.
- `PooledSimulations`, by Python's threads over an MjData each. For MuJoCo < 4, and for tasks that read fields which only an MjData of
  their own keeps: those computed after the step (`mj_rnePostConstraint`), or left by it and read before the next one.
"""

import importlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy as shallow_copy
from functools import partial
from types import SimpleNamespace
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sacref.envs.divergence import words_of
from sacref.envs.mujoco_tasks import Fields
from sacref.envs.snapshots import State, require_alike, set_simulation_state, simulation_state
from sacref.spec.arrays import NumpyArray

Model: TypeAlias = Any
"""An MjModel."""
Data: TypeAlias = Any
"""An MjData."""


class Simulations(Protocol):
    """Copies of one simulation."""

    @property
    def fields(self) -> Fields:
        """Field of MjData -> its values, `(copies, *field)`, in arrays that every step overwrites."""

    def data(self, copy: int) -> Data:
        """Return the MjData in which a copy is reset; `started` has to follow."""

    def started(self, copy: int) -> None:
        """Go on from the state in that MjData."""

    def step(self, controls: NumpyArray, which: NDArray[np.bool_], substeps: int) -> dict[int, Exception]:
        """Step some copies. It holds no lock of Python's while MuJoCo computes.

        Args:
            controls: `(copies, control)`. which: `(copies,)`. substeps: of MuJoCo, under the same controls.

        Returns:
            Copy -> what MuJoCo raised in it; the others have been stepped.
        """

    def complaints(self) -> dict[int, str]:
        """Return MuJoCo's warnings for the copies that have diverged since their last reset, once."""

    def get_state(self) -> State:
        """Copy all that the next steps depend on."""

    def set_state(self, state: State) -> None:
        """Go on from what `get_state` returned.

        Raises:
            ValueError: if it is the state of other simulations. Nothing was changed.
        """

    def part(self, copies: slice) -> "Simulations":
        """Return some of these simulations: what one steps or sets, the other has. They have no threads of their own."""

    def close(self) -> None:
        """End the threads, unless this is a part."""


def default_threads(copies: int) -> int:
    """Count the cores of this process, but no more than copies."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # ranks on this machine, as torchrun counts them
    return max(1, min(copies, cores // processes))


def make_simulations(model: Model, copies: int, fields: Sequence[str], *, forces: bool, threads: int) -> Simulations:
    """Make the faster kind that is possible.

    Args:
        model: MjModel. copies: how many simulations. fields: of MjData, that are to be read.
        forces: whether a step ends with `mj_rnePostConstraint`. threads: how many compute, the caller's included.
    """
    if not forces and has_batch():
        return BatchSimulations(model, copies, fields, threads=threads)
    return PooledSimulations(model, copies, fields, forces=forces, threads=threads)


def has_batch() -> bool:
    """Tell whether MuJoCo steps many simulations by itself."""
    try:
        importlib.import_module("mujoco.batch")
    except ImportError:
        return False
    return True


class BatchSimulations:
    """Simulations stepped by `mujoco.batch`, which keeps the integration state of each and loads it into an MjData per thread.

    Between `started` and the next step, fields outside the integration state are still the old ones.
    """

    def __init__(self, model: Model, copies: int, fields: Sequence[str], *, threads: int) -> None:
        mujoco = importlib.import_module("mujoco")
        self._get_state, self._everything = mujoco.mj_getState, mujoco.mjtState.mjSTATE_INTEGRATION
        self._model = model
        self._data = mujoco.MjData(model)
        batch = importlib.import_module("mujoco.batch")
        self._errors, self._error = batch.SimulationError, mujoco.FatalError
        self._batch = batch.Batch(model, copies, threads)
        self.fields: dict[str, NumpyArray] = {name: self._batch.bind(name) for name in fields}
        self._controls = self._batch.bind("ctrl")
        self._state, self._warning = self._batch.state, self._batch.warning
        self._ids = np.arange(copies)
        """These copies' numbers in the batch."""
        self._lock = threading.Lock()  # of the batch: parts may step in threads, and a call's errors are read after it

    def data(self, copy: int) -> Data:
        return self._data

    def started(self, copy: int) -> None:
        self._get_state(self._model, self._data, self._state[copy], self._everything)
        self._warning[copy] = 0

    def step(self, controls: NumpyArray, which: NDArray[np.bool_], substeps: int) -> dict[int, Exception]:
        self._controls[which] = controls[which]
        with self._lock:
            try:
                self._batch.step(self._ids[which], nstep=substeps)
            except self._errors as error:
                return {int(number - self._ids[0]): self._error(self._batch.error(int(number))) for number in error.ids}
        return {}

    def complaints(self) -> dict[int, str]:
        last, counts = np.moveaxis(self._warning, 2, 0)
        return _complaints(counts, last, counts)

    def get_state(self) -> State:
        return {"integration": self._state.copy()}

    def set_state(self, state: State) -> None:
        require_alike("the simulation", state, self.get_state())
        self._state[:] = state["integration"]
        self._warning[:] = 0

    def part(self, copies: slice) -> "BatchSimulations":
        part = shallow_copy(self)
        part.fields = {name: array[copies] for name, array in self.fields.items()}
        part._controls, part._state, part._warning = self._controls[copies], self._state[copies], self._warning[copies]
        part._ids = self._ids[copies]
        return part

    def close(self) -> None:
        # Its threads end with it and its parts. The arrays stay: whoever holds one keeps them.
        self.fields = {name: array.copy() for name, array in self.fields.items()}
        self._controls = self._batch = None


class PooledSimulations:
    """Simulations with an MjData each, stepped by threads of Python, the caller's among them."""

    def __init__(self, model: Model, copies: int, fields: Sequence[str], *, forces: bool, threads: int) -> None:
        mujoco = importlib.import_module("mujoco")
        self._step, self._forces = mujoco.mj_step, mujoco.mj_rnePostConstraint if forces else None
        self._model = model
        self._data = [mujoco.MjData(model) for _ in range(copies)]
        self._controls = [data.ctrl for data in self._data]
        # Views of MuJoCo's own memory, which stays where it is.
        self._numbers = [data.warning.number for data in self._data]
        self._last = [data.warning.lastinfo for data in self._data]
        self._views = {name: [getattr(data, name).reshape(-1) for data in self._data] for name in fields}
        self.fields: dict[str, NumpyArray] = {name: np.array([getattr(data, name) for data in self._data]) for name in fields}
        self._pool = ThreadPoolExecutor(threads - 1, "sacref-mujoco") if threads > 1 else None
        self._helpers = threads - 1

    def data(self, copy: int) -> Data:
        return self._data[copy]

    def started(self, copy: int) -> None:
        for name, array in self.fields.items():
            array[copy] = getattr(self._data[copy], name)

    def step(self, controls: NumpyArray, which: NDArray[np.bool_], substeps: int) -> dict[int, Exception]:
        copies = np.flatnonzero(which).tolist()
        for copy in copies:
            self._controls[copy][:] = controls[copy]
        # One iterator for all threads: each takes the next copy when it is done with one, as some take longer than others.
        left, failed = iter([(copy, self._data[copy]) for copy in copies]), dict[int, Exception]()
        work = partial(self._work, left, substeps, failed)
        helping = [self._pool.submit(work) for _ in range(min(self._helpers, len(copies) - 1))] if self._pool else []
        try:
            work()
        finally:
            for helper in helping:
                helper.result()
        self._gather()
        return failed

    def _work(self, left: Iterator[tuple[int, Data]], substeps: int, failed: dict[int, Exception]) -> None:
        step, forces, model = self._step, self._forces, self._model
        for copy, data in left:
            try:
                step(model, data, substeps)
                if forces is not None:
                    forces(model, data)
            except Exception as error:
                failed[copy] = error

    def _gather(self) -> None:
        for name, array in self.fields.items():
            np.concatenate(self._views[name], out=array.reshape(-1))

    def complaints(self) -> dict[int, str]:
        return _complaints(np.array(self._numbers), self._last, self._numbers)

    def get_state(self) -> State:
        return {str(copy): simulation_state(env) for copy, env in enumerate(self._tasks())}

    def set_state(self, state: State) -> None:
        require_alike("the simulation", state, self.get_state())
        for copy, env in enumerate(self._tasks()):
            set_simulation_state(env, state[str(copy)])
            self._numbers[copy][:] = 0
        self._gather()

    def _tasks(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(model=self._model, data=data) for data in self._data]

    def part(self, copies: slice) -> "PooledSimulations":
        part = shallow_copy(self)
        part._data, part._controls, part._numbers, part._last = (
            rows[copies] for rows in (self._data, self._controls, self._numbers, self._last)
        )
        part._views = {name: rows[copies] for name, rows in self._views.items()}
        part.fields = {name: array[copies] for name, array in self.fields.items()}
        part._pool = None  # it is the whole's to use and to end
        return part

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


def _complaints(counts: NumpyArray, last: Sequence[NumpyArray], to_clear: Sequence[NumpyArray]) -> dict[int, str]:
    found = {copy: words_of(to_clear[copy], last[copy]) for copy in np.flatnonzero(counts.any(axis=1)).tolist()}
    return {copy: words for copy, words in found.items() if words is not None}
