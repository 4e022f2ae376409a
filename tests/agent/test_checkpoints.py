"""Saving and loading on both backends: everything that changes what the next step does is state."""

import copy
import itertools
import logging
import pickle
import shutil
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from sacref.agent.checkpoints import REPLAY
from sacref.config import ExperimentConfig
from sacref.parity.compare import difference
from sacref.preprocessing import RunningStandardScaler
from sacref.storage import checkpoint
from sacref.storage.checkpoint import CheckpointError
from sacref.storage.replay_log import ReplayLog
from tests.agent.test_models import user
from tests.backends import BACKENDS, Backend, Spaces, assert_same_arrays, box, draw_batch, draw_row, fill, installed_backends, load_backend

backend = pytest.fixture(params=BACKENDS)(load_backend)


def trained(backend: Backend, seed: int = 3, **options: Any) -> Any:
    """An agent in the middle of a run, its ring full and its head in the middle."""
    agent = backend.agent(num_envs=2, seed=seed, learning_rate=1e-2, **options)
    fill(agent, 20, seed)
    agent.act(np.zeros((2, 3)), None, timestep=0, timesteps=1)
    for _ in range(3):
        agent.update(timestep=0, timesteps=1)
    return agent


def live(agent: Any) -> list[Any]:
    """What the agent does next: act, store, learn."""
    generator = np.random.default_rng(8)
    seen: list[Any] = []
    for _ in range(2):
        row = draw_row(agent, generator)
        actions, extras = agent.act(row["observations"], None, timestep=0, timesteps=1)
        seen += [agent.to_numpy(actions), agent.to_numpy(extras["mean_actions"])]
        agent.record_transition(**row)
        agent.update(timestep=0, timesteps=1)
    return seen


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "fixed temperature": {"learn_entropy": False},
    "a file for each model": {"store_separately": True},
    "float64": {"dtype": "float64"},
    "all that has a state": {
        "observation_preprocessor": RunningStandardScaler,
        "learning_rate_scheduler": ("cosine", "kl_adaptive", "linear"),
        "learning_rate_scheduler_kwargs": ({"steps": 9}, {"kl_threshold": 1e-3}, {"steps": 9}),
        "grad_norm_clip": 0.5,
        "policy_delay": 2,
        "n_step": 2,
        "num_critics": 3,
        "target_subset": 2,
        "networks": {"dropout": 0.25, "layer_norm": True},
    },
}


def _cases() -> Iterator[Any]:
    """Backends and options. JAX compiles two fast ways, with and without an action behind the update, or one plain.

    The short run has one plain case on JAX, that of all states.
    """
    for backend, (name, options) in itertools.product(BACKENDS, OPTIONS.items()):
        fast = backend == "torch" or name in ("plain", "a file for each model")
        yield pytest.param(backend, options, id=f"{backend}-{name}", marks=() if fast else pytest.mark.full)
        if backend == "jax" and name == "all that has a state":
            yield pytest.param(backend, {**options, "execution": "plain"}, id=f"{backend}-{name}, executed plainly")


def two_boxes(first: str, second: str) -> gymnasium.spaces.Dict:
    return gymnasium.spaces.Dict(OrderedDict([(first, box(-1, 1, (2,))), (second, box(-1, 1, (2,)))]))


OTHER_SPACES: dict[str, tuple[Spaces, Spaces, str]] = {
    "action bounds": (
        Spaces(action=box(-1, 1, (2,))),
        Spaces(action=box(-100, 100, (2,))),
        r"action_space.low is -1.0 at 0, expected -100.0; action_space.high is 1.0 at 0, expected 100.0",
    ),
    "shape of actions": (
        Spaces(action=box(-1, 1, (2, 1))),
        Spaces(action=box(-1, 1, (2,))),
        r"action_space has shape \[2, 1\], expected \[2\]",
    ),
    "units of observations": (
        Spaces(observation=box(0, 255, (3,), np.uint8)),
        Spaces(observation=box(0, 1, (3,))),
        "observation_space has dtype 'uint8', expected float32",
    ),
    "order of keys": (
        Spaces(observation=two_boxes("a", "b")),
        Spaces(observation=two_boxes("b", "a")),
        r"observation_space has the keys \['a', 'b'\], expected \['b', 'a'\]",
    ),
    "bounds of states": (
        Spaces(state=box(-1, 1, (2,))),
        Spaces(state=box(-1, 2, (2,))),
        "state_space.high is 1.0 at 0, expected 2.0",
    ),
}


