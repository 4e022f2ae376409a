"""Populations: each member is the run of its seed alone, whatever the others do."""

import contextlib
import importlib
import itertools
import json
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import gymnasium
import numpy as np
import pytest

import sacref
from sacref import envs as vectors
from sacref.agent.population import Population
from sacref.algorithm.tree import leaves
from sacref.config import ConfigError, SACConfig
from sacref.envs.joined import JoinedEnvs
from sacref.envs.partial import PrivilegedState
from sacref.parity.compare import difference
from sacref.preprocessing import RunningStandardScaler
from sacref.training.callbacks import Callback
from sacref.training.checkpoints import finished_checkpoints
from sacref.training.population import PopulationError, parse_seeds, train_population
from sacref.training.run_directory import RunError
from tests.agent.test_execution import capture_by_calling, cuda
from tests.backends import BACKENDS, Backend, assert_same_arrays, draw_row, fill, jax_in_full, load_backend, without_shape_checks

backend = pytest.fixture(params=BACKENDS)(load_backend)

TOLERANCE = 1e-9
UPDATES = 100

SCHEDULES: dict[str, Any] = {
    "grad_norm_clip": 0.5,
    "learning_rate_scheduler": ("cosine", "kl_adaptive", "linear"),
    "learning_rate_scheduler_kwargs": ({"steps": 150}, {"kl_threshold": 1e-3}, {"steps": 150}),
}
FEATURES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "clipping, schedules": (10, UPDATES, SCHEDULES),
    "all that has a state": (
        3,
        20,
        {
            "observation_preprocessor": RunningStandardScaler,
            "policy_delay": 2,
            "n_step": 2,
            "num_critics": 3,
            "target_subset": 2,
            "networks": {"dropout": 0.25},
        },
    ),
    "fixed temperature": (2, 20, {"learn_entropy": False}),
    "recurrent": (2, 20, {"algorithm": "SAC_RNN", "sequence_length": 3, "networks": {"recurrent": "gru", "recurrent_size": 4}}),
    "step by step": (2, 20, {"execution": "plain"}),
}
"""What is there -> members, updates, and options of the agents."""


@pytest.fixture(autouse=True)
def unchecked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Most of the time of hundreds of small calls goes into checking their shapes; the same functions are checked alone."""
    with contextlib.nullcontext() if "combinations" in request.node.name else without_shape_checks():
        yield


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


def together(backend: Backend, members: list[dict[str, Any]], *, models_train: bool = True, **options: Any) -> tuple[Any, list[Any]]:
    """The population of agents that are as those of `agents_of`, and these agents."""
    memory = backend.package.ReplayMemory(32 * len(members), 2 * len(members))
    agents = []
    for number, alone in enumerate(agents_of(backend, members, **options)):
        part = memory.part(number, len(members))
        own = {"dtype": "float64", "learning_rate": 1e-2, **options, **members[number]}
        agents.append(backend.agent(seed=number, num_envs=2, memory=part, **own))
        part.set_arrays(alone.memory.arrays())
        agents[-1].set_arrays(alone.arrays())
        agents[-1].set_live_state(alone.live_state())
        agents[-1].enable_training_mode(True)
        agents[-1].enable_models_training_mode(models_train)
    return backend.module("population").populate(agents, memory, [1_000] * len(agents)), agents


def go_together(population: Any, agents: list[Any], updates: int = UPDATES, which: Any = None) -> list[list[Any]]:
    """As `go`, for the members in `which`; what each has seen."""
    active = np.ones(len(agents), bool) if which is None else np.array(which)
    population.activate(active)
    generator = np.random.default_rng(8)
    seen: list[list[Any]] = [[] for _ in agents]
    for _ in range(updates):
        row = draw_row(agents[0], generator)
        rows = {name: np.concatenate([value] * len(agents)) if isinstance(value, np.ndarray) else value for name, value in row.items()}
        actions, extras = population.act(rows["observations"], None, timestep=50, timesteps=1_000)
        for number in range(len(agents)):
            own = slice(2 * number, 2 * number + 2)
            seen[number] += [actions[own], extras["mean_actions"][own]]
        population.record_transition(**rows)
        population.learn(np.flatnonzero(active).tolist(), 1, timestep=49)
    population.settle()
    return seen


def assert_alike(one: Any, other: Any) -> None:
    found, wanted = one.arrays(), other.arrays()
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert difference(found[name], wanted[name], name).relative < TOLERANCE, name


ALONE = [
    # What has all that an agent may have is compiled by JAX in every run of the tests, the others in the full one.
    pytest.param(
        name, *row, id=f"{name}-{feature}", marks=[] if name == "torch" or feature == "all that has a state" else [pytest.mark.full]
    )
    for name in BACKENDS
    for feature, row in FEATURES.items()
]


@pytest.mark.parametrize(("backend", "members", "updates", "options"), ALONE, indirect=["backend"])
def test_each_equals_the_run_of_its_seed_alone(backend: Backend, members: int, updates: int, options: dict[str, Any]) -> None:
    first, last = agents_of(backend, [{} for _ in range(members)], **options)[:: members - 1]
    wanted: list[list[Any]] = [[], []]
    go(first, wanted[0], updates)
    go(last, wanted[1], updates)
    population, agents = together(backend, [{} for _ in range(members)], **options)
    seen = go_together(population, agents, updates)
    for number, alone, its in ((0, first, wanted[0]), (-1, last, wanted[1])):
        assert agents[number].gradient_step_count == updates
        assert_alike(agents[number], alone)
        np.testing.assert_allclose(seen[number], its, rtol=0, atol=TOLERANCE)
    assert not np.allclose(seen[0], seen[-1]), "members have random streams of their own"


def notes(population: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows by the calls that stand for all members."""
    seen: list[str] = []
    together, library = population._together, population._memory.library

    def noted(name: str, called: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **options: Any) -> Any:
            seen.append(name)
            return called(*given, **options)

        return run

    for name in ("learn", "act", "learn_and_act"):
        monkeypatch.setattr(together, name, noted(name, getattr(together, name)))
    monkeypatch.setattr(type(library), "write", staticmethod(noted("write", library.write)))
    return seen


