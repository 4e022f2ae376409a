"""The first weights of the default models, drawn once with NumPy so that one seed gives the same networks on both backends."""

import math
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def dense_layers(*, inputs: int, hidden: Sequence[int], outputs: int, seed: int, model: str) -> dict[str, NDArray[np.float64]]:
    """Draw the layers of a multilayer perceptron: kernels from U(-b, b) with b = sqrt(6 / (in + out)) of each layer, biases zero.

    Glorot & Bengio 2010, equation 16: what the authors of SAC started from (Keras' default). PyTorch's own default is narrower and
    its biases are random. Each model has a stream of its own, so that twin critics differ.

    Args:
        inputs, outputs: width of the first layer's input and of the last layer's output.
        hidden: widths of the hidden layers.
        seed: of the run.
        model: name of the model, such as `critic_1`; part of the stream.

    Returns:
        Common name -> array: `hidden.<i>.kernel` `(in, out)`, `hidden.<i>.bias` `(out,)`, `head.kernel`, `head.bias`.
    """
    stream = np.random.default_rng([seed, zlib.crc32(model.encode())])
    widths = [inputs, *hidden, outputs]
    names = [*(f"hidden.{i}" for i in range(len(hidden))), "head"]
    arrays: dict[str, NDArray[np.float64]] = {}
    for name, fan_in, fan_out in zip(names, widths[:-1], widths[1:], strict=True):
        bound = math.sqrt(6.0 / (fan_in + fan_out))
        arrays[f"{name}.kernel"] = stream.uniform(-bound, bound, (fan_in, fan_out))
        arrays[f"{name}.bias"] = np.zeros(fan_out)
    return arrays
