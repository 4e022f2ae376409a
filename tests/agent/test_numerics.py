"""Training that becomes NaN stops, names the gradient step and the culprit, and leaves the last good checkpoint as it was."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray

import sacref
from sacref import NumericalError, training
from sacref.agent import agent, numerics
from sacref.agent.numerics import first_fault, listed, not_finite
from sacref.algorithm.data import METRICS
from sacref.cli import main as cli
from sacref.config import ExperimentConfig, SACConfig
from sacref.ranks import Ranks
from sacref.training import evaluation
from tests.backends import BACKENDS, Backend, Spaces, draw_row, load_backend, metrics_of, without_shape_checks
from tests.envs.counting import CountingEnv
from tests.fake_agent import FakeAgent

backend = pytest.fixture(params=BACKENDS)(load_backend)

FLAG = 7.0
WAYS = [("torch", "plain"), ("torch", "traced"), pytest.param("jax", "plain", marks=pytest.mark.full), ("jax", "scan")]
NAMES = ("critic_loss", "policy_loss", "entropy_loss", "alpha", "entropy", "q_max", "q_max", "target_max", "critic_gradient_norm")


def rows(**bad: tuple[int, float]) -> NDArray[Any]:
    """Four rows of `NAMES`, zero but for the given ones: name -> (from which row on, value)."""
    made = np.zeros((4, len(NAMES)))
    for name, (row, value) in bad.items():
        made[row:, NAMES.index(name)] = value
    return made


# What the metrics say.


def test_finite_metrics_are_no_fault() -> None:
    assert first_fault(NAMES, rows(critic_loss=(0, 1e300))) is None
    assert first_fault(NAMES, np.empty((0, len(NAMES)))) is None


def test_the_first_row_counts_and_its_metrics_are_listed_as_an_update_computes_them() -> None:
    fault = first_fault(NAMES, rows(policy_loss=(2, np.nan), critic_loss=(3, np.nan), entropy_loss=(2, np.inf)))
    assert fault is not None
    assert (fault.row, fault.names) == (2, ["policy_loss", "entropy_loss"])


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("alpha", "the temperature, by its step before this one"),
        ("target_max", "the policy, by its last step before this one, or by its output for this batch"),
        ("q_max", "the critics' values of this batch"),
        ("critic_loss", "the critics' loss, which overflows"),
        ("critic_gradient_norm", "the critics' gradient"),
        ("entropy", "the policy's output for this batch"),
        ("policy_loss", "the critics' gradient: the policy's loss is the first to see the critics after their step"),
        ("entropy_loss", "the temperature's loss"),
    ],
)
def test_the_cause_is_that_of_the_first_metric_that_is_computed(name: str, cause: str) -> None:
    # Whatever comes later in an update is not finite either.
    fault = first_fault(NAMES, rows(**{name: (1, np.nan), "entropy_loss": (1, np.nan)}))
    assert fault is not None and (fault.row, fault.names[0], fault.cause) == (1, name, cause)


def test_every_metric_has_its_place_in_an_update() -> None:
    places = [numerics._order(name) for name in METRICS if "scale" not in name and "skipped" not in name]  # which are finite
    assert len(set(places)) == len(numerics._CAUSES) + 1


def test_arrays_are_named_and_long_lists_are_cut() -> None:
    arrays = {"a": np.array([1.0, np.nan]), "b": np.array([1, 2]), "c": np.array(-np.inf), "d": np.ones((2, 2))}
    assert not_finite(arrays) == ["a", "c"]
    assert listed("abcdef") == "a, b, c, d, e, f"
    assert listed("abcdefgh") == "a, b, c, d, e, f and 2 more"


# Agents.


def tracking(tmp_path: Path, write: int = 0, checkpoints: int = 0) -> ExperimentConfig:
    return ExperimentConfig(directory=str(tmp_path), experiment_name="run", write_interval=write, checkpoint_interval=checkpoints)


def faulty(name: str, part: str, **options: Any) -> Any:
    """An agent whose memory holds the newest transition alone, so that the k-th gradient step is on the k-th row."""
    pytest.importorskip(name)
    models = importlib.import_module(f"tests.{name}.faulty_user_models").faulty_models(part)
    return Backend(name).agent(models=models, capacity=1, batch_size=1, **options)


def live(agent: Any, timesteps: int, flagged: int = 0, acts: bool = False, **given: Any) -> None:
    """Timesteps, the `flagged`-th of which (from 1) has an observation that makes the gradient NaN.

    Args:
        acts: whether the actions are the agent's, else numbers.
    """
    generator = np.random.default_rng(0)
    for timestep in range(timesteps):
        clock = {"timestep": timestep, "timesteps": timesteps}
        row = draw_row(agent, generator, **{"terminated": np.zeros((agent.memory.num_envs, 1), bool), **given}, **clock)
        if timestep + 1 == flagged:
            row["observations"][0, 0] = FLAG
        if acts:
            row["actions"] = agent.to_numpy(agent.act(row["observations"], None, **clock)[0])
        agent.record_transition(**row)
        agent.post_interaction(**clock)


def metrics_lines(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("name", "execution"), WAYS)
def test_a_nan_gradient_of_the_critics_is_named_with_its_step(name: str, execution: str, tmp_path: Path) -> None:
    agent = faulty(name, "critics", execution=execution, experiment=tracking(tmp_path, write=3, checkpoints=4))
    with pytest.raises(NumericalError) as raised:
        live(agent, 20, flagged=5)
    message = str(raised.value)
    assert message.startswith(
        "training is not finite any more (NaN or infinity) since gradient step 5 (timestep 5): policy_loss; at fault is the critics' "
        "gradient: the policy's loss is the first to see the critics after their step; parameters, moments or counters that are not "
        "finite by now: policy."
    )
    good = tmp_path / "run" / "checkpoints" / "agent_4"
    assert f"The last good checkpoint is {good}. Train again with another setting: lower learning_rate, clip gradients" in message
    assert agent.gradient_step_count == 6
    # What was measured is written, the NaN as null; the checkpoint is whole and finite.
    lines = metrics_lines(tmp_path)
    assert [line["timestep"] for line in lines] == [3, 6]
    assert lines[0]["Loss / Policy loss"] is not None and lines[1]["Loss / Policy loss"] is None
    other = faulty(name, "critics")
    other.load(good)
    assert other.gradient_step_count == 4
    assert not_finite(other.arrays()) == []
    live(other, 3)


def test_a_nan_gradient_that_is_clipped_is_seen_itself(backend: Backend, tmp_path: Path) -> None:
    agent = faulty(backend.name, "critics", grad_norm_clip=1.0, experiment=tracking(tmp_path, write=3))
    with pytest.raises(
        NumericalError, match=r"since gradient step 2 \(timestep 2\): critic_gradient_norm, policy_loss.*at fault is the cri"
    ) as e:
        live(agent, 20, flagged=2)
    assert "There is no checkpoint yet. Train again with another setting: lower learning_rate, make rewards smaller" in str(e.value)


@pytest.mark.parametrize(("name", "execution"), WAYS)
def test_a_nan_gradient_of_the_policy_is_seen_in_the_next_step(name: str, execution: str, tmp_path: Path) -> None:
    agent = faulty(name, "policy", execution=execution, experiment=tracking(tmp_path, write=4))
    with pytest.raises(NumericalError, match=r"since gradient step 3 \(timestep 3\): target_max.*at fault is the policy, by its last step"):
        live(agent, 20, flagged=2)


def test_a_nan_policy_is_found_by_its_actions(backend: Backend, tmp_path: Path) -> None:
    """Long before the next write; and it is not the simulation that is blamed."""
    agent = faulty(backend.name, "policy", experiment=tracking(tmp_path, write=10))
    with pytest.raises(
        NumericalError, match=r"since gradient step 3 \(timestep 3\), whose losses are finite and whose step is not; .*: policy\."
    ):
        live(agent, 20, flagged=3, acts=True)
    assert agent.gradient_step_count == 3
    (line,) = metrics_lines(tmp_path)
    assert line["timestep"] == 3 and line["Loss / Policy loss"] is not None


def test_the_last_step_of_a_run_is_looked_at(backend: Backend, tmp_path: Path) -> None:
    agent = faulty(backend.name, "policy", experiment=tracking(tmp_path, write=2))
    with pytest.raises(NumericalError, match=r"since gradient step 4 \(timestep 4\), whose losses are finite"):
        live(agent, 4, flagged=4)
    assert [line["timestep"] for line in metrics_lines(tmp_path)] == [2, 4]


def test_no_checkpoint_is_written_of_nan(backend: Backend, tmp_path: Path) -> None:
    agent = faulty(backend.name, "policy", experiment=tracking(tmp_path, checkpoints=2))
    with pytest.raises(NumericalError, match=r"since a gradient step from 3 to 4 \(timestep 4\); parameters.*/agent_2\. Train again"):
        live(agent, 20, flagged=3)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["agent_2"]
    with pytest.raises(NumericalError):
        agent.save(tmp_path / "own")
    assert not (tmp_path / "own").exists()


def test_a_look_is_taken_where_nothing_is_tracked(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "UNTRACKED_CHECK_INTERVAL", 5)
    looked = faulty(backend.name, "policy")
    with pytest.raises(NumericalError, match=r"since a gradient step from 6 to 10 \(timestep 10\)"):
        live(looked, 20, flagged=7)


def test_a_learning_rate_that_is_too_large_diverges_at_the_step_that_is_named(backend: Backend, tmp_path: Path) -> None:
    options: dict[str, Any] = {"learning_rate": 300.0, "capacity": 8, "execution": "plain"}
    with pytest.MonkeyPatch.context() as patch, without_shape_checks():
        twin = backend.agent(**options)
        seen = metrics_of(twin, patch)
        with pytest.raises(NumericalError):
            live(twin, 300)
    finite = [all(np.isfinite(value).all() for value in metrics.values()) for metrics in seen]
    step = finite.index(False) + 1
    assert step > 3
    diverging = backend.agent(**options, experiment=tracking(tmp_path, write=7))
    with without_shape_checks(), pytest.raises(NumericalError, match=rf"since gradient step {step} \(timestep {step}\): "):
        live(diverging, 300)
    assert diverging.gradient_step_count == -(-step // 7) * 7


@pytest.mark.parametrize("gradient_steps", [1, 3])
def test_a_nan_temperature_is_named(backend: Backend, tmp_path: Path, gradient_steps: int) -> None:
    made = backend.agent(gradient_steps=gradient_steps, experiment=tracking(tmp_path, write=2))
    live(made, 1)
    arrays = made.arrays()
    made.set_arrays({**arrays, "log_alpha": np.full_like(arrays["log_alpha"], np.nan)})
    step = gradient_steps + 1
    with pytest.raises(
        NumericalError, match=rf"since gradient step {step} \(timestep 1\): alpha.*at fault is the temperature, by its step b"
    ):
        live(made, 2)


def test_a_checkpoint_that_was_loaded_is_a_good_one(backend: Backend, tmp_path: Path) -> None:
    faulty(backend.name, "policy").save(tmp_path / "saved")
    made = faulty(backend.name, "policy")
    made.load(tmp_path / "saved")
    with pytest.raises(NumericalError, match=rf"The last good checkpoint is {tmp_path / 'saved'}\. "):
        live(made, 3, flagged=2)


def test_device_rows_that_a_nan_policy_made_are_its_fault(backend: Backend, tmp_path: Path) -> None:
    """And none of the simulation's."""
    made = faulty(backend.name, "policy", experiment=tracking(tmp_path, write=10))
    row = draw_row(made, np.random.default_rng(0), actions=np.full((1, 2), np.nan, np.float32))
    made.record_transition(**{name: backend.array(value) if isinstance(value, np.ndarray) else value for name, value in row.items()})
    arrays = made.arrays()
    made.set_arrays(arrays | {"policy.mu.bias": np.full_like(arrays["policy.mu.bias"], np.nan)})
    with pytest.raises(NumericalError, match=r"by now: policy\.mu\.bias\."):
        made.write_tracking_data(timestep=1, timesteps=10)