@pytest.mark.parametrize("case", OTHER_SPACES.values(), ids=OTHER_SPACES)
def test_a_checkpoint_of_other_spaces_is_refused_by_name(backend: Backend, tmp_path: Path, case: tuple[Spaces, Spaces, str]) -> None:
    saved, own, message = case
    backend.agent(saved, seed=1).save(tmp_path / "saved")
    agent = backend.agent(own, seed=2)
    before = agent.arrays()
    with pytest.raises(CheckpointError, match=f"is of an agent for other spaces: {message}: construct the agent with the spaces that"):
        agent.load(tmp_path / "saved")
    assert_same_arrays(agent.arrays(), before)


def test_a_checkpoint_that_does_not_say_its_spaces_loads_and_one_that_says_nonsense_does_not(backend: Backend, tmp_path: Path) -> None:
    agent, other = backend.agent(seed=1), backend.agent(seed=2)
    agent.save(tmp_path / "saved")
    groups, metadata = checkpoint.read(tmp_path / "saved")
    nonsense: list[Any] = [
        {},
        [],
        None,
        {**metadata["spaces"], "action_space": {"shape": [2], "dtype": "float32", "low": "x", "high": 1.0}},
    ]
    for spaces in nonsense:
        checkpoint.write(tmp_path / "changed", groups, {**metadata, "spaces": spaces})
        with pytest.raises(CheckpointError, match="is damaged or foreign, its spaces are none"):
            other.load(tmp_path / "changed")
    del metadata["spaces"]
    checkpoint.write(tmp_path / "changed", groups, metadata)
    other.load(tmp_path / "changed")
    assert_same_arrays(other.arrays(), agent.arrays())


@pytest.mark.parametrize(("backend", "options"), list(_cases()), indirect=["backend"])
def test_trap_20_a_loaded_agent_goes_on_bit_for_bit(backend: Backend, tmp_path: Path, options: dict[str, Any]) -> None:
    if "store_separately" in options:
        options = {"experiment": ExperimentConfig(write_interval=0, checkpoint_interval=0, store_separately=True)}
    agent = trained(backend, **options)
    agent.save(tmp_path / "saved")
    # Another seed, another past: nothing of it may be left.
    other = trained(backend, seed=4, **options)
    other.update(timestep=0, timesteps=1)
    assert not np.array_equal(other.arrays()["log_alpha"], agent.arrays()["log_alpha"]) or "learn_entropy" in options
    other.load(tmp_path / "saved")
    assert_same_arrays(other.arrays(), agent.arrays())
    assert_same_arrays(other.memory.arrays(), agent.memory.arrays())
    assert_same_arrays(other.learner.stream_states(), agent.learner.stream_states())
    assert other.gradient_step_count == agent.gradient_step_count == 3
    agent.init()  # the loaded agent begins episodes anew
    for a, b in zip(live(agent), live(other), strict=True):
        np.testing.assert_array_equal(a, b)
    assert_same_arrays(other.arrays(), agent.arrays())
    assert_same_arrays(other.memory.arrays(), agent.memory.arrays())
    assert agent.gradient_step_count == 5


