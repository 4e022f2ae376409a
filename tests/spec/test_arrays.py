"""What holds for every call of the spec: one dtype, no broadcasting, run-time shapes in the tests, and traceable without a break."""

import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jaxtyping
import numpy as np
import pytest

import sacref.spec
from sacref.spec.arrays import (
    Array,
    Namespace,
    as_numpy,
    largest_finite,
    namespace,
    require_critic_axis,
    require_one_dtype,
    require_scalar_or_batch,
    require_shape,
)
from tests.backends import without_shape_checks

if TYPE_CHECKING:
    from tests.conftest import Backend

SHAPES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "bound_log_std": {"raw": (256, 6)},
    "squash": {"mean": (256, 6), "log_std": (256, 6), "noise": (256, 6)},
    "log_prob": {"mean": (256, 6), "log_std": (256, 6), "pre_tanh": (256, 6)},
    "td_target": {"reward": (256,), "discount": (256,), "next_q": (2, 256), "next_log_prob": (256,), "alpha": ()},
    "critic_loss": {"q": (2, 256), "target": (256,)},
    "actor_loss": {"q": (2, 256), "log_prob": (256,), "alpha": ()},
    "temperature_loss": {"log_alpha": (), "log_prob": (256,), "target_entropy": ()},
    "kl_divergence": {"mean": (256, 6), "log_std": (256, 6), "new_mean": (256, 6), "new_log_std": (256, 6)},
    "masked_mean": {"values": (2, 256)},
    "masked_max": {"values": (2, 256)},
    "masked_min": {"values": (2, 256)},
    "polyak": {"target": (256, 6), "online": (256, 6), "tau": ()},
}
"""Every call of the spec with the shapes of an update: batch 256, 6 actions, 2 critics."""


def unchecked(name: str) -> Callable[..., Any]:
    """The function as a user gets it, without the run-time shape checks, which would speak first."""
    function: Callable[..., Any] = inspect.unwrap(getattr(sacref.spec, name))
    return function


def draw(name: str, **other_shapes: tuple[int, ...]) -> dict[str, np.ndarray[Any, Any]]:
    """Arguments of a call, in [0, 1)."""
    generator = np.random.default_rng(0)
    return {argument: generator.random(shape) for argument, shape in {**SHAPES[name], **other_shapes}.items()}


def test_the_table_covers_the_spec() -> None:
    assert set(SHAPES) == set(sacref.spec.__all__)


def test_namespace_of_each_library(xp: "Backend") -> None:
    found = namespace(xp.asarray([1.0]))
    assert np.asarray(xp.numpy(found.exp(xp.asarray([0.0])))).tolist() == [1.0]
    # It has every function that the spec calls, and its arrays have every operator.
    assert isinstance(found, Namespace)
    assert isinstance(xp.asarray([1.0]), Array)


def test_libraries_do_not_mix() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"[Mm]ultiple namespaces"):
        require_one_dtype("polyak", target=np.zeros(2), online=torch.zeros(2, dtype=torch.float64))


MIXED = [(name, argument) for name, shapes in SHAPES.items() if len(shapes) > 1 for argument in shapes]


@pytest.mark.parametrize(("name", "argument"), MIXED)
def test_mixed_dtypes_are_refused(xp: "Backend", name: str, argument: str) -> None:
    other = "float32" if xp.dtype == "float64" else "float64"
    arguments = {key: xp.asarray(value, other if key == argument else None) for key, value in draw(name).items()}
    with pytest.raises(TypeError, match=rf"^{name}: \w+ has dtype \S*float(32|64), expected \S*float(32|64) as \w+ has: cast \w+ to"):
        unchecked(name)(**arguments)


@pytest.mark.parametrize(("name", "argument"), [(name, each) for name, each in MIXED if each not in ("tau", "target_entropy")])
def test_numbers_in_the_place_of_arrays_are_refused(xp: "Backend", name: str, argument: str) -> None:
    arguments = {key: 0.5 if key == argument else xp.asarray(value) for key, value in draw(name).items()}
    said = rf"^{name}: {argument} is the number 0.5, expected an array: make it one"
    with without_shape_checks(), pytest.raises(TypeError, match=said):
        unchecked(name)(**arguments)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", ["float16", "int32"])
def test_low_precision_and_integers_are_refused(xp: "Backend", name: str, dtype: str) -> None:
    if xp.library == "strict" and dtype == "float16":
        pytest.skip("array-api-strict has no float16")
    arguments = {key: xp.asarray(value, dtype) for key, value in draw(name).items()}
    with pytest.raises(TypeError, match=rf"^{name}: \w+ has dtype \S*{dtype}, expected float32 or float64: cast it"):
        unchecked(name)(**arguments)


