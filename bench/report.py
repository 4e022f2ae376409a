"""The only writer of results/README.md and of the plots beside the records: `python -m bench.report [--check]`."""

import sys
from pathlib import Path

import tyro

from bench import machine, plots
from bench.record import RecordError
from bench.sections import Picture, amp, faults, learning, mutants, parity, recurrent, rollout, scaling, soak, throughput, update

RESULTS = machine.ROOT / "results"

HEADER = """# Results

Made by `python -m bench.report` from the JSON records beside this page; do not edit it. A record holds the raw samples, seed,
configuration, hardware, library versions and commit of one run. `python -m bench` measures again.
"""


class StaleError(RuntimeError):
    """What lies under results/ is not what the records give."""


def main(*, results: Path = RESULTS, check: bool = False) -> int:
    """Write results/README.md and the plots, or say whether they are up to date.

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
    """Write what differs from what the records give.

    Returns:
        The files written.

    Raises:
        RecordError: if a JSON file is no record.
        StaleError: if `check`, and something would be written.
    """
    paragraphs = [HEADER]
    pictures: dict[Path, Picture] = {}
    for part in (learning, throughput, update, recurrent, rollout, amp, scaling, parity, faults, mutants, soak):
        section = part.section(results)
        paragraphs += section.paragraphs
        pictures |= section.pictures
    text = "\n".join(paragraphs)
    readme = results / "README.md"
    stale = [path for path, picture in pictures.items() if plots.digest_of(path) != picture.digest]
    if not readme.exists() or readme.read_text(encoding="utf-8") != text:
        stale.append(readme)
    if check and stale:
        raise StaleError(f"{', '.join(map(str, stale))}: not what the records give; run `python -m bench.report`")
    for path in stale:
        if path == readme:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        else:
            pictures[path].draw(path, pictures[path].digest)
    return stale


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