def walk(
    population: Any,
    agents: list[Any],
    elsewhere: Sequence[int] = (),
    after: Mapping[int, Callable[[Any], object]] = MappingProxyType({}),
) -> list[Any]:
    """Act, store and learn in rows that follow each other; the actions. In some steps the last row is elsewhere when actions are chosen.

    Args:
        after: step -> a function of the population that is called at its end.
    """
    generator, observations, taken = np.random.default_rng(8), None, []
    for step in range(8):
        row = draw_row(agents[0], generator)
        rows = {name: np.concatenate([value] * len(agents)) if isinstance(value, np.ndarray) else value for name, value in row.items()}
        rows["observations"] = rows["observations"] if observations is None else observations
        rows["observations"][-1] += step in elsewhere
        actions, extras = population.act(rows["observations"], None, timestep=50, timesteps=1_000)
        taken += [actions, extras["mean_actions"]]
        population.record_transition(**rows)
        population.learn(np.flatnonzero(population.active).tolist(), 1, timestep=50)
        # A member that waits stays where it is.
        observations = np.where(population.rows_of(population.active)[:, None], rows["next_observations"], rows["observations"])
        if step in after:
            after[step](population)
    population.settle()
    return taken


def held_to_plain(
    backend: Backend,
    members: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    execution: str = "auto",
    options: Mapping[str, Any] = MappingProxyType({}),
    **changes: Any,
) -> list[str]:
    """Hold what a population does in a `walk` to the plain calls; the calls that it made of them."""
    plain, alone = together(backend, members, execution="plain", **options)
    wanted = walk(plain, alone, **changes)
    population, agents = together(backend, members, execution=execution, **options)
    seen = notes(population, monkeypatch)
    found = walk(population, agents, **changes)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=TOLERANCE)
    for one, other in zip(agents, alone, strict=True):
        assert_alike(one, other)
        assert_same_arrays(one.learner.stream_states(), other.learner.stream_states())
    return seen


@pytest.mark.parametrize(("name", "execution"), [("torch", "traced"), ("torch", "cuda_graph"), ("jax", "scan")])
def test_a_strict_step_of_all_members_is_one_call(name: str, execution: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name)
    if execution == "cuda_graph" and not cuda():
        capture_by_calling(monkeypatch)
    seen = held_to_plain(Backend(name), [{}, {"discount_factor": 0.9}], monkeypatch, execution)
    assert seen == ["act", *["learn_and_act"] * 8]


