"""Evaluation: unbiased, repeatable, and without a trace in the agent."""

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from sacref import envs, training
from sacref.training.evaluation import MAX_EPISODE_STEPS, Evaluation, EvaluationError, evaluate, with_plain_rewards
from tests.backends import box, without_shape_checks
from tests.envs.counting import CountingEnv
from tests.fake_agent import FakeAgent

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]


def counting(mode: AutoresetMode, *lengths: tuple[int, ...]) -> SyncVectorEnv:
    return SyncVectorEnv([partial(CountingEnv, own, truncates=own[0] > 2) for own in lengths], autoreset_mode=mode)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_each_copy_runs_its_share_of_the_episodes_and_each_return_is_one_episodes(mode: AutoresetMode) -> None:
    evaluation = evaluate(FakeAgent(), counting(mode, (1,), (3, 2), (4,)), episodes=5, seed=0)
    # Episode e has rewards 100 e + 1, 100 e + 2, ...; the copies of short episodes get no more of them.
    assert evaluation.lengths == (1, 1, 3, 2, 4)
    assert evaluation.returns == (1.0, 101.0, 6.0, 203.0, 10.0)
    assert evaluation.mean == pytest.approx(64.2)
    assert evaluation.std == pytest.approx(float(np.std([1.0, 101.0, 6.0, 203.0, 10.0])))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_flags_may_be_numbers(mode: AutoresetMode, dtype: Any) -> None:
    class Numbers(SyncVectorEnv):
        def step(self, actions: Any) -> Any:
            observations, rewards, terminated, truncated, infos = super().step(actions)
            return observations, rewards, terminated.astype(dtype), truncated.astype(dtype), infos

    made = Numbers([partial(CountingEnv, (length,), truncates=length > 4) for length in (3, 4, 5)], autoreset_mode=mode)
    assert evaluate(FakeAgent(), made, episodes=6, seed=0).lengths == (3, 3, 4, 4, 5, 5)


def test_the_entry_is_that_of_evaluation_json() -> None:
    entry = Evaluation(returns=(1.0, 5.0), lengths=(3, 3)).to_entry(700)
    assert entry == {"step": 700, "returns": [1.0, 5.0], "mean": 3.0, "std": 2.0}


def test_two_evaluations_are_equal_and_another_seed_is_not() -> None:
    made = envs.make("Pendulum-v1", 2)
    first, second, other = (evaluate(FakeAgent(), made, episodes=3, seed=seed) for seed in (5, 5, 50))
    assert first == second
    assert len(set(first.returns)) == 3
    assert set(other.returns).isdisjoint(first.returns)


@pytest.mark.parametrize("training", [True, False])
def test_trap_13_the_agent_acts_in_evaluation_mode_and_is_left_as_it_was(training: bool) -> None:
    agent = FakeAgent()
    agent.training = training
    evaluate(agent, counting(AutoresetMode.NEXT_STEP, (3,)), episodes=2, seed=0)
    assert {mode for mode, _, _ in agent.acted} == {False}
    assert agent.modes == [(False, True), (training, True)]
    assert agent.tracked == {}
    assert {call for call, _ in agent.calls} == {"record_transition"}  # which in evaluation mode feeds statistics alone


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_each_step_is_recorded_as_it_was_taken(mode: AutoresetMode) -> None:
    agent = FakeAgent()
    evaluate(agent, counting(mode, (2,), (3, 1)), episodes=2, seed=0)
    assert [timestep for _, timestep in agent.calls] == [0, 1, 2]
    names = ("observations", "rewards", "next_observations", "terminated", "truncated")
    seen = [[row[name].tolist() for name in names] for row in agent.rows]
    # Rows of the first environment: (episode, step) before, reward, (episode, step) after, terminated, truncated.
    first = [[column[0] for column in row] for row in seen]
    assert first[:2] == [
        [[0, 0], [1.0], [0, 1], [False], [False]],
        [[0, 1], [2.0], [1, 0] if mode == AutoresetMode.SAME_STEP else [0, 2], [True], [False]],
    ]
    if mode == AutoresetMode.NEXT_STEP:
        assert first[2] == [[0, 2], [0.0], [1, 0], [False], [False]]
    else:
        assert first[2] == [[1, 0], [101.0], [1, 1], [False], [False]]
    assert [column[1] for column in seen[2]][3:] == [[False], [True]]
    if mode == AutoresetMode.SAME_STEP:
        np.testing.assert_array_equal(agent.rows[1]["infos"]["final_obs"][0], [0.0, 2.0])
    assert [row["actions"].tolist() for row in agent.rows] == [[[0.0], [0.0]]] * 3


