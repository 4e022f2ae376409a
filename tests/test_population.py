"""Populations: each member is the run of its seed alone, whatever the others do."""

import importlib
import json
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sacref
from sacref import experiment, resumption
from sacref.config import ConfigError
from sacref.parity.compare import difference
from sacref.population import PopulationError, parse_seeds, train_population
from sacref.preprocessing import RunningStandardScaler
from tests.backends import BACKENDS, Backend, draw_row, fill, load_backend

backend = pytest.fixture(params=BACKENDS)(load_backend)

TOLERANCE = 1e-9
UPDATES = 100

SCHEDULES: dict[str, Any] = {
    "grad_norm_clip": 0.5,
    "learning_rate_scheduler": ("cosine", "kl_adaptive", "linear"),
    "learning_rate_scheduler_kwargs": ({"steps": 150}, {"kl_threshold": 1e-3}, {"steps": 150}),
}
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipping, schedules": SCHEDULES,
    "all that has a state": {
        **SCHEDULES,
        "observation_preprocessor": RunningStandardScaler,
        "policy_delay": 2,
        "n_step": 2,
        "num_critics": 3,
        "target_subset": 2,
        "networks": {"dropout": 0.25, "layer_norm": True},
    },
    "step by step": {"execution": "plain"},
}


def go(agent: Any, seen: list[Any], updates: int = UPDATES) -> None:
    """Act, store and learn, on rows that do not depend on the actions."""
    generator = np.random.default_rng(8)
    agent.enable_training_mode(True, apply_to_models=True)
    for _ in range(updates):
        row = draw_row(agent, generator)
        actions, extras = agent.act(row["observations"], None, timestep=50, timesteps=1_000)
        seen += [agent.to_numpy(actions), agent.to_numpy(extras["mean_actions"])]
        agent.record_transition(**row)
        agent.update(timestep=0, timesteps=1)


def agents_of(backend: Backend, members: list[dict[str, Any]], **options: Any) -> list[Any]:
    made = []
    for number, own in enumerate(members):
        made.append(backend.agent(seed=number, num_envs=2, **{"dtype": "float64", "learning_rate": 1e-2, **options, **own}))
        fill(made[-1], 20, number)
        made[-1].enable_training_mode(True, apply_to_models=True)
    return made