@pytest.mark.parametrize("name", SHAPES)
def test_the_result_has_the_dtype_of_the_arguments(xp: "Backend", name: str) -> None:
    result = getattr(sacref.spec, name)(**{key: xp.asarray(value) for key, value in draw(name).items()})
    for array in result if isinstance(result, tuple) else (result,):
        assert np.isfinite(xp.numpy(array)).all()


@pytest.mark.parametrize(("name", "argument"), [("polyak", "tau"), ("temperature_loss", "target_entropy")])
def test_a_numpy_scalar_promotes_nothing(xp: "Backend", name: str, argument: str) -> None:
    arguments: dict[str, Any] = {key: xp.asarray(value) for key, value in draw(name).items()}
    arguments[argument] = np.float64(0.25)
    expected = getattr(sacref.spec, name)(**{**arguments, argument: 0.25})
    assert np.array_equal(xp.numpy(getattr(sacref.spec, name)(**arguments)), xp.numpy(expected))


# Which argument gets which shape, and what the message says besides the shapes.
UNEQUAL: list[tuple[str, dict[str, tuple[int, ...]], str]] = [
    ("squash", {"log_std": (256, 1)}, r"squash: log_std has shape \(256, 1\), expected \(256, 6\)"),
    ("squash", {"noise": (6,)}, r"squash: noise has shape \(6,\), expected \(256, 6\)"),
    ("squash", {"noise": (1, 256, 6)}, "drop the first axis of noise"),
    ("log_prob", {"log_std": (6,)}, r"log_prob: log_std has shape \(6,\), expected \(256, 6\)"),
    ("log_prob", {"pre_tanh": (6, 256)}, "permute the axes of pre_tanh"),
    ("td_target", {"reward": (256, 1)}, "add a last axis to discount, or drop the last axis of the other argument"),
    ("td_target", {"discount": (256, 1)}, r"discount has shape \(256, 1\), expected \(256,\) .*: drop the last axis of discount"),
    ("td_target", {"reward": (256, 1), "discount": (256, 1)}, r"next_q has shape \(2, 256\), expected .*: drop the last axis of reward"),
    ("td_target", {"next_q": (2, 256, 1)}, "drop the last axis of next_q"),
    ("td_target", {"next_q": (256,)}, r"add the critic axis, next_q\[None\]"),
    ("td_target", {"next_q": (256, 1)}, r"drop the last axis of next_q and add the critic axis in front, next_q\[None\]"),
    ("td_target", {"next_q": (256, 2)}, "move the critic axis of next_q to the front"),
    ("td_target", {"next_q": (2, 1)}, r"stack the critics' values, each of shape \(256,\), along a first axis"),
    ("td_target", {"next_q": (2, 2, 256)}, r"stack the critics' values, each of shape \(256,\), along a first axis"),
    ("td_target", {"next_q": ()}, r"stack the critics' values, each of shape \(256,\), along a first axis"),
    ("td_target", {"next_log_prob": (256, 1)}, "drop the last axis of next_log_prob"),
    ("td_target", {"next_log_prob": (1,)}, "give next_log_prob the batch shape of the other arguments; the spec broadcasts no batch axes"),
    ("td_target", {"alpha": (1,)}, r"alpha has shape \(1,\), expected \(\) or \(256,\): make alpha a scalar, alpha.reshape\(\(\)\)"),
    ("td_target", {"alpha": (256, 1)}, "drop the last axis of alpha"),
    ("critic_loss", {"target": (256, 1)}, r"critic_loss: q has shape \(2, 256\), expected .*: drop the last axis of target"),
    ("critic_loss", {"q": (256,)}, r"add the critic axis, q\[None\]"),
    ("critic_loss", {"q": (2, 256, 1)}, r"critic_loss: q has shape \(2, 256, 1\), expected .*: drop the last axis of q"),
    ("actor_loss", {"q": (256, 1)}, r"drop the last axis of q and add the critic axis in front, q\[None\]"),
    ("actor_loss", {"log_prob": (256, 1)}, r"actor_loss: q has shape \(2, 256\), expected .*: drop the last axis of log_prob"),
    ("actor_loss", {"alpha": (2,)}, r"actor_loss: alpha has shape \(2,\), expected \(256,\) \(\(\) or \*batch\)"),
    ("temperature_loss", {"log_alpha": (1, 1)}, r"make log_alpha a scalar, log_alpha.reshape\(\(\)\)"),
    ("temperature_loss", {"log_alpha": (6,)}, r"log_alpha has shape \(6,\), expected \(256,\)"),
    ("temperature_loss", {"target_entropy": (256, 1)}, "drop the last axis of target_entropy"),
    ("kl_divergence", {"log_std": (256, 1)}, r"kl_divergence: log_std has shape \(256, 1\), expected \(256, 6\)"),
    ("kl_divergence", {"new_mean": (6,)}, r"kl_divergence: new_mean has shape \(6,\), expected \(256, 6\)"),
    ("kl_divergence", {"new_log_std": (6, 256)}, "permute the axes of new_log_std"),
    ("polyak", {"online": (6, 256)}, "permute the axes of online"),
    ("polyak", {"online": (256, 1)}, r"polyak: online has shape \(256, 1\), expected \(256, 6\)"),
    ("polyak", {"tau": (6,)}, r"polyak: tau has shape \(6,\), expected \(\)"),
]


