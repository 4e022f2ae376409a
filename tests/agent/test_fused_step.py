"""The strict step in one call, held to the plain calls: the same rows, draws, actions and parameters, whatever a trainer does."""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

from sacref.agent.execution import Upload
from sacref.preprocessing import RunningStandardScaler
from sacref.training import loop
from tests.agent.test_execution import fused_agent, noting_operations
from tests.backends import Backend, Spaces, assert_same_arrays, box, draw_row, without_shape_checks

EXECUTIONS = [("torch", "traced"), ("torch", "cuda_graph"), ("jax", "scan")]
Make = Callable[..., Any]


@pytest.fixture(params=EXECUTIONS, ids="-".join)
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A function that makes agents of a backend: `make(execution="plain")` a plain one, else one whose strict step is one call."""
    name, fused = request.param
    pytest.importorskip(name)
    return lambda **options: fused_agent(name, options.pop("execution", fused), monkeypatch, **{**SHORT, **options})


TOLERANCE = 1e-9
"""Largest relative difference in float64, max|a - b| / max|b| per array."""
SHORT: dict[str, Any] = {"learning_rate": 1e-2, "random_timesteps": 3, "learning_starts": 2, "dtype": "float64", "hidden": (8, 8)}
"""Learning begins among random actions."""


def pair(make: Make, **options: Any) -> list[Any]:
    """A plain agent and a fused one."""
    return [make(execution="plain", **options), make(**options)]


def assert_alike(agents: list[Any]) -> None:
    plain, fused = agents
    assert_same_arrays(fused.learner.stream_states(), plain.learner.stream_states())
    for given, wanted in ((fused.arrays(), plain.arrays()), (fused.memory.arrays(), plain.memory.arrays())):
        assert set(given) == set(wanted)
        for name, array in wanted.items():
            difference = np.abs(given[name].astype(float) - array.astype(float)).max(initial=0.0)
            assert difference <= TOLERANCE * np.abs(array.astype(float)).max(initial=0.0), name


def noted(name: str, called: Callable[..., Any], seen: list[str]) -> Callable[..., Any]:
    """The function, which adds a name to the list at each call."""

    def run(*given: Any, **options: Any) -> Any:
        seen.append(name)
        return called(*given, **options)

    return run


def calls_of(agent: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows by the calls that go to the device."""
    seen: list[str] = []
    runner, library = agent.learner.runner, agent.memory.library
    for name in ("learn", "act", "learn_and_act"):
        monkeypatch.setattr(runner, name, noted(name, getattr(runner, name), seen))
    monkeypatch.setattr(type(library), "write", staticmethod(noted("write", library.write, seen)))
    return seen


class Pendulum(PendulumEnv):
    """Ends after 7 steps, in turn by termination and truncation."""

    steps = episodes = 0

    def reset(self, **options: Any) -> Any:
        self.steps, self.episodes = 0, self.episodes + 1
        return super().reset(**options)

    def step(self, action: NDArray[Any]) -> Any:
        self.steps += 1
        step: Any = super().step
        observation, reward, _, _, infos = step(action)
        over = self.steps == 7
        return observation, reward, over and self.episodes % 2 == 0, over and self.episodes % 2 == 1, infos


def train(agent: Any, timesteps: int = 100, mode: AutoresetMode = AutoresetMode.SAME_STEP) -> None:
    envs = SyncVectorEnv([Pendulum] * agent.memory.num_envs, autoreset_mode=mode)
    with without_shape_checks():
        loop.run(agent, envs, timesteps=timesteps, seed=0)
    envs.close()


PENDULUM = Spaces(PendulumEnv().observation_space, PendulumEnv().action_space)
MOMENTS = {"observation_preprocessor": RunningStandardScaler}
MODES = {"same step": AutoresetMode.SAME_STEP, "next step": AutoresetMode.NEXT_STEP, "disabled": AutoresetMode.DISABLED}
RECURRENT = {"algorithm": "SAC_RNN", "sequence_length": 4, "burn_in": 2}
full = pytest.mark.full


