"""Mutants of the equations and of the update, and the tests that see them: `python -m bench mutants` (`nox -s mutants`).

cosmic-ray's operators change one operator, number or decorator at a time. Each mutant runs the test file that mirrors its file, then the
test of one update against the oracle, until a test fails. A mutant that no test sees needs a better test, or an entry in
mutants_equivalent.json with the reason why it is equivalent. Outcomes are kept, so that the whole set can be run in pieces: the record
counts the mutants that have run.

Left out and counted: mutants of annotations, which have no effect at run time, and those that Python does not compile. Also left out:
cosmic-ray's two operators that replace variables by random ones, and tests that start another Python, which reads the unchanged file.
"""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.core import machine, record, runner, timing
from bench.suites.mutants.mutations import Equivalent, Mutant, digest, equivalents, match, mutants_of, text
from bench.suites.mutants.samples import MutantFile, MutantRun, MutantsSamples, Survivor
from bench.suites.mutants.worker import Job, Outcome

EQUIVALENT = machine.ROOT / "bench" / "suites" / "mutants" / "mutants_equivalent.json"
"""List of the mutants that no test can see, with the reasons."""
STATE = runner.PARTIAL / "mutants"
"""Folder of the outcomes, a line each."""
ORACLE = "tests/parity/test_one_update.py"
WITHOUT = ("test_torch_compile_traces_every_call_whole", "test_importing_the_spec_loads_no_backend")
"""Tests that start another Python."""
LIBRARIES = (
    "numpy",
    "torch",
    "jax",
    "flax.nnx",
    "optax",
    "gymnasium",
    "hypothesis",
    "mpmath",
    "array_api_strict",
    "beartype",
    "scipy.special",
)
"""Libraries that are imported once for all mutants, if installed; none starts a thread, which a forked child would lack."""
SECONDS = 1.0
"""Processor time of a mutant, for the estimate of those that never ran."""
LIMIT = (3.0, 20.0)
"""Limit of the processor time of a file's tests: a multiple of that of the unchanged file, and seconds to add."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A mutated file, and its tests."""

    file: str
    tests: tuple[str, ...]
    without: tuple[str, ...] = WITHOUT
    """Tests, or parameters of tests, that are left out."""


def targets(root: Path = machine.ROOT) -> list[Target]:
    """Return the targets: the update, then the spec, the most used files first."""
    update = Target(file="sacref/algorithm/update.py", tests=("tests/algorithm/test_update.py", ORACLE))
    first = ["losses", "policy", "reduce"]
    names = sorted((path.stem for path in (root / "sacref" / "spec").glob("*.py")), key=lambda name: (name not in first, name))
    return [update] + [
        Target(file=f"sacref/spec/{name}.py", tests=(f"tests/spec/test_{name.strip('_')}.py", ORACLE), without=WITHOUT) for name in names
    ]


def main(
    *,
    sample: int | None = None,
    seed: int = 0,
    files: tuple[str, ...] = (),
    processes: int = 1,
    results: Path | None = None,
    dry_run: bool = False,
) -> int:
    """Run the mutants that have not run yet, and write the record of all that have.

    Args:
        sample: number of mutants, drawn at random; None for all, which take about half an hour of one core.
        seed: of the sample.
        files: mutated files, such as sacref/spec/losses.py; all, unless given.
        processes: mutants that run at once.
        results: folder for the record; None for results/mutants.
        dry_run: print the plan, and stop.

    Returns:
        Exit status: 0; 1 where a mutant survived, or a test sees a mutant that is listed as equivalent; 130 after Ctrl-C.
    """
    if find_spec("cosmic_ray") is None:
        raise SystemExit("python -m bench mutants needs cosmic-ray, which is not installed: pip install 'sacref[dev]'")
    console = Console(soft_wrap=True)
    chosen = targets()
    for name in files:
        if name not in {target.file for target in chosen}:
            raise SystemExit(f"--files has {name!r}, expected one of {', '.join(target.file for target in chosen)}")
    run = Run(machine.ROOT, chosen, equivalents(EQUIVALENT), STATE)
    todo = run.todo(sample=sample, seed=seed, files=files)
    for target in chosen:
        of_file = [mutant for mutant in todo if mutant.file == target.file]
        seconds = sum(run.expected_seconds(mutant) for mutant in of_file)
        console.print(f"  {target.file}: {len(of_file)} of {len(run.mutants[target.file])} to do, about {timing.said(seconds)}")
    expected = sum(map(run.expected_seconds, todo))
    console.print(f"{len(todo)} mutants, together about {timing.said(expected)} of processor time, {processes} beside each other")
    if dry_run:
        return 0
    try:
        run.execute(todo, processes, console)
    except KeyboardInterrupt:
        console.print(f"Interrupted: the outcomes so far are kept in {run.path}; the same command goes on from there.")
        return 130
    samples = run.samples()
    asked = {"sample": sample, "files": list(files), "without": sorted({name for target in chosen for name in target.without})}
    path = record.write_new(
        results or machine.ROOT / "results" / "mutants",
        record.make(
            samples,
            run="mutants",
            source=machine.source(),
            configuration=asked,
            hardware=machine.hardware(None),
            libraries=machine.libraries((*machine.LIBRARIES, "cosmic-ray", "pytest", "hypothesis")),
            seed=seed,
        ),
    )
    console.print(f"-> {path}")
    for one in samples.survivors:
        console.print(f"survived: {one.file}:{one.number}: {one.line}  ->  {one.mutated}", markup=False)
    for mutant in run.seen_equivalents():
        console.print(f"listed as equivalent, but {run.outcomes[mutant.key].by} sees it: {mutant}", markup=False)
    return int(bool(samples.survivors or run.seen_equivalents()))


