"""The work of each command. Libraries are imported by the command that needs them, so that `sacref --help` is there at once."""

import json
import math
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from sacref.cli.flags import Command, Doctor, Evaluate, Examine, Export, Parity, Plot, Presets, Report, Train, Video, named
from sacref.config import from_json, presets
from sacref.config.callables import NotFoundError, find, why_lost
from sacref.config.train_config import RunOptions
from sacref.ranks import launched

if TYPE_CHECKING:
    from sacref.agent.protocol import Agent
    from sacref.training.evaluation import Evaluation

PARITY_TOLERANCE = 1e-9
"""Largest relative difference that rounding explains in float64, after 1,000 updates."""


def run(flags: Command) -> int:
    """Run the command of these flags and return its exit status."""
    return _COMMANDS[type(flags)](flags)


def train(flags: Train) -> int:
    if flags.sweep is not None:
        from sacref.cli import sweep

        return sweep.run(flags.sweep, directory=flags.run_dir, on=flags.sweep_on, jobs=flags.sweep_jobs, progress=flags.progress)
    if flags.sweep_on != "local" or flags.sweep_jobs is not None:
        raise ValueError("--sweep-on or --sweep-jobs is given without --sweep: name the file of the sweep, or leave them out")
    seeds = _seeds(flags)
    from sacref.training import experiment, plan

    plan.prepare_process(flags.backend, flags.device)
    arguments: dict[str, Any] = {
        **{option.name: getattr(flags, option.name) for option in fields(RunOptions)},
        "env": _environment(flags.env),
        "vector_env": None if flags.vector_env is None else named(flags.vector_env, "--vector-env: "),
        "run_dir": flags.directory(),
        "cfg": flags.cfg if flags.preset is None else flags.cfg.to_dict(),  # a SACConfig would leave nothing of the preset
        "wrappers": [named(name, "--wrappers: ") for name in flags.wrappers],
        "callbacks": [named(name, "--callbacks: ") for name in flags.callbacks],
        "log": flags.log,
    }
    if seeds is not None:
        return _train_population(flags, seeds, arguments)
    result = experiment.train(seed=flags.cfg.seed, **arguments)
    place = launched()
    if place is not None and place.rank > 0:
        return 130 if result.interrupted else 0
    stopped = result.interrupted or result.stopped_by is not None
    state = f"stopped by {result.stopped_by}" if result.stopped_by else "interrupted" if result.interrupted else "finished"
    print(f"{state} after {result.steps:,} steps of {flags.vector_env or flags.env} on {flags.backend}{_speed(result.steps_per_second)}")
    learned = _says_that_it_learned(flags, result.steps, trained=not math.isnan(result.steps_per_second), interrupted=stopped)
    if result.evaluations:
        step, evaluation = result.evaluations[-1]
        print(f"evaluation at step {step:,}: {_summary(evaluation)}")
        if learned:
            _compare(result.config, step, evaluation.mean)
    print(f"written to {result.run_dir}: {', '.join(sorted(path.name for path in result.run_dir.iterdir()))}")
    if result.interrupted:
        print(f"to go on: sacref train --resume --run-dir {shlex.quote(str(result.run_dir))}")
        return 130
    if learned:
        run_dir = shlex.quote(str(result.run_dir))
        print(
            f"next: look at {result.run_dir / 'curve.png'}; beside another seed: sacref plot {run_dir} OTHER_RUN --output curves.png\n"
            f"      more episodes: sacref eval {run_dir}\n"
            f"      in Python: agent = sacref.load({str(result.run_dir)!r})\n"
            f"      longer: sacref train --resume --run-dir {run_dir} --steps {2 * result.steps}"
        )
    return 0


def _compare(config: Mapping[str, Any], step: int, mean: float, runs: int = 1) -> None:
    """Say what the mean return of so many runs means beside those that are known."""
    from sacref.training.known_returns import meaning

    for line in meaning(config, step, mean, runs):
        print(f"compare: {line}")


