"""Many agents in one process, each a whole run of its own, that learn and act in one call: `train_population`."""

import importlib
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from sacref.agent.lockstep import Lockstep
from sacref.agent.population import depart
from sacref.config import ConfigError, SACConfig
from sacref.config.train_config import TrainConfig
from sacref.training import checkpoints, experiment
from sacref.training.checkpoints import AnyAgent
from sacref.training.experiment import TrainingResult
from sacref.training.loop import interruption
from sacref.training.plan import fresh_run_directory, import_backend
from sacref.training.run_directory import RunError

VARYING = ("initial_entropy_value", "target_entropy", "discount_factor", "learning_rate")
"""Fields of the configuration in which members may differ beside the seed; on PyTorch without the last one."""


class PopulationError(RuntimeError):
    """Members that failed; the message says which, and why. The others were trained to their end, and written."""


@dataclass(frozen=True)
class PopulationResult:
    """The outcome of a population's training."""

    run_dir: Path
    """Directory with a run directory for each member, and `curve.png`, or a curve for each combination."""
    members: Mapping[str, TrainingResult]
    """Name of a member -> the outcome of its training, as `sacref.train` returns it."""


def train_population(
    *, seeds: Sequence[int], vary: Mapping[str, Sequence[object]] | None = None, run_dir: str | Path | None = None, **arguments: Any
) -> PopulationResult:
    """Train an agent for each seed, all of them together in this process, on one device.

    Each member is the run that `sacref.train` makes of its seed: its own networks, memory, environments and random streams, its own
    evaluations, checkpoints and directory, `<run_dir>/seed=<seed>`. They share the calls: the gradient steps of all are one
    call that is mapped over a leading axis of members, and so are their actions.

    Args:
        seeds: of the members.
        vary: field of the configuration (`VARYING`) -> values. There is a member for each combination of values and seeds.
        run_dir: where to write; None makes `runs/<env>-<backend>-<first seed>-<date>`.
        arguments: of `sacref.train`, but for `seed`. With `resume`, members that have a checkpoint go on from it.

    Raises:
        PopulationError: if members failed, once all have ended. BackendError: if the backend is not installed. ConfigError, ValueError,
            RunError: if an argument cannot be used. All members' configurations are judged first: where one cannot be trained, none is.
    """
    names = _members(seeds, vary or {})
    if unknown := [name for name in arguments if name not in {option.name for option in fields(TrainConfig)} - {"seed"}]:
        raise TypeError(f"train_population got {', '.join(unknown)}: expected seeds, vary, and the arguments of sacref.train but for seed")
    shared = TrainConfig(**arguments, seed=seeds[0])
    for name in ("callbacks", "log"):
        given = getattr(shared, name)
        alike = [entry for entry in given if not callable(entry) and not isinstance(entry, str)] if isinstance(given, list | tuple) else []
        if alike:
            raise TypeError(f"{name} has {alike[0]!r}, which the members would share: give its class, or a function that makes one")
    directory = Path(fresh_run_directory(shared) if run_dir is None else run_dir).expanduser().absolute()
    members = _judged(names, shared, directory)
    import_backend(shared.backend)  # here, once
    meeting = _Meeting(len(names))
    results: dict[str, TrainingResult] = {}
    failures: dict[str, BaseException] = {}
    ended = threading.Semaphore(0)

    def train(number: int, name: str, own: TrainConfig) -> None:
        try:  # all of it: for a member that ended unheard of, the others would wait
            results[name] = experiment.run(own, _Member(meeting, number, pressed))
        except BaseException as error:
            failures[name] = error
        finally:
            ended.release()
            meeting.leave(number)

    with interruption() as pressed:
        threads = [
            threading.Thread(target=train, args=(number, name, own), name=name) for number, (name, own) in enumerate(members.items())
        ]
        started = []
        try:
            for thread in threads:
                thread.start()
                started.append(thread)
            # Not in `join`, which takes a thread for ended where Ctrl-C interrupts it (Python 3.11 and 3.12).
            for _ in threads:
                while not ended.acquire(timeout=0.2):  # so that this thread hears of Ctrl-C
                    pass
            for thread in threads:
                thread.join()
        except BaseException as error:  # a second Ctrl-C; or no more threads are to be had
            meeting.end(error)
            for thread in started:
                thread.join()
            raise
    for combination, seeds_of in itertools.groupby(names, lambda name: name.rpartition("seed=")[0].rstrip(",")):
        drawn = [directory / name for name in seeds_of if name in results and results[name].evaluations]
        if drawn:
            from sacref.training.plots import plot_runs

            plot_runs(drawn, output=directory / f"{combination or 'curve'}.png")
    if failures:
        failures = {name: failures[name] for name in names if name in failures}  # they came as their threads ended
        if len(failures) == len(names) and len({str(error) for error in failures.values()}) == 1:
            raise next(iter(failures.values()))  # an argument that suits none
        said = "\n".join(f"  {name}: {type(error).__name__}: {error}" for name, error in failures.items())
        others = "the others were trained" if len(failures) < len(names) else "none was trained"
        raise PopulationError(f"{len(failures)} of {len(names)} members failed, {others}:\n{said}")
    return PopulationResult(directory, {name: results[name] for name in names})


