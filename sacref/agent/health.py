"""Whether training is sound: numbers that are not finite are found where they were measured, learned, or handed over, and raised."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sacref.agent import numerics
from sacref.agent.metrics import Measured
from sacref.agent.numerics import NumericalError
from sacref.ranks import Ranks
from sacref.spec.arrays import ArrayT


class Sound(Measured[ArrayT]):
    """The looks that an agent takes at its numbers, and what it knows for saying since when they are not finite."""

    _timestep: int
    """Timesteps finished, as the trainer counts them."""
    _good_checkpoint: Path | None
    """The last one that was saved or loaded, with a memory where there is one."""

    def __init__(self) -> None:
        super().__init__()
        self._sound_until = 0
        """Gradient steps after which all that was learned was seen to be finite."""
        self._skipped_before: dict[str, tuple[int, int]] = {}
        """Optimizer -> gradient steps so far, and those of them that were skipped, when last one was not."""

    def check_numbers(self) -> None:
        """Look at all that was learned, and at what updates measured since the last write. This waits for the device.

        Raises:
            NumericalError: if any of it is NaN or infinite. What was tracked up to then is written first, of this rank alone.
        """
        self._require_finite(self._learned_arrays())

    def write_tracking_data(self, *, timestep: int, timesteps: int) -> None:
        """Fetch what was measured since the last call from the device, and write it to TensorBoard and metrics.jsonl.

        Of several ranks all make this call, at the same timestep: rank 0 writes what all of them measured, scalars reduced over the ranks
        as they are over time, rewards and episodes together.

        Raises:
            NumericalError: if a loss, or what else updates measured since the last call, is NaN or infinite. ValueError: if rows of device
                arrays were. The data is written first.
        """
        rows = self._fetch(self._metrics) if self._metrics else None
        fault = self._fault_of(rows)
        self._write_tracked(timestep, rows, self.ranks)
        faults = self.ranks.gather(None if fault is None else str(fault))
        if fault is not None:
            raise fault
        for rank, message in enumerate(faults):
            if message is not None:
                raise NumericalError(f"rank {rank}: {message}")
        self._raise_for_bad_rows()

    def _require_finite(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        rows = self._fetch(self._metrics) if self._metrics else None
        fault = self._fault_of(rows, arrays)
        if fault is None:
            return
        if self._tracking:
            self._write_tracked(self._timestep, rows, Ranks())
        raise fault

    def _fault_of(self, rows: NDArray[Any] | None, arrays: Mapping[str, NDArray[Any]] | None = None) -> NumericalError | None:
        """What is at fault, if anything is.

        Args:
            rows: metrics of the last gradient steps, `(gradient step, metric)`; None for none.
            arrays: as of `_learned_arrays`. None to fetch them only where the metrics leave something to ask: where they are not finite,
                and where losses are scaled, as a step that overflows in float16 is skipped and its losses tell nothing.
        """
        scaled = self.cfg.scales_losses
        if rows is not None and scaled:
            finite = np.flatnonzero(np.isfinite(rows).all(axis=1))
            rows = rows[finite[-1] + 1 :] if finite.size else None  # those since the last step that did not overflow
        first = None if rows is None else numerics.first_fault(self._metric_names(), rows)
        if arrays is None and first is None and not scaled:
            return None
        arrays = self._learned_arrays() if arrays is None else arrays
        bad, stuck = numerics.not_finite(arrays), self._stuck(arrays)
        if bad or (first is not None and not scaled):
            since = self._since(first, rows, [name for name in bad if "_moment" not in name])
            by_now = f"; parameters, moments or counters that are not finite by now: {numerics.listed(bad)}" if bad else ""
            said = f"training is not finite any more (NaN or infinity) {since}{by_now}"
        elif stuck:
            said = f"training does not go on any more: {stuck}"
        else:
            self._sound_until = self.gradient_step_count
            return None
        return NumericalError(f"{said}. {numerics.advice(self.cfg, self._good_checkpoint)}")

    def _since(self, first: numerics.Fault | None, rows: NDArray[Any] | None, parameters: list[str]) -> str:
        """Which gradient step it began with, as exactly as is known."""
        steps = self.gradient_step_count
        if first is not None and rows is not None:
            step = steps - len(rows) + 1 + first.row
            when = next((f" (timestep {timestep})" for count, timestep in self._learned_at if count >= step), "")
            return f"since gradient step {step}{when}: {numerics.listed(first.names)}; at fault is {first.cause}"
        if self._tracking and not self.cfg.scales_losses and parameters and steps > self._sound_until:
            return f"since gradient step {steps} (timestep {self._timestep}), whose losses are finite and whose step is not"
        if steps == self._sound_until:
            return f"since before gradient step {steps + 1}: what was loaded is not"
        return f"since a gradient step from {self._sound_until + 1} to {steps} (timestep {self._timestep})"

    def _stuck(self, arrays: Mapping[str, NDArray[Any]]) -> str | None:
        """What is to be said of optimizers all of whose last steps overflowed, where losses are scaled: no scale helps them."""
        found = []
        for name, array in arrays.items():
            slot, _, field = name.partition(".")
            if field == "skipped_steps":
                now = self.gradient_step_count, int(array)
                before = self._skipped_before.setdefault(slot, now)
                if now[1] - before[1] < now[0] - before[0]:
                    self._skipped_before[slot] = now
                elif now[0] - before[0] >= numerics.MOST_SKIPPED:
                    found.append(f"the last {now[0] - before[0]} steps of the {slot} overflowed in float16 and were skipped")
        return "; ".join(found) or None

    def _forget_former(self) -> None:
        super()._forget_former()
        self._sound_until, self._skipped_before = self.gradient_step_count, {}

    def _refuse_not_finite(self, parts: Mapping[str, Any], keep: Any, device: bool) -> Any:
        if not device and "actions" in parts and not np.isfinite(parts["actions"]).all():
            self.check_numbers()  # which the policy's come from
        return super()._refuse_not_finite(parts, keep, device)

    def _raise_for_bad_rows(self) -> None:
        if self._bad_rows is not None and self.to_numpy(self._bad_rows).any():
            self.check_numbers()  # whose actions may be why
        super()._raise_for_bad_rows()
