"""The training loop: the order of its calls, what it hands over, and how it stops."""

import os
import signal
import threading
import time
from functools import partial
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from sacref import training
from sacref.envs.vector import EnvError
from sacref.training.evaluation import evaluate
from tests.backends import Backend, Spaces, box
from tests.envs.counting import CountingEnv
from tests.fake_agent import FakeAgent

TORCH = Backend("torch")
MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]


def counting(mode: AutoresetMode = AutoresetMode.NEXT_STEP, *lengths: tuple[int, ...], copy: bool = True) -> SyncVectorEnv:
    return SyncVectorEnv([partial(CountingEnv, own) for own in lengths or ((3,),)], copy=copy, autoreset_mode=mode)


def test_a_timestep_acts_steps_records_and_updates_in_this_order() -> None:
    agent = FakeAgent()
    outcome = training.run(agent, counting(), timesteps=4)
    order = ["pre_interaction", "act", "record_transition", "post_interaction"]
    assert agent.calls == [(call, timestep) for timestep in range(4) for call in order]
    assert agent.trainer_cfg == {"timesteps": 4}
    assert agent.modes == [(True, True)]
    assert (outcome.timesteps, outcome.interrupted) == (4, False)


def test_an_action_is_that_of_the_parameters_after_the_update_before_it() -> None:
    agent = FakeAgent(scale=0.125)
    training.run(agent, counting(), timesteps=4)
    assert [row["actions"].tolist() for row in agent.rows] == [[[0.0]], [[0.125]], [[0.25]], [[0.375]]]


@pytest.mark.parametrize("copy", [True, False], ids=["fresh arrays", "one buffer"])
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_trap_10_each_row_is_the_step_that_was_taken(mode: AutoresetMode, copy: bool) -> None:
    agent = FakeAgent()
    training.run(agent, counting(mode, (2,), (3, 1), copy=copy), timesteps=5)
    seen = [[row[name].tolist() for name in ("observations", "rewards", "next_observations", "terminated")] for row in agent.rows]
    # Rows of the first environment: (episode, step) before, reward, (episode, step) after, terminated.
    first = [[column[0] for column in row] for row in seen]
    assert first[:2] == [[[0, 0], [1.0], [0, 1], [False]], [[0, 1], [2.0], [0, 2] if mode != AutoresetMode.SAME_STEP else [1, 0], [True]]]
    if mode == AutoresetMode.NEXT_STEP:
        assert first[2:4] == [[[0, 2], [0.0], [1, 0], [False]], [[1, 0], [101.0], [1, 1], [False]]]
    else:
        assert first[2] == [[1, 0], [101.0], [1, 1], [False]]
    second = [[column[1] for column in row] for row in seen]
    assert second[2] == [[0, 2], [3.0], [0, 3] if mode != AutoresetMode.SAME_STEP else [1, 0], [True]]
    assert all(row["truncated"].shape == (2, 1) and not row["truncated"].any() for row in agent.rows)
    if mode == AutoresetMode.SAME_STEP:
        np.testing.assert_array_equal(agent.rows[1]["infos"]["final_obs"][0], [0.0, 2.0])


