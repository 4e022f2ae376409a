"""The implementations that throughput is measured of: sacref's two backends, and their peers."""

from collections.abc import Callable
from typing import Protocol

from bench.peers import own, stable_baselines3
from bench.peers.setting import Setting


class Contender(Protocol):
    """A training loop on one environment that can be stopped and taken up again."""

    def advance(self, steps: int) -> None:
        """Train for `steps` environment steps; return when the device is idle."""
        ...

    def close(self) -> None:
        """Close the environment and the files."""
        ...


CONTENDERS: dict[str, Callable[[Setting], Contender]] = {
    "sacref torch": own.Torch,
    "sacref jax": own.Jax,
    "Stable-Baselines3": stable_baselines3.StableBaselines3,
}
"""Name -> how to make one. Making it raises ImportError where the library is not installed."""
