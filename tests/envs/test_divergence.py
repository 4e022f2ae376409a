"""Simulations that diverge: what counts as such, which rows and episodes are left out, and that training goes on."""

import logging
import re
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from sacref import envs, training
from sacref.envs.divergence import MOST_IN_A_ROW, REPORT, DivergenceError, DivergenceGuard, Divergences, ReportDivergence, complaint
from sacref.envs.episodes import DROPPED, EpisodeBoundaries
from sacref.training.evaluation import evaluate
from tests.backends import BACKENDS, Backend, Spaces, draw_row, load_backend
from tests.envs.counting import CountingEnv
from tests.fake_agent import FakeAgent

backend = pytest.fixture(params=BACKENDS)(load_backend)

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]


class Diverging(CountingEnv):
    """Gives NaN at a step of one of its episodes.

    Args:
        lengths: of the episodes. at: the step. what: "reward" or "observation". episode: which one; None for all.
    """

    def __init__(self, lengths: tuple[int, ...] = (4,), at: int = 2, what: str = "reward", episode: int | None = 0) -> None:
        super().__init__(lengths)
        self.at, self.what, self.diverging = at, what, episode

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float64], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        if self.step_number == self.at and self.diverging in (None, self.episode):
            if self.what == "reward":
                reward = np.nan
            else:
                observation[1] = np.inf
        return observation, reward, terminated, truncated, info


def two(mode: AutoresetMode, lengths: tuple[int, ...], at: int, what: str) -> SyncVectorEnv:
    """Two environments, the second of which diverges once."""
    return SyncVectorEnv([partial(CountingEnv, (4,)), partial(Diverging, lengths, at, what)], autoreset_mode=mode)


def stored_of(agent: Any, environment: int, envs: int = 2) -> list[tuple[list[float], float, list[float], bool, bool]]:
    """(observation, reward, next observation, terminated, first) of an environment's rows in the memory."""
    arrays = agent.memory.arrays()
    size = int(arrays["size"][environment])
    columns = [arrays[name][environment::envs][:size] for name in ("observations", "rewards", "next_observations", "terminated", "first")]
    return [(list(map(float, o)), float(r), list(map(float, n)), bool(t), bool(f)) for o, r, n, t, f in zip(*columns, strict=True)]


def counting_rows(*episodes: tuple[int, int, bool]) -> list[tuple[list[float], float, list[float], bool, bool]]:
    """The rows of `(episode, steps, whether the last one terminates)` of a `CountingEnv`."""
    return [
        ([episode, step], 100.0 * episode + step + 1, [episode, step + 1], ends and step + 1 == steps, step == 0)
        for episode, steps, ends in episodes
        for step in range(steps)
    ]


def learner(backend: Backend, num_envs: int = 2, **options: Any) -> Any:
    """An agent that stores, where an episode began too, and learns nothing."""
    spaces = Spaces(CountingEnv().observation_space, CountingEnv().action_space)
    return backend.agent(spaces, num_envs=num_envs, capacity=200, learning_starts=10**6, n_step=2, execution="plain", **options)


# What is stored, and what is counted.


