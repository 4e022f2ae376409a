"""Evaluation of an agent: the returns of whole episodes under its deterministic actions."""

import logging
from dataclasses import dataclass
from functools import partial
from itertools import chain

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from sacref.agent.protocol import Agent
from sacref.algorithm.tree import map_leaves
from sacref.envs.divergence import Divergences, bad_rows, can_reset_one, finite
from sacref.envs.interface import Envs, EnvT, Space, layers_of
from sacref.envs.space_records import refuse_other_environments
from sacref.envs.vector import require_separate, time_limit
from sacref.ranks import Ranks
from sacref.spec.arrays import NumpyArray
from sacref.training.rollout import Rollout

MAX_EPISODE_STEPS = 10_000
"""Steps after which an episode is cut that has no time limit of its own: ten times that of Gymnasium's MuJoCo tasks, so that it seldom cuts
what would end by itself, and a fast environment reaches it within seconds."""
LARGEST_RETURN = 1e100
"""A return beyond it is that of an episode that diverged; its mean with others could not be computed, nor drawn."""

logger: logging.Logger = logging.getLogger(__name__)


class EvaluationError(RuntimeError):
    """An evaluation that cannot be finished; the message says why, and the fix."""


class AllDivergedError(EvaluationError):
    """An evaluation whose episodes have all diverged, so that there is no return."""


@dataclass(frozen=True)
class Evaluation:
    """The episodes of one evaluation, grouped by the copy of the environment that they ran in."""

    returns: tuple[float, ...]
    """Undiscounted sum of rewards of each episode."""
    lengths: tuple[int, ...]
    """Steps of each episode."""
    diverged: tuple[int, ...] = ()
    """Seeds of the copies in which episodes diverged and were left out, one for each; a copy's seed is that of its first episode."""
    truncated: int = 0
    """Number of episodes cut by `max_episode_steps`; their returns are those until then."""

    @property
    def mean(self) -> float:
        """Return the mean of the returns."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Return the standard deviation of the returns, of the population (no correction)."""
        return float(np.std(self.returns))

    def to_entry(self, step: int) -> dict[str, object]:
        """Return the entry of `evaluation.json` for an evaluation after `step` environment steps."""
        entry = {"step": step, "returns": list(self.returns), "mean": self.mean, "std": self.std}
        if self.diverged:
            entry |= {"diverged": len(self.diverged), "diverged_seeds": list(self.diverged)}
        return entry | ({"truncated": self.truncated} if self.truncated else {})


def with_plain_rewards(env: EnvT) -> EnvT:
    """Return a new environment with its rewards as they are, where `NormalizeReward` divides them by a deviation that it learns."""
    for layer in layers_of(env):
        if isinstance(layer, gymnasium.wrappers.NormalizeReward | gymnasium.wrappers.vector.NormalizeReward):
            layer.update_running_mean = False  # at 1, which it begins with
    return env


