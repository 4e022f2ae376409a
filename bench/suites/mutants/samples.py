"""The samples of the mutants suite."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from bench.core.samples import Figure, Samples, Strict


class MutantFile(Strict, frozen=True, kw_only=True):
    """Outcomes of the mutants of one file."""

    file: str
    tests: list[str]
    """Files of tests that each mutant runs until a test fails."""
    mutants: int
    killed: int
    """A test failed."""
    timed_out: int
    equivalent: int
    """No test failed, and the list of equivalent mutants says why none can."""
    survived: int
    """No test failed."""
    not_run: int
    of_annotations: int
    """Mutants of annotations, which are left out: they have no effect at run time."""
    not_compiled: int
    """Mutants that Python does not compile, which are left out."""
    seconds: float
    """Processor time of the mutants that ran."""
    seconds_as_it_is: float | None
    """Processor time of all tests of the unchanged file; None if it is not known."""


class MutantRun(Strict, frozen=True, kw_only=True):
    """One mutant that was run."""

    file: str
    operator: str
    """Operator, as cosmic-ray names it."""
    occurrence: int
    """Number among the mutants of this operator in the file, from 0."""
    number: int
    """Number of the line, from 1."""
    outcome: Literal["killed", "timed out", "equivalent", "survived"]
    by: str | None
    """The first test that failed, or what else ended the tests."""
    seconds: float
    """Processor time."""


class Survivor(Strict, frozen=True, kw_only=True):
    """A mutant that no test sees, and that is not listed as equivalent."""

    file: str
    function: str
    number: int
    """Number of the line, from 1."""
    line: str
    """The unchanged line."""
    mutated: str


class MutantsSamples(Samples, frozen=True, kw_only=True):
    """Outcomes of the mutants of all files."""

    suite: ClassVar[str] = "mutants"
    files: list[MutantFile]
    runs: list[MutantRun]
    survivors: list[Survivor]

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield the names and figures that two runs are compared by."""
        for file in self.files:
            if file.survived + file.killed + file.timed_out:
                yield f"{file.file}, mutants that survived", Figure([float(file.survived)], "", higher_is_better=False)