@pytest.mark.parametrize("what", ["reward", "observation"])
@pytest.mark.parametrize("at", [2, 3], ids=["within an episode", "at its end"])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_the_row_and_the_episode_are_dropped_and_all_else_is_stored(
    backend: Backend, mode: AutoresetMode, at: int, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    agent = learner(backend)
    made = two(mode, (3, 2), at, what)
    training.run(agent, made, timesteps=9)
    rests = mode == AutoresetMode.NEXT_STEP
    # The first environment's row of the same step stays: 4 steps, with NEXT_STEP a reset, and so on.
    assert stored_of(agent, 0) == counting_rows((0, 4, True), (1, 4, True), *([] if rests else [(2, 1, False)]))
    # The second one, reset after its step `at`. Where SAME_STEP had reset it by itself, that episode is one that never was.
    later = 2 if mode == AutoresetMode.SAME_STEP and at == 3 else 1
    left = 9 - at
    episodes, timesteps = [(0, at - 1, False)], []
    for episode in range(later, later + 9):
        steps = min((3, 2)[episode % 2], left)
        if steps <= 0:
            break
        episodes.append((episode, steps, True))
        timesteps.append(steps)
        left -= steps + rests
    complete = sum(timesteps) == sum((3, 2)[episode % 2] for episode, _, _ in episodes[1:])
    if not complete:
        episodes[-1] = (*episodes[-1][:2], False)
    assert stored_of(agent, 1) == counting_rows(*episodes)
    finished = [episode for episode, steps, ends in episodes if ends]
    returns = [10.0, 410.0, *(sum(row[1] for row in counting_rows((episode, (3, 2)[episode % 2], True))) for episode in finished)]
    assert sorted(agent.recent_returns) == sorted(returns)
    reports = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert reports == [f"environment 1 diverged at timestep {at - 1}: its {what} is not finite. Its episode is dropped, and it is reset"]


def test_the_summary_counts_the_rewards_that_are_stored(backend: Backend) -> None:
    agent = learner(backend)
    agent.write_interval = 100
    training.run(agent, two(AutoresetMode.DISABLED, (3,), 2, "reward"), timesteps=5)
    summary = agent.metrics.statistics[True].summary(agent.to_numpy)
    assert sorted(summary.rewards) == sorted([1, 2, 3, 4, 101, 1, 101, 102, 103])
    assert sorted(summary.returns) == [10.0, 306.0] and sorted(summary.lengths) == [3, 4]


def test_a_shaper_sees_no_nan(backend: Backend) -> None:
    seen: list[float] = []

    def shaper(rewards: Any, timestep: int, timesteps: int) -> Any:
        seen.extend(np.asarray(rewards).ravel().tolist())
        return rewards

    training.run(learner(backend, rewards_shaper=shaper), two(AutoresetMode.NEXT_STEP, (3,), 2, "reward"), timesteps=3)
    assert seen == [1.0, 1.0, 2.0, 0.0, 3.0, 101.0]


def test_a_recurrent_policy_begins_the_next_episode_anew(backend: Backend) -> None:
    spaces = Spaces(CountingEnv().observation_space, CountingEnv().action_space)
    options: dict[str, Any] = {"capacity": 64, "learning_starts": 10**6, "sequence_length": 4, "burn_in": 0, "execution": "plain"}
    networks = {"recurrent": "gru", "recurrent_size": 4, "feed_previous": ("actions", "rewards")}
    agent = backend.agent(spaces, num_envs=2, algorithm="SAC_RNN", networks=networks, **options)
    training.run(agent, two(AutoresetMode.NEXT_STEP, (9,), 3, "observation"), timesteps=7)
    arrays = agent.memory.arrays()
    own = {name: array[1::2][:6] for name, array in arrays.items() if name not in ("head", "size")}
    assert own["first"].tolist() == [True, False, True, False, False, False]
    assert own["observations"].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2], [1, 3]]
    carries = next(array for name, array in own.items() if name.startswith("carry"))
    assert not carries[0].any() and carries[1].any() and not carries[2].any() and carries[3].any()
    assert own["previous_rewards"].tolist() == [0, 1, 0, 101, 102, 103]
    assert all(np.isfinite(array).all() for array in own.values())


def test_privileged_states_that_are_not_finite_count_as_divergence(backend: Backend) -> None:
    class Privileged(CountingEnv):
        state_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)

        def state(self) -> NDArray[np.float64]:
            return np.array([np.nan if (self.episode, self.step_number) == (0, 2) else float(self.step_number)])

    spaces = Spaces(CountingEnv().observation_space, CountingEnv().action_space, Privileged.state_space)
    agent = backend.agent(spaces, num_envs=1, capacity=50, learning_starts=10**6, n_step=2, execution="plain")
    training.run(agent, SyncVectorEnv([partial(Privileged, (4,))]), timesteps=4, state_space=Privileged.state_space)
    assert stored_of(agent, 0, 1) == counting_rows((0, 1, False), (1, 2, False))
    assert agent.memory.arrays()["states"].ravel().tolist() == [0, 0, 1]


# A foreign trainer.


@pytest.mark.parametrize("arrays", ["host", "device"])
def test_a_row_that_is_said_to_be_dropped_is_left_out(backend: Backend, arrays: str) -> None:
    agent = learner(backend)
    generator = np.random.default_rng(0)
    row = draw_row(agent, generator, terminated=np.zeros((2, 1), bool), infos={DROPPED: np.array([False, True])})
    row["rewards"] = np.array([[1.0], [np.nan]], np.float32)
    if arrays == "device":
        row = {name: backend.array(value) if isinstance(value, np.ndarray) else value for name, value in row.items()}
    agent.record_transition(**row)
    assert agent.memory.arrays()["size"].tolist() == [1, 0]
    agent.transitions.raise_for_bad_rows()
    agent = learner(backend)
    with pytest.raises(ValueError, match=re.escape("infos['sacref.dropped'] has shape (3,), expected (2,): a bool per environment")):
        agent.record_transition(**draw_row(agent, generator, infos={DROPPED: np.zeros(3, bool)}))


