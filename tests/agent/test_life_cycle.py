"""Random interleavings of the life cycle's calls, held against a plain Python model of what is stored, counted and returned.

One agent is made for each machine: it loads its first checkpoint before each example, so that nothing is compiled again.
"""

import copy
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.backends import BACKENDS, Backend, Spaces, load_backend, without_shape_checks

backend = pytest.fixture(params=BACKENDS)(load_backend)

ENVS, SLOTS = 2, 4
"""Few slots, so that the rings are overwritten."""
CHUNK, LEARNING_STARTS = 2, 3
SPACES = Spaces(gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64), gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32))

ends = st.sampled_from(["", "", "", "terminated", "truncated", "both", "diverged"])
"""How a step ends an environment's episode; in half of them it goes on."""
actions = st.sampled_from([-2.0, -0.5, 0.0, 1.0, 2.0, 3.0])
"""The last one is outside of the Box, where environments make the bound of it."""
modes = st.sampled_from(["next step", "same step", "by the trainer"])
"""When environments are reset after an episode's end."""
arrays = st.sampled_from(["host", "host", "device", "mixed", "lists"])
Timestep = tuple[tuple[str, str], tuple[float, float], bool, bool, bool]
timestep = st.tuples(st.tuples(ends, ends), st.tuples(actions, actions), st.booleans(), st.booleans(), st.booleans())
"""How it ends, and what is done, in each environment; whether final observations are whole arrays, and whether it acts and may learn."""


@dataclass
class Counter:
    """An environment that counts its episodes and its steps, so that each observation tells where it comes from."""

    episode: int = 0
    steps: int = 0
    resting: bool = False
    """Whether its next step only resets it (NEXT_STEP)."""
    running: float = 0.0
    """The rewards of its episode."""
    continues: bool = False
    """Whether its next row continues its last one."""

    @property
    def observation(self) -> float:
        return 1000.0 * self.episode + self.steps

    def reset(self) -> None:
        self.episode, self.steps, self.resting, self.running, self.continues = self.episode + 1, 0, False, 0.0, False


@dataclass
class Saved:
    """What a checkpoint must hold."""

    rows: list[deque[tuple[float, ...]]] = field(default_factory=lambda: [deque(maxlen=SLOTS) for _ in range(ENVS)])
    """Of each environment, oldest first: observation, action in [-1, 1], reward, next observation, terminated, first."""
    gradient_steps: int = 0
    due: int = 0
    waiting: int = 0
    """Gradient steps that are due, and timesteps, since the last chunk."""


