"""Checkpoints of an agent: they are written and read back, of one rank or of several that each have a part of their own."""

import logging
import re
import secrets
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Generic

import numpy as np

import sacref
from sacref.agent.backend import Backend
from sacref.agent.health import Health
from sacref.agent.learner import Learner
from sacref.agent.update_schedule import UpdateSchedule
from sacref.algorithm.replay import AnyReplayMemory
from sacref.config import SACConfig
from sacref.envs.space_records import SPACES, differences
from sacref.spec.arrays import ArrayT, NumpyArray
from sacref.storage import checkpoint, replay_log
from sacref.storage.naming import require_same_arrays
from sacref.storage.replay_log import ReplayLog

logger: logging.Logger = logging.getLogger(__name__)

LIVE = ("live", "environment")
"""Groups of a checkpoint that hold the in-flight state of a run: see `Agent.live_state`."""
REPLAY = "replay"
"""Directory of a replay log, beside the checkpoints that it belongs to."""
MOST_RANKS = 2**20
"""Ranks that a checkpoint may say have written it."""
LEARNING = re.compile(r"((target_)?critic_\d+|(policy|critic|temperature)_optimizer)\.")
"""Matches names of arrays that only learning reads: the critics' and the optimizers'."""
LARGEST_STREAMS = 2**20
"""Bytes of random streams' states that are read."""

Arrays = Mapping[str, NumpyArray]