def test_the_mode_is_restored_after_an_error() -> None:
    agent = FakeAgent()
    agent.training = agent.fails = True
    with pytest.raises(RuntimeError, match="the agent fails"):
        evaluate(agent, counting(AutoresetMode.NEXT_STEP, (3,)), episodes=1, seed=0)
    assert agent.training


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_an_episode_that_does_not_end_is_cut_and_counts_as_truncated(mode: AutoresetMode) -> None:
    agent = FakeAgent()
    evaluation = evaluate(agent, counting(mode, (2,), (21,)), episodes=4, seed=0, max_episode_steps=20)
    assert evaluation.lengths == (2, 2, 20, 20)
    assert evaluation.returns == (3.0, 203.0, 210.0, 2210.0)  # 1 + ... + 20, and 20 times 100 more in the second episode
    assert (evaluation.truncated, evaluation.to_entry(7)["truncated"], evaluation.diverged) == (2, 2, ())
    assert [step for step, row in enumerate(agent.rows) if row["truncated"][1]] == [19, 39]
    whole = evaluate(FakeAgent(), counting(mode, (2,), (20,)), episodes=2, seed=0, max_episode_steps=20)
    assert (whole.lengths, whole.truncated) == ((2, 20), 0)


def test_without_a_limit_episodes_are_cut_where_their_task_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_EPISODE_STEPS == 10_000
    monkeypatch.setattr("sacref.training.evaluation.MAX_EPISODE_STEPS", 30)
    endless: Any = {"env_kwargs": {"lengths": (10**9,)}}
    limited = [partial(gymnasium.wrappers.TimeLimit, max_episode_steps=40)]
    for asked, wrappers, lengths, truncated in ((None, [], (30, 30), 2), (None, limited, (40, 40), 0), (35, limited, (35, 35), 2)):
        made = envs.make(CountingEnv, 2, wrappers=wrappers, **endless)
        found = evaluate(FakeAgent(), made, episodes=2, max_episode_steps=asked)
        assert (found.lengths, found.truncated) == (lengths, truncated)


def test_a_copy_that_has_run_its_share_may_go_on_for_ever() -> None:
    evaluation = evaluate(FakeAgent(), counting(AutoresetMode.NEXT_STEP, (2, 100), (9, 9)), episodes=3, seed=0, max_episode_steps=100)
    assert evaluation.lengths == (2, 100, 9)
    assert evaluate(FakeAgent(), counting(AutoresetMode.NEXT_STEP, (2, 100), (9, 9)), episodes=2, seed=0, max_episode_steps=9).lengths == (
        2,
        9,
    )


