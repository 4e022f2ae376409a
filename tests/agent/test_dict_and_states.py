"""Dict observations, which train as the Box of the same numbers does, and privileged states, which the critics alone see."""

from collections import OrderedDict
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from sacref import training
from sacref.algorithm.data import Batch, Noise
from sacref.preprocessing import RunningStandardScaler
from sacref.training.evaluation import evaluate
from tests.backends import BACKENDS, Backend, Spaces, box, draw_row, load_backend, without_shape_checks
from tests.envs.test_states import STATE, made
from tests.fake_agent import FakeAgent

backend = pytest.fixture(params=BACKENDS)(load_backend)

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
# Neither in the order of the alphabet, nor of one dtype, nor flat.
DICT = Dict(
    OrderedDict(
        [
            ("speed", box(-np.inf, np.inf, (1,), np.float64)),
            ("body", Dict(place=box(-np.inf, np.inf, (2, 1), np.float32), steps=box(0, 100, (), np.int16))),
        ]
    )
)
FLAT = box(-np.inf, np.inf, (4,), np.float64)
ACTION = box(-2.0, 2.0, (1,))


class Drift(gymnasium.Env[Any, Any]):
    """A point that is pushed about, in episodes of five steps that end there, or are cut off.

    Args:
        flat: whether the observation is a Box of the numbers in the order of `DICT`.
    """

    def __init__(self, flat: bool) -> None:
        self.observation_space: Any = FLAT if flat else DICT
        self.action_space = ACTION
        self.flat, self.steps, self.episodes = flat, 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.episodes = 0, self.episodes + 1
        self.place, self.speed = self.np_random.normal(size=(2, 1)).astype(np.float32), self.np_random.normal(size=1)
        return self._observe(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.speed = 0.9 * self.speed + action
        self.place = (self.place + 0.1 * self.speed).astype(np.float32)
        self.steps += 1
        ended = self.steps == 5
        return self._observe(), -float(np.square(self.place).sum()), ended and self.episodes % 2 == 0, ended and self.episodes % 2 == 1, {}

    def _observe(self) -> Any:
        if self.flat:
            return np.concatenate([self.speed, self.place[:, 0], [self.steps]])
        return {"speed": self.speed.copy(), "body": {"place": self.place.copy(), "steps": np.int16(self.steps)}}


WHOLE_RUNS: dict[str, tuple[AutoresetMode, dict[str, Any]]] = {
    "normalised": (AutoresetMode.SAME_STEP, {"observation_preprocessor": RunningStandardScaler, "n_step": 2}),
    "plain": (AutoresetMode.NEXT_STEP, {}),
    "recurrent": (
        AutoresetMode.DISABLED,
        {"algorithm": "SAC_RNN", "networks": {"recurrent": "gru", "recurrent_size": 4}, "sequence_length": 3},
    ),
}


IN_FULL = {("jax", "plain"), ("jax", "recurrent")}
"""Runs of the full run alone: JAX compiles them for long, and what a carry goes through is both backends'."""


@pytest.mark.parametrize(
    ("backend", "mode", "options"),
    [
        pytest.param(backend, *run, id=f"{backend}-{name}", marks=pytest.mark.full if (backend, name) in IN_FULL else ())
        for backend in BACKENDS
        for name, run in WHOLE_RUNS.items()
    ],
    indirect=["backend"],
)
def test_a_dict_trains_as_the_box_of_its_numbers(backend: Backend, mode: AutoresetMode, options: dict[str, Any]) -> None:
    found = []
    for flat in (True, False):
        agent = backend.agent(
            Spaces(FLAT if flat else DICT, ACTION),
            dtype="float64",
            num_envs=2,
            capacity=60,
            learning_starts=8,
            execution="plain",
            **options,
        )
        start = agent.arrays()
        vector = SyncVectorEnv([partial(Drift, flat)] * 2, autoreset_mode=mode)
        with without_shape_checks():
            training.run(agent, vector, timesteps=24, seed=3)
        assert agent.gradient_step_count == 16
        found.append((start, agent.arrays(), agent.memory.arrays()))
    (_, flat_arrays, flat_rows), (start, arrays, rows) = found
    learned = [name for name in arrays if not name.startswith("preprocessor.")]
    for name in learned:
        np.testing.assert_array_equal(arrays[name], flat_arrays[name], err_msg=name)
    assert not np.array_equal(arrays["policy.head.kernel"], start["policy.head.kernel"])
    for moment in ("mean", "variance") if "observation_preprocessor" in options else ():
        own = [arrays[f"preprocessor.observations.{leaf}.{moment}"].reshape(-1) for leaf in ("speed", "body.place", "body.steps")]
        np.testing.assert_array_equal(np.concatenate(own), flat_arrays[f"preprocessor.observations.{moment}"])
    # The memory keeps each array in its own dtype (floats in the agent's).
    assert rows["observations.body.steps"].dtype == np.int16
    assert rows["observations.body.place"].shape[1:] == (2, 1)
    for when in ("observations", "next_observations"):
        columns = [rows[f"{when}.{leaf}"].reshape(len(rows["rewards"]), -1) for leaf in ("speed", "body.place", "body.steps")]
        np.testing.assert_array_equal(np.concatenate(columns, axis=1), flat_rows[when])


def test_an_agent_of_a_dict_space_refuses_other_observations(backend: Backend) -> None:
    agent = backend.agent(Spaces(DICT, ACTION))
    row = draw_row(agent, np.random.default_rng(0))
    agent.record_transition(**row)
    for observations, message in (
        ({"speed": row["observations"]["speed"]}, r"lacks the keys \['body'\]"),
        (np.zeros((1, 4)), "expected a dict with the keys"),
        ({**row["observations"], "speed": np.full((1, 1), np.nan)}, r"observations.speed of environment 0 are not finite"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            agent.act(observations, None, timestep=0, timesteps=1)
        with pytest.raises((TypeError, ValueError), match=message):
            agent.record_transition(**{**row, "observations": observations})
    assert len(agent.memory) == 1


# States.

ASYMMETRIC = Spaces(box(-np.inf, np.inf, (2,), np.float64), ACTION, Box(-np.inf, np.inf, (3,), np.float64))


def test_the_critics_see_states_and_the_policy_sees_observations(backend: Backend) -> None:
    agent = backend.agent(ASYMMETRIC, dtype="float64", learning_rate=0.0, polyak=0.0)
    generator = np.random.default_rng(0)
    arrays = agent.arrays()
    assert (arrays["policy.hidden.0.kernel"].shape, arrays["critic_1.hidden.0.kernel"].shape) == ((2, 8), (4, 8))
    batch = Batch(
        observations=generator.normal(size=(4, 2)),
        states=generator.normal(size=(4, 3)),
        actions=generator.uniform(-0.9, 0.9, (4, 1)),
        rewards=generator.normal(size=4),
        next_observations=generator.normal(size=(4, 2)),
        next_states=generator.normal(size=(4, 3)),
        terminated=np.zeros(4, bool),
    )
    noise = Noise(next_actions=generator.normal(size=(4, 1)), actions=generator.normal(size=(4, 1)))
    plain = agent.update_on(batch, noise)
    # Metric -> which of the batch's inputs it depends on.
    reads = {
        "q_mean": {"states"},
        "entropy": {"observations"},
        "policy_loss": {"observations", "states"},
        "target_mean": {"next_observations", "next_states"},
    }
    for field in ("observations", "states", "next_observations", "next_states"):
        changed = agent.update_on(batch._replace(**{field: getattr(batch, field) + 1.0}), noise)
        assert {name for name in reads if np.any(changed[name] != plain[name])} == {
            name for name, fields in reads.items() if field in fields
        }

    observations = generator.normal(size=(1, 2))
    states = [None, np.zeros((1, 3)), np.ones((1, 3))]
    actions = [agent.act(observations, each, timestep=0, timesteps=1)[1]["mean_actions"] for each in states]
    assert len({agent.to_numpy(action).item() for action in actions}) == 1


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_stored_states_are_those_of_the_true_successors(backend: Backend, mode: AutoresetMode) -> None:
    vector = made(2, mode, lengths=(3, 2))
    spaces = Spaces(vector.single_observation_space, vector.single_action_space, STATE)
    agent = backend.agent(spaces, num_envs=2, dtype="float64", learning_starts=100)
    training.run(agent, vector, timesteps=11, seed=0, state_space=STATE)
    rows = agent.memory.arrays()
    assert rows["size"].min() >= 8
    numbers = np.arange(len(rows["rewards"])) % 2
    for observations, states in (("observations", "states"), ("next_observations", "next_states")):
        np.testing.assert_array_equal(rows[states], np.column_stack([rows[observations], numbers]))
    np.testing.assert_array_equal(rows["next_states"], rows["states"] + [0, 1, 0])  # never those of the next episode
    assert rows["terminated"].sum() >= 6


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_evaluation_hands_states_over(mode: AutoresetMode) -> None:
    agent, acted = FakeAgent(), []
    act = agent.act

    def spied(observations: Any, states: Any, **clock: int) -> Any:
        acted.append((observations.tolist(), states.tolist()))
        return act(observations, states, **clock)

    agent.act = spied  # type: ignore[method-assign]  # to see what it is called with.
    evaluate(agent, made(2, mode, lengths=(2, 3)), episodes=4, seed=0, state_space=STATE)
    assert len(agent.rows) == len(acted) >= 5
    for row, (observations, states) in zip(agent.rows, acted, strict=True):
        assert (row["observations"].tolist(), row["states"].tolist()) == (observations, states)
        for seen, privileged in ((row["observations"], row["states"]), (row["next_observations"], row["next_states"])):
            assert privileged.tolist() == [[*numbers, copy] for copy, numbers in enumerate(seen.tolist())]


def test_an_asymmetric_agent_is_evaluated_under_every_mode(backend: Backend) -> None:
    vectors = [made(2, mode, lengths=(3, 2)) for mode in MODES]
    spaces = Spaces(vectors[0].single_observation_space, vectors[0].single_action_space, STATE)
    agent = backend.agent(spaces, num_envs=2)
    found = [evaluate(agent, vector, episodes=4, state_space=STATE) for vector in vectors]
    assert found[0].returns == (6.0, 203.0, 6.0, 203.0)
    assert found == [found[0]] * 3
    assert len(agent.memory) == 0


def test_states_that_are_missing_or_not_expected_are_refused(backend: Backend) -> None:
    agent = backend.agent(ASYMMETRIC)
    row = draw_row(agent, np.random.default_rng(0))
    for name in ("states", "next_states"):
        with pytest.raises(ValueError, match=rf"^{name} are None, expected arrays as the state_space says"):
            agent.record_transition(**{**row, name: None})
        with pytest.raises(ValueError, match=rf"{name} have shape \(1, 2\), expected \(envs, \*\(3,\)\)"):
            agent.record_transition(**{**row, name: np.zeros((1, 2))})
        with pytest.raises(ValueError, match=rf"{name} of environment 0 are not finite"):
            agent.record_transition(**{**row, name: np.full((1, 3), np.inf)})
    assert len(agent.memory) == 0
    without = backend.agent(ASYMMETRIC._replace(state=None))
    with pytest.raises(ValueError, match="states were given, but this agent has no state_space"):
        without.record_transition(**{**row, "next_states": None})
