"""A fresh vector environment goes on from a snapshot bit for bit, through episodes' ends; what cannot be captured is said to be."""

import copy
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from sacref import envs
from sacref.algorithm.tree import named_leaves
from sacref.envs import snapshots
from sacref.envs.partial import DictObservation, HideVelocities, PrivilegedState
from sacref.envs.snapshots import Snapshot, SnapshotError, capture, of_other_kind, restore
from sacref.storage import checkpoint

# v4 is announced as out of date, and its models hold what MuJoCo has since renamed.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Envs = VectorEnv[Any, Any, Any]
LIMIT = 60
"""Steps of an episode; under NEXT_STEP its reset takes one more."""
BEFORE, AFTER = 120, 200
TASKS = (
    *("HalfCheetah-v5", "Ant-v5", "Humanoid-v5", "Hopper-v5", "Walker2d-v5", "InvertedPendulum-v5", "InvertedDoublePendulum-v5"),
    *("Swimmer-v5", "Reacher-v5", "Pusher-v5", "HumanoidStandup-v5", "Ant-v4", "Humanoid-v4", "Pendulum-v1", "MountainCarContinuous-v0"),
)


def make(task: str, *, seed: int = 0, limit: int = LIMIT, **changes: Any) -> Envs:
    if task not in ("Pendulum-v1", "MountainCarContinuous-v0"):
        pytest.importorskip("mujoco")
    return envs.make(task, 2, seed=seed, env_kwargs={"max_episode_steps": limit}, **changes)


def actions(stepped: Envs, count: int, seed: int) -> NDArray[np.float64]:
    space = stepped.single_action_space
    assert isinstance(space, gymnasium.spaces.Box)
    low, high = np.clip(space.low, -1, None), np.clip(space.high, None, 1)
    drawn = np.random.default_rng(seed).uniform(low, high, (count, 2, *space.shape))
    return drawn.astype(space.dtype)


def run(stepped: Envs, chosen: NDArray[Any]) -> list[dict[str, Any]]:
    """All that each step gave, but for clocks."""
    found = []
    for action in chosen:
        observations, rewards, terminated, truncated, infos = stepped.step(action)
        leaves = named_leaves({"o": observations, "r": rewards, "te": terminated, "tr": truncated, "i": infos})
        found.append({name: leaf.copy() for name, leaf in leaves.items() if not name.endswith("episode.t")})
    return found


def equal(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(_equal(a[name], b[name]) for name in a) for a, b in zip(one, other, strict=True)
    )


def _equal(a: Any, b: Any) -> bool:
    if a.dtype == object:
        return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def through_files(snapshot: Snapshot | str, folder: Path) -> Snapshot:
    assert isinstance(snapshot, Snapshot), snapshot
    checkpoint.write(folder / "snapshot", {"environments": snapshot.arrays}, snapshot.metadata)
    read = checkpoint.read(folder / "snapshot")
    return Snapshot(read.groups["environments"], read.metadata)


def continues(tmp_path: Path, made: Callable[[int], Envs], before: int = BEFORE, after: int = AFTER, past: int = 17) -> bool:
    """Whether a fresh vector environment with another past goes on from a snapshot as the captured one does."""
    captured, fresh = made(1), made(1_000)
    run(captured, actions(captured, before, 0))
    snapshot = through_files(capture(captured), tmp_path)
    expected = run(captured, actions(captured, after, 1))
    run(fresh, actions(fresh, past, 2))
    restore(fresh, snapshot)
    same = equal(run(fresh, actions(fresh, after, 1)), expected)
    assert any((step["te"] | step["tr"]).any() for step in expected)
    captured.close()
    fresh.close()
    return same


@pytest.mark.parametrize("task", TASKS)
def test_a_fresh_environment_goes_on_bit_for_bit_through_the_end_of_an_episode(task: str, tmp_path: Path) -> None:
    assert continues(tmp_path, lambda seed: make(task, seed=seed))


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("task", ["HalfCheetah-v5", "Ant-v5", "Pendulum-v1"])
@pytest.mark.parametrize("before", [0, 1, LIMIT])
def test_a_snapshot_is_exact_behind_a_reset_and_where_an_episode_has_just_ended(
    task: str, before: int, mode: AutoresetMode, tmp_path: Path
) -> None:
    assert continues(tmp_path, lambda seed: make(task, seed=seed, autoreset_mode=mode), before=before, after=100)