def test_trap_20_the_checkpoint_holds_everything(backend: Backend, tmp_path: Path) -> None:
    agent = trained(backend)
    agent.save(tmp_path / "saved")
    read = checkpoint.read(tmp_path / "saved")
    assert set(read.groups) == {"agent", "streams", "memory"}
    arrays = read.groups["agent"]
    assert arrays["log_alpha"] != np.float32(np.log(0.2))
    assert int(arrays["gradient_steps"]) == 3
    for slot, part in {"policy_optimizer": "head.kernel", "critic_optimizer": "critic_2.head.kernel", "temperature_optimizer": ""}.items():
        assert int(arrays[f"{slot}.count"]) == 3
        for moment in ("first_moment", "second_moment"):
            assert np.all(arrays[f"{slot}.{moment}.{part}".rstrip(".")] != 0)
    # A ring of 16 rows for each of the two environments, which 20 rows have come by.
    assert [read.groups["memory"][name].tolist() for name in ("size", "head")] == [[16, 16], [4, 4]]
    assert set(read.groups["streams"]) == {"noise", "sampling", "exploration"}
    assert not any(path.suffix in (".pt", ".pkl", ".npz") for path in (tmp_path / "saved").iterdir())


@pytest.mark.parametrize("in_segments", [False, True])
def test_trap_21_what_is_sampled_after_a_load_is_what_was_saved(backend: Backend, tmp_path: Path, in_segments: bool) -> None:
    agent, other = trained(backend), trained(backend, seed=4)
    agent.save(tmp_path / "saved", replay=ReplayLog(tmp_path / REPLAY) if in_segments else None)
    own, saved = ({row.tobytes() for row in each.memory.arrays()["rewards"]} for each in (other, agent))
    assert not own & saved
    other.load(tmp_path / "saved")
    before = other.arrays()
    other.update(timestep=0, timesteps=1)
    again = backend.agent(num_envs=2, seed=4, learning_rate=1e-2)
    again.load(tmp_path / "saved")
    again.update(timestep=0, timesteps=1)
    # Another past of the memory changes nothing, and the update is the one that the first agent would have made.
    agent.update(timestep=0, timesteps=1)
    assert_same_arrays(other.arrays(), agent.arrays())
    assert_same_arrays(again.arrays(), agent.arrays())
    assert not np.array_equal(before["policy.head.kernel"], other.arrays()["policy.head.kernel"])


def test_store_separately_writes_a_file_for_each_model(backend: Backend, tmp_path: Path) -> None:
    trained(backend, experiment=ExperimentConfig(write_interval=0, checkpoint_interval=0, store_separately=True)).save(tmp_path / "saved")
    names = {path.stem for path in (tmp_path / "saved").iterdir() if path.suffix == ".safetensors"}
    models = {"policy", "critic_1", "critic_2", "target_critic_1", "target_critic_2"}
    rest = {"log_alpha", "gradient_steps", "policy_optimizer", "critic_optimizer", "temperature_optimizer", "streams", "memory"}
    assert names == models | rest


