"""Installed versions of libraries, as the files of runs and reports name them."""

import importlib.metadata
import platform
from collections.abc import Iterable


def installed(distributions: Iterable[str]) -> dict[str, str]:
    """Map "python", and each of the distributions that is installed, to its version."""
    versions = {"python": platform.python_version()}
    for name in distributions:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
