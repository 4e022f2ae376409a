"""The directory of a run: its configuration, its evaluations, and the checkpoint from which it is resumed."""

import difflib
import hashlib
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sacref.config import CALLABLES, CallableError, SACConfig
from sacref.config.callables import has_no_name
from sacref.config.train_config import CHANGEABLE
from sacref.envs.interface import Space
from sacref.envs.space_records import read_space
from sacref.ranks import Ranks
from sacref.storage import checkpoint
from sacref.storage.metric_files import CSV_FILE, EVENTS, METRICS_FILE
from sacref.training import checkpoints
from sacref.training.evaluation import LARGEST_RETURN, Evaluation

CONFIG = "config.json"
NO_SETTING = (
    *("seed", "cfg.seed", "cfg.experiment.", "steps_offset"),
    *("beside_preset", "update_to_data", "observation_space", "state_space", "action_space"),
)
"""Beginnings of the entries of `config.json` that are no setting, or that follow from others."""
RUN_FILES = (CONFIG, "evaluation.json", METRICS_FILE, CSV_FILE, "curve.png")
"""Files that a run writes into its directory, beside `checkpoints/agent_*` and TensorBoard's `events.out.tfevents.*`."""

MOST_STEPS = 2**53

T = TypeVar("T")

logger: logging.Logger = logging.getLogger(__name__)


class RunError(ValueError):
    """A run directory that cannot be used as asked; the message says why, and the fix."""


@dataclass
class Resumed:
    """The checkpoint from which a run is resumed."""

    config: dict[str, Any]
    checkpoint: Path
    timestep: int
    steps: int
    """Environment steps, of all ranks together."""
    ranks: int
    """Number of ranks that wrote the checkpoint."""


def prepare(ranks: Ranks, directory: Path, *, overwrite: bool, resume: bool) -> Resumed | None:
    """Judge the directory on rank 0, and find the checkpoint to resume from. Nothing is changed: see `begin`."""
    judges = resume or ranks.rank == 0
    config = on_every_rank(ranks, lambda: _refuse_or_read(directory, overwrite=overwrite, resume=resume) if judges else None)
    return None if config is None else _newest_whole(ranks, directory, config)


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold a run's directory, which is there, against other runs; the system lets go of it at the latest when the process ends.

    Raises:
        RunError: if another run holds it.
    """
    if sys.platform == "win32":
        yield  # which locks no directories
        return
    import fcntl

    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"run_dir {directory} is in use by a run that goes on: wait for it, end it, or choose another") from error
        except OSError as error:  # a file system without locks
            logger.info("%s cannot be held against other runs: %s", directory, error)
        yield
    finally:
        os.close(descriptor)


def begin(
    ranks: Ranks, directory: Path, config: Mapping[str, object], resumed: Resumed | None, *, overwrite: bool
) -> list[tuple[int, Evaluation]]:
    """Take the directory for a run that has recorded its first step: clear it, or drop what comes again, and write `config.json`.

    Returns:
        The evaluations of the resumed run that stay; rank 0 alone has them.

    Raises:
        RunError: if another run has begun there since `prepare`; then nothing was changed.
    """

    def take() -> list[tuple[int, Evaluation]]:
        if resumed is None:
            _refuse_or_read(directory, overwrite=overwrite, resume=False)
            _clear(directory)
            evaluations = []
        else:  # delete what the run wrote after the checkpoint: those steps come again
            evaluations = [entry for entry in read_evaluations(directory / "evaluation.json") if entry[0] <= resumed.steps]
            files = checkpoint.read(resumed.checkpoint, only=()).metadata.get("files")
            checkpoints.drop_after(directory, resumed.timestep, resumed.steps, files if isinstance(files, dict) else {})
        directory.mkdir(parents=True, exist_ok=True)
        checkpoint.write_json(directory / CONFIG, config)
        return evaluations

    ranks.wait()  # what all of them read, rank 0 changes
    return on_every_rank(ranks, lambda: take() if ranks.rank == 0 else [])


def on_every_rank(ranks: Ranks, work: Callable[[], T]) -> T:
    """Return what the work gives on this rank; what one rank refuses, all refuse. The others wait for it.

    Raises:
        RunError: with the message of the rank that refused, on the others.
    """
    refusal: Exception | None = None
    try:
        result = work()
    except Exception as error:  # a user's environment raises anything, and the other ranks are to hear of it
        refusal = error
    messages = ranks.gather(None if refusal is None else str(refusal))
    if refusal is not None:
        raise refusal
    if said := [message for message in messages if message is not None]:
        raise RunError(said[0])
    return result


def _refuse_or_read(directory: Path, *, overwrite: bool, resume: bool) -> dict[str, Any] | None:
    """Refuse a directory that cannot be used as asked; return the configuration of the run to resume, None for a fresh run."""
    if overwrite and resume:
        raise RunError("overwrite and resume are both set: leave one of them out")
    if directory.exists() and not directory.is_dir():
        raise RunError(f"run_dir {directory} is a file, expected a directory: choose another")
    if resume:
        config = read_config(directory)
        try:
            checkpoints.require_own(directory)
        except checkpoint.CheckpointError as error:
            raise RunError(str(error)) from error
        if not checkpoints.finished_checkpoints(directory):
            raise RunError(f"{directory} holds a run without a checkpoint, so there is nothing to resume: start anew with overwrite")
        return config
    files = _files(directory)
    if (files or checkpoints.writings(directory)) and not overwrite:
        raise RunError(f"run_dir {directory} already holds a run: choose another, or pass overwrite (deletes it) or resume (goes on)")
    if (foreign := _foreign(directory, files)) is not None:
        raise RunError(
            f"{foreign}, which no run of sacref wrote, and overwrite deletes nothing else: move it away, or choose another run_dir"
        )
    return None


def _files(directory: Path) -> list[Path]:
    """Return the files of a run beside its checkpoints."""
    return [*(directory / name for name in RUN_FILES if (directory / name).exists()), *sorted(directory.glob(EVENTS))]


def _foreign(directory: Path, files: list[Path]) -> str | None:
    """Return what has the name of a run's file or checkpoint, and is none; None where there is nothing of the kind."""
    written = checkpoints.writings(directory)
    for path in written:
        if (name := checkpoint.foreign(path)) is not None:
            return f"{path} holds {name!r}"
    try:
        config = checkpoint.read_json(directory / CONFIG) if directory / CONFIG in files else None
        is_a_runs = isinstance(config, dict) and {"sacref", "backend", "cfg"} <= config.keys()
    except checkpoint.CheckpointError:
        config, is_a_runs = "damaged", False
    if config is not None and not isinstance(config, str) and not is_a_runs:
        return f"{directory} holds {CONFIG!r}"
    # Without a configuration, a checkpoint says whose the other files are.
    if files and not is_a_runs and not any((path / checkpoint.MANIFEST).is_file() for path in written):
        return f"{directory} holds {files[0].name!r}"
    return None