def test_what_was_nan_before_a_step_is_said_to_be(backend: Backend) -> None:
    made = backend.agent()
    arrays = made.arrays()
    made.set_arrays({**arrays, "log_alpha": np.full_like(arrays["log_alpha"], np.nan)})
    with pytest.raises(NumericalError, match=r"since before gradient step 1: what was loaded is not; .* by now: log_alpha\."):
        made.check_numbers()


def test_the_fault_of_one_rank_stops_all(backend: Backend, tmp_path: Path) -> None:
    class Two(Ranks):
        size = 2

        def gather(self, value: Any) -> list[Any]:
            return [value, "training is not finite" if value is None else value]

        def rows(self, array: NDArray[Any]) -> NDArray[Any]:
            return array

    made = backend.agent(experiment=tracking(tmp_path, write=10))
    live(made, 2)
    made.ranks = Two()
    with pytest.raises(NumericalError, match=r"^rank 1: training is not finite$"):
        made.write_tracking_data(timestep=2, timesteps=10)
    assert [line["timestep"] for line in metrics_lines(tmp_path)] == [2]


# float16: a step that overflows is skipped.


def half(backend: Backend, experiment: ExperimentConfig, **options: Any) -> Any:
    """An agent of mixed precision that learns from the newest transition alone."""
    precise: dict[str, Any] = {"mixed_precision": True, "precision": "float16", "capacity": 1, "batch_size": 1}
    return backend.agent(**precise, experiment=experiment, **options)