def evaluate(
    agent: Agent,
    envs: Envs | None,
    *,
    episodes: int = 10,
    seed: int = 0,
    max_episode_steps: int | None = None,
    state_space: Space | None = None,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Run whole episodes with deterministic actions. The agent learns nothing, stores nothing and draws no random number.

    Each step is recorded, which feeds the agent's statistics of evaluations and tells a recurrent one where episodes end.

    Each copy of the environment runs a number of episodes fixed beforehand: `episodes` shared evenly, the first copies taking
    one more. Taking whichever episodes end first would count the short ones too often.

    An episode in which the environment diverges (`sacref.envs.divergence`) is reported with its seed and left out, and counts as one of
    its copy's: the same number is run, whatever happens in them.

    Args:
        agent: left in the mode that it was in, and its models in the same mode, whatever theirs was.
        envs: environments of their own, not those that the agent trains in; of any autoreset mode. Reset first, with `seed`,
            so that two evaluations of one agent are equal. Of several ranks, this one's copies: the first rank has the first ones; None
            for a rank without any.
        episodes: how many, at least 1.
        seed: of the episodes' starts: the copies get seed, seed + 1, ...
        max_episode_steps: steps after which an episode is cut: it counts with its return until then, as truncated. None is the
            environments' own time limit, and 10,000 where they have none.
        state_space: of the privileged states that the environments hand over; None for none.
        ranks: the processes that evaluate this agent together, each of which makes this call; None for this one alone.

    Returns:
        Returns and lengths of the episodes: those of the first copy in order, then those of the second, ...; the same on every rank.

    Raises:
        EvaluationError: if all episodes diverge; or if one diverges, or is cut before others of its copy, where copies cannot be reset one
            by one. NumericalError: if the policy's actions are not finite. EnvError: if two copies are one environment. ValueError: if
            `episodes` or `max_episode_steps` is below 1, or `seed` below 0, or the environments have other spaces than the agent.
            TypeError: if one is no integer, or `envs` no vector environment.
    """
    bounds = [("episodes", episodes, 1), ("seed", seed, 0)]
    if max_episode_steps is not None:
        bounds.append(("max_episode_steps", max_episode_steps, 1))
    for name, value, least in bounds:
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"{name} is {value!r}, expected an integer of at least {least}")
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
    if envs is not None and not hasattr(envs, "num_envs"):
        raise TypeError(f"envs is {envs!r}, expected a vector environment: make it with sacref.envs.make")
    if envs is not None:
        refuse_other_environments(agent, envs, state_space)
    ranks = ranks or Ranks()
    copies = ranks.gather(0 if envs is None else envs.num_envs)
    if not sum(copies):
        raise ValueError("evaluate: envs is None on every rank, expected environments: make them with sacref.envs.make")
    first = sum(copies[: ranks.rank])
    quota = np.array([episodes // sum(copies) + (copy < episodes % sum(copies)) for copy in range(sum(copies))])
    training = agent.training
    agent.enable_training_mode(False, apply_to_models=True)
    episodes_here: _Episodes | None = None
    failure: EvaluationError | None = None
    try:
        if envs is not None:
            require_separate(envs)
            limit = int(max_episode_steps or time_limit(envs) or MAX_EPISODE_STEPS)
            episodes_here = _Episodes(quota[first : first + envs.num_envs], first, int(seed) + first, limit)
            _run_episodes(agent, envs, episodes_here, state_space)
    except EvaluationError as error:
        failure = error
    finally:
        agent.enable_training_mode(training, apply_to_models=True)
    here = episodes_here or _Episodes(quota[:0], first, 0, 1)
    said = None if failure is None else str(failure)
    told = ranks.gather([said, here.returns, here.lengths, here.diverged, here.truncated, here.reason])
    if failure is not None:
        raise failure
    for message, *_ in told:
        if message is not None:
            raise EvaluationError(message)
    evaluation = Evaluation(
        tuple(value for _, returns, *_ in told for value in chain.from_iterable(returns)),
        tuple(value for _, _, lengths, *_ in told for value in chain.from_iterable(lengths)),
        tuple(value for _, _, _, diverged, *_ in told for value in chain.from_iterable(diverged)),
        sum(truncated for *_, truncated, _ in told),
    )
    if not evaluation.returns:
        reason = next(reason for *_, reason in told if reason is not None)
        raise AllDivergedError(
            f"evaluation: all {episodes} episodes diverged ({reason}), so that there is no return: mend the environment or its wrappers, "
            f"or take a smaller time step of the simulation"
        )
    return evaluation


class _Episodes:
    """The finished and current episodes of one rank's copies.

    Args:
        quota: episodes of each copy. number: of the first copy, among those of all ranks. seed: of the first copy. limit: steps.
    """

    def __init__(self, quota: NDArray[np.int64], number: int, seed: int, limit: int) -> None:
        self.quota, self.number, self.seed, self.limit = quota, number, seed, limit
        self.returns: list[list[float]] = [[] for _ in quota]
        self.lengths: list[list[int]] = [[] for _ in quota]
        self.diverged: list[list[int]] = [[] for _ in quota]
        self.truncated = 0
        self.reason: str | None = None
        """Reason why an episode diverged last."""
        self.current_return, self.current_length = np.zeros(len(quota)), np.zeros(len(quota), np.int64)

    @property
    def wanted(self) -> NDArray[np.bool_]:
        """Return which copies have episodes left, the one under way included, `(envs,)`."""
        over = [len(finished) + len(lost) for finished, lost in zip(self.returns, self.diverged, strict=True)]
        return np.asarray(over, np.int64) < self.quota

    def diverge(self, copy: int, reason: str) -> None:
        """Report and count the episode of a copy that has diverged, where it is one of the quota."""
        if self.wanted[copy]:
            logger.warning(
                "evaluation: environment %d (seed %d) diverged in its episode %d, at step %d: %s. The episode is left out",
                self.number + copy,
                self.seed + copy,
                len(self.returns[copy]) + len(self.diverged[copy]) + 1,
                self.current_length[copy],
                reason,
            )
            self.diverged[copy].append(self.seed + copy)
            self.reason = reason
        self.current_return[copy], self.current_length[copy] = 0.0, 0

    def end(self, ended: NDArray[np.bool_], cut: NDArray[np.bool_]) -> None:
        """Count the episodes of copies that have ended by themselves, or are cut."""
        ended = ended | cut
        for copy in np.flatnonzero(ended & self.wanted).tolist():
            if abs(self.current_return[copy]) <= LARGEST_RETURN:
                self.returns[copy].append(float(self.current_return[copy]))
                self.lengths[copy].append(int(self.current_length[copy]))
                self.truncated += int(cut[copy])
            else:
                self.diverge(copy, f"its return is {self.current_return[copy]:g}")
        self.current_return[ended], self.current_length[ended] = 0.0, 0


def _run_episodes(agent: Agent, envs: Envs, episodes: _Episodes, state_space: Space | None) -> None:
    """Run the episodes of this rank's copies."""
    autoreset_mode = envs.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
    resetting = np.zeros(envs.num_envs, np.bool_)
    largest = getattr(agent, "float_limit", np.inf)
    rollout = Rollout(agent, envs, state_space)

    def diverged_starts(which: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which of these copies begin with numbers that are not finite, and are to begin once more."""
        bad = np.zeros(envs.num_envs, np.bool_)
        bad[[*bad_rows(rollout.observations, largest), *bad_rows(rollout.states, largest)]] = True
        for copy in np.flatnonzero(bad & which).tolist():
            episodes.diverge(copy, "its first observation or state is not finite")
        return bad & which & episodes.wanted

    def restart(which: NDArray[np.bool_], reason: str) -> None:
        """Begin episodes of some copies, and the next ones of those that diverge at once."""
        if not can_reset_one(envs):
            raise EvaluationError(
                f"evaluation: environment {episodes.number + int(which.argmax())} {reason}, and cannot be reset by itself: mend it, "
                f"wrap it in gymnasium.wrappers.TimeLimit, or make it with sacref.envs.make"
            )
        while which.any():
            rollout.reset_some(which)
            which = diverged_starts(which)

    rollout.reset(episodes.seed)
    if (again := diverged_starts(np.ones(envs.num_envs, np.bool_))).any():
        restart(again, "diverged at its start")
    divergences = Divergences(envs, largest)
    timestep = 0
    while episodes.wanted.any():
        clock = {"timestep": timestep, "timesteps": episodes.limit}
        # Of copies that have run their share, whatever they give.
        finite_idle = partial(_finite, ~episodes.wanted, largest)
        rollout.observations, rollout.states = (map_leaves(finite_idle, tree) for tree in (rollout.observations, rollout.states))
        taken = rollout.step(**clock)
        stepped = ~resetting
        episodes.current_length[stepped] += 1
        diverged = np.zeros(envs.num_envs, np.bool_)
        # Under SAME_STEP what an episode's last step shows is the start of the next one.
        started = taken.ended & (autoreset_mode == AutoresetMode.SAME_STEP)
        finite_started = partial(_finite, started, largest)
        found = divergences.find(
            observations=map_leaves(finite_started, taken.observations),
            states=map_leaves(finite_started, taken.states),
            rewards=np.asarray(taken.rewards, np.float64),
            infos=taken.infos,
            ended=taken.ended,
        )
        for copy, reason in found.items():
            # One that cannot be reset, and has run its share, goes on as it likes.
            diverged[copy] = episodes.wanted[copy] or can_reset_one(envs)
            episodes.diverge(copy, reason)
        taken.rewards = np.where(diverged, 0.0, np.nan_to_num(np.asarray(taken.rewards, np.float64)))
        with np.errstate(over="ignore"):  # an infinite return is one that diverged
            episodes.current_return[stepped] += taken.rewards[stepped]
        ended = taken.ended & stepped & ~diverged
        cut = stepped & ~ended & ~diverged & episodes.wanted & (episodes.current_length >= episodes.limit)
        taken.truncated = taken.truncated | cut
        rollout.record(taken, diverged, **clock)
        timestep += 1
        episodes.end(ended, cut)
        again = diverged | (cut & episodes.wanted) | diverged_starts(started & ~diverged)
        if autoreset_mode == AutoresetMode.DISABLED:
            again |= ended
        # Under NEXT_STEP the step after an episode's end only resets: its reward is none of an episode.
        resetting = ended & ~again if autoreset_mode == AutoresetMode.NEXT_STEP else resetting
        if again.any():
            restart(again, "diverged" if diverged.any() else f"has an episode that did not end within {episodes.limit} steps")


def _finite(rows: NDArray[np.bool_], largest: float, values: NumpyArray) -> NumpyArray:
    """Replace what is not finite, or larger than `largest`, in these rows of the values, `(envs, ...)`."""
    if not rows.any() or finite(values, largest).all():
        return values
    return np.where(rows.reshape(-1, *(1,) * (values.ndim - 1)), np.clip(np.nan_to_num(values), -largest, largest), values)
