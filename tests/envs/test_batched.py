"""Copies that are stepped in batches give what Gymnasium's own environments give, to the bit, through all options and ends of episodes."""

import logging
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

pytest.importorskip("mujoco")

from sacref import envs, training
from sacref.algorithm.tree import named_leaves
from sacref.envs import mujoco_simulations, mujoco_tasks
from sacref.envs.batched import BatchedVectorEnv, merged
from sacref.envs.divergence import DivergenceGuard
from sacref.envs.episodes import DROPPED
from sacref.envs.joined import JoinedEnvs
from sacref.envs.mujoco_simulations import BatchSimulations, PooledSimulations
from sacref.envs.snapshots import Snapshot, SnapshotError, capture, restore
from sacref.storage import checkpoint
from sacref.training import experiment
from tests.backends import assert_same_arrays
from tests.fake_agent import FakeAgent

# v4 is announced as out of date, and its models hold what MuJoCo has since renamed.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
LIMIT = 130
"""Steps of an episode: a thousand steps have resets in between on every task."""
needs_batch = pytest.mark.skipif(not mujoco_simulations.has_batch(), reason="MuJoCo < 4 steps by the pool alone")


@pytest.fixture(params=[pytest.param("batch", marks=needs_batch), "pool"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The two ways to step a task that has both."""
    chosen = str(request.param)
    if chosen == "pool":
        monkeypatch.setattr(mujoco_simulations, "has_batch", lambda: False)
    return chosen


def batched(task: str, copies: int = 2, *, mode: AutoresetMode = MODES[0], threads: int | None = None, **options: Any) -> BatchedVectorEnv:
    made = gymnasium.make(task, **{"max_episode_steps": LIMIT, **options})
    return BatchedVectorEnv(made, copies, autoreset_mode=mode, threads=threads)


def two(task: str, copies: int = 2, *, mode: AutoresetMode = MODES[0], **options: Any) -> tuple[Any, BatchedVectorEnv]:
    """Gymnasium's, and ours."""
    settings = {"max_episode_steps": LIMIT, **options}
    return envs.make(task, copies, autoreset_mode=mode, env_kwargs=settings), batched(task, copies, mode=mode, **options)


def drawn(made: Any, count: int, seed: int = 0) -> list[NDArray[Any]]:
    space = made.action_space
    space.seed(seed)
    return [space.sample() for _ in range(count)]


def stepped(made: Any, action: NDArray[Any]) -> dict[str, Any]:
    """All that a step gives, with the resets that the mode asks for."""
    names = ("observations", "rewards", "terminated", "truncated", "infos")
    found: dict[str, Any] = dict(zip(names, made.step(action), strict=True))
    ended = found["terminated"] | found["truncated"]
    if made.autoreset_mode == AutoresetMode.DISABLED and ended.any():
        found["reset"] = made.reset(options={"reset_mask": ended})
    return found


def assert_equal(found: Any, expected: Any, where: object = "") -> None:
    """The same keys, shapes, types and bits."""
    one, other = named_leaves(found), named_leaves(expected)
    assert one.keys() == other.keys(), where
    for name, wanted in other.items():
        got = one[name]
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape), (where, name)
        if wanted.dtype == object:
            for a, b in zip(got, wanted, strict=True):
                np.testing.assert_array_equal(a, b, err_msg=f"{where} {name}", strict=b is not None)
        else:
            np.testing.assert_array_equal(got, wanted, err_msg=f"{where} {name}")


def assert_same_steps(theirs: Any, ours: Any, actions: list[NDArray[Any]], seed: int | None = 5) -> int:
    """Reset and step both; how many episodes ended."""
    if seed is not None:
        assert_equal(ours.reset(seed=seed), theirs.reset(seed=seed), "reset")
    ends = 0
    for number, action in enumerate(actions):
        wanted = stepped(theirs, action)
        assert_equal(stepped(ours, action), wanted, number)
        ends += int((wanted["terminated"] | wanted["truncated"]).sum())
    theirs.close()
    ours.close()
    return ends


# Equal to Gymnasium's.


@pytest.mark.parametrize("episodes", [2, pytest.param(7, marks=pytest.mark.full)])
@pytest.mark.parametrize("task", mujoco_tasks.NAMES)
def test_the_steps_of_every_task_are_gymnasiums(task: str, episodes: int) -> None:
    theirs, ours = two(task, 3)
    assert assert_same_steps(theirs, ours, drawn(theirs, episodes * (LIMIT + 1))) >= 3 * episodes


@pytest.mark.parametrize("mode", MODES[1:], ids=lambda mode: mode.name)
@pytest.mark.parametrize("task", ["HalfCheetah-v5", "Hopper-v4", "Ant-v5", "InvertedDoublePendulum-v5"])
def test_the_other_autoreset_modes_are_gymnasiums(task: str, mode: AutoresetMode) -> None:
    theirs, ours = two(task, 3, mode=mode)
    assert ours.metadata["autoreset_mode"] == mode
    assert assert_same_steps(theirs, ours, drawn(theirs, 300)) >= 6


@pytest.mark.parametrize("task", [name for name in mujoco_tasks.NAMES if name.split("-")[0] not in ("Ant", "Humanoid", "HumanoidStandup")])
def test_both_ways_to_step_are_equal(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mujoco_simulations, "has_batch", lambda: False)
    theirs, ours = two(task)
    assert isinstance(ours._simulations, PooledSimulations)
    assert_same_steps(theirs, ours, drawn(theirs, 200))


@needs_batch
def test_the_faster_way_is_taken_where_nothing_is_read_behind_the_step() -> None:
    kinds = {task: type(batched(task)._simulations) for task in ("HalfCheetah-v5", "Pusher-v5", "Ant-v4", "Humanoid-v5")}
    assert list(kinds.values()) == [BatchSimulations, BatchSimulations, PooledSimulations, PooledSimulations]


def drop_warm_start(simulations: Any) -> None:
    if isinstance(simulations, BatchSimulations):
        simulations._batch.bind("qacc_warmstart")[:] = 0.0
    else:
        for data in simulations._data:
            data.qacc_warmstart[:] = 0.0


def test_without_the_warm_start_the_cheetah_drifts_apart(way: str) -> None:
    """What equality to the bit rests on: the solver begins where it ended in the step before."""
    theirs, ours = two("HalfCheetah-v5")
    theirs.reset(seed=0)
    ours.reset(seed=0)
    for action in drawn(theirs, 100):
        drop_warm_start(ours._simulations)
        observations, found = theirs.step(action)[0], ours.step(action)[0]
    assert np.abs(found - observations).max() > 1e-3
    ours.close()


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("HalfCheetah-v5", {"forward_reward_weight": 2, "ctrl_cost_weight": 0.7, "exclude_current_positions_from_observation": False}),
    ("HalfCheetah-v5", {"frame_skip": 3, "reset_noise_scale": 0.4}),
    ("Hopper-v5", {"healthy_reward": 3, "healthy_z_range": (0.9, 1.3), "healthy_angle_range": (-0.1, 0.1)}),
    ("Hopper-v5", {"healthy_state_range": (-2.0, 2.0), "healthy_angle_range": (-9.0, 9.0)}),
    ("Hopper-v4", {"terminate_when_unhealthy": False, "healthy_reward": 2, "max_episode_steps": 40}),
    ("Walker2d-v5", {"terminate_when_unhealthy": False, "xml_file": "walker2d.xml"}),
    ("Walker2d-v4", {"exclude_current_positions_from_observation": False, "healthy_angle_range": (-0.4, 0.4)}),
    ("Swimmer-v5", {"exclude_current_positions_from_observation": False, "ctrl_cost_weight": 1.0}),
    ("Ant-v5", {"main_body": "front_left_leg", "forward_reward_weight": 3, "contact_force_range": (-0.1, 0.2)}),
    ("Ant-v5", {"include_cfrc_ext_in_observation": False, "contact_cost_weight": 0.3, "healthy_z_range": (0.4, 0.9)}),
    ("Ant-v4", {"use_contact_forces": True, "exclude_current_positions_from_observation": False}),
    ("Ant-v4", {"terminate_when_unhealthy": False, "healthy_z_range": (0.5, 0.6)}),
    ("Humanoid-v5", {"include_cinert_in_observation": False, "include_cvel_in_observation": False, "contact_cost_range": (0.1, 0.2)}),
    ("Humanoid-v5", {"include_cfrc_ext_in_observation": False, "exclude_current_positions_from_observation": False}),
    ("Humanoid-v4", {"terminate_when_unhealthy": False, "healthy_z_range": (1.3, 1.5)}),
    ("HumanoidStandup-v5", {"include_qfrc_actuator_in_observation": False, "uph_cost_weight": 7, "impact_cost_range": (0.0, 1e-3)}),
    ("Reacher-v5", {"reward_dist_weight": 2.5, "reward_control_weight": 0.3}),
    ("Pusher-v5", {"reward_near_weight": 2.5, "reward_dist_weight": 3, "reward_control_weight": 0.3}),
    ("InvertedPendulum-v5", {"reset_noise_scale": 0.15}),
    ("InvertedDoublePendulum-v5", {"healthy_reward": 4}),
]


