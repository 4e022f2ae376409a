"""Metrics: measurements of updates and of episodes, reduced over an interval, and written as curves."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Generic

import numpy as np
from numpy.typing import ArrayLike

from sacref.agent.backend import Backend
from sacref.agent.episodes import EpisodeStatistics
from sacref.agent.transitions import Rows
from sacref.algorithm.data import METRICS
from sacref.config import PARTS, SACConfig
from sacref.ranks import Ranks
from sacref.spec.arrays import Array, ArrayT, NumpyArray
from sacref.storage.metric_files import JsonLines, Origin, Sink, Sinks, TensorBoard
from sacref.storage.values import Like, Maybe

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


def unmeasured(cfg: SACConfig) -> set[str]:
    """Return those of `METRICS` that an update of this configuration does not measure."""
    absent = {f"{part}_learning_rate" for part, schedule in cfg.schedules.items() if schedule is None}
    if cfg.grad_norm_clip <= 0:
        absent |= {"policy_gradient_norm", "critic_gradient_norm"}
    scaled = [part for part in PARTS if cfg.scales_losses and (part != "entropy" or cfg.learn_entropy)]
    return absent | {f"{part}_{name}" for part in PARTS if part not in scaled for name in ("loss_scale", "skipped_steps")}


class AgentMetrics(Generic[ArrayT]):
    """The measurements of an agent. Those of updates stay on the device until they are written.

    Args:
        critics: how many there are.
        directory: where curves are written.
        write_interval: timesteps; None before it is known, and at most 0 where nothing is tracked.
        keeps_rows: whether rewards and episodes are kept for the next write: without it they are counted alone.
        environment_steps: of all ranks, after so many timesteps.
    """

    def __init__(
        self,
        backend: Backend[ArrayT],
        cfg: SACConfig,
        *,
        critics: int,
        directory: Path,
        write_interval: int | None,
        keeps_rows: bool,
        environment_steps: Callable[[int], int],
    ) -> None:
        self._backend, self._learns_entropy = backend, cfg.learn_entropy
        self._keeps_rows = keeps_rows
        self._origin = Origin(directory, environment_steps, {})
        self._sinks = Sinks([TensorBoard(), JsonLines()], self._origin)
        self.write_interval = write_interval
        measured = [name for name in METRICS if name not in unmeasured(cfg)]
        columns = [(name, number + 1) for name in measured for number in range(critics if "{critic}" in TAGS[name] else 1)]
        self.names: list[str] = [name for name, _ in columns]
        """Name of each element of an update's packed metrics."""
        self.tags: list[str] = [TAGS[name].format(critic=critic) for name, critic in columns]
        """Tag of each element of an update's packed metrics."""
        self.statistics: dict[bool, EpisodeStatistics] = {True: EpisodeStatistics(), False: EpisodeStatistics()}
        """Episodes of training, and of evaluation."""
        self.tracked: defaultdict[str, list[float]] = defaultdict(list)
        """Tag -> scalars since the last write."""
        self.packed: list[ArrayT] = []
        """Metrics of the updates since the last write, `(gradient step, metric)` each, on the device."""
        self._learned_at: list[tuple[int, int]] = []
        """Gradient steps so far and timesteps finished, after each update since the last write."""
        self.latest: dict[str, float] = {}
        """Tag -> the value that was written last."""

    @property
    def tracking(self) -> bool:
        """True where anything is written."""
        return self.write_interval is None or self.write_interval > 0

    # What is measured.

    def track(self, tag: str, value: float) -> None:
        """Add a scalar to what is written next."""
        if self.tracking:
            self.tracked[tag].append(float(value))

    def track_updates(self, packed: Sequence[ArrayT]) -> None:
        """Keep the packed metrics of updates until the next write."""
        if self.tracking:
            self.packed.extend(packed)

    def track_update_end(self, gradient_steps: int, timesteps: int, milliseconds: float) -> None:
        """Remember at which timestep gradient steps were taken, and how long an update took."""
        if self.tracking:
            self._learned_at.append((gradient_steps, timesteps))
            self.tracked["Stats / Algorithm update time (ms)"].append(milliseconds)

    def timestep_of(self, gradient_step: int) -> int | None:
        """Return the timestep after which a gradient step was taken; None where it is not known."""
        return next((timestep for count, timestep in self._learned_at if count >= gradient_step), None)

    def add_rows(self, rows: Rows[Array], training: bool) -> None:
        """Count the rewards and episodes of one step of all environments."""
        statistics, to_numpy = self.statistics[training], self._backend.to_numpy
        if statistics.latest is not None and self._backend.is_array(statistics.latest) != rows.on_device:
            statistics.convert(self._backend.upload if rows.on_device else to_numpy, to_numpy)
        for_summary = self._keeps_rows and self.tracking
        statistics.add(rewards=rows.rewards, ended=rows.ended, keep=rows.keep, dropped=rows.dropped, for_summary=for_summary)

    def recent_returns(self) -> tuple[float, ...]:
        """Return the returns of the last finished training episodes, oldest first."""
        return self.statistics[True].read_returns(self._backend.to_numpy)

    # What is written.

    def write_to(self, sinks: Sequence[Sink], config: Mapping[str, object]) -> None:
        """Write to these sinks from now on, instead of TensorBoard's files and `metrics.jsonl`; `config` is the run's."""
        self._sinks.close()
        self._sinks = Sinks(sinks, self._origin._replace(config=config))

    def fetch(self) -> NumpyArray | None:
        """Read the metrics of the updates since the last write, `(gradient step, metric)`; None for none."""
        return self._backend.fetch(self.packed) if self.packed else None

    def write(self, timestep: int, rows: NumpyArray | None, ranks: Ranks) -> None:
        """Write what these ranks have measured since the last call, and forget it. `rows` are this one's, as of `fetch`."""
        scalars = {tag: _reduce(tag, values) for tag, values in self.tracked.items()}
        self.tracked.clear()
        self.packed, self._learned_at = [], []
        if rows is not None:
            for tag, samples in zip(self.tags, rows.T, strict=True):
                if tag != TAGS["entropy_loss"] or self._learns_entropy:  # else nothing minimises it
                    scalars[tag] = _reduce(tag, samples)
        gathered = ranks.gather(scalars)
        tags = dict.fromkeys(chain.from_iterable(gathered))
        scalars = {tag: _reduce(tag, [each[tag] for each in gathered if tag in each]) for tag in tags}
        for training, statistics in self.statistics.items():
            prefix = "" if training else "Evaluation / "
            summary = statistics.summary(self._backend.to_numpy)
            kinds = {"Reward / Instantaneous reward": summary.rewards, "Reward / Total reward": summary.returns}
            for tag, own in {**kinds, "Episode / Total timesteps": summary.lengths}.items():
                values = ranks.rows(own)
                if values.size:
                    for kind in ("max", "min", "mean"):
                        scalars[f"{prefix}{tag} ({kind})"] = _reduce(f"({kind})", values)
        self.latest.update(scalars)
        if scalars and self._backend.ranks.rank == 0:
            self._sinks.write(timestep, scalars)

    def close(self) -> None:
        """Close the sinks."""
        self._sinks.close()

    # State.

    def reset(self, training: bool) -> None:
        """Drop the unfinished episodes of this mode, as after a reset of all environments."""
        self.statistics[training].forget_running()

    def forget_updates(self) -> None:
        """Forget when gradient steps were taken: other parameters have replaced theirs."""
        self._learned_at = []

    def state(self) -> dict[str, object]:
        """Return the in-flight state, on the host: what is not written yet, and the unfinished episodes."""
        return {
            "tracked": {tag: np.array(values, np.float64) for tag, values in self.tracked.items()},
            "metrics": self.fetch(),
            "statistics": [self.statistics[training].state(self._backend.to_numpy) for training in (True, False)],
        }

    def state_like(self, envs: int) -> dict[str, object]:
        """Describe `state`, for `refuse_unlike`."""

        def statistics(envs: int | None) -> dict[str, object]:
            rows, masks = Like((None, envs), "f"), Like((None, envs), "b")
            return {
                "recent_returns": [float],
                "running": Maybe((Like((envs,), "f"),) * 2),
                "rows": Maybe((rows, masks, masks, rows, rows)),
            }

        return {
            "tracked": {...: Like((None,), "f")},
            "metrics": Maybe(Like((None, len(self.names)), "f")),
            "statistics": (statistics(envs), statistics(None)),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.tracked.clear()
        self.tracked.update({tag: values.tolist() for tag, values in state["tracked"].items()})
        self.packed = [] if state["metrics"] is None else [self._backend.upload(state["metrics"])]
        for training, statistics in zip((True, False), state["statistics"], strict=True):
            self.statistics[training].set_state(statistics)


def _reduce(tag: str, values: ArrayLike) -> float:
    array = np.asarray(values, np.float64)
    return float(array.max() if tag.endswith("(max)") else array.min() if tag.endswith("(min)") else array.mean())
