"""What a trainer hands over is data: taken from any library, to the bit or not at all, and nobody's to write into afterwards."""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sacref.preprocessing import RunningStandardScaler
from tests.backends import BACKENDS, Backend, Spaces, box, draw_row, load_backend

backend = pytest.fixture(params=BACKENDS)(load_backend)

ARRAYS = ("observations", "actions", "rewards", "next_observations", "terminated", "truncated")


def row_of(agent: Any, seed: int = 0, **given: Any) -> dict[str, Any]:
    envs = agent.memory.num_envs
    return draw_row(agent, np.random.default_rng(seed), **{"terminated": np.zeros((envs, 1), bool), **given})


def converted(row: dict[str, Any], convert: Callable[[Any], Any]) -> dict[str, Any]:
    return row | {name: convert(row[name]) for name in ARRAYS}


def on_a_graph(values: Any) -> Any:
    """A torch tensor that a network's parameter has shaped; the values are the same."""
    torch = importlib.import_module("torch")
    tensor = torch.from_numpy(np.array(values))
    return tensor * torch.ones((), dtype=tensor.dtype, requires_grad=True) if tensor.is_floating_point() else tensor


def stored_by(backend: Backend, *rows: dict[str, Any], **options: Any) -> dict[str, Any]:
    agent = backend.agent(**options)
    for row in rows:
        agent.record_transition(**row)
    stored: dict[str, Any] = agent.memory.arrays()
    return stored


