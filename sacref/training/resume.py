"""Resuming a run from a checkpoint: its environments and its agent as they were between two timesteps."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sacref.agent.checkpoints import LIVE, rank_part
from sacref.algorithm.tree import leaves
from sacref.envs import snapshots
from sacref.envs.interface import Envs
from sacref.envs.spaces import rows_like
from sacref.ranks import Ranks
from sacref.storage import checkpoint
from sacref.storage.checkpoint import CheckpointError, one_line
from sacref.storage.values import decode, refuse_unlike
from sacref.training.checkpoints import AnyAgent
from sacref.training.loop import LoopState

logger: logging.Logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resumption:
    """In-flight state of a run when a checkpoint was written."""

    begin: LoopState | None
    """State to go on from; None where new episodes begin."""
    on_begin: Callable[[], None] | None
    callbacks: tuple[tuple[str, int, Any], ...] = ()
    """Name, evaluations seen and state of each callback that had one."""


def resume(
    path: Path,
    agent: AnyAgent,
    ranks: Ranks,
    envs: Envs,
    timestep: int,
    uncaptured: str | None = None,
) -> Resumption:
    """Restore the environments as they were at a checkpoint, and return how the agent's own part is restored.

    Where that cannot be, the log says why, and new episodes begin.

    Args:
        uncaptured: why the environments cannot be restored; None to try.

    Raises:
        CheckpointError: if the checkpoint is damaged, or of other environments.
    """
    part = rank_part(path, ranks.rank)
    read = checkpoint.read(part if part.is_dir() else path, only=LIVE)
    written_by = checkpoint.read(path, only=()).metadata.get("ranks", 1)
    reason: str | None
    if written_by != ranks.size:
        reason = f"{written_by} ranks wrote it"
    elif "live" not in read.metadata:
        reason = "it says nothing of what it was in the middle of"
    elif "environment" not in read.metadata:
        reason = one_line(read.metadata.get("not_captured"))
    else:
        reason = uncaptured or snapshots.of_other_kind(envs, read.metadata["environment"])
    if reasons := [said for said in ranks.gather(reason) if said is not None]:
        if ranks.rank == 0:
            logger.warning("%s: the episodes begin anew (%s)", path, reasons[0])
        return Resumption(None, None, _states_of(part, read))
    with _fitting(part):
        value = decode(read.metadata["live"], read.groups.get(LIVE[0], {}))
        like = {"observations": rows_like(agent.observation_space, envs.num_envs), "states": rows_like(agent.state_space, envs.num_envs)}
        refuse_unlike("what the run was in the middle of", value, {**like, "agent": agent.live_like()})
        if not all(np.isfinite(array).all() for array in leaves((value["observations"], value["states"]))):
            raise ValueError("observations or states are NaN or infinite")
        begin = LoopState(timestep, value["observations"], value["states"])
        snapshots.restore(envs, snapshots.Snapshot(read.groups.get(LIVE[1], {}), read.metadata["environment"]))

    def on_begin() -> None:
        with _fitting(part):
            agent.set_live_state(value["agent"])

    return Resumption(begin, on_begin, _states_of(part, read))


def _states_of(path: Path, read: checkpoint.Checkpoint) -> tuple[tuple[str, int, Any], ...]:
    """Return names, evaluations seen and states of the callbacks that a checkpoint holds."""
    with _fitting(path):
        states = decode(read.metadata.get("callbacks", []), read.groups.get(LIVE[0], {}))
        refuse_unlike("the callbacks' states", [(name, seen) for name, seen, _ in states], [(str, int)])
        return tuple((name, seen, state) for name, seen, state in states)


@contextmanager
def _fitting(path: Path) -> Iterator[None]:
    """Name the checkpoint in the error of what does not fit."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{path} does not fit this run ({type(error).__name__}: {one_line(error)}): resume it with its own arguments"
        ) from error
