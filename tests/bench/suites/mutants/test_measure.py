"""Mutants: which are made and which are left out, what the tests say of them, what is kept, and what the list of equivalents may hold."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench import report
from bench.compare import figures
from bench.core import machine, record
from bench.core.record import Hardware, Record
from bench.suites.mutants import measure as mutants
from bench.suites.mutants.measure import Run, Target
from bench.suites.mutants.mutations import Equivalent, EquivalentError, equivalents, match, mutants_of
from bench.suites.mutants.samples import MutantFile, MutantsSamples, Survivor
from bench.suites.mutants.worker import Job, Outcome

needs_cosmic_ray = pytest.mark.skipif(find_spec("cosmic_ray") is None, reason="cosmic-ray is not installed; the extra `dev` has it")

SOURCE = '''"""A package of one file."""


def doubled(value: int | float) -> float:
    """Twice the value."""
    return value * 2


def steps(limit: int) -> int:
    """How many steps there are below a limit."""
    count = 0
    while count < limit:
        count += 1
    return count


def least(one: int, other: int) -> int:
    return one if one < other else other
'''
TESTS = """
import sums

def test_doubled():
    assert sums.doubled(2) == 4

def test_steps():
    assert sums.steps(3) == 3

def test_least():
    assert (sums.least(1, 2), sums.least(2, 1)) == (1, 1)
"""
TARGET = Target(file="sums.py", tests=("tests/test_sums.py", "tests/test_more.py"), without=("test_elsewhere",))
MORE = """
import pytest
import sums

def test_doubled_more():
    assert sums.doubled(3) == 6

@pytest.mark.parametrize("kind", ["here", "elsewhere"])
def test_kinds(kind):
    assert kind == "here"
"""
LEAST = "return one if one < other else other"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    root = tmp_path / "package"
    (root / "tests").mkdir(parents=True)
    (root / "sums.py").write_text(SOURCE)
    (root / "tests" / "test_sums.py").write_text(TESTS)
    (root / "tests" / "test_more.py").write_text(MORE)
    return root


def job(package: Path, old: str = "", new: str = "", **changes: Any) -> Job:
    source = SOURCE.replace(old, new) if old else None
    given: dict[str, Any] = {"without": ["elsewhere"], "seconds": 30.0, "tests": [str(package / name) for name in TARGET.tests], **changes}
    return Job(key=new, path=str(package / "sums.py"), source=source, **given)


@needs_cosmic_ray
def test_mutants_are_what_runs_and_differs(package: Path) -> None:
    found, skipped = mutants_of(package, "sums.py")
    by_line: dict[str, set[str]] = {}
    for mutant in found:
        by_line.setdefault(mutant.line, set()).add(mutant.mutated)
        assert mutant.source != SOURCE
        assert mutant.source.splitlines()[mutant.number - 1].strip() == mutant.mutated
    assert {"return value + 2", "return value * 3", "return value * 1", "return value // 2"} < by_line["return value * 2"]
    assert "while count <= limit:" in by_line["while count < limit:"] and "return one if one > other else other" in by_line[LEAST]
    # 11 other operators in the place of the annotation's `|`.
    assert skipped["annotation"] == 11 and not any("def doubled" in line for line in by_line)
    assert {mutant.function for mutant in found} == {"doubled", "steps", "least"}
    assert len({mutant.key for mutant in found}) == len(found)


@needs_cosmic_ray
def test_what_python_does_not_compile_is_left_out(package: Path) -> None:
    (package / "sums.py").write_text("def run(value, /, *, more):\n    return {**value, **more}\n")
    found, skipped = mutants_of(package, "sums.py")
    assert skipped["not compiled"] > 40
    assert {mutant.mutated for mutant in found} == set()


SERVE = """
import json, sys
from dataclasses import asdict
from bench.suites.mutants.worker import Job, serve

for outcome in serve([Job(**job) for job in json.load(open(sys.argv[1]))], at_once=2, seen={}):
    with open(sys.argv[2], "a") as file:
        file.write(json.dumps(asdict(outcome)) + "\\n")
