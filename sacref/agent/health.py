"""Detects NaN and infinity in what was measured and learned, and names the gradient step where they first appeared."""

from collections.abc import Mapping
from pathlib import Path
from typing import Generic

import numpy as np

from sacref.agent import numerics
from sacref.agent.learner import Learner
from sacref.agent.metrics import AgentMetrics
from sacref.agent.numerics import NumericalError
from sacref.config import SACConfig
from sacref.ranks import Ranks
from sacref.spec.arrays import ArrayT, NumpyArray


class Health(Generic[ArrayT]):
    """Checks that an agent's numbers are finite, and knows until when they were."""

    def __init__(self, cfg: SACConfig, learner: Learner[ArrayT], metrics: AgentMetrics[ArrayT]) -> None:
        self._cfg, self._learner, self._metrics = cfg, learner, metrics
        self.timestep = 0
        """Timesteps finished, as the trainer counts them."""
        self.good_checkpoint: Path | None = None
        """The last one that was saved or loaded, with a memory where there is one."""
        self._finite_until = 0
        """Gradient steps after which all that was learned was seen to be finite."""
        self._skipped_before: dict[str, tuple[int, int]] = {}
        """Optimizer -> gradient steps so far, and those of them that were skipped, when last one was not."""

    def check(self, arrays: Mapping[str, NumpyArray] | None = None) -> None:
        """Check all that was learned, and what updates measured since the last write. This waits for the device.

        Args:
            arrays: as of `Learner.learned_arrays`, where they are fetched already.

        Raises:
            NumericalError: if any of it is NaN or infinite. What was tracked up to then is written first, of this rank alone.
        """
        rows = self._metrics.fetch()
        fault = self._fault(rows, self._learner.learned_arrays() if arrays is None else arrays)
        if fault is None:
            return
        if self._metrics.tracking:
            self._metrics.write(self.timestep, rows, Ranks())
        raise fault

    def write_metrics(self, timestep: int, ranks: Ranks) -> None:
        """Write the metrics since the last call, and check them.

        Raises:
            NumericalError: if those of any rank are not finite.
        """
        rows = self._metrics.fetch()
        fault = self._fault(rows)
        self._metrics.write(timestep, rows, ranks)
        faults = ranks.gather(None if fault is None else str(fault))
        if fault is not None:
            raise fault
        for rank, message in enumerate(faults):
            if message is not None:
                raise NumericalError(f"rank {rank}: {message}")

    def forget_updates(self) -> None:
        """Forget since when numbers are finite: other parameters have replaced those that were checked."""
        self._finite_until, self._skipped_before = self._learner.gradient_step_count, {}

    def _fault(self, rows: NumpyArray | None, arrays: Mapping[str, NumpyArray] | None = None) -> NumericalError | None:
        """Return what is at fault, if anything is.

        Args:
            rows: metrics of the last gradient steps, `(gradient step, metric)`; None for none.
            arrays: as of `Learner.learned_arrays`. None to fetch them only where the metrics leave something to ask: where they are not
                finite, and where losses are scaled, as a step that overflows in float16 is skipped and its losses tell nothing.
        """
        scaled = self._cfg.scales_losses
        if rows is not None and scaled:
            finite = np.flatnonzero(np.isfinite(rows).all(axis=1))
            rows = rows[finite[-1] + 1 :] if finite.size else None  # those since the last step that did not overflow
        first = None if rows is None else numerics.first_fault(self._metrics.names, rows)
        if arrays is None and first is None and not scaled:
            return None
        arrays = self._learner.learned_arrays() if arrays is None else arrays
        bad, stuck = numerics.not_finite(arrays), self._stuck(arrays)
        if bad or (first is not None and not scaled):
            since = self._since(first, rows, [name for name in bad if "_moment" not in name])
            by_now = f"; parameters, moments or counters that are not finite by now: {numerics.listed(bad)}" if bad else ""
            said = f"training is not finite any more (NaN or infinity) {since}{by_now}"
        elif stuck:
            said = f"training does not go on any more: {stuck}"
        else:
            self._finite_until = self._learner.gradient_step_count
            return None
        return NumericalError(f"{said}. {numerics.advice(self._cfg, self.good_checkpoint)}")

    def _since(self, first: numerics.Fault | None, rows: NumpyArray | None, parameters: list[str]) -> str:
        """Say which gradient step it began with, as exactly as is known."""
        steps = self._learner.gradient_step_count
        if first is not None and rows is not None:
            step = steps - len(rows) + 1 + first.row
            timestep = self._metrics.timestep_of(step)
            when = "" if timestep is None else f" (timestep {timestep})"
            return f"since gradient step {step}{when}: {numerics.listed(first.names)}; at fault is {first.cause}"
        if self._metrics.tracking and not self._cfg.scales_losses and parameters and steps > self._finite_until:
            return f"since gradient step {steps} (timestep {self.timestep}), whose losses are finite and whose step is not"
        if steps == self._finite_until:
            return f"since before gradient step {steps + 1}: what was loaded is not"
        return f"since a gradient step from {self._finite_until + 1} to {steps} (timestep {self.timestep})"

    def _stuck(self, arrays: Mapping[str, NumpyArray]) -> str | None:
        """Name the optimizers all of whose last steps overflowed, where losses are scaled: no scale helps them."""
        found = []
        for name, array in arrays.items():
            slot, _, field = name.partition(".")
            if field == "skipped_steps":
                now = self._learner.gradient_step_count, int(array)
                before = self._skipped_before.setdefault(slot, now)
                if now[1] - before[1] < now[0] - before[0]:
                    self._skipped_before[slot] = now
                elif now[0] - before[0] >= numerics.MOST_SKIPPED:
                    found.append(f"the last {now[0] - before[0]} steps of the {slot} overflowed in float16 and were skipped")
        return "; ".join(found) or None
