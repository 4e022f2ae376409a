"""Several ranks are one: each with its part of a batch they learn what one learns from the whole, and they stay equal to the bit."""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from sacref.parity.compare import difference
from sacref.parity.drivers import installed_backends
from tests.backends import BACKENDS, assert_same_arrays, without_shape_checks
from tests.parity.rank_worker import WHOLE, after_parts
from tests.ranked import finish, start

TOLERANCE = 1e-12
"""Largest relative difference after all updates in float64: max|a - b| / max|b| per array, |a - b| / max(|b|, 1) for scalars."""

Found = dict[str, list[dict[str, NDArray[Any]]]]
"""Case -> the arrays of each rank."""


class Group(NamedTuple):
    """Learn in real processes."""

    ranks: int
    problems: tuple[str, ...]
    updates: int = 100
    """One for each problem."""
    own_updates: int = 200
    """From memories of their own."""


GROUPS = {
    "2": Group(2, tuple(WHOLE), 25),
    "2-one-problem": Group(2, ("clipped, adaptive",), 25),
    "2-long": Group(2, tuple(WHOLE), own_updates=1_000),
    "4": Group(4, ("clipped, adaptive",)),  # fewer problems where more processes share the machine
}
SHORT = {("torch", "2"), ("jax", "2-one-problem")}
"""Groups of every run of the tests: each process of JAX compiles each problem."""
LEFT_OUT = {("torch", "2-one-problem"), ("jax", "2")}
"""Groups that another holds."""


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Group, Found]:
    """Return the state that real processes have learned."""
    backend, group = request.param
    chosen = GROUPS[group]
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    out = tmp_path_factory.mktemp(f"{backend}-{group}")
    # Four processes that compile the same things take longer over that than over all that they learn.
    quickly = {"XLA_FLAGS": "--xla_backend_optimization_level=0"} if chosen.ranks > 2 else {}
    return backend, chosen, learned(backend, "cpu", out, chosen, **quickly)


def learned(backend: str, device: str, out: Path, group: Group, **environment: str) -> Found:
    """Return the state that each process of a group has learned, each on `device`."""
    ranks, cases, *updates = group
    command = ["-m", "tests.parity.rank_worker", backend, device, str(out), *map(str, updates), *cases]
    ended = finish(start(command, ranks, {"OMP_NUM_THREADS": "1", **environment}))
    assert [each.status for each in ended] == [0] * ranks, [each.err for each in ended]
    assert json.loads((out / f"{ranks - 1}.json").read_text())["size"] == ranks
    return {case: [dict(np.load(out / f"{case}-{rank}.npz")) for rank in range(ranks)] for case in (*cases, "own", "begin")}


@cache
def alone(backend: str, case: str, updates: int) -> dict[str, NDArray[Any]]:
    """Return the state that one process learns from the whole batches."""
    with without_shape_checks():
        return after_parts(backend, WHOLE[case], updates, 0, 1)


every = pytest.mark.parametrize(
    "found",
    [
        pytest.param((backend, group), marks=[] if (backend, group) in SHORT else [pytest.mark.full])
        for backend in BACKENDS
        for group in GROUPS
        if (backend, group) not in LEFT_OUT
    ],
    indirect=True,
    ids=lambda each: f"{each[0]}-{each[1]}",
    scope="module",
)


@every
def test_trap_22_ranks_with_parts_of_a_batch_learn_what_one_learns_from_the_whole(found: tuple[str, Group, Found]) -> None:
    backend, group, arrays = found
    for case in arrays.keys() & WHOLE.keys():
        for name, array in alone(backend, case, group.updates).items():
            assert difference(arrays[case][0][name], array, name).relative < TOLERANCE, (case, name)


@every
def test_trap_22_ranks_stay_equal_to_the_bit_where_one_overflows(found: tuple[str, Group, Found]) -> None:
    _, group, arrays = found
    first = arrays["own"][0]
    assert first["gradient_steps"] == group.own_updates
    assert 5 < first["critic_optimizer.skipped_steps"] < 0.1 * group.own_updates
    assert all(np.isfinite(array).all() for array in first.values())
    assert any(name.startswith("preprocessor.") for name in first)
    for other in arrays["own"][1:]:
        assert_same_arrays(other, first)


@every
def test_ranks_begin_with_what_rank_0_drew(found: tuple[str, Group, Found]) -> None:
    _, _, arrays = found
    for other in arrays["begin"][1:]:
        assert_same_arrays(other, arrays["begin"][0])


@pytest.mark.skipif("jax" not in installed_backends(), reason="jax is not installed")
@pytest.mark.parametrize(
    ("case", "updates"),
    [
        ("clipped, adaptive", 25),
        pytest.param("clipped, adaptive", 100, marks=pytest.mark.full),
        pytest.param("recurrent with everything", 100, marks=pytest.mark.full),
    ],
)
def test_devices_of_one_process_learn_what_one_device_does(case: str, updates: int, tmp_path: Path) -> None:
    group = Group(1, (case,), updates)
    arrays = learned("jax", "cpu:all", tmp_path, group, XLA_FLAGS="--xla_force_host_platform_device_count=4")
    for name, array in alone("jax", case, updates).items():
        assert difference(arrays[case][0][name], array, name).relative < TOLERANCE, (case, name)
    own = arrays["own"][0]
    assert own["gradient_steps"] == group.own_updates and all(np.isfinite(array).all() for array in own.values())
