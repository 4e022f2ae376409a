"""Environments whose arrays are on a device: what is learned from is what the same environments give on the host, and nothing is read."""

import importlib
import importlib.util
import itertools
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

import sacref
from sacref import training
from sacref.algorithm.tree import map_leaves
from sacref.cli import main as cli
from sacref.config.train_config import TrainConfig
from sacref.envs import EnvError, make_vector
from sacref.envs.device import is_on_device
from sacref.envs.divergence import MOST_IN_A_ROW, DivergenceError
from sacref.spec.arrays import as_numpy
from sacref.training.evaluation import evaluate
from sacref.training.plan import prepare
from tests.backends import BACKENDS, Backend, Spaces, load_backend, without_shape_checks
from tests.envs.counting import CountingEnv
from tests.fake_agent import FakeAgent

backend = pytest.fixture(params=BACKENDS)(load_backend)

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
ENVS, EPISODE = 3, 4


def pendulums(library: str) -> Any:
    """The example's class of environments; skips where the library is not installed."""
    pytest.importorskip(library)
    return importlib.import_module(f"examples.device_pendulum_{library}").Pendulums


class Around(VectorEnv[Any, Any, Any]):
    """Vector environments with some of what they do changed."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.num_envs, self.metadata = inner, inner.num_envs, inner.metadata
        self.single_observation_space, self.single_action_space = inner.single_observation_space, inner.single_action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.inner.reset(seed=seed, options=options)

    def step(self, actions: Any) -> Any:
        return self.inner.step(actions)


class OnHost(Around):
    """The same environments, with NumPy's arrays."""

    def __init__(self, inner: Any, library: str) -> None:
        super().__init__(inner)
        self.array = Backend(library).array

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        given = {name: self.array(mask) for name, mask in (options or {}).items()}
        return map_leaves(lambda array: np.array(as_numpy(array, "")), self.inner.reset(seed=seed, options=given))

    def step(self, actions: Any) -> Any:
        returned = map_leaves(lambda array: np.array(as_numpy(array, "")), self.inner.step(self.array(actions)))
        if self.metadata["autoreset_mode"] == AutoresetMode.DISABLED and not returned[3].any():
            self.reset(options={"reset_mask": returned[3]})  # which draws what it draws on a device, where it is called after each step
        return returned


class WithoutMask(Around):
    def step(self, actions: Any) -> Any:
        *returned, infos = self.inner.step(actions)
        return *returned, {name: array for name, array in infos.items() if name != "_final_obs"}


class Reusing(Around):
    """Writes each step into the tensors that it returned before, and scales the actions in place."""

    held: Any = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        observations, infos = self.inner.reset(seed=seed, options=options)
        return self.written(observations, *self.held[1:4], {})[0] if self.held else observations, infos

    def step(self, actions: Any) -> Any:
        returned = self.written(*self.inner.step(actions))
        actions.mul_(0.0)
        return returned

    def written(self, *returned: Any) -> Any:
        if self.held is None:
            self.held = map_leaves(lambda tensor: tensor.clone(), returned)
        for held, new in zip(self.held[:4], returned[:4], strict=True):
            held.copy_(new)
        for name, new in returned[4].items():
            self.held[4][name].copy_(new)
        return self.held


def run(backend: Backend, envs: Any, timesteps: int = 11, **cfg: Any) -> Any:
    """Train a small agent in these environments."""
    spaces = Spaces(observation=envs.single_observation_space, action=envs.single_action_space)
    cfg = {"execution": "plain", "random_timesteps": 2, "learning_starts": 4, **cfg}
    agent = backend.agent(spaces, num_envs=envs.num_envs, capacity=64 * envs.num_envs, **cfg)
    training.run(agent, envs, timesteps=timesteps, seed=7)
    return agent


VARIANTS: dict[str, Callable[[Any], Any]] = {"as it is": lambda envs: envs, "without mask": WithoutMask, "reused buffers": Reusing}
SHORT = {
    ("torch", "torch", "as it is", AutoresetMode.NEXT_STEP),
    ("torch", "torch", "reused buffers", AutoresetMode.SAME_STEP),
    ("torch", "torch", "without mask", AutoresetMode.SAME_STEP),
    ("torch", "torch", "as it is", AutoresetMode.DISABLED),
    ("torch", "jax", "as it is", AutoresetMode.SAME_STEP),
    ("jax", "torch", "reused buffers", AutoresetMode.SAME_STEP),
}
"""Agent, environments, variant and mode: what a test of a few seconds has of all of them."""
CASES = [
    pytest.param(*case, marks=() if case in SHORT else pytest.mark.full, id="-".join([*case[:3], case[3].name]))
    for case in itertools.product(BACKENDS, BACKENDS, VARIANTS, MODES)
    if case[1:3] != ("jax", "reused buffers")
]


