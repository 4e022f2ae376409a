"""Vector environments: ids, factories, wrappers, seeds, and errors that name the fix."""

import inspect
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from sacref import envs
from tests.envs.counting import CountingEnv


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
    ],
)
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