@pytest.mark.parametrize(("writer", "reader"), [("torch", "jax"), ("jax", "torch")])
def test_a_checkpoint_moves_between_the_backends(writer: str, reader: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    backends = {backend.name: backend for backend in installed_backends()}
    agent, other = trained(backends[writer]), trained(backends[reader], seed=4)
    agent.save(tmp_path / "saved")
    with caplog.at_level(logging.INFO, "sacref.agent.checkpoints"):
        other.load(tmp_path / "saved")
    assert f"was written by {writer}: the random streams begin anew, from the seed, the rank and the 3 gradient steps" in caplog.text
    assert_same_arrays(other.arrays(), agent.arrays())
    assert_same_arrays(other.memory.arrays(), agent.memory.arrays())
    # From (seed, rank, gradient steps) alone, whatever was drawn before.
    again, later = backends[reader].agent(num_envs=2, seed=4), backends[reader].agent(num_envs=2, seed=5)
    begun = again.learner.stream_states()
    for fresh in (again, later):
        fresh.load(tmp_path / "saved")
    assert_same_arrays(other.learner.stream_states(), again.learner.stream_states())
    for name, state in again.learner.stream_states().items():
        assert not np.array_equal(state, begun[name])
        assert not np.array_equal(state, later.learner.stream_states()[name])
    batch, noise = draw_batch(agent, 4)
    for a in (agent, other):
        a.update_on(batch, noise)
    a, b = agent.arrays(), other.arrays()
    for name in a:
        np.testing.assert_allclose(b[name], a[name], rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("writer", "reader", "networks"),
    [
        ("torch", "jax", {"layer_norm": True}),
        ("jax", "torch", {"layer_norm": True}),
        # tests/parity/test_features has both backends begin from the same arrays of it.
        pytest.param("jax", "torch", {"network": "simba", "critic_hidden": (5, 5)}, marks=pytest.mark.full),
    ],
)
def test_a_training_goes_on_alike_on_either_backend(writer: str, reader: str, networks: dict[str, Any], tmp_path: Path) -> None:
    backends = {backend.name: backend for backend in installed_backends()}
    if len(backends) < 2:
        pytest.skip("one backend is installed")
    options: dict[str, Any] = {
        "dtype": "float64",
        "observation_preprocessor": RunningStandardScaler,
        "learning_rate_scheduler": ("cosine", "kl_adaptive", "linear"),
        "learning_rate_scheduler_kwargs": ({"steps": 150}, {"kl_threshold": 1e-3}, {"steps": 150}),
        "grad_norm_clip": 0.5,
        "policy_delay": 2,
        "networks": networks,
    }

    def learn(updates: int, *agents: Any) -> None:
        for number in range(updates):
            for each in agents:
                each.update_on(*draw_batch(each, 16, seed=number))

    agent, other = (
        backends[name].agent(num_envs=2, seed=seed, learning_rate=1e-2, **options) for seed, name in enumerate((writer, reader))
    )
    for seed, each in enumerate((agent, other)):
        fill(each, 20, seed)
        learn(3, each)
    agent.save(tmp_path / "saved")
    other.load(tmp_path / "saved")
    learn(100, agent, other)
    a, b = agent.arrays(), other.arrays()
    assert int(a["gradient_steps"]) == 103
    for name in a:
        assert difference(b[name], a[name], name).relative < 1e-9, name
    # And back: what the second backend has learned is what the first one goes on with.
    other.save(tmp_path / "back")
    agent.load(tmp_path / "back")
    assert_same_arrays(agent.arrays(), b)
    assert_same_arrays(agent.memory.arrays(), other.memory.arrays())


def test_models_of_a_users_own_stay_within_their_backend(tmp_path: Path) -> None:
    backends = installed_backends()
    agents = [backend.agent(models=user(backend).user_models(3, 2)) for backend in backends]
    for index, agent in enumerate(agents):
        agent.save(tmp_path / str(index))
        again = backends[index].agent(models=user(backends[index]).user_models(3, 2, seed=9))
        again.load(tmp_path / str(index))
        assert_same_arrays(again.arrays(), agent.arrays())
    for index, agent in itertools.product((0, 1), agents):
        if agents[index] is not agent:
            with pytest.raises(CheckpointError, match=r"holds models of layouts .*models of your own move only within a backend"):
                agent.load(tmp_path / str(index))


def test_a_memory_that_is_not_saved_stays_as_it_is(backend: Backend, tmp_path: Path) -> None:
    agent = trained(backend)
    agent.save(tmp_path / "saved")
    checkpoint.drop_group(tmp_path / "saved", "memory")
    other = trained(backend, seed=4)
    memory = other.memory.arrays()
    other.load(tmp_path / "saved")
    assert_same_arrays(other.arrays(), agent.arrays())
    assert_same_arrays(other.memory.arrays(), memory)


def test_an_agent_without_memory_loads_one_with(backend: Backend, tmp_path: Path) -> None:
    agent = trained(backend)
    agent.save(tmp_path / "saved")
    other = backend.agent(capacity=None, num_envs=2)
    other.load(tmp_path / "saved")
    assert_same_arrays(other.arrays(), agent.arrays())


SCHEDULED: dict[str, Any] = {
    "learning_rate_scheduler": ("cosine", "kl_adaptive", None),
    "learning_rate_scheduler_kwargs": ({"steps": 9}, {"kl_threshold": 1e-3}, {}),
    "grad_norm_clip": 0.5,
    "policy_delay": 2,
}


def policy_alone(backend: Backend, **options: Any) -> Any:
    spaces = Spaces()
    models = backend.package.default_models(observation_space=spaces.observation, action_space=spaces.action, hidden=(8,), seed=9)
    return backend.agent(capacity=None, training=False, models={"policy": models["policy"]}, **options)


def assert_acts_alike(agent: Any, other: Any) -> None:
    agent.enable_training_mode(False)
    observations = np.random.default_rng(5).normal(size=(4, 3))
    actions = [each.to_numpy(each.act(observations, None, timestep=0, timesteps=1)[0]) for each in (agent, other)]
    np.testing.assert_array_equal(*actions)


def test_an_agent_that_only_acts_asks_for_what_acting_reads(backend: Backend, tmp_path: Path) -> None:
    scaled: dict[str, Any] = {"observation_preprocessor": RunningStandardScaler}
    agent = trained(backend, num_critics=3, target_subset=2, **SCHEDULED, **scaled)
    agent.save(tmp_path / "saved")
    alone = policy_alone(backend, **scaled)
    unscheduled = backend.agent(capacity=None, training=False, num_critics=3, learn_entropy=False, **scaled)
    begun = unscheduled.arrays()
    for each in (alone, unscheduled):
        each.load(tmp_path / "saved")
        assert_acts_alike(agent, each)
        assert each.gradient_step_count == 3
        found, saved = each.arrays(), agent.arrays()
        assert_same_arrays(found, {name: saved[name] for name in found})
    assert begun.keys() == unscheduled.arrays().keys()
    # What it does not have is not made up: to learn, the moments that the schedule needs are missing.
    unscheduled.save(tmp_path / "again")
    with pytest.raises(CheckpointError, match="missing arrays"):
        agent.load(tmp_path / "again")


def test_an_agent_that_only_acts_keeps_its_own_of_what_only_learning_reads(backend: Backend, tmp_path: Path) -> None:
    alone = policy_alone(backend)
    alone.save(tmp_path / "saved")
    actor = backend.agent(capacity=None, training=False, seed=4, **SCHEDULED)
    before = actor.arrays()
    actor.load(tmp_path / "saved")
    assert_acts_alike(alone, actor)
    assert_same_arrays(actor.arrays(), {**before, **alone.arrays()})


def test_an_agent_that_only_acts_needs_no_states_of_critics(backend: Backend, tmp_path: Path) -> None:
    scaled: dict[str, Any] = {"observation_preprocessor": RunningStandardScaler}
    spaces = Spaces(state=box(-1.0, 1.0, (5,)))
    agent = backend.agent(spaces, state_preprocessor=RunningStandardScaler, **scaled)
    fill(agent, 4)
    agent.save(tmp_path / "saved")
    alone = policy_alone(backend, **scaled)
    alone.load(tmp_path / "saved")
    assert_acts_alike(agent, alone)
    with pytest.raises(CheckpointError, match="state_space"):
        backend.agent(**scaled).load(tmp_path / "saved")


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (lambda arrays: arrays.pop("policy.head.bias"), r"missing arrays \['policy.head.bias'\]"),
        (lambda arrays: arrays.pop("critic_1.head.bias"), r"missing arrays \['critic_1.head.bias'\]"),
        (lambda arrays: arrays.update(x=np.zeros(1)), r"unknown arrays \['x'\]"),
        (lambda arrays: arrays.update({"preprocessor.observations.mean": np.zeros(3)}), "unknown arrays .*preprocessor.observations.mean"),
        (lambda arrays: arrays.update({"critic_2.head.bias": np.zeros(2, np.float32)}), r"critic_2.head.bias has shape \(2,\)"),
    ],
    ids=["policy", "a part of a critic", "unknown", "a preprocessor", "another critic"],
)
def test_an_agent_that_only_acts_refuses_what_is_damaged_or_anothers(backend: Backend, tmp_path: Path, breaks: Any, message: str) -> None:
    backend.agent().save(tmp_path / "saved")
    read = checkpoint.read(tmp_path / "saved")
    breaks(read.groups["agent"])
    checkpoint.write(tmp_path / "broken", read.groups, read.metadata)
    actor = backend.agent(capacity=None, training=False, seed=4)
    before = actor.arrays()
    with pytest.raises(CheckpointError, match=message):
        actor.load(tmp_path / "broken")
    assert_same_arrays(actor.arrays(), before)


