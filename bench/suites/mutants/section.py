"""Mutants: the share of small mistakes in the equations and in the updates that the tests see."""

from pathlib import Path

from bench.core import record
from bench.core.page import Finding, Section, place, source, table
from bench.suites.mutants.samples import MutantFile, MutantsSamples

INTRODUCTION = (
    "Each mutant is a file with one mistake: an operator, a number, a condition or a decorator changed by cosmic-ray. It runs the test file"
    " that mirrors its file, then the test of one update against the oracle. Equivalent ones do what the file does; each has its reason in"
    " [mutants_equivalent.json](../bench/suites/mutants/mutants_equivalent.json). The score is the share of the others, of those that were"
    " run, for which a test failed or ran out of its time. Mutants of annotations, and those that Python does not compile, are left out.\n"
)


def section(results: Path) -> Section:
    """Report the newest record."""
    records = [record.read(path, MutantsSamples) for path in results.glob("mutants/*/*.json")]
    if not records:
        return Section([], {})
    found = max(records, key=lambda one: one.date)
    files = [file for file in found.samples.files if file.mutants]
    rows = [_row(f"`{file.file}`", [file]) for file in files]
    survivors = [f"- `{one.file}`, line {one.number}: `{one.line}` as `{one.mutated}`" for one in found.samples.survivors]
    of_annotations, not_compiled = (sum(getattr(file, name) for file in files) for name in ("of_annotations", "not_compiled"))
    paragraphs = [
        "## Mutants\n",
        INTRODUCTION,
        table(
            ["file", "mutants", "run", "killed", "timed out", "equivalent", "survived", "score", "CPU minutes"], [*rows, _row("all", files)]
        ),
        f"Left out: {of_annotations:,} of annotations, {not_compiled:,} that Python does not compile.\n",
        *(["Survived:\n\n" + "\n".join(survivors) + "\n"] if survivors else []),
        f"{place(found.hardware)}; {source(found.sacref_version, found.commit, found.dirty)}; {found.date[:10]}.\n",
    ]
    all_files = _row("all", files)
    said = f"{all_files[7]} of {all_files[2]} mutants, less the {all_files[5]} equivalent ones, make a test fail"
    return Section(paragraphs, {}, [Finding("Mistakes put into the equations and the updates", said)] if all_files[7] else [])


def _row(name: str, files: list[MutantFile]) -> list[str]:
    mutants, not_run, killed, timed_out, equivalent, survived = (
        sum(getattr(file, count) for file in files) for count in ("mutants", "not_run", "killed", "timed_out", "equivalent", "survived")
    )
    judged = killed + timed_out + survived
    score = f"{(killed + timed_out) / judged:.1%}" if judged else ""
    minutes = sum(file.seconds for file in files) / 60
    counts = (mutants, mutants - not_run, killed, timed_out, equivalent, survived)
    return [name, *(f"{count:,}" for count in counts), score, f"{minutes:.1f}"]
