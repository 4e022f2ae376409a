"""Comparison of two records, or two folders of records: which figures moved beyond their noise: `python -m bench.compare OLD NEW`.

The ratio is that of the medians; its 95% interval is a percentile bootstrap over the raw rounds (or seeds) of both sides, of which it needs
five each. A permutation test would not say how much, and with five rounds a side none is rarer than 1 in 126. Returns, which may be
negative, are compared by the difference of their means over seeds, with Welch's 95% interval. The interval covers the noise within a run;
the speed of the machine on that day shows in the reference figures (matrix products, environments, peers), which are listed first. A change
below the tolerance, a share of the old median (of a return, of the old mean's absolute value), counts as none.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import scipy.stats
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bench import suites
from bench.core import record, statistics
from bench.core.record import Record, RecordError
from bench.core.samples import Figure, Samples
from bench.core.statistics import FEWEST_RESAMPLED, LEVEL, RESAMPLES, Interval

Verdict = Literal["better", "worse", "same", "unknown"]
AnyRecord: TypeAlias = Record[Samples]
RETURN = "return"
"""Unit of the figures that are compared by a difference."""


class NotComparableError(ValueError):
    """Records of two machines, configurations or suites; the message says what differs."""


class Change(NamedTuple):
    """The change of a figure."""

    name: str
    old: float
    """Median; of a return, the mean."""
    new: float
    unit: str
    ratio: float | None
    """Ratio of the medians, new / old; None for a return, and where the old one is not positive."""
    difference: float | None
    """Difference of the means of a return, new - old; None for other figures."""
    interval: Interval | None
    """95%, of the ratio or of the difference; None where the verdict is unknown."""
    verdict: Verdict
    """`better` and `worse` are beyond the noise."""
    unknown: str
    """Reason why the verdict is unknown; empty where it is not."""
    reference: bool


def main(
    old: Annotated[Path, tyro.conf.Positional],
    new: Annotated[Path, tyro.conf.Positional],
    /,
    *,
    tolerance: float = 0.05,
    fail: bool = False,
    force: bool = False,
) -> int:
    """Compare two records, or two folders of records, of one suite.

    Args:
        old: a record, or a folder of records.
        new: the same, measured later.
        tolerance: relative change below which a figure counts as unchanged; of a return, relative to the absolute value of the old mean.
        fail: exit with status 1 if a figure of sacref is worse beyond its noise.
        force: compare runs of different machines or configurations, as far as the names of the figures agree.

    Returns:
        Exit status: 0; 1 with `fail` where something got worse; 2 if the two cannot be compared.
    """
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 160)
    try:
        before, after = load(old), load(new)
        for difference in (differences := comparable(before, after)):
            console.print(f"differs: {difference}", markup=False)
        if differences and not force:
            raise NotComparableError("the two were not measured alike: measure again, or say --force")
        changes, unmatched = compare(figures(before), figures(after), tolerance)
    except (RecordError, NotComparableError) as error:
        print(error, file=sys.stderr)
        return 2
    for name in unmatched:
        console.print(f"only on one side: {name}", markup=False)
    show(changes, before, after, tolerance, console)
    return int(fail and any(change.verdict == "worse" and not change.reference for change in changes))


def load(path: Path) -> list[AnyRecord]:
    """Read the records of a file or a folder.

    Raises:
        RecordError: if a file is no record. NotComparableError: if there is none.
    """
    paths = sorted(path.glob("*.json")) if path.is_dir() else [path] if path.exists() else []
    if not paths:
        raise NotComparableError(f"{path} is no record and no folder that holds records: name a JSON file or its folder under results/")
    kinds = {suite.name: suite.samples for suite in suites.find().values() if suite.samples is not None}
    return [record.read_any(found, kinds) for found in paths]


def figures(records: Sequence[AnyRecord]) -> dict[str, Figure]:
    """Return the figures of the records of one suite, by name. Runs that differ in the seed alone are samples of one figure."""
    found: dict[str, Figure] = {}
    for one in records:
        run = one.run.removesuffix(f"-seed{one.seed}")
        for name, figure in one.samples.figures():
            if run != one.run or len(records) > 1:
                name = f"{run}: {name}"
            before = found[name].values if name in found else []
            found[name] = figure._replace(values=[*before, *figure.values])
    return found


def comparable(old: Sequence[AnyRecord], new: Sequence[AnyRecord]) -> list[str]:
    """List the differences in machine, configuration or runs that keep the two from being compared.

    Raises:
        NotComparableError: for records of two suites.
    """
    suites = {one.suite for one in (*old, *new)}
    if len(suites) > 1:
        raise NotComparableError(f"the records are of the suites {', '.join(sorted(suites))}: compare records of one suite")
    differences = []
    before, after = ({one.run: one for one in side} for side in (old, new))
    if len(old) == len(new) == 1:
        # Two files may have any names.
        (after,) = ({old[0].run: one} for one in after.values())
    differences += [f"run {run} is on one side only" for run in sorted(before.keys() ^ after.keys())]
    for run in sorted(before.keys() & after.keys()):
        sides = [circumstances(side[run]) for side in (before, after)]
        for name in sorted(sides[0].keys() | sides[1].keys()):
            values = [side.get(name) for side in sides]
            if values[0] != values[1]:
                differences.append(f"{run}: {name}: {values[0]!r} and {values[1]!r}")
    return differences


def circumstances(one: AnyRecord) -> dict[str, Any]:
    """Return what must agree: the machine and the configuration. Versions of libraries and of sacref may differ."""
    hardware = {name: getattr(one.hardware, name) for name in ("cpu_model", "cores", "threads", "accelerator")}
    # `run` is the configuration that a training wrote; its fields differ between versions.
    return hardware | {f"configuration.{name}": value for name, value in one.configuration.items() if name != "run"}


def compare(old: dict[str, Figure], new: dict[str, Figure], tolerance: float) -> tuple[list[Change], list[str]]:
    """Return the change of every figure that both sides have, references first, and the names of the others."""
    changes = [change(name, old[name], new[name], tolerance) for name in old if name in new]
    return sorted(changes, key=lambda found: not found.reference), sorted(old.keys() ^ new.keys())


def change(name: str, old: Figure, new: Figure, tolerance: float) -> Change:
    """Compare two figures of one name."""
    ratio, difference, interval, unknown = None, None, None, ""
    if new.unit == RETURN:
        before, after = statistics.mean(old.values), statistics.mean(new.values)
        moved = difference = after - before
        unmoved, allowed = 0.0, tolerance * abs(before)
        interval = statistics.difference_interval(new.values, old.values)
    else:
        before, after = float(np.median(old.values)), float(np.median(new.values))
        ratio = after / before if before > 0 else None
        moved, unmoved, allowed = ratio or 0.0, 1.0, tolerance
        if min(old.values) > 0:
            interval = ratio_interval(old.values, new.values)
        else:
            unknown = "a ratio needs positive values"
    verdict: Verdict = "same"
    if interval is None:
        verdict, unknown = "unknown", unknown or "too few samples"
    elif abs(moved - unmoved) > allowed and not interval.low <= unmoved <= interval.high:
        verdict = "better" if (moved > unmoved) == new.higher_is_better else "worse"
    return Change(name, before, after, new.unit, ratio, difference, interval, verdict, unknown, new.reference)


def ratio_interval(old: Sequence[float], new: Sequence[float]) -> Interval | None:
    """Return the 95% percentile-bootstrap interval of median(new) / median(old), seeded; None for fewer than `FEWEST_RESAMPLED` a side."""
    if min(len(old), len(new)) < FEWEST_RESAMPLED:
        return None

    def ratio(old: NDArray[np.float64], new: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.median(new, axis=axis) / np.median(old, axis=axis)
        return found

    interval = scipy.stats.bootstrap(
        (np.asarray(old, np.float64), np.asarray(new, np.float64)),
        ratio,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        vectorized=True,
        random_state=0,
    ).confidence_interval
    return Interval(float(interval.low), float(interval.high))


def show(changes: Sequence[Change], old: Sequence[AnyRecord], new: Sequence[AnyRecord], tolerance: float, console: Console) -> None:
    """Print the table and a summary."""
    table = Table(title=f"{_source(old)} -> {_source(new)}", title_justify="left")
    for heading in ("", "old", "new", "new / old", "95%", "beyond noise"):
        table.add_column(heading, justify="left" if heading in ("", "beyond noise") else "right")
    styles = {"better": "green", "worse": "red", "same": "", "unknown": "dim"}
    for found in changes:
        written = ".3f" if found.difference is None else "+,.4g"
        moved = "" if found.ratio is None else f"{found.ratio:.3f}"
        table.add_row(
            f"{found.name} (reference)" if found.reference else found.name,
            f"{found.old:,.4g}",
            f"{found.new:,.4g} {found.unit}",
            moved if found.difference is None else f"{found.difference:+,.4g} (new - old)",
            "" if found.interval is None else f"{found.interval.low:{written}} to {found.interval.high:{written}}",
            {"same": "no", "unknown": f"unknown: {found.unknown}"}.get(found.verdict, found.verdict),
            style=styles[found.verdict],
        )
    console.print(table)
    own = [found for found in changes if not found.reference]
    counts = {verdict: sum(found.verdict == verdict for found in own) for verdict in ("better", "worse", "same", "unknown")}
    console.print(
        f"{len(own)} figures: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + f" (tolerance {tolerance:.0%})"
    )
    references = [found.ratio for found in changes if found.reference and found.ratio is not None]
    if references:
        console.print(f"The references' median ratio is {float(np.median(references)):.3f}: so much of every change is the machine's own.")


def _source(records: Sequence[AnyRecord]) -> str:
    return ", ".join(sorted({f"{one.sacref_version} {(one.commit or 'no commit')[:10]}{' with changes' * one.dirty}" for one in records}))


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m bench.compare"))