def test_a_float16_overflow_is_no_fault(backend: Backend, tmp_path: Path) -> None:
    made = half(backend, tracking(tmp_path, write=1, checkpoints=2))
    live(made, 6, rewards=np.full((1, 1), 1e6, np.float32), terminated=np.ones((1, 1), bool))
    assert made.arrays()["critic_optimizer.skipped_steps"] >= 4
    assert (tmp_path / "run" / "checkpoints" / "agent_6").is_dir()


def test_a_float16_policy_that_only_overflows_is_one(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "MOST_SKIPPED", 10)
    made = half(backend, tracking(tmp_path, write=4))
    live(made, 8)
    with pytest.raises(NumericalError) as raised:
        live(made, 40, observations=np.full((1, 3), 1e6), next_observations=np.full((1, 3), 1e6))
    # The look after 8 steps saw some that did not; that after 20 is the first with 10 that did.
    assert str(raised.value).startswith(
        "training does not go on any more: the last 12 steps of the policy_optimizer overflowed in float16 and were skipped; the last 12 "
        "steps of the critic_optimizer overflowed"
    )
    assert "compute in float32 (mixed_precision=False)" in str(raised.value)
    assert made.gradient_step_count == 20
    assert not_finite(made.arrays()) == []


def test_a_few_overflows_in_a_row_are_none(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "MOST_SKIPPED", 10)
    made = half(backend, tracking(tmp_path, write=4))
    for _ in range(2):
        live(made, 8, observations=np.full((1, 3), 1e6), next_observations=np.full((1, 3), 1e6))
        live(made, 1)
    assert made.arrays()["policy_optimizer.skipped_steps"] == 16