@pytest.mark.parametrize(("task", "options"), OPTIONS)
def test_options_of_the_tasks_are_honoured(task: str, options: dict[str, Any]) -> None:
    theirs, ours = two(task, **options)
    assert ours.single_observation_space == theirs.single_observation_space
    assert_same_steps(theirs, ours, drawn(theirs, 60))


def test_actions_are_taken_as_they_are() -> None:
    """A float64 action costs in float64, and what is beyond its bounds costs more than MuJoCo lets it do."""
    for kind, scale in ((np.float64, 1.0), (np.float64, 3.7), (np.float32, 3.7)):
        theirs, ours = two("HalfCheetah-v5")
        assert_same_steps(theirs, ours, [np.multiply(action, scale, dtype=kind) for action in drawn(theirs, 50)])


@pytest.mark.parametrize("copies", [1, 7])
def test_any_number_of_copies(copies: int, way: str) -> None:
    theirs, ours = two("Hopper-v5", copies)
    assert (ours.observation_space, ours.action_space) == (theirs.observation_space, theirs.action_space)
    assert_same_steps(theirs, ours, drawn(theirs, 100))


def test_episodes_without_a_limit_go_on() -> None:
    theirs, ours = two("HalfCheetah-v5", max_episode_steps=-1)
    assert assert_same_steps(theirs, ours, drawn(theirs, LIMIT + 20)) == 0