@pytest.mark.parametrize(("backend", "library", "variant", "mode"), CASES, indirect=["backend"])
def test_an_agent_learns_what_the_same_environments_teach_on_the_host(
    backend: Backend, library: str, variant: str, mode: AutoresetMode
) -> None:
    make = partial(pendulums(library), ENVS, episode_steps=EPISODE, autoreset_mode=mode)
    found, wanted = run(backend, VARIANTS[variant](make())), run(backend, OnHost(make(), library))
    rows, expected = found.memory.arrays(), wanted.memory.arrays()
    assert rows["size"].tolist() == [11 - 2 if mode == AutoresetMode.NEXT_STEP else 11] * ENVS
    for name, array in expected.items():
        np.testing.assert_array_equal(rows[name], array, err_msg=name)
    assert len(found.recent_returns) == 2 * ENVS  # with tracking off
    np.testing.assert_allclose(found.recent_returns, wanted.recent_returns, rtol=1e-6)
    assert found.gradient_step_count == wanted.gradient_step_count > 0
    for name, array in wanted.arrays().items():
        np.testing.assert_array_equal(found.arrays()[name], array, err_msg=name)


# Nothing is read.

TENSOR = ("cpu", "numpy", "item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__array__", "nonzero")
ARRAY = ("__bool__", "__int__", "__float__", "__index__", "__array__", "tolist", "item", "block_until_ready")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the functions by which values of tensors and JAX's arrays came to the host, one for each call."""
    found: list[str] = []

    def counted(owner: Any, name: str, counts: Callable[..., bool] = lambda *given: True) -> None:
        original = getattr(owner, name)

        def call(*given: Any, **options: Any) -> Any:
            if counts(*given):
                found.append(name)
            return original(*given, **options)

        monkeypatch.setattr(owner, name, call)

    if "torch" in BACKENDS and importlib.util.find_spec("torch"):
        for name in TENSOR:
            if hasattr(importlib.import_module("torch").Tensor, name):
                counted(importlib.import_module("torch").Tensor, name)
    if importlib.util.find_spec("jax"):
        jax = importlib.import_module("jax")
        for name in ARRAY:
            counted(type(jax.numpy.zeros(1)), name)
        counted(jax, "device_get")
        for name in ("array", "asarray", "stack", "concatenate"):  # which read an array on a CPU through its buffer
            counted(np, name, lambda *given: any(map(is_on_device, given[0] if isinstance(given[0], list) else given[:1])))
    yield found


class Noting(Around):
    """Notes how many reads there were before each step."""

    def __init__(self, inner: Any, reads: list[str]) -> None:
        super().__init__(inner)
        self.reads, self.before = reads, list[list[str]]()

    def step(self, actions: Any) -> Any:
        self.before.append(list(self.reads))
        self.reads.clear()
        returned = self.inner.step(actions)
        self.reads.clear()
        return returned


@pytest.mark.parametrize(
    ("backend", "library", "mode"),
    [
        pytest.param(*case, marks=() if case[0] == case[1] and case[2] == AutoresetMode.SAME_STEP else pytest.mark.full)
        for case in itertools.product(BACKENDS, BACKENDS, MODES)
    ],
    indirect=["backend"],
    ids=lambda value: getattr(value, "name", value),
)
def test_nothing_is_read_from_the_device_between_two_writes(
    backend: Backend, library: str, mode: AutoresetMode, reads: list[str], tmp_path: Path
) -> None:
    made: list[Noting] = []

    def factory(num_envs: int) -> Noting:
        made.append(Noting(pendulums(library)(num_envs, episode_steps=EPISODE, autoreset_mode=mode), reads))
        return made[-1]

    options: dict[str, Any] = {"backend": backend.name, "vector_env": factory}
    sacref.train(
        **options,
        num_envs=ENVS,
        steps=24 * ENVS,
        hidden=(4,),
        evaluation_episodes=1,
        evaluation_interval=24 * ENVS,
        progress=False,
        device="cpu",
        run_dir=tmp_path / "run",
        cfg={"batch_size": 4, "random_timesteps": 2, "learning_starts": 3, "experiment": {"write_interval": 8, "checkpoint_interval": 0}},
    )
    before = made[0].before
    # Before the first step agent and environments are made; before step 8 and 16 metrics are written.
    assert {timestep: found for timestep, found in enumerate(before[:24]) if found and timestep not in (0, 1)}.keys() == {8, 16}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["timestep"] for line in lines] == [8, 16, 24]
    assert all("Reward / Total reward (mean)" in line["scalars"] for line in lines if "scalars" in line)