def parse_seeds(text: str) -> list[int]:
    """Read seeds from `0:10` (without the last) or `0,3,5`.

    Raises:
        ValueError: if it says none.
    """
    first, colon, last = text.partition(":")
    try:
        seeds = list(range(int(first), int(last))) if colon else [int(word) for word in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds are {text!r}, expected non-negative integers as 0:10 or 0,3,5, none of them twice: change them")
    return seeds


def _members(seeds: Sequence[int], vary: Mapping[str, Sequence[object]]) -> dict[str, tuple[int, dict[str, object]]]:
    """Map the name of each member to its seed and its fields of the configuration."""
    unknown = [name for name in vary if name not in VARYING]
    if unknown:
        raise ValueError(f"vary has {', '.join(unknown)}: members may differ in {', '.join(VARYING)}; for others start a sweep")
    for name, several in {"seeds": seeds, **vary}.items():
        if not isinstance(several, Sequence | np.ndarray) or isinstance(several, str):
            raise TypeError(f"{name} is {several!r}, expected several values: a list, or a range")
    members = {}
    for values in itertools.product(*vary.values()):
        varied = dict(zip(vary, values, strict=True))
        for seed in seeds:
            members[",".join(f"{name}={value}" for name, value in {**varied, "seed": seed}.items())] = (seed, varied)
    count = len(seeds)
    for values_of in vary.values():
        count *= len(values_of)
    if count == 0 or len(members) < count:
        raise ValueError(f"seeds are {list(seeds)} and vary is {dict(vary)}: expected at least one of each, and none twice")
    return members


def _judged(names: Mapping[str, tuple[int, Mapping[str, object]]], shared: TrainConfig, directory: Path) -> dict[str, TrainConfig]:
    """Map the name of each member to the options of its run, all of which can be trained as far as they alone say.

    Raises:
        ConfigError: naming the members that cannot, and why. ValueError: if what suits none is said by an argument of all.
    """
    if shared.backend == "torch" and len(rates := {str(varied.get("learning_rate")) for _, varied in names.values()}) > 1:
        raise ValueError(f"vary has learning_rate {', '.join(sorted(rates))}: on PyTorch members share it, on JAX it may differ")
    judged, refusals = {}, {}
    for number, (name, (seed, varied)) in enumerate(names.items()):
        own = replace(shared, seed=seed, run_dir=directory / name, progress=shared.progress and number == 0)
        if shared.resume and not checkpoints.finished_checkpoints(directory / name):
            own = replace(own, resume=False, overwrite=True)
        try:
            judged[name] = replace(own, cfg=_with_fields(shared.cfg, varied)).checked()
        except (TypeError, ValueError) as error:
            refusals[name] = error
    if len(refusals) == len(names) and len({str(error) for error in refusals.values()}) == 1:
        raise next(iter(refusals.values()))  # an argument that suits none
    if refusals:
        said = "\n".join(f"  {name}: {error}" for name, error in refusals.items())
        raise ConfigError(f"{len(refusals)} of {len(names)} members cannot be trained, and none was:\n{said}")
    return judged


def _with_fields(cfg: SACConfig | Mapping[str, object] | None, varied: Mapping[str, object]) -> SACConfig | Mapping[str, object] | None:
    if not varied:
        return cfg
    return SACConfig.from_dict({**cfg.to_dict(), **varied}) if isinstance(cfg, SACConfig) else {**(cfg or {}), **varied}


class _Meeting:
    """Meeting of the members: once to begin together, and then at each call."""

    def __init__(self, members: int) -> None:
        self._coming = set(range(members))
        self._agents: dict[int, AnyAgent] = {}
        self._lockstep: Lockstep[Any, Any] | None = None
        self._failure: BaseException | None = None
        self._condition = threading.Condition()

    def join(self, number: int, agent: AnyAgent) -> None:
        """Wait for the agents of all members that have not failed by now, and learn and act with them from here on."""
        with self._condition:
            self._coming.discard(number)
            self._agents[number] = agent
            if self._failure is None:
                self._begin_if_all_came()
            while self._lockstep is None and self._failure is None:
                self._condition.wait()
        if self._failure is not None:
            raise self._failure

    def leave(self, number: int) -> None:
        """Let the others no longer wait for a member."""
        with self._condition:
            self._coming.discard(number)
            if number not in self._agents:
                self._begin_if_all_came()
            elif self._lockstep is not None:
                self._lockstep.leave(sorted(self._agents).index(number))

    def end(self, error: BaseException) -> None:
        """Raise `error` where any member waits, or comes to."""
        with self._condition:
            self._failure = error
            if self._lockstep is not None:
                self._lockstep.end(error)
            self._condition.notify_all()

    def _begin_if_all_came(self) -> None:
        if self._coming or not self._agents:
            return
        agents = [self._agents[number] for number in sorted(self._agents)]
        try:
            _require_alike(agents)
            self._lockstep = importlib.import_module(f"sacref.{agents[0].backend}.population").populate(agents)
        except BaseException as error:
            self._failure = error
        self._condition.notify_all()


class _Member:
    """What a member takes from its run; `Membership` of sacref.training.experiment."""

    def __init__(self, meeting: _Meeting, number: int, interrupted: Callable[[], bool]) -> None:
        self._meeting, self._number, self.interrupted = meeting, number, interrupted
        self.first = number == 0

    def on_ready(self, agent: AnyAgent) -> None:
        if agent.ranks.size > 1:
            raise RunError("a population trains in one process: leave out ranks, or seeds")
        agent.enable_training_mode(True, apply_to_models=True)  # while its functions can still be compiled again
        self._meeting.join(self._number, agent)

    def on_end(self, agent: AnyAgent) -> None:
        depart(agent)
        self._meeting.leave(self._number)


def _require_alike(agents: Sequence[AnyAgent]) -> None:
    """Refuse agents that one call cannot stand for: runs that are resumed each have a configuration of their own."""
    settings = [agent.cfg.to_dict() for agent in agents]
    own = {*VARYING, "seed", "experiment"}
    for name, value in settings[0].items():
        values = [each[name] for each in settings]
        if name not in own and any(other != value for other in values):
            raise RunError(f"the members' {name} are {values}: they may differ in {', '.join(VARYING)}, train the others one by one")