class Faulty(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Diverges in every second episode, the first one included where the environment's seed is odd: in one part of what it gives."""

    def __init__(self, env: gymnasium.Env[Any, Any], part: str) -> None:
        super().__init__(env)
        self.part, self.episode = part, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        observation, info = super().reset(seed=seed, options=options)
        self.episode = seed % 2 if seed is not None else self.episode + 1
        return np.full_like(observation, np.nan) if self.part == "start" and self.episode % 2 else observation, info

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        if self.episode % 2 and self.part == "observation":
            observation = observation + np.inf
        if self.episode % 2 and self.part in ("reward", "return"):
            reward = np.nan if self.part == "reward" else 1e308
        return observation, reward, terminated, truncated, info


@pytest.mark.parametrize("part", ["observation", "reward", "start", "return"])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_an_episode_that_diverges_is_left_out_and_counted_with_its_seed(
    mode: AutoresetMode, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    agent = FakeAgent()
    made = envs.make(CountingEnv, 2, autoreset_mode=mode, wrappers=[partial(Faulty, part=part)], env_kwargs={"lengths": (2,)})
    found = evaluate(agent, made, episodes=5, seed=10)
    # Copy 0 (seed 10) loses the second of its three episodes, copy 1 (seed 11) the first of its two.
    assert (found.diverged, found.lengths, found.truncated) == ((10, 11), (2, 2, 2), 0)
    assert [value % 100 for value in found.returns] == [3.0] * 3
    assert found.to_entry(7)["diverged"] == 2 and found.to_entry(7)["diverged_seeds"] == [10, 11]
    assert "environment 0 (seed 10) diverged in its episode 2" in caplog.text
    assert "environment 1 (seed 11) diverged in its episode 1" in caplog.text
    assert all(np.isfinite(row[name]).all() for row in agent.rows for name in ("observations", "rewards"))


def test_an_evaluation_fails_only_if_all_of_its_episodes_diverge() -> None:
    made = envs.make(CountingEnv, 2, wrappers=[partial(Faulty, part="reward")])
    assert evaluate(FakeAgent(), made, episodes=2, seed=0).diverged == (1,)
    one = envs.make(CountingEnv, 1, wrappers=[partial(Faulty, part="reward")])
    with pytest.raises(EvaluationError, match=r"all 1 episodes diverged \(its reward is not finite\)"):
        evaluate(FakeAgent(), one, episodes=1, seed=1)


def test_environments_that_are_not_reset_one_by_one_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sacref.training.evaluation.can_reset_one", lambda envs: False)
    faulty = envs.make(CountingEnv, 2, wrappers=[partial(Faulty, part="observation")])
    with pytest.raises(EvaluationError, match="environment 1 diverged, and cannot be reset by itself"):
        evaluate(FakeAgent(), faulty, episodes=2)
    long = counting(AutoresetMode.NEXT_STEP, (2,), (50,))
    with pytest.raises(EvaluationError, match="environment 1 has an episode that did not end within 10 steps, and cannot be reset"):
        evaluate(FakeAgent(), long, episodes=4, max_episode_steps=10)
    assert evaluate(FakeAgent(), long, episodes=2, max_episode_steps=10).lengths == (2, 10)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"episodes": 0}, ValueError, "episodes is 0, expected at least 1"),
        ({"episodes": 2.5}, TypeError, "episodes is 2.5, expected an integer of at least 1"),
        ({"episodes": True}, TypeError, "episodes is True, expected an integer"),
        ({"seed": -1}, ValueError, "seed is -1, expected at least 0"),
        ({"max_episode_steps": 0}, ValueError, "max_episode_steps is 0, expected at least 1"),
        ({"seed": None}, TypeError, "seed is None, expected an integer of at least 0"),
        ({"envs": CountingEnv()}, TypeError, "envs is .*CountingEnv.*, expected a vector environment: make it with sacref.envs.make"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(given: dict[str, Any], error: type[Exception], message: str) -> None:
    usual = {"envs": counting(AutoresetMode.NEXT_STEP, (2,)), "episodes": 1, "seed": 0}
    with without_shape_checks(), pytest.raises(error, match=message):
        evaluate(FakeAgent(), **{**usual, **given})


def test_rewards_are_evaluation_as_they_are_where_training_normalises_them() -> None:
    """Else the returns of one agent would grow from one evaluation to the next, as the deviation is learned."""
    wrappers: Any = [gymnasium.wrappers.NormalizeReward, gymnasium.wrappers.RecordEpisodeStatistics, with_plain_rewards]
    made = envs.make(CountingEnv, 1, env_kwargs={"lengths": (4,)}, wrappers=wrappers)
    for wanted in (1 + 2 + 3 + 4, 400 + 1 + 2 + 3 + 4):
        assert evaluate(FakeAgent(), made, episodes=1).returns == pytest.approx((wanted,), rel=1e-7)


def test_numpys_integers_are_integers() -> None:
    asked: Any = {"episodes": np.int64(3), "seed": np.int32(0)}
    with without_shape_checks():
        assert len(evaluate(FakeAgent(), counting(AutoresetMode.NEXT_STEP, (2,)), **asked).returns) == 3


class Fastidious(FakeAgent):
    """Says which spaces it was made for."""

    observation_space: Any = box(-np.inf, np.inf, (2,), np.float64)
    action_space: Any = box(-1, 1, (1,))
    state_space: Any = None


class Other(CountingEnv):
    """Has other spaces than `CountingEnv`, and no state to hand over."""

    def __init__(self, **spaces: Any) -> None:
        super().__init__()
        for name, space in spaces.items():
            setattr(self, name, space)


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        (
            {"action_space": box(-100, 100, (1,))},
            "action_space.low is -100.0 at 0, expected -1.0; action_space.high is 100.0 at 0, expected 1.0",
        ),
        ({"action_space": box(-1, 1, (1, 1))}, r"action_space has shape \[1, 1\], expected \[1\]"),
        (
            {"action_space": gymnasium.spaces.Discrete(2)},
            r"action_space is Discrete\(2\), expected a Box of shape \[1\] and dtype 'float32'",
        ),
        ({"observation_space": box(0, 255, (2,), np.uint8)}, "observation_space has dtype 'uint8', expected float64"),
    ],
)
def test_environments_of_other_spaces_than_the_agents_are_refused_by_name(spaces: dict[str, Any], message: str) -> None:
    agent, made = Fastidious(), SyncVectorEnv([partial(Other, **spaces)])
    message = f"the environments are not those that the agent was made for: {message}: make them as it was trained"
    with pytest.raises(ValueError, match=message):
        evaluate(agent, made, episodes=1)
    with pytest.raises(ValueError, match=message):
        training.run(agent, made, timesteps=1)
    assert not agent.calls and not agent.modes


def test_a_state_space_that_the_agent_has_not_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"state_space is a Box of shape \[3\] and dtype 'float32', expected None"):
        evaluate(Fastidious(), counting(AutoresetMode.NEXT_STEP, (2,)), episodes=1, state_space=box(-1, 1, (3,)))


def test_bounds_that_say_nothing_of_the_units_may_differ() -> None:
    made = SyncVectorEnv([partial(Other, observation_space=box(-9, 9, (2,), np.float32), action_space=box(-1, 1, (1,), np.float64))])
    assert evaluate(Fastidious(), made, episodes=1).lengths == (3,)