def _says_that_it_learned(flags: Train, steps: int, *, trained: bool, interrupted: bool) -> bool:
    """Return whether a run of so many environment steps has learned; say why it has not, where that may surprise."""
    if interrupted:
        return False
    place = launched()
    timesteps = steps // (flags.num_envs * (flags.ranks if place is None else place.size))
    if not trained:
        print("nothing was left to train: to go on, give more --steps")
        return False
    if not flags.resume and flags.cfg.gradient_steps and timesteps <= flags.cfg.learning_starts:
        print(
            f"nothing was learned: gradient steps begin after timestep {flags.cfg.learning_starts:,}, and the run has {timesteps:,};"
            f" give more --steps, or lower --learning-starts and --random-timesteps"
        )
        return False
    return flags.cfg.gradient_steps > 0


def _seeds(flags: Train) -> list[int] | None:
    """Return the seeds of --seeds; None where it is left out."""
    if flags.seeds is None:
        return None
    place = launched()
    if flags.cfg.seed != 0:
        raise ValueError(f"--seeds is {flags.seeds}, and --seed is {flags.cfg.seed} too: leave out one or the other")
    if flags.ranks > 1 or place is not None:
        ranks = flags.ranks if place is None else place.size
        raise ValueError(f"--seeds is {flags.seeds}, and there are {ranks} ranks: a population has one process, leave out the ranks")
    from sacref.training.population import parse_seeds

    return parse_seeds(flags.seeds)


def _train_population(flags: Train, seeds: Sequence[int], arguments: dict[str, Any]) -> int:
    from sacref.training.population import train_population

    population = train_population(seeds=seeds, **arguments)
    results = population.members.values()
    interrupted = any(result.interrupted for result in results)
    speeds = [result.steps_per_second for result in results if not math.isnan(result.steps_per_second)]
    ends, speed = sorted({result.steps for result in results}), sum(speeds) if speeds else math.nan
    steps = ends[0]
    state, task = "interrupted" if interrupted else "finished", flags.vector_env or flags.env
    after = f"{steps:,}" if len(ends) == 1 else f"{steps:,} to {ends[-1]:,}"
    print(f"{state} after {after} steps each of {len(results)} x {task} on {flags.backend}{_speed(speed, ' together')}")
    learned = _says_that_it_learned(flags, steps, trained=not math.isnan(speed), interrupted=interrupted)
    for name, result in population.members.items():
        if result.evaluations:
            step, evaluation = result.evaluations[-1]
            stopped = f" (stopped by {result.stopped_by})" if result.stopped_by else ""
            print(f"{name}: evaluation at step {step:,}: {_summary(evaluation)}{stopped}")
    last = [result.evaluations[-1] for result in results if result.evaluations]
    final = [evaluation.mean for _, evaluation in last]
    if len({step for step, _ in last}) > 1:
        print("no mean over the seeds: their last evaluations are after other steps")
    elif len(final) > 1:
        mean, low, high = _interval(final)
        print(f"over {len(final)} seeds: mean {mean:,.1f}, 95% interval of the mean [{low:,.1f}, {high:,.1f}]")
        if learned and not any(result.stopped_by for result in results):
            _compare(next(iter(results)).config, steps, mean, len(final))
    print(f"written to {population.run_dir}")
    if interrupted:
        print(f"to go on: sacref train --resume --seeds {flags.seeds} --run-dir {shlex.quote(str(population.run_dir))}")
        return 130
    return 0


def evaluate(flags: Evaluate) -> int:
    from sacref.envs.vector import closing, make, make_vector
    from sacref.training.evaluation import evaluate as run_episodes
    from sacref.training.evaluation import with_plain_rewards
    from sacref.training.plan import EVALUATION_COPIES

    config, agent, task, episodes = _load(flags)
    copies = max(1, min(flags.episodes, EVALUATION_COPIES))
    if config.get("vector_env") is None:
        made = make(num_envs=copies, **task)
    else:
        factory: Any = named(config["vector_env"], "vector_env of the run: ")
        made = with_plain_rewards(make_vector(factory, copies, seed=flags.seed, env_kwargs=task["env_kwargs"]))
    with closing(made) as environments:
        evaluation = run_episodes(agent, environments, **episodes)
    print(f"{config['env']} on {config['backend']}: {_summary(evaluation)}")
    print("returns: " + ", ".join(f"{value:,.1f}" for value in evaluation.returns))
    return 0


