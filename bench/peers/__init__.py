"""The contenders of the throughput suite: sacref's two backends, strict and chunked, and their peers.

Each runs in its own process (`process`, `worker`), a peer by the interpreter of its own environment (`environments`), which loads the
imports of its module; this module and `setting`, `worker` and `environments` need nothing but Python.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

CHUNK = 64
"""Steps between two updates of the contenders that collect first and learn then; each timed stretch is a multiple of it."""
OVERLAPPED = "overlapped (one update old)"
"""a_t is chosen before the update that follows transition t-1, which then runs while the environment steps."""
STRICT = "strict"
"""a_t uses the parameters after the update that follows transition t-1, and every update may sample the newest transition."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One contender: its process, and its description in the record."""

    name: str
    module: str
    """Module of this package; its `make` returns the `Trainer`."""
    library: Literal["torch", "jax"]
    """Library of its updates."""
    environment: str | None
    """Folder of its environment and name of its requirements; None for sacref's own interpreter."""
    needs: tuple[str, ...]
    """Its imports: where its environment is absent, any interpreter that has these will do."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `make`, beside the setting."""
    script: str | None = None
    """Environment variable with the path of its script, for a peer that is a script."""
    strictness: str = STRICT
    note: str | None = None
    """Remark for a reader of its figures."""

    @property
    def own(self) -> bool:
        """True if it is sacref's."""
        return self.module == "own"


def chunked(steps: int) -> str:
    """Describe the strictness of a loop that learns after every `steps` steps."""
    return f"chunked (up to {steps} steps old)"


def _own(backend: Literal["torch", "jax"], chunk: int = 1, *, overlap: bool = False) -> Peer:
    return Peer(
        name=f"sacref {backend} {'overlapped' if overlap else 'strict' if chunk == 1 else 'chunked'}",
        module="own",
        library=backend,
        environment=None,
        needs=("sacref", backend, "mujoco"),
        options={"backend": backend, "chunk": chunk, "overlap": overlap},
        strictness=OVERLAPPED if overlap else STRICT if chunk == 1 else chunked(chunk),
    )


DELAYED = "Its critics are trained after every step, its policy twice after every second one."

CONTENDERS = {
    peer.name: peer
    for peer in (
        _own("torch"),
        _own("torch", CHUNK),
        _own("jax"),
        _own("jax", overlap=True),
        _own("jax", CHUNK),
        Peer(
            name="Stable-Baselines3",
            module="stable_baselines3",
            library="torch",
            environment="stable-baselines3",
            needs=("stable_baselines3", "mujoco"),
        ),
        Peer(
            name="SBX strict",
            module="sbx",
            library="jax",
            environment="sbx",
            needs=("sbx", "mujoco"),
            options={"steps": 1},
        ),
        Peer(
            name="SBX scan",
            module="sbx",
            library="jax",
            environment="sbx",
            needs=("sbx", "mujoco"),
            options={"steps": CHUNK},
            strictness=chunked(CHUNK),
        ),
        Peer(
            name="skrl torch",
            module="skrl",
            library="torch",
            environment="skrl",
            needs=("skrl", "torch", "mujoco"),
            options={"backend": "torch", "memory": 1_000_000},
            note="Its policy's standard deviation does not depend on the observation, as skrl's own models have it.",
        ),
        Peer(
            name="skrl jax",
            module="skrl",
            library="jax",
            environment="skrl",
            needs=("skrl", "jax", "flax", "optax", "mujoco"),
            options={"backend": "jax", "memory": 200_000},
            note="Its memory holds 200,000 transitions in place of 1,000,000, because it copies itself whenever one is added. Its"
            " policy's standard deviation does not depend on the observation, as skrl's own models have it.",
        ),
        Peer(
            name="CleanRL",
            module="script",
            library="torch",
            environment="cleanrl",
            needs=("gymnasium", "mujoco", "tensorboard", "torch", "tyro"),
            options={"compiled": False},
            script="CLEANRL_SAC",
            note=DELAYED,
        ),
        Peer(
            name="LeanRL compiled",
            module="script",
            library="torch",
            environment="leanrl",
            needs=("gymnasium", "mujoco", "tensordict", "torch", "torchrl", "tqdm", "tyro", "wandb"),
            options={"compiled": True},
            script="LEANRL_SAC",
            note=DELAYED,
        ),
    )
}
"""Name -> contender, in the order in which they are timed."""
