"""`python -m sacref` is `sacref`."""

import sys

from sacref.cli import main

if __name__ == "__main__":
    sys.exit(main())
