"""The report, results/README.md, and the plots and tables beside the records: `python -m bench.report [--check]`."""

import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from bench import suites
from bench.core import machine, pictures
from bench.core.page import Section, table
from bench.core.pictures import Picture
from bench.core.record import RecordError

RESULTS = machine.ROOT / "results"

HEADER = """# Results

Measurements of sacref, Soft Actor-Critic on PyTorch and on JAX: how well it learns, how fast it is, how far its two backends are apart.
Made by `python -m bench.report` from the JSON records beside this page; do not edit it. A record holds the raw samples, seed,
configuration, hardware, library versions and commit of one run. `python -m bench` measures again.
"""


class StaleError(RuntimeError):
    """The report, a plot or a table differs from its records."""


def main(*, results: Path = RESULTS, check: bool = False) -> int:
    """Write results/README.md, the plots and the tables, or check them.

    Args:
        results: folder of the records.
        check: write nothing; fail if something would change.
    """
    try:
        written = build(results, check=check)
    except (StaleError, RecordError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(f"wrote {path}" for path in written) or f"{results} is up to date")
    return 0


def build(results: Path, *, check: bool = False) -> list[Path]:
    """Write the files that differ from their records.

    Returns:
        The files written.

    Raises:
        RecordError: if a JSON file is no record.
        StaleError: with `check`, if a file would be written.
    """
    sections = [section for suite in suites.find().values() if (section := suite.section(results)) is not None]
    shown: dict[Path, Picture] = {}
    for section in sections:
        shown |= section.pictures
    text = "\n".join([HEADER, *_summary(sections), *(paragraph for section in sections for paragraph in section.paragraphs)])
    drawn = pictures.files(shown)
    written = {path: content for section in sections for path, content in section.files.items()}
    written[results / "README.md"] = text.encode()
    stale = [path for path, (picture, _) in drawn.items() if pictures.digest_of(path) != picture.digest]
    stale += [path for path, content in written.items() if not path.exists() or path.read_bytes() != content]
    if check and stale:
        raise StaleError(f"{', '.join(map(str, stale))}: not what the records give; run `python -m bench.report`")
    for path in stale:
        if path in written:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(written[path])
        else:
            pictures.write(path, *drawn[path])
    return stale


def _summary(sections: Sequence[Section]) -> list[str]:
    """Format the main findings as a table, with a link to each section."""
    rows = []
    for section in sections:
        if section.findings:
            title = section.paragraphs[0].strip().removeprefix("## ")
            # GitHub's anchor of the heading.
            link = f"[{title}](#{title.lower().replace(' ', '-')})"
            rows += [[finding.what, finding.found, link] for finding in section.findings]
    note = (
        "Brackets are 95% intervals unless said: a difference whose interval holds 0 is not shown to be one. torch and jax are sacref's two"
        " backends. Strict: each action follows the update on the step before it; chunked, scan: the policy is up to 64 steps old. Preset:"
        " the sizes that were measured, cpu or gpu. A peer is another implementation of SAC, timed on the same machine.\n"
    )
    return ["## In short\n", table(["what", "found", "section"], rows), note] if rows else []


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m bench.report"))