class Run:
    """All mutants of some files, and their outcomes so far.

    Args:
        root: folder that the files' names are relative to.
        chosen: the files.
        equivalent: entries of the list of equivalent mutants.
        state: folder for the outcomes.
        libraries: imports of the tests; those that are not installed are skipped.
    """

    def __init__(
        self, root: Path, chosen: Sequence[Target], equivalent: Sequence[Equivalent], state: Path, libraries: Sequence[str] = LIBRARIES
    ) -> None:
        self.libraries = libraries
        self.root, self.targets = root, {target.file: target for target in chosen}
        self.mutants: dict[str, list[Mutant]] = {}
        self.skipped: dict[str, Counter[str]] = {}
        for target in chosen:
            self.mutants[target.file], self.skipped[target.file] = mutants_of(root, target.file)
        self.equivalent = match(equivalent, [mutant for each in self.mutants.values() for mutant in each])
        self.tests = {target.file: digest(*(text(root / name) for name in target.tests)) for target in chosen}
        self.path = state / "outcomes.jsonl"
        self.outcomes: dict[str, Outcome] = {}
        """Key -> outcome. A killed mutant stays killed until its file changes; a survivor runs again with other tests."""
        for line in text(self.path).splitlines():
            known = json.loads(line)
            tests = known.pop("tests")
            if known["outcome"] != "survived" or tests in self.tests.values():
                self.outcomes[known["key"]] = Outcome(**known)
            else:
                self.outcomes.pop(known["key"], None)

    def todo(self, *, sample: int | None, seed: int, files: Sequence[str]) -> list[Mutant]:
        """Return the mutants to run, in the order of the files."""
        found = [mutant for each in self.mutants.values() for mutant in each]
        if sample is not None and sample < len(found):
            drawn = set(random.Random(seed).sample(range(len(found)), sample))
            found = [mutant for i, mutant in enumerate(found) if i in drawn]
        return [mutant for mutant in found if mutant.key not in self.outcomes and (not files or mutant.file in files)]

    def expected_seconds(self, mutant: Mutant) -> float:
        """Estimate the processor time of a mutant: the mean of its file's."""
        known = [self.outcomes[each.key].seconds for each in self.mutants[mutant.file] if each.key in self.outcomes]
        return sum(known) / len(known) if known else SECONDS

    def execute(self, todo: Sequence[Mutant], processes: int, console: Console) -> None:
        """Run the tests of the unchanged files, then those of their mutants."""
        files = [file for file in self.targets if any(mutant.file == file for mutant in todo)]
        whole = {file: digest(file, text(self.root / file), self.tests[file]) for file in files}
        unknown = [self._job(self.targets[file], whole[file], None, None) for file in files if whole[file] not in self.outcomes]
        with self._progress(console) as progress:
            names = {key: file for file, key in whole.items()}
            for outcome in self._served(unknown, processes, (), progress, "the files as they are"):
                file = names[outcome.key]
                if outcome.outcome != "survived":
                    raise RuntimeError(f"{file} as it is does not pass its tests, {outcome.by}")
                self._keep(outcome, file)
            modules = sorted({name for file in files for name in self.outcomes[whole[file]].modules})
            by_key = {mutant.key: mutant for mutant in todo}
            jobs = []
            for mutant in by_key.values():
                limit = LIMIT[0] * self.outcomes[whole[mutant.file]].longest + LIMIT[1]
                jobs.append(self._job(self.targets[mutant.file], mutant.key, mutant.source, limit))
            for outcome in self._served(jobs, processes, modules, progress, "mutants"):
                mutant = by_key[outcome.key]
                self._keep(outcome, mutant.file)
                if outcome.outcome != "killed" and mutant.key not in self.equivalent:
                    progress.console.print(f"{outcome.outcome}: {mutant}", markup=False)

    def samples(self) -> MutantsSamples:
        """Count the outcomes of every file, for the record."""
        files, runs, survivors = [], [], []
        for file, mutants in self.mutants.items():
            counted: Counter[str] = Counter()
            for mutant in mutants:
                known = self.outcomes.get(mutant.key)
                if known is None:
                    counted["not run"] += 1
                    continue
                equivalent = known.outcome == "survived" and mutant.key in self.equivalent
                said = "equivalent" if equivalent else known.outcome
                counted[said] += 1
                runs.append(
                    MutantRun(
                        file=file,
                        operator=mutant.operator,
                        occurrence=mutant.occurrence,
                        number=mutant.number,
                        outcome=said,
                        by=known.by,
                        seconds=known.seconds,
                    )
                )
                if said == "survived":
                    survivors.append(
                        Survivor(file=file, function=mutant.function, number=mutant.number, line=mutant.line, mutated=mutant.mutated)
                    )
            whole = self.outcomes.get(digest(file, text(self.root / file), self.tests[file]))
            files.append(
                MutantFile(
                    file=file,
                    tests=list(self.targets[file].tests),
                    mutants=len(mutants),
                    killed=counted["killed"],
                    timed_out=counted["timed out"],
                    equivalent=counted["equivalent"],
                    survived=counted["survived"],
                    not_run=counted["not run"],
                    of_annotations=self.skipped[file]["annotation"],
                    not_compiled=self.skipped[file]["not compiled"],
                    seconds=round(sum(one.seconds for one in runs if one.file == file), 2),
                    seconds_as_it_is=whole.seconds if whole else None,
                )
            )
        return MutantsSamples(files=files, runs=runs, survivors=survivors)

    def seen_equivalents(self) -> list[Mutant]:
        """Return the mutants that are listed as equivalent although a test sees them."""
        listed = [mutant for each in self.mutants.values() for mutant in each if mutant.key in self.equivalent]
        return [mutant for mutant in listed if mutant.key in self.outcomes and self.outcomes[mutant.key].outcome != "survived"]

    def _job(self, target: Target, key: str, source: str | None, seconds: float | None) -> Job:
        tests = [str(self.root / name) for name in target.tests]
        path = str(self.root / target.file)
        return Job(key=key, path=path, source=source, tests=tests, without=list(target.without), seconds=seconds)

    def _served(self, jobs: Sequence[Job], processes: int, modules: Sequence[str], progress: Progress, name: str) -> Iterator[Outcome]:
        """Yield the outcomes of jobs, from a process that has imported `modules` for all of them."""
        if not jobs:
            return
        task = progress.add_task(name, total=len(jobs))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        seen = {
            str(self.root / file): [known.by for one in mutants if (known := self.outcomes.get(one.key)) is not None and known.by]
            for file, mutants in self.mutants.items()
        }
        given = {"at_once": processes, "modules": [*self.libraries, *modules], "seen": seen, "jobs": [asdict(job) for job in jobs]}
        # Most of what JAX compiles is the same for every mutant.
        compiled = {
            "JAX_COMPILATION_CACHE_DIR": str(self.path.parent / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        environment = {**os.environ, **machine.ONE_THREAD, **compiled, "PYTHONPATH": _search_path(self.root)}
        command = [sys.executable, "-m", "bench.suites.mutants.worker"]
        with subprocess.Popen(command, cwd=self.root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(given))
            process.stdin.close()
            for line in process.stdout:
                yield Outcome(**json.loads(line))
                progress.update(task, advance=1, refresh=True)
        if process.returncode:
            raise RuntimeError(f"bench.suites.mutants.worker ended with exit status {process.returncode}: see above")

    def _keep(self, outcome: Outcome, file: str) -> None:
        self.outcomes[outcome.key] = outcome
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({**asdict(outcome), "tests": self.tests[file]}) + "\n")

    @staticmethod
    def _progress(console: Console) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        return Progress(*columns, console=console, auto_refresh=False)


def _search_path(root: Path) -> str:
    return ":".join(dict.fromkeys([str(root), str(machine.ROOT), *(entry for entry in sys.path if entry)]))
