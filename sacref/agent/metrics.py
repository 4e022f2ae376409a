"""What an agent measures: its updates, and the episodes that it is shown; reduced over an interval, and written."""

import logging
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray

from sacref.agent.episodes import EpisodeStatistics
from sacref.agent.learner import Learned
from sacref.algorithm.data import METRICS
from sacref.config import PARTS
from sacref.envs.episodes import EpisodeBoundaries
from sacref.ranks import Ranks
from sacref.spec.arrays import ArrayT
from sacref.storage.metric_files import Tracker

logger = logging.getLogger(__name__)

TAGS: Mapping[str, str] = {
    "critic_loss": "Loss / Critic loss",
    "policy_loss": "Loss / Policy loss",
    "entropy_loss": "Loss / Entropy loss",
    "alpha": "Coefficient / Entropy coefficient",
    "entropy": "Policy / Entropy",
    "q_max": "Q-network / Q{critic} (max)",
    "q_min": "Q-network / Q{critic} (min)",
    "q_mean": "Q-network / Q{critic} (mean)",
    "target_max": "Target / Target (max)",
    "target_min": "Target / Target (min)",
    "target_mean": "Target / Target (mean)",
    "policy_gradient_norm": "Gradient / Policy norm before clipping",
    "critic_gradient_norm": "Gradient / Critics norm before clipping",
    "policy_learning_rate": "Learning / Policy learning rate",
    "critic_learning_rate": "Learning / Critic learning rate",
    "entropy_learning_rate": "Learning / Entropy learning rate",
    "policy_loss_scale": "Precision / Policy loss scale",
    "critic_loss_scale": "Precision / Critic loss scale",
    "entropy_loss_scale": "Precision / Entropy loss scale",
    "policy_skipped_steps": "Precision / Policy skipped steps (max)",
    "critic_skipped_steps": "Precision / Critic skipped steps (max)",
    "entropy_skipped_steps": "Precision / Entropy skipped steps (max)",
}
"""Metric of an update -> tag of its curve. Tags that end in (max) or (min) show that of the interval, all others the mean."""


class Watch(Generic[ArrayT]):
    """What is remembered of the rows of one mode, training or evaluation, so that neither is mistaken for the other."""

    def __init__(self) -> None:
        self.boundaries: EpisodeBoundaries[ArrayT] = EpisodeBoundaries()
        self.statistics = EpisodeStatistics()


