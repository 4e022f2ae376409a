"""Recurrent agents: what is carried from step to step, what of it is stored, and what an update makes of sequences."""

import importlib
import logging
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from sacref import training
from sacref.algorithm.data import Noise, Sequences
from sacref.config import ConfigError
from sacref.storage.naming import under
from sacref.training.evaluation import evaluate
from tests.agent.test_execution import FUSED, assert_close, fused_agent
from tests.backends import (
    BACKENDS,
    Backend,
    Spaces,
    assert_same_arrays,
    box,
    draw_row,
    forward,
    jax_in_full,
    load_backend,
    without_shape_checks,
)
from tests.envs.counting import CountingEnv

backend = pytest.fixture(params=BACKENDS)(load_backend)

SPACES = Spaces(box(-np.inf, np.inf, (2,), np.float64), box(-1.0, 1.0, (1,), np.float64))
SIZE = 4
MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
RECURRENT: dict[str, Any] = {
    "algorithm": "SAC_RNN",
    "networks": {"recurrent": "gru", "recurrent_size": SIZE},
    "dtype": "float64",
    "sequence_length": 4,
    "capacity": 64,
    "execution": "plain",  # recording is what takes long
}


def recurrent(backend: Backend, **options: Any) -> Any:
    return backend.agent(SPACES, **{**RECURRENT, **options})


def user(backend: Backend) -> ModuleType:
    return importlib.import_module(f"tests.{backend.name}.recurrent_user_models")


class Scored(CountingEnv):
    """The reward is the action, so that a return tells which actions were taken."""

    def step(self, action: NDArray[np.float32]) -> Any:
        observation, _, *rest = super().step(action)
        return observation, float(action[0]), *rest


class Loop:
    """The calls of a training loop, under NEXT_STEP, without a new `init` for each part of it."""

    def __init__(self, agent: Any, *lengths: tuple[int, ...]) -> None:
        self.agent, self.timestep = agent, 0
        self.envs = SyncVectorEnv([partial(CountingEnv, own) for own in lengths or ((3, 6),)])
        self.observations, _ = self.envs.reset(seed=0)

    def run(self, timesteps: int) -> NDArray[Any]:
        """The actions, `(timesteps, envs, action)`."""
        actions = []
        for _ in range(timesteps):
            clock = {"timestep": self.timestep, "timesteps": 1000}
            actions.append(self.agent.to_numpy(self.agent.act(self.observations, None, **clock)[0]))
            following, rewards, terminated, truncated, infos = self.envs.step(actions[-1])
            self.agent.record_transition(
                observations=self.observations,
                states=None,
                actions=actions[-1],
                rewards=rewards[:, None],
                next_observations=following,
                next_states=None,
                terminated=terminated[:, None],
                truncated=truncated[:, None],
                infos=infos,
                **clock,
            )
            self.agent.post_interaction(**clock)
            self.observations, self.timestep = following, self.timestep + 1
        return np.stack(actions)


def stored(agent: Any) -> list[dict[str, NDArray[Any]]]:
    """The rows of each environment, in order, of a ring that is not full."""
    arrays, envs = agent.memory.arrays(), agent.memory.num_envs
    sizes, _ = arrays.pop("size"), arrays.pop("head")
    return [{name: array[index::envs][: sizes[index]] for name, array in arrays.items()} for index in range(envs)]


# The models by hand.


def gru(arrays: Any, model: str, inputs: NDArray[Any], carry: NDArray[Any]) -> NDArray[Any]:
    """The cell of a default model by hand (PyTorch's equations): `(time, batch, size)`."""
    cell, outputs = under(arrays, f"{model}.cell"), []
    for x in inputs:
        from_input = np.split(x @ cell["input.kernel"] + cell["input.bias"], 3, axis=-1)
        from_hidden = np.split(carry @ cell["hidden.kernel"] + cell["hidden.bias"], 3, axis=-1)
        reset, update = (1 / (1 + np.exp(-(a + b))) for a, b in zip(from_input[:2], from_hidden[:2], strict=True))
        carry = (1 - update) * np.tanh(from_input[2] + reset * from_hidden[2]) + update * carry
        outputs.append(carry)
    return np.stack(outputs)


def outputs_of(arrays: Any, model: str, sequences: Any, carry: NDArray[Any], actions: NDArray[Any] | None = None) -> NDArray[Any]:
    """What a default model gives at each step of `observations` and `previous_actions`, by hand: `(time, batch, outputs)`."""
    hidden = gru(arrays, model, np.concatenate([sequences.observations, sequences.previous_actions], -1), carry)
    parts = [hidden, sequences.observations, *([] if actions is None else [actions])]
    return forward(arrays, model, np.concatenate(parts, -1))


