"""What the capture of a CUDA graph would refuse, looked for where there is no such device."""

import gc
import threading
import time
import weakref
from typing import Any
from unittest.mock import MagicMock

import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sacref.agent.execution import ActInputs, Bounds
from sacref.config import Schedule
from sacref.torch.agent import TorchBackend
from sacref.torch.capture import capture_on_cuda
from sacref.torch.execution import actors, draw, in_place
from sacref.torch.memory import write
from sacref.torch.optim import _rate_of
from tests.backends import Backend
from tests.threads import in_threads

READ_BY_THE_HOST = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.lift_fresh.default,
)
INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


class Refusing(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it unannotated.
    """Lists operations that read a value to the host, or see tensors of the host beside those of the device `meta`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it unannotated.
        self.refused: list[str] = []
        self.seen: list[str] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        masked = operation in INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1])
        if operation in READ_BY_THE_HOST or masked or any(tensor.device.type != "meta" for tensor in tensors):
            self.refused.append(str(operation))
        self.seen.append(str(operation))
        return result


def on_meta(tree: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf, tree)


@pytest.mark.parametrize(
    "options",
    [
        {"n_step": 3, "num_envs": 2, "observation_preprocessor": "sacref.preprocessing:RunningStandardScaler"},
        {"target_subset": 1, "num_critics": 3, "networks": {"layer_norm": True, "dropout": 0.1}, "policy_delay": 2},
        {"learning_rate_scheduler": "kl_adaptive", "grad_norm_clip": 0.5},
        {"learning_rate_scheduler": "piecewise", "learning_rate_scheduler_kwargs": {"boundaries": (3, 5), "factors": (1.0, 0.5, 0.1)}},
        {"algorithm": "SAC_RNN", "networks": {"recurrent": "gru"}, "sequence_length": 4, "burn_in": 2, "num_envs": 2},
        {"mixed_precision": True, "precision": "float16"},
    ],
)
def test_draw_step_write_and_act_stay_on_the_device(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Backend("torch").agent(**options)
    envs = agent.memory.num_envs
    observations = torch.zeros((envs, *agent.observation_space.shape), dtype=agent.dtype)
    inputs, carry = agent.carry.inputs(observations, None, training=True)
    state, memory, moments = map(on_meta, (agent.learner.state, agent.memory.state, agent.normalisers.moments))
    given = ActInputs(on_meta(inputs), moments, on_meta(carry))
    agent.learner.bounds = Bounds(*map(on_meta, agent.learner.bounds))
    for model in agent.own_models.modules.values():
        model.to("meta")
    refusing = Refusing()
    # There are no generators of this device, nor is there this kernel, whose rate may be a tensor of it.
    for name in ("rand", "randn", "randint"):
        draws = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *sizes, generator, draws=draws, **given: draws(*sizes, **given))

    def adam(*lists: Any, **given: Any) -> None:
        if any(leaf.device.type != "meta" for leaf in pytree.tree_leaves((lists, given)) if isinstance(leaf, Tensor)):
            refusing.refused.append("adam")

    monkeypatch.setattr(torch, "_fused_adam_", adam)
    with refusing, torch.no_grad():
        batch, noise, _ = draw(memory, moments, agent.learner.streams, agent.learner.draw_spec())
        in_place(agent.learner.update, state, batch, noise)
        write(memory, memory.rows.map(lambda ring: ring[:envs]), torch.ones(envs, dtype=torch.bool, device="meta"))
        act = actors(agent.learner.actor(), agent.learner.bounds, execution="plain")["sampled"]
        act(state.policy, agent.learner.streams, given)
    assert refusing.refused == []
    assert len(refusing.seen) > 300


def test_a_schedule_that_gives_a_number_is_filled_in_on_the_device() -> None:
    rate_of = _rate_of(Schedule(lambda step: 0.25, {}), 1e-3)
    assert rate_of is not None
    like = torch.zeros((), dtype=torch.float64)
    rate = rate_of(torch.zeros((), dtype=torch.int64), like)
    assert (float(rate), rate.dtype, rate.shape) == (0.25, torch.float64, ())
    refusing = Refusing()
    with refusing:
        rate_of(torch.zeros((), dtype=torch.int64, device="meta"), like.to("meta", copy=True))
    assert refusing.seen[-1] == "aten.full_like.default"


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Capture by calling, with stand-ins for what needs a device."""
    for name in ("CUDAGraph", "Stream", "current_stream", "device", "graph", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, **__: MagicMock())


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("enabled", [True, False])
def test_garbage_is_collected_before_a_capture_and_none_during_it(enabled: bool) -> None:
    """An older agent's graph that is destroyed during a capture invalidates it."""
    older: Any = MagicMock()
    older.itself, alive = older, weakref.ref(older)
    del older

    def function() -> None:
        assert alive() is None and not gc.isenabled()
        raise ValueError("refused")

    try:
        if not enabled:
            gc.disable()
        with pytest.raises(ValueError, match="refused"):
            capture_on_cuda(function, [torch.Generator()], lambda: None)
        assert gc.isenabled() is enabled
    finally:
        gc.enable()


@pytest.mark.usefixtures("graphs")
def test_agents_in_two_threads_warm_up_and_capture_one_after_the_other() -> None:
    begin, log = threading.Barrier(2), list[tuple[int, str]]()

    def run(number: int) -> None:
        def warm_up() -> None:
            log.append((number, "warm-up"))
            time.sleep(0.05)

        def function() -> None:
            time.sleep(0.05)
            log.append((number, "captured"))

        begin.wait(5.0)
        capture_on_cuda(function, [torch.Generator()], warm_up)

    in_threads(2, run, seconds=30.0)
    first, second = log[0][0], log[-1][0]
    assert log == [(first, "warm-up"), (first, "captured"), (second, "warm-up"), (second, "captured")]


def test_an_agent_waits_for_its_own_thread_s_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """To wait for the whole device while another thread captures is an error of CUDA's."""
    streams: dict[torch.device, Any] = {}
    monkeypatch.setattr(torch.cuda, "synchronize", None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams.setdefault(device, MagicMock()))
    backend = TorchBackend("cpu")
    backend.synchronise(())
    assert streams == {}
    backend.device = torch.device("cuda", 1)
    backend.synchronise(())
    (stream,) = streams.values()
    assert (list(streams), stream.synchronize.call_count) == ([backend.device], 1)