class Measured(Learned[ArrayT]):
    """The measurements of an agent. Those of updates stay on the device until they are written."""

    experiment_dir: Path
    write_interval: int | None
    """Timesteps; None before it is known, and no more than 0 where nothing is tracked."""
    _num_envs: int
    """Of this rank; without a memory those of the last row."""

    def __init__(self) -> None:
        super().__init__()
        self.environment_steps_offset = 0
        """Environment steps beyond those of a timestep of today: of timesteps that another number of ranks took."""
        self._watches: dict[bool, Watch[Any]] = {True: Watch(), False: Watch()}
        self._tracked: defaultdict[str, list[float]] = defaultdict(list)
        self._metrics: list[Any] = []
        self._learned_at: list[tuple[int, int]] = []
        """Gradient steps so far and timesteps finished, after each update whose metrics were not written yet."""
        self._tracker: Tracker | None = None

    # What a backend provides.

    @abstractmethod
    def _fetch(self, metrics: Sequence[Any]) -> NDArray[Any]:
        """Packed metrics of the updates so far, `(update, metric)`, read from the device at once."""

    # Tracking.

    @property
    def recent_returns(self) -> tuple[float, ...]:
        """Returns (undiscounted sums of rewards) of the last finished training episodes, oldest first, at most 100."""
        return self._watches[True].statistics.read_returns(self.to_numpy)

    def track_data(self, tag: str, value: float) -> None:
        """Add a scalar to what is written next, also before `init`. A tag that ends in (max) or (min) shows that, others the mean."""
        if self._tracking:
            self._tracked[tag].append(float(value))

    def environment_steps(self, timestep: int) -> int:
        """Steps of the environments of all ranks together, after so many timesteps."""
        return timestep * self._num_envs * self.ranks.size + self.environment_steps_offset

    def _write_tracked(self, timestep: int, rows: NDArray[Any] | None, ranks: Ranks) -> None:
        """Write what was measured since the last call, by these ranks, and forget it. `rows` are the metrics of this one's updates."""
        scalars = {tag: _reduce(tag, values) for tag, values in self._tracked.items()}
        self._tracked.clear()
        self._metrics, self._learned_at = [], []
        if rows is not None:
            for tag, samples in zip(self._metric_tags(), rows.T, strict=True):
                if tag != TAGS["entropy_loss"] or self.cfg.learn_entropy:  # else nothing minimises it
                    scalars[tag] = _reduce(tag, samples)
        told = ranks.gather(scalars)
        scalars = {tag: _reduce(tag, [each[tag] for each in told if tag in each]) for tag in dict.fromkeys(chain.from_iterable(told))}
        for training, watch in self._watches.items():
            prefix = "" if training else "Evaluation / "
            summary = watch.statistics.summary(self.to_numpy)
            kinds = {"Reward / Instantaneous reward": summary.rewards, "Reward / Total reward": summary.returns}
            for tag, own in {**kinds, "Episode / Total timesteps": summary.lengths}.items():
                values = ranks.rows(own)
                if values.size:
                    for kind in ("max", "min", "mean"):
                        scalars[f"{prefix}{tag} ({kind})"] = _reduce(f"({kind})", values)
        if scalars and self.ranks.rank == 0:
            if self._tracker is None:
                self._tracker = Tracker(self.experiment_dir)
            try:
                self._tracker.write(timestep, self.environment_steps(timestep), scalars)
            except OSError as error:  # which a run of days shall not end of
                logger.warning("what was measured up to timestep %d is not written: %s. Training goes on", timestep, error)

    def close(self) -> None:
        """Close the files of the tracking. What was not written yet is lost; `write_tracking_data` writes it."""
        if self._tracker is not None:
            self._tracker.close()
            self._tracker = None

    @property
    def _tracking(self) -> bool:
        return self.write_interval is None or self.write_interval > 0

    def _track_metrics(self, metrics: Sequence[Any]) -> None:
        """Keep the packed metrics of updates, on the device, until the next write."""
        if self._tracking:
            self._metrics.extend(metrics)

    def _begin(self, training: bool) -> None:
        """What comes next in this mode comes from freshly reset environments."""
        self._watches[training].boundaries.reset()
        self._watches[training].statistics.forget_running()

    def _forget_former(self) -> None:
        super()._forget_former()
        self._learned_at = []

    # What updates measure.

    def _metric_names(self) -> list[str]:
        """The name of each element of an update's packed metrics."""
        critics = len(self._state.critics)
        names = [name for name in METRICS if name not in self._unmeasured]
        return [name for name in names for _ in range(critics if "{critic}" in TAGS[name] else 1)]

    def _metric_tags(self) -> list[str]:
        """The tag of each element of an update's packed metrics."""
        critics = range(1, len(self._state.critics) + 1)
        tags = [TAGS[name] for name in METRICS if name not in self._unmeasured]
        return [tag.format(critic=critic) for tag in tags for critic in (critics if "{critic}" in tag else (0,))]

    @property
    def _unmeasured(self) -> set[str]:
        """Those of `METRICS` that an update of this configuration does not measure."""
        absent = {f"{part}_learning_rate" for part, schedule in self.cfg.schedules.items() if schedule is None}
        if self.cfg.grad_norm_clip <= 0:
            absent |= {"policy_gradient_norm", "critic_gradient_norm"}
        scaled = [part for part in PARTS if self.cfg.scales_losses and (part != "entropy" or self.cfg.learn_entropy)]
        return absent | {f"{part}_{name}" for part in PARTS if part not in scaled for name in ("loss_scale", "skipped_steps")}


def _reduce(tag: str, values: Any) -> float:
    array = np.asarray(values, np.float64)
    return float(array.max() if tag.endswith("(max)") else array.min() if tag.endswith("(min)") else array.mean())