def video(flags: Video) -> int:
    from gymnasium import registry
    from rich.console import Console
    from rich.progress import Progress

    from sacref.training.load import run_of
    from sacref.training.video import render_episodes

    config, agent, task, episodes = _load(flags)
    if config.get("vector_env") is not None:
        raise ValueError(
            f"{flags.run_dir} was trained in {config['env']}, expected one environment to draw: a vector environment is not drawn"
        )
    output, spec = flags.output or run_of(flags.run_dir)[0] / "video.gif", registry.get(config["env"])
    longest = None if spec is None or spec.max_episode_steps is None else flags.episodes * spec.max_episode_steps
    with Progress(console=Console(stderr=True), transient=True) as bar:
        steps = bar.add_task("steps", total=longest)
        video = render_episodes(
            agent,
            output,
            **task,
            **episodes,
            fps=flags.fps,
            seconds=flags.seconds,
            width=flags.width,
            height=flags.height,
            on_step=lambda: bar.advance(steps),
        )
    seeds = [seed for seed in range(flags.seed, flags.seed + flags.episodes) if seed not in video.evaluation.diverged]
    for seed, value, length in zip(seeds, video.evaluation.returns, video.evaluation.lengths, strict=True):
        print(f"{config['env']} on {config['backend']}, seed {seed}: return {value:,.1f} in {length:,} steps")
    print(f"written to {output}: {video.frames:,} frames of {video.width} x {video.height}, {video.fps:g} a second")
    return 0


def _load(flags: Evaluate) -> tuple[dict[str, Any], "Agent", dict[str, Any], dict[str, Any]]:
    """Load a run: its configuration, its agent, the arguments of `sacref.envs.make`, and those that episodes are run with."""
    from sacref.training import load, run_directory
    from sacref.training.evaluation import with_plain_rewards

    config = run_directory.read_config(load.run_of(flags.run_dir)[0])
    agent = load.load(flags.run_dir, checkpoint=flags.checkpoint, device=flags.device, import_callables=flags.import_callables)
    wrappers = [named(name, "wrappers of the run: ") for name in config["wrappers"]]
    task = {
        "env": _environment(config["env"], "env of the run: "),
        "env_kwargs": from_json(config["env_kwargs"]),
        "wrappers": [*wrappers, with_plain_rewards],
    }
    episodes = {
        "episodes": flags.episodes,
        "seed": flags.seed,
        "max_episode_steps": config.get("evaluation_max_steps") if flags.evaluation_max_steps is None else flags.evaluation_max_steps,
        "state_space": run_directory.states_space(config),
    }
    return config, agent, task, episodes


def export(flags: Export) -> int:
    from sacref.training.export import export_policy
    from sacref.training.load import load

    agent = load(flags.run_dir, checkpoint=flags.checkpoint, device="cpu", import_callables=flags.import_callables)
    written = export_policy(agent, flags.output, to=flags.to)
    print(f"written to {flags.output}: {', '.join(written.inputs)} -> {', '.join(written.outputs)}")
    print(f"loaded again, it differs from agent.predict by at most {written.difference:.1g}")
    return 0


def plot(flags: Plot) -> int:
    from sacref.training.plots import plot_runs

    plot_runs(flags.run_dirs, output=flags.output)
    print(f"written to {flags.output}")
    return 0


def report(flags: Report) -> int:
    from sacref.training.report import write_report

    write_report(flags.run_dirs, output=flags.output)
    print(f"written to {flags.output}")
    return 0


def parity(flags: Parity) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from sacref import parity

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("updates", total=flags.updates)
        report = parity.run(
            updates=flags.updates,
            dtype=flags.dtype,
            seed=flags.seed,
            json=flags.json,
            backends=flags.backends or None,
            on_update=lambda: bar.advance(task),
        )
    Console().print(report.table())
    if flags.json is not None:
        print(f"written to {flags.json} and {flags.json.with_suffix('.png')}")
    if flags.dtype == "float64" and not report.within(PARITY_TOLERANCE):
        print(f"sacref: the implementations do not agree to {PARITY_TOLERANCE:g} relative", file=sys.stderr)
        return 1
    return 0


