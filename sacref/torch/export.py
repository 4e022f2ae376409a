"""Export of a policy from PyTorch, to ONNX and to programs of torch.export."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sacref.agent.prediction import ExportablePolicy
from sacref.algorithm.tree import Tree, leaves, map_leaves
from sacref.spec.arrays import NumpyArray


class Policy(nn.Module):
    """The policy with its parameters and moments, over arrays in the order of its inputs."""

    def __init__(self, policy: ExportablePolicy[Tensor]) -> None:
        super().__init__()
        self.model: nn.Module = policy.model  # whose buffers and frozen parameters the function reads
        self._function = policy.function
        self._weights: Tree = {"parameters": policy.parameters, "moments": policy.moments}
        for number, weight in enumerate(leaves(self._weights)):
            self.register_buffer(f"weight_{number}", weight)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        numbers = iter(range(len(leaves(self._weights))))
        weights = map_leaves(lambda _: getattr(self, f"weight_{next(numbers)}"), self._weights)
        return self._function(weights["parameters"], weights["moments"], *inputs)


def to_torch(policy: ExportablePolicy[Tensor], path: Path) -> None:
    """Write a program that `torch.export.load` reads."""
    module, inputs, shapes = _prepared(policy)
    with torch.no_grad():
        program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
    with path.open("wb") as file:  # of any name: of a path it asks for the suffix .pt2
        torch.export.save(program, file)


def to_onnx(policy: ExportablePolicy[Tensor], path: Path) -> None:
    """Write a model in one ONNX file, by PyTorch's own exporter."""
    module, inputs, shapes = _prepared(policy)
    with torch.no_grad():
        torch.onnx.export(
            module,
            inputs,
            path,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=list(policy.inputs),
            output_names=list(policy.outputs),
            external_data=False,
            verbose=False,
        )


def load_torch(path: Path) -> Callable[..., list[NumpyArray]]:
    """Return a program that `to_torch` wrote as a function of NumPy arrays."""
    module = torch.export.load(io.BytesIO(path.read_bytes())).module()

    def run(*inputs: NumpyArray) -> list[NumpyArray]:
        with torch.no_grad():
            return [output.numpy() for output in module(*map(torch.from_numpy, inputs))]

    return run


def _prepared(policy: ExportablePolicy[Tensor]) -> tuple[Policy, tuple[Tensor, ...], Any]:
    """Return the module, example inputs, and which axis of them may have any length, on the CPU."""
    module = Policy(policy).eval()
    inputs = tuple(map(torch.from_numpy, policy.inputs.values()))
    rows = torch.export.Dim("n")
    return module, inputs, {"inputs": tuple({0: rows} for _ in inputs)}