def assert_same(stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, array in wanted.items():
        np.testing.assert_array_equal(stored[name], array, err_msg=name)


def test_an_episode_does_not_go_on_over_a_row_that_was_left_out_on_a_device(backend: Backend) -> None:
    """The second of four rows has a reward that is NaN: three steps from the first row are its own alone."""
    agent = backend.agent(Spaces(observation=box(-9, 9, (1,))), n_step=3, capacity=10, discount_factor=0.5)
    upload = agent.upload
    for step in range(4):
        row = row_of(agent, rewards=np.array([[np.nan if step == 1 else 1.0]], np.float32), truncated=np.zeros((1, 1), bool))
        row |= {"observations": np.array([[step]], np.float32), "next_observations": np.array([[step + 1]], np.float32)}
        agent.record_transition(**converted(row, upload))
    stored = agent.memory.arrays()
    assert stored["observations"][:, 0].ravel()[:3].tolist() == [0.0, 2.0, 3.0]
    # A draw that meets the first row knows of no step behind it.
    assert stored["first"].ravel()[:3].tolist() == [True, True, False]


# Rows that hang on a graph.


@pytest.mark.parametrize("case", ["rows", "final observations", "entries of final observations", "shaped rewards", "states"])
def test_rows_that_a_network_has_shaped_are_stored_without_its_graph(backend: Backend, case: str) -> None:
    pytest.importorskip("torch")
    state = box(-9, 9, (2,))
    spaces = Spaces(state=state if case == "states" else None)
    agent = backend.agent(
        spaces, rewards_shaper=(lambda rewards, *_: on_a_graph(np.asarray(rewards))) if case == "shaped rewards" else None
    )
    row = row_of(agent, truncated=np.ones((1, 1), bool))
    final = row["next_observations"] + 1
    if case in ("final observations", "entries of final observations"):
        row["infos"] = {"final_obs": final if case == "final observations" else [final[0]]}
    agent.record_transition(**row)
    agent.init()
    if case == "shaped rewards":
        agent.record_transition(**row)
    else:
        if row.get("infos"):
            row["infos"] = {"final_obs": on_a_graph(final) if case == "final observations" else [on_a_graph(final[0])]}
        if case == "states":
            row["states"], row["next_states"] = on_a_graph(row["states"]), on_a_graph(row["next_states"])
        agent.record_transition(**converted(row, on_a_graph))
    stored = agent.memory.arrays()
    assert stored["size"].tolist() == [2]
    for name in stored.keys() - {"head", "size"}:
        np.testing.assert_array_equal(stored[name][0], stored[name][1], err_msg=name)
    if backend.name == "torch":
        assert not any(leaf.requires_grad for leaf in (agent.memory.state.rows.rewards, agent.memory.state.rows.next_observations))
        assert not any(array.requires_grad for array in agent.metrics.statistics[True]._running or () if hasattr(array, "requires_grad"))


def test_acting_on_observations_of_a_graph_gives_the_same_actions_without_it(backend: Backend) -> None:
    pytest.importorskip("torch")
    agent = backend.agent(capacity=None, training=False)
    observations = np.ones((1, 3))
    plain, _ = agent.act(observations, None, timestep=0, timesteps=9)
    shaped, _ = agent.act(on_a_graph(observations), None, timestep=0, timesteps=9)
    np.testing.assert_array_equal(agent.to_numpy(shaped), agent.to_numpy(plain))
    assert not getattr(shaped, "requires_grad", False)


def test_traced_arrays_are_refused_by_jax() -> None:
    jax: Any = pytest.importorskip("jax")
    agent = Backend("jax").agent()

    def loss(scale: Any) -> Any:
        agent.record_transition(**row_of(agent, rewards=scale * np.ones((1, 1))))
        return scale

    def act(observations: Any) -> Any:
        return agent.act(observations, None, timestep=0, timesteps=9)[0]

    calls: list[Callable[[], Any]] = [lambda: jax.grad(loss)(1.0), lambda: jax.jit(act)(np.ones((1, 3)))]
    for call in calls:
        with pytest.raises(TypeError, match=r"an array is traced .*expected one that holds numbers.*outside of functions under jax\.jit"):
            call()
    assert len(agent.memory) == 0


# Any library's arrays.


def bfloat16(values: Any) -> Any:
    torch = importlib.import_module("torch")
    return torch.from_numpy(np.array(values)).to(torch.bfloat16)


@pytest.mark.parametrize("mixed", [False, True], ids=["all", "beside the backend's own"])
@pytest.mark.parametrize("library", ["lists", "torch", "jax"])
def test_rows_come_as_lists_or_arrays_of_either_library(backend: Backend, library: str, mixed: bool) -> None:
    if library != "lists":
        pytest.importorskip(library)
    convert = (lambda values: np.asarray(values).tolist()) if library == "lists" else Backend(library).array
    agent = backend.agent(num_envs=2)
    row = row_of(agent, actions=np.array([[0.5, -1.0], [2.0, 0.25]]), rewards=np.array([[1.5], [2.0**-20]]))
    given = converted(row, convert)
    if mixed:
        given["rewards"] = backend.array(row["rewards"])
    assert_same(stored_by(backend, given, num_envs=2), stored_by(backend, row, num_envs=2))
    actions, _ = agent.act(given["observations"], None, timestep=0, timesteps=9)
    assert tuple(actions.shape) == (2, 2)


@pytest.mark.parametrize("library", BACKENDS)
def test_bfloat16_is_taken_to_the_bit(backend: Backend, library: str) -> None:
    pytest.importorskip(library)
    numbers = np.array([[0.5, -3.0, 2.0**-100]])
    given = bfloat16(numbers) if library == "torch" else importlib.import_module("jax.numpy").asarray(numbers, "bfloat16")
    agent = backend.agent()
    row = row_of(agent)
    agent.record_transition(**row | {"observations": given})
    np.testing.assert_array_equal(agent.memory.arrays()["observations"], numbers.astype(np.float32))


def test_lists_of_unequal_lengths_are_refused_by_name(backend: Backend) -> None:
    agent = backend.agent(num_envs=2)
    with pytest.raises(ValueError, match="next_observations are lists of unequal lengths, expected one shape"):
        agent.record_transition(**row_of(agent, next_observations=[[1.0, 2.0, 3.0], [1.0]]))


# Numbers beyond the agent's dtype.


@pytest.mark.parametrize("name", ["rewards", "observations", "next_observations", "actions"])
def test_numbers_beyond_float32_are_refused_before_anything_is_stored(backend: Backend, name: str) -> None:
    agent = backend.agent(num_envs=2)
    row = row_of(agent)
    row[name] = np.array(row[name], np.float64)
    row[name][1, 0] = -1e39
    with pytest.raises(ValueError, match=rf"^{name} of environment 1 are as large as 1e\+39, expected at most 3\.403e\+38, .*float32"):
        agent.record_transition(**row)
    assert len(agent.memory) == 0
    assert agent.metrics.statistics[True].latest is None
    row[name][1, 0] = 3.4028235e38
    agent.record_transition(**row)
    assert all(np.isfinite(array).all() for array in agent.memory.arrays().values())


@pytest.mark.parametrize("options", [{"reward_scale": 1e10}, {"rewards_shaper": lambda rewards, *_: rewards * np.float64(1e10)}])
def test_scaled_and_shaped_rewards_beyond_float32_are_refused(backend: Backend, options: dict[str, Any]) -> None:
    agent = backend.agent(**options)
    with pytest.raises(ValueError, match=r"shaped rewards of environment 0 are as large as 1e\+39, .*lower reward_scale or mend the"):
        agent.record_transition(**row_of(agent, rewards=np.array([[1e29]])))
    assert len(agent.memory) == 0


def test_agents_of_float64_take_what_float64_holds(backend: Backend) -> None:
    agent = backend.agent(dtype="float64")
    agent.record_transition(**row_of(agent, rewards=np.array([[1e39]])))
    assert agent.memory.arrays()["rewards"].tolist() == [1e39]


def test_device_rows_beyond_float32_are_left_out_and_reported(backend: Backend) -> None:
    agent = backend.agent(num_envs=2)
    row = row_of(agent, rewards=np.array([[1e39], [2.0]]))
    agent.record_transition(**converted(row, backend.array))
    assert agent.memory.arrays()["rewards"][1::2].tolist() == [2.0]
    assert agent.memory.arrays()["size"].tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"environment 0 were not finite \(NaN or infinity\) in float32"):
        agent.write_tracking_data(timestep=1, timesteps=2)