class LifeCycle(RuleBasedStateMachine):
    """A trainer that makes the calls in any order, and knows what must come of them."""

    agent: Any
    backend: Backend
    directory: Path

    def __init__(self) -> None:
        super().__init__()
        self.agent.load(self.directory / "first")
        self.agent.enable_training_mode(True)
        self.agent.init()
        self.model = Saved()
        self.saved, self.number_of_saves = [(self.directory / "first", Saved())], 0
        # Returns are no part of a checkpoint: those of the example before are still there.
        self.returns = {training: deque(self.known_returns(training), maxlen=100) for training in (True, False)}
        self.counters = {training: [Counter() for _ in range(ENVS)] for training in (True, False)}
        self.training, self.timestep, self.mode = True, 0, "next step"

    def known_returns(self, training: bool) -> tuple[float, ...]:
        known: tuple[float, ...] = self.agent.metrics.statistics[training].read_returns(self.agent.to_numpy)
        return known

    @property
    def clock(self) -> dict[str, int]:
        return {"timestep": self.timestep, "timesteps": 10**6}

    @property
    def environments(self) -> list[Counter]:
        return self.counters[self.training]

    @property
    def observations(self) -> Any:
        return np.array([[env.observation] for env in self.environments])

    @initialize(mode=modes)
    def choose_mode(self, mode: str) -> None:
        self.mode = mode

    @rule()
    def act(self) -> None:
        chosen, extras = self.agent.act(self.observations, None, **self.clock)
        chosen, mean = self.agent.to_numpy(chosen), self.agent.to_numpy(extras["mean_actions"])
        assert chosen.shape == mean.shape == (ENVS, 1)
        assert np.all(np.abs(chosen) <= 2.0)
        assert self.training or np.array_equal(chosen, mean)

    @rule(timesteps=st.lists(timestep, min_size=1, max_size=4), kind=arrays)
    def train(self, timesteps: list[Timestep], kind: str) -> None:
        for how, taken, dense, acts, interacts in timesteps:
            if acts:
                self.act()
            self.step(how, taken, dense, kind)
            if interacts:
                self.interact()

    def step(self, how: tuple[str, str], taken: tuple[float, float], dense: bool, kind: str) -> None:
        """A step of all environments, recorded; then the trainer resets those that are its own to reset."""
        before, rewards, returned, final = self.observations, [], [], []
        finished: list[float] = []
        dropped = np.zeros(ENVS, bool)
        flags = {name: np.zeros((ENVS, 1), bool) for name in ("terminated", "truncated")}
        for number, (env, end, action) in enumerate(zip(self.environments, how, taken, strict=True)):
            observation, reward = env.observation, 0.0
            if env.resting and end != "diverged":
                env.reset()  # the row is no transition, whatever the action
                end = "resting"
            else:
                env.steps += 1
                reward = 0.5 * env.steps + number
            successor = env.observation
            flags["terminated"][number], flags["truncated"][number] = end in ("terminated", "both"), end in ("truncated", "both")
            dropped[number] = end == "diverged"
            ended = bool(flags["terminated"][number] | flags["truncated"][number])
            if end not in ("diverged", "resting"):
                env.running += reward
                if self.training:
                    first = not env.continues
                    row = (observation, min(action, 2.0) / 2.0, reward, successor, float(flags["terminated"][number, 0]), float(first))
                    self.model.rows[number].append(row)
                env.continues = not ended
                if ended:
                    finished.append(env.running)
                    env.running = 0.0
            if ended and self.mode == "same step":
                env.reset()
            env.resting = ended and self.mode == "next step"
            rewards.append([reward])
            returned.append([env.observation])
            final.append([successor] if ended and self.mode == "same step" else None)
        self.returns[self.training].extend(finished)
        infos: dict[str, Any] = {"sacref.dropped": dropped} if dropped.any() else {}
        if any(final):
            # Gymnasium's way, and that of environments that hand over whole arrays.
            rows: Any = np.array([np.nan if row is None else row[0] for row in final]).reshape(ENVS, 1)
            infos["final_obs"] = rows if dense else [None if row is None else np.array(row) for row in final]
            infos["_final_obs"] = np.array([row is not None for row in final])
        given = {"observations": before, "rewards": np.array(rewards), "next_observations": np.array(returned), **flags}
        self.record(kind, actions=np.array(taken, np.float32).reshape(ENVS, 1), infos=infos, **given)
        for env, was_dropped, last in zip(self.environments, dropped, how, strict=True):
            if was_dropped or (self.mode == "by the trainer" and last in ("terminated", "truncated", "both")):
                env.reset()

    def record(self, kind: str, **row: Any) -> None:
        given = {"states": None, "next_states": None, "infos": {}, **row}
        for name, value in given.items():
            if not isinstance(value, np.ndarray):
                continue
            if kind == "lists":
                given[name] = value.tolist()
            elif kind == "device" or (kind == "mixed" and name in ("rewards", "next_observations")):
                given[name] = self.backend.array(value)
        self.agent.record_transition(**given, **self.clock)

    @rule(name=st.sampled_from(["observations", "rewards", "next_observations", "actions"]), bad=st.sampled_from([np.nan, 1e300]))
    def record_a_row_that_is_refused(self, name: str, bad: float) -> None:
        """Nothing of it is stored, and the trainer has lost a step."""
        if any(env.resting for env in self.environments):
            return
        column = np.zeros((ENVS, 1))
        row = {"observations": self.observations, "actions": column, "rewards": column, "next_observations": self.observations}
        row = {key: np.where(np.arange(ENVS)[:, None] == 1, bad, value) if key == name else value for key, value in row.items()}
        flags = np.zeros((ENVS, 1), bool)
        with pytest.raises(ValueError, match=f"{name} of environment 1 are"):
            self.record("host", terminated=flags, truncated=flags, **row)
        for env in self.environments:
            env.continues = False

    @rule()
    def interact(self) -> None:
        """The end of a timestep, at which it learns if it is due."""
        steps = 0
        if self.training and self.timestep >= LEARNING_STARTS:
            self.model.due, self.model.waiting = self.model.due + 1, self.model.waiting + 1
            if self.model.waiting == CHUNK:
                steps, self.model.due, self.model.waiting = self.model.due, 0, 0
        if steps and not self.agent.memory.written:
            with pytest.raises(ValueError, match="the memory is empty"):
                self.agent.post_interaction(**self.clock)
            return
        self.agent.post_interaction(**self.clock)
        self.model.gradient_steps += steps
        self.timestep += 1
        assert self.agent.environment_steps(self.timestep) == ENVS * self.timestep

    @rule()
    def update(self) -> None:
        if any(self.model.rows):
            self.agent.update(**self.clock)
            self.model.gradient_steps += 1
        elif not self.agent.memory.written:
            with pytest.raises(ValueError, match="the memory is empty"):
                self.agent.update(**self.clock)

    @rule(training=st.booleans(), models=st.booleans())
    def switch(self, training: bool, models: bool) -> None:
        self.agent.enable_training_mode(training, apply_to_models=models)
        self.training = training
        if not training:
            self.reset_environments(False)

    @rule()
    def begin_again(self) -> None:
        """The trainer resets all environments, and says so."""
        self.agent.init()
        self.reset_environments(True)
        self.reset_environments(False)

    @rule()
    def save(self) -> None:
        self.number_of_saves += 1
        path = self.directory / f"saved_{self.number_of_saves % 3}"
        self.agent.save(path)
        self.saved = [*self.saved[-2:], (path, copy.deepcopy(self.model))]

    @rule(which=st.integers(0, 2))
    def load(self, which: int) -> None:
        """One of the last checkpoints; the environments begin anew."""
        path, saved = self.saved[which % len(self.saved)]
        self.agent.load(path)
        self.model = copy.deepcopy(saved)
        self.reset_environments(True)
        self.reset_environments(False)

    @rule(before=st.lists(timestep, max_size=3), after=st.lists(timestep, min_size=1, max_size=3))
    def go_back(self, before: list[Timestep], after: list[Timestep]) -> None:
        """To the checkpoint that was just written, and on from there."""
        self.save()
        self.train(before, "host")
        self.load(len(self.saved) - 1)
        self.train(after, "host")

    @rule(timesteps=st.lists(timestep, min_size=1, max_size=3))
    def copy(self, timesteps: list[Timestep]) -> None:
        """A deep copy goes on by itself, and the agent knows nothing of it; unless copying is refused."""
        try:
            twin = copy.deepcopy(self.agent)
        except (TypeError, ValueError, RuntimeError):
            return
        known = copy.deepcopy((self.model, self.returns, self.counters))
        vars(self)["agent"] = twin
        for how, taken, dense, *_ in timesteps:
            self.step(how, taken, dense, "host")
        self.everything_is_as_it_must_be()
        del vars(self)["agent"]
        self.model, self.returns, self.counters = known

    def reset_environments(self, training: bool) -> None:
        for env in self.counters[training]:
            env.reset()

    @invariant()
    def everything_is_as_it_must_be(self) -> None:
        assert self.agent.training == self.training
        assert self.agent.gradient_step_count == self.model.gradient_steps
        assert self.agent.recent_returns == tuple(self.returns[True])
        assert self.known_returns(False) == tuple(self.returns[False])
        stored = self.agent.memory.arrays()
        names = ("observations", "actions", "rewards", "next_observations", "terminated", "first")
        for env, rows in enumerate(self.model.rows):
            head, size = int(stored["head"][env]), int(stored["size"][env])
            index = [((head - size + age) % SLOTS) * ENVS + env for age in range(size)]
            found = np.column_stack([stored[name][index].reshape(size) for name in names])
            assert found.tolist() == [list(row) for row in rows]


def run(backend: Backend, directory: Path, *, examples: int, steps: int) -> None:
    agent = backend.agent(
        SPACES,
        num_envs=ENVS,
        capacity=ENVS * SLOTS,
        hidden=(2,),
        batch_size=2,
        n_step=2,  # so that it is stored where episodes begin
        chunk=CHUNK,
        learning_starts=LEARNING_STARTS,
        random_timesteps=2,
        execution="plain",
    )
    agent.save(directory / "first")
    machine = type("Machine", (LifeCycle,), {"agent": agent, "backend": backend, "directory": directory})
    with without_shape_checks():
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=steps,
                suppress_health_check=list(HealthCheck),
                phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking a failure takes minutes; its steps are few as it is
            ),
        )


def test_any_order_of_calls_stores_counts_and_returns_what_it_must(backend: Backend, tmp_path: Path) -> None:
    run(backend, tmp_path, examples=30, steps=30)


@pytest.mark.full
def test_any_order_of_many_calls_stores_counts_and_returns_what_it_must(backend: Backend, tmp_path: Path) -> None:
    run(backend, tmp_path, examples=500, steps=50)
