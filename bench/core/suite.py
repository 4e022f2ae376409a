"""A benchmark suite: a folder of bench/suites that registers itself."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.core.stage import Choices, Stage

if TYPE_CHECKING:
    from bench.core.page import Section
    from bench.core.samples import Samples


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A folder of bench/suites, whose `__init__.py` sets `SUITE` to one of these.

    The parts are modules of the folder, each of which may be absent. They are loaded when they are asked for: what measures binds its
    process to cores before it loads NumPy, torch or JAX.

    - `measure.py`: `main`, the function behind `python -m bench NAME`; `stages(choices)`, its part of `python -m bench`.
    - `samples.py`: the type of the samples in its records, `NameSamples` of a suite `name`.
    - `section.py`: `section(results)`, its part of results/README.md.
    """

    package: str
    """The folder's package, `__name__` in its `__init__.py`."""
    section_order: int
    """Place of its section on the page."""
    stage_order: int | None = None
    """Place of its stages in `python -m bench`; None if it has none."""

    @property
    def name(self) -> str:
        """Name of the suite, of its folder and of its folder under results/."""
        return self.package.rpartition(".")[2]

    @property
    def about(self) -> str:
        """A line about the suite: the docstring of its package."""
        return (sys.modules[self.package].__doc__ or "").strip()

    @property
    def samples(self) -> "type[Samples] | None":
        """The type of the samples in its records, named after the suite; None if its records are another's."""
        samples: type[Samples] | None = self._part("samples", f"{self.name.capitalize()}Samples")
        return samples

    @property
    def main(self) -> Callable[..., int] | None:
        """The function whose arguments are the flags of `python -m bench NAME`; None if the suite has no command."""
        main: Callable[..., int] | None = self._part("measure", "main")
        return main

    def stages(self, choices: Choices) -> list[Stage]:
        """Return the suite's part of `python -m bench`."""
        stages: Callable[[Choices], list[Stage]] | None = self._part("measure", "stages")
        return stages(choices) if stages else []

    def section(self, results: Path) -> "Section | None":
        """Return the suite's part of the page; None if it has none."""
        section: Callable[[Path], Section] | None = self._part("section", "section")
        return section(results) if section else None

    def _part(self, module: str, name: str) -> Any:
        full = f"{self.package}.{module}"
        return getattr(importlib.import_module(full), name, None) if find_spec(full) else None