# Whole runs.


def stored(result: sacref.TrainingResult) -> dict[str, Any]:
    """The rows in the memory of a run's agent."""
    agent: Any = result.agent
    rows: dict[str, Any] = agent.memory.arrays()
    return rows


RUN: dict[str, Any] = {"num_envs": ENVS, "hidden": (4,), "evaluation_episodes": 2, "progress": False, "device": "cpu"}
RUN |= {"env_kwargs": {"episode_steps": EPISODE}, "cfg": {"batch_size": 4, "random_timesteps": 2, "learning_starts": 3}}


def test_a_run_is_evaluated_resumed_and_loaded_by_its_name(tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: Any) -> None:
    factory, run_dir = pendulums("torch"), tmp_path / "run"
    first = sacref.train(**RUN, vector_env=factory, steps=8 * ENVS, run_dir=run_dir)
    assert first.config["env"] == first.config["vector_env"] == "examples.device_pendulum_torch:Pendulums"
    assert "a resumed run would begin its episodes anew: the environments' arrays are on a device" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        second = sacref.train(**RUN, vector_env=factory, steps=16 * ENVS, run_dir=run_dir, resume=True)
    assert re.search(r"agent_8: the episodes begin anew \(the environments' arrays are on a device", caplog.text)
    assert (second.steps, int(stored(second)["size"].sum())) == (16 * ENVS, 16 * ENVS)
    step, evaluation = second.evaluations[-1]
    assert (step, evaluation.lengths) == (16 * ENVS, (EPISODE, EPISODE))
    assert cli.main(["eval", str(run_dir), "--episodes", "2", "--seed", "3", "--device", "cpu"]) == 0
    assert "examples.device_pendulum_torch:Pendulums on torch: mean return" in capsys.readouterr().out
    assert cli.main(["train", "--resume", "--run-dir", str(run_dir), "--steps", str(20 * ENVS), "--no-progress"]) == 0
    assert f"finished after {20 * ENVS} steps of examples.device_pendulum_torch:Pendulums on torch" in capsys.readouterr().out
    assert cli.main(["video", str(run_dir)]) == 2
    assert "expected one environment to draw: a vector environment is not drawn" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"vector_env: the run has 'examples\.device_pendulum_torch:Pendulums', asked is None"):
        sacref.train(**{**RUN, "env_kwargs": None}, env="Pendulum-v1", steps=24 * ENVS, run_dir=run_dir, resume=True)


def test_a_factory_gets_the_number_of_environments_and_a_seed_if_it_takes_one() -> None:
    taken: list[dict[str, Any]] = []

    def with_seed(num_envs: int, seed: int, size: int = 1) -> Any:
        taken.append({"num_envs": num_envs, "seed": seed, "size": size})
        return gymnasium.make_vec("CartPole-v1", num_envs, vectorization_mode="vector_entry_point")

    make_vector(with_seed, 2, seed=5, env_kwargs={"size": 3})
    assert taken == [{"num_envs": 2, "seed": 5, "size": 3}]
    envs = make_vector(gymnasium.make_vec, 2, seed=5, env_kwargs={"id": "CartPole-v1", "vectorization_mode": "vector_entry_point"})
    assert envs.num_envs == 2


class Unsaid(Around):
    def __init__(self, num_envs: int) -> None:
        super().__init__(pendulums("torch")(num_envs))
        self.metadata = {}


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda num_envs: gymnasium.make("Pendulum-v1"), r"made a \w+, expected a gymnasium.vector.VectorEnv: return one, or an adapter"),
        (lambda num_envs: pendulums("torch")(7), r"made 7 environments, expected 2: make as many as its argument num_envs says"),
        (Unsaid, r"metadata\['autoreset_mode'\] is None, expected a gymnasium.vector.AutoresetMode"),
    ],
)
def test_a_factory_that_makes_something_else_is_refused(factory: Any, message: str) -> None:
    with pytest.raises(EnvError, match=message):
        make_vector(factory, 2)


