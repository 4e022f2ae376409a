"""`python -m bench` measures everything that results/ holds, `python -m bench NAME ...` one suite; `--help` lists the suites."""

import sys
from collections.abc import Sequence

import tyro

from bench import suites


def main(arguments: Sequence[str]) -> int:
    """Run one suite, or all of them, and return the exit status.

    Args:
        arguments: of the command line; the first is the name of a suite, or a flag of the whole.
    """
    found = suites.find()
    if arguments and not arguments[0].startswith("-"):
        name, *rest = arguments
        # Only this suite is loaded: it binds the process to cores before it loads NumPy, torch or JAX.
        command = found[name].main if name in found else None
        if command is None:
            known = ", ".join(name for name, suite in found.items() if suite.main is not None)
            raise SystemExit(f"python -m bench {name}: no suite with a command of its own, expected one of {known}")
        return tyro.cli(command, args=rest, prog=f"python -m bench {name}")
    from bench import pipeline

    listed = "\n".join(f"  {name}: {suite.about}" for name, suite in found.items())
    description = f"Measure what is not recorded yet on this kind of machine, and write the report. Suites:\n\n{listed}"
    return tyro.cli(pipeline.main, args=arguments, prog="python -m bench", description=description)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
