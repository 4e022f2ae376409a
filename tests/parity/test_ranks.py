"""Several ranks are one: each with its part of a batch they learn what one learns from the whole, and they stay equal to the bit."""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sacref.parity.compare import difference
from sacref.parity.drivers import installed_backends
from tests.backends import BACKENDS, assert_same_arrays, without_shape_checks
from tests.parity.rank_worker import LONG, WHOLE, after_parts
from tests.ranked import finish, start

TOLERANCE = 1e-12
"""Largest relative difference after 100 updates in float64: max|a - b| / max|b| per array, |a - b| / max(|b|, 1) for scalars."""

Found = dict[str, list[dict[str, NDArray[Any]]]]
"""Case -> the arrays of each rank."""
GROUPS = {"2": (2, tuple(WHOLE)), "2-one-problem": (2, ("clipped, adaptive",)), "4": (4, ("clipped, adaptive",))}
"""Name -> ranks, and their problems: fewer of them where more processes share the machine."""
SHORT = {("torch", "2"), ("jax", "2-one-problem")}
"""Groups of every run of the tests: each process of JAX compiles each problem."""


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Found]:
    """What real processes have learned."""
    backend, group = request.param
    ranks, problems = GROUPS[group]
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    out = tmp_path_factory.mktemp(f"{backend}-{group}")
    # Four processes that compile the same things take longer over that than over all that they learn.
    quickly = {"XLA_FLAGS": "--xla_backend_optimization_level=0"} if ranks > 2 else {}
    return backend, learned(backend, "cpu", out, ranks, problems, **quickly)


def learned(backend: str, device: str, out: Path, ranks: int, cases: Sequence[str], **environment: str) -> Found:
    """What so many processes have learned, each on `device`."""
    command = ["-m", "tests.parity.rank_worker", backend, device, str(out), *cases]
    ended = finish(start(command, ranks, {"OMP_NUM_THREADS": "1", **environment}))
    assert [each.status for each in ended] == [0] * ranks, [each.err for each in ended]
    assert json.loads((out / f"{ranks - 1}.json").read_text())["size"] == ranks
    return {case: [dict(np.load(out / f"{case}-{rank}.npz")) for rank in range(ranks)] for case in (*cases, "own", "begin")}


@cache
def alone(backend: str, case: str) -> dict[str, NDArray[Any]]:
    """What one process learns from the whole batches."""
    with without_shape_checks():
        return after_parts(backend, WHOLE[case], 0, 1)


every = pytest.mark.parametrize(
    "found",
    [
        pytest.param((backend, group), marks=[] if (backend, group) in SHORT else [pytest.mark.full])
        for backend in BACKENDS
        for group in GROUPS
        if (backend, group) != ("torch", "2-one-problem")
    ],
    indirect=True,
    ids=lambda each: f"{each[0]}-{each[1]}",
    scope="module",
)


@every
def test_trap_22_ranks_with_parts_of_a_batch_learn_what_one_learns_from_the_whole(found: tuple[str, Found]) -> None:
    backend, arrays = found
    for case in arrays.keys() & WHOLE.keys():
        for name, array in alone(backend, case).items():
            assert difference(arrays[case][0][name], array, name).relative < TOLERANCE, (case, name)


@every
def test_trap_22_ranks_stay_equal_to_the_bit_where_one_overflows(found: tuple[str, Found]) -> None:
    _, arrays = found
    first = arrays["own"][0]
    updates = LONG[len(arrays["own"])]
    assert first["gradient_steps"] == updates
    assert 5 < first["critic_optimizer.skipped_steps"] < 0.1 * updates
    assert all(np.isfinite(array).all() for array in first.values())
    assert any(name.startswith("preprocessor.") for name in first)
    for other in arrays["own"][1:]:
        assert_same_arrays(other, first)


@every
def test_ranks_begin_with_what_rank_0_drew(found: tuple[str, Found]) -> None:
    _, arrays = found
    for other in arrays["begin"][1:]:
        assert_same_arrays(other, arrays["begin"][0])


@pytest.mark.skipif("jax" not in installed_backends(), reason="jax is not installed")
@pytest.mark.parametrize("case", ["clipped, adaptive", pytest.param("recurrent with everything", marks=pytest.mark.full)])
def test_devices_of_one_process_learn_what_one_device_does(case: str, tmp_path: Path) -> None:
    arrays = learned("jax", "cpu:all", tmp_path, 1, [case], XLA_FLAGS="--xla_force_host_platform_device_count=4")
    for name, array in alone("jax", case).items():
        assert difference(arrays[case][0][name], array, name).relative < TOLERANCE, (case, name)
    own = arrays["own"][0]
    assert own["gradient_steps"] == LONG[1] and all(np.isfinite(array).all() for array in own.values())
