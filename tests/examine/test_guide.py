"""docs/examine.md: its worked example runs, and the examiner finds what the page says."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sacref.examine import examine
from sacref.examine.adapter import Adapter, record
from sacref.examine.adapters import ADAPTERS, load
from sacref.examine.identify import identify
from sacref.examine.problem import Problem, ordinary
from sacref.examine.report import choice_rows

GUIDE = (Path(__file__).parents[2] / "docs" / "examine.md").read_text(encoding="utf-8")


@contextmanager
def worked_example(folder: Path, guide: str) -> Iterator[Adapter]:
    """Write the guide's files to a folder, and load the adapter that they define."""
    pytest.importorskip("torch")
    for block in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", guide, re.DOTALL):
        (folder / block[0]).write_text(block[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(sys, "dont_write_bytecode", True)
        yield load("mysac_adapter:MySAC")
        for name in ("mysac", "mysac_adapter"):
            sys.modules.pop(name)


def test_the_worked_example_is_found_out(tmp_path: Path) -> None:
    with worked_example(tmp_path, GUIDE) as adapter:
        found = examine(adapter)
    rows = [row for row in choice_rows(found) if row[2]]
    assert len(rows) == 5
    for row in [*rows, *(tuple(finding) for finding in found.mistakes)]:
        assert "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" in GUIDE
    assert len(found.mistakes) == 2
    assert max(found.differences.values()) < 1e-9


def test_an_actor_without_gradients_through_its_actions_is_no_variant(tmp_path: Path) -> None:
    guide = GUIDE.replace("u = normal.rsample()", "u = torch.normal(normal.mean, normal.stddev)")
    assert guide != GUIDE
    with worked_example(tmp_path, guide) as adapter:
        left = identify([record(adapter, ordinary(Problem(), updates=1))]).left
    assert left is not None
    assert left.quantity == "actor loss"


def test_the_guide_names_every_adapter() -> None:
    assert {name for name in ADAPTERS if f"`{name}`" in GUIDE} == set(ADAPTERS)