def _clear(directory: Path) -> None:
    """Delete the run in the directory, but for `config.json`: while there is anything left of it, that says whose it is."""
    for path in _files(directory):
        if path.name != CONFIG:
            path.unlink()
    checkpoints.clear(directory)


def _newest_whole(ranks: Ranks, directory: Path, config: dict[str, Any]) -> Resumed:
    """Return the newest checkpoint that is whole on all ranks."""
    try:
        timestep = checkpoints.newest_whole(ranks, directory)
    except checkpoint.CheckpointError as error:
        if any(map(_lacks_memory_alone, checkpoints.finished_checkpoints(directory).values())):
            raise RunError(
                f"{error}: the weights are whole (sacref.load, sacref eval), the replay memory is lost: restore the segment from a copy, "
                f"or start anew with overwrite"
            ) from error
        raise RunError(f"{error}: start anew with overwrite") from error
    try:
        checkpoints.require_free_after(directory, timestep)
    except checkpoint.CheckpointError as error:
        raise RunError(str(error)) from error
    path = checkpoints.finished_checkpoints(directory)[timestep]
    if not checkpoints.holds_memory(path):
        raise RunError(f"{path} holds no replay memory, so it cannot be resumed: start anew with overwrite")
    with reading_config_of(directory):
        numbers = [config["num_envs"], config.get("ranks", 1), config.get("steps_offset", 0)]
        if any(type(number) is not int or abs(number) > MOST_STEPS for number in [*numbers, timestep]):
            raise TypeError(f"num_envs, ranks and steps_offset are {numbers}, expected integers")
        steps = timestep * numbers[0] * numbers[1] + numbers[2]
    written = checkpoint.read(path, only=()).metadata
    # The configuration is of the newest checkpoint, which another number of ranks may have written.
    if type(own := written.get("steps")) is int and abs(own) <= MOST_STEPS:
        steps = own
    return Resumed(config, path, timestep, steps, written.get("ranks", 1))


