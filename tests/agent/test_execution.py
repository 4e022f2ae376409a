"""The fast ways to run an update, each held to the plain one: same weights, batches and noise; and what one update may cost."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sacref.algorithm.tree import map_leaves
from tests.backends import BACKENDS, Backend, draw_row, fill, load_backend, without_shape_checks

backend = pytest.fixture(params=BACKENDS)(load_backend)

TOLERANCE = 1e-12
"""Largest relative difference after 100 updates in float64, max|a - b| / max|b| per array."""

FUSED = [
    pytest.param("torch", "traced", id="torch-traced"),
    pytest.param("torch", "cuda_graph", id="torch-cuda_graph"),
    pytest.param("jax", "scan", id="jax-scan"),
]


def replay_by_calling(function: Callable[[], Any], generators: Sequence[Any], warm_up: Callable[[], None]) -> Callable[[], Any]:
    """Stands for the capture of a CUDA graph where there is no such device: a replay writes into the one output, as a graph does."""
    assert len(set(generators)) in (2, 3, 6)  # of an agent, or of two
    warm_up()
    outputs: list[Any] = []

    def replay() -> Any:
        values = function()
        if not outputs:
            outputs.append(map_leaves(lambda value: value.clone(), values))
        map_leaves(lambda output, value: output.copy_(value), outputs[0], values)
        return outputs[0]

    return replay


def cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def fused_agent(name: str, execution: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """An agent whose updates run by `execution`; without a CUDA device, a graph's work is done by calling."""
    if execution != "cuda_graph" or cuda():
        return Backend(name).agent(execution=execution, **options)
    capture_by_calling(monkeypatch)
    return Backend(name).agent(execution=execution, **options)


def capture_by_calling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `execution="cuda_graph"` be chosen without such a device."""
    from sacref.torch import agent as module
    from sacref.torch import capture

    monkeypatch.setattr(module, "choose", lambda execution, device, **_: execution)
    monkeypatch.setattr(capture, "capture_on_cuda", replay_by_calling)


def assert_close(arrays: dict[str, NDArray[Any]], wanted: dict[str, NDArray[Any]]) -> None:
    assert set(arrays) == set(wanted)
    for name, array in wanted.items():
        given, expected = arrays[name].astype(np.float64), array.astype(np.float64)
        assert np.max(np.abs(given - expected), initial=0.0) <= TOLERANCE * np.max(np.abs(expected), initial=0.0), name


@pytest.mark.parametrize("name, execution", FUSED)
@pytest.mark.parametrize("block", [pytest.param(1, marks=pytest.mark.full), 10])  # test_fused_step has steps one by one
def test_100_fused_updates_equal_100_plain_ones(name: str, execution: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name)
    options: dict[str, Any] = {
        "dtype": "float64",
        "learning_rate": (1e-3, 2e-3, 3e-3),
        "grad_norm_clip": 0.5,
        "hidden": (8, 8),
        "gradient_steps": block,
    }
    plain = Backend(name).agent(execution="plain", **options)
    agent = fused_agent(name, execution, monkeypatch, **options)
    assert (plain.execution, agent.execution) == ("plain", execution)
    start = agent.arrays()
    with without_shape_checks():
        for learner in (plain, agent):
            fill(learner, 20)
            for _ in range(100 // block):
                learner.update(timestep=0, timesteps=1)
    assert int(agent.arrays()["gradient_steps"]) == 100
    assert_close(agent.arrays(), plain.arrays())
    assert np.abs(agent.arrays()["policy.head.kernel"] - start["policy.head.kernel"]).max() > 1e-3
    assert_close(agent.memory.arrays(), plain.memory.arrays())
    assert_close(agent.learner.stream_states(), plain.learner.stream_states())


@pytest.mark.parametrize("name, execution", FUSED)
def test_trap_03_two_fused_updates_draw_different_noise(name: str, execution: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row, and nothing learns: only the noise can make two updates differ."""
    pytest.importorskip(name)
    agent = fused_agent(name, execution, monkeypatch, learning_rate=0.0, polyak=0.0, gradient_steps=2)
    agent.write_interval = 1000
    fill(agent, 1)
    for _ in range(3):
        agent.update(timestep=0, timesteps=1)
    rows = np.concatenate([agent.to_numpy(packed) for packed in agent.metrics.packed])
    entropies = rows[:, agent.metrics.tags.index("Policy / Entropy")]
    targets = rows[:, agent.metrics.tags.index("Target / Target (mean)")]
    assert len(set(entropies.tolist())) == len(set(targets.tolist())) == 6