def test_the_only_simulation_is_evaluated_in_and_training_begins_new_episodes(tmp_path: Path) -> None:
    one = pendulums("torch")(ENVS, episode_steps=EPISODE)
    run: dict[str, Any] = {**RUN, "env_kwargs": None, "vector_env": lambda num_envs: one, "run_dir": tmp_path / "run"}
    result = sacref.train(**run, steps=12 * ENVS, evaluation_interval=6 * ENVS)
    assert [(step, evaluation.lengths) for step, evaluation in result.evaluations] == [(steps * ENVS, (EPISODE,) * 2) for steps in (6, 12)]
    # Of the episode that the evaluation cut short two transitions are there, and no return.
    assert stored(result)["size"].tolist() == [12] * ENVS
    assert len(result.agent.recent_returns) == 2 * ENVS


def test_other_spaces_are_refused(tmp_path: Path) -> None:
    discrete = partial(gymnasium.make_vec, "CartPole-v1", vectorization_mode="vector_entry_point")
    with pytest.raises(TypeError, match=r"action_space is Discrete.*SAC here needs a gymnasium.spaces.Box"):
        sacref.train(vector_env=discrete, run_dir=tmp_path / "run", progress=False)


@pytest.mark.parametrize("other", [{"env": "Pendulum-v1"}, {"wrappers": [gymnasium.wrappers.ClipAction]}, {"vectorization": "async"}])
def test_what_vector_env_makes_by_itself_is_refused_beside_it(other: dict[str, Any]) -> None:
    (option,) = other
    with pytest.raises(ValueError, match=rf"{option} is .* and vector_env is given too, expected one of them: .*leave out {option}"):
        TrainConfig(vector_env=pendulums, **other).checked()
    name: Any = "Pendulum-v1"
    with pytest.raises(TypeError, match=r"vector_env is 'Pendulum-v1', expected a callable that makes a gymnasium.vector.VectorEnv"):
        prepare(TrainConfig(vector_env=name))


class Columns(Around):
    """What a step returns under a name has a last axis, or another shape."""

    def __init__(self, inner: Any, name: str, shape: tuple[int, ...]) -> None:
        super().__init__(inner)
        self.place, self.shape = 1 + ("rewards", "terminated", "truncated").index(name), shape

    def step(self, actions: Any) -> Any:
        returned = list(self.inner.step(actions))
        returned[self.place] = returned[self.place][: int(np.prod(self.shape))].reshape(self.shape)
        return tuple(returned)


@pytest.mark.parametrize(
    ("shape", "said"),
    [((2, 1), "have shape (2, 1), expected (2,): drop the last axis"), ((1,), "have shape (1,), expected (2,): return one of each env")],
)
@pytest.mark.parametrize("name", ["rewards", "terminated", "truncated"])
@pytest.mark.parametrize("where", ["host", "device"])
def test_what_is_not_one_of_each_environment_is_refused_at_the_first_step(name: str, where: str, shape: Any, said: str) -> None:
    pytest.importorskip("torch")
    on_host = SyncVectorEnv([CountingEnv] * 2)
    inner = on_host if where == "host" else pendulums("torch")(2, episode_steps=EPISODE)
    agent = FakeAgent()
    with pytest.raises(EnvError, match="^" + re.escape(f"{name} {said}")):
        if where == "host":
            training.run(agent, Columns(inner, name, shape), timesteps=1)
        else:
            run(Backend("torch"), Columns(inner, name, shape), timesteps=1)
    assert agent.rows == []
    with pytest.raises(EnvError, match="^" + re.escape(f"{name} {said}")):
        evaluate(agent, Columns(on_host, name, shape), episodes=1)


# Simulations that diverge.


class Diverging(Around):
    """The first environment's reward is NaN at some of the steps."""

    def __init__(self, inner: Any, at: Callable[[int], bool]) -> None:
        super().__init__(inner)
        self.at, self.number, self.masks = at, 0, list[list[bool]]()

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if options is not None:
            self.masks.append(options["reset_mask"].tolist())
        return self.inner.reset(seed=seed, options=options)

    def step(self, actions: Any) -> Any:
        observations, rewards, *others = self.inner.step(actions)
        self.number += 1
        if self.at(self.number):
            rewards = Backend("jax" if hasattr(rewards, "at") else "torch").array([np.nan, *rewards.tolist()[1:]])
        return observations, rewards, *others