def _lacks_memory_alone(path: Path) -> bool:
    """Tell whether a checkpoint that is not sound is whole itself, so that the segments of its replay memory are what is damaged."""
    try:
        checkpoint.verify(path)
    except checkpoint.CheckpointError:
        return False
    return checkpoints.holds_memory(path)


@contextmanager
def reading_config_of(directory: Path) -> Iterator[None]:
    """Say that a run's configuration is damaged, where using it raises an error."""
    try:
        yield
    except RunError:
        raise
    except CallableError as error:
        raise RunError(f"{directory / 'config.json'}: {checkpoint.one_line(error)}") from error
    except (KeyError, TypeError, ValueError, AttributeError, AssertionError, ArithmeticError, RuntimeError) as error:
        said = f"{type(error).__name__}: {checkpoint.one_line(error)}"
        raise RunError(f"{directory / CONFIG} is damaged ({said}): restore it, or train again") from error


def read_config(run_dir: str | Path) -> dict[str, Any]:
    """Read a run's `config.json`.

    Raises:
        RunError: if there is none, or it is no JSON object.
    """
    path = Path(run_dir).expanduser() / CONFIG
    if not path.is_file():
        below = [run.name for run in runs_in(path.parent) if run != path.parent]
        fix = f". It is a folder of runs, {', '.join(below[:3])}{', ...' * (len(below) > 3)}: name one of them" if below else ""
        raise RunError(f"{path.parent} holds no run: expected {path.name} in it, as `sacref train --run-dir` writes it{fix}")
    try:
        config = checkpoint.read_json(path)
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}): restore it, or train again") from error
    if not isinstance(config, dict):
        raise RunError(f"{path} holds a {type(config).__name__}, expected an object: restore it, or train again")
    return config


def runs_in(directory: Path) -> list[Path]:
    """List the run directories of a folder of runs, as a population's or a sweep's; any other directory is listed itself."""
    below = [] if (directory / CONFIG).exists() else sorted(path.parent for path in directory.glob(f"*/{CONFIG}"))
    return below or [directory]


def named_callables(config: Mapping[str, object]) -> dict[str, str]:
    """Map options to the text of each callable in the content of `config.json`."""
    cfg = config.get("cfg")
    fields = {f"cfg.{name}": cfg.get(name) for name in CALLABLES} if isinstance(cfg, Mapping) else {}
    env = "env" if config.get("vector_env") is None else "vector_env"
    given = {env: config.get(env), "wrappers": config.get("wrappers"), **fields}
    lists = {name: value if isinstance(value, list) else [value] for name, value in given.items()}
    return {
        name if values is not given[name] else f"{name}.{number}": text
        for name, values in lists.items()
        for number, text in enumerate(values)
        if isinstance(text, str)
    }


def require_same(directory: Path, resumed: Resumed, config: Mapping[str, Any]) -> None:
    """Refuse to resume a run with other settings than its own."""
    free = {*CHANGEABLE, "sacref", "versions", "ranks", "steps_offset", "beside_preset", "update_to_data"}
    for values in (resumed.config, config):
        for option, text in named_callables(values).items():
            if (reason := has_no_name(text)) is not None:
                raise RunError(f"{directory} cannot be resumed: {option} is {checkpoint.short.repr(text)[1:-1]}, which {reason}")
    # Through JSON, as the stored one went: a tuple is a list there. Fields that are newer than the run had their defaults in it.
    newer = {name: value for name, value in SACConfig().to_dict().items() if name not in resumed.config["cfg"]}
    models = {"network": "mlp", "critic_hidden": None, **resumed.config["models"]}
    wanted = flat(json.loads(json.dumps(config)))
    stored = flat({"vector_env": None, **resumed.config, "models": models, "cfg": {**resumed.config["cfg"], **newer}})
    changed = [
        f"  {checkpoint.short.repr(key)[1:-1]}: the run has {_said(stored.get(key, 'none'))}, asked is {_said(wanted.get(key, 'none'))}"
        for key in sorted(wanted.keys() | stored.keys())
        if key.split(".")[0] not in free and not key.startswith("cfg.experiment.") and wanted.get(key) != stored.get(key)
    ]
    if changed:
        raise RunError(
            f"{directory} cannot be resumed with other settings than its own:\n" + "\n".join(changed[:20]) + "\n"
            "pass the run's own (cfg=None takes its configuration), or choose another run_dir"
        )
    together = config["num_envs"] * config["ranks"]
    if math.ceil((config["steps"] - resumed.steps) / together) < 0:
        raise RunError(
            f"{directory} has {resumed.steps} steps already, asked are {config['steps']}: ask for at least as many, or load the run instead"
        )