def test_streams_of_another_kind_of_device_are_left_out(backend: Backend, tmp_path: Path) -> None:
    """A GPU's generator has a state of another size."""
    agent, other = trained(backend), trained(backend, seed=4)
    agent.save(tmp_path / "saved")
    read = checkpoint.read(tmp_path / "saved")
    streams = {name: np.append(state, state[:1]) for name, state in read.groups["streams"].items()}
    checkpoint.write(tmp_path / "saved", {**read.groups, "streams": streams}, read.metadata)
    before = other.learner.stream_states()
    other.load(tmp_path / "saved")
    assert_same_arrays(other.arrays(), agent.arrays())
    assert_same_arrays(other.learner.stream_states(), before)


BROKEN: dict[str, tuple[Any, str]] = {
    "a missing parameter": (lambda groups, metadata: groups["agent"].pop("policy.head.bias"), "missing arrays .*policy.head.bias"),
    "no log alpha": (lambda groups, metadata: groups["agent"].pop("log_alpha"), r"missing arrays \['log_alpha'\]"),
    "an unknown array": (lambda groups, metadata: groups["agent"].update(x=np.zeros(1)), r"unknown arrays \['x'\]"),
    "another shape": (
        lambda groups, metadata: groups["agent"].update({"log_alpha": np.zeros(1, np.float32)}),
        r"log_alpha has shape \(1,\) .*expected \(\)",
    ),
    "another kind": (
        lambda groups, metadata: groups["agent"].update({"log_alpha": np.array(1)}),
        "log_alpha has .*int64, expected .*float32",
    ),
    "a memory of another size": (
        lambda groups, metadata: groups["memory"].update(size=np.array([16, 15])),
        "head 4 and size 15 do not fit",
    ),
    "a memory of fewer environments": (lambda groups, metadata: groups["memory"].update(size=np.array([16])), r"expected \(2,\) integers"),
    "a negative second moment": (
        lambda groups, metadata: groups["agent"]["critic_optimizer.second_moment.critic_2.head.kernel"].__setitem__((0, 0), -1e-3),
        r"critic_optimizer\.second_moment\.critic_2\.head\.kernel has -0\.001\d*, expected numbers >= 0: take another checkpoint",
    ),
    "a negative second moment of the temperature": (
        lambda groups, metadata: groups["agent"].update({"temperature_optimizer.second_moment": np.array(-1.0, np.float32)}),
        r"temperature_optimizer\.second_moment has -1\.0, expected numbers >= 0",
    ),
    "a negative count": (
        lambda groups, metadata: groups["agent"].update({"policy_optimizer.count": np.array(-1)}),
        r"policy_optimizer\.count has -1, expected numbers >= 0",
    ),
    "another algorithm": (lambda groups, metadata: metadata.update(algorithm="PPO"), "holds 'PPO', expected 'SAC'"),
    "no layouts": (lambda groups, metadata: metadata.pop("layouts"), "holds models of layouts None"),
}