def test_a_nan_row_that_nobody_has_dropped_is_refused_as_before(backend: Backend) -> None:
    agent = learner(backend)
    with pytest.raises(ValueError, match="rewards of environment 1 are not finite"):
        agent.record_transition(**draw_row(agent, np.random.default_rng(0), rewards=np.array([[1.0], [np.nan]])))


def test_a_dropped_row_that_ended_its_episode_is_followed_by_no_reset_row() -> None:
    boundaries: EpisodeBoundaries[Any] = EpisodeBoundaries()
    row: dict[str, Any] = {"observations": np.zeros((1, 2)), "truncated": np.array([False])}
    _, keep = boundaries.resolve(**row, next_observations=np.ones((1, 2)), terminated=np.array([True]), infos={DROPPED: np.array([True])})
    assert keep.tolist() == [False] and boundaries.starts is not None and boundaries.starts.tolist() == [True]
    # The first observation after the reset equals that of before: a reset row of NEXT_STEP would look so.
    _, keep = boundaries.resolve(
        **{**row, "observations": np.ones((1, 2))}, next_observations=np.ones((1, 2)), terminated=np.array([False]), infos={}
    )
    assert keep.tolist() == [True]


# What is said.


def guard_of(made: SyncVectorEnv, rank: int | None = None) -> DivergenceGuard:
    made.reset(seed=0)
    return DivergenceGuard(made, rank)


def look(guard: DivergenceGuard, rewards: list[float], ended: list[bool] | None = None) -> list[bool]:
    count = len(rewards)
    found: list[bool] = guard.look(
        observations=np.zeros((count, 2)),
        states=None,
        rewards=np.array(rewards),
        ended=np.array(ended or [False] * count),
        infos={},
        timestep=3,
    ).tolist()
    return found


def test_the_rank_is_named(caplog: pytest.LogCaptureFixture) -> None:
    assert look(guard_of(SyncVectorEnv([CountingEnv] * 3), rank=2), [0.0, np.inf, np.nan]) == [False, True, True]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "environment 1 of rank 2 diverged at timestep 3",
        "environment 2 of rank 2 diverged at timestep 3",
    ]


def test_many_divergences_are_said_loudly(caplog: pytest.LogCaptureFixture) -> None:
    guard = guard_of(SyncVectorEnv([CountingEnv] * 2))

    def errors() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]

    for _ in range(30):
        look(guard, [0.0, 0.0], [True, False])
    for _ in range(3):
        look(guard, [np.nan, 0.0])
    assert errors() == []  # 3 of 33, and too few
    look(guard, [np.nan, 0.0])
    assert len(errors()) == 1 and errors()[0].startswith("4 of 34 episodes diverged and were dropped: what is learned is biased")
    for _ in range(3):
        look(guard, [np.nan, 0.0])
    assert len(errors()) == 1
    look(guard, [np.nan, 0.0])
    assert len(errors()) == 2 and errors()[1].startswith("8 of 38 ")


def test_a_tenth_is_not_many(caplog: pytest.LogCaptureFixture) -> None:
    guard = guard_of(SyncVectorEnv([CountingEnv]))
    for _ in range(36):
        look(guard, [0.0], [True])
    for _ in range(4):
        look(guard, [np.nan])
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_an_environment_that_does_nothing_else_ends_training() -> None:
    agent = FakeAgent()
    made = SyncVectorEnv([CountingEnv, partial(Diverging, (4,), 1, "reward", None)])
    with pytest.raises(DivergenceError, match=r"environment 1 diverged in 100 episodes one after the other, at last: its reward is not"):
        training.run(agent, made, timesteps=1000)
    assert len(agent.rows) == MOST_IN_A_ROW - 1


def test_finished_episodes_start_the_count_anew() -> None:
    guard = guard_of(SyncVectorEnv([CountingEnv]))
    for _ in range(3):
        for _ in range(MOST_IN_A_ROW - 1):
            look(guard, [np.nan])
        look(guard, [0.0], [True])


def test_environments_that_cannot_be_reset_alone_are_left_to_the_agent(backend: Backend) -> None:
    class Others(SyncVectorEnv):
        @property
        def unwrapped(self) -> Any:
            return object()

    made = Others([partial(Diverging, (4,), 2)])
    with pytest.raises(ValueError, match="rewards of environment 0 are not finite"):
        training.run(learner(backend, 1), made, timesteps=5)