@jax_in_full
def test_actions_that_were_chosen_ahead_are_put_back_where_others_are_asked_for(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """One member elsewhere puts back all members' actions. Settled agents keep theirs, as long as none is evaluated."""

    def again(population: Any) -> None:
        population.settle()
        population.take_over()

    options = {"algorithm": "SAC_RNN", "sequence_length": 3, "networks": {"recurrent": "gru", "recurrent_size": 4}}
    after = {0: again, 3: Population.settle, 4: again, 6: Population.put_back}
    seen = held_to_plain(backend, [{}, {}], monkeypatch, options=options, elsewhere=(2, 5), after=after)
    calls = ["act" in (before, name) for before, name in itertools.pairwise(["", *seen]) if name == "learn_and_act"]
    assert calls == [step in (0, 2, 5, 7) for step in range(8)]


def test_a_member_that_waits_keeps_the_action_that_was_chosen_ahead(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be saved meanwhile with what it drew, and goes on from it, whatever the other one has put back."""
    waiting: list[Any] = []

    def wait(population: Any) -> None:
        population.activate(np.array([False, True]))
        note(population)

    def note(population: Any) -> None:
        waiting.append(leaves(population[0].live_state()["next_action"]))

    takes_part = {4: [True, False], 5: [True, True]}
    after = {2: wait, 3: note, **{step: partial(Population.activate, which=np.array(which)) for step, which in takes_part.items()}}
    held_to_plain(backend, [{}, {}], monkeypatch, elsewhere=(3,), after=after)
    assert not waiting[0] and not waiting[1], "plain calls choose nothing ahead"
    assert len(waiting[2]) == 4 and all(map(np.array_equal, waiting[2], waiting[3]))


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
    population, agents = together(backend, members, n_step=2, **SCHEDULES)
    go_together(population, agents)
    for one, other in zip(agents, alone, strict=True):
        assert_alike(one, other)


@jax_in_full
def test_in_float16_members_scale_and_skip_on_their_own(backend: Backend) -> None:
    """One update: after several, roundings to float16 that differ between the two have come apart."""

    options: dict[str, Any] = {"dtype": "float32", "mixed_precision": True, "precision": "float16", "hidden": (16, 16)}
    alone = agents_of(backend, [{}, {}], **options)
    generator = np.random.default_rng(5)
    for _ in range(32):  # all that its memory holds
        alone[1].record_transition(**draw_row(alone[1], generator, rewards=np.full((2, 1), 1e6)))
    population, agents = together(backend, [{}, {}], **options)
    agents[1].memory.set_arrays(alone[1].memory.arrays())
    agents[1].set_live_state(alone[1].live_state())
    population.take_over()
    for agent in alone:
        go(agent, [], 1)
    go_together(population, agents, 1)
    scales = [float(agent.arrays()["critic_optimizer.loss_scale"]) for agent in agents]
    assert [int(agent.arrays()["critic_optimizer.skipped_steps"]) for agent in agents] == [0, 1]
    assert scales[1] == scales[0] / 2
    for one, other in zip(agents, alone, strict=True):
        found, wanted = one.arrays(), other.arrays()
        for name in wanted:
            assert difference(found[name], wanted[name], name).relative < 1e-5, name


def test_learning_rates_that_differ_are_refused_where_they_are_constants(backend: Backend) -> None:
    if backend.name == "jax":
        pytest.skip("there they may differ")
    with pytest.raises(ValueError, match=r"learning rates are \[0\.001, 0\.0001\]: on PyTorch they have to be the same"):
        together(backend, [{"learning_rate": 1e-3}, {"learning_rate": 1e-4}])


@jax_in_full
def test_members_that_learn_apart_leave_the_others_as_they_are(backend: Backend) -> None:
    """One member begins later than the others, one ends earlier."""
    alone = agents_of(backend, [{}, {}, {}])
    for agent, updates in zip(alone, ([5, 5], [5], [5]), strict=True):
        for several in updates:
            go(agent, [], several)
    population, agents = together(backend, [{}, {}, {}])
    for which in ([True, True, False], [True, False, True]):
        go_together(population, agents, 5, which)
    for one, other in zip(agents, alone, strict=True):
        assert_alike(one, other)


def test_members_learn_in_the_models_training_mode(backend: Backend) -> None:
    population, agents = together(backend, [{}, {}], models_train=False, networks={"dropout": 0.5})
    go_together(population, agents, 3)
    for agent, alone in zip(agents, agents_of(backend, [{}, {}], networks={"dropout": 0.5}), strict=True):
        go(alone, [], 3)
        assert_alike(agent, alone)


def test_a_member_is_evaluated_in_between_and_goes_on_alone(backend: Backend) -> None:
    population, agents = together(backend, [{}, {}], networks={"dropout": 0.5})
    observation = np.zeros((2, 3), np.float32)
    for training in (False, True):
        agents[1].enable_training_mode(training, apply_to_models=True)
        if not training:
            assert np.isfinite(agents[1].to_numpy(agents[1].act(observation, None, timestep=0, timesteps=1)[0])).all()
    agents[1].enable_training_mode(False, apply_to_models=True)
    population.depart(1)
    alone = agents_of(backend, [{}, {}], networks={"dropout": 0.5})[1]
    for each in (agents[1], alone):
        go(each, [], 3)
    assert_alike(agents[1], alone)


def test_what_is_written_into_a_member_is_its_own(backend: Backend, tmp_path: Path) -> None:
    population, agents = together(backend, [{}, {}])
    before = agents[1].arrays()
    go_together(population, agents, 3)
    agents[0].save(tmp_path / "saved")
    go_together(population, agents, 2)
    agents[0].load(tmp_path / "saved")
    agents[1].set_arrays(before)
    population.take_over()
    assert agents[0].gradient_step_count == 3
    loaded = _loaded(backend, tmp_path / "saved")
    assert_alike(agents[0], loaded)
    for name, array in agents[0].memory.arrays().items():
        np.testing.assert_array_equal(array, loaded.memory.arrays()[name], err_msg=name)
    for name, array in agents[1].arrays().items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    with pytest.raises(RuntimeError, match="learns with the others"):
        agents[0].learner.runner.learn(None, None, None, 1)
    population.depart(0)
    kept, rows = agents[1].arrays(), agents[1].memory.arrays()
    go(agents[0], [], 2)
    go(loaded, [], 2)
    assert agents[0].gradient_step_count == 5
    assert_alike(agents[0], loaded)
    for name, array in {**agents[1].arrays(), **agents[1].memory.arrays()}.items():
        np.testing.assert_array_equal(array, {**kept, **rows}[name], err_msg=name)


def _loaded(backend: Backend, path: Path) -> Any:
    (agent,) = agents_of(backend, [{}])
    agent.load(path)
    return agent


# Whole runs.

SETTINGS: dict[str, Any] = {
    "env": "Pendulum-v1",
    "steps": 36,
    "num_envs": 2,
    "hidden": (8,),
    "evaluation_interval": 12,
    "evaluation_episodes": 2,
    "env_kwargs": {"max_episode_steps": 5},
    "device": "cpu",
    "progress": False,
    "cfg": {
        "batch_size": 8,
        "random_timesteps": 4,
        "learning_starts": 4,
        "experiment": {"write_interval": 5, "checkpoint_interval": 6},
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


@jax_in_full
@pytest.mark.usefixtures("float64")
def test_runs_are_those_of_their_seeds_and_go_on_as_if_they_had_never_stopped(backend: Backend, tmp_path: Path) -> None:
    alone = [sacref.train(backend=cast(Any, backend.name), seed=seed, run_dir=tmp_path / str(seed), **SETTINGS) for seed in (0, 1)]
    run_dir = tmp_path / "population"
    population = train_population(backend=backend.name, seeds=[0, 1], run_dir=run_dir, **{**SETTINGS, "steps": 24})
    assert list(population.members) == ["seed=0", "seed=1"]
    assert (run_dir / "curve.png").is_file()
    for seed in (0, 1):
        run = run_dir / f"seed={seed}"
        names = {path.name for path in run.iterdir() if not path.name.startswith("events")}
        assert names == {"config.json", "evaluation.json", "metrics.jsonl", "checkpoints"}
        assert sorted(finished_checkpoints(run)) == [6, 12]
        assert json.loads((run / "config.json").read_text())["seed"] == seed
        np.testing.assert_allclose(evaluations(run), evaluations(tmp_path / str(seed))[:2], rtol=TOLERANCE)
    # One is taken up at an earlier step than its last, and one is new.
    shutil.rmtree(run_dir / "seed=0" / "checkpoints" / "agent_12")
    shutil.rmtree(run_dir / "seed=1")
    population = train_population(backend=backend.name, seeds=[0, 1], run_dir=run_dir, resume=True, **SETTINGS)
    for seed in (0, 1):
        member = population.members[f"seed={seed}"]
        agent: Any = member.agent
        assert (member.steps, agent.gradient_step_count, agent.training) == (36, 28, False)
        assert_alike(agent, alone[seed].agent)
        np.testing.assert_allclose(evaluations(member.run_dir), evaluations(tmp_path / str(seed)), rtol=TOLERANCE)
        observation = np.zeros((2, 3), np.float32)
        acted, wanted = (each.act(observation, None, timestep=0, timesteps=1)[0] for each in (agent, alone[seed].agent))
        np.testing.assert_allclose(agent.to_numpy(acted), agent.to_numpy(wanted), rtol=TOLERANCE)


@pytest.mark.usefixtures("float64")
def test_runs_that_were_made_alone_go_on_as_members_and_alone_again(backend: Backend, tmp_path: Path) -> None:
    """A run alone is left with an action that was chosen ahead, which the population takes, and the other way round."""
    train = partial(sacref.train, backend=cast(Any, backend.name))
    wanted = train(seed=0, run_dir=tmp_path / "whole", **SETTINGS)
    for seed in (0, 1):
        train(seed=seed, run_dir=tmp_path / "population" / f"seed={seed}", **{**SETTINGS, "steps": 12})
    train_population(backend=backend.name, seeds=[0, 1], run_dir=tmp_path / "population", resume=True, **{**SETTINGS, "steps": 24})
    found = train(seed=0, run_dir=tmp_path / "population" / "seed=0", resume=True, **SETTINGS)
    assert_alike(found.agent, wanted.agent)
    np.testing.assert_allclose(evaluations(found.run_dir), evaluations(wanted.run_dir), rtol=TOLERANCE)


def shape(rewards: Any, timestep: int, timesteps: int) -> Any:
    """A shaper that asks for all that it is told."""
    return rewards - rewards.mean() + timestep / timesteps


class Evaluates(Callback):
    """A callback that lets the agent be in evaluation for a moment, every third timestep."""

    def on_timestep(self, run: Any) -> None:
        if run.timestep % 3 == 0:
            for training in (False, True):
                run.agent.enable_training_mode(training, apply_to_models=True)


class Diverges(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment that diverges now and then."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, *rest = self.env.step(action)
        return observation * (np.nan if self.np_random.random() < 0.1 else 1.0), *rest


RUNS: dict[str, dict[str, Any]] = {
    "overlap, chunk": {"cfg": {"overlap": True, "chunk": 3, "random_timesteps": 2}, "vectorization": "sync"},
    "overlap, environments that diverge": {"cfg": {"overlap": True, "execution": "plain"}, "wrappers": [Diverges], "vectorization": "sync"},
    "shaped, standardised": {"cfg": {"reward_scale": 0.5, "rewards_shaper": shape, "observation_preprocessor": RunningStandardScaler}},
    "recurrent": {"recurrent": "gru", "recurrent_size": 4, "cfg": {"sequence_length": 3}},
    "states": {"wrappers": [PrivilegedState], "num_envs": 1},
    "batched": {"env": "Hopper-v5", "vectorization": "batched"},
    "a callback that evaluates": {"callbacks": [Evaluates]},
    "a changing number of steps": {"cfg": {"update_to_data": 0.75}},
    "chunk": {"cfg": {"chunk": 3, "random_timesteps": 2}},
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("backend", "feature"),
    [
        # Recurrent members are held to the runs of their seeds above, call by call.
        pytest.param(name, feature, marks=[pytest.mark.full] * (name == "jax" or feature == "recurrent"))
        for name in BACKENDS
        for feature in RUNS
    ],
    indirect=["backend"],
)
def test_whole_runs_are_those_of_their_seeds(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feature: str) -> None:
    if feature == "batched":
        pytest.importorskip("mujoco")
    together, step = list[bool](), JoinedEnvs._step_whole

    def noted(envs: JoinedEnvs, actions: Any) -> Any:
        stepped = step(envs, actions)
        together.append(stepped is not None)
        return stepped

    monkeypatch.setattr(JoinedEnvs, "_step_whole", noted)
    options = {**SETTINGS, **RUNS[feature], "steps": 24, "cfg": {**SETTINGS["cfg"], **RUNS[feature].get("cfg", {})}}
    population = train_population(backend=backend.name, seeds=[0, 1], run_dir=tmp_path / "both", **options)
    assert len(together) >= 12 and set(together) == {feature == "batched"}
    for seed in (0, 1):
        alone: Any = sacref.train(backend=cast(Any, backend.name), seed=seed, run_dir=tmp_path / str(seed), **options)
        member: Any = population.members[f"seed={seed}"]
        assert member.agent.gradient_step_count == alone.agent.gradient_step_count > 0
        assert_alike(member.agent, alone.agent)
        for name, array in alone.agent.memory.arrays().items():
            np.testing.assert_allclose(member.agent.memory.arrays()[name], array, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)
        assert member.agent.recent_returns == pytest.approx(alone.agent.recent_returns)
        curves, wanted = (read_metrics(run) for run in (member.run_dir, tmp_path / str(seed)))
        assert [line.keys() for line in curves] == [line.keys() for line in wanted]
        for line, other in zip(curves, wanted, strict=True):
            timed = [name for name in other if "(ms)" in name or name == "wall_time"]
            assert {name: line[name] for name in line if name not in timed} == pytest.approx(
                {name: other[name] for name in other if name not in timed}, rel=1e-6
            )


def read_metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def made_anew(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any, str], None]) -> None:
    """Let `change` see each vector environment that is made, and the name of the member: each makes two, one after the other."""
    right, made = vectors.make, []

    def make(*arguments: Any, **options: Any) -> Any:
        envs = right(*arguments, **options)
        made.append(envs)
        change(envs, f"seed={(len(made) - 1) // 2}")
        return envs

    monkeypatch.setattr(vectors, "make", make)


@pytest.mark.parametrize(
    ("backend", "after", "left"),
    [
        ("torch", 0, []),
        ("torch", 2, []),
        ("torch", 10, [6]),
        pytest.param("jax", 10, [6], marks=pytest.mark.full),
        ("torch", 19, [6, 12, 14]),
    ],
    indirect=["backend"],
)
def test_a_member_that_fails_ends_alone(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int, left: list[int]
) -> None:
    """At its first environment, and at a step of those: in random steps, in training, in the evaluation at the end."""
    counts: Counter[str] = Counter()

    def change(envs: Any, name: str) -> None:
        step = envs.step

        def counted(actions: Any) -> Any:
            counts[name] += 1
            if name == "seed=1" and counts[name] == after:
                raise OSError("the simulator is gone")
            return step(actions)

        envs.step = counted
        if name == "seed=1" and after == 0:
            raise OSError("the simulator is gone")

    made_anew(monkeypatch, change)
    cfg = {**SETTINGS["cfg"], "observation_preprocessor": RunningStandardScaler}
    settings = {**SETTINGS, "steps": 28, "evaluation_interval": 28, "cfg": cfg}
    with pytest.raises(PopulationError, match=r"1 of 2 members failed, the others were trained:\n  seed=1: OSError: the simulator is gone"):
        train_population(backend=backend.name, seeds=[0, 1], run_dir=tmp_path, **settings)
    for seed, written in ((0, [6, 12, 14]), (1, left)):
        assert sorted(finished_checkpoints(tmp_path / f"seed={seed}")) == written
    assert counts["seed=0"] == 14 + 5
    monkeypatch.undo()
    if after in (0, 10) and backend.name == "torch":
        alone: Any = sacref.train(backend="torch", seed=0, run_dir=tmp_path / "alone", **settings)
        found = sacref.load(tmp_path / "seed=0").arrays()
        for name, array in alone.agent.arrays().items():
            if name in found:
                np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("backend", ["torch"], indirect=True)
@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ({"reward": 1e200}, "NumericalError: training is not finite any more"),
        ({"reward": np.nan}, r"DivergenceError: environment \d diverged in 100 episodes one after the other"),
        ({"observation": np.inf}, r"DivergenceError: environment \d diverged in 100 episodes one after the other"),
    ],
)
def test_a_member_that_goes_wrong_ends_alone(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returned: dict[str, float], said: str
) -> None:
    """In numbers: in its updates, or where its environments do nothing but diverge."""

    def change(envs: Any, name: str) -> None:
        step = envs.step

        def wrong(actions: Any) -> Any:
            observations, rewards, *rest = step(actions)
            if name == "seed=1":
                rewards = np.full_like(rewards, returned.get("reward", 0.0))
                observations = observations * returned.get("observation", 1.0)
            return observations, rewards, *rest

        envs.step = wrong

    made_anew(monkeypatch, change)
    settings = {**SETTINGS, "steps": 240, "evaluation_interval": 240}
    with pytest.raises(PopulationError, match=rf"1 of 2 members failed, the others were trained:\n  seed=1: {said}"):
        train_population(backend=backend.name, seeds=[0, 1], run_dir=tmp_path / "both", **settings)
    monkeypatch.undo()
    assert max(finished_checkpoints(tmp_path / "both" / "seed=0")) == 120


def test_an_argument_that_suits_no_member_is_one_error(backend: Backend, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size is -1"):
        train_population(backend=backend.name, seeds=[0, 1], run_dir=tmp_path / "both", **{**SETTINGS, "cfg": {"batch_size": -1}})
    with pytest.raises(TypeError, match=r"train_population got 'seed', expected one for each member: did you mean seeds=\.\.\.\?"):
        train_population(backend=backend.name, seeds=[0], seed=1)
    with pytest.raises(TypeError, match=r"train_population got 'gamma', .*: did you mean cfg=\{'discount_factor': \.\.\.\}\?"):
        train_population(backend=backend.name, seeds=[0], gamma=0.9)
    with pytest.raises(ValueError, match=r"vector_env makes the environments of one agent, expected none for a population"):
        train_population(backend=backend.name, seeds=[0], vector_env=dict)
    with pytest.raises(ValueError, match=r"vary has batch_size: members may differ in initial_entropy_value"):
        train_population(backend=backend.name, seeds=[0], vary={"batch_size": [1]})
    with pytest.raises(ValueError, match=r"seeds are \[0, 0\]"):
        train_population(backend=backend.name, seeds=[0, 0])


@pytest.mark.parametrize(
    ("seeds", "vary", "said"),
    [
        ([3], {"discount_factor": [0.9, 2]}, r"1 of 2 .*none was:\n  discount_factor=2,seed=3: SACConfig\.discount_factor is 2, expected"),
        (
            [0],
            {"initial_entropy_value": [-1, 1, 0]},
            r"2 of 3 .*\n  initial_entropy_value=-1,seed=0: .*\n  initial_entropy_value=0,seed=0: ",
        ),
        ([0, 2**32], {}, r"1 of 2 .*\n  seed=4294967296: SACConfig\.seed is 4294967296, expected an integer from 0"),
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_members_are_judged_before_any_is_made(tmp_path: Path, seeds: list[int], vary: dict[str, Any], said: str, whole: bool) -> None:
    """On a directory whose runs would be deleted, and trained again."""
    kept = tmp_path / "discount_factor=0.9,seed=3" / "config.json"
    kept.parent.mkdir()
    kept.write_text("{}")
    cfg = SACConfig.from_dict(SETTINGS["cfg"]) if whole else SETTINGS["cfg"]
    with pytest.raises(ConfigError, match=said):
        train_population(backend="torch", seeds=seeds, vary=vary, run_dir=tmp_path, overwrite=True, **{**SETTINGS, "cfg": cfg})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [kept]


def test_fields_that_exclude_each_other_are_judged_before_any_member_is_made(tmp_path: Path) -> None:
    schedule = {"learning_rate_scheduler": "kl_adaptive", "learning_rate_scheduler_kwargs": {"kl_threshold": 1e-3, "max_lr": 1e-3}}
    with pytest.raises(ConfigError, match=r"1 of 2 members.*\n  learning_rate=0\.1,seed=0: SACConfig\.learning_rate is 0\.1 for policy"):
        train_population(backend="jax", seeds=[0], vary={"learning_rate": [1e-3, 0.1]}, run_dir=tmp_path, **SETTINGS | {"cfg": schedule})
    with pytest.raises(ValueError, match=r"vary has learning_rate 0\.001, 0\.1: on PyTorch members share it, on JAX it may differ"):
        train_population(backend="torch", seeds=[0], vary={"learning_rate": [1e-3, 0.1]}, run_dir=tmp_path, **SETTINGS)
    assert list(tmp_path.iterdir()) == []


def test_one_member_warns_for_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("torch")
    wrapped = {"wrappers": [gymnasium.wrappers.NormalizeObservation], "steps": 4}
    train_population(backend="torch", seeds=[0, 1], run_dir=tmp_path, **{**SETTINGS, **wrapped})
    assert caplog.text.count("NormalizeObservation learns moments of its own") == 1


@jax_in_full
def test_combinations_are_members(backend: Backend, tmp_path: Path) -> None:
    population = train_population(
        backend=backend.name, seeds=[0, 1], vary={"discount_factor": [0.9, 0.99]}, run_dir=tmp_path / "four", **{**SETTINGS, "steps": 20}
    )
    names = [f"discount_factor={discount},seed={seed}" for discount in (0.9, 0.99) for seed in (0, 1)]  # with the shapes checked
    assert list(population.members) == names
    found = {name: json.loads((tmp_path / "four" / name / "config.json").read_text())["cfg"]["discount_factor"] for name in names}
    assert list(found.values()) == [0.9, 0.9, 0.99, 0.99]
    assert sorted(path.name for path in (tmp_path / "four").glob("*.png")) == ["discount_factor=0.9.png", "discount_factor=0.99.png"]


@jax_in_full
def test_members_that_are_added_have_the_settings_of_the_run(backend: Backend, tmp_path: Path) -> None:
    def settings(name: str) -> Any:
        return json.loads((tmp_path / name / "config.json").read_text())["cfg"]

    given = {name: value for name, value in SETTINGS.items() if name != "cfg"} | {"backend": backend.name, "run_dir": tmp_path, "steps": 12}
    cfg = {**SETTINGS["cfg"], "discount_factor": 0.9, "initial_entropy_value": 0.1, "batch_size": 5}
    train_population(seeds=[1], cfg=cfg, **given)
    train_population(seeds=[0, 1], resume=True, **given | {"steps": 18})
    first, added = settings("seed=1"), settings("seed=0")
    assert (first["discount_factor"], first["batch_size"], added["seed"]) == (0.9, 5, 0)
    own = {"seed": 0, "experiment": {**added["experiment"]}}
    assert added == {**first, **own}
    assert {**added["experiment"], "experiment_name": ""} == {**first["experiment"], "experiment_name": ""}


@jax_in_full
def test_ctrl_c_ends_all_members_with_everything_written(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def change(envs: Any, name: str) -> None:
        step = envs.step

        def counted(actions: Any) -> Any:
            steps.append(1)
            if len(steps) == 30:
                signal.raise_signal(signal.SIGINT)
            return step(actions)

        envs.step = counted

    made_anew(monkeypatch, change)
    population = train_population(backend=backend.name, seeds=[0, 1], run_dir=tmp_path, **{**SETTINGS, "steps": 100_000})
    for name, member in population.members.items():
        assert member.interrupted and 10 < member.steps < 1_000
        assert max(finished_checkpoints(tmp_path / name)) * 2 == member.steps


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_a_second_ctrl_c_ends_them_at_once(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    def change(envs: Any, name: str) -> None:
        step = envs.step

        def counted(actions: Any) -> Any:
            steps.append(name)
            if len(steps) == 20:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            return step(actions)

        envs.step = counted

    made_anew(monkeypatch, change)
    with pytest.raises(KeyboardInterrupt):
        train_population(backend=backend.name, seeds=[0, 1], run_dir=tmp_path, **SETTINGS)
    assert len(steps) == 20
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_runs_that_are_resumed_with_settings_that_differ_are_refused(backend: Backend, tmp_path: Path) -> None:
    for seed, polyak in ((0, 0.005), (1, 0.01)):
        cfg = {**SETTINGS["cfg"], "polyak": polyak}
        sacref.train(backend=cast(Any, backend.name), seed=seed, run_dir=tmp_path / f"seed={seed}", **{**SETTINGS, "steps": 4, "cfg": cfg})
    with pytest.raises(RunError, match=r"the members' polyak are \[0\.005, 0\.01\]: they may differ in initial_entropy_value"):
        train_population(backend=backend.name, seeds=[0, 1], run_dir=tmp_path, resume=True, **{**SETTINGS, "cfg": None})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"seeds": 3}, "seeds is 3, expected several values"),
        ({"seeds": [0], "vary": {"discount_factor": 0.9}}, "discount_factor is 0.9, exp"),
    ],
)
def test_one_value_in_the_place_of_several_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        train_population(**asked)


@pytest.mark.parametrize(("text", "seeds"), [("0:3", [0, 1, 2]), ("4", [4]), ("7,3", [7, 3]), ("2:4", [2, 3])])
def test_seeds_are_read(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "3:3", "1,1", "-1,2", "a", "1:b", "0:2:1"])
def test_what_says_no_seeds_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected non-negative integers as 0:10 or 0,3,5, none of them twice"):
        parse_seeds(text)
