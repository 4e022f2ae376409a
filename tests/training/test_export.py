"""Exported policies: what other programs load answers as `predict` does, and what cannot be exported is named."""

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest

import sacref
from sacref.cli import main as cli
from sacref.preprocessing import RunningStandardScaler
from sacref.training import export
from sacref.training.export import ExportError, export_policy
from tests.backends import BACKENDS, Backend, Spaces, box, fill, load_backend, without_shape_checks

backend = pytest.fixture(params=BACKENDS)(load_backend)

OWN = {"torch": "torch", "jax": "stablehlo"}
"""Backend -> the format of its own library."""
DICT = gymnasium.spaces.Dict({"place": box(-1.0, 1.0, (2,), np.float64), "image": gymnasium.spaces.Box(0, 255, (4,), np.uint8)})
AGENTS: dict[str, Any] = {
    "Dict": {"spaces": Spaces(DICT, box(-1.0, 4.0, (2, 3)), box(-1.0, 1.0, (2,))), "observation_preprocessor": RunningStandardScaler},
    "gru": {"algorithm": "SAC_RNN", "networks": {"recurrent": "gru", "recurrent_size": 4}, "sequence_length": 2},
    "lstm": {
        "algorithm": "SAC_RNN",
        "networks": {"recurrent": "lstm", "recurrent_size": 4, "feed_previous": ("actions", "rewards")},
        "sequence_length": 2,
        "reward_scale": 0.1,
    },
}
NAMES = {
    "Dict": (("observations.image", "observations.place"), ("actions",)),
    "gru": (("observations", "previous_actions", "carry"), ("actions", "next_carry", "next_previous_actions")),
    "lstm": (
        ("observations", "previous_actions", "previous_rewards", "carry.0", "carry.1"),
        ("actions", "next_carry.0", "next_carry.1", "next_previous_actions"),
    ),
}