class Together(VectorEnv[Any, Any, Any]):
    """Two environments with episodes of three steps, which are terminated or truncated, and of which infos say nothing."""

    def __init__(self, mode: AutoresetMode, *, blank: bool, truncates: bool) -> None:
        self.num_envs, self.metadata = 2, {"autoreset_mode": mode}
        self.single_observation_space, self.single_action_space = box(-9, 9, (1,)), box(-1, 1, (1,))
        self.observation_space, self.action_space = box(-9, 9, (2, 1)), box(-1, 1, (2, 1))
        self.same_step, self.blank, self.truncates = mode == AutoresetMode.SAME_STEP, blank, truncates
        self.steps = np.zeros(2, np.int64)

    def _observations(self) -> Any:
        return np.zeros((2, 1), np.float32) if self.blank else self.steps[:, None].astype(np.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.steps[np.asarray((options or {}).get("reset_mask", [True, True]))] = 0
        return self._observations(), {}

    def step(self, actions: Any) -> Any:
        self.steps += 1
        ended, never = self.steps == 3, np.zeros(2, bool)
        self.steps[ended & self.same_step] = 0
        return self._observations(), np.ones(2), never if self.truncates else ended, ended if self.truncates else never, {}


@pytest.mark.parametrize("blank", [True, False], ids=["blank", "counting"])
@pytest.mark.parametrize("mode", MODES[1:], ids=lambda mode: mode.name)
def test_trap_10_no_row_is_taken_for_a_reset_where_the_mode_has_none(mode: AutoresetMode, blank: bool) -> None:
    """The next episode begins with what the last row returned: with the same blank, or as its successor under SAME_STEP."""
    pytest.importorskip("torch")
    agent = TORCH.agent(Spaces(box(-9, 9, (1,)), box(-1, 1, (1,))), num_envs=2, capacity=40, learning_starts=99)
    training.run(agent, Together(mode, blank=blank, truncates=False), timesteps=12)
    assert len(agent.memory) == 24
    assert set(agent.recent_returns) == {3.0}


def test_a_truncation_whose_last_observation_is_lost_is_refused() -> None:
    with pytest.raises(EnvError, match="SAME_STEP, and infos have no 'final_obs', expected the observation that it ended in"):
        training.run(FakeAgent(), Together(AutoresetMode.SAME_STEP, blank=False, truncates=True), timesteps=12)


class HalfPrecision(CountingEnv):
    """Refuses actions that its float16 Box does not contain."""

    def __init__(self) -> None:
        super().__init__((2,))
        self.action_space: Any = box(-0.1, 0.1, (1,), np.float16)

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), (action, action.dtype)
        return super().step(action)


def test_environments_get_actions_that_their_box_contains_and_those_are_recorded() -> None:
    agent = FakeAgent(scale=0.05 + 1e-5)
    envs = SyncVectorEnv([HalfPrecision])
    training.run(agent, envs, timesteps=3)
    taken = [row["actions"] for row in agent.rows]
    assert [actions.dtype for actions in taken] == [np.dtype(np.float16)] * 3
    assert [actions.item() for actions in taken] == [0.0, float(np.float16(0.05 + 1e-5)), float(np.float16(0.1))]
    evaluate(agent, envs, episodes=1)


def test_a_resumed_loop_counts_on() -> None:
    agent = FakeAgent()
    finished: list[int] = []
    outcome = training.run(agent, counting(), timesteps=6, start=4, after_timestep=finished.append)
    assert [timestep for call, timestep in agent.calls if call == "act"] == [4, 5]
    assert finished == [5, 6]
    assert outcome.timesteps == 6
    with pytest.raises(ValueError, match=r"start is 7, expected it within \[0, timesteps\], and timesteps is 6"):
        training.run(agent, counting(), timesteps=6, start=7)


def test_the_seed_reaches_the_environments() -> None:
    class Seeded(CountingEnv):
        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            seeds.append(seed)
            return super().reset(seed=seed, options=options)

    seeds: list[int | None] = []
    training.run(FakeAgent(), SyncVectorEnv([Seeded, Seeded]), timesteps=1, seed=40)
    assert seeds == [40, 41]


def test_times_are_tracked_and_what_the_callback_takes_is_not_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1.0
        return now

    def after_timestep(finished: int) -> None:
        nonlocal now
        now += 1000.0

    monkeypatch.setattr(time, "perf_counter", clock)
    agent = FakeAgent()
    outcome = training.run(agent, counting(), timesteps=2, after_timestep=after_timestep)
    assert agent.tracked == {"Stats / Inference time (ms)": [1000.0, 1000.0], "Stats / Env stepping time (ms)": [1000.0, 1000.0]}
    assert outcome.seconds == 6.0


def test_one_interrupt_ends_the_loop_after_the_timestep_at_hand() -> None:
    agent = FakeAgent()
    handler = signal.getsignal(signal.SIGINT)

    def press(finished: int) -> None:
        if finished == 2:
            os.kill(os.getpid(), signal.SIGINT)

    outcome = training.run(agent, counting(), timesteps=10, after_timestep=press)
    assert (outcome.timesteps, outcome.interrupted) == (2, True)
    assert agent.calls[-1] == ("post_interaction", 1)
    assert signal.getsignal(signal.SIGINT) is handler


def test_two_interrupts_end_it_at_once() -> None:
    def press(finished: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        training.run(FakeAgent(), counting(), timesteps=10, after_timestep=press)
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_loop_outside_the_main_thread_leaves_signals_alone() -> None:
    outcomes: list[training.Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(training.run(FakeAgent(), counting(), timesteps=3)))
    thread.start()
    thread.join()
    assert [(outcome.timesteps, outcome.interrupted) for outcome in outcomes] == [(3, False)]
