"""`python -m sacref` is `sacref`."""

import sys


def main() -> int:
    """`sacref.cli.main.main`, with one line in the place of a traceback for a Ctrl-C while the program is still being loaded."""
    try:
        from sacref.cli.main import main as run
    except KeyboardInterrupt:
        print("sacref: interrupted before it began", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