# Resets.


def test_seeds_are_given_as_gymnasium_gives_them() -> None:
    theirs, ours = two("HalfCheetah-v5", 3)
    seeds: list[int | list[int | None] | None] = [11, [4, None, 9], None, 3]
    for seed in seeds:
        assert_equal(ours.reset(seed=seed), theirs.reset(seed=seed), seed)
        assert ours.np_random_seed == theirs.np_random_seed
        assert [own.bit_generator.state for own in ours.np_random] == [own.bit_generator.state for own in theirs.np_random]
        assert_equal(ours.step(drawn(ours, 1)[0]), theirs.step(drawn(theirs, 1)[0]), seed)
    ours.reset(seed=3)
    began = ours.reset(seed=5)[0]
    ours.reset(seed=3)
    ours.np_random = [np.random.default_rng(np.random.SeedSequence(seed)) for seed in (5, 6, 7)]
    assert_equal(ours.reset()[0], began, "generators that were set")
    assert ours.np_random_seed == (-1, -1, -1)
    others: list[list[int | None]] = [[1, 2], []]
    for bad in others:
        with pytest.raises(ValueError, match=f"seed has {len(bad)} entries, expected 3"):
            ours.reset(seed=bad)
    first, second = (batched("HalfCheetah-v5").reset()[0] for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_some_copies_are_reset_alone(mode: AutoresetMode, way: str) -> None:
    theirs, ours = two("HalfCheetah-v5", 3, mode=mode, max_episode_steps=10)
    actions = drawn(theirs, 60)
    for made in (theirs, ours):
        made.reset(seed=1)
    for number, action in enumerate(actions):
        assert_equal(stepped(ours, action), stepped(theirs, action), number)
        if number % 13 == 9:
            mask = np.array([number % 2 == 0, number % 3 == 0, True])
            # Gymnasium takes the mask out of the options.
            assert_equal(ours.reset(options={"reset_mask": mask}), theirs.reset(options={"reset_mask": mask}), number)
    options = {"reset_mask": np.array([True, False, False])}
    ours.reset(options=options)
    assert list(options) == ["reset_mask"]
    for bad in ([True] * 3, np.ones(2, np.bool_), np.ones(3), np.zeros(3, np.bool_)):
        with pytest.raises(ValueError, match=r"reset_mask.*shape \(3,\) and dtype bool with a True"):
            ours.reset(options={"reset_mask": bad})


def test_what_a_step_gives_is_not_written_to_by_the_next() -> None:
    for task in ("HalfCheetah-v5", "Ant-v5", "Humanoid-v5", "Reacher-v5", "InvertedPendulum-v5"):
        made = batched(task, mode=AutoresetMode.SAME_STEP, max_episode_steps=3)
        made.reset(seed=0)
        actions = drawn(made, 6)
        given = [
            (found := stepped(made, action), {name: np.array(leaf) for name, leaf in named_leaves(found).items()}) for action in actions
        ]
        for found, before in given:
            assert_equal(named_leaves(found), before, task)
            leaves = [leaf for leaf in named_leaves(found).values() if leaf.dtype != object]
            for leaf in leaves:
                leaf[...] = 0
        twin = batched(task, mode=AutoresetMode.SAME_STEP, max_episode_steps=3)
        twin.reset(seed=0)
        for action in actions:
            twin.step(action)
        assert_equal(stepped(made, actions[0]), stepped(twin, actions[0]), task)


# Threads.


@pytest.mark.parametrize("task", ["HalfCheetah-v5", "Ant-v5"])
def test_the_number_of_threads_changes_no_bit(task: str, way: str) -> None:
    found = []
    for threads in (1, 2, 5):
        made = batched(task, 5, threads=threads)
        made.reset(seed=2)
        found.append([stepped(made, action) for action in drawn(made, 40)])
        made.close()
    for other in found[1:]:
        for step, wanted in zip(other, found[0], strict=True):
            assert_equal(step, wanted)


def test_there_is_a_thread_for_each_core_of_the_process_shared_by_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(12)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert [mujoco_simulations.default_threads(copies) for copies in (1, 4, 64)] == [1, 4, 12]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert mujoco_simulations.default_threads(64) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "32")
    assert mujoco_simulations.default_threads(64) == 1
    with pytest.raises(ValueError, match="threads is 0, expected at least 1"):
        batched("HalfCheetah-v5", threads=0)


def test_closing_ends_the_threads(way: str) -> None:
    before = threading.active_count()
    made = batched("HalfCheetah-v5", 6, threads=3)
    made.reset(seed=0)
    made.step_async(drawn(made, 1)[0])
    made.step_wait()
    assert threading.active_count() > before
    made.close()
    made.close()
    assert threading.active_count() == before