@pytest.mark.parametrize(("name", "shapes", "message"), UNEQUAL, ids=[f"{name}-{'-'.join(shapes)}" for name, shapes, _ in UNEQUAL])
def test_trap_09_unequal_shapes_are_refused_with_the_fix(
    xp: "Backend", name: str, shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    arguments = {key: xp.asarray(value) for key, value in draw(name, **shapes).items()}
    with pytest.raises(ValueError, match=message) as refusal:
        unchecked(name)(**arguments)
    assert str(refusal.value).startswith(f"{name}: ")


def test_trap_09_rank_promotion_raises_in_the_tests() -> None:
    jnp = pytest.importorskip("jax.numpy")
    with pytest.raises(ValueError, match="rank"):
        jnp.zeros(256) - jnp.zeros((256, 1))


@pytest.mark.skipif(os.environ.get("SACREF_SHAPE_CHECKS") == "0", reason="run-time shape checks are switched off")
def test_shapes_are_checked_at_run_time(xp: "Backend") -> None:
    with pytest.raises(jaxtyping.TypeCheckError, match="noise"):
        sacref.spec.squash(xp.asarray(np.zeros((4, 3))), xp.asarray(np.zeros((4, 3))), xp.asarray(np.zeros((4, 2))))


@pytest.mark.parametrize(
    ("got", "expected", "fix"),
    [
        ((3, 1), (3,), "drop the last axis of x"),
        ((1, 3), (3,), "drop the first axis of x"),
        ((3,), (3, 1), "add a last axis to x"),
        ((2, 3), (3, 2), "permute the axes of x"),
        ((4,), (3,), "give x the batch shape of the other arguments"),
        ((2,), (3,), "give x the batch shape of the other arguments"),
        ((1, 2), (3,), "give x the batch shape of the other arguments"),
        ((2, 2), (2, 3), "give x the batch shape of the other arguments"),
    ],
)
def test_require_shape_names_the_repair(got: tuple[int, ...], expected: tuple[int, ...], fix: str) -> None:
    require_shape("f", "x", np.zeros(expected), expected, "as y")
    with pytest.raises(ValueError) as refusal:
        require_shape("f", "x", np.zeros(got), expected, "as y")
    assert str(refusal.value).startswith(f"f: x has shape {got}, expected {expected} (as y): {fix}")


@pytest.mark.parametrize(
    ("got", "batch", "fix"),
    [
        ((3,), (3,), "add the critic axis, x[None]"),
        ((3, 1), (3,), "drop the last axis of x and add the critic axis in front, x[None]"),
        ((3, 2), (3,), "move the critic axis of x to the front"),
        ((4, 3, 2), (4, 3), "move the critic axis of x to the front"),
        ((2, 3, 1), (3,), "drop the last axis of x"),
        ((2, 3), (3, 1), "drop the last axis of y"),
        ((4, 2), (3,), "stack the critics' values, each of shape (3,), along a first axis"),
        ((2, 4), (3,), "stack the critics' values, each of shape (3,), along a first axis"),
        ((2, 2), (3,), "stack the critics' values, each of shape (3,), along a first axis"),
    ],
)
def test_require_critic_axis_names_the_repair(got: tuple[int, ...], batch: tuple[int, ...], fix: str) -> None:
    for critics in (1, 2, 9):
        require_critic_axis("f", "x", np.zeros((critics, *batch)), batch, "y")
    with pytest.raises(ValueError) as refusal:
        require_critic_axis("f", "x", np.zeros(got), batch, "y")
    assert str(refusal.value) == f"f: x has shape {got}, expected (critic, *batch) with *batch {batch}, as y: {fix}"


@pytest.mark.parametrize(
    ("got", "batch", "message"),
    [
        ((1,), (3,), "f: x has shape (1,), expected () or (3,): make x a scalar, x.reshape(())"),
        ((1, 1), (3,), "f: x has shape (1, 1), expected () or (3,): make x a scalar, x.reshape(())"),
        ((0,), (3,), "f: x has shape (0,), expected (3,) (() or *batch): give x the batch shape of the other arguments"),
        ((2,), (3,), "f: x has shape (2,), expected (3,) (() or *batch): give x the batch shape of the other arguments"),
        ((3, 1), (3,), "f: x has shape (3, 1), expected (3,) (() or *batch): drop the last axis of x"),
    ],
)
def test_require_scalar_or_batch_names_the_repair(got: tuple[int, ...], batch: tuple[int, ...], message: str) -> None:
    for right in ((), batch, (1,)):
        require_scalar_or_batch("f", "x", np.zeros(right), batch if right != (1,) else (1,))
    with pytest.raises(ValueError) as refusal:
        require_scalar_or_batch("f", "x", np.zeros(got), batch)
    assert str(refusal.value).startswith(message)


def test_a_dtype_is_one_by_its_value() -> None:
    """NumPy's may carry metadata: equal, and another object."""
    marked = np.zeros(2, np.dtype("float64", metadata={"unit": "m"}))
    assert marked.dtype is not np.dtype("float64")
    require_one_dtype("f", x=np.zeros(2), y=marked)
    require_one_dtype("f", x=marked, y=np.zeros(2))


@pytest.mark.parametrize("name", SHAPES)
def test_jit_gives_the_eager_numbers(name: str) -> None:
    jax = pytest.importorskip("jax")
    function = getattr(sacref.spec, name)
    arguments = {key: jax.numpy.asarray(value) for key, value in draw(name).items()}
    traced, eager = jax.jit(function)(**arguments), function(**arguments)
    assert jax.tree.structure(traced) == jax.tree.structure(eager)
    for one, other in zip(jax.tree.leaves(traced), jax.tree.leaves(eager), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13)


COMPILE = """
import torch
import sacref.spec
for name, shapes in {shapes}.items():
    function = getattr(sacref.spec, name)
    arguments = {{key: torch.rand(shape, dtype=torch.float64) for key, shape in shapes.items()}}
    compiled, eager = torch.compile(function, fullgraph=True, backend="eager")(**arguments), function(**arguments)
    torch.testing.assert_close(compiled, eager, rtol=1e-13, atol=0.0)
    print("traced", name)
"""


def test_torch_compile_traces_every_call_whole() -> None:
    """In a process without the shape checks, which break the graph."""
    pytest.importorskip("torch")
    script = COMPILE.format(shapes={name: dict(shapes) for name, shapes in SHAPES.items()})
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == [word for name in SHAPES for word in ("traced", name)]


def test_numbers_of_any_library_become_numpy_to_the_bit() -> None:
    torch, jnp = pytest.importorskip("torch"), pytest.importorskip("jax.numpy")
    mine = np.array([1.0, 2.0])
    assert as_numpy(mine, "rewards") is mine
    numbers = [0.1, -3.0, 2.0**100]
    for dtype in ("float32", "float64", "float16", "int32"):
        values = [1, -3, 7] if dtype == "int32" else [0.1, -3.0, 2.0**10]
        wanted = np.array(values, dtype)
        for given in (wanted, torch.tensor(values, dtype=getattr(torch, dtype))):
            got = as_numpy(given, "rewards")
            assert (type(got), got.dtype, got.tolist()) == (np.ndarray, wanted.dtype, wanted.tolist())
    for given in (torch.tensor(numbers, dtype=torch.bfloat16, requires_grad=True), jnp.asarray(numbers, "bfloat16")):
        got = as_numpy(given, "rewards")
        assert (type(got), got.dtype, got.tolist()) == (np.ndarray, np.dtype("float32"), [0.10009765625, -3.0, 2.0**100])
    assert as_numpy(jnp.asarray([1, 2], "int32"), "rewards").dtype == np.int32
    got = as_numpy([torch.tensor(1.0), 2.0], "rewards")
    assert (got.dtype, got.tolist()) == (np.dtype("float64"), [1.0, 2.0])
    with pytest.raises(ValueError, match="rewards are lists of unequal lengths, expected one shape for all rows: mend what makes them"):
        as_numpy([[1.0], [2.0, 3.0]], "rewards")


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_the_largest_finite_number_is_the_last_that_rounds_to_one(dtype: type) -> None:
    largest = largest_finite(dtype)
    assert dtype(largest) == np.finfo(dtype).max
    assert np.isinf(dtype(np.nextafter(largest, np.inf)))