def test_observations_beyond_float32_are_refused_before_acting(backend: Backend) -> None:
    with pytest.raises(ValueError, match=r"observations of environment 0 are as large as 1e\+40"):
        backend.agent().act(np.array([[0.0, 1e40, 0.0]]), None, timestep=0, timesteps=9)


def test_rows_that_are_left_out_may_hold_anything(backend: Backend) -> None:
    agent = backend.agent(num_envs=2)
    row = row_of(agent, infos={"sacref.dropped": np.array([True, False])})
    row["next_observations"][0] = np.nan, 1e300, np.inf
    agent.record_transition(**row)
    assert agent.memory.arrays()["size"].tolist() == [0, 1]


# Whose arrays they are.


@pytest.mark.parametrize("kind", ["host", "device"])
def test_a_shaper_that_writes_into_the_rewards_shapes_what_is_stored_alone(backend: Backend, kind: str) -> None:
    kept: list[Any] = []

    def shape(rewards: Any, timestep: int, timesteps: int) -> Any:
        if isinstance(rewards, np.ndarray) or backend.name == "torch":
            rewards *= 0.5
        else:
            rewards = rewards * 0.5
        kept.append(rewards)
        return rewards

    agent = backend.agent(rewards_shaper=shape)
    given = np.array([[4.0]], np.float32) if kind == "host" else backend.array(np.array([[4.0]], np.float32))
    agent.record_transition(**row_of(agent, rewards=given, truncated=np.ones((1, 1), bool)))
    assert np.asarray(given).tolist() == [[4.0]]
    assert agent.recent_returns == (4.0,)
    assert agent.memory.arrays()["rewards"].tolist() == [2.0]


@pytest.mark.parametrize("kind", ["host", "device"])
def test_what_a_trainer_does_to_its_rows_afterwards_changes_nothing(backend: Backend, kind: str) -> None:
    """SAC_RNN remembers a row until the next one: what was done and paid before."""
    if kind == "device" and backend.name == "jax":
        pytest.skip("JAX's arrays cannot be written into")
    agent = backend.agent(algorithm="SAC_RNN", sequence_length=2)
    convert: Callable[[Any], Any] = np.array if kind == "host" else backend.array
    for number in range(2):
        row = converted(row_of(agent, rewards=np.array([[number + 1.0]], np.float32), actions=np.ones((1, 2), np.float32)), convert)
        row["infos"] = {"final_obs": convert(np.zeros((1, 3)))}
        agent.record_transition(**row)
        for name in (*ARRAYS, "final_obs"):
            (row["infos"]["final_obs"] if name == "final_obs" else row[name])[...] = 1
            row["rewards"][...] = 77
    stored = agent.memory.arrays()
    assert stored["rewards"].tolist() == [1.0, 2.0]
    assert stored["previous_rewards"].tolist() == [0.0, 1.0]
    assert stored["previous_actions"].tolist() == [[0.0, 0.0], [0.5, 0.5]]
    assert stored["first"].tolist() == [True, False]


class Reusing(RunningStandardScaler):
    """Hands over the very arrays that it goes on to write into, and keeps those that it is given."""

    def __init__(self, space: Any) -> None:
        super().__init__(space)
        self.held = {"mean": np.zeros(space.shape), "variance": np.ones(space.shape)}

    def update(self, rows: Any) -> None:
        self.held["mean"] += 1.0

    def arrays(self) -> Any:
        return self.held

    def set_arrays(self, arrays: Any) -> None:
        self.held = dict(arrays)


def test_a_preprocessors_arrays_are_copied_both_ways(backend: Backend) -> None:
    agent = backend.agent(observation_preprocessor=Reusing)
    before = agent.arrays()
    agent.record_transition(**row_of(agent))
    name = "preprocessor.observations.mean"
    assert (before[name].tolist(), agent.arrays()[name].tolist()) == ([0.0] * 3, [1.0] * 3)
    agent.set_arrays(before)
    agent.record_transition(**row_of(agent))
    assert (before[name].tolist(), agent.arrays()[name].tolist()) == ([0.0] * 3, [1.0] * 3)
