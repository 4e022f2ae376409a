"""Vector environments: ids, factories, wrappers, seeds, and errors that name the fix."""

import inspect
import subprocess
import sys
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from sacref import envs, training
from sacref.envs.vector import EnvError, _InProcess, closing, require_separate, time_limit
from sacref.training.evaluation import evaluate
from tests.envs.counting import CountingEnv
from tests.fake_agent import FakeAgent


def test_an_id_gives_that_many_copies_with_the_asked_autoreset_mode() -> None:
    made = envs.make("Pendulum-v1", 3, autoreset_mode=AutoresetMode.SAME_STEP)
    assert isinstance(made, SyncVectorEnv)
    assert made.num_envs == 3
    assert made.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert [env.spec.id for env in made.envs if env.spec is not None] == ["Pendulum-v1"] * 3


def test_next_step_is_the_default_mode() -> None:
    assert envs.make("Pendulum-v1", 1).metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP


def test_one_seed_gives_the_same_episodes_and_its_copies_differ() -> None:
    first, second, other = (envs.make("Pendulum-v1", 2, seed=seed).reset()[0] for seed in (7, 7, 11))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[0], first[1])


def test_a_factory_gets_the_keywords_and_the_wrappers_go_around_in_order() -> None:
    made = envs.make(
        CountingEnv,
        2,
        env_kwargs={"lengths": (7,)},
        wrappers=[
            lambda env: gymnasium.wrappers.TransformReward(env, lambda reward: float(reward) + 1),
            lambda env: gymnasium.wrappers.TransformReward(env, lambda reward: float(reward) * 10),
        ],
    )
    assert isinstance(made, SyncVectorEnv)
    assert made.get_attr("lengths") == ((7,), (7,))
    made.reset(seed=0)
    np.testing.assert_array_equal(made.step(np.zeros((2, 1), np.float32))[1], np.array([20.0, 20.0]))