def _said(value: object) -> str:
    """Write a value as Python does, at most a line of it."""
    text = repr(value)
    return text if len(text) < 500 else f"{text[:500]}..."


def flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Map each entry of nested mappings by its path, as "cfg.batch_size", to its value."""
    entries: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            entries |= flat(value, f"{prefix}{key}.")
        else:
            entries[f"{prefix}{key}"] = value
    return entries


def differing(settings: Sequence[Mapping[str, object]]) -> list[str]:
    """List the entries of flat configurations that are not the same in all, but for what is no setting."""
    names = dict.fromkeys(name for each in settings for name in each if not name.startswith(NO_SETTING))
    return [name for name in names if len({repr(each.get(name)) for each in settings}) > 1]


def told(settings: Mapping[str, object], differences: Sequence[str]) -> list[str]:
    """Tell the settings of a flat configuration that differ from others', but for those that a resumed run may change.

    Other values are other texts: a long one is shortened, and has a digest of the whole.
    """
    telling = [name for name in differences if name.split(".")[0] not in CHANGEABLE | {"env", "sacref", "versions"}]
    texts = []
    for name in telling:
        whole, text = repr(settings.get(name)), checkpoint.short.repr(settings.get(name))
        digest = "" if text == whole else f" (#{hashlib.sha256(whole.encode()).hexdigest()[:6]})"
        texts.append(f"{name.removeprefix('cfg.')} {text}{digest}")
    return texts


def find_checkpoints(directory: Path, name: str | Path | None) -> list[Path]:
    """Find the checkpoint of that name; all, the newest first, for None."""
    found = checkpoints.finished_checkpoints(directory)
    if name is None:
        if not found:
            raise RunError(f"{directory} holds no checkpoint yet: train longer, or with a shorter checkpoint_interval")
        return list(found.values())[::-1]
    for path in (checkpoints.checkpoints_of(directory) / name, Path(name).expanduser()):
        if path.is_dir():
            return [path.absolute()]
    names = [path.name for path in found.values()]
    names += [checkpoints.BEST] if (checkpoints.checkpoints_of(directory) / checkpoints.BEST).is_dir() else []
    near = difflib.get_close_matches(str(name), names, n=1)
    raise RunError(
        f"checkpoint {str(name)!r} is neither in {checkpoints.checkpoints_of(directory)} (there: {', '.join(names) or 'none'}) nor a "
        f"directory: {f'did you mean {near[0]!r}?' if near else 'name one of those'}"
    )


def read_evaluations(path: Path) -> list[tuple[int, Evaluation]]:
    """Read `evaluation.json`: environment steps and evaluations, in order; none where there is no file.

    Raises:
        RunError: if it is damaged.
    """
    try:
        entries = checkpoint.read_json(path) if path.is_file() else []
        found = [
            (
                entry["step"],
                Evaluation(tuple(map(float, entry["returns"])), (), tuple(entry.get("diverged_seeds", ())), entry.get("truncated", 0)),
            )
            for entry in entries
        ]
        for step, evaluation in found:
            if type(step) is not int or not evaluation.returns or max(map(abs, evaluation.returns)) > LARGEST_RETURN:
                raise TypeError(f"step is {step} and returns are {evaluation.returns}, expected an integer, and numbers that can be drawn")
            if any(type(number) is not int for number in (*evaluation.diverged, evaluation.truncated)):
                raise TypeError(f"diverged_seeds are {evaluation.diverged} and truncated is {evaluation.truncated}, expected integers")
        return found
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        said = f"{type(error).__name__}: {checkpoint.one_line(error)}"
        raise RunError(f"{path} is damaged ({said}): restore it, or move it away") from error


def states_space(config: Mapping[str, Any]) -> Space | None:
    """Return the space of the privileged states of a run's environments, from its configuration; None for none."""
    stored = config["state_space"]
    return None if stored is None else read_space(stored)
