"""The page's table of examined implementations: choices that differ, mistakes that are there, and what was reproduced."""

from pathlib import Path
from typing import Any

import pytest

from bench.core.record import RecordError
from bench.suites.examined import section as examined
from sacref.examine.choices import VALUES
from sacref.examine.report import write


def a_record(name: str, **changed: Any) -> dict[str, Any]:
    """An examination without differences from sacref."""
    return {
        "schema_version": 1,
        "suite": "examined",
        "name": name,
        "libraries": {"numpy": "2"},
        "dtype": "float64",
        "updates": 6,
        "identified": True,
        "left": None,
        "choices": {field: [values[0]] for field, values in VALUES.items()} | changed.pop("choices", {}),
        "differences": {"critics": 1e-15},
        "findings": [{"mistake": "a mistake", "status": "absent", "got": ""}],
        **changed,
    }


def test_the_table_shows_what_differs_and_which_mistakes_are_there(tmp_path: Path) -> None:
    present = [
        {"mistake": "a mistake", "status": "present", "got": "-1"},
        {"mistake": "nobody's", "status": "absent", "got": ""},
        {"mistake": "hidden", "status": "not checkable", "got": ""},
    ]
    other = {"choices": {"target_alpha": ["after its step"], "schedule": []}, "findings": present}
    write(a_record("sacref torch"), tmp_path / "examined" / "a.json")
    write(a_record("other", **other), tmp_path / "examined" / "b.json")
    section = examined.section(tmp_path)
    text = "\n".join(section.paragraphs)
    assert "| choice | sacref torch | other |" in text
    assert "| alpha in the target |  | after its step |" in text
    assert "| a mistake |  | **-1** |" in text
    assert "- Absent in the 1 in which it can be checked: nobody's.\n- Not checkable in any: hidden." in text
    assert "- other (numpy 2): 6 updates reproduced to 1.0e-15 relative in float64." in text
    assert section.findings[0].found == "1 of 1 updates of others and 1 of 1 updates of sacref reproduced to rounding, choice by choice"


def test_the_page_says_in_words_which_can_be_compared(tmp_path: Path) -> None:
    close = {"log_prob": ["log(1 - a^2 + 1e-6)"], "schedule": []}
    far = {"squash": [VALUES["squash"][1]]}
    for name, choices in {"sacref torch": {}, "near": close, "far": far}.items():
        write(a_record(name, choices=choices), tmp_path / "examined" / f"{name}.json")
    text = "\n".join(examined.section(tmp_path).paragraphs)
    assert (
        "sacref torch and near can be compared with each other; they differ in what hardly changes a run: log |da/du| of the tanh." in text
    )
    assert (
        "- far can be compared with none of the others; unlike in sacref: action from the Gaussian's sample"
        " (cut at the Box's bounds, not squashed)." in text
    )


def test_a_quantity_that_leaves_every_variant_is_said(tmp_path: Path) -> None:
    write(a_record("other", identified=False, left={"quantity": "target"}), tmp_path / "examined" / "b.json")
    section = examined.section(tmp_path)
    assert "- other (numpy 2): leaves every variant at the target." in section.paragraphs[-1]
    assert section.findings[0].found == "0 of 1 updates of others reproduced to rounding, choice by choice"


def test_files_that_are_no_examination_are_refused_and_no_files_are_no_section(tmp_path: Path) -> None:
    assert examined.section(tmp_path).paragraphs == []
    write({"suite": "parity"}, tmp_path / "examined" / "b.json")
    with pytest.raises(RecordError, match=r"b.json: KeyError: 'schema_version'; run `sacref examine b --json b.json` again"):
        examined.section(tmp_path)
