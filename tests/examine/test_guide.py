"""docs/examine.md: its worked example runs, and the examiner finds what the page says."""

import re
import sys
from pathlib import Path

import pytest

from sacref.examine import examine
from sacref.examine.adapters import ADAPTERS, load
from sacref.examine.report import choice_rows

GUIDE = (Path(__file__).parents[2] / "docs" / "examine.md").read_text(encoding="utf-8")


def test_the_worked_example_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    for block in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", GUIDE, re.DOTALL):
        (tmp_path / block[0]).write_text(block[1])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    found = examine(load("mysac_adapter:MySAC"))
    for name in ("mysac", "mysac_adapter"):
        sys.modules.pop(name)
    rows = [row for row in choice_rows(found) if row[2]]
    assert len(rows) == 5
    for row in [*rows, *(tuple(finding) for finding in found.mistakes)]:
        assert "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" in GUIDE
    assert len(found.mistakes) == 2
    assert max(found.differences.values()) < 1e-9


def test_the_guide_names_every_adapter() -> None:
    assert {name for name in ADAPTERS if f"`{name}`" in GUIDE} == set(ADAPTERS)