# MuJoCo.


def half_cheetahs(mode: AutoresetMode = AutoresetMode.NEXT_STEP, number: int = 2) -> Any:
    pytest.importorskip("mujoco")
    return envs.make("HalfCheetah-v5", number, autoreset_mode=mode)


class Disturbed(FakeAgent):
    """Sets a velocity of the second environment's simulation before a timestep."""

    def __init__(self, made: Any, timestep: int, velocity: float) -> None:
        super().__init__()
        self.made, self.timestep, self.velocity = made, timestep, velocity

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> tuple[Any, dict[str, Any]]:
        if timestep == self.timestep:
            self.made.envs[1].unwrapped.data.qvel[3] = self.velocity
        super().act(observations, states, timestep=timestep, timesteps=timesteps)
        return np.full((len(observations), 6), 0.1, np.float32), {}


@pytest.mark.parametrize("velocity", [1e11, np.nan])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_a_bad_velocity_is_reported_in_mujocos_words(mode: AutoresetMode, velocity: float, caplog: pytest.LogCaptureFixture) -> None:
    made = half_cheetahs(mode)
    agent = Disturbed(made, 4, velocity)
    training.run(agent, made, timesteps=10, seed=5)
    dropped = [row["infos"][DROPPED].tolist() if DROPPED in row["infos"] else None for row in agent.rows]
    assert dropped == [None] * 4 + [[False, True]] + [None] * 5
    reports = [record.getMessage() for record in caplog.records if record.name == "sacref.envs.divergence"]
    words = "Nan, Inf or huge value in QVEL at DOF 3. The simulation is unstable"
    assert reports == [f"environment 1 diverged at timestep 4: MuJoCo: {words}. Its episode is dropped, and it is reset"]
    # MuJoCo itself had put the simulation back into its resting position, a finite one: what was returned looks sound.
    assert np.isfinite(agent.rows[4]["next_observations"]).all()
    # The first environment went on, the second one began anew.
    np.testing.assert_array_equal(agent.rows[5]["observations"][0], agent.rows[4]["next_observations"][0])
    assert not np.array_equal(agent.rows[5]["observations"][1], agent.rows[4]["next_observations"][1])
    assert made.envs[1].unwrapped.data.time == pytest.approx(5 * 0.05) and made.envs[0].unwrapped.data.time == pytest.approx(10 * 0.05)
    made.close()


def test_it_is_said_once_even_where_a_reset_keeps_mujocos_count() -> None:
    made = half_cheetahs(number=1)
    made.reset(seed=0)
    task = made.envs[0].unwrapped
    assert complaint(task) is None
    task.data.qpos[2] = np.inf
    made.step(np.zeros((1, 6), np.float32))
    assert complaint(task) == "MuJoCo: Nan, Inf or huge value in QPOS at DOF 2. The simulation is unstable"
    assert complaint(task) is None
    made.close()


def test_an_action_beyond_its_bounds_is_no_divergence() -> None:
    """MuJoCo counts other things, too, such as a bad control, which it leaves out."""
    made = half_cheetahs(number=1)
    made.reset(seed=0)
    made.envs[0].unwrapped.do_simulation(np.full(6, np.nan), 1)
    assert made.envs[0].unwrapped.data.warning.number.sum() == 1
    assert complaint(made.envs[0].unwrapped) is None
    made.close()


def test_the_counts_are_those_of_mujoco() -> None:
    mujoco = pytest.importorskip("mujoco")
    from sacref.envs import divergence

    kinds = mujoco.mjtWarning
    assert tuple(map(int, (kinds.mjWARN_BADQPOS, kinds.mjWARN_BADQVEL, kinds.mjWARN_BADQACC))) == divergence._WARNINGS


def disturbed() -> gymnasium.Env[Any, Any]:
    """A HalfCheetah whose third step diverges; made in a process of its own."""

    class Disturbing(gymnasium.Wrapper[Any, Any, Any, Any]):
        steps = 0

        def step(self, action: Any) -> Any:
            self.steps += 1
            if self.steps == 3:
                task: Any = self.unwrapped
                task.data.qvel[0] = 1e11
            return self.env.step(action)

    return Disturbing(gymnasium.make("HalfCheetah-v5"))


