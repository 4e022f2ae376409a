"""Many agents in one process, each a whole run of its own, that learn and act in one call: `train_population`."""

import contextlib
import importlib
import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from gymnasium.vector import AutoresetMode

from sacref.agent.members import Mask
from sacref.agent.population import Population
from sacref.algorithm.tree import Tree, map_leaves
from sacref.config import ConfigError, SACConfig
from sacref.config.train_config import TrainConfig, require_options
from sacref.envs.divergence import DivergenceError, DivergenceGuard, Divergences
from sacref.envs.joined import JoinedEnvs
from sacref.envs.vector import closing
from sacref.training import checkpoints, loop
from sacref.training.experiment import Run, TrainingResult
from sacref.training.loop import interruption
from sacref.training.plan import fresh_run_directory, import_backend
from sacref.training.rollout import Rollout, Step
from sacref.training.run_directory import RunError, read_config, reading_config_of

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
        PopulationError: if members failed, once all have ended. BackendError: if the backend is not installed. ConfigError, TypeError,
            ValueError, RunError: if an argument cannot be used. All members' configurations are judged first: where one cannot be
            trained, none is.
    """
    names = _members(seeds, vary or {})
    if "seed" in arguments:
        raise TypeError("train_population got 'seed', expected one for each member: did you mean seeds=...?")
    require_options("train_population", arguments)
    shared = TrainConfig(**arguments, seed=seeds[0])
    for name in ("callbacks", "log"):
        given = getattr(shared, name)
        alike = [entry for entry in given if not callable(entry) and not isinstance(entry, str)] if isinstance(given, list | tuple) else []
        if alike:
            raise TypeError(f"{name} has {alike[0]!r}, which the members would share: give its class, or a function that makes one")
    if shared.vector_env is not None:
        raise ValueError(
            "vector_env makes the environments of one agent, expected none for a population, whose members step theirs together: "
            "give env, or train the members one by one, in a sweep"
        )
    directory = Path(fresh_run_directory(shared) if run_dir is None else run_dir).expanduser().absolute()
    members = _judged(names, shared, directory)
    import_backend(shared.backend)  # here, once
    results, failures = _Runs(members).train()
    for combination, seeds_of in itertools.groupby(names, lambda name: name.rpartition("seed=")[0].rstrip(",")):
        drawn = [directory / name for name in seeds_of if name in results and results[name].evaluations]
        if drawn:
            from sacref.training.plots import plot_runs

            plot_runs(drawn, output=directory / f"{combination or 'curve'}.png")
    if failures:
        failures = {name: failures[name] for name in names if name in failures}  # as they are named, not as they came
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
    stored = _stored(directory, names) if shared.resume and shared.cfg is None else {}
    judged, refusals = {}, {}
    for number, (name, (seed, varied)) in enumerate(names.items()):
        own = replace(shared, seed=seed, run_dir=directory / name, progress=shared.progress and number == 0)
        if shared.resume and not checkpoints.finished_checkpoints(directory / name):
            own = replace(own, resume=False, overwrite=True)
        # A member without a run is added with the settings of the first one that has one.
        cfg = stored.get(name, next(iter(stored.values()))) if stored else shared.cfg
        try:
            judged[name] = replace(own, cfg=_with_fields(cfg, varied)).checked()
        except (TypeError, ValueError) as error:
            refusals[name] = error
    if len(refusals) == len(names) and len({str(error) for error in refusals.values()}) == 1:
        raise next(iter(refusals.values()))  # an argument that suits none
    if refusals:
        said = "\n".join(f"  {name}: {error}" for name, error in refusals.items())
        raise ConfigError(f"{len(refusals)} of {len(names)} members cannot be trained, and none was:\n{said}")
    return judged


def _stored(directory: Path, names: Iterable[str]) -> dict[str, Mapping[str, object]]:
    """Read the configuration of each member that has a checkpoint, without the place that its run is written to."""
    found: dict[str, Mapping[str, object]] = {}
    for name in names:
        if checkpoints.finished_checkpoints(directory / name):
            with reading_config_of(directory / name):
                cfg = read_config(directory / name)["cfg"]
                found[name] = {**cfg, "experiment": {**cfg["experiment"], "directory": "", "experiment_name": ""}}
    return found


def _with_fields(cfg: SACConfig | Mapping[str, object] | None, varied: Mapping[str, object]) -> SACConfig | Mapping[str, object] | None:
    if not varied:
        return cfg
    return SACConfig.from_dict({**cfg.to_dict(), **varied}) if isinstance(cfg, SACConfig) else {**(cfg or {}), **varied}


class _Runs:
    """The runs of all members, which are trained in one loop. What fails is a member's own: the others go on.

    Args:
        members: name -> the options of its run.
    """

    _population: Population[Any]
    _envs: JoinedEnvs

    def __init__(self, members: Mapping[str, TrainConfig]) -> None:
        self._names, self._options = list(members), list(members.values())
        self._runs: list[Run | None] = [None] * len(members)
        self._failures: dict[str, Exception] = {}
        self._results: dict[str, TrainingResult] = {}
        self._begun: dict[int, tuple[Tree, Tree | None]] = {}
        self._are_together = False

    def train(self) -> tuple[dict[str, TrainingResult], dict[str, Exception]]:
        """Train all of them; return the results, and why others failed."""
        with contextlib.ExitStack() as closed_at_end:
            self._prepare(closed_at_end)
            if any(self._runs):
                self._train(closed_at_end)
        return self._results, self._failures

    def _fail(self, number: int, error: Exception) -> None:
        self._failures.setdefault(self._names[number], error)
        self._runs[number] = None
        if self._are_together:
            self._population.fail(number, error)
            self._envs.forget(number)

    def _each(self, function: Callable[[int, Run], object], numbers: Iterable[int] | None = None) -> None:
        """Call a function of these runs, else of all; those in which it raises have failed."""
        for number in range(len(self._runs)) if numbers is None else numbers:
            run = self._runs[number]
            if run is not None:
                try:
                    function(number, run)
                except Exception as error:
                    self._fail(number, error)

    def _prepare(self, closed_at_end: contextlib.ExitStack) -> None:
        """Make environments and agents of the members that can be trained."""
        for number, options in enumerate(self._options):
            try:
                self._runs[number] = run = Run(options, closed_at_end, warns=number == 0)
                if run.ranks.size > 1:
                    raise RunError("a population trains in one process: leave out ranks, or seeds")
            except Exception as error:
                self._fail(number, error)
        made = [run for run in self._runs if run is not None]
        if not made:
            return
        _require_alike([run.plan.settings for run in made])
        capacity = max(run.plan.memory_capacity(run.entry) for run in made)
        self._memory = made[0].plan.make_memory(capacity, len(self._runs))
        self._each(lambda number, run: run.make_agent(self._memory.part(number, len(self._runs))))

        def begin(number: int, run: Run) -> None:
            rollout = loop.start_rollout(
                run.agent,
                run.made.training,
                timesteps=run.plan.timesteps,
                start=run.plan.start if run.resumption.begin is None else run.resumption.begin.timesteps,
                seed=run.plan.env_seed,
                state_space=run.made.spaces["state_space"],
                begin=run.resumption.begin,
                on_begin=run.begin,
            )
            self._begun[number] = rollout.observations, rollout.states

        self._each(begin)

    def _train(self, closed_at_end: contextlib.ExitStack) -> None:
        first = next(run for run in self._runs if run is not None)
        agents = [None if run is None else run.agent for run in self._runs]
        self._timesteps = [0 if run is None else run.plan.timesteps for run in self._runs]
        populate = importlib.import_module(f"{first.plan.backend.__name__}.population").populate
        self._population = populate(agents, self._memory, self._timesteps)
        state_space = first.made.spaces["state_space"]
        parts = [None if run is None else run.made.training for run in self._runs]
        self._envs = closed_at_end.enter_context(closing(JoinedEnvs(parts, state_space)))
        self._rollout = Rollout(cast(Any, self._population), self._envs, state_space)
        observations, states = ([self._begun.get(number, (None, None))[part] for number in range(len(self._runs))] for part in (0, 1))
        self._rollout.observations, self._rollout.states = self._envs.begin(observations, states)
        self._are_together = True
        largest = first.agent.float_limit
        self._divergences = Divergences(self._envs, largest)
        self._guards = [None if run is None else DivergenceGuard(run.made.training, None, largest) for run in self._runs]
        self._finished = np.array([0 if run is None else run.plan.start for run in self._runs])
        self._seconds, self._stopped = np.zeros(len(self._runs)), np.zeros(len(self._runs), np.bool_)
        self._disabled_autoreset = self._envs.metadata.get("autoreset_mode") == AutoresetMode.DISABLED
        with contextlib.ExitStack() as shown, interruption() as pressed:
            for run in self._runs:
                if run is not None:
                    shown.enter_context(run.bar)
            while not pressed():
                left = np.array([run is not None for run in self._runs]) & (self._finished < self._timesteps) & ~self._stopped
                if not left.any():
                    break
                # Who is behind catches up first: all are at one timestep then.
                self._timestep(int(self._finished[left].min()), left & (self._finished == self._finished[left].min()))
            interrupted = pressed()
        self._each(lambda number, run: run.take_directory() if self._finished[number] == run.plan.start else None)
        self._population.activate(np.array([run is not None for run in self._runs]))
        self._population.settle()
        self._each(lambda number, run: self._finish(number, run, interrupted))
        for number, run in enumerate(self._runs):
            if run is not None:
                self._population.depart(number)

    def _finish(self, number: int, run: Run, interrupted: bool) -> None:
        if self._finished[number] > run.plan.start:
            run.state = self._state(number)
        outcome = loop.Outcome(int(self._finished[number]), float(self._seconds[number]), interrupted or bool(self._stopped[number]))
        self._results[self._names[number]] = run.finish(outcome, plot=False)

    def _timestep(self, timestep: int, which: Mask) -> None:
        """Take a timestep of these members, `(members,)`."""
        population, envs, rollout = self._population, self._envs, self._rollout
        population.activate(which)
        envs.active = population.active
        began = time.perf_counter()
        clock = {"timestep": timestep, "timesteps": timestep + 1}
        numbers = np.flatnonzero(which).tolist()
        try:
            taken = rollout.step(**clock)
            diverged = self._look(taken, timestep)
            population.track_data("Stats / Inference time (ms)", 1000 * (taken.acted - began))
            population.track_data("Stats / Env stepping time (ms)", 1000 * (taken.stepped - taken.acted))
            rollout.record(taken, diverged, **clock)
            self._each(lambda number, run: run.take_directory() if timestep == run.plan.start else None, numbers)
            self._take_failures()
            population.post_interaction(**clock)
            again = (diverged | taken.ended if self._disabled_autoreset else diverged) & population.rows_of(population.active)
            if again.any():
                rollout.reset_some(again)
        except Exception as error:  # of all at once
            for number in numbers:
                self._fail(number, error)
        self._take_failures()
        self._finished[which] += 1
        self._seconds[which] += time.perf_counter() - began
        finished = timestep + 1
        runs = {number: run for number in numbers if (run := self._runs[number]) is not None}
        written = [number for number, run in runs.items() if run.writer.is_due(finished, self._timesteps[number])]
        evaluates = any(run.evaluates_after(finished) for run in runs.values())
        if written or evaluates or any(run.callbacks and run.callbacks.each_timestep for run in runs.values()):
            if evaluates or any(run.callbacks for run in runs.values()):  # which may evaluate, too
                population.put_back()
            population.settle()

        def between(number: int, run: Run) -> None:
            self._stopped[number] = not run.after_timestep(finished)
            if number in written:
                run.after_all(self._state(number))

        self._each(between, numbers)

    def _state(self, number: int) -> loop.LoopState:
        rows = self._envs.rows(number)
        observations, states = map_leaves(lambda leaf: leaf[rows], (self._rollout.observations, self._rollout.states))
        return loop.LoopState(int(self._finished[number]), observations, states)

    def _look(self, taken: Step, timestep: int) -> Mask:
        """Return which environments diverged in a step, `(members * envs,)`; members that do nothing else fail."""
        diverged = np.zeros(self._envs.num_envs, np.bool_)
        self._take_failures()
        found = self._divergences.find(
            observations=taken.observations, states=taken.states, rewards=taken.rewards, infos=taken.infos, ended=taken.ended
        )
        if found or taken.ended.any():
            for number in np.flatnonzero(self._population.active).tolist():
                rows, guard = self._envs.rows(number), self._guards[number]
                own = {index - rows.start: reason for index, reason in found.items() if rows.start <= index < rows.stop}
                try:
                    diverged[rows] = guard is not None and guard.count(own, taken.ended[rows], timestep)
                except DivergenceError as error:
                    self._fail(number, error)
        return diverged

    def _take_failures(self) -> None:
        for number, error in {**self._envs.failures, **self._population.failures}.items():
            if self._runs[number] is not None:
                self._fail(number, error)


def _require_alike(configurations: Sequence[SACConfig]) -> None:
    """Refuse members that one call cannot stand for: runs that are resumed each have a configuration of their own."""
    settings = [cfg.to_dict() for cfg in configurations]
    own = {*VARYING, "seed", "experiment"}
    for name, value in settings[0].items():
        values = [each[name] for each in settings]
        if name not in own and any(other != value for other in values):
            raise RunError(f"the members' {name} are {values}: they may differ in {', '.join(VARYING)}, train the others one by one")