@pytest.mark.parametrize("execution", ["traced", "cuda_graph"])
def test_updates_run_plain_while_anomalies_are_detected(
    execution: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A user who looks for NaN wants autograd, which a recording does not have; a line says so, once."""
    torch = pytest.importorskip("torch")
    from sacref.torch import graph

    graph._say_plain.cache_clear()
    agents = [fused_agent("torch", execution, monkeypatch), Backend("torch").agent(execution="plain")]
    for agent in agents:
        fill(agent, 8)
    with torch.autograd.set_detect_anomaly(True), caplog.at_level("WARNING"):
        for agent in agents:
            agent.update(timestep=0, timesteps=10)
            agent.update(timestep=1, timesteps=10)
    assert caplog.messages == ["torch.autograd.set_detect_anomaly is on: updates run plain, which is slower, until it is off"]
    for name, array in agents[1].arrays().items():
        np.testing.assert_array_equal(agents[0].arrays()[name], array, err_msg=name)
    agents[0].update(timestep=2, timesteps=10)
    assert agents[0].gradient_step_count == 3


@pytest.mark.parametrize("name, execution", FUSED)
def test_a_fused_update_sees_the_newest_transition(name: str, execution: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name)
    agent = fused_agent(name, execution, monkeypatch, learning_rate=0.0, discount_factor=0.0, capacity=4)
    agent.write_interval = 1000
    generator = np.random.default_rng(0)
    for reward in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0):
        for _ in range(4):  # the whole ring holds this reward
            agent.record_transition(**draw_row(agent, generator, rewards=np.array([[reward]])))
        agent.metrics.packed.clear()
        agent.update(timestep=0, timesteps=1)
        ((packed,),) = agent.metrics.packed
        assert float(agent.to_numpy(packed)[agent.metrics.tags.index("Target / Target (min)")]) == reward


# test_checkpoints has what `auto` chooses.
@pytest.mark.parametrize(
    "name, execution",
    [pytest.param(*case.values, marks=() if "cuda_graph" in case.values else pytest.mark.full, id=case.id) for case in FUSED],
)
def test_a_fused_agent_goes_on_from_a_checkpoint(name: str, execution: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    pytest.importorskip(name)
    agents = [fused_agent(name, execution, monkeypatch, dtype="float64", seed=0) for _ in range(2)]
    for agent in agents:
        fill(agent, 8)
    agents[0].update(timestep=0, timesteps=1)
    agents[0].save(tmp_path / "a")
    agents[1].update(timestep=0, timesteps=1)
    agents[1].load(tmp_path / "a")
    for agent in agents:
        for _ in range(3):
            agent.update(timestep=0, timesteps=1)
    assert_close(agents[1].arrays(), agents[0].arrays())


@pytest.mark.parametrize(
    "name, execution, message",
    [
        ("torch", "scan", "which is JAX's: expected auto, plain, traced or cuda_graph"),
        ("torch", "cuda_graph", "expected a CUDA device, or execution 'auto'"),
        ("jax", "traced", "which is PyTorch's: expected auto, plain or scan"),
    ],
)
def test_a_way_that_the_backend_does_not_have_is_refused(name: str, execution: str, message: str) -> None:
    pytest.importorskip(name)
    with pytest.raises(ValueError, match=message):
        Backend(name).agent(execution=execution, device="cpu" if name == "torch" else None)


def test_what_auto_chooses_on_a_cpu() -> None:
    for name, chosen in (("torch", "traced"), ("jax", "scan")):
        pytest.importorskip(name)
        assert Backend(name).agent(device="cpu").execution == chosen


def test_models_of_a_users_own_are_recorded_only_when_asked(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("torch")
    from torch import nn

    class Own(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *inputs: Any) -> Any:
            return self.inner(*inputs)

    chosen = {}
    for execution in ("auto", "traced"):
        torch_backend = Backend("torch")
        models = {name: Own(model) for name, model in torch_backend.agent(device="cpu").models.items()}
        with caplog.at_level("INFO"):
            chosen[execution] = torch_backend.agent(models=models, execution=execution, device="cpu").execution
    assert chosen == {"auto": "plain", "traced": "traced"}
    assert "models of your own: updates run plain; execution='traced' records them once" in caplog.text


# What one timestep may cost. Counted, not timed.


def live(agent: Any, timesteps: int, start: int = 0) -> None:
    generator = np.random.default_rng(start)
    for timestep in range(start, start + timesteps):
        row = draw_row(agent, generator, timestep=timestep, timesteps=10_000)
        agent.act(row["observations"], None, timestep=timestep, timesteps=10_000)
        agent.record_transition(**row)
        agent.post_interaction(timestep=timestep, timesteps=10_000)


@contextmanager
def counted_jax_compilations() -> Iterator[list[str]]:
    import jax.monitoring

    events: list[str] = []
    counting = True

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if counting and event in ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/backend_compile_duration"):
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        counting = False


# With a ratio of 0.8, chunks of four take three gradient steps, and four at every fifth: both lengths are compiled within 20 timesteps.
@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"chunk": 4}, marks=pytest.mark.full),
        pytest.param({"grad_norm_clip": 0.5, "gradient_steps": 2}, marks=pytest.mark.full),
        {"chunk": 4, "update_to_data": 0.8},
    ],
)
def test_one_compilation_per_run(backend: Backend, options: dict[str, Any]) -> None:
    agent = backend.agent(**options, device="cpu")
    agent.write_interval = 1000
    live(agent, 20)
    if backend.name == "jax":
        with counted_jax_compilations() as events:
            live(agent, 20, start=20)
        assert events == []
    else:
        from sacref.torch.graph import Recorded

        (recorded,) = {found for found in _closed_over(agent.learner.runner._learn) if isinstance(found, Recorded)}
        live(agent, 20, start=20)
        assert recorded.recordings == 1
    assert agent.gradient_step_count == int(40 * float(agent.cfg.gradient_steps_per_timestep(1)))


def _closed_over(function: Any) -> Iterator[Any]:
    """What a function closes over, and what the functions among that do."""
    for cell in getattr(function, "__closure__", None) or ():
        yield cell.cell_contents
        yield from _closed_over(cell.cell_contents)


@contextmanager
def reading_is_an_error(agent: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every way from the device to the host raises, and so does waiting for the device."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("an array was read to the host")

    with monkeypatch.context() as patched:
        for method in ("to_numpy", "fetch"):
            patched.setattr(agent.learner.backend, method, refuse)
        if agent.backend == "jax":
            import jax

            # NumPy reads JAX's arrays of the CPU through the buffer protocol, which no method of theirs sees.
            for function in (np.array, np.asarray):

                def checked(values: Any, *rest: Any, function: Any = function, **options: Any) -> Any:
                    return refuse() if isinstance(values, jax.Array) else function(values, *rest, **options)

                patched.setattr(np, function.__name__, checked)

            for method in ("__array__", "__float__", "__int__", "__bool__", "__index__", "item", "tolist", "block_until_ready"):
                patched.setattr(type(jax.numpy.zeros(())), method, refuse)
            patched.setattr(jax, "device_get", refuse)
            patched.setattr(jax, "block_until_ready", refuse)
        else:
            import torch

            for method in ("item", "cpu", "numpy", "tolist", "__float__", "__int__", "__bool__", "__index__", "__array__"):
                patched.setattr(torch.Tensor, method, refuse)
        yield


@pytest.mark.parametrize("options", [{}, {"chunk": 4}, {"execution": "plain"}, {"grad_norm_clip": 0.5, "gradient_steps": 2}])
def test_trap_25_nothing_is_read_to_the_host_between_two_writes(
    backend: Backend, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = backend.agent(**options)
    agent.write_interval = 1000
    live(agent, 8)
    with reading_is_an_error(agent, monkeypatch):
        live(agent, 8, start=8)
    assert agent.gradient_step_count == 16 * agent.cfg.gradient_steps
    for read in (float, lambda array: np.asarray(array)):
        with pytest.raises(AssertionError, match="read to the host"), reading_is_an_error(agent, monkeypatch):
            read(agent.learner.state.log_alpha)


def noting_operations(seen: list[str]) -> Any:
    """A context in which the names of PyTorch's operations are added to `seen`."""
    from torch.utils._python_dispatch import TorchDispatchMode

    def note(_: object, operation: Any, types: object, args: Any = (), kwargs: Any = None) -> Any:
        seen.append(str(operation))
        return operation(*args, **(kwargs or {}))

    return type("Noting", (TorchDispatchMode,), {"__torch_dispatch__": note})()


def test_no_operation_of_an_update_reads_a_value() -> None:
    """`Tensor.item` is not the only way: the dispatcher sees them all."""
    torch = pytest.importorskip("torch")
    seen: list[str] = []
    agent = Backend("torch").agent(hidden=(8, 8), device="cpu")
    fill(agent, 8)
    agent.update(timestep=0, timesteps=1)
    with noting_operations(seen):
        agent.update(timestep=0, timesteps=1)
    assert not {"aten._local_scalar_dense.default", "aten.item.default", "aten.nonzero.default", "aten.equal.default"} & set(seen)
    # 328 operations when this was written, 496 before the recording was simplified.
    assert 200 < len(seen) < 380
    assert torch.is_tensor(agent.learner.state.log_alpha)


def test_an_update_leaves_no_array_behind(backend: Backend) -> None:
    if backend.name != "jax":
        pytest.skip("PyTorch frees what nothing refers to; JAX lists what is alive")
    import gc

    import jax

    agent = backend.agent()
    live(agent, 4)
    gc.collect()
    before = len(jax.live_arrays())  # type: ignore[no-untyped-call]  # JAX leaves it unannotated.
    live(agent, 20, start=4)
    gc.collect()
    assert len(jax.live_arrays()) == before  # type: ignore[no-untyped-call]