assert "sums" not in sys.modules
"""


def test_the_tests_judge_each_mutant_in_a_process_of_its_own(package: Path) -> None:
    jobs = [
        job(package, "value * 2", "value * 3"),
        job(package, "value * 2", "value ** 2"),
        job(package, "one < other", "one <= other"),
        job(package, "count += 1", "count += 0", seconds=1.0),
        job(package, "def steps", "def ("),
        job(package),
        job(package, "one < other", "__import__('os')._exit(7)", without=[]),
        job(package, LEAST, "return min(one, other)", without=[]),
    ]
    asked, told = package / "jobs.json", package / "outcomes.jsonl"
    asked.write_text(json.dumps([asdict(each) for each in jobs]))
    # In a process without the threads of JAX: it forks.
    path = os.pathsep.join([str(package), str(machine.ROOT), *filter(None, sys.path)])
    command = [sys.executable, "-c", SERVE, str(asked), str(told)]
    subprocess.run(command, cwd=package, env={**os.environ, "PYTHONPATH": path}, check=True, timeout=300)
    outcomes = [Outcome(**json.loads(line)) for line in told.read_text().splitlines()]
    found = {outcome.key: outcome for outcome in outcomes}
    said = {key: (one.outcome, one.by) for key, one in found.items()}
    assert said == {
        "value * 3": ("killed", "tests/test_sums.py::test_doubled"),
        # The second file of tests sees what the first one does not.
        "value ** 2": ("killed", "tests/test_more.py::test_doubled_more"),
        "one <= other": ("survived", None),
        "count += 0": ("timed out", "time limit"),
        "def (": ("killed", "tests/test_sums.py"),
        "": ("survived", None),
        "__import__('os')._exit(7)": ("killed", "exit status 7"),
        "return min(one, other)": ("killed", "tests/test_more.py::test_kinds[elsewhere]"),
    }
    assert 1.0 <= found["count += 0"].seconds < 10.0
    assert "json" in found[""].modules and "sums" not in found[""].modules
    assert (package / "sums.py").read_text() == SOURCE


EQUAL = Equivalent(
    file="sums.py", function="least", line=LEAST, mutants=("return one if one <= other else other",), reason="equal numbers are one"
)


@needs_cosmic_ray
def test_an_entry_of_the_list_is_of_one_mutant(package: Path) -> None:
    found, _ = mutants_of(package, "sums.py")

    assert list(match([EQUAL], found).values()) == ["equal numbers are one"]
    for changed, message in (
        (replace(EQUAL, line="return one"), "there are 0 such mutants.*take the entry out"),
        (replace(EQUAL, function="steps"), "there are 0 such mutants"),
        (replace(EQUAL, mutants=("return one",)), "there are 0 such mutants"),
        (replace(EQUAL, reason=" "), "the reason is empty"),
    ):
        with pytest.raises(EquivalentError, match=message):
            match([changed], found)
    (one,) = (mutant for mutant in found if mutant.mutated == EQUAL.mutants[0])
    twice = [one, replace(one, source="the same on another line")]
    with pytest.raises(EquivalentError, match=r"there are 2 such mutants.*tell the lines apart"):
        match([EQUAL], twice)


@needs_cosmic_ray
def test_outcomes_are_kept_until_the_file_or_its_tests_change(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run judges a few, the second one knows them; new tests judge anew what has survived, and nothing else."""
    monkeypatch.setattr(mutants, "LIMIT", (1.0, 1.0))
    (package / "tests" / "test_more.py").write_text(MORE.partition("@")[0])
    quiet = Console(quiet=True)

    def run() -> Run:
        return Run(package, [TARGET], [EQUAL], tmp_path / "state", libraries=("hypothesis",))

    first = run()
    wanted = ("return value * 3", "return one if one <= other else other", "count += 0")
    some = [mutant for mutant in first.todo(sample=None, seed=0, files=()) if mutant.mutated in wanted]
    first.execute(some, 2, quiet)
    second = run()
    whole = second.todo(sample=None, seed=0, files=())
    assert {mutant.mutated for mutant in second.mutants["sums.py"]} - {mutant.mutated for mutant in whole} == set(wanted)
    assert second.todo(sample=10**6, seed=0, files=("another.py",)) == []
    assert [m.key for m in second.todo(sample=5, seed=1, files=())] == [m.key for m in run().todo(sample=5, seed=1, files=())]
    assert len(second.todo(sample=5, seed=1, files=())) <= 5 < len(whole)
    (file,) = second.samples().files
    assert (file.mutants, file.not_run) == (len(whole) + 3, len(whole))
    assert (file.killed, file.timed_out, file.equivalent, file.survived) == (1, 1, 1, 0)
    assert second.seen_equivalents() == []
    (package / "tests" / "test_more.py").write_text("import sums\n\ndef test_same():\n    assert sums.least(1, 2) == 2\n")
    with pytest.raises(RuntimeError, match=r"sums.py as it is does not pass its tests, tests/test_more.py.*"):
        run().execute(run().todo(sample=None, seed=0, files=())[:1], 1, quiet)
    (package / "tests" / "test_more.py").write_text(
        "import sums\n\ndef test_same():\n    assert sums.least(True, 1) == 1\n    assert sums.least(1, True) is True\n"
    )
    third = run()
    again = [mutant for mutant in third.todo(sample=None, seed=0, files=()) if mutant.key not in {one.key for one in whole}]
    assert [mutant.mutated for mutant in again] == ["return one if one <= other else other"]
    third.execute(again, 1, quiet)
    assert [mutant.mutated for mutant in third.seen_equivalents()] == ["return one if one <= other else other"]
    lines = [json.loads(line) for line in (tmp_path / "state" / "outcomes.jsonl").read_text().splitlines()]
    assert [line["outcome"] for line in lines].count("timed out") == 1


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutants, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"needs cosmic-ray, which is not installed: pip install 'sacref\[dev\]'"):
        mutants.main(dry_run=True)