def test_in_float16_the_step_is_that_after_the_last_sound_one(backend: Backend, tmp_path: Path) -> None:
    """Step 2 overflows and is skipped, step 4 takes the parameters beyond all bounds, which step 5 is the first to see."""
    made = half(backend, tracking(tmp_path, write=10), learning_rate=1e-3)
    for timestep in range(1, 4):
        live(made, 1, rewards=np.full((1, 1), 1e6 if timestep == 2 else 0.0, np.float32), terminated=np.ones((1, 1), bool))
    assert made.arrays()["critic_optimizer.skipped_steps"] == 1
    arrays = made.arrays()
    made.set_arrays(arrays | {"policy.head.bias": np.full_like(arrays["policy.head.bias"], np.nan)})
    with pytest.raises(NumericalError, match=r"since gradient step 4 \(timestep 1\): target_max.*: policy\.head\.bias"):
        live(made, 10)


# Loops and the command line.


def test_the_training_loop_stops_before_an_environment_sees_nan(backend: Backend) -> None:
    class Careful(CountingEnv):
        def step(self, action: Any) -> Any:
            assert np.isfinite(action).all()
            return super().step(action)

    envs = SyncVectorEnv([Careful])
    made = backend.agent(Spaces(envs.single_observation_space, envs.single_action_space))
    arrays = made.arrays()
    made.set_arrays({**arrays, "policy.head.bias": np.full_like(arrays["policy.head.bias"], np.nan)})
    with pytest.raises(NumericalError, match="what was loaded is not"):
        training.run(made, envs, timesteps=5)
    with pytest.raises(NumericalError, match="what was loaded is not"):
        evaluation.evaluate(made, envs)


def test_actions_that_overflow_for_an_observation_are_named() -> None:
    actions, sound = np.zeros((3, 2)), FakeAgent()
    assert numerics.require_finite_actions(sound, actions) is actions
    actions[1] = np.nan
    with pytest.raises(NumericalError, match=r"actions for environment 1 are not finite .*and its parameters are"):
        numerics.require_finite_actions(sound, actions)


def test_the_command_line_ends_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    flags = "--env Pendulum-v1 --steps 400 --random-timesteps 20 --learning-starts 20 --batch-size 8 --hidden 8 --device cpu".split()
    flags += "--learning-rate 1e30 --experiment.write-interval 30 --experiment.checkpoint-interval 10 --evaluation-interval 400".split()
    assert cli.main(["train", *flags, "--run-dir", str(tmp_path / "run"), "--no-progress"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sacref: training is not finite any more (NaN or infinity) since gradient step 1 (timestep 21): ")
    assert f"The last good checkpoint is {tmp_path / 'run' / 'checkpoints' / 'agent_20'}. " in error
    assert "(NumericalError; SACREF_TRACEBACK=1 shows where)" in error
    assert [line["timestep"] for line in metrics_lines(tmp_path)][-1] == 21
    assert sacref.load(tmp_path / "run", device="cpu") is not None


def test_advice_names_what_is_not_in_force() -> None:
    assert "clip" not in numerics.advice(SACConfig(grad_norm_clip=0.5), None)
    assert "float32" not in numerics.advice(SACConfig(), None)
    assert "float32" in numerics.advice(SACConfig(mixed_precision=True), None)