def test_it_goes_on_in_an_environment_that_was_never_reset(tmp_path: Path) -> None:
    captured, fresh = make("Pendulum-v1"), envs.make("Pendulum-v1", 2, env_kwargs={"max_episode_steps": LIMIT})
    run(captured, actions(captured, 7, 0))
    restore(fresh, through_files(capture(captured), tmp_path))
    assert equal(run(fresh, actions(fresh, 100, 1)), run(captured, actions(captured, 100, 1)))


@pytest.mark.parametrize(("task", "array"), [("Ant-v5", "xpos"), ("Humanoid-v5", "xipos")])
def test_what_mujoco_has_computed_is_restored_by_value(task: str, array: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is of the substep before; `mj_forward` would compute it of the positions at hand."""
    mujoco = pytest.importorskip("mujoco")
    captured, fresh = make(task, seed=1), make(task, seed=1_000)
    assert isinstance(fresh, SyncVectorEnv)
    run(captured, actions(captured, 40, 0))
    run(fresh, actions(fresh, 17, 2))
    snapshot = capture(captured)
    assert isinstance(snapshot, Snapshot)
    others = [getattr(env.unwrapped, "data") for env in fresh.envs]  # noqa: B009  # mypy does not know it.
    before = [getattr(data, array).copy() for data in others]
    ((wanted,), off) = run(captured, actions(captured, 1, 1)), {}
    for kept in ("by value", "as it was", "by mj_forward"):
        restore(fresh, snapshot)
        for env, data, old in zip(fresh.envs, others, before, strict=True):
            if kept == "as it was":
                getattr(data, array)[:] = old
            if kept == "by mj_forward":
                start = data.qacc_warmstart.copy()
                mujoco.mj_forward(getattr(env.unwrapped, "model"), data)  # noqa: B009  # mypy does not know it.
                data.qacc_warmstart[:] = start
        (found,) = run(fresh, actions(fresh, 1, 1))
        off[kept] = np.abs(found["r"] - wanted["r"]).max()
    assert off["by value"] == 0.0
    assert off["as it was"] > 0.1
    assert 1e-6 < off["by mj_forward"] < off["as it was"]


def test_the_tasks_of_gymnasium_keep_nothing_beside_their_simulation() -> None:
    """What else changes in the object of a task is not read by a step: where its reset put things."""
    # Pusher's reset writes into its initial positions those that it draws, each time.
    placed = {"Reacher-v5": {"goal"}, "Pusher-v5": {"cylinder_pos", "goal_pos", "init_qpos"}}
    for task in TASKS:
        if task.endswith(("-v5", "-v4")):
            made = make(task, limit=20)
            assert isinstance(made, SyncVectorEnv)
            env: Any = made.envs[0].unwrapped
            kinds = (int, float, np.ndarray, dict, list)
            before: dict[str, Any] = {name: copy.deepcopy(value) for name, value in vars(env).items() if isinstance(value, kinds)}
            known = set(vars(env))
            run(made, actions(made, 50, 0))
            changed = {name for name, value in before.items() if not np.array_equal(vars(env)[name], value)}
            assert changed | (set(vars(env)) - known) - {"_np_random"} <= placed.get(task, set()), task


def stack(*around: Callable[[Any], Any]) -> dict[str, Any]:
    return {"wrappers": list(around)}


def normalised(env: Any) -> Any:
    return wrappers.NormalizeReward(wrappers.NormalizeObservation(env))


STACKS: dict[str, dict[str, Any]] = {
    "normalised": stack(normalised, wrappers.RecordEpisodeStatistics),
    "stacked": stack(lambda env: wrappers.FrameStackObservation(env, 3)),
    "stacked, zeros": stack(lambda env: wrappers.FrameStackObservation(env, 3, padding_type="zero")),
    "delayed": stack(lambda env: wrappers.DelayObservation(env, 2), wrappers.TimeAwareObservation),
    "sticky": stack(lambda env: wrappers.StickyAction(env, 0.5, (1, 4))),
    "repeated": stack(
        lambda env: wrappers.MaxAndSkipObservation(env, 2),
        lambda env: wrappers.RescaleAction(env, np.float32(-1), np.float32(1)),
        wrappers.ClipAction,
    ),
    "parts": stack(PrivilegedState, DictObservation),
    "hidden": stack(PrivilegedState, HideVelocities, wrappers.FlattenObservation),
    "twice": stack(wrappers.NormalizeObservation, wrappers.NormalizeObservation),
    "autoreset": stack(wrappers.Autoreset),
}


@pytest.mark.parametrize("around", STACKS)
def test_wrappers_go_on_bit_for_bit(around: str, tmp_path: Path) -> None:
    assert continues(tmp_path, lambda seed: make("Pendulum-v1", seed=seed, **STACKS[around]))


@pytest.mark.parametrize(("before", "past"), [(BEFORE, 0), (0, 17)], ids=["into one just reset", "of one just reset"])
@pytest.mark.parametrize("around", STACKS)
def test_wrappers_go_on_from_and_in_environments_that_have_taken_no_step(around: str, before: int, past: int, tmp_path: Path) -> None:
    assert continues(tmp_path, lambda seed: make("Pendulum-v1", seed=seed, **STACKS[around]), before=before, past=past, after=100)


@pytest.mark.parametrize(
    ("around", "wrapper", "attribute"),
    [
        *(("normalised", "NormalizeObservation", f"obs_rms.{name}") for name in ("mean", "var", "count")),
        *(("normalised", "NormalizeReward", name) for name in ("return_rms.var", "return_rms.count", "discounted_reward")),
        *(("normalised", "RecordEpisodeStatistics", f"episode_{name}") for name in ("returns", "lengths")),
        ("normalised", "TimeLimit", "_elapsed_steps"),
        ("stacked", "FrameStackObservation", "obs_queue"),
        ("delayed", "DelayObservation", "observation_queue"),
        ("delayed", "TimeAwareObservation", "timesteps"),
        *(("sticky", "StickyAction", name) for name in ("last_action", "is_sticky_actions", "num_repeats", "repeats_taken")),
    ],
)
def test_what_a_wrapper_keeps_is_needed(around: str, wrapper: str, attribute: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    less = tuple(name for name in snapshots._WRAPPERS[wrapper] if name != attribute)
    assert len(less) == len(snapshots._WRAPPERS[wrapper]) - 1
    monkeypatch.setattr(snapshots, "_WRAPPERS", {**snapshots._WRAPPERS, wrapper: less})
    assert not continues(tmp_path, lambda seed: make("Pendulum-v1", seed=seed, **STACKS[around]), before=BEFORE - 6)


def test_statistics_of_episodes_come_back_and_the_clock_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    captured, fresh = (make("Pendulum-v1", seed=seed, **stack(wrappers.RecordEpisodeStatistics)) for seed in (1, 2))
    run(captured, actions(captured, LIMIT + 2, 0))  # An episode, its reset, and a step.
    clock[0] = 107.0
    snapshot = through_files(capture(captured), tmp_path)
    clock[0] = 5_000.0
    restore(fresh, snapshot)
    assert isinstance(fresh, SyncVectorEnv) and isinstance(captured, SyncVectorEnv)
    recorder, original = (one.envs[0] for one in (fresh, captured))
    assert isinstance(recorder, wrappers.RecordEpisodeStatistics) and isinstance(original, wrappers.RecordEpisodeStatistics)
    assert (recorder.episode_count, recorder.episode_start_time) == (1, 4_993.0)
    assert recorder.return_queue == original.return_queue and len(recorder.return_queue) == 1
    assert recorder.return_queue.maxlen == 100


class Counter(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Takes part by its own methods, or by none."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.count, self.trace = 0, np.zeros(2)

    def step(self, action: Any) -> Any:
        self.count += 1
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.trace = 0.9 * self.trace + float(reward)
        return observation, float(reward) + self.count + self.trace[0], terminated, truncated, info


class Known(Counter):
    def get_state(self) -> dict[str, Any]:
        return {"count": self.count, "trace": self.trace}

    def set_state(self, state: dict[str, Any]) -> None:
        self.count, self.trace = state["count"], state["trace"]


class Task(gymnasium.Env[Any, Any]):
    """A task of the user's, which draws at each step."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, bits: Any = None) -> None:
        self.place, self.bits = 0.0, bits

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if self.bits is not None and seed is not None:
            self.np_random = np.random.Generator(self.bits(seed))
        self.place = 0.0
        return np.array([self.place]), {}

    def step(self, action: Any) -> Any:
        self.place += float(action[0]) + self.np_random.normal()
        return np.array([self.place]), self.place, abs(self.place) > 8.0, False, {}

    def get_state(self) -> dict[str, Any]:
        return {"place": self.place}

    def set_state(self, state: dict[str, Any]) -> None:
        self.place = state["place"]


def test_wrappers_and_tasks_of_the_users_take_part_by_two_methods(tmp_path: Path) -> None:
    assert continues(tmp_path, lambda seed: make("Pendulum-v1", seed=seed, **stack(Known)))
    for bits in (None, np.random.MT19937, np.random.Philox, np.random.SFC64, np.random.PCG64DXSM):
        assert continues(tmp_path, lambda seed, bits=bits: envs.make(Task, 2, seed=seed, env_kwargs={"bits": bits}))  # type: ignore[misc]  # A default.


class OtherByteOrder(Task):
    """Whose observations, and what it keeps, are in the byte order that is not the machine's."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.dtype(np.float64).newbyteorder())

    def get_state(self) -> dict[str, Any]:
        return {"place": np.array(self.place, np.dtype(np.float64).newbyteorder())}

    def set_state(self, state: dict[str, Any]) -> None:
        self.place = float(state["place"])


def test_arrays_of_the_other_byte_order_are_captured(tmp_path: Path) -> None:
    assert continues(tmp_path, lambda seed: envs.make(OtherByteOrder, 2, seed=seed))


def test_a_users_task_of_mujoco_adds_what_it_keeps(tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv

    class Lazy(HalfCheetahEnv):
        turn = 0

        def step(self, action: Any) -> Any:
            self.turn += 1
            taken: Any = super()
            observation, reward, terminated, truncated, info = taken.step(action * (self.turn % 3))
            return observation, reward, terminated, truncated or self.turn % LIMIT == 0, info

    class Told(Lazy):
        def get_state(self) -> dict[str, Any]:
            return {"turn": self.turn, "simulation": snapshots.simulation_state(self)}

        def set_state(self, *state: Any) -> None:
            if len(state) == 2:
                simulated: Any = super()
                simulated.set_state(*state)
            else:
                self.turn = state[0]["turn"]
                snapshots.set_simulation_state(self, state[0]["simulation"])

    assert continues(tmp_path, lambda seed: envs.make(Told, 2, seed=seed))
    found = capture(envs.make(Lazy, 1, seed=0))
    assert isinstance(found, str) and "Lazy keeps is not known: give it the methods get_state() and set_state(state)" in found


@pytest.mark.parametrize(
    ("around", "said"),
    [
        (Counter, "what the wrapper tests.envs.test_snapshots:Counter keeps is not known: give it the methods get_state"),
        (type("TimeLimit", (Counter,), {}), "what the wrapper .*:TimeLimit keeps is not known"),
        (
            lambda env: wrappers.TransformReward(env, lambda reward: reward),
            "what the wrapper gymnasium.*:TransformReward keeps is not known",
        ),
        (type("Odd", (Known,), {"get_state": lambda self: {"thing": object()}}), r"environment_0\.0\.Odd\.own\.thing is a builtins.object"),
    ],
)
def test_what_is_not_known_makes_it_not_capturable(around: Any, said: str) -> None:
    found = capture(make("Pendulum-v1", **stack(around)))
    assert isinstance(found, str)
    assert re.match(said, found), found


def other_signature(self: Any, agent: Any) -> Any:
    return {"count": self.count}


def sets_the_half(self: Any, state: Any) -> None:
    self.count = self.place = 1.0 + next(iter(state.values()))


def takes_a_number(self: Any, state: Any) -> None:
    self.count = int(state)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"get_state": other_signature},
            r"get_state of .*:Faulty raised TypeError .*agent.*: define get_state\(self\), and set_state\(self, s",
        ),
        ({"set_state": lambda self: None}, r"set_state of .*:Faulty raised TypeError"),
        ({"set_state": takes_a_number}, r"set_state of .*:Faulty raised TypeError .*int.* argument"),
        ({"set_state": sets_the_half}, r"set_state of .*:Faulty does not restore what get_state returned"),
        ({"get_state": lambda self: {"thing": object()}}, r".*Faulty.thing is a builtins.object, expected numbers"),
    ],
    ids=["get_state's signature", "set_state's signature", "another state", "another value", "no state"],
)
@pytest.mark.parametrize("kind", [Known, Task])
def test_methods_of_the_users_that_cannot_be_used_are_refused_by_name(kind: Any, changed: dict[str, Any], said: str) -> None:
    faulty = type("Faulty", (kind,), {"count": 0, "trace": 0.0, **changed})
    made = make("Pendulum-v1", **stack(faulty)) if kind is Known else envs.make(faulty, 2, seed=0)
    found = snapshots.refused(made)
    assert found is not None and re.match(said, found), found
    if "get_state" in changed:  # at a checkpoint, too, it is a sentence, and ends no training
        assert isinstance(capture(made), str)


def draws(self: Any, state: Any) -> None:
    self.place = state["place"]
    self.np_random.normal()


@pytest.mark.parametrize("changed", [{}, {"set_state": draws}], ids=["as it is", "drawing"])
def test_trying_the_users_methods_changes_nothing(changed: dict[str, Any]) -> None:
    one, other = (envs.make(type("Tried", (Task,), changed), 2, seed=3, **stack(Known)) for _ in range(2))
    chosen = actions(one, 5, 0)
    for each in (one, other):
        run(each, chosen)
    assert snapshots.refused(one) is None
    assert equal(run(one, chosen), run(other, chosen))
    for plain in (make("Pendulum-v1", **stack(Counter)), make("Pendulum-v1")):  # which have no such methods
        assert snapshots.refused(plain) is None


def test_other_tasks_vector_environments_and_processes_are_not_capturable() -> None:
    found = capture(envs.make(type("Silent", (Task,), {"get_state": None}), 1, seed=0))
    assert isinstance(found, str) and "what the task" in found
    wrapped: Any = gymnasium.wrappers.vector.ClipReward(make("Pendulum-v1"), -1, 1)
    found = capture(wrapped)
    assert isinstance(found, str) and "ClipReward, expected a gymnasium.vector.SyncVectorEnv" in found
    apart = envs.make("Pendulum-v1", 1, vectorization="async")
    try:
        found = capture(apart)
        assert isinstance(found, str) and "take vectorization='sync'" in found
    finally:
        apart.close()


def test_a_snapshot_of_other_environments_is_refused_and_changes_nothing() -> None:
    captured = make("Pendulum-v1", **stack(wrappers.NormalizeObservation))
    run(captured, actions(captured, 10, 0))
    snapshot = capture(captured)
    assert isinstance(snapshot, Snapshot)
    for other, said in (
        (make("Pendulum-v1"), "environments is .*NormalizeObservation.*, expected"),
        (
            make("MountainCarContinuous-v0", **stack(wrappers.NormalizeObservation)),
            "environments is .*, expected .*Continuous_MountainCarEnv",
        ),
        (envs.make("Pendulum-v1", 1, seed=0, **stack(wrappers.NormalizeObservation)), "environments is"),
        (make("Pendulum-v1", autoreset_mode=AutoresetMode.SAME_STEP, **stack(wrappers.NormalizeObservation)), "autoreset_mode is NextStep"),
    ):
        before = capture(other)
        with pytest.raises(SnapshotError, match=said):
            restore(other, snapshot)
        assert str(capture(other)) == str(before)


def test_another_model_or_version_of_mujoco_is_refused() -> None:
    pytest.importorskip("mujoco")
    captured = make("HalfCheetah-v5")
    snapshot = capture(captured)
    assert isinstance(snapshot, Snapshot)
    name = next(name for name in snapshot.arrays if name.endswith("integration"))
    for arrays in (
        snapshot.arrays | {name: snapshot.arrays[name][:-1]},
        snapshot.arrays | {name: snapshot.arrays[name].astype(np.float32)},
    ):
        with pytest.raises(SnapshotError, match=r"has the arrays .*integration"):
            restore(captured, Snapshot(arrays, snapshot.metadata))
    with pytest.raises(SnapshotError, match=r"mujoco is 3.2.0, expected \d"):
        restore(captured, Snapshot(snapshot.arrays, snapshot.metadata | {"mujoco": "3.2.0"}))
    assert of_other_kind(captured, snapshot.metadata) is None  # else a resumed run begins its episodes anew
    for other in (captured, make("HalfCheetah-v5", vectorization="batched")):
        kept = capture(other)
        assert isinstance(kept, Snapshot)
        said = of_other_kind(other, kept.metadata | {"mujoco": "3.2.0"})
        assert said is not None and said.startswith("the snapshot's mujoco is 3.2.0, expected ")


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_snapshot_is_refused_with_one_kind_of_error(seed: int) -> None:
    captured = make("Pendulum-v1", **stack(normalised))
    snapshot = capture(captured)
    assert isinstance(snapshot, Snapshot)
    generator = np.random.default_rng(seed)
    refused = 0
    for _ in range(150):
        metadata, arrays = copy.deepcopy(snapshot.metadata), dict(snapshot.arrays)
        holder: Any = metadata
        while True:
            key = generator.choice(list(holder)) if isinstance(holder, dict) else int(generator.integers(len(holder)))
            inner = holder[key]
            if not isinstance(inner, dict | list) or not inner or generator.random() < 0.2:
                break
            holder = inner
        replacement: Any = [None, "x", -1, [], {}, {"is": "array", "of": "x"}, 10**30][int(generator.integers(7))]
        if generator.random() < 0.3:
            arrays.pop(str(generator.choice(list(arrays))))
        holder[key] = replacement
        try:
            restore(captured, Snapshot(arrays, metadata))
        except SnapshotError:
            refused += 1
    assert refused > 100
