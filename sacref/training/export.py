"""Export of a trained policy to a file that runs without sacref: `sacref.export_policy`."""

import importlib
import logging
import os
import re
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from sacref.agent.prediction import ExportablePolicy
from sacref.algorithm.tree import map_leaves, named_leaves
from sacref.spec.arrays import NumpyArray
from sacref.storage.checkpoint import one_line
from sacref.training.checkpoints import AnyAgent

Format: TypeAlias = Literal["onnx", "torch", "stablehlo"]

FORMATS: Mapping[str, tuple[Format, ...]] = {"torch": ("onnx", "torch"), "jax": ("onnx", "stablehlo")}
"""Backend -> what its policies are exported to."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime", "jax2onnx", "flatbuffers")
"""Packages of the extras `export-torch` and `export-jax`."""
TOLERANCE = 1e-5
"""Largest difference between an exported policy and `predict`, relative to the largest number, or 1."""
ROWS = (1, 2, 5)
"""Numbers of observations on which an exported policy is tried."""
STEPS = 3
"""Steps on which an exported recurrent policy is tried."""

OPERATION = re.compile(r"OpOverload\(op='([\w.]+)'|primitive '([\w-]+)'")
"""Matches what the exporters say of an operation that they do not know."""


class ExportError(ValueError):
    """A policy that cannot be exported; the message says why, and the fix."""


class Exported(NamedTuple):
    """An exported policy."""

    path: Path
    inputs: tuple[str, ...]
    """Names, in order."""
    outputs: tuple[str, ...]
    """Names, in order."""
    difference: float
    """Largest difference to `predict` that was found, relative to the largest number, or 1."""


def export_policy(agent: AnyAgent, output: str | Path, *, to: Format) -> Exported:
    """Write the deterministic policy, with its preprocessors inside, to a file that runs without sacref.

    It takes any number of observations, `(n, *observation)` each, in the agent's dtype where they are floats, and gives actions in the
    Box's units. A recurrent one also takes its `carry`, the previous actions in [-1, 1], and the previous rewards (as they are after
    `reward_scale` and `rewards_shaper`), those that it has, and gives the next `carry` and previous actions; zeros begin an episode of
    sacref's own models. The new file is loaded again, and held against `agent.predict`, before it takes its place.

    Args:
        agent: on the CPU, of `sacref.load(run, device="cpu")` for instance.
        output: the file.
        to: "onnx" (torch.onnx or jax2onnx), "torch" (PyTorch: a program of torch.export) or "stablehlo" (JAX: an artifact of jax.export).

    Raises:
        ExportError: if the backend has no such format, a package is missing, the policy has an operation that the format lacks, which is
            named, or what was written differs from `predict` by more than 1e-5.
    """
    if to not in FORMATS[agent.backend]:
        raise ExportError(f"to is {to!r}, expected {' or '.join(FORMATS[agent.backend])} for an agent of {agent.backend}: choose one")
    if not str(getattr(agent.device, "platform", agent.device)).startswith("cpu"):
        raise ExportError(f"the agent is on {agent.device}, expected the CPU: load it with device='cpu'")
    path = Path(output).expanduser().absolute()
    if path.is_dir():
        raise ExportError(f"output {path} is a directory, expected a file: name one in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    policy: ExportablePolicy[Any] = agent.exportable_policy()
    written = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        module = importlib.import_module(f"sacref.{agent.backend}.export")
        with _quiet():
            getattr(module, f"to_{to}")(policy, written)
        run = _load_onnx(written) if to == "onnx" else getattr(module, f"load_{to}")(written)
        difference = _largest_difference(agent, policy, run)
        if not difference <= TOLERANCE:
            raise ExportError(
                f"what was exported to {to} differs from predict by {difference:.2g}, expected at most {TOLERANCE:g}, and was not written: "
                f"export to another format, or train without mixed_precision"
            )
        os.replace(written, path)
    except ImportError as error:
        missing = next((name for name in PACKAGES if re.search(rf"\b{name}\b", str(error))), None)
        if missing is None:
            raise
        raise ExportError(
            f'exporting to {to} needs {missing}, which is not installed: pip install "sacref[export-{agent.backend}]"'
        ) from error
    except (ExportError, OSError):
        raise
    except Exception as error:  # an exporter raises anything, its own errors around others
        lacking = ", ".join(
            dict.fromkeys(name for each in _chain(error) for found in OPERATION.findall(str(each)) for name in found if name)
        )
        said = f"it has an operation that {to} lacks, {lacking}" if lacking else f"{type(error).__name__}: {one_line(error)[:500]}"
        low = ", or train without mixed_precision" if agent.cfg.mixed_precision else ""
        raise ExportError(
            f"the policy cannot be exported to {to} ({said}): write its layers in other operations, or export to another format{low}"
        ) from error
    finally:
        written.unlink(missing_ok=True)
    return Exported(path, tuple(policy.inputs), policy.outputs, difference)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the exporters say of themselves: names that they use are deprecated, libraries that they could use are not there."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "jax2onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _load_onnx(path: Path) -> Callable[..., list[NumpyArray]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def _largest_difference(agent: AnyAgent, policy: ExportablePolicy[Any], run: Callable[..., list[NumpyArray]]) -> float:
    """Compare a loaded policy with `predict`, a recurrent one over some steps."""
    generator = np.random.default_rng(0)
    observed = {name for name in policy.inputs if name.partition(".")[0] == "observations"}
    largest = 0.0
    for rows in ROWS:
        carry, rewards = None, np.zeros(rows)
        held = {name: np.zeros((rows, *array.shape[1:]), array.dtype) for name, array in policy.inputs.items() if name not in observed}
        if "carry" in {name.partition(".")[0] for name in held}:
            held |= {
                name: leaf.astype(held[name].dtype)
                for name, leaf in named_leaves(agent.carry.initial_prediction(rows).carry, "carry").items()
            }
        for _ in range(STEPS if held else 1):
            seen = {name: _drawn(generator, policy.inputs[name], rows) for name in observed}
            arrays = {**held, **seen}
            actions, *after = run(*(arrays[name] for name in policy.inputs))
            leaves = iter(seen[name] for name in policy.inputs if name in observed)
            observations = map_leaves(lambda _, leaves=leaves: next(leaves), agent.spaces.observations)
            expected, carry = agent.predict(observations, carry=carry, rewards=rewards)
            largest = float(np.maximum(largest, _difference(actions, expected)))  # which keeps NaN
            held |= {name.removeprefix("next_"): array for name, array in zip(policy.outputs[1:], after, strict=True)}
            rewards = generator.standard_normal(rows)
            if "previous_rewards" in held:
                shaped = agent.transitions.shape_rewards(rewards, rows)
                held["previous_rewards"] = shaped.astype(held["previous_rewards"].dtype)
    return largest


def _drawn(generator: np.random.Generator, like: NumpyArray, rows: int) -> NumpyArray:
    values = generator.standard_normal((rows, *like.shape[1:]))
    return values.astype(like.dtype) if like.dtype.kind == "f" else (values > 0).astype(like.dtype)


def _difference(actions: NumpyArray, expected: NumpyArray) -> float:
    if actions.shape != expected.shape:
        return np.inf
    return float(np.abs(actions - expected).max() / max(1.0, np.abs(expected).max()))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
