"""Where default models are built on JAX."""

from typing import Any

import pytest

pytest.importorskip("jax")

import jax

from sacref.jax import default_models
from tests.backends import Spaces


def test_default_models_need_no_cpu_among_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX_PLATFORMS=cuda leaves it out."""
    local_devices = jax.local_devices

    def without_cpu(backend: str | None = None) -> list[Any]:
        if backend == "cpu":
            raise RuntimeError("Unknown backend cpu")
        return list(local_devices())

    monkeypatch.setattr(jax, "local_devices", without_cpu)
    spaces = Spaces()
    models = default_models(observation_space=spaces.observation, action_space=spaces.action, hidden=(4,))
    assert sorted(models) == ["critic_1", "critic_2", "policy"]
