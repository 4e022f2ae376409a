"""`python -m sacref` is `sacref`."""

import sys


def main() -> int:
    """Run the command line; a Ctrl-C while it is still being loaded is one line and no traceback."""
    try:
        from sacref.cli.main import main as run
    except KeyboardInterrupt:
        print("sacref: interrupted before it began", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
