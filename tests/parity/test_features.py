"""PyTorch, JAX and the NumPy oracle feature by feature: losses, gradients, parameters and moments over 100 updates."""

import itertools

import pytest

from sacref.parity.compare import side_by_side
from sacref.parity.drivers import BackendAgent, Implementation, Oracle, installed_backends
from tests.parity.features import FEATURES

BACKENDS = installed_backends()
UPDATES = 100


@pytest.mark.skipif(not BACKENDS, reason="neither torch nor jax is installed")
@pytest.mark.parametrize("feature", FEATURES)
def test_float64_agrees_over_a_hundred_updates(feature: str) -> None:
    problem = FEATURES[feature]
    state = problem.initial_state()
    found: dict[str, Implementation] = {name: BackendAgent(name, problem, state) for name in BACKENDS}
    traces = side_by_side({**found, "numpy": Oracle(problem, state)}, itertools.islice(problem.draws(), UPDATES))
    for pair, kinds in traces.pairs.items():
        for kind, trace in kinds.items():
            print(pair, kind, trace.largest_relative)
            assert trace.largest_relative.value < 1e-9, (pair, kind, trace.largest_relative)