def test_what_does_not_fit_is_refused_and_changes_nothing(backend: Backend, tmp_path: Path) -> None:
    trained(backend).save(tmp_path / "saved")
    other = trained(backend, seed=4)
    before = other.arrays(), other.memory.arrays(), other.learner.stream_states()
    for name, (breaks, message) in BROKEN.items():
        read = checkpoint.read(tmp_path / "saved")
        breaks(read.groups, read.metadata)
        checkpoint.write(tmp_path / name, read.groups, read.metadata)
        with pytest.raises(CheckpointError, match=message):
            other.load(tmp_path / name)
        for then, now in zip(before, (other.arrays(), other.memory.arrays(), other.learner.stream_states()), strict=True):
            assert_same_arrays(then, now)
    other.update(timestep=0, timesteps=1)
    assert other.gradient_step_count == 4


def test_what_no_optimizer_holds_is_refused_and_changes_nothing(backend: Backend) -> None:
    agent = trained(backend)
    before = agent.arrays()
    name = "policy_optimizer.second_moment.head.bias"
    with pytest.raises(ValueError, match=rf"{name} has -2\.0, expected numbers >= 0"):
        agent.set_arrays({**before, "log_alpha": np.array(1.0, np.float32), name: np.full_like(before[name], -2.0)})
    assert_same_arrays(agent.arrays(), before)
    agent.set_arrays({**before, name: np.full_like(before[name], -0.0)})