def test_python_runs_beside_a_step(way: str) -> None:
    """MuJoCo computes outside of Python's lock: another thread counts on while a long step is under way."""
    made = batched("Humanoid-v5" if way == "pool" else "HalfCheetah-v5", 2, threads=1, frame_skip=2_000)
    made.reset(seed=0)
    counted, finished = [0], threading.Event()

    def count() -> None:
        while not finished.is_set():
            counted[0] += 1

    counter = threading.Thread(target=count)
    counter.start()
    made._simulations.step(np.zeros(made.action_space.shape or ()), np.ones(2, np.bool_), 2_000)
    finished.set()
    counter.join()
    assert counted[0] > 1_000


def test_a_step_that_is_begun_goes_on_beside_the_caller(way: str) -> None:
    theirs, ours = two("Hopper-v5")
    assert_equal(ours.reset(seed=0), theirs.reset(seed=0))
    for action in drawn(theirs, 60):
        ours.step_async(action)
        for call in (lambda: ours.step(action), lambda: ours.step_async(action), ours.reset, ours.get_state):  # noqa: B023  # Called here.
            with pytest.raises(gymnasium.error.AlreadyPendingCallError, match="step_wait"):
                call()
        assert_equal(ours.step_wait(), theirs.step(action))
    with pytest.raises(gymnasium.error.NoAsyncCallError, match="step_async"):
        ours.step_wait()
    ours.step_async(action)
    ours.close()


# Simulations that diverge.


