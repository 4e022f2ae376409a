"""Everything that results/ holds, in one command: `python -m bench` (`make bench`).

Timed suites run first, while nothing else does; then parity, the learning runs, and the report. Recorded suites are not measured again.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench import report, suites
from bench.core import machine, runner, timing
from bench.core.stage import Choices, Preset, Stage
from bench.suites.learning.presets import PRESETS, SUITES


def main(*, preset: Preset | None = None, learning_preset: str | None = None, results: Path | None = None, dry_run: bool = False) -> int:
    """Measure what is not recorded yet for this version on this kind of machine, and write the report.

    Args:
        preset: smoke (every suite's, in a few minutes), cpu or gpu; unless given, cpu or gpu, as the machine is.
        learning_preset: a preset or suite of `python -m bench learning`; unless given, the longest that fits the machine, and for smoke
            its smoke.
        results: folder of the records; unless given results, and for smoke runs/smoke, since a smoke run is no result.
        dry_run: print the plan, and stop.

    Returns:
        Exit status: that of the first stage that failed, else 0.
    """
    console = Console(soft_wrap=True)
    preset = preset or runner.default_preset()
    results = results or (machine.ROOT / "runs" / "smoke" if preset == "smoke" else machine.ROOT / "results")
    if learning_preset is not None and learning_preset not in {*PRESETS, *SUITES}:
        raise SystemExit(f"--learning-preset is {learning_preset!r}, expected one of {', '.join([*PRESETS, *SUITES])}")
    console.print(f"Preset {preset}; records go to {results}")
    todo = stages(Choices(preset, results, learning_preset))
    for stage in todo:
        console.print(f"{stage.name}: " + (f"about {timing.said(stage.seconds)}" if stage.seconds else "recorded already"))
    left = [stage for stage in todo if stage.seconds]
    console.print(_plan(left, len(todo), dry_run=dry_run))
    if dry_run:
        return 0
    status = 0
    for number, stage in enumerate(left):
        remaining = timing.said(sum(following.seconds for following in left[number:]))
        console.rule(f"{number + 1} of {len(left)}: {stage.name} (about {remaining} to the end of all)")
        outcome = stage.run()
        if outcome == 130:
            return outcome
        status = status or outcome
    reported = report.main(results=results)
    return status or reported


def _plan(left: Sequence[Stage], count: int, *, dry_run: bool) -> str:
    """Describe the plan in a sentence or two."""
    if not left:
        return "All is recorded, and nothing is left to measure" + (
            ". Nothing was started." if dry_run else ": only the report is written."
        )
    takes = f"{len(left)} of {count} to measure, one after the other: about {timing.said(sum(stage.seconds for stage in left))} together"
    return takes + (". Nothing was started." if dry_run else ", then the report. Ctrl-C stops; the same command goes on where it stopped.")


def stages(choices: Choices) -> list[Stage]:
    """Return the stages of all suites, in order."""
    timed = [suite for suite in suites.find().values() if suite.stage_order is not None]
    return [stage for suite in sorted(timed, key=lambda suite: suite.stage_order or 0) for stage in suite.stages(choices)]