def test_the_actions_as_act_returned_them_are_of_the_host_where_the_rows_are(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the actions are, the rows' own arrays decide: a strict step stays one call, and a bad number is told at once."""
    agent = make(capacity=100)
    seen, generator = calls_of(agent, monkeypatch), np.random.default_rng(0)
    observations = np.zeros((1, *agent.observation_space.shape), agent.observation_space.dtype)
    for timestep in range(12):
        clock = {"timestep": timestep, "timesteps": 100}
        agent.pre_interaction(**clock)
        actions, _ = agent.act(observations, None, **clock)
        row = draw_row(agent, generator, **clock, observations=observations, actions=actions, terminated=np.zeros((1, 1), bool))
        agent.record_transition(**row)
        agent.post_interaction(**clock)
        observations = row["next_observations"]
    assert seen[-6:] == ["learn_and_act"] * 6
    with pytest.raises(ValueError, match="rewards"):
        agent.record_transition(**{**row, "rewards": np.full((1, 1), np.nan)})


@pytest.mark.parametrize(
    "mode, options, steady",
    [
        ("same step", {"num_envs": 3, "capacity": 300, "n_step": 3, **MOMENTS}, ["learn_and_act"]),
        ("same step", {**RECURRENT, "networks": {"recurrent": "rnn", "recurrent_size": 4}}, ["learn_and_act"]),
        pytest.param("same step", {**RECURRENT, "networks": {"recurrent": "gru"}}, ["learn_and_act"], marks=full),
        pytest.param("same step", {}, ["learn_and_act"], marks=full),
        pytest.param("next step", {"num_envs": 3, "capacity": 300}, ["learn_and_act"], marks=full),
        pytest.param("disabled", {"num_envs": 3, "capacity": 300}, ["learn_and_act"], marks=full),
        pytest.param("same step", {"chunk": 2}, ["act", "learn_and_act"], marks=full),
        pytest.param("same step", {"gradient_steps": 3}, ["learn_and_act"], marks=full),
        pytest.param("same step", {"update_to_data": 0.5}, ["act", "write", "learn_and_act"], marks=full),
        pytest.param("same step", {"overlap": True}, ["act", "write", "learn"], marks=full),
        pytest.param("same step", {"grad_norm_clip": 0.5, "policy_delay": 2, "learn_entropy": False}, ["learn_and_act"], marks=full),
    ],
)
def test_100_fused_timesteps_equal_100_plain_ones(
    make: Make, mode: str, options: dict[str, Any], steady: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    agents = pair(make, spaces=PENDULUM, **{"capacity": 100, **options})
    seen = calls_of(agents[1], monkeypatch)
    for agent in agents:
        train(agent, mode=MODES[mode])
    assert agents[0].gradient_step_count == agents[1].gradient_step_count > 40
    assert_alike(agents)
    assert " ".join(steady * 3) in " ".join(seen[-30:]), "calls of the last timesteps, among which an episode may end"


def odd_calls(agent: Any) -> NDArray[Any]:
    """Drive an agent as no trainer should, and return all actions."""
    generator = np.random.default_rng(0)
    taken = []

    def act(row: dict[str, Any], field: str, timestep: int) -> None:
        observations, states = row[field], row[field.replace("observations", "states")]
        taken.append(agent.to_numpy(agent.act(observations, states, timestep=timestep, timesteps=1000)[0]))

    for timestep in range(12):
        clock = {"timestep": timestep, "timesteps": 1000}
        row = draw_row(agent, generator, **clock)
        agent.record_transition(**row)
        if timestep == 4:
            agent.record_transition(**draw_row(agent, generator, **clock))
        agent.post_interaction(**clock)
        if timestep == 5:
            agent.update(**clock)
        if timestep == 6:  # an evaluation between
            agent.enable_training_mode(False)
            act(row, "observations", timestep)
            agent.enable_training_mode(True)
        if timestep == 7:
            agent.set_arrays({name: array * 1.25 if name.startswith("policy.") else array for name, array in agent.arrays().items()})
        if timestep == 8:
            agent.record_transition(**draw_row(agent, generator, **clock))
        if timestep == 9:  # as after a reset by the trainer
            act(row, "observations", timestep + 1)
        if timestep not in (2, 3):  # two timesteps without acting
            act(row, "next_observations", timestep + 1)
        if timestep == 10:  # twice
            act(row, "next_observations", timestep + 1)
    return np.stack(taken)


DICT = Spaces(
    gymnasium.spaces.Dict({"pose": box(-1.0, 1.0, (2,), np.float64), "camera": box(0, 255, (5,), np.uint8)}),
    state=box(-1.0, 1.0, (3,), np.float64),
)


@pytest.mark.parametrize("options", [{"capacity": 60, "num_envs": 2}, pytest.param({"update_to_data": 1.5}, marks=full)])
def test_a_trainer_of_any_kind_gets_the_plain_actions(make: Make, options: dict[str, Any]) -> None:
    agents = pair(make, spaces=DICT, **options)
    plain, fused = (odd_calls(agent) for agent in agents)
    np.testing.assert_allclose(fused, plain, rtol=1e-6)
    assert_alike(agents)


@pytest.mark.parametrize(
    "algorithm", [{}, pytest.param({"algorithm": "SAC_RNN", "networks": {"recurrent": "lstm"}, "sequence_length": 2}, marks=full)]
)
@pytest.mark.parametrize("resets", [False, True])
def test_a_run_goes_on_from_between_the_choice_of_an_action_and_its_use(
    make: Make, algorithm: dict[str, Any], resets: bool, tmp_path: Any
) -> None:
    """Bit for bit; also where the environments are reset meanwhile, so that the action is not taken and its draw is put back."""
    agents = [make(random_timesteps=0, **algorithm) for _ in range(2)]
    generator = np.random.default_rng(0)
    rows = [draw_row(agents[0], generator, timestep=timestep) for timestep in range(12)]

    def go_on(agent: Any, timestep: int, row: dict[str, Any]) -> NDArray[Any]:
        actions, _ = agent.act(row["observations"], None, timestep=timestep, timesteps=1000)
        agent.record_transition(**row)
        agent.post_interaction(timestep=timestep, timesteps=1000)
        return np.array(agent.to_numpy(actions))

    for timestep in range(6):
        go_on(agents[0], timestep, rows[timestep])
    assert agents[0].acting.state()["next_action"] is not None
    live = agents[0].live_state()
    agents[0].save(tmp_path / "a")
    agents[1].load(tmp_path / "a")
    agents[1].set_live_state(live)
    if not resets:
        rows[6]["observations"] = rows[5]["next_observations"]
    taken = [np.stack([go_on(agent, timestep, rows[timestep]) for timestep in range(6, 12)]) for agent in agents]
    np.testing.assert_array_equal(taken[0], taken[1])
    assert_same_arrays(agents[0].arrays(), agents[1].arrays())
    assert_same_arrays(agents[0].learner.stream_states(), agents[1].learner.stream_states())
    # What a checkpoint holds without the rest is what the plain agent saves.
    assert_same_arrays(agents[0].memory.arrays(), agents[1].memory.arrays())


def go_on_steadily(agent: Any, observations: NDArray[Any], timesteps: range) -> Any:
    """Take timesteps as a trainer does; return the observations after them."""
    for timestep in timesteps:
        clock = {"timestep": timestep, "timesteps": 10_000}
        actions = agent.to_numpy(agent.act(observations, None, **clock)[0])
        row = draw_row(agent, np.random.default_rng(timestep), observations=observations, actions=actions, **clock)
        agent.record_transition(**row)
        agent.post_interaction(**clock)
        observations = row["next_observations"]
    return observations


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32])
def test_what_is_no_state_of_a_random_stream_is_refused_and_changes_nothing(dtype: Any) -> None:
    """On PyTorch; on JAX all that have its form are states."""
    pytest.importorskip("torch")
    agent, other = (Backend("torch").agent(learning_starts=2, seed=seed) for seed in (1, 2))
    go_on_steadily(agent, np.zeros((1, 3)), range(4))
    go_on_steadily(other, np.ones((1, 3)), range(3))
    state: Any = agent.live_state()
    *inputs, (*chosen, exploration) = state["next_action"]
    before, streams = other.live_state(), other.learner.stream_states()
    with pytest.raises(ValueError, match="the state of a random stream is none of a cpu generator's"):
        other.set_live_state({**state, "next_action": (*inputs, (*chosen, np.full_like(exploration, 7, dtype)))})
    np.testing.assert_equal(other.live_state(), before)
    assert_same_arrays(other.learner.stream_states(), streams)
    other.set_live_state(state)
    np.testing.assert_equal(other.live_state(), state)