@pytest.mark.parametrize("library", BACKENDS)
def test_an_environment_that_diverges_is_reset_by_itself_where_it_can_be(library: str, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("torch")
    inner = pendulums(library)(2, episode_steps=EPISODE, autoreset_mode=AutoresetMode.DISABLED)
    envs = Diverging(inner, lambda number: number == 2)
    agent = run(Backend("torch"), envs, timesteps=6)
    assert envs.masks == [[False, False], [True, False], [False, False], [False, True], [False, False], [True, False]]
    assert agent.memory.arrays()["size"].tolist() == [5, 6]
    assert "1 episodes of environments [0] diverged until timestep 6: an observation, a state or a reward was not finite" in caplog.text
    with pytest.raises(DivergenceError, match=rf"environment 0 diverged in {MOST_IN_A_ROW} episodes one after the other"):
        run(Backend("torch"), Diverging(inner, lambda number: True), timesteps=MOST_IN_A_ROW, random_timesteps=999, gradient_steps=0)


@pytest.mark.parametrize("diverges", [False, True])
def test_integers_alone_are_finite(backend: Backend, diverges: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Pictures with a reward of whole numbers; what is no integer is looked at beside them."""

    class Whole(VectorEnv[Any, Any, Any]):
        def __init__(self) -> None:
            self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
            self.num_envs, self.steps = 2, 0
            self.single_observation_space = gymnasium.spaces.Box(0, 255, (3,), np.uint8)
            self.single_action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return backend.array(np.zeros((2, 3), np.uint8)), {}

        def step(self, actions: Any) -> Any:
            self.steps += 1
            rewards = np.array([self.steps, 7], np.float32 if diverges else np.int32)
            if diverges and self.steps == 2:
                rewards[1] = np.nan
            arrays: list[Any] = [np.full((2, 3), self.steps, np.uint8), rewards, np.zeros(2, bool), np.full(2, self.steps == 3)]
            return *(backend.array(array) for array in arrays), {}

    agent = run(backend, Whole(), timesteps=4)
    arrays = agent.memory.arrays()
    assert arrays["size"].tolist() == [4, 3 if diverges else 4]
    assert arrays["rewards"][:8:2].tolist() == [1, 2, 3, 4]
    assert arrays["rewards"][1:8:2].tolist() == [7, 7, 7, 0 if diverges else 7]
    assert ("1 episodes of environments [1] diverged until timestep 4" in caplog.text) == diverges


def test_one_that_cannot_be_reset_ends_the_run_at_the_next_look() -> None:
    pytest.importorskip("torch")
    envs = Diverging(pendulums("torch")(2, episode_steps=EPISODE), lambda number: number == 2)
    with pytest.raises(ValueError, match=r"transitions of environment 0 were not finite \(NaN or infinity\)"):
        run(Backend("torch"), envs, timesteps=6)


def test_evaluations_count_episodes_as_on_the_host() -> None:
    make = partial(pendulums("torch"), ENVS, episode_steps=EPISODE)
    for mode in MODES:
        agent = run(Backend("torch"), make(autoreset_mode=mode))
        found = evaluate(agent, make(autoreset_mode=mode), episodes=5, seed=2)
        wanted = evaluate(agent, OnHost(make(autoreset_mode=mode), "torch"), episodes=5, seed=2)
        assert found.lengths == wanted.lengths
        if mode != AutoresetMode.DISABLED:  # whose starts are drawn otherwise on the host
            assert found == wanted


# The adapters of the page.


def adapters(*, playground: bool = False) -> dict[str, Any]:
    """The classes that the page defines: that of MuJoCo Playground, or the others."""
    found: dict[str, Any] = {}
    text = (Path(__file__).parents[2] / "docs" / "device-environments.md").read_text()
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        if "class " in block and ("mujoco_playground" in block) == playground:
            exec(block, found)
    return found


def playground(task: str, **overrides: Any) -> Any:
    """A factory of the page's environments of MuJoCo Playground; skips where it is not installed."""
    pytest.importorskip("mujoco_playground")
    return partial(adapters(playground=True)["Playground"], task=task, **overrides)


@contextmanager
def as_jax_is_by_default() -> Iterator[None]:
    """Run as programs are, without what the tests ask for beside it."""
    jax = importlib.import_module("jax")
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"), without_shape_checks():
        yield


@pytest.mark.full
def test_mujoco_playground_is_trained_on_through_its_adapter(tmp_path: Path) -> None:
    factory = playground("CartpoleBalance", episode_length=5, impl="jax")
    run: dict[str, Any] = {**RUN, "env_kwargs": None, "num_envs": 4, "evaluation_episodes": 1, "run_dir": tmp_path / "run"}
    with as_jax_is_by_default():
        result = sacref.train(**run, backend="jax", vector_env=factory, steps=4 * 12, evaluation_interval=4 * 12)
    arrays = stored(result)
    assert arrays["size"].tolist() == [12] * 4
    assert len(result.agent.recent_returns) == 2 * 4
    # The row that ends an episode, of the first environment, goes on from the row before it; the one behind it does not.
    rows, after = arrays["observations"][0 : 4 * 12 : 4], arrays["next_observations"][0 : 4 * 12 : 4]
    assert [bool(np.array_equal(after[row], rows[row + 1])) for row in range(11)] == [row not in (4, 9) for row in range(11)]


def register_counting() -> None:
    """Register a task of MuJoCo Playground without physics, with states for the critics.

    It counts from a number that the episode's key draws. The episode terminates where the actions are more than `most` in sum; a seventh
    step's reward is NaN.
    """
    jax, package = importlib.import_module("jax"), importlib.import_module("mujoco_playground")
    jnp = jax.numpy

    def seen(begun: Any, count: Any) -> Any:
        return {"state": jnp.stack([count]), "privileged_state": jnp.stack([begun, count])}

    def reset(env: Any, rng: Any) -> Any:
        begun = jax.random.randint(rng, (), 100, 10_000).astype(jnp.float32)
        zero = jnp.float32(0.0)
        return package.State({"begun": begun, "spent": zero}, seen(begun, begun), zero, zero, {}, {})

    def step(env: Any, state: Any, action: Any) -> Any:
        begun, spent, count = state.data["begun"], state.data["spent"] + action[0], state.obs["state"][0] + 1
        reward, done = jnp.where(count - begun == 7, jnp.nan, count - begun), (spent > env._config.most).astype(jnp.float32)
        return package.State({"begun": begun, "spent": spent}, seen(begun, count), reward, done, {}, {})

    methods = {"reset": reset, "step": step, "action_size": 1, "xml_path": "", "mj_model": None, "mjx_model": None}
    counting = type("Counting", (package.MjxEnv,), methods)
    collections = importlib.import_module("ml_collections")
    config = {"ctrl_dt": 1.0, "sim_dt": 1.0, "episode_length": 6, "action_repeat": 2, "most": 2.0}
    package.dm_control_suite.register_environment("Counting", counting, lambda: collections.config_dict.create(**config))


@pytest.mark.full
def test_playground_has_states_time_limits_and_resets_as_its_tasks_say() -> None:
    make = playground("Counting")
    register_counting()
    jnp = importlib.import_module("jax.numpy")
    with as_jax_is_by_default():
        envs = make(3)
        assert (envs.single_observation_space.shape, envs.single_state_space.shape) == ((1,), (2,))
        first = np.asarray(envs.reset(seed=7)[0])
        actions = jnp.array([[0.0], [1.1], [0.0]])
        found = [map_leaves(np.asarray, envs.step(actions)) for _ in range(3)]
        assert [step[0][:, 0].tolist() for step in found] == [(first[:, 0] + count).tolist() for count in (2, 4, 6)]
        assert [step[4]["state"].tolist() for step in found] == [np.hstack([first, step[0]]).tolist() for step in found]
        assert [step[1].tolist() for step in found] == [[3.0] * 3, [7.0] * 3, [11.0] * 3]  # 1 + 2, 3 + 4, 5 + 6
        assert [step[2].tolist() for step in found] == [[False, True, False]] + [[False, True, False]] * 2
        assert [step[3].tolist() for step in found] == [[False] * 3, [False] * 3, [True, False, True]]
        begun = np.asarray(envs.reset(options={"reset_mask": jnp.array([True, False, False])})[0])
        assert begun[1:].tolist() == found[-1][0][1:].tolist()
        assert begun[0] not in (first[0], found[-1][0][0])
        assert np.asarray(envs.reset(seed=7)[0]).tolist() == first.tolist()
        assert np.asarray(make(3, seed=7).reset()[0]).tolist() == first.tolist()
        again = [np.asarray(envs.reset()[0]).tolist() for _ in range(2)]
        assert first.tolist() not in again
        assert again[0] != again[1]


@pytest.mark.full
def test_a_simulation_of_playground_that_diverges_does_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make = playground("Counting", episode_length=8, action_repeat=1, most=99.0)
    register_counting()
    run: dict[str, Any] = {**RUN, "env_kwargs": None, "evaluation_max_steps": 5, "run_dir": tmp_path / "run"}
    with as_jax_is_by_default():
        result = sacref.train(**run, backend="jax", vector_env=make, steps=16 * ENVS, evaluation_interval=16 * ENVS)
    arrays = stored(result)
    assert arrays["size"].tolist() == [14] * ENVS
    assert np.isfinite(arrays["rewards"]).all()
    assert (arrays["states"][:, 1] - arrays["states"][:, 0]).reshape(-1, ENVS)[:14, 0].tolist() == [*range(6), *range(6), 0, 1]
    assert "6 of 6 episodes diverged and were dropped" in caplog.text


class FakeIsaacLab(gymnasium.Env[Any, Any]):
    """A DirectRLEnv's ways: dicts of observations, a reset within the step, and what it saw before in `extras`, which stays there."""

    def __init__(self, num_envs: int, cfg: Any = None) -> None:
        torch = importlib.import_module("torch")
        self.num_envs, self.state, self.steps = num_envs, torch.zeros(num_envs, 2), torch.zeros(num_envs)
        self.cfg, self.extras = cfg or SimpleNamespace(), dict[str, Any]()
        self.cfg.compute_final_obs = False
        spaces = {"policy": (1,), "critic": (2,)}
        self.single_observation_space = gymnasium.spaces.Dict(
            {name: gymnasium.spaces.Box(-np.inf, np.inf, shape) for name, shape in spaces.items()}
        )
        self.single_action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))
        self.ends = torch.zeros(2, num_envs, dtype=torch.bool)

    def observe(self) -> dict[str, Any]:
        return {"policy": self.state[:, :1].clone(), "critic": self.state.clone()}

    def begin(self, env_ids: Any) -> None:
        self.state[env_ids], self.steps[env_ids] = 100.0, 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.begin(range(self.num_envs))
        return self.observe(), self.extras

    def step(self, actions: Any) -> Any:
        self.state += 1.0
        self.steps += 1
        self.ends[0], self.ends[1] = self.steps > 9, self.steps >= 3
        ended = self.ends.any(0).nonzero().squeeze(-1)
        if len(ended):
            if self.cfg.compute_final_obs:
                self.extras["final_obs"] = self.observe()
            self.begin(ended)
        return self.observe(), self.state[:, 0] * 0.01, *self.ends, self.extras