def sampled(outputs: NDArray[Any], noise: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Actions and their log-probabilities."""
    mean, log_std = np.split(outputs, 2, axis=-1)
    log_std = np.clip(log_std, -20, 2)
    u = mean + np.exp(log_std) * noise
    log_prob = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi) - np.log1p(-(np.tanh(u) ** 2))
    return np.tanh(u), log_prob.sum(-1)


# One step at a time.


@jax_in_full
def test_sequences_of_one_step_and_plain_models_are_sac_exactly(backend: Backend) -> None:
    taken: list[list[NDArray[Any]]] = []
    agents = []
    common: dict[str, Any] = {"dtype": "float64", "capacity": 40, "random_timesteps": 5, "learning_starts": 20, "execution": "plain"}
    for options in ({}, {"algorithm": "SAC_RNN", "sequence_length": 1}):
        agent = backend.agent(SPACES, **common, **options)
        agents.append(agent)
        actions: list[NDArray[Any]] = []
        act = agent.act

        def spied(*args: Any, act: Any = act, agent: Any = agent, actions: Any = actions, **kwargs: Any) -> Any:
            chosen, extras = act(*args, **kwargs)
            actions.append(agent.to_numpy(chosen))
            return chosen, extras

        agent.act = spied
        taken.append(actions)
        with without_shape_checks():
            training.run(agent, SyncVectorEnv([partial(CountingEnv, (3, 1, 7))]), timesteps=60, seed=0)
    assert agents[0].gradient_step_count == 40
    (rows, sequences), (arrays, others) = ([agent.memory.arrays() for agent in agents], [agent.arrays() for agent in agents])
    assert set(sequences) - set(rows) == {"first", "previous_actions", "previous_rewards"}
    pairs = {name: (arrays[name], others[name]) for name in arrays} | {name: (rows[name], sequences[name]) for name in rows}
    for name, (one, other) in {**pairs, "actions taken": (np.stack(taken[0]), np.stack(taken[1]))}.items():
        # Bit for bit in PyTorch. XLA adds up the rows of a gradient in an order of its own choice for each shape.
        np.testing.assert_allclose(other, one, rtol=0 if backend.name == "torch" else 1e-12, err_msg=name)


# Acting and storing.


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_trap_15_and_trap_16_a_row_is_stored_with_the_carry_before_its_observation(backend: Backend, mode: AutoresetMode) -> None:
    """From the first, random steps on, and from nothing at all where an episode begins: of each environment for itself."""
    envs = SyncVectorEnv([partial(CountingEnv, (3, 1, 4)), partial(CountingEnv, (2, 5), truncates=True)], autoreset_mode=mode)
    agent = recurrent(backend, num_envs=2, random_timesteps=4, learning_starts=1000)
    arrays, greedy, act = agent.arrays(), [], agent.act

    def spied(*args: Any, **kwargs: Any) -> Any:
        actions, extras = act(*args, **kwargs)
        greedy.append(agent.to_numpy(extras["mean_actions"]))
        return actions, extras

    agent.act = spied
    training.run(agent, envs, timesteps=13, seed=0)
    for index, rows in enumerate(stored(agent)):
        episodes = rows["observations"][:, 0]
        begins = np.append(True, episodes[1:] != episodes[:-1])
        np.testing.assert_array_equal(rows["first"], begins)
        assert begins.sum() >= 3
        carry, previous_action, previous_reward = np.zeros((1, SIZE)), np.zeros(1), 0.0
        for row in range(len(episodes)):
            if begins[row]:
                carry, previous_action, previous_reward = np.zeros((1, SIZE)), np.zeros(1), 0.0
            np.testing.assert_allclose(rows["carry"][row], carry[0], rtol=0, atol=1e-12)
            np.testing.assert_array_equal(rows["previous_actions"][row], previous_action)
            assert rows["previous_rewards"][row] == previous_reward
            observation = rows["observations"][row][None, None]
            (carry,) = gru(arrays, "policy", np.concatenate([observation, previous_action[None, None]], -1), carry)
            mean = forward(arrays, "policy", np.concatenate([carry, observation[0]], -1))[0, :1]
            if mode != AutoresetMode.NEXT_STEP:  # under which not every action makes a row
                np.testing.assert_allclose(greedy[row][index], np.tanh(mean), rtol=0, atol=1e-12)
            previous_action, previous_reward = rows["actions"][row], rows["rewards"][row]
        assert np.abs(rows["carry"][~begins]).min(axis=1).max() > 1e-3
        assert np.abs(rows["carry"][1]).max() > 1e-3  # a random step moves it as well


def test_evaluation_has_carries_of_its_own(backend: Backend) -> None:
    agent, twin = (recurrent(backend, learning_starts=1000) for _ in range(2))

    def evaluated() -> Any:
        # The first copy's next episode is running when the second's is finished.
        return evaluate(agent, SyncVectorEnv([partial(Scored, (3, 9)), partial(Scored, (5,))]), episodes=2)

    loops = [Loop(agent), Loop(twin)]
    for loop in loops:
        loop.run(5)
    found = [evaluated() for _ in range(2)]
    agent.enable_training_mode(False)
    found += [evaluated() for _ in range(2)]
    agent.enable_training_mode(True)
    assert found == [found[0]] * 4
    carry, previous, total = np.zeros((1, SIZE)), np.zeros((1, 1)), 0.0
    for step in range(3):
        observation = np.array([[0.0, step]])
        (carry,) = gru(agent.arrays(), "policy", np.concatenate([observation, previous], -1)[None], carry)
        previous = np.tanh(forward(agent.arrays(), "policy", np.concatenate([carry, observation], -1))[:, :1])
        total += previous.item()
    assert found[0].returns[0] == pytest.approx(total, rel=1e-6)  # actions are float32 to the environment
    actions = [loop.run(3) for loop in loops]
    np.testing.assert_array_equal(actions[0], actions[1])
    assert_same_arrays(agent.memory.arrays(), twin.memory.arrays())


def test_the_kind_of_the_arrays_may_change_between_the_calls(backend: Backend) -> None:
    """Observations of NumPy, rows of the backend's own arrays: nothing that is carried gets lost between them."""
    agents = [recurrent(backend, learning_starts=1000) for _ in range(2)]
    loops = [Loop(agent) for agent in agents]
    record = agents[1].record_transition

    def upload(*, infos: Any, timestep: int, timesteps: int, **row: Any) -> None:
        arrays = {name: None if value is None else backend.array(value) for name, value in row.items()}
        record(**arrays, infos=infos, timestep=timestep, timesteps=timesteps)

    agents[1].record_transition = upload
    actions = [loop.run(5) for loop in loops]
    np.testing.assert_allclose(actions[0], actions[1], rtol=0, atol=1e-6)
    rows, others = (agent.memory.arrays() for agent in agents)
    for name in rows:
        np.testing.assert_allclose(rows[name], others[name], rtol=0, atol=1e-6, err_msg=name)


def test_rows_of_another_policy_are_stored_with_an_initial_carry(backend: Backend) -> None:
    """Recorded without an act, as demonstrations are: nobody knows what this policy would have carried."""
    agent, generator = recurrent(backend), np.random.default_rng(0)
    for step in range(6):
        agent.record_transition(**draw_row(agent, generator, terminated=np.array([[step == 2]])))
    (rows,) = stored(agent)
    np.testing.assert_array_equal(rows["first"], [True, False, False, True, False, False])
    for name in ("actions", "rewards"):
        wanted = np.append(np.zeros_like(rows[name][:1]), rows[name][:-1], axis=0)
        wanted[3] = 0.0
        np.testing.assert_array_equal(rows[f"previous_{name}"], wanted)
        assert wanted[[1, 2, 4, 5]].all()
    np.testing.assert_array_equal(rows["carry"], np.zeros((6, SIZE)))


# Updates.

TIME, BATCH = 4, 3


def draw_sequences(seed: int = 0) -> tuple[Any, Any]:
    """Sequences and their noise for `update_on`; one of them warms up for two steps, one is padded from its third step on."""
    generator = np.random.default_rng(seed)
    done = generator.uniform(-0.9, 0.9, (TIME + 1, BATCH, 1))
    mask = np.ones((TIME, BATCH), bool)
    mask[:2, 0] = mask[2:, 1] = False
    sequences = Sequences(
        observations=generator.normal(size=(TIME + 1, BATCH, 2)),
        states=None,
        previous_actions=done,
        previous_rewards=generator.normal(size=(TIME + 1, BATCH)),
        actions=done[1:],
        rewards=generator.normal(size=(TIME, BATCH)),
        terminated=generator.random((TIME, BATCH)) < 0.3,
        mask=mask,
        carry=generator.normal(size=(BATCH, SIZE)),
    )
    noise = generator.normal(size=(2, TIME, BATCH, 1))
    return sequences, Noise(next_actions=noise[0], actions=noise[1])


@pytest.fixture(scope="module", params=BACKENDS)
def still(request: pytest.FixtureRequest) -> Any:
    """An agent whose steps change no parameter, and whose targets differ from its critics."""
    backend = load_backend(request)
    agent = recurrent(backend, learning_rate=0.0, polyak=0.0, discount_factor=0.9)
    arrays, generator = agent.arrays(), np.random.default_rng(1)
    moved = {name: array + 0.1 * generator.normal(size=array.shape) for name, array in arrays.items() if name.startswith("target_")}
    agent.set_arrays({**arrays, **moved})
    agent.keep_gradients()
    return agent


def test_trap_18_one_pass_gives_the_values_now_and_next_and_each_network_has_its_own_carry(still: Any) -> None:
    sequences, noise = draw_sequences()
    arrays, zeros, alpha = still.arrays(), np.zeros((BATCH, SIZE)), 0.2
    metrics = still.update_on(sequences, noise)

    def values(prefix: str, actions: NDArray[Any], steps: slice) -> NDArray[Any]:
        filled = np.zeros((TIME + 1, BATCH, 1))
        filled[steps] = actions
        found = [outputs_of(arrays, f"{prefix}critic_{number}", sequences, zeros, filled)[steps, :, 0] for number in (1, 2)]
        return np.stack(found)

    now, following = slice(0, -1), slice(1, None)
    policy = outputs_of(arrays, "policy", sequences, sequences.carry)
    next_actions, next_log_prob = sampled(policy[following], noise.next_actions)
    next_q = values("target_", next_actions, following).min(0)
    target = sequences.rewards + 0.9 * ~sequences.terminated * (next_q - alpha * next_log_prob)
    actions, log_prob = sampled(policy[now], noise.actions)
    q, mask = values("", sequences.actions, now), sequences.mask
    wanted = {
        "target_mean": target[mask].mean(),
        "target_min": target[mask].min(),
        "q_max": q[:, mask].max(1),
        "critic_loss": 0.5 * ((q - target) ** 2)[:, mask].mean(1).sum(),
        "entropy": -log_prob[mask].mean(),
        "policy_loss": (alpha * log_prob - values("", actions, now).min(0))[mask].mean(),
    }
    for name, number in wanted.items():
        np.testing.assert_allclose(metrics[name], number, rtol=1e-11, err_msg=name)


def measured(agent: Any, sequences: Any) -> dict[str, NDArray[Any]]:
    """Metrics and gradients of an update on the sequences."""
    metrics = agent.update_on(sequences, draw_sequences()[1])
    return {**metrics, **agent.gradients()}


def test_trap_19_padding_and_burn_in_are_in_no_loss(still: Any) -> None:
    sequences, _ = draw_sequences()
    plain = measured(still, sequences)
    assert all(np.abs(plain[name]).max() > 0 for name in ("policy.cell.hidden.kernel", "critic_1.cell.hidden.kernel", "log_alpha"))
    uncounted = ~sequences.mask
    elsewhere = sequences._replace(
        rewards=sequences.rewards + 100.0 * uncounted,
        terminated=sequences.terminated ^ uncounted,
        actions=np.where(uncounted[..., None], 0.5, sequences.actions),
    )
    assert_same_arrays(measured(still, elsewhere), plain)
    # What a padded sequence shows after the last successor is seen by nobody either.
    padding = sequences.observations.copy()
    padding[3:, 1] = 7.0
    assert_same_arrays(measured(still, sequences._replace(observations=padding)), plain)

    # And the other way round: a step that counts does, and a step of the burn-in reaches the rest through the carries.
    counted = sequences.rewards.copy()
    counted[2, 0] += 100.0
    assert measured(still, sequences._replace(rewards=counted))["critic_loss"] > plain["critic_loss"] + 100
    warm_up = sequences.observations.copy()
    warm_up[0, 0] += 1.0
    changed = measured(still, sequences._replace(observations=warm_up))
    assert abs(changed["q_mean"] - plain["q_mean"]).min() > 1e-6
    assert abs(changed["entropy"] - plain["entropy"]) > 1e-6


# test_fused_step holds JAX's one by one, too.
@pytest.mark.parametrize(
    "name, execution",
    [pytest.param(*case.values, marks=pytest.mark.full if "jax" in case.values else (), id=case.id) for case in FUSED],
)
def test_fused_updates_of_sequences_equal_plain_ones(name: str, execution: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name)
    options: dict[str, Any] = {**RECURRENT, "spaces": SPACES, "burn_in": 2, "gradient_steps": 4, "learning_starts": 1000}
    plain = Backend(name).agent(**options)
    fused = fused_agent(name, options.pop("execution") and execution, monkeypatch, **options)
    start = plain.arrays()
    with without_shape_checks():
        for agent in (plain, fused):
            Loop(agent).run(20)
            for _ in range(5):
                agent.update(timestep=0, timesteps=1)
    assert (plain.execution, fused.execution, fused.gradient_step_count) == ("plain", execution, 20)
    assert_close(fused.arrays(), plain.arrays())
    for array in ("policy.cell.hidden.kernel", "critic_2.cell.input.bias"):
        assert np.abs(fused.arrays()[array] - start[array]).max() > 1e-3


def test_a_loaded_agent_goes_on_bit_for_bit_with_the_next_episode(backend: Backend, tmp_path: Path) -> None:
    agent, other = (recurrent(backend, seed=seed) for seed in (0, 1))
    with without_shape_checks():
        Loop(agent).run(10)
        Loop(other).run(7)
        agent.save(tmp_path / "saved")
        other.load(tmp_path / "saved")
        assert_same_arrays(other.memory.arrays(), agent.memory.arrays())
        agent.init()
        actions = [Loop(each).run(6) for each in (agent, other)]  # the other one begins anew by having been loaded
    np.testing.assert_array_equal(actions[0], actions[1])
    assert_same_arrays(other.arrays(), agent.arrays())
    assert_same_arrays(other.memory.arrays(), agent.memory.arrays())
    rows = stored(other)[0]
    began = len(rows["first"]) - 5  # the row of a reset is none
    np.testing.assert_array_equal(rows["first"][began : began + 2], [True, False])
    assert not rows["carry"][began].any()


# Models of a user's own.


def test_models_of_a_users_own_have_any_carry(backend: Backend) -> None:
    models = user(backend).user_models(2, 1)
    agent = recurrent(backend, models=models, dtype="float32", sequence_length=3, num_envs=2)
    start = agent.arrays()
    Loop(agent, (3, 6), (2, 4)).run(8)
    for rows in stored(agent):
        # The second part of the carry counts the steps of the episode, and so does the environment.
        np.testing.assert_array_equal(rows["carry.1"][:, 0], rows["observations"][:, 1])
        assert rows["carry.1"].max() >= 3
        assert rows["carry.0"].shape[1:] == (SIZE,)
    assert agent.gradient_step_count == 6
    changed = {name.split(".")[0] for name, array in agent.arrays().items() if not np.array_equal(array, start[name])}
    assert {"policy", "critic_1", "critic_2", "target_critic_1"} <= changed


@pytest.mark.parametrize(
    "model, part, change, message",
    [
        (
            "policy",
            "returns",
            lambda outputs: outputs[:2],
            r"'policy' has initial_carry and returned a tuple of 2, expected .*log_std, carry",
        ),
        (
            "policy",
            "returns",
            lambda outputs: outputs[0],
            r"'policy' has initial_carry and returned .*, expected a tuple \(mean, raw log_std",
        ),
        (
            "critic_2",
            "returns",
            lambda outputs: outputs[0],
            r"'critic_2' has initial_carry and returned .*, expected a tuple \(values, carry",
        ),
        (
            "policy",
            "returns",
            lambda outputs: (*outputs[:2], (outputs[2][0][:, :2], outputs[2][1])),
            r"'policy' returned a carry of shapes \[\(3, 2\), \(3, 1\)\], expected \[\(3, 4\), \(3, 1\)\]",
        ),
        (
            "critic_1",
            "returns",
            lambda outputs: (outputs[0], outputs[1][:1]),
            r"'critic_1' returned a carry of shapes \[\(3, 4\)\], expected",
        ),
        (
            "policy",
            "returns",
            lambda outputs: (outputs[0][-1], *outputs[1:]),
            r"a mean of shape \(3, 1\) .*\(time, batch, action\) = \(2, 3, 1\)",
        ),
        (
            "critic_1",
            "returns",
            lambda outputs: (outputs[0][-1], outputs[1]),
            r"values of shape \(3,\) .*expected \(time, batch\) = \(2, 3\)",
        ),
        ("policy", "carries", lambda carry: (carry[0][None], carry[1]), r"gives initial_carry\(3\) of shapes .*put the batch axis first"),
    ],
    ids=lambda value: None if callable(value) else str(value),
)
def test_models_that_do_not_fit_are_refused(backend: Backend, model: str, part: str, change: Any, message: str) -> None:
    models = user(backend).user_models(2, 1)
    models[model] = getattr(user(backend), part)(models[model], change)
    with pytest.raises(ValueError, match=message):
        recurrent(backend, models=models, dtype="float32")


def test_a_carry_before_an_episode_is_a_constant_of_any_kind_of_number(backend: Backend) -> None:
    """Parameters that nothing trains would stay what they were, and be left alone by a load."""
    models = user(backend).user_models(2, 1)
    agent = recurrent(backend, models={**models, "policy": user(backend).Begins(2, 1, learns=False)}, dtype="float32", num_envs=2)
    Loop(agent, (3, 6), (2, 4)).run(8)
    for rows in stored(agent):
        np.testing.assert_array_equal(rows["carry.1"][:, 0], rows["observations"][:, 1])
        np.testing.assert_array_equal(rows["carry.0"][rows["first"]], np.full((rows["first"].sum(), SIZE), 0.5))
    agent.set_live_state(agent.live_state())
    with pytest.raises(ValueError, match="'policy' has an initial_carry that reads parameters which learn, expected a constant"):
        recurrent(backend, models={**models, "policy": user(backend).Begins(2, 1, learns=True)}, dtype="float32")
    models["critic_2"] = user(backend).carries(models["critic_2"], list)
    with pytest.raises(TypeError, match="'critic_2' gives an initial_carry of type list, expected an array, or a tuple or dict of arrays"):
        recurrent(backend, models=models, dtype="float32")


def test_without_stored_carries_the_policy_starts_from_its_models_initial_one(backend: Backend) -> None:
    def metrics(stored_carry: bool, carry: float) -> dict[str, NDArray[Any]]:
        models = user(backend).user_models(2, 1)
        models["policy"] = user(backend).carries(models["policy"], lambda initial: (initial[0] + 0.5, initial[1]))
        agent = recurrent(backend, models=models, dtype="float32", stored_carry=stored_carry)
        sequences, noise = draw_sequences()
        found: dict[str, NDArray[Any]] = agent.update_on(
            sequences._replace(carry=(np.full((BATCH, SIZE), carry), np.zeros((BATCH, 1)))), noise
        )
        return found

    plain = metrics(False, 0.0)
    assert_same_arrays(metrics(False, 2.0), plain)  # what was stored is read by nobody
    assert_same_arrays(metrics(True, 0.5), plain)
    assert abs(metrics(True, 0.0)["entropy"] - plain["entropy"]) > 1e-3


def test_recurrent_models_are_refused_by_sac(backend: Backend) -> None:
    with pytest.raises(ValueError, match=r"\['critic_1', 'critic_2', 'policy'\] have an initial_carry.*give them to SAC_RNN"):
        recurrent(backend, algorithm="SAC", sequence_length=32, burn_in=0)  # as SAC has them


# What does not go together, and what is said.


@pytest.mark.parametrize(
    "options, message", [({"n_step": 2}, "n_step is 2, expected 1"), ({"overlap": True}, "overlap is True, expected False")]
)
def test_options_that_sequences_do_not_have_are_refused(backend: Backend, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"{message} for SAC_RNN"):
        recurrent(backend, **options)


def test_it_waits_for_a_sequence_and_says_so_once(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    agent = recurrent(backend)
    loop = Loop(agent, (2, 50))
    with caplog.at_level(logging.INFO, logger="sacref"):
        counts = []
        for _ in range(7):
            loop.run(1)
            counts.append(agent.gradient_step_count)
    assert counts == [0, 0, 0, 1, 2, 3, 4]
    waits = [record.getMessage() for record in caplog.records if "learning waits" in record.getMessage()]
    assert waits == ["learning waits: 1 timesteps are stored, sequence_length is 4"]


def test_episodes_shorter_than_a_sequence_are_pointed_out_once(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    def padded() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name.startswith("sacref") and record.levelno == logging.WARNING]

    agent = recurrent(backend, num_envs=2, learning_starts=1000)
    Loop(agent, (5, 4), (4,)).run(12)
    assert padded() == []
    loop = Loop(agent, (5, 3, 2), (9,))
    agent.init()
    loop.run(15)
    (message,) = padded()
    assert message.startswith("an episode ended after 3 steps, sequence_length is 4: its sequences are padded")