def set_velocity(made: Any, copy: int, joint: int, velocity: float) -> None:
    simulations: Any = getattr(made, "_simulations", None)
    if simulations is None:
        made.envs[copy].unwrapped.data.qvel[joint] = velocity
    elif isinstance(simulations, BatchSimulations):
        simulations._batch.bind("qvel")[copy, joint] = velocity
    else:
        simulations._data[copy].qvel[joint] = velocity


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize("velocity", [1e11, np.nan])
def test_a_simulation_that_diverges_is_told_of_as_gymnasiums_is(
    mode: AutoresetMode, velocity: float, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    runs = []
    for made in two("HalfCheetah-v5", 2, mode=mode):
        agent = Disturbed(made, 4, velocity)
        training.run(agent, made, timesteps=12, seed=5)
        runs.append((agent.rows, [record.getMessage() for record in caplog.records if record.name == "sacref.envs.divergence"]))
        caplog.clear()
        made.close()
    (expected, words), (found, said) = runs
    assert said == words and len(said) == 1 and "MuJoCo: Nan, Inf or huge value in QVEL at DOF 3" in said[0]
    dropped = [row["infos"][DROPPED].tolist() if DROPPED in row["infos"] else None for row in found]
    assert dropped == [None] * 4 + [[False, True]] + [None] * 7
    for row, wanted in zip(found, expected, strict=True):
        assert_equal(row, wanted)


class Disturbed(FakeAgent):
    """Sets a velocity of the second simulation before a timestep."""

    def __init__(self, made: Any, timestep: int, velocity: float) -> None:
        super().__init__()
        self.made, self.timestep, self.velocity = made, timestep, velocity

    def act(self, observations: Any, states: Any, *, timestep: int, timesteps: int) -> tuple[Any, dict[str, Any]]:
        if timestep == self.timestep:
            set_velocity(self.made, 1, 3, self.velocity)
        return np.full((len(observations), 6), 0.1, np.float32), {}


def test_a_complaint_is_made_once_and_a_reset_forgets_it(way: str) -> None:
    made = batched("HalfCheetah-v5", 3, threads=2)
    made.reset(seed=0)
    assert made.complaints() == {}
    for copy in (0, 2):
        set_velocity(made, copy, 1, 1e12)
    made.step(np.zeros((3, 6), np.float32))
    words = "MuJoCo: Nan, Inf or huge value in QVEL at DOF 1. The simulation is unstable"
    assert made.complaints() == {0: words, 2: words}
    assert made.complaints() == {}
    set_velocity(made, 1, 1, 1e12)
    made.step(np.zeros((3, 6), np.float32))
    made.reset(options={"reset_mask": np.array([False, True, False])})
    assert made.complaints() == {}
    made.close()


def test_mujocos_warnings_from_other_threads_are_logged(way: str, caplog: pytest.LogCaptureFixture) -> None:
    """MuJoCo calls Python from a thread of its own: it has to find Python's lock free."""
    made: Any = envs.make("HalfCheetah-v5", 8, vectorization="batched")
    made.reset(seed=0)
    for copy in range(8):
        set_velocity(made, copy, 1, 1e12)
    with caplog.at_level(logging.WARNING, "sacref.mujoco"):
        made.step(np.zeros((8, 6), np.float32))
    assert len(caplog.records) >= 1 and "QVEL at DOF 1" in caplog.records[0].getMessage()
    made.close()


def test_others_that_know_of_no_simulations_are_not_asked() -> None:
    guard = DivergenceGuard(envs.make("Pendulum-v1", 1, seed=0))
    zero = np.zeros(1)
    found = guard.look(observations=np.zeros((1, 3)), states=None, rewards=zero, ended=zero > 0, infos={}, timestep=0)
    assert found.tolist() == [False]


# Snapshots.


def through_files(snapshot: Snapshot | str, folder: Path) -> Snapshot:
    assert isinstance(snapshot, Snapshot), snapshot
    checkpoint.write(folder / "snapshot", {"environments": snapshot.arrays}, snapshot.metadata)
    read = checkpoint.read(folder / "snapshot")
    return Snapshot(read.groups["environments"], read.metadata)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
@pytest.mark.parametrize(
    ("task", "before"),
    [("HalfCheetah-v5", 0), ("HalfCheetah-v5", 60), ("HalfCheetah-v5", 130), ("Ant-v5", 40), ("Humanoid-v5", 45), ("Humanoid-v4", 45)],
)
def test_a_fresh_environment_goes_on_bit_for_bit(task: str, before: int, mode: AutoresetMode, tmp_path: Path) -> None:
    captured, fresh = (batched(task, mode=mode, max_episode_steps=30) for _ in range(2))
    captured.reset(seed=3)
    actions = drawn(captured, before + 50)
    for action in actions[:before]:
        stepped(captured, action)
    snapshot = through_files(capture(captured), tmp_path)
    if before:
        fresh.reset(seed=77)
        for action in actions[:17]:
            stepped(fresh, action)
    restore(fresh, snapshot)
    for action in actions[before:]:
        assert_equal(stepped(fresh, action), stepped(captured, action))
    captured.close()
    fresh.close()


@pytest.mark.parametrize(
    ("other", "change", "said"),
    [
        (lambda: batched("Walker2d-v5"), {}, "the state's task is .*HalfCheetahEnv', expected .*Walker2dEnv'"),
        (lambda: batched("HalfCheetah-v5", 3), {}, r"observations is float64 \(2, 17\), expected float64 \(3, 17\)"),
        (lambda: batched("HalfCheetah-v5", mode=AutoresetMode.SAME_STEP), {}, "autoreset_mode is NextStep, expected SameStep"),
        (
            lambda: envs.make("HalfCheetah-v5", 2),
            {},
            "were stepped by sacref.envs.batched:BatchedVectorEnv, and are by gymnasium.*SyncVectorEnv: make",
        ),
        (lambda: batched("HalfCheetah-v5"), {"mujoco": "3.3.0"}, "the state's mujoco is '3.3.0', expected '"),
        (lambda: batched("HalfCheetah-v5"), {"generators": [None]}, "there are 1 generators, expected 2"),
        (lambda: batched("HalfCheetah-v5"), {"simulations": {}}, "the simulation has the arrays"),
    ],
)
def test_a_snapshot_of_others_is_refused_and_changes_nothing(
    other: Callable[[], Any], change: Mapping[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured, fresh = batched("HalfCheetah-v5"), other()
    captured.reset(seed=0)
    fresh.reset(seed=1)
    state = {**captured.get_state(), **change}
    monkeypatch.setattr(captured, "get_state", lambda: state)
    snapshot = capture(captured)
    assert isinstance(snapshot, Snapshot)
    before = capture(fresh)
    with pytest.raises(SnapshotError, match=said):
        restore(fresh, snapshot)
    after = capture(fresh)
    assert isinstance(before, Snapshot) and isinstance(after, Snapshot)
    assert before.metadata == after.metadata
    assert_equal(after.arrays, before.arrays)


# Several as one.


def parts_of(task: str, *, count: int = 3, copies: int = 2, **options: Any) -> list[Any]:
    """Batched environments in the midst of their episodes, but for the second, which is not there."""
    made: list[Any] = [None if number == 1 else batched(task, copies, **options) for number in range(count)]
    for number, part in enumerate(made):
        if part is not None:
            part.reset(seed=10 * number)
            for action in drawn(part, 3, number):
                stepped(part, action)
    return made


def joined(parts: list[Any]) -> JoinedEnvs:
    together = JoinedEnvs(parts, None)
    together.begin([None if part is None else part.get_state()["observations"] for part in parts], [None] * len(parts))
    return together


def one_by_one(parts: list[Any]) -> JoinedEnvs:
    """Joined environments whose parts are stepped one after the other."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sacref.envs.joined.merged", lambda parts: None)
        return joined(parts)


def assert_same_states(parts: list[Any], others: list[Any], where: object = "") -> None:
    for number, pair in enumerate(zip(parts, others, strict=True)):
        if pair[0] is not None:
            one, other = map(capture, pair)
            assert isinstance(one, Snapshot) and isinstance(other, Snapshot)
            assert one.metadata == other.metadata, (where, number)
            assert_equal(one.arrays, other.arrays, (where, number))


def assert_same_rows(one: tuple[JoinedEnvs, list[Any]], other: tuple[JoinedEnvs, list[Any]], actions: NDArray[Any], where: object) -> int:
    """Step both, and reset what has ended where nothing else does; how many episodes ended."""
    found, wanted = one[0].step(actions), other[0].step(actions)
    assert_equal(found, wanted, where)
    assert_same_states(one[1], other[1], where)
    ended = wanted[2] | wanted[3]
    first = next(part for part in one[1] if part is not None)
    if first.autoreset_mode == AutoresetMode.DISABLED and ended.any():
        assert_equal(one[0].reset(options={"reset_mask": ended}), other[0].reset(options={"reset_mask": ended}), where)
    return int(ended.sum())


@pytest.mark.parametrize(
    ("task", "mode"),
    [*(("Hopper-v5", mode) for mode in MODES), ("Pusher-v5", MODES[0]), ("Ant-v4", MODES[0]), ("Humanoid-v5", MODES[1])],
)
def test_parts_that_step_in_one_call_are_those_that_step_one_by_one(task: str, mode: AutoresetMode, way: str) -> None:
    """Also where some wait, one has its step alone, one goes back, and one is reset by a seed."""
    options: dict[str, Any] = {"count": 4, "mode": mode, "max_episode_steps": 15}
    ours, theirs = parts_of(task, **options), parts_of(task, **options)
    both = (joined(ours), ours), (one_by_one(theirs), theirs)
    assert isinstance(both[0][0]._whole, BatchedVectorEnv) and both[1][0]._whole is None
    several = gymnasium.vector.utils.batch_space(ours[0].single_action_space, 8)
    several.seed(3)
    before = [capture(parts[0]) for parts in (ours, theirs)]
    ends = 0
    for number in range(60):
        active = np.array([True, False, number % 7 > 2, number % 11 != 5])
        for together, _ in both:
            together.active = active.copy()
        ends += assert_same_rows(*both, several.sample(), number)
        if number == 20:
            for parts, snapshot in zip((ours, theirs), before, strict=True):
                assert isinstance(snapshot, Snapshot)
                restore(parts[0], snapshot)
        if number == 30:
            assert_equal(*(parts[2].reset(seed=[None, 5]) for parts in (ours, theirs)))
        if number == 40:
            action = drawn(ours[3], 1)[0]
            assert_equal(*(stepped(parts[3], action) for parts in (ours, theirs)))
    assert ends >= 6
    assert [part.np_random_seed for part in ours if part is not None] == [part.np_random_seed for part in theirs if part is not None]


def test_all_parts_step_in_one_call(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = parts_of("HalfCheetah-v5")
    together, calls = joined(parts), list[list[bool]]()
    simulations: Any = together._whole and together._whole._simulations
    step = simulations.step

    def noted(controls: Any, which: Any, substeps: int) -> Any:
        calls.append(which.tolist())
        return step(controls, which, substeps)

    monkeypatch.setattr(simulations, "step", noted)
    for part in (parts[0], parts[2]):
        monkeypatch.setattr(part, "step_async", None)
        monkeypatch.setattr(part, "step", None)
    together.step(np.zeros((6, 6), np.float32))
    assert calls == [[True, True, False, False, True, True]] and together.failures == {}


@needs_batch
def test_parts_that_step_in_threads_step_one_after_the_other() -> None:
    """They share MuJoCo's batch, which tells what failed in its last call."""
    whole = batched("Hopper-v5", 4)
    simulations: Any = whole._simulations
    calls: list[list[int]] = []
    inside = threading.Semaphore(1)

    def step(ids: NDArray[Any], nstep: int) -> None:
        assert inside.acquire(blocking=False), "another part steps"
        time.sleep(0.05)
        calls.append(ids.tolist())
        inside.release()

    simulations._batch = SimpleNamespace(step=step)
    parts = [simulations.part(slice(start, start + 2)) for start in (0, 2)]
    with ThreadPoolExecutor(2) as pool:
        steps = [pool.submit(part.step, np.zeros((2, 3)), np.ones(2, np.bool_), 1) for part in parts * 2]
        assert [each.result() for each in steps] == [{}] * 4
    assert sorted(calls) == [[0, 1], [0, 1], [2, 3], [2, 3]]


def lighter(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    model: Any = env.unwrapped
    model.model.opt.gravity[2] = -5.0
    return env


@pytest.mark.parametrize(
    "changes",
    [
        {"env_kwargs": {"ctrl_cost_weight": 0.2}},
        {"env_kwargs": {"max_episode_steps": 9}},
        {"autoreset_mode": AutoresetMode.SAME_STEP},
        {"vectorization": "sync"},
        {"wrappers": [lighter]},
    ],
)
def test_parts_that_are_made_otherwise_step_by_themselves(changes: dict[str, Any]) -> None:
    made: list[Any] = [envs.make("HalfCheetah-v5", 2, seed=3, **{"vectorization": "batched", **own}) for own in ({}, {}, changes)]
    one, other, third = made
    assert merged([one, third]) is None
    gravity = other.prototype.unwrapped.model.opt.gravity
    for added in (1.0, 0.0):
        gravity[2] += added
        assert (merged([one, other]) is None) == bool(added)
        gravity[2] -= added


@pytest.mark.full
@pytest.mark.parametrize("task", mujoco_tasks.NAMES)
def test_parts_of_every_task_are_merged(task: str) -> None:
    assert merged(parts_of(task)) is not None


def test_a_simulation_that_mujoco_cannot_step_ends_its_part_alone(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = parts_of("HalfCheetah-v5"), parts_of("HalfCheetah-v5")
    together, apart = joined(ours), one_by_one(theirs)
    simulations: Any = together._whole and together._whole._simulations
    actions = np.full((6, 6), 0.3, np.float32)
    wanted = apart.step(actions)
    said = "unknown joint type 99"
    if way == "batch":
        simulations._batch.expand("jnt_type")[5] = 99
    else:
        step, data = simulations._step, simulations._data[5]

        def fail(model: Any, own: Any, substeps: int) -> None:
            if own is data:
                raise OSError(said)
            step(model, own, substeps)

        monkeypatch.setattr(simulations, "_step", fail)
    before = together._copies()[0]
    for _ in range(2):
        found = together.step(actions)
        assert {number: said in str(error) for number, error in together.failures.items()} == {2: True}
        assert together.active.tolist() == [True, False, False]
        assert found[1][4:].tolist() == [0.0, 0.0] and not (found[2] | found[3]).any()
    assert_equal(found[0][:2], apart.step(actions)[0][:2])
    assert_equal(found[0][4:], before[4:])
    assert wanted[1][4:].all()


@pytest.mark.parametrize("error", [OSError("no reset"), gymnasium.error.Error("no reset")])
def test_a_copy_that_cannot_be_reset_ends_its_part_alone(way: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = (parts_of("HalfCheetah-v5", max_episode_steps=4) for _ in range(2))
    together, apart = joined(ours), one_by_one(theirs)
    prototype: Any = together._whole and together._whole._prototype
    failing, reset = together._whole and together._whole._streams[5]._np_random, prototype.reset

    def fail(**options: Any) -> Any:
        if prototype._np_random is failing:
            raise error
        return reset(**options)

    monkeypatch.setattr(prototype, "reset", fail)
    actions = np.full((6, 6), 0.3, np.float32)
    for _ in range(3):
        found, wanted = together.step(actions), apart.step(actions)
        for one, other in zip(found[:4], wanted[:4], strict=True):
            assert_equal(one[:4], other[:4])
    assert together.failures == {2: error} and together.active.tolist() == [True, False, False]


def test_environments_that_mujoco_cannot_step_say_so(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = batched("HalfCheetah-v5")
    made.reset(seed=0)
    error = OSError("gone")
    monkeypatch.setattr(made._simulations, "step", lambda *_: {1: error})
    action = drawn(made, 1)[0]
    with pytest.raises(OSError, match="gone"):
        made.step(action)
    made.step_async(action)
    with pytest.raises(OSError, match="gone"):
        made.step_wait()


def test_the_part_that_refuses_to_step_ends_alone(way: str) -> None:
    """Closed, or ended and not reset; the others go on as before."""
    options: dict[str, Any] = {"count": 4, "mode": AutoresetMode.DISABLED, "max_episode_steps": 5}
    ours, theirs = parts_of("HalfCheetah-v5", **options), parts_of("HalfCheetah-v5", **options)
    both = (joined(ours), ours), (one_by_one(theirs), theirs)
    actions = np.full((8, 6), 0.3, np.float32)
    for together, parts in both:
        together.step(actions)
        parts[3].close()
        parts[0].reset()
        parts[2].reset(seed=4)
        together.active[0] = False
        for _ in range(6):
            together.step(actions)
        assert {number: type(error).__name__ for number, error in together.failures.items()} == {
            2: "ResetNeeded",
            3: "ClosedEnvironmentError",
        }
        together.active[0] = True
    assert_same_states(ours[:1], theirs[:1])
    assert_equal(*(together.step(actions) for together, _ in both))


def test_what_diverges_is_told_of_its_part(way: str) -> None:
    parts = parts_of("HalfCheetah-v5")
    together = joined(parts)
    set_velocity(together._whole, 4, 1, 1e12)
    together.step(np.zeros((6, 6), np.float32))
    words = {4: "MuJoCo: Nan, Inf or huge value in QVEL at DOF 1. The simulation is unstable"}
    assert together.complaints() == words and together.complaints() == {}
    set_velocity(together._whole, 5, 1, 1e12)
    together.step(np.zeros((6, 6), np.float32))
    assert [part.complaints() for part in (parts[0], parts[2])] == [{}, {1: words[4]}]
    assert together.complaints() == {}


@pytest.mark.parametrize("first", ["parts", "whole"])
def test_closing_what_was_joined_ends_the_threads(way: str, first: str) -> None:
    before = set(threading.enumerate())
    parts = [part for part in parts_of("HalfCheetah-v5", copies=3, threads=3) if part is not None]
    together = joined(parts)
    simulations: Any = together._whole and together._whole._simulations
    batch = weakref.ref(simulations._batch) if way == "batch" else None
    together.step(np.zeros((6, 6), np.float32))
    if first == "whole":
        together.close()
        parts[0].step(np.zeros((3, 6), np.float32))
    for part in parts:
        part.close()
    together.close()
    assert set(threading.enumerate()) <= before
    assert batch is None or batch() is None


# How it is asked for, and what it refuses.


def test_it_is_asked_for_by_the_vectorization() -> None:
    made = envs.make("HalfCheetah-v5", 3, seed=4, vectorization="batched", env_kwargs={"ctrl_cost_weight": 0.3})
    twin = envs.make("HalfCheetah-v5", 3, seed=4, env_kwargs={"ctrl_cost_weight": 0.3})
    assert isinstance(made, BatchedVectorEnv) and made.num_envs == 3
    assert_equal(stepped(made, drawn(made, 1)[0]), stepped(twin, drawn(twin, 1)[0]))
    assert repr(made) == "BatchedVectorEnv(num_envs=3)"


def add_one(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    return gymnasium.wrappers.TransformReward(env, lambda reward: float(reward) + 1)


@pytest.mark.parametrize(
    ("task", "changes", "said"),
    [
        ("Pendulum-v1", {}, "Pendulum-v1 is not stepped in batches, only HalfCheetah-v4, HalfCheetah-v5, .*: take vectorization='sync'"),
        ("HumanoidStandup-v4", {}, "HumanoidStandup-v4 is not stepped in batches"),
        ("Swimmer-v4", {}, "Swimmer-v4 is not stepped in batches"),
        ("HalfCheetah-v5", {"wrappers": [add_one]}, "has the wrapper TransformReward.*take vectorization='sync'"),
        ("HalfCheetah-v5", {"env_kwargs": {"render_mode": "rgb_array"}}, "render_mode is 'rgb_array'.*take vectorization='sync'"),
        ("HalfCheetah-v5", {"env_kwargs": {"colour": "red"}}, "cannot be made .*colour"),
        ("HalfCheetah-v9", {}, "is unknown"),
    ],
)
def test_other_tasks_are_refused_by_name(task: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(envs.EnvError, match=said):
        envs.make(task, 2, vectorization="batched", **changes)


def test_a_task_derived_from_gymnasiums_is_refused() -> None:
    from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv

    class Own(HalfCheetahEnv):
        """It may pay what it likes."""

    with pytest.raises(envs.EnvError, match=r"test_batched:.*Own is not stepped in batches"):
        envs.make(Own, 1, vectorization="batched")


def test_a_limit_of_the_users_is_honoured() -> None:
    made = envs.make("HalfCheetah-v5", 2, vectorization="batched", wrappers=[lambda env: gymnasium.wrappers.TimeLimit(env, 3)], seed=0)
    assert [bool(made.step(action)[3].all()) for action in drawn(made, 4)] == [False, False, True, False]


def test_misuse_is_refused() -> None:
    made = batched("HalfCheetah-v5", mode=AutoresetMode.DISABLED, max_episode_steps=2)
    action = np.zeros((2, 6), np.float32)
    with pytest.raises(gymnasium.error.ResetNeeded, match="before calling"):
        made.step(action)
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"environments \[1\] have not begun: reset all first"):
        made.reset(options={"reset_mask": np.array([True, False])})
    made.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions have shape \(6,\), expected \(2, 6\)"):
        made.step(action[0])
    made.step(action)
    made.step(action)
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"environments \[0, 1\] have ended.*reset_mask"):
        made.step(action)
    made.close()
    for call in (made.reset, lambda: made.step(action), made.get_state):
        with pytest.raises(gymnasium.error.ClosedEnvironmentError, match="closed"):
            call()
    for num_envs in (0, True):
        with pytest.raises(ValueError, match=f"num_envs is {num_envs}, expected an integer of at least 1"):
            BatchedVectorEnv(gymnasium.make("HalfCheetah-v5"), num_envs)


def test_mujoco_is_loaded_where_it_is_asked_for_alone() -> None:
    modules = "sacref, sacref.envs, sacref.envs.batched, sacref.envs.mujoco_tasks, sacref.envs.mujoco_simulations"
    program = f"import sys; import {modules}; assert 'mujoco' not in sys.modules, sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def arrays_of(result: Any) -> Any:
    return result.agent.arrays()


def test_a_run_is_the_one_on_gymnasiums_own_environments_and_goes_on_to_the_bit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("torch")
    cfg = {"batch_size": 8, "random_timesteps": 10, "learning_starts": 10, "execution": "plain", "experiment": {"checkpoint_interval": 10}}
    settings: dict[str, Any] = {"backend": "torch", "env": "HalfCheetah-v5", "num_envs": 2, "hidden": (8,), "cfg": cfg, "progress": False}
    settings |= {"evaluation_interval": 60, "evaluation_episodes": 2, "env_kwargs": {"max_episode_steps": 13}, "steps": 60}
    theirs = experiment.train(**settings, run_dir=tmp_path / "sync")
    ours = experiment.train(**settings, run_dir=tmp_path / "batched", vectorization="batched")
    assert ours.config["vectorization"] == "batched"
    assert ours.evaluations == theirs.evaluations
    assert_same_arrays(arrays_of(ours), arrays_of(theirs))
    for vectorization in ("batched", "sync"):
        cut = tmp_path / f"{vectorization}, resumed"
        shutil.copytree(tmp_path / "batched", cut)
        for timestep in (20, 30):
            shutil.rmtree(cut / "checkpoints" / f"agent_{timestep}")
        with caplog.at_level(logging.WARNING):
            resumed = experiment.train(**settings, run_dir=cut, vectorization=vectorization, resume=True)
        if vectorization == "batched":
            assert "begin anew" not in caplog.text
            assert_same_arrays(arrays_of(resumed), arrays_of(ours))
    # Snapshots of one are not the other's.
    assert "the episodes begin anew (the environments were stepped by sacref.envs.batched:BatchedVectorEnv, and are by" in caplog.text