class FakeManiSkill(VectorEnv[Any, Any, Any]):
    """A ManiSkillVectorEnv's ways: final observations under Gymnasium's former names, and only in steps in which an episode ends."""

    def __init__(self, num_envs: int) -> None:
        self.inner = FakeIsaacLab(num_envs)
        self.num_envs, self.single_action_space = num_envs, gymnasium.spaces.Box(-1.0, 1.0, (1,))
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.inner.reset()[0]["policy"], {}

    def step(self, actions: Any) -> Any:
        last = self.inner.state[:, :1] + 1.0
        observations, rewards, terminated, truncated, _ = self.inner.step(actions)
        infos = {"final_observation": last, "_final_observation": truncated, "elapsed_steps": self.inner.steps} if truncated.any() else {}
        return observations["policy"], rewards, terminated, truncated, infos


def test_final_observations_under_gymnasiums_former_name_are_refused(backend: Backend) -> None:
    pytest.importorskip("torch")
    with pytest.raises(ValueError, match=r"infos have 'final_observation', .* expected 'final_obs': hand it over under that name"):
        run(backend, FakeManiSkill(2), timesteps=3)


def test_isaac_lab_is_launched_and_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    launched = []

    @contextmanager
    def launch_simulation(cfg: Any) -> Iterator[None]:
        launched.append((cfg.num_envs, cfg.seed))
        yield

    tasks = SimpleNamespace(parse_env_cfg=lambda task, num_envs: SimpleNamespace(num_envs=num_envs))
    monkeypatch.setitem(sys.modules, "isaaclab_tasks.utils", tasks)
    monkeypatch.setitem(sys.modules, "isaaclab.app", SimpleNamespace(launch_simulation=launch_simulation))

    def fake(**options: Any) -> gymnasium.Env[Any, Any]:
        return FakeIsaacLab(options["cfg"].num_envs, options["cfg"])

    spec = gymnasium.envs.registration.EnvSpec("FakeIsaacLab", entry_point=fake, disable_env_checker=True)
    monkeypatch.setitem(gymnasium.registry, spec.id, spec)
    run: dict[str, Any] = {**RUN, "env_kwargs": {"task": spec.id}, "num_envs": 2, "run_dir": tmp_path / "run"}
    result = sacref.train(**run, backend="torch", vector_env=adapters()["isaac_lab"], steps=2 * 12, evaluation_interval=2 * 12)
    assert [envs for envs, _ in launched] == [2]
    assert stored(result)["size"].tolist() == [12, 12]
    assert [round(evaluation.mean, 4) for _, evaluation in result.evaluations] == [3.03]


