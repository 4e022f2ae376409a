"""How good an agent is: the returns of whole episodes under its deterministic actions."""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from sacref.envs.divergence import Divergences
from sacref.envs.scaling import as_box
from sacref.envs.states import states_of
from sacref.numerics import require_finite_actions
from sacref.ranks import Ranks
from sacref.tree import map_leaves
from sacref.types import Agent


class EvaluationError(RuntimeError):
    """An evaluation that cannot be finished; the message says why, and the fix."""


@dataclass(frozen=True)
class Evaluation:
    """The episodes of one evaluation, grouped by the copy of the environment that they ran in."""

    returns: tuple[float, ...]
    """Undiscounted sum of rewards of each episode."""
    lengths: tuple[int, ...]
    """Steps of each episode."""

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation of the returns, of the population (no correction)."""
        return float(np.std(self.returns))

    def to_entry(self, step: int) -> dict[str, Any]:
        """The entry of `evaluation.json` for an evaluation after `step` environment steps."""
        return {"step": step, "returns": list(self.returns), "mean": self.mean, "std": self.std}


def with_plain_rewards(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """A copy that is evaluated: its rewards as they are, where `NormalizeReward` divides them by a deviation that it learns."""
    layer = env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, gymnasium.wrappers.NormalizeReward):
            layer.update_running_mean = False  # at 1, which it begins with
        layer = layer.env
    return env


def evaluate(
    agent: Agent,
    envs: VectorEnv[Any, Any, Any] | None,
    *,
    episodes: int = 10,
    seed: int = 0,
    max_episode_steps: int = 100_000,
    state_space: gymnasium.Space[Any] | None = None,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Run whole episodes with deterministic actions. The agent learns nothing, stores nothing and draws no random number.

    Each step is recorded, which feeds the agent's statistics of evaluations and tells a recurrent one where episodes end.

    Each copy of the environment runs a number of episodes fixed beforehand: `episodes` shared evenly, the first copies taking
    one more. Taking whichever episodes end first would count the short ones too often.

    Args:
        agent: left in the mode that it was in, and its models in the same mode, whatever theirs was.
        envs: environments of their own, not those that the agent trains in; of any autoreset mode. Reset first, with `seed`,
            so that two evaluations of one agent are equal. Of several ranks, this one's copies: the first rank has the first ones; None
            for a rank without any.
        episodes: how many, at least 1.
        seed: of the episodes' starts: the copies get seed, seed + 1, ...
        max_episode_steps: steps after which an episode is taken for one that never ends.
        state_space: of the privileged states that the environments hand over; None for none.
        ranks: the processes that evaluate this agent together, each of which makes this call; None for this one alone.

    Returns:
        Returns and lengths of the episodes: those of the first copy in order, then those of the second, ...; the same on every rank.

    Raises:
        EvaluationError: if an episode does not end, or its environment diverges: it has no return then. NumericalError: if the policy's
            actions are not finite. ValueError: if `episodes` is below 1, or `seed` below 0. TypeError: if one is no integer, or `envs` no
            vector environment.
    """
    for name, value, least in (("episodes", episodes, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise TypeError(f"{name} is {value!r}, expected an integer of at least {least}")
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")
    if envs is not None and not hasattr(envs, "num_envs"):
        raise TypeError(f"envs is {envs!r}, expected a vector environment: make it with sacref.envs.make")
    ranks = ranks or Ranks()
    copies = ranks.gather(0 if envs is None else envs.num_envs)
    if not sum(copies):
        raise ValueError("evaluate: envs is None on every rank, expected environments: make them with sacref.envs.make")
    quota, first = _quota(episodes, sum(copies)), sum(copies[: ranks.rank])
    training = agent.training
    agent.enable_training_mode(False, apply_to_models=True)
    returns: list[list[float]] = []
    lengths: list[list[int]] = []
    failure: EvaluationError | None = None
    try:
        if envs is not None:
            own = quota[first : first + envs.num_envs]
            returns, lengths = _run_episodes(agent, envs, own, first, int(seed) + first, max_episode_steps, state_space)
    except EvaluationError as error:
        failure = error
    finally:
        agent.enable_training_mode(training, apply_to_models=True)
    told = ranks.gather([None if failure is None else str(failure), returns, lengths])
    if failure is not None:
        raise failure
    for message, _, _ in told:
        if message is not None:
            raise EvaluationError(message)
    return Evaluation(
        tuple(value for _, found, _ in told for value in chain.from_iterable(found)),
        tuple(value for _, _, found in told for value in chain.from_iterable(found)),
    )


def _quota(episodes: int, copies: int) -> NDArray[np.int64]:
    """Episodes of each copy of the environment."""
    quota = np.full(copies, episodes // copies, np.int64)
    quota[: episodes % copies] += 1
    return quota


def _run_episodes(
    agent: Agent,
    envs: VectorEnv[Any, Any, Any],
    quota: NDArray[np.int64],
    number: int,
    seed: int,
    max_episode_steps: int,
    state_space: gymnasium.Space[Any] | None,
) -> tuple[list[list[float]], list[list[int]]]:
    """Returns and lengths of each copy's episodes. `number` is that of the first copy, among those of all ranks."""
    autoreset_mode = envs.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
    returns: list[list[float]] = [[] for _ in quota]
    lengths: list[list[int]] = [[] for _ in quota]
    current_return, current_length = np.zeros(envs.num_envs), np.zeros(envs.num_envs, np.int64)
    resetting = np.zeros(envs.num_envs, np.bool_)
    first, infos = envs.reset(seed=seed)
    # Copied, here and below: a vector environment may write every step into the same buffer.
    observations = map_leaves(np.array, first)
    states = map_leaves(np.array, states_of(envs, infos, state_space))
    divergences = Divergences(envs)
    timestep = 0
    while any(len(finished) < wanted for finished, wanted in zip(returns, quota, strict=True)):
        clock = {"timestep": timestep, "timesteps": max_episode_steps}
        chosen, _ = agent.act(observations, states, **clock)
        actions = as_box(require_finite_actions(agent, agent.to_numpy(chosen)), envs.single_action_space)
        returned, rewards, terminated, truncated, infos = envs.step(actions)
        next_observations = map_leaves(np.array, returned)
        next_states = map_leaves(np.array, states_of(envs, infos, state_space))
        for index in np.flatnonzero(~resetting & ~np.isfinite(np.asarray(rewards, np.float64))):
            if len(returns[index]) < quota[index]:
                raise EvaluationError(
                    f"evaluation: environment {number + index} gave a reward that is not finite: mend the environment or its wrappers"
                )
        diverged = divergences.find(observations=next_observations, states=next_states, rewards=rewards, infos=infos)
        for copy, reason in diverged.items():
            if len(returns[copy]) < quota[copy]:
                raise EvaluationError(
                    f"evaluation: environment {number + copy} diverged, {reason}, so that its episode has no return: evaluate again with "
                    f"another seed, or mend the environment"
                )
        agent.record_transition(
            observations=observations,
            states=states,
            actions=actions,
            rewards=np.nan_to_num(np.asarray(rewards, np.float64))[:, None],
            next_observations=next_observations,
            next_states=next_states,
            terminated=np.asarray(terminated)[:, None],
            truncated=np.asarray(truncated)[:, None],
            infos=infos,
            **clock,
        )
        observations, states = next_observations, next_states
        timestep += 1
        stepped = ~resetting
        current_return[stepped] += np.asarray(rewards, np.float64)[stepped]
        current_length[stepped] += 1
        ended = (np.asarray(terminated) | np.asarray(truncated)) & stepped
        wanted = np.array([len(finished) < quota[index] for index, finished in enumerate(returns)])
        for index in np.flatnonzero(wanted & ~ended & (current_length >= max_episode_steps)):
            raise EvaluationError(
                f"evaluation: an episode of environment {number + index} has not ended after {max_episode_steps} steps: "
                f"wrap the environment in gymnasium.wrappers.TimeLimit, or raise max_episode_steps"
            )
        for index in np.flatnonzero(wanted & ended):
            returns[index].append(float(current_return[index]))
            lengths[index].append(int(current_length[index]))
        current_return[ended], current_length[ended] = 0.0, 0
        # Under NEXT_STEP the step after an episode's end only resets: its reward is none of an episode.
        resetting = ended if autoreset_mode == AutoresetMode.NEXT_STEP else resetting
        if autoreset_mode == AutoresetMode.DISABLED and ended.any():
            restarted, infos = envs.reset(options={"reset_mask": ended})
            observations = map_leaves(np.array, restarted)
            states = map_leaves(np.array, states_of(envs, infos, state_space, previous=states, reset_mask=ended))
    return returns, lengths
