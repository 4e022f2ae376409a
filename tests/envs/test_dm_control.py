"""Tasks of the DeepMind Control Suite. `nox -s dmc` runs all of it, with dm-control and the MuJoCo 3 that it needs."""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence

import sacref
from sacref import envs
from sacref.algorithm.tree import map_leaves
from sacref.envs import snapshots
from sacref.envs.divergence import DivergenceGuard
from sacref.envs.vector import EnvError
from tests.backends import assert_same_arrays

INSTALLED = find_spec("dm_control") is not None and find_spec("shimmy") is not None
needs_dm_control = pytest.mark.skipif(not INSTALLED, reason="dm-control and shimmy are not installed: nox -s dmc")
# Targets, gains and bodies that are written into the model at an episode's begin; touch sensors of the step before.
TASKS = (
    "cartpole-balance",
    "cheetah-run",
    "finger-turn_hard",
    "hopper-hop",
    "lqr-lqr_2_1",
    "manipulator-bring_ball",
    "point_mass-hard",
    "swimmer-swimmer6",
)


@pytest.mark.skipif(INSTALLED, reason="dm-control is installed")
def test_without_its_packages_a_task_says_which_extra_has_them() -> None:
    with pytest.raises(EnvError, match=r'needs shimmy and dm-control, which are not installed: pip install "sacref\[dmc\]", into an env'):
        envs.make("dm_control/cartpole-balance-v0", 1)


def made_with_another_mujoco(**options: Any) -> gymnasium.Env[Any, Any]:
    raise AttributeError("'MjModel' object has no attribute 'flex_vertedge'")


def test_with_another_mujoco_than_dm_control_needs_a_task_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = gymnasium.envs.registration.EnvSpec("dm_control/broken-v0", entry_point=made_with_another_mujoco)
    monkeypatch.setitem(gymnasium.registry, broken.id, broken)
    with pytest.raises(EnvError, match=r"this version of MuJoCo \(.*'flex_vertedge'\): pip install .* as dm-control needs MuJoCo 3"):
        envs.make("dm_control/broken-v0", 1)


def steps(vector: Any, actions: Any) -> list[Any]:
    """Observations, rewards and ends of these actions, and the first observations of the next episode, which it draws."""
    seen = [map_leaves(np.copy, vector.step(action)[:4]) for action in actions]
    return [*seen, map_leaves(np.copy, vector.reset()[0])]


@needs_dm_control
@pytest.mark.parametrize("task", TASKS)
def test_a_task_goes_on_from_a_snapshot_bit_for_bit(task: str) -> None:
    made, other = (envs.make(f"dm_control/{task}-v0", 2) for _ in range(2))
    made.reset(seed=3)
    other.reset(seed=8)
    generator = np.random.default_rng(0)
    actions = generator.uniform(-1.0, 1.0, (40, *made.action_space.sample().shape)).astype(made.single_action_space.dtype)
    for action in actions[:10]:
        made.step(action)
    snapshot = snapshots.capture(made)
    assert isinstance(snapshot, snapshots.Snapshot), snapshot
    other.step(actions[0])
    snapshots.restore(other, snapshot)
    found, wanted = steps(other, actions[10:]), steps(made, actions[10:])
    for number, (one, two) in enumerate(zip(found, wanted, strict=True)):
        assert data_equivalence(one, two, exact=True), number
    made.close()
    other.close()


@needs_dm_control
def test_a_run_has_dict_observations_and_is_resumed_in_the_midst_of_an_episode(tmp_path: Path) -> None:
    backend: Any = "torch" if find_spec("jax") is None else "jax"
    options: dict[str, Any] = {
        "env": "dm_control/cartpole-balance-v0",
        "backend": backend,
        "device": "cpu",
        "hidden": (8,),
        "evaluation_episodes": 1,
        "evaluation_max_steps": 5,
        "progress": False,
        "cfg": {"batch_size": 4, "random_timesteps": 5, "learning_starts": 5},
    }
    whole: Any = sacref.train(**options, steps=30, run_dir=tmp_path / "whole")
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert sorted(config["observation_space"]["spaces"]) == ["position", "velocity"]
    sacref.train(**options, steps=18, run_dir=tmp_path / "parts")
    resumed: Any = sacref.train(**options, steps=30, run_dir=tmp_path / "parts", resume=True)
    assert_same_arrays(resumed.agent.arrays(), whole.agent.arrays())
    assert_same_arrays(resumed.agent.memory.arrays(), whole.agent.memory.arrays())


@needs_dm_control
def test_a_time_limit_truncates_also_where_it_lies_behind_a_snapshot() -> None:
    made, other = (envs.make("dm_control/cartpole-balance-v0", 1, env_kwargs={"task_kwargs": {"time_limit": 0.3}}) for _ in range(2))
    made.reset(seed=3)
    other.reset(seed=3)
    actions = np.zeros((30, 1, 1))
    for action in actions[:20]:
        made.step(action)
    snapshot = snapshots.capture(made)
    assert isinstance(snapshot, snapshots.Snapshot), snapshot
    snapshots.restore(other, snapshot)
    ends = [[tuple(bool(end[0]) for end in vector.step(action)[2:4]) for action in actions[20:]] for vector in (made, other)]
    # Steps take a hundredth of a second: the last of 30 is truncated, and none is terminated.
    assert ends == [[(False, False)] * 9 + [(False, True)]] * 2
    made.close()
    other.close()


@needs_dm_control
@pytest.mark.filterwarnings("ignore:The 'warn' function is deprecated:DeprecationWarning")  # dm-control calls it
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_simulation_that_diverges_ends_an_episode_and_not_the_run(vectorization: Any, caplog: pytest.LogCaptureFixture) -> None:
    made = envs.make("dm_control/lqr-lqr_6_2-v0", 1, vectorization=vectorization)
    try:
        made.reset(seed=2)
        guard, generator = DivergenceGuard(made), np.random.default_rng(0)
        for timestep in range(1_000):  # forces of up to 1e10
            observations, rewards, terminated, truncated, infos = made.step(generator.uniform(-1e10, 1e10, made.action_space.shape))
            ended = np.logical_or(terminated, truncated)
            diverged = guard.look(observations=observations, states=None, rewards=rewards, ended=ended, infos=infos, timestep=timestep)
            if diverged.any():
                break
    finally:
        made.close()
    assert diverged.tolist() == [True]
    assert re.search(r"environment 0 diverged at timestep \d+: MuJoCo: .*(QPOS|QVEL|QACC)", caplog.text)


@needs_dm_control
def test_a_second_of_a_video_is_a_second_of_the_task() -> None:
    for task, fps in (("cheetah-run", 100), ("walker-walk", 40), ("cartpole-balance", 100)):
        made: Any = envs.make(f"dm_control/{task}-v0", 1)
        assert made.envs[0].metadata["render_fps"] == pytest.approx(fps)
        made.close()


@needs_dm_control
def test_a_task_that_is_not_of_the_suite_says_why_it_cannot_be_captured() -> None:
    made = envs.make("dm_control/reach_site_features-v0", 1)
    made.reset(seed=0)
    assert "of dm_control's those of its suite are" in str(snapshots.capture(made))
    made.close()