@pytest.mark.parametrize("name", ["IsaacLab", "ManiSkill"])
def test_an_adapter_of_the_page_hands_over_what_an_episode_ended_with(backend: Backend, name: str) -> None:
    pytest.importorskip("torch")
    envs = adapters()[name](FakeIsaacLab(2) if name == "IsaacLab" else FakeManiSkill(2))
    state = getattr(envs, "single_state_space", None)
    spaces = Spaces(envs.single_observation_space, envs.single_action_space, state)
    agent = backend.agent(spaces, num_envs=2, capacity=32, execution="plain", gradient_steps=0)
    training.run(agent, envs, timesteps=7, state_space=state)
    rows = agent.memory.arrays()
    assert rows["observations"][0:14:2, 0].tolist() == [100, 101, 102, 100, 101, 102, 100]
    assert rows["next_observations"][0:14:2, 0].tolist() == [101, 102, 103, 101, 102, 103, 101]
    if name == "IsaacLab":
        assert rows["next_states"][0:14:2].tolist() == [[value] * 2 for value in (101, 102, 103, 101, 102, 103, 101)]
    assert not rows["terminated"].any()
    np.testing.assert_allclose(agent.recent_returns, [1.01 + 1.02 + 1.0] * 4, rtol=1e-6)


# Speed.