def examine(flags: Examine) -> int:
    from rich.console import Console

    from sacref import examine
    from sacref.examine import adapters, report

    progress = Console(stderr=True)
    try:
        with progress.status("examine") as status:
            found = examine.examine(adapters.load(flags.name), on_stage=lambda stage: status.update(f"examine: {stage}"))
    except ModuleNotFoundError as error:
        raise ImportError(
            f"examine: {flags.name} imports {error.name}, expected it to be installed beside sacref: install it, or take the interpreter "
            f"of an environment that has it, as docs/examine.md says"
        ) from error
    except (ValueError, TypeError, ImportError, OSError, RuntimeError):
        raise
    except Exception as error:  # status 1 says that a mistake is present
        raise RuntimeError(f"examine: {flags.name} raised {type(error).__name__}: {error}: mend the adapter, or what it calls") from error
    Console().print(report.table(found))
    if flags.json is not None:
        report.write(report.record(found), flags.json)
    if flags.markdown is not None:
        flags.markdown.parent.mkdir(parents=True, exist_ok=True)
        flags.markdown.write_text(report.markdown(found), encoding="utf-8")
    return 1 if found.mistakes else 0


def doctor(flags: Doctor) -> int:
    from sacref.cli import doctor

    report = doctor.examine()
    if flags.json:
        print(json.dumps(report, indent=2))
    else:
        doctor.show(report)
    return 0 if report["healthy"] else 1


def list_presets(flags: Presets) -> int:
    if flags.json:
        print(json.dumps([{**asdict(preset), "differences": preset.differences} for preset in presets.PRESETS.values()], indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("preset", "source", "other than the paper's", "not reproduced", show_lines=True)
    for preset in presets.PRESETS.values():
        source = f"{preset.title}\n{preset.source}: {', '.join(preset.files)}"
        changed = "\n".join(f"{name} {json.dumps(value)}" for name, value in preset.differences.items())
        table.add_row(preset.name, source, changed, "\n".join(f"- {part}" for part in preset.not_reproduced))
    Console(soft_wrap=False).print(table)
    return 0


def _environment(name: str, where: str = "--env: ") -> object:
    """Return a Gymnasium id as it is, and the callable that "module:name" names.

    Raises:
        ValueError: if the name is that of a callable, which is not there.
    """
    if "(" in name or why_lost(name) is not None:
        return named(name, where)
    try:
        found = find(name)
    except NotFoundError:
        return name
    return found if callable(found) else name


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of several values, and its 95% confidence interval (Student's t)."""
    from scipy import stats

    found = stats.ttest_1samp(values, 0.0)
    low, high = found.confidence_interval(0.95)
    return statistics.fmean(values), float(low), float(high)


def _summary(evaluation: "Evaluation") -> str:
    several = f"mean return {evaluation.mean:,.1f}, standard deviation {evaluation.std:,.1f}, {len(evaluation.returns)} episodes"
    said = f"return {evaluation.mean:,.1f}, 1 episode" if len(evaluation.returns) == 1 else several
    if evaluation.truncated:
        said += f", {evaluation.truncated} of them cut after {max(evaluation.lengths):,} steps"
    return f"{said}; {len(evaluation.diverged)} diverged and left out" if evaluation.diverged else said


def _speed(steps_per_second: float, together: str = "") -> str:
    """Say the speed of the training alone (the progress bar's is that of everything); nothing where nothing was trained."""
    return "" if math.isnan(steps_per_second) else f" ({steps_per_second:,.0f} steps/s{together}, evaluations left out)"


_COMMANDS: Mapping[type, Callable[[Any], int]] = {
    Train: train,
    Evaluate: evaluate,
    Video: video,
    Export: export,
    Plot: plot,
    Report: report,
    Parity: parity,
    Examine: examine,
    Presets: list_presets,
    Doctor: doctor,
}
