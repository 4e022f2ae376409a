"""Recorded graphs: the same numbers, without the operations that compute nothing."""

import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from sacref.torch import graph
from sacref.torch.graph import Recorded, interpolate_in_place, multiply_with_onednn, simplify
from tests.backends import Backend, draw_batch
from tests.threads import in_threads

NEEDS_ONEDNN = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="PyTorch was built without oneDNN")


def operations(recorded: GraphModule) -> list[str]:
    return [str(node.target).removesuffix(".default") for node in recorded.graph.nodes if node.op == "call_function"]


def test_a_recording_follows_values_writes_in_place_and_is_made_once() -> None:
    def function(state: dict[str, torch.Tensor], x: torch.Tensor, scale: torch.Tensor) -> tuple[Any, torch.Tensor]:
        state["sum"].add_(scale * x)
        return state, state["sum"] * 2

    recorded = Recorded(function)
    state = {"sum": torch.zeros(2)}
    for number in (1.0, 2.0, 3.0):
        state, doubled = recorded(state, torch.tensor([number, -number]), torch.tensor(10.0))
    assert doubled.tolist() == [120.0, -120.0]
    assert state["sum"].tolist() == [60.0, -60.0]
    assert recorded.recordings == 1
    # Recording computes nothing: the first call added once, not twice. Another shape is another recording.
    fresh = {"sum": torch.zeros(3)}
    recorded(fresh, torch.ones(3), torch.tensor(1.0))
    assert (fresh["sum"].tolist(), recorded.recordings) == ([1.0, 1.0, 1.0], 2)
    _, doubled = recorded(state, torch.tensor([1.0, 1.0]), torch.tensor(0.0))
    assert (doubled.tolist(), recorded.recordings) == ([120.0, -120.0], 2)


def test_another_state_of_the_same_shapes_is_read_anew() -> None:
    recorded = Recorded(lambda state, x: (state, state[0] + x))
    assert float(recorded((torch.tensor(1.0),), torch.tensor(1.0))[1]) == 2.0
    assert float(recorded((torch.tensor(5.0),), torch.tensor(1.0))[1]) == 6.0
    assert recorded.recordings == 1


def test_two_threads_record_at_once() -> None:
    """torch.fx patches the process while it records: the first to begin must not be the first to end with another one inside."""
    first_inside, second_inside, first_done = (threading.Event() for _ in range(3))
    results: dict[int, float] = {}

    def function(state: tuple[torch.Tensor], number: torch.Tensor) -> torch.Tensor:
        if threading.current_thread() is second[0]:
            second_inside.set()
            first_done.wait(5.0)
        else:
            first_inside.set()
            second_inside.wait(0.5)
        return state[0] + number

    second: list[Any] = [None]

    def run(number: int) -> None:
        if number == 1:
            second[0] = threading.current_thread()
            first_inside.wait(5.0)
        results[number] = float(Recorded(function)((torch.tensor(1.0),), torch.tensor(float(number))))
        first_done.set()

    in_threads(2, run, seconds=30.0)
    assert results == {0: 1.0, 1: 2.0}


def test_anomaly_detection_does_not_stop_a_recording() -> None:
    def gradient(state: tuple[torch.Tensor]) -> torch.Tensor:
        with torch.enable_grad():
            x = state[0].detach().requires_grad_()
            return torch.autograd.grad((x**2).sum(), [x])[0]

    with torch.autograd.set_detect_anomaly(True):
        assert Recorded(gradient)((torch.tensor([1.0, 3.0]),)).tolist() == [2.0, 6.0]
        assert torch.is_anomaly_enabled()


def test_detached_views_and_double_transposes_go() -> None:
    recorded = make_fx(lambda x: x.detach().t().t() + 1.0, tracing_mode="fake")(torch.zeros(2, 3))
    assert set(operations(recorded)) in ({detached, "aten.t", "aten.add.Tensor"} for detached in ("aten.detach", "aten.alias"))
    simplify(recorded)
    assert operations(recorded) == ["aten.add.Tensor"]
    x = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(recorded(x), x + 1.0)