def test_a_steady_strict_step_is_one_upload_one_launch_and_one_download(monkeypatch: pytest.MonkeyPatch) -> None:
    jax = pytest.importorskip("jax")
    agent = Backend("jax").agent(learning_starts=2, capacity=100)
    agent.write_interval = 1000
    counts: list[str] = []
    observations = go_on_steadily(agent, np.zeros((1, 3)), range(10))  # all is compiled
    count_transfers(jax, agent, counts, monkeypatch)
    go_on_steadily(agent, observations, range(10, 20))
    steps = [sorted(counts[start : start + 3]) for start in range(0, len(counts), 3)]
    assert steps == [["download", "launch", "upload"]] * 10


def test_a_steady_strict_step_of_a_cuda_graph_is_one_upload_one_replay_and_copies_of_its_results(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from torch.utils._python_dispatch import _disable_current_modes

    from sacref.torch import capture

    agent = fused_agent("torch", "cuda_graph", monkeypatch, learning_starts=2, capacity=100)
    agent.write_interval = 1000
    counts: list[str] = []
    captured = capture.capture_on_cuda

    def capture_noted(*given: Any) -> Callable[[], Any]:
        replay = captured(*given)

        def run() -> Any:
            counts.append("launch")
            with _disable_current_modes():
                return replay()

        return run

    monkeypatch.setattr(capture, "capture_on_cuda", capture_noted)
    monkeypatch.setattr(agent, "to_numpy", noted("download", agent.to_numpy, counts))
    monkeypatch.setattr(Upload, "filled", noted("upload", Upload.filled, counts))
    observations = go_on_steadily(agent, np.zeros((1, 3)), range(10))
    counts.clear()
    with noting_operations(counts):
        go_on_steadily(agent, observations, range(10, 20))
    # A detached tensor is another view.
    assert [each for each in counts if each != "aten.detach.default"] == ["download", "upload", "launch", *["aten.clone.default"] * 3] * 10


def count_transfers(jax: Any, agent: Any, counts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Note each compiled call, each host array that goes into one or is put on the device, and each array that is read."""
    fused = agent.learner.runner.fused

    def launch(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            counts.append("launch")
            counts.extend("upload" for leaf in jax.tree.leaves(given) if not isinstance(leaf, jax.Array))
            return call(*given)

        return run

    monkeypatch.setattr(fused, "_calls", {mode: launch(call) for mode, call in fused._calls.items()})
    for owner, name in ((agent.memory.library, "write"), *((agent.learner.runner, name) for name in ("learn", "act"))):
        monkeypatch.setattr(owner, name, launch(getattr(owner, name)), raising=False)

    for name in ("device_put", "jit"):
        monkeypatch.setattr(jax, name, noted(name, getattr(jax, name), counts))
    for name in ("array", "asarray"):
        called = getattr(np, name)

        def read(values: Any, *rest: Any, _called: Any = called, **options: Any) -> Any:
            if isinstance(values, jax.Array):
                counts.append("download")
            return _called(values, *rest, **options)

        monkeypatch.setattr(np, name, read)