def needs_packages(backend: Backend, *, onnx: bool) -> None:
    names = {
        "torch": ["onnxruntime", "onnx", "onnxscript"] if onnx else [],
        "jax": ["jax2onnx", "onnxruntime"] if onnx else ["flatbuffers"],
    }
    missing = [name for name in names[backend.name] if find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed: `nox -s integrations` runs this")


def exported(agent: Any, path: Path, to: Any) -> Any:
    with without_shape_checks():
        return export_policy(agent, path, to=to)


@pytest.mark.parametrize("kind", AGENTS)
@pytest.mark.parametrize("onnx", [False, True], ids=["own", "onnx"])
def test_what_is_loaded_again_answers_as_predict(backend: Backend, onnx: bool, kind: str, tmp_path: Path) -> None:
    needs_packages(backend, onnx=onnx)
    options = dict(AGENTS[kind])
    agent = backend.agent(options.pop("spaces", None), **options, execution="plain")
    fill(agent, 5)
    written = exported(agent, tmp_path / "policy", "onnx" if onnx else OWN[backend.name])
    assert (written.inputs, written.outputs) == NAMES[kind]
    assert written.difference < 1e-6
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
    if kind != "Dict":
        return
    images = np.arange(12, dtype=np.uint8).reshape(3, 4)
    places = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    if onnx:
        session = importlib.import_module("onnxruntime").InferenceSession(tmp_path / "policy")
        (actions,) = session.run(["actions"], {"observations.image": images, "observations.place": places})
    else:
        module = backend.module("export")
        (actions,) = getattr(module, f"load_{OWN[backend.name]}")(tmp_path / "policy")(images, places)
    np.testing.assert_allclose(actions, agent.predict({"image": images, "place": places}), atol=1e-5)
    assert actions.shape == (3, 2, 3)


def test_the_command_exports_a_checkpoint_of_a_run(backend: Backend, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs_packages(backend, onnx=False)
    cfg = {"random_timesteps": 3, "learning_starts": 3, "batch_size": 2}
    arguments: dict[str, Any] = {"backend": backend.name, "env": "Pendulum-v1", "hidden": (4,), "cfg": cfg, "progress": False}
    sacref.train(**arguments, steps=6, run_dir=tmp_path / "run", evaluation_interval=3, evaluation_episodes=1, evaluation_max_steps=3)
    capsys.readouterr()
    output = tmp_path / "policy"
    for place, more in (("best", []), ("checkpoints/agent_6", []), ("", ["--checkpoint", "agent_4"])):
        output.unlink(missing_ok=True)
        with without_shape_checks():
            command = ["export", str(tmp_path / "run" / place), "--to", OWN[backend.name], "--output", str(output), *more]
            assert cli.main(command) == 0
        said = capsys.readouterr().out
        assert f"written to {output}: observations -> actions" in said and "differs from agent.predict by at most " in said
        assert output.stat().st_size > 100


def test_what_cannot_be_exported_is_said_and_nothing_is_written(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, own = backend.agent(capacity=None, training=False), OWN[backend.name]
    (tmp_path / "policy").write_text("of before")
    other = next(name for name in ("torch", "stablehlo") if name != own)
    with pytest.raises(ExportError, match=rf"to is '{other}', expected onnx or {own} for an agent of {backend.name}"):
        exported(agent, tmp_path / "policy", other)
    with monkeypatch.context() as patch:
        package = "jax2onnx" if backend.name == "jax" else "onnxruntime"
        patch.setitem(sys.modules, package, None)
        if backend.name == "torch":
            patch.setattr(backend.module("export"), "to_onnx", lambda policy, path: path.write_bytes(b""))
        with pytest.raises(ExportError, match=rf"onnx needs {package}, which is not installed: .*export-{backend.name}"):
            exported(agent, tmp_path / "policy", "onnx")
    needs_packages(backend, onnx=False)
    with monkeypatch.context() as patch:
        patch.setattr(export, "_difference", lambda *arrays: float("nan"))
        with pytest.raises(ExportError, match=r"differs from predict by nan, expected at most .*, and was not written"):
            exported(agent, tmp_path / "policy", own)
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(ExportError, match=r"differs from predict by .*, expected at most -1, and was not written"):
        exported(agent, tmp_path / "policy", own)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("policy", "of before")]


def test_a_stablehlo_program_is_loaded_onto_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded elsewhere, as onto a GPU, whose products are in TF32, it would differ from predict."""
    jax = pytest.importorskip("jax")
    module = importlib.import_module("sacref.jax.export")
    used: list[Any] = []

    def call(*_: Any) -> tuple[()]:
        used.append(jax.config.jax_default_device)
        return ()

    monkeypatch.setattr(jax.export, "deserialize", lambda _: SimpleNamespace(call=call))
    (tmp_path / "policy").touch()
    with jax.default_device("gpu"):
        module.load_stablehlo(tmp_path / "policy")(np.zeros(2))
    assert used == [jax.local_devices(backend="cpu")[0]]


def test_an_operation_that_onnx_lacks_is_named(backend: Backend, tmp_path: Path) -> None:
    needs_packages(backend, onnx=True)
    models = importlib.import_module(f"tests.{backend.name}.user_models")

    def change(outputs: Any) -> Any:
        if backend.name == "torch":
            return importlib.import_module("torch").special.bessel_j0(outputs[0]), outputs[1]
        jax = importlib.import_module("jax")
        return jax.pure_callback(np.tanh, jax.ShapeDtypeStruct(outputs[0].shape, outputs[0].dtype), outputs[0]), outputs[1]

    policy = models.Returns(models.user_models(3, 2)["policy"], change)
    agent = backend.agent(models={"policy": policy}, capacity=None, training=False)
    with pytest.raises(
        ExportError, match=r"cannot be exported to onnx \(it has an operation that onnx lacks, (prims.bessel_j0|pure_callback)\)"
    ):
        exported(agent, tmp_path / "policy", "onnx")
    assert not list(tmp_path.iterdir())