def populate(backend: Backend, agents: list[Any], program: Any = go) -> list[list[Any]]:
    """Run the program of each agent in a thread, as one population; what they have seen."""
    lockstep = importlib.import_module(f"sacref.{backend.name}.fuse").populate(agents)
    seen: list[list[Any]] = [[] for _ in agents]

    def member(number: int) -> None:
        try:
            program(agents[number], seen[number])
        finally:
            lockstep.leave(number)

    threads = [threading.Thread(target=member, args=(number,), daemon=True) for number in range(len(agents))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    return seen


def assert_alike(one: Any, other: Any) -> None:
    found, wanted = one.arrays(), other.arrays()
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert difference(found[name], wanted[name], name).relative < TOLERANCE, name


@pytest.mark.parametrize("options", FEATURES.values(), ids=FEATURES)
def test_each_of_ten_equals_the_run_of_its_seed_alone(backend: Backend, options: dict[str, Any]) -> None:
    members: list[dict[str, Any]] = [{} for _ in range(10)]
    alone = agents_of(backend, members, **options)
    wanted: list[list[Any]] = [[] for _ in alone]
    for number in (0, 7):
        go(alone[number], wanted[number])
    agents = agents_of(backend, members, **options)
    seen = populate(backend, agents)
    for number in (0, 7):
        assert agents[number].gradient_step_count == UPDATES
        assert_alike(agents[number], alone[number])
        np.testing.assert_allclose(seen[number], wanted[number], rtol=0, atol=TOLERANCE)
    assert not np.allclose(seen[0], seen[7]), "members have random streams of their own"


def test_members_may_differ_in_what_an_update_reads_as_numbers(backend: Backend) -> None:
    members: list[dict[str, Any]] = [
        {"discount_factor": 0.9, "target_entropy": -1.0, "initial_entropy_value": 0.1},
        {"discount_factor": 0.99, "target_entropy": -3.0, "initial_entropy_value": 1.0},
    ]
    if backend.name == "jax":
        members[0]["learning_rate"], members[1]["learning_rate"] = 1e-3, (3e-3, 1e-2, 1e-4)
    alone = agents_of(backend, members, n_step=2, **SCHEDULES)
    for agent in alone:
        go(agent, [])
    agents = agents_of(backend, members, n_step=2, **SCHEDULES)
    populate(backend, agents)
    for one, other in zip(agents, alone, strict=True):
        assert_alike(one, other)


def test_learning_rates_that_differ_are_refused_where_they_are_constants(backend: Backend) -> None:
    if backend.name == "jax":
        pytest.skip("there they may differ")
    agents = agents_of(backend, [{"learning_rate": 1e-3}, {"learning_rate": 1e-4}])
    with pytest.raises(ValueError, match=r"learning rates are \[0\.001, 0\.0001\]: on PyTorch they have to be the same"):
        populate(backend, agents)


def test_members_that_learn_apart_leave_the_others_as_they_are(backend: Backend) -> None:
    """One member takes twice as many steps, one stops early."""

    def program(agent: Any, seen: list[Any]) -> None:
        go(agent, seen, {0: 20, 1: 40, 2: 5}[agent.cfg.seed])

    alone = agents_of(backend, [{}, {}, {}], **SCHEDULES)
    for agent in alone:
        program(agent, [])
    agents = agents_of(backend, [{}, {}, {}], **SCHEDULES)
    populate(backend, agents, program)
    for one, other in zip(agents, alone, strict=True):
        assert_alike(one, other)


def test_what_is_written_into_a_member_is_its_own(backend: Backend, tmp_path: Path) -> None:
    agents = agents_of(backend, [{}, {}])
    before = agents[1].arrays()

    def program(agent: Any, seen: list[Any]) -> None:
        go(agent, seen, 3)
        if agent is agents[0]:
            agent.save(tmp_path / "saved")
            go(agent, seen, 2)
            agent.load(tmp_path / "saved")
        else:
            agent.set_arrays(before)

    populate(backend, agents, program)
    assert agents[0].gradient_step_count == 3
    assert_alike(agents[0], _loaded(backend, tmp_path / "saved"))
    for name, array in agents[1].arrays().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    importlib.import_module(f"sacref.{backend.name}.fuse").part(agents[0])
    kept = agents[1].arrays()
    go(agents[0], [], 2)
    assert agents[0].gradient_step_count == 5
    for name, array in agents[1].arrays().items():
        np.testing.assert_array_equal(array, kept[name], err_msg=name)


def _loaded(backend: Backend, path: Path) -> Any:
    (agent,) = agents_of(backend, [{}])
    agent.load(path)
    return agent


# Whole runs.

SETTINGS: dict[str, Any] = {
    "env": "Pendulum-v1",
    "steps": 60,
    "num_envs": 2,
    "hidden": (8,),
    "evaluation_interval": 20,
    "evaluation_episodes": 2,
    "env_kwargs": {"max_episode_steps": 12},
    "device": "cpu",
    "progress": False,
    "cfg": {
        "batch_size": 8,
        "random_timesteps": 4,
        "learning_starts": 4,
        "experiment": {"write_interval": 5, "checkpoint_interval": 10},
    },
}


@pytest.fixture
def float64(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of the runs in float64, so that rounding stays small."""
    dtype = importlib.import_module("torch").float64 if backend.name == "torch" else np.float64
    module = importlib.import_module(f"sacref.{backend.name}")
    monkeypatch.setattr(module, "default_models", partial(module.default_models, dtype=dtype))


def evaluations(run: Path) -> list[Any]:
    return [entry["returns"] for entry in json.loads((run / "evaluation.json").read_text())]


@pytest.mark.usefixtures("float64")
def test_each_run_is_the_run_of_its_seed_with_files_of_its_own(backend: Backend, tmp_path: Path) -> None:
    population = train_population(backend=backend.name, seeds=[3, 5], run_dir=tmp_path / "both", **SETTINGS)
    assert list(population.members) == ["seed=3", "seed=5"]
    assert (tmp_path / "both" / "curve.png").is_file()
    for seed in (3, 5):
        alone = sacref.train(backend=backend.name, seed=seed, run_dir=tmp_path / str(seed), **SETTINGS)
        run = tmp_path / "both" / f"seed={seed}"
        assert_alike(population.members[f"seed={seed}"].agent, alone.agent)
        np.testing.assert_allclose(evaluations(run), evaluations(tmp_path / str(seed)), rtol=TOLERANCE)
        names = {path.name for path in run.iterdir() if not path.name.startswith("events")}
        assert names == {"config.json", "evaluation.json", "metrics.jsonl", "checkpoints"}
        assert sorted(resumption.finished_checkpoints(run)) == [10, 20, 30]
        assert json.loads((run / "config.json").read_text())["seed"] == seed


def test_a_population_is_resumed_member_by_member(backend: Backend, tmp_path: Path) -> None:
    run_dir = tmp_path / "both"
    train_population(backend=backend.name, seeds=[0, 1], run_dir=run_dir, **{**SETTINGS, "steps": 40})
    # One has lost its last checkpoint, one is new.
    importlib.import_module("shutil").rmtree(run_dir / "seed=1" / "checkpoints" / "agent_20")
    population = train_population(backend=backend.name, seeds=[0, 1, 2], run_dir=run_dir, resume=True, **SETTINGS)
    for name, member in population.members.items():
        assert member.steps == 60
        assert member.agent.gradient_step_count == 52, name  # type: ignore[attr-defined]  # of both backends' agents
        assert len(evaluations(run_dir / name)) == 3


def test_a_member_that_fails_ends_alone(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = experiment.envs.make
    made: list[int] = []

    class Failing:
        def __init__(self, envs: Any) -> None:
            self._envs, self._steps = envs, 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self._envs, name)

        def step(self, actions: Any) -> Any:
            self._steps += 1
            if self._steps > 15:
                raise OSError("the simulator is gone")
            return self._envs.step(actions)

    def make(*arguments: Any, **options: Any) -> Any:
        envs = right(*arguments, **options)
        if threading.current_thread().name == "seed=1" and not made:
            made.append(1)
            return Failing(envs)
        return envs

    monkeypatch.setattr(experiment.envs, "make", make)
    with pytest.raises(PopulationError, match=r"1 of 2 members failed, the others were trained:\n  seed=1: OSError: the simulator is gone"):
        train_population(backend=backend.name, seeds=[0, 1], run_dir=tmp_path / "both", **SETTINGS)
    assert sorted(resumption.finished_checkpoints(tmp_path / "both" / "seed=0")) == [10, 20, 30]
    assert sorted(resumption.finished_checkpoints(tmp_path / "both" / "seed=1")) == [10]


def test_an_argument_that_suits_no_member_is_one_error(backend: Backend, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size is -1"):
        train_population(backend=backend.name, seeds=[0, 1], run_dir=tmp_path / "both", **{**SETTINGS, "cfg": {"batch_size": -1}})
    with pytest.raises(TypeError, match=r"train_population got sed: expected"):
        train_population(backend=backend.name, seeds=[0], sed=1)
    with pytest.raises(ValueError, match=r"vary has batch_size: members may differ in initial_entropy_value"):
        train_population(backend=backend.name, seeds=[0], vary={"batch_size": [1]})
    with pytest.raises(ValueError, match=r"seeds are \[0, 0\]"):
        train_population(backend=backend.name, seeds=[0, 0])


def test_combinations_are_members(backend: Backend, tmp_path: Path) -> None:
    population = train_population(
        backend=backend.name, seeds=[0, 1], vary={"discount_factor": [0.9, 0.99]}, run_dir=tmp_path / "four", **{**SETTINGS, "steps": 20}
    )
    names = [f"discount_factor={discount},seed={seed}" for discount in (0.9, 0.99) for seed in (0, 1)]
    assert list(population.members) == names
    found = {name: json.loads((tmp_path / "four" / name / "config.json").read_text())["cfg"]["discount_factor"] for name in names}
    assert list(found.values()) == [0.9, 0.9, 0.99, 0.99]


def test_ctrl_c_ends_all_members_with_everything_written(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signal = importlib.import_module("signal")
    right = experiment.envs.make
    steps = []

    def make(*arguments: Any, **options: Any) -> Any:
        envs = right(*arguments, **options)
        step = envs.step

        def counted(actions: Any) -> Any:
            steps.append(1)
            if len(steps) == 30:
                signal.raise_signal(signal.SIGINT)
            return step(actions)

        envs.step = counted
        return envs

    monkeypatch.setattr(experiment.envs, "make", make)
    population = train_population(backend=backend.name, seeds=[0, 1], run_dir=tmp_path / "both", **{**SETTINGS, "steps": 100_000})
    for name, member in population.members.items():
        assert member.interrupted and 10 < member.steps < 1_000
        assert max(resumption.finished_checkpoints(tmp_path / "both" / name)) * 2 == member.steps


@pytest.mark.parametrize(("text", "seeds"), [("0:3", [0, 1, 2]), ("4", [4]), ("7,3", [7, 3]), ("2:4", [2, 3])])
def test_seeds_are_read(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "3:3", "1,1", "-1,2", "a", "1:b", "0:2:1"])
def test_what_says_no_seeds_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected non-negative integers as 0:10 or 0,3,5, none of them twice"):
        parse_seeds(text)
