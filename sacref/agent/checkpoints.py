"""Checkpoints of an agent: what `save` writes and `load` takes back, of one rank or of several that each have a part of their own."""

import logging
import re
import secrets
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import sacref
from sacref.agent.in_flight import Live
from sacref.agent.update_schedule import Pace, read_pace
from sacref.envs.space_records import SPACES, differences, records_of
from sacref.spec.arrays import ArrayT
from sacref.storage import checkpoint, replay_log
from sacref.storage.naming import require_same_arrays
from sacref.storage.replay_log import ReplayLog

logger = logging.getLogger(__name__)

LIVE = ("live", "environment")
"""Groups of a checkpoint that are of what a run was in the middle of: see `Agent.live_state`."""
REPLAY = "replay"
"""Directory of a replay log, beside the checkpoints that it belongs to."""
MOST_RANKS = 2**20
"""That a checkpoint may say have written it."""
LEARNING = re.compile(r"((target_)?critic_\d+|(policy|critic|temperature)_optimizer)\.")
"""How the names of arrays begin that learning alone reads: of the critics, and of what the optimizers hold."""
LARGEST_STREAMS = 2**20
"""Bytes of random streams' states that are read."""


class Saved(Live[ArrayT]):
    """The checkpoints of an agent, and the pace of its learning, which they hold."""

    def __init__(self) -> None:
        super().__init__()
        self._pace = Pace()
        self._newest_checkpoint: Path | None = None
        self._good_checkpoint = None

    # What a backend provides.

    backend: str
    """The backend's name, which a checkpoint remembers."""

    @property
    @abstractmethod
    def _layouts(self) -> dict[str, str]:
        """Model -> "common", or the backend whose own layout its parameters have."""

    # Checkpoints.

    def write_checkpoint(self, *, timestep: int, timesteps: int) -> None:
        """Save to `<experiment>/checkpoints/agent_<timestep>`. Only the newest checkpoint of a run keeps its replay memory.

        Of several ranks all make this call, at the same timestep.
        """
        path = self.experiment_dir / "checkpoints" / f"agent_{timestep}"
        self.save(path)
        previous, self._newest_checkpoint = self._newest_checkpoint, path
        if previous is not None and previous != path:
            part = rank_part(previous, self.ranks.rank)
            if part.is_dir():
                checkpoint.drop_group(part, "memory")

    def save(
        self,
        path: str | Path,
        *,
        replay: ReplayLog | None = None,
        keep_memory: bool = True,
        live: tuple[Mapping[str, Mapping[str, NDArray[Any]]], Mapping[str, Any]] | None = None,
    ) -> None:
        """Write the whole agent to a checkpoint directory: safetensors for arrays, JSON for the rest, nothing that runs code.

        Parameters, optimizer moments, log alpha, step counters, random streams, and the replay memory where there is one.

        Args:
            path: the directory.
            replay: a log, in the directory beside `path`, that takes the memory's new rows in the place of a copy of all of it.
            keep_memory: whether the replay memory is written.
            live: groups of arrays, and metadata, of what the agent is in the middle of: see `live_state`.

        Of several ranks all make this call. Each writes its own part, its streams and its memory: rank 1 to `<path>.rank_1`, and so on;
        rank 0 writes `path` last, so that a checkpoint that is there is whole.

        Raises:
            NumericalError: if anything that was learned is NaN or infinite. Nothing is written then.
        """
        path = Path(path).expanduser()
        groups: dict[str, dict[str, NDArray[Any]]] = defaultdict(dict)
        learned = self._learned_arrays()
        self._require_finite(learned)  # equal on all ranks, and so is what they decide
        for name, array in {**learned, **self._constant_arrays()}.items() if self.ranks.rank == 0 else ():
            groups[name.split(".")[0] if self.cfg.experiment.store_separately else "agent"][name] = array
        groups["streams"] = self._streams()
        remembers = self.memory is not None and keep_memory
        entry, added = replay.append(self.memory) if remembers and replay is not None else (None, 0)
        if remembers and replay is None:
            groups["memory"] = self.memory.arrays(copy=False)
        metadata = {
            "algorithm": type(self).__name__,
            "backend": self.backend,
            "sacref": sacref.__version__,
            "layouts": self._layouts,
            "spaces": records_of(self),
            "memory_capacity": None if self.memory is None else self.memory.capacity,
            **self._pace.metadata(),
        }
        if entry is not None:
            metadata["replay"] = entry
        if live is not None:
            groups |= {name: dict(arrays) for name, arrays in live[0].items()}
            metadata |= live[1]
        self._write_parts(path, groups, metadata)
        if replay is not None and entry is not None:
            replay.commit(entry, added)
        if keep_memory or self._good_checkpoint is None:
            self._good_checkpoint = path

    def _write_parts(self, path: str | Path, groups: Mapping[str, Any], metadata: dict[str, Any]) -> None:
        if self.ranks.size == 1:
            checkpoint.write(path, groups, metadata)
            return
        # The parts of one writing know each other, should a later one be killed between them.
        metadata |= {"ranks": self.ranks.size, "writing": self.ranks.gather(secrets.token_hex(8))[0]}
        if self.ranks.rank > 0:
            checkpoint.write(rank_part(path, self.ranks.rank), groups, metadata)
        self.ranks.wait()
        if self.ranks.rank == 0:
            checkpoint.write(path, groups, metadata)
        self.ranks.wait()

    def load(self, path: str | Path) -> None:
        """Restore what `save` wrote. A memory that the checkpoint does not hold stays as it is.

        A checkpoint of the other backend gives its weights, moments, temperature and memory; the random streams begin anew from (seed,
        rank, the gradient steps so far), and the log says so.

        An agent without a memory only acts, and asks for what acting reads: the policy and the preprocessors. Of critics and optimizers it
        takes what both have, and keeps its own of what the checkpoint does not have. Without a state_space it leaves out what is of states.

        As many ranks as wrote it go on exactly. Of another number, rank r takes the memory of the old rank r modulo their number, random
        streams begin anew from (seed, rank, the gradient steps so far), and a warning says so.

        Raises:
            checkpoint.CheckpointError: if the directory is not a whole and sound checkpoint of an agent of this shape. The agent
                is then as it was before.
        """
        path = Path(path).expanduser()
        before, streams_before = self.arrays(), self._streams()
        read, written_by = self._read_parts(path, partial(self._refuse_others, path, before), partial(self._wants, before))
        metadata = read.metadata
        pace = read_pace(path, metadata, self.cfg, self._num_envs)
        groups = dict(read.groups)
        streams, memory = groups.pop("streams", {}), groups.pop("memory", None)
        streams_key = self._streams_key
        try:
            self._put_arrays(self._completed(groups, before))
            if written_by != self.ranks.size:
                self._streams_key = (written_by, self.ranks.size, self.gradient_step_count)
                self._begin_streams()
            elif metadata.get("backend") != self.backend:
                self._streams_key = (self.gradient_step_count,)
                self._begin_streams()
                logger.warning(
                    "%s was written by %s: the random streams begin anew, from the seed, the rank and the %d gradient steps so far",
                    path,
                    checkpoint.short.repr(metadata.get("backend")).strip("'"),
                    self.gradient_step_count,
                )
            elif {name: state.shape for name, state in streams.items()} != {name: state.shape for name, state in streams_before.items()}:
                # A GPU's generator has another state than a CPU's.
                logger.info("%s was written on another kind of device: the random streams stay as they are", path)
            else:
                require_same_arrays(streams, streams_before)
                self._set_streams(streams)
            if memory is not None and self.memory is not None:
                self.memory.set_arrays(memory)
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            self._put_arrays(before)
            self._set_streams(streams_before)
            self._streams_key = streams_key
            raise checkpoint.CheckpointError(f"{path} does not fit this agent: {checkpoint.one_line(error)}") from error
        self._forget_former()
        self._good_checkpoint = path
        self._pace = pace
        for training in self._watches:
            self._begin(training)  # the next row does not continue the rows of before, nor those that the memory holds now
        if written_by != self.ranks.size and self.ranks.rank == 0:
            logger.warning("%s", self._other_ranks(path, written_by))

    def _refuse_others(self, path: Path, own: Mapping[str, NDArray[Any]], found: checkpoint.Checkpoint) -> None:
        """Refuse a checkpoint of another agent while only its names, types and shapes are known, as its arrays may have any size."""
        metadata = found.metadata
        if metadata.get("algorithm") != type(self).__name__:
            said = checkpoint.short.repr(metadata.get("algorithm"))
            raise checkpoint.CheckpointError(f"{path} holds {said}, expected {type(self).__name__!r}")
        layouts = metadata.get("layouts")
        if self.memory is None and isinstance(layouts, dict):
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
        own = records_of(self)
        try:
            # Without a state_space, who only acts leaves states to the critics.
            names = [name for name in SPACES if not (self.memory is None and own[name] is None)]
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

    def _wants(self, own: Mapping[str, NDArray[Any]], group: str, name: str) -> bool:
        """Whether an array of a checkpoint is read."""
        if self.memory is not None or group == "streams" or name in own:
            return True
        return not (LEARNING.match(name) or (self.state_space is None and name.startswith("preprocessor.states")))

    def _completed(self, groups: Mapping[str, Mapping[str, NDArray[Any]]], own: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The learned arrays of a checkpoint; for an agent that only acts, with its own of the critics and of what optimizers hold that
        the checkpoint does not have. Of a critic that it has, it must have all."""
        found = {name: array for group in groups.values() for name, array in group.items()}
        if self.memory is not None:
            return found
        models = {name.partition(".")[0] for name in found if "_optimizer." not in name}
        return {name: array for name, array in own.items() if LEARNING.match(name) and name.partition(".")[0] not in models} | found

    def _refuse_large(self, groups: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
        """Refuse streams and a memory that need more room than this agent's."""
        most = {"streams": max(LARGEST_STREAMS, 2 * _bytes(self._streams()))}
        if self.memory is not None:
            rows = self.memory.rows(np.zeros(1, np.int64))
            most["memory"] = self.memory.slots * self.memory.num_envs * _bytes(rows) + 16 * self.memory.num_envs
        for group, room in most.items():
            if (needed := _bytes(groups.get(group, {}))) > room:
                raise ValueError(f"{group} has {needed} bytes, expected at most {room}: use the capacity and types it was saved with")

    def _read_parts(
        self, path: Path, check: Callable[[checkpoint.Checkpoint], None], wanted: Callable[[str, str], bool]
    ) -> tuple[checkpoint.Checkpoint, int]:
        """A checkpoint with the streams and the memory that are for this rank, and how many ranks wrote it."""
        others = ("streams", "memory") if self.ranks.rank > 0 else () if self.memory is not None else ("memory",)
        read = checkpoint.read(path, without=(*LIVE, *others), check=check, wanted=wanted)
        written_by = read.metadata.get("ranks", 1)
        if type(written_by) is not int or not 1 <= written_by <= MOST_RANKS:
            said = checkpoint.short.repr(written_by)
            raise checkpoint.CheckpointError(f"{path} says {said} ranks wrote it, expected an integer of at least 1")
        if self.memory is None:
            return read, self.ranks.size  # it only acts: the streams and memories of others are nothing to it
        own = self.ranks.rank % written_by
        entry = read.metadata.get("replay")
        if self.ranks.rank > 0:
            part = checkpoint.read(rank_part(path, own), only=("streams", "memory"), check=lambda found: self._refuse_large(found.groups))
            entry = part.metadata.get("replay")
            if part.metadata.get("writing") != read.metadata.get("writing"):
                raise checkpoint.CheckpointError(f"{rank_part(path, own)} is no part of {path}: use another checkpoint")
            read = checkpoint.Checkpoint({**read.groups, **_own(part.groups)}, read.metadata)
        if isinstance(entry, dict):
            read.groups["memory"] = replay_log.read(rank_part(path.parent / REPLAY, own), entry, self.memory)
        return read, written_by

    def _other_ranks(self, path: Path, before: int) -> str:
        """What changes when another number of ranks goes on."""
        now = self.ranks.size
        if now > before:
            memories = f"ranks {before} to {now - 1} begin with copies of the memories of the first ones"
        else:
            memories = f"the memories of ranks {now} to {before - 1} are left out"
        return (
            f"{path} was written by {before} ranks, and {now} go on: {memories}, environments and random streams begin anew, "
            f"and a gradient step averages over {now} x {self.cfg.batch_size} rows in the place of {before} x {self.cfg.batch_size}"
        )


def _bytes(arrays: Mapping[str, NDArray[Any]]) -> int:
    return sum(array.nbytes for array in arrays.values())


def _own(groups: Mapping[str, Any]) -> dict[str, Any]:
    """Those groups of a checkpoint that are a rank's own."""
    return {name: group for name, group in groups.items() if name in ("streams", "memory")}


def rank_part(path: str | Path, rank: int) -> Path:
    """Where a rank keeps its part of a checkpoint: rank 0 in the checkpoint itself."""
    path = Path(path)
    return path if rank == 0 else path.with_name(f"{path.name}.rank_{rank}")