def test_every_file_has_its_mirrored_tests() -> None:
    found = {target.file: target for target in mutants.targets()}
    assert {path.name for path in (machine.ROOT / "sacref" / "spec").glob("*.py")} == {
        Path(file).name for file in found if file.startswith("sacref/spec/")
    }
    for target in found.values():
        assert all((machine.ROOT / name).is_file() for name in target.tests), target.tests
        assert target.tests[1] == mutants.ORACLE
    assert next(iter(found)) == "sacref/algorithm/update.py"


def test_every_line_of_the_list_is_in_its_file() -> None:
    for entry in equivalents(mutants.EQUIVALENT):
        lines = (machine.ROOT / entry.file).read_text().splitlines()
        assert entry.line in {line.strip() for line in lines}, entry
        assert entry.reason.endswith(".")
        assert entry.line not in entry.mutants


@needs_cosmic_ray
def test_no_entry_of_the_list_is_stale() -> None:
    entries = equivalents(mutants.EQUIVALENT)
    for file in {entry.file for entry in entries}:
        of_file = [entry for entry in entries if entry.file == file]
        found, _ = mutants_of(machine.ROOT, file, only={entry.line for entry in of_file})
        assert len(match(of_file, found)) == sum(len(entry.mutants) for entry in of_file)


def mutants_record() -> Record[MutantsSamples]:
    file = MutantFile(
        file="sacref/spec/losses.py",
        tests=["tests/spec/test_losses.py"],
        mutants=100,
        killed=75,
        timed_out=1,
        equivalent=3,
        survived=4,
        not_run=17,
        of_annotations=11,
        not_compiled=1_000,
        seconds=120.0,
        seconds_as_it_is=None,
    )
    survivor = Survivor(file=file.file, function="critic_loss", number=7, line="a | b", mutated="a ^ b")
    return Record(
        schema_version=record.SCHEMA_VERSION,
        suite="mutants",
        run="mutants",
        date="2026-01-02T03:04:05+00:00",
        sacref_version="0.1.0",
        commit="0123456789abcdef",
        dirty=False,
        configuration={"sample": None},
        hardware=Hardware(cpu_model="A CPU", cores=2, threads=2, memory_bytes=2**30, accelerator=None),
        libraries={"numpy": "2"},
        seed=0,
        compile_seconds=None,
        samples=MutantsSamples(files=[file], runs=[], survivors=[survivor]),
    )


def test_the_page_says_what_survived(tmp_path: Path) -> None:
    record.write(tmp_path / "mutants" / "2026-01-02-a" / "mutants.json", mutants_record())
    assert [path.name for path in report.build(tmp_path)] == ["README.md"]
    text = (tmp_path / "README.md").read_text()
    # 76 of the 80 that were run and are not equivalent.
    assert "| `sacref/spec/losses.py` | 100 | 83 | 75 | 1 | 3 | 4 | 95.0% | 2.0 |" in text
    assert "| all | 100 | 83 | 75 | 1 | 3 | 4 | 95.0% | 2.0 |" in text
    assert "Left out: 11 of annotations, 1,000 that Python does not compile." in text
    assert "- `sacref/spec/losses.py`, line 7: `a | b` as `a ^ b`" in text
    found = figures([mutants_record()])
    assert {name: figure.values for name, figure in found.items()} == {"sacref/spec/losses.py, mutants that survived": [4.0]}