def test_environments_in_other_processes_report_it_themselves() -> None:
    pytest.importorskip("mujoco")
    made = envs.make(disturbed, 2, vectorization="async")
    agent = FakeAgent()
    agent.act = lambda observations, *_, **__: (np.full((2, 6), 0.1, np.float32), {})  # type: ignore[method-assign]
    try:
        training.run(agent, made, timesteps=5, seed=0)
    finally:
        made.close()
    assert [row["infos"].get(DROPPED) is not None for row in agent.rows] == [False, False, True, False, False]
    assert agent.rows[2]["infos"][REPORT][1].startswith("MuJoCo: Nan, Inf or huge value in QVEL at DOF 0")
    np.testing.assert_array_equal(agent.rows[2]["infos"][DROPPED], [True, True])


def test_what_ended_an_episode_is_read_from_its_last_info() -> None:
    made = SyncVectorEnv([CountingEnv] * 2)
    made.reset()
    words = np.array([None, "MuJoCo: bad"], object)
    infos = {"final_info": {REPORT: words, f"_{REPORT}": np.array([False, True])}}
    found = Divergences(made).find(observations=np.zeros((2, 2)), states=None, rewards=np.zeros(2), infos=infos)
    assert found == {1: "MuJoCo: bad"}


class WithLast(VectorEnv[Any, Any, Any]):
    """Hands over last observations and states of all environments without masks: those of running episodes are NaN.

    The first environment's episodes have 2 steps, the second one's 3.
    """

    def __init__(self) -> None:
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.num_envs, self.lengths = 2, np.array([2, 3])
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.single_action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        self.single_state_space = self.single_observation_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.steps = np.zeros(2)
        return self.steps[:, None].copy(), {"state": self.steps[:, None].copy()}

    def step(self, actions: Any) -> Any:
        self.steps = self.steps + 1
        ended = self.steps == self.lengths
        last = np.where(ended, self.steps, np.nan)[:, None]
        self.steps = np.where(ended, 0, self.steps)
        infos = {"state": self.steps[:, None].copy(), "final_obs": last, "final_info": {"state": last.copy()}}
        return self.steps[:, None].copy(), np.ones(2), ended, np.zeros(2, np.bool_), infos


def test_last_states_of_running_episodes_do_not_count() -> None:
    made, agent = WithLast(), FakeAgent()
    evaluation = evaluate(agent, made, episodes=4, state_space=made.single_state_space)
    assert (evaluation.returns, evaluation.lengths, evaluation.diverged) == ((2.0, 2.0, 3.0, 3.0), (2, 2, 3, 3), ())
    infos = {"final_info": {"state": np.array([[np.nan], [np.nan]])}}
    arguments: dict[str, Any] = {"observations": np.zeros((2, 1)), "states": np.zeros((2, 1)), "rewards": np.zeros(2), "infos": infos}
    divergences = Divergences(SyncVectorEnv([CountingEnv] * 2))
    assert divergences.find(**arguments, ended=np.array([False, True])) == {1: "its state is not finite"}
    assert divergences.find(**arguments) == {0: "its state is not finite", 1: "its state is not finite"}
    guard = guard_of(SyncVectorEnv([CountingEnv] * 2))
    assert guard.look(**arguments, ended=np.array([False, True]), timestep=0).tolist() == [False, True]


def test_the_wrapper_is_silent_about_other_environments() -> None:
    wrapped = ReportDivergence(CountingEnv())
    wrapped.reset()
    assert wrapped.step(np.zeros(1, np.float32))[4] == {}


# Evaluation: an episode that diverges is left out.


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_an_evaluation_leaves_out_the_episode_that_diverged(mode: AutoresetMode, caplog: pytest.LogCaptureFixture) -> None:
    made = half_cheetahs(mode)
    evaluation = evaluate(Disturbed(made, 4, 1e11), made, episodes=2)
    made.close()
    assert "environment 1 (seed 1) diverged in its episode 1, at step 5: MuJoCo: Nan, Inf or huge value in QVEL at DOF 3" in caplog.text
    assert (evaluation.diverged, len(evaluation.returns)) == ((1,), 1)


# Whole runs.


def test_a_run_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("torch")
    import sacref

    cfg = {"random_timesteps": 10, "learning_starts": 10, "batch_size": 8}
    result = sacref.train(
        env=partial(Diverging, (4,), 3, "reward", 2),  # the first two are the look at the states, and the first of the training
        steps=60,
        num_envs=2,
        cfg=cfg,
        hidden=(8,),
        run_dir=tmp_path / "run",
        device="cpu",
        evaluation_episodes=1,
        evaluation_interval=60,
        progress=False,
    )
    assert result.steps == 60
    # 4 steps, a reset, and the third step of the next episode.
    assert sum("diverged at timestep 7: its reward" in record.getMessage() for record in caplog.records) == 2