def by_hand(make: Callable[[int], Any], envs: int, timesteps: int, cfg: dict[str, Any], directory: Path) -> float:
    """Environment steps a second of a loop around the agent that does nothing else."""
    torch, simulation = importlib.import_module("torch"), make(envs)
    spaces: Any = {"observation_space": simulation.single_observation_space, "action_space": simulation.single_action_space}
    package = Backend("torch").package
    experiment = {**cfg["experiment"], "directory": str(directory), "experiment_name": "by-hand"}
    agent = package.SAC(
        models=package.default_models(**spaces, hidden=(64, 64), seed=0),
        memory=package.ReplayMemory((timesteps + 1) * envs, envs),
        **spaces,
        device="cpu",
        cfg={**sacref.paper_config(envs).to_dict(), "update_to_data": None, **cfg, "experiment": experiment},
    )
    agent.init(trainer_cfg={"timesteps": timesteps})
    agent.enable_training_mode(True, apply_to_models=True)
    observations, _ = simulation.reset(seed=0)
    began = time.perf_counter()
    for timestep in range(timesteps):
        clock = {"timestep": timestep, "timesteps": timesteps}
        with torch.no_grad():
            actions, _ = agent.act(observations, None, **clock)
            after, rewards, terminated, truncated, infos = simulation.step(actions)
        agent.record_transition(
            observations=observations,
            states=None,
            actions=actions,
            rewards=rewards[:, None],
            next_observations=after,
            next_states=None,
            terminated=terminated[:, None],
            truncated=truncated[:, None],
            infos=infos,
            **clock,
        )
        agent.post_interaction(**clock)
        observations = after
    return envs * timesteps / (time.perf_counter() - began)


@pytest.mark.full
def test_train_is_nearly_as_fast_as_a_loop_by_hand_with_4096_environments(tmp_path: Path) -> None:
    envs, timesteps, rounds = 4_096, 150, 5
    make = pendulums("torch")
    cfg = {"gradient_steps": 1, "batch_size": 256, "random_timesteps": 20, "learning_starts": 20}
    files = {"write_interval": 50, "checkpoint_interval": 0}
    run: dict[str, Any] = {**RUN, "env_kwargs": None, "num_envs": envs, "hidden": (64, 64), "cfg": {**cfg, "experiment": files}}
    run |= {"steps": envs * timesteps, "evaluation_interval": envs * timesteps, "evaluation_episodes": 1, "overwrite": True}
    ratios = []
    with without_shape_checks():
        for _ in range(rounds):
            hand = by_hand(make, envs, timesteps, {**cfg, "experiment": files}, tmp_path)
            ratios.append(sacref.train(**run, vector_env=make, run_dir=tmp_path / "run").steps_per_second / hand)
    print(f"sacref.train beside a loop by hand, {envs} environments of PyTorch: {[round(ratio, 3) for ratio in ratios]}")
    assert np.median(ratios) >= 0.9, ratios
