"""What loops and agents do as one of several ranks: who draws what, what is shared, what is written, and what a checkpoint gives back."""

import json
import logging
import threading
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from sacref import envs, training
from sacref.config import ExperimentConfig
from sacref.preprocessing import RunningStandardScaler
from sacref.ranks import Ranks
from sacref.storage import checkpoint
from sacref.training import loop, run_directory
from sacref.training.evaluation import Evaluation, EvaluationError, evaluate
from sacref.training.plan import derive_seed, evaluation_copies
from tests.backends import BACKENDS, Backend, assert_same_arrays, draw_row, load_backend
from tests.envs.counting import CountingEnv
from tests.fake_agent import FakeAgent
from tests.ranked import ThreadRanks, together

backend = pytest.fixture(params=BACKENDS)(load_backend)

LENGTHS = ((1,), (3, 2), (4,))


@pytest.fixture
def place(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> threading.local:
    """Its `ranks` are those of the agents that this thread makes."""
    local = threading.local()
    monkeypatch.setattr(backend.module("agent"), "ranks", lambda: getattr(local, "ranks", Ranks()))
    return local


def counting(*lengths: tuple[int, ...]) -> SyncVectorEnv:
    return SyncVectorEnv([partial(CountingEnv, own) for own in lengths], autoreset_mode=AutoresetMode.SAME_STEP)


def ranked_agents(size: int, place: threading.local, backend: Backend, use: Any, **options: Any) -> list[Any]:
    """What `use(agent)` gives on each rank."""

    def run(ranks: Ranks) -> Any:
        place.ranks = ranks
        return use(backend.agent(**{"num_envs": 2, "capacity": 64, "execution": "plain", **options}))

    return together(size, run)


def record(agent: Any, rows: int) -> list[dict[str, Any]]:
    """Rows of its own for each rank."""
    generator = np.random.default_rng(100 + agent.ranks.rank)
    drawn = [draw_row(agent, generator) for _ in range(rows)]
    for row in drawn:
        agent.record_transition(**row)
    return drawn


def own(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What sacref logged: libraries log what they do for the first time in a process."""
    return [entry.getMessage() for entry in caplog.records if entry.name.startswith("sacref")]


# Loops.


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_an_evaluation_is_that_of_one_process_however_many_ranks_share_it(size: int) -> None:
    alone = evaluate(FakeAgent(), counting(*LENGTHS), episodes=5)
    assert alone.returns == (1.0, 101.0, 6.0, 203.0, 10.0)
    shares = [evaluation_copies(len(LENGTHS), ranks) for ranks in together(size, lambda ranks: ranks)]
    assert sum(shares) == len(LENGTHS)

    def share(ranks: Ranks) -> tuple[Evaluation, list[bool]]:
        first, copies = sum(shares[: ranks.rank]), shares[ranks.rank]
        agent = FakeAgent()
        agent.training = True
        own = counting(*LENGTHS[first : first + copies]) if copies else None
        evaluation = evaluate(agent, own, episodes=5, ranks=ranks)
        return evaluation, [mode for mode, _ in agent.modes]

    assert together(size, share) == [(alone, [False, True])] * size


def test_the_copies_of_an_evaluation_begin_where_one_process_has_them_begin() -> None:
    def pendulums(first: int, copies: int, ranks: Ranks) -> Evaluation:
        return evaluate(FakeAgent(), envs.make("Pendulum-v1", copies), episodes=4, seed=5, ranks=ranks)

    alone = pendulums(0, 3, Ranks())
    assert len(set(alone.returns)) == 4
    assert together(2, lambda ranks: pendulums(0, (2, 1)[ranks.rank], ranks)) == [alone, alone]


def test_an_evaluation_that_fails_on_one_rank_fails_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sacref.training.evaluation.can_reset_one", lambda envs: False)

    def share(ranks: Ranks) -> str:
        with pytest.raises(EvaluationError) as failed:
            evaluate(FakeAgent(), counting((2,) if ranks.rank == 0 else (50,)), episodes=4, max_episode_steps=10, ranks=ranks)
        return str(failed.value)

    first, second = together(2, share)
    assert first == second
    assert first.startswith("evaluation: environment 1 has an episode that did not end within 10 steps"), "counted over all ranks"


def test_ranks_agree_on_what_diverged_and_was_cut() -> None:
    def share(ranks: Ranks) -> Evaluation:
        broken = [partial(gymnasium.wrappers.TransformReward, func=lambda reward: np.nan)] if ranks.rank == 0 else []
        made = envs.make(CountingEnv, 1, env_kwargs={"lengths": (50,)}, wrappers=broken)
        return evaluate(FakeAgent(), made, episodes=2, seed=3, max_episode_steps=10, ranks=ranks)

    assert together(2, share) == [Evaluation((55.0,), (10,), diverged=(3,), truncated=1)] * 2


def test_all_ranks_stop_at_one_timestep_when_one_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "AGREEMENT_TIMESTEPS", 4)

    def rank_loop(ranks: Ranks) -> tuple[int, bool, int]:
        finished = [0]
        stop = loop._Stop(lambda: ranks.rank == 1 and finished[0] >= 7, ranks, 0)
        while not stop.after(finished[0]):
            finished[0] += 1
            assert finished[0] < 100
        assert isinstance(ranks, ThreadRanks)
        return finished[0], stop.agreed(), ranks.exchanges

    # Asked after 1, 5 and 9 timesteps; each time lengths and values go around, and once more at the end.
    assert together(3, rank_loop) == [(9, True, 8)] * 3


def test_a_slow_timestep_is_asked_about_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("sacref.training.loop.time.perf_counter", lambda: now[0])
    stop = loop._Stop(lambda: False, together(1, lambda ranks: ranks)[0], 0)
    monkeypatch.setattr(stop._ranks, "size", 2)
    monkeypatch.setattr(stop._ranks, "gather", lambda value: [value, [False, 0.0]])
    asked = []
    for finished, seconds in enumerate([2.0] * 3 + [0.02] * 103, start=1):
        now[0] += seconds
        before = stop._asked
        stop.after(finished)
        if stop._asked != before:
            asked.append(finished)
    assert asked == [1, 2, 3, 4, 54, 104], "about once a second"


def test_training_tells_whether_any_rank_was_interrupted() -> None:
    outcomes = together(2, lambda ranks: training.run(FakeAgent(), counting((3,)), timesteps=5, ranks=ranks))
    assert [(outcome.timesteps, outcome.interrupted) for outcome in outcomes] == [(5, False)] * 2


def test_environments_of_each_rank_have_seeds_of_their_own() -> None:
    assert derive_seed(3, 0, 7) == int(np.random.SeedSequence(3, spawn_key=(0, 7)).generate_state(1)[0] >> 1)
    assert len({derive_seed(3, 0, 7, rank) for rank in range(4)}) == 4


def test_what_rank_0_refuses_all_refuse(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    def prepare(ranks: Ranks) -> str:
        with pytest.raises(run_directory.RunError) as refused:
            run_directory.prepare(ranks, tmp_path, overwrite=False, resume=False)
        return str(refused.value)

    first, second = together(2, prepare)
    assert first == second
    assert "already holds a run" in first
    (tmp_path / "checkpoints" / "agent_5.rank_1").mkdir(parents=True)
    written = {"sacref": "1.0", "backend": "torch", "cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(written))
    assert together(2, lambda ranks: run_directory.prepare(ranks, tmp_path, overwrite=True, resume=False)) == [None, None]
    assert len(list(tmp_path.iterdir())) == 2, "nothing is cleared before the run can begin"
    new = {**written, "seed": 1}
    assert together(2, lambda ranks: run_directory.begin(ranks, tmp_path, new, None, overwrite=True)) == [[], []]
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"] and run_directory.read_config(tmp_path) == new


# Agents.


def test_each_rank_draws_numbers_of_its_own_and_the_first_those_of_an_agent_alone(backend: Backend, place: threading.local) -> None:
    def draw(agent: Any) -> Any:
        return agent.to_numpy(agent.act(np.zeros((2, 3)), None, timestep=0, timesteps=10)[0])

    alone = draw(backend.agent(num_envs=2, random_timesteps=5))
    first, second, third = ranked_agents(3, place, backend, draw, random_timesteps=5)
    np.testing.assert_array_equal(first, alone)
    assert len({actions.tobytes() for actions in (first, second, third)}) == 3


def test_the_moments_are_those_of_all_ranks_rows(backend: Backend, place: threading.local) -> None:
    def moments(agent: Any) -> tuple[Any, Any]:
        rows = record(agent, 5)
        return agent.normalisers.preprocessors["observations"].arrays(), rows

    scaled: dict[str, Any] = {"observation_preprocessor": RunningStandardScaler}
    (first, rows), (second, others) = ranked_agents(2, place, backend, moments, **scaled)
    assert_same_arrays(first, second)
    expected = RunningStandardScaler(backend.agent(**scaled).observation_space)
    begun = np.ones((2, 2), bool)
    for pair in zip(rows, others, strict=True):
        expected.update(
            np.concatenate(
                [shown for own, row in zip(begun, pair, strict=True) for shown in (row["observations"][own], row["next_observations"])]
            )
        )
        begun = np.stack([row["terminated"][:, 0] for row in pair])
    assert_same_arrays(first, expected.arrays())


def test_the_first_rank_writes_what_all_measured(backend: Backend, place: threading.local, tmp_path: Path) -> None:
    def write(agent: Any) -> list[float]:
        agent.environment_steps_offset = 5
        for value in (1.0, 2.0) if agent.ranks.rank == 0 else (10.0, 12.0):
            for tag in ("Own / mean", "Own / (max)", "Own / (min)"):
                agent.track_data(tag, value)
        if agent.ranks.rank == 1:
            agent.track_data("Of one", 7.0)
        rows = record(agent, 6)
        agent.write_tracking_data(timestep=6, timesteps=10)
        agent.close()
        return [float(reward) for row in rows for reward in row["rewards"][:, 0]]

    tracked = ExperimentConfig(directory=str(tmp_path), experiment_name="run", write_interval=1000, checkpoint_interval=0)
    rewards = [reward for own in ranked_agents(2, place, backend, write, experiment=tracked) for reward in own]
    (line,) = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(list((tmp_path / "run").iterdir())) == 2, "one file of TensorBoard beside it"
    assert (line["timestep"], line["environment_steps"]) == (6, 6 * 4 + 5)
    assert (line["Own / mean"], line["Own / (max)"], line["Own / (min)"], line["Of one"]) == (6.25, 12.0, 1.0, 7.0)
    assert line["Reward / Instantaneous reward (mean)"] == pytest.approx(np.mean(rewards))
    assert line["Reward / Instantaneous reward (max)"] == pytest.approx(max(rewards))


def test_as_many_ranks_take_their_own_memories_and_streams_back(
    backend: Backend, place: threading.local, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def save(agent: Any) -> tuple[Any, Any]:
        record(agent, 4 + agent.ranks.rank)
        agent.act(np.zeros((2, 3)), None, timestep=0, timesteps=10)
        agent.save(tmp_path / "saved")
        return agent.memory.arrays(), agent.learner.stream_states()

    def load(agent: Any) -> tuple[Any, Any]:
        agent.load(tmp_path / "saved")
        return agent.memory.arrays(), agent.learner.stream_states()

    saved = ranked_agents(2, place, backend, save)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved", "saved.rank_1"]
    assert checkpoint.read(tmp_path / "saved").metadata["ranks"] == 2
    assert set(checkpoint.read(tmp_path / "saved.rank_1").groups) == {"streams", "memory"}
    with caplog.at_level(logging.WARNING):
        loaded = ranked_agents(2, place, backend, load)
    assert own(caplog) == []
    for before, after in zip(saved, loaded, strict=True):
        assert_same_arrays(before[0], after[0])
        assert_same_arrays(before[1], after[1])


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4), (4, 2)])
def test_another_number_of_ranks_shares_the_memories_and_draws_anew(
    before: int, after: int, backend: Backend, place: threading.local, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def save(agent: Any) -> tuple[Any, Any, Any]:
        record(agent, 4 + agent.ranks.rank)
        agent.save(tmp_path / "saved")
        return agent.memory.arrays(), agent.learner.stream_states(), agent.arrays()

    def load(agent: Any) -> tuple[Any, Any, Any]:
        agent.load(tmp_path / "saved")
        return agent.memory.arrays(), agent.learner.stream_states(), agent.arrays()

    saved = ranked_agents(before, place, backend, save)
    with caplog.at_level(logging.WARNING):
        loaded = ranked_agents(after, place, backend, load, seed=0)
    for rank, (memory, _, arrays) in enumerate(loaded):
        assert_same_arrays(memory, saved[rank % before][0])
        assert_same_arrays(arrays, saved[0][2])
    streams = [stream.tobytes() for _, own, _ in (*saved, *loaded) for stream in own.values()]
    assert len(set(streams)) == len(streams), "no rank repeats what any drew"
    (message,) = own(caplog)
    assert f"was written by {before} ranks, and {after} go on" in message
    assert f"averages over {after} x 4 rows in the place of {before} x 4" in message
    assert ("copies of the memories" in message, "are left out" in message) == (after > before, after < before)


def test_a_part_of_another_writing_is_refused_and_nothing_changes(backend: Backend, place: threading.local, tmp_path: Path) -> None:
    def save(name: str, agent: Any) -> None:
        record(agent, 4)
        agent.save(tmp_path / name)

    ranked_agents(2, place, backend, partial(save, "first"))
    ranked_agents(2, place, backend, partial(save, "second"))
    (tmp_path / "second.rank_1").rename(tmp_path / "old")
    (tmp_path / "first.rank_1").rename(tmp_path / "second.rank_1")

    def load(agent: Any) -> str:
        before = agent.arrays()
        try:
            agent.load(tmp_path / "second")
        except checkpoint.CheckpointError as error:
            assert_same_arrays(agent.arrays(), before)
            return str(error)
        return ""

    first, second = ranked_agents(2, place, backend, load)
    assert first == ""
    assert second == f"{tmp_path / 'second.rank_1'} is no part of {tmp_path / 'second'}: use another checkpoint"


def test_an_agent_that_only_acts_loads_what_several_ranks_wrote(
    backend: Backend, place: threading.local, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = ranked_agents(2, place, backend, lambda agent: (record(agent, 4), agent.save(tmp_path / "saved"), agent.arrays())[2])
    (tmp_path / "saved.rank_1" / "memory.safetensors").unlink()
    actor = backend.agent(capacity=None, training=False)
    with caplog.at_level(logging.WARNING):
        actor.load(tmp_path / "saved")
    assert own(caplog) == []
    np.testing.assert_array_equal(actor.arrays()["policy.head.kernel"], saved[0]["policy.head.kernel"])


def test_only_the_newest_checkpoint_keeps_the_memories(backend: Backend, place: threading.local, tmp_path: Path) -> None:
    def write(agent: Any) -> None:
        record(agent, 4)
        for timestep in (4, 8):
            agent.write_checkpoint(timestep=timestep, timesteps=10)

    where = ExperimentConfig(directory=str(tmp_path), experiment_name="run", write_interval=0, checkpoint_interval=0)
    ranked_agents(2, place, backend, write, experiment=where)
    assert sorted(path.parent.name for path in tmp_path.glob("run/checkpoints/*/memory.safetensors")) == ["agent_8", "agent_8.rank_1"]
    assert sorted(path.parent.name for path in tmp_path.glob("run/checkpoints/*/streams.safetensors")) == [
        *("agent_4", "agent_4.rank_1", "agent_8", "agent_8.rank_1")
    ]
