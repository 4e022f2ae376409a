"""The benchmark suites. Each folder here is one; its `__init__.py` sets `SUITE`, and nothing else names it."""

import importlib
import pkgutil

from bench.core.suite import Suite


def find() -> dict[str, Suite]:
    """Import every folder here, and return the suites by name, in the order of their sections.

    Raises:
        AttributeError: if a folder sets no `SUITE`.
    """
    found: list[Suite] = [importlib.import_module(f"{__name__}.{module.name}").SUITE for module in pkgutil.iter_modules(__path__)]
    return {suite.name: suite for suite in sorted(found, key=lambda suite: (suite.section_order, suite.name))}
