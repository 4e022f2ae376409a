"""An environment for each peer: `python -m bench.peers.environments` (`make bench-peers`)."""

import argparse
import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.core import machine

FOLDER = machine.ROOT / ".venv-peers"
REQUIREMENTS = Path(__file__).parent / "requirements"
NAMES = tuple(sorted(path.stem for path in REQUIREMENTS.glob("*.txt")))

DONE = ".installed"
FAILED = ".failed"


def main(arguments: Sequence[str]) -> int:
    """Make the environments that are missing, as many as can be made; return 1 if one could not."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers.environments", description="An environment for each peer, with pip, of bench/peers/requirements."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; unless given, all of them")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where they are made (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    if unknown := set(chosen.names) - set(NAMES):
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; expected some of {', '.join(NAMES)}")
    failures = [name for name in chosen.names or NAMES if not make(name, chosen.folder)]
    return 1 if failures else 0


def make(name: str, folder: Path) -> bool:
    """Install a peer's requirements into `folder / name`, unless they are there; print the outcome.

    Returns:
        True if the peer can be run. If not, a file there gives the reason, which goes into the records.
    """
    requirements = REQUIREMENTS / f"{name}.txt"
    here = folder / name
    version = hashlib.sha256(requirements.read_bytes() + (machine.ROOT / "constraints.txt").read_bytes()).hexdigest()
    if (here / DONE).exists() and (here / DONE).read_text(encoding="utf-8") == version:
        print(f"{name}: installed already")
        return True
    print(f"{name}: installing into {here} (a few minutes)", flush=True)
    for mark in (DONE, FAILED):
        (here / mark).unlink(missing_ok=True)
    for command in (
        [sys.executable, "-m", "venv", str(here)],
        [str(python(here)), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)],
    ):
        outcome = subprocess.run(command, check=False, capture_output=True, text=True)
        if outcome.returncode:
            reason = next((line for line in reversed(outcome.stderr.splitlines()) if line.strip()), f"exit status {outcome.returncode}")
            here.mkdir(parents=True, exist_ok=True)
            (here / FAILED).write_text(f"{' '.join(command[2:4])} failed: {reason.strip()}", encoding="utf-8")
            print(f"{name}: {reason.strip()}", file=sys.stderr)
            return False
    (here / DONE).write_text(version, encoding="utf-8")
    print(f"{name}: installed")
    return True


def python(environment: Path) -> Path:
    """Return the interpreter of an environment."""
    return environment / "bin" / "python"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