def test_arrays_that_a_later_part_refuses_leave_schedules_and_preprocessors_as_they_were(backend: Backend) -> None:
    spaces = Spaces(gymnasium.spaces.Dict(a=box(-1, 1, (2,)), b=box(-1, 1, (2,))))
    agent = backend.agent(spaces, observation_preprocessor=RunningStandardScaler)
    fill(agent, 5)
    before = agent.arrays()
    of_a, of_b = "preprocessor.observations.a.mean", "preprocessor.observations.b.variance"
    with pytest.raises(ValueError, match="variance"):
        agent.set_arrays({**before, of_a: before[of_a] + 7.0, of_b: before[of_b] - 100.0, "gradient_steps": np.array(9)})
    assert_same_arrays(agent.arrays(), before)


def test_what_comes_after_a_load_does_not_continue_what_the_memory_holds(backend: Backend, tmp_path: Path) -> None:
    agent = backend.agent(n_step=2)
    generator = np.random.default_rng(0)
    running = {"terminated": np.zeros((1, 1), bool)}
    for _ in range(3):
        agent.record_transition(**draw_row(agent, generator, **running))
    agent.save(tmp_path / "saved")
    agent.load(tmp_path / "saved")
    for _ in range(2):
        agent.record_transition(**draw_row(agent, generator, **running))
    assert agent.memory.arrays()["first"].tolist() == [True, False, False, True, False]


def test_an_agent_of_another_kind_is_refused(backend: Backend, tmp_path: Path) -> None:
    backend.agent(algorithm="SAC_RNN").save(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="holds 'SAC_RNN', expected 'SAC'"):
        backend.agent().load(tmp_path / "saved")


def test_a_truncated_or_missing_checkpoint_is_refused(backend: Backend, tmp_path: Path) -> None:
    agent = trained(backend)
    agent.save(tmp_path / "saved")
    shutil.copytree(tmp_path / "saved", tmp_path / "cut")
    file = tmp_path / "cut" / "agent.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    for path in (tmp_path / "cut", tmp_path / "nothing"):
        with pytest.raises(CheckpointError):
            agent.load(path)


def test_a_subclass_of_the_users_saves_and_loads(backend: Backend, tmp_path: Path) -> None:
    agent = trained(backend)
    own = type("Own", (type(agent),), {"__module__": "__main__"})
    agent.__class__ = own
    agent.save(tmp_path / "saved")
    assert checkpoint.read(tmp_path / "saved").metadata["backend"] == backend.name
    agent.load(tmp_path / "saved")


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_agent_is_not_copied_or_pickled_and_says_how_to_have_another(backend: Backend, duplicate: Any, tmp_path: Path) -> None:
    agent = backend.agent()
    before = agent.arrays()
    with pytest.raises(TypeError, match=r"SAC cannot be copied or pickled: .*agent\.save\(path\), construct another one .* load\(path\)"):
        duplicate(agent)
    agent.save(tmp_path / "agent")
    other = backend.agent(seed=1)
    other.load(tmp_path / "agent")
    agent.update_on(*draw_batch(agent, 4))  # which leaves the other one as it is
    assert_same_arrays(other.arrays(), before)