def test_processes_of_their_own_give_the_same_numbers_also_for_an_id_registered_here_alone() -> None:
    gymnasium.register("OnlyHere-v0", entry_point="tests.envs.counting:CountingEnv", kwargs={"lengths": (2,)})
    try:
        made = envs.make("OnlyHere-v0", 2, vectorization="async", seed=0)
    finally:
        del gymnasium.registry["OnlyHere-v0"]
    assert isinstance(made, AsyncVectorEnv)
    try:
        observations, rewards, *_ = made.step(np.zeros((2, 1), np.float32))
    finally:
        made.close()
    np.testing.assert_array_equal(observations, np.array([[0.0, 1.0], [0.0, 1.0]]))
    np.testing.assert_array_equal(rewards, np.array([1.0, 1.0]))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("HalfCheeta-v5", "is unknown .*Did you mean: `HalfCheetah`"),
        ("HalfCheetah-v9", "is unknown .*`v5`"),
        ("nowhere/Task-v0", "is unknown .*Namespace nowhere not found"),
        ("no_such_module:Task-v0", "cannot be made .*no_such_module"),
        ("Pendulum", "'Pendulum' names no version, .*: expected 'Pendulum-v1', which is the newest"),
        ("tests.envs.counting:Pendulum", "names no version"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*Using the latest versioned environment.*:UserWarning")
def test_an_unknown_id_is_refused_with_gymnasiums_suggestion(env: str, message: str) -> None:
    with pytest.raises(envs.EnvError, match=message):
        envs.make(env, 1)


def test_a_keyword_that_the_task_does_not_take_is_refused() -> None:
    with pytest.raises(envs.EnvError, match=r"'Pendulum-v1' cannot be made .*'colour'"):
        envs.make("Pendulum-v1", 1, env_kwargs={"colour": "red"})


def test_missing_mujoco_names_the_extra_to_install() -> None:
    program = 'import sys; sys.modules["mujoco"] = None; from sacref import envs; envs.make("HalfCheetah-v5", 1)'
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.returncode == 1
    assert 'pip install "sacref[mujoco]"' in finished.stderr.splitlines()[-1]


# What the annotations refuse in the tests, and a user's program does not.
unchecked_make: Any = inspect.unwrap(envs.make)


@pytest.mark.parametrize("num_envs", [0, -1, 1.0, True])
def test_a_number_of_environments_below_one_is_refused(num_envs: Any) -> None:
    with pytest.raises(ValueError, match=r"num_envs is .* at least 1"):
        unchecked_make("Pendulum-v1", num_envs)


def test_other_arguments_are_refused_with_what_is_expected() -> None:
    with pytest.raises(ValueError, match='expected "sync", "async" or "batched"'):
        unchecked_make("Pendulum-v1", 1, vectorization="threads")
    with pytest.raises(TypeError, match="a callable that makes an environment"):
        unchecked_make(CountingEnv(), 1)
    with pytest.raises(envs.EnvError, match="made a int"):
        unchecked_make(lambda: 3, 1)
    with pytest.raises(envs.EnvError, match=r"wrapper .* made a NoneType, expected a gymnasium\.Env: return one from it"):
        unchecked_make(CountingEnv, 1, wrappers=[lambda env: None])


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError(), BrokenPipeError()])
def test_a_process_that_ends_at_its_start_names_what_a_script_needs(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*arguments: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr("sacref.envs.vector.AsyncEnvs", ended)
    with pytest.raises(envs.EnvError, match=rf"ended before its environment was there \({type(error).__name__}\).* `if __name__ =="):
        envs.make(CountingEnv, 1, vectorization="async")


# One environment for several copies.

ONE = CountingEnv()


class Adapter(CountingEnv):
    """An environment of its own, with somebody's simulator inside."""

    def __init__(self, simulator: Any = ONE) -> None:
        super().__init__()
        self.simulator = simulator


@pytest.mark.parametrize(
    ("factory", "shared"),
    [
        (lambda: ONE, "CountingEnv"),
        (lambda: gymnasium.wrappers.TimeLimit(ONE, 5), "CountingEnv"),
        (Adapter, "CountingEnv"),
    ],
    ids=["the same", "wrapped twice", "the same simulator"],
)
def test_copies_that_are_one_environment_are_refused(factory: Any, shared: str) -> None:
    refused = rf"one and the same tests.envs.counting.{shared} to two copies.*make a new one in each call"
    with pytest.raises(EnvError, match=r"env <.* gave " + refused):
        envs.make(factory, 2)
    own = SyncVectorEnv([factory] * 2)
    with pytest.raises(EnvError, match=refused):
        evaluate(FakeAgent(), own, episodes=1)
    with pytest.raises(EnvError, match=refused):
        training.run(FakeAgent(), own, timesteps=1)
    first, second = envs.make(factory, 1), envs.make(factory, 1)
    with pytest.raises(EnvError, match=refused):
        require_separate(first, second)
    require_separate(first, envs.make(CountingEnv, 2), None)


def test_a_simulation_of_mujoco_that_is_shared_is_refused() -> None:
    pytest.importorskip("mujoco")
    one = gymnasium.make("InvertedPendulum-v5")

    def sharing() -> gymnasium.Env[Any, Any]:
        env = gymnasium.make("InvertedPendulum-v5")
        vars(env.unwrapped)["data"] = vars(one.unwrapped)["data"]
        return env

    with pytest.raises(EnvError, match=r"one and the same mujoco\S*.MjData"):
        envs.make(sharing, 2)
    batched = [envs.make(lambda: one, 2, vectorization="batched") for _ in range(2)]
    with pytest.raises(EnvError, match="InvertedPendulumEnv"):
        require_separate(*batched)


# Limits, and the end.


def test_the_time_limit_is_that_of_the_wrappers() -> None:
    limit = partial(gymnasium.wrappers.TimeLimit, max_episode_steps=7)
    assert time_limit(envs.make("Pendulum-v1", 2)) == 200
    assert time_limit(envs.make("Pendulum-v1", 2, wrappers=[limit])) == 7
    assert time_limit(envs.make(CountingEnv, 1)) is None
    assert time_limit(SyncVectorEnv([CountingEnv, lambda: limit(CountingEnv())])) is None
    assert _InProcess(limit(CountingEnv())).time_limit == 7
    pytest.importorskip("mujoco")
    assert time_limit(envs.make("Hopper-v5", 2, vectorization="batched", env_kwargs={"max_episode_steps": 9})) == 9


class Unclosable(CountingEnv):
    closed = 0

    def close(self) -> None:
        Unclosable.closed += 1
        raise OSError("no answer")


def test_environments_that_cannot_be_closed_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with closing(envs.make(Unclosable, 3)) as made:
        result = 5
    assert (result, made.closed, Unclosable.closed) == (5, True, 4), "those behind the first one are closed too"
    assert caplog.text.count("an environment could not be closed (OSError: no answer)") == 1
    with pytest.raises(KeyError, match="the first"), closing(envs.make(Unclosable, 1)):
        raise KeyError("the first")
    _InProcess(Unclosable()).close()
    assert caplog.text.count("an environment could not be closed (OSError: no answer)") == 3
    with closing(None) as none:
        assert none is None