class Checkpoints(Generic[ArrayT]):
    """Writes the checkpoints of an agent, and restores them.

    Args:
        cfg: of the agent. memory: the replay memory, or None for an agent that only acts.
        layouts: of the models, by name; see `Models.layouts`.
        has_states: whether there is a state_space. space_records: returns the spaces as a checkpoint holds them.
    """

    def __init__(
        self,
        backend: Backend[ArrayT],
        cfg: SACConfig,
        *,
        learner: Learner[ArrayT],
        layouts: Mapping[str, str],
        memory: AnyReplayMemory | None,
        update_schedule: UpdateSchedule,
        health: Health[ArrayT],
        has_states: bool,
        space_records: Callable[[], dict[str, Any]],
    ) -> None:
        self._backend, self._cfg, self._ranks = backend, cfg, backend.ranks
        self._learner, self._layouts, self._memory = learner, layouts, memory
        self._update_schedule, self._health = update_schedule, health
        self._has_states, self._space_records = has_states, space_records
        self._newest: Path | None = None

    def drop_former_memory(self, path: Path) -> None:
        """Delete this rank's replay memory from the checkpoint before `path`, which is the newest one of the run."""
        previous, self._newest = self._newest, path
        if previous is not None and previous != path:
            part = rank_part(previous, self._ranks.rank)
            if part.is_dir():
                checkpoint.drop_group(part, "memory")

    def save(
        self,
        path: Path,
        algorithm: str,
        *,
        replay: ReplayLog | None = None,
        keep_memory: bool = True,
        live: tuple[Mapping[str, Arrays], Mapping[str, object]] | None = None,
    ) -> None:
        """Write a checkpoint of an `algorithm`; for the other arguments see `Agent.save`."""
        groups: dict[str, dict[str, NumpyArray]] = defaultdict(dict)
        learned = self._learner.learned_arrays()
        self._health.check(learned)  # equal on all ranks, and so is what they decide
        for name, array in {**learned, **self._learner.constant_arrays()}.items() if self._ranks.rank == 0 else ():
            groups[name.split(".")[0] if self._cfg.experiment.store_separately else "agent"][name] = array
        groups["streams"] = self._learner.stream_states()
        memory = self._memory if keep_memory else None
        entry, added = replay.append(memory) if memory is not None and replay is not None else (None, 0)
        if memory is not None and replay is None:
            groups["memory"] = memory.arrays(copy=False)
        metadata = {
            "algorithm": algorithm,
            "backend": self._backend.name,
            "sacref": sacref.__version__,
            "layouts": self._layouts,
            "spaces": self._space_records(),
            "memory_capacity": None if self._memory is None else self._memory.capacity,
            **self._update_schedule.metadata(),
        }
        if entry is not None:
            metadata["replay"] = entry
        if live is not None:
            groups |= {name: dict(arrays) for name, arrays in live[0].items()}
            metadata |= live[1]
        self._write_parts(path, groups, metadata)
        if replay is not None and entry is not None:
            replay.commit(entry, added)
        if keep_memory or self._health.good_checkpoint is None:
            self._health.good_checkpoint = path

    def _write_parts(self, path: str | Path, groups: Mapping[str, Any], metadata: dict[str, object]) -> None:
        if self._ranks.size == 1:
            checkpoint.write(path, groups, metadata)
            return
        # The parts of one writing know each other, should a later one be killed between them.
        metadata |= {"ranks": self._ranks.size, "writing": self._ranks.gather(secrets.token_hex(8))[0]}
        if self._ranks.rank > 0:
            checkpoint.write(rank_part(path, self._ranks.rank), groups, metadata)
        self._ranks.wait()
        if self._ranks.rank == 0:
            checkpoint.write(path, groups, metadata)
        self._ranks.wait()

    def load(self, path: Path, algorithm: str) -> None:
        """Restore a checkpoint of an `algorithm`: what was learned, streams, memory, and the progress of the update schedule.

        Raises:
            checkpoint.CheckpointError: as `Agent.load` does. The agent is then as it was before.
        """
        learner = self._learner
        before, streams_before, key_before = learner.arrays(), learner.stream_states(), learner.streams_key
        read, written_by = self._read_parts(path, partial(self._refuse_others, path, algorithm, before), partial(self._wants, before))
        metadata = read.metadata
        progress = self._update_schedule.read(path, metadata)
        groups = dict(read.groups)
        streams, memory = groups.pop("streams", {}), groups.pop("memory", None)
        try:
            learner.set_arrays(self._completed(groups, before))
            steps = learner.gradient_step_count
            if written_by != self._ranks.size:
                learner.begin_streams(written_by, self._ranks.size, steps)
            elif metadata.get("backend") != self._backend.name:
                learner.begin_streams(steps)
                logger.warning(
                    "%s was written by %s: the random streams begin anew, from the seed, the rank and the %d gradient steps so far",
                    path,
                    checkpoint.short.repr(metadata.get("backend")).strip("'"),
                    steps,
                )
            elif {name: state.shape for name, state in streams.items()} != {name: state.shape for name, state in streams_before.items()}:
                # A GPU's generator has another state than a CPU's.
                logger.info("%s was written on another kind of device: the random streams stay as they are", path)
            else:
                require_same_arrays(streams, streams_before)
                learner.set_stream_states(streams)
            if memory is not None and self._memory is not None:
                self._memory.set_arrays(memory)
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            learner.set_arrays(before)
            learner.set_stream_states(streams_before)
            learner.streams_key = key_before
            raise checkpoint.CheckpointError(f"{path} does not fit this agent: {checkpoint.one_line(error)}") from error
        self._health.good_checkpoint = path
        self._update_schedule.progress = progress
        if written_by != self._ranks.size and self._ranks.rank == 0:
            logger.warning("%s", self._other_ranks(path, written_by))

    def _refuse_others(self, path: Path, algorithm: str, own: Arrays, found: checkpoint.Checkpoint) -> None:
        """Refuse a checkpoint of another agent while only its names, types and shapes are known, as its arrays may have any size."""
        metadata = found.metadata
        if metadata.get("algorithm") != algorithm:
            said = checkpoint.short.repr(metadata.get("algorithm"))
            raise checkpoint.CheckpointError(f"{path} holds {said}, expected {algorithm!r}")
        layouts = metadata.get("layouts")
        if self._memory is None and isinstance(layouts, dict):
            layouts = {**self._layouts, **{name: layout for name, layout in layouts.items() if name in self._layouts}}
        if layouts != self._layouts:
            raise checkpoint.CheckpointError(
                f"{path} holds models of layouts {checkpoint.short.repr(metadata.get('layouts'))}, this agent's are {self._layouts}: "
                f"models of your own move only within a backend"
            )
        if "spaces" in metadata:  # else another version of sacref wrote it
            self._refuse_other_spaces(path, metadata["spaces"])
        try:
            require_same_arrays(self._completed({key: found.groups[key] for key in found.groups.keys() - {"streams", "memory"}}, own), own)
            self._refuse_large(found.groups)
        except ValueError as error:
            raise checkpoint.CheckpointError(f"{path} does not fit this agent: {checkpoint.one_line(error)}") from error

    def _refuse_other_spaces(self, path: Path, stored: Any) -> None:
        """Refuse a checkpoint of an agent with other spaces: its weights would read other inputs, and its actions mean others."""
        own = self._space_records()
        try:
            # Without a state_space, who only acts leaves states to the critics.
            names = [name for name in SPACES if not (self._memory is None and own[name] is None)]
            found = [text for name in names for text in differences(stored[name], own[name], name, ordered=True)]
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            said = f"{type(error).__name__}: {checkpoint.one_line(error)}"
            raise checkpoint.CheckpointError(
                f"{path} is damaged or foreign, its spaces are none ({said}): use another checkpoint"
            ) from error
        if found:
            raise checkpoint.CheckpointError(
                f"{path} is of an agent for other spaces: {checkpoint.one_line('; '.join(found))}: construct the agent with the spaces "
                f"that it was saved with"
            )

    def _wants(self, own: Arrays, group: str, name: str) -> bool:
        """Tell whether an array of a checkpoint is read."""
        if self._memory is not None or group == "streams" or name in own:
            return True
        return not (LEARNING.match(name) or (not self._has_states and name.startswith("preprocessor.states")))

    def _completed(self, groups: Mapping[str, Arrays], own: Arrays) -> dict[str, NumpyArray]:
        """Return the learned arrays of a checkpoint.

        For an agent that only acts, those of critics and optimizers that the checkpoint lacks are the agent's own. A critic that it has, it
        must have whole.
        """
        found = {name: array for group in groups.values() for name, array in group.items()}
        if self._memory is not None:
            return found
        models = {name.partition(".")[0] for name in found if "_optimizer." not in name}
        return {name: array for name, array in own.items() if LEARNING.match(name) and name.partition(".")[0] not in models} | found

    def _refuse_large(self, groups: Mapping[str, Arrays]) -> None:
        """Refuse streams and a memory that need more room than this agent's."""
        most = {"streams": max(LARGEST_STREAMS, 2 * _bytes(self._learner.stream_states()))}
        if self._memory is not None:
            rows = self._memory.rows(np.zeros(1, np.int64))
            most["memory"] = self._memory.slots * self._memory.num_envs * _bytes(rows) + 16 * self._memory.num_envs
        for group, room in most.items():
            if (needed := _bytes(groups.get(group, {}))) > room:
                raise ValueError(f"{group} has {needed} bytes, expected at most {room}: use the capacity and types it was saved with")

    def _read_parts(
        self, path: Path, check: Callable[[checkpoint.Checkpoint], None], wanted: Callable[[str, str], bool]
    ) -> tuple[checkpoint.Checkpoint, int]:
        """Read a checkpoint, with the streams and the memory that are for this rank; return how many ranks wrote it too."""
        others = ("streams", "memory") if self._ranks.rank > 0 else () if self._memory is not None else ("memory",)
        read = checkpoint.read(path, without=(*LIVE, *others), check=check, wanted=wanted)
        written_by = read.metadata.get("ranks", 1)
        if type(written_by) is not int or not 1 <= written_by <= MOST_RANKS:
            said = checkpoint.short.repr(written_by)
            raise checkpoint.CheckpointError(f"{path} says {said} ranks wrote it, expected an integer of at least 1")
        if self._memory is None:
            return read, self._ranks.size  # it only acts: the streams and memories of others are nothing to it
        own = self._ranks.rank % written_by
        entry = read.metadata.get("replay")
        if self._ranks.rank > 0:
            part = checkpoint.read(rank_part(path, own), only=("streams", "memory"), check=lambda found: self._refuse_large(found.groups))
            entry = part.metadata.get("replay")
            if part.metadata.get("writing") != read.metadata.get("writing"):
                raise checkpoint.CheckpointError(f"{rank_part(path, own)} is no part of {path}: use another checkpoint")
            read = checkpoint.Checkpoint({**read.groups, **_own(part.groups)}, read.metadata)
        if isinstance(entry, dict):
            read.groups["memory"] = replay_log.read(rank_part(path.parent / REPLAY, own), entry, self._memory)
        return read, written_by

    def _other_ranks(self, path: Path, before: int) -> str:
        """Say what changes when another number of ranks goes on."""
        now = self._ranks.size
        if now > before:
            memories = f"ranks {before} to {now - 1} begin with copies of the memories of the first ones"
        else:
            memories = f"the memories of ranks {now} to {before - 1} are left out"
        return (
            f"{path} was written by {before} ranks, and {now} go on: {memories}, environments and random streams begin anew, "
            f"and a gradient step averages over {now} x {self._cfg.batch_size} rows in the place of {before} x {self._cfg.batch_size}"
        )


def _bytes(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())


def _own(groups: Mapping[str, object]) -> dict[str, Any]:
    """Return those groups of a checkpoint that are a rank's own."""
    return {name: group for name, group in groups.items() if name in ("streams", "memory")}


def rank_part(path: str | Path, rank: int) -> Path:
    """Return the directory of a rank's part of a checkpoint: rank 0's is the checkpoint itself."""
    path = Path(path)
    return path if rank == 0 else path.with_name(f"{path.name}.rank_{rank}")