@pytest.mark.parametrize("columns, swapped", [(64, True), (63, False)])
def test_the_gradient_of_a_wide_weight_is_computed_in_its_own_layout(columns: int, swapped: bool) -> None:
    def gradient(x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        return (x.t() @ g).t().contiguous()

    x, g = torch.randn(8, columns, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64)
    recorded = make_fx(gradient, tracing_mode="fake")(x, g)
    simplify(recorded)
    assert ("aten.clone" not in operations(recorded)) == swapped
    torch.testing.assert_close(recorded(x, g), gradient(x, g), rtol=1e-14, atol=1e-14)
    assert recorded(x, g).is_contiguous()


def test_moving_averages_are_written_by_one_operation() -> None:
    def follow(targets: list[torch.Tensor], online: list[torch.Tensor]) -> torch.Tensor:
        for parameter in online:
            parameter.mul_(2.0)
        followed = [0.25 * new + (1.0 - 0.25) * old for old, new in zip(targets, online, strict=True)]
        for old, new in zip(targets, followed, strict=True):
            old.copy_(new)
        return online[0].sum()

    def arguments() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return [torch.full((2,), value, dtype=torch.float64) for value in (1.0, 10.0)], [
            torch.ones(2, dtype=torch.float64) for _ in range(2)
        ]

    recorded = make_fx(follow, tracing_mode="fake")(*arguments())
    interpolate_in_place(recorded)
    found = operations(recorded)
    assert found.count("aten._foreach_lerp_.Scalar") == 1
    assert not {"aten.copy_", "aten.mul.Tensor", "aten.add.Tensor"} & set(found)
    targets, online = arguments()
    assert float(recorded(targets, online)) == 4.0
    assert [target.tolist() for target in targets] == [[1.25, 1.25], [8.0, 8.0]]


def test_what_only_looks_like_a_moving_average_stays() -> None:
    def other(target: torch.Tensor, online: torch.Tensor) -> torch.Tensor:
        target.copy_(0.25 * online + 0.7 * target)
        return target + 0.0

    recorded = make_fx(other, tracing_mode="fake")(torch.ones(2), torch.ones(2))
    interpolate_in_place(recorded)
    assert "aten._foreach_lerp_.Scalar" not in operations(recorded)
    assert recorded(torch.ones(2), torch.ones(2)).tolist() == pytest.approx([0.95, 0.95])


@NEEDS_ONEDNN
def test_products_of_matrices_go_to_onednn_with_their_relu_and_products_with_vectors_stay() -> None:
    def network(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, v: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden = torch.relu(torch.addmm(b, x, w.t()))
        raw = torch.addmm(b, x, w.t())
        return torch.addmm(c, hidden, v.t()), hidden @ w, torch.relu(raw), raw

    arguments = (torch.randn(256, 64), torch.randn(64, 64), torch.randn(64), torch.randn(1, 64), torch.randn(1))
    recorded = make_fx(network, tracing_mode="fake")(*arguments)
    simplify(recorded)
    multiply_with_onednn(recorded)
    found = operations(recorded)
    assert (found.count("mkldnn._linear_pointwise"), found.count("aten.addmm"), found.count("aten.mm")) == (3, 1, 0)
    assert found.count("aten.relu") == 1  # the other one's input is read elsewhere too
    for given, wanted in zip(recorded(*arguments), network(*arguments), strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)


@NEEDS_ONEDNN
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("supported", [True, False])
def test_products_that_onednn_cannot_compute_stay(dtype: torch.dtype, supported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = (torch.randn(128, 64, dtype=dtype), torch.randn(128, 64, dtype=dtype))
    # The gradient of a weight, whose order is turned: a node that was not recorded.
    recorded = make_fx(lambda x, g: (x.t() @ g).t().clone(memory_format=torch.contiguous_format), tracing_mode="fake")(*arguments)
    simplify(recorded)
    monkeypatch.setattr(graph, "onednn_multiplies", lambda asked: supported or asked != dtype)
    multiply_with_onednn(recorded)
    found = operations(recorded)
    assert (found.count("mkldnn._linear_pointwise"), found.count("aten.mm")) == ((1, 0) if supported else (0, 1))
    monkeypatch.undo()
    if supported == graph.onednn_multiplies(dtype):
        given = recorded(*arguments)
        torch.testing.assert_close(given.float(), (arguments[0].float().t() @ arguments[1].float()).t(), rtol=2**-7, atol=2**-7)


@NEEDS_ONEDNN
def test_float32_with_onednn_is_as_near_to_float64_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """One update from the same weights and batch: the distance of its first moments, a tenth of the gradients, from float64's."""
    monkeypatch.setattr(graph, "onednn_available", lambda: True)
    backend = Backend("torch")
    options: dict[str, Any] = {"hidden": (256, 256), "seed": 3, "device": "cpu"}
    exact = backend.agent(dtype="float64", execution="plain", **options)
    batch, noise = draw_batch(exact, 64)
    exact.update_on(batch, noise)
    plain = backend.agent(execution="plain", **options)
    plain.update_on(batch, noise)
    fused = backend.agent(execution="plain", **options)
    step = Recorded(fused.learner.update)
    fused.learner.runner.state, _ = step(
        fused.learner.state, batch.map(fused.learner.backend.upload), noise.map(fused.learner.backend.upload)
    )
    run: Any
    ((run, _),) = step._runs.values()
    assert operations(run.__self__).count("mkldnn._linear_pointwise") == 16
    for name, wanted in exact.arrays().items():
        if "first_moment" in name:
            scale = np.abs(wanted).max()
            error, plain_error = (np.abs(agent.arrays()[name] - wanted).max() / scale for agent in (fused, plain))
            assert error < max(3 * plain_error, 2e-6), name
            assert not np.array_equal(plain.arrays()[name], np.zeros_like(wanted))


def test_float64_and_other_devices_stay_with_aten() -> None:
    assert not graph.uses_onednn([torch.zeros(1, dtype=torch.float64)])
    assert not graph.uses_onednn([torch.zeros(1, device="meta")])
    assert graph.uses_onednn([torch.zeros(1), torch.zeros(1, dtype=torch.bool), None]) == graph.onednn_available()
