"""Suites register themselves: a folder is all that a new one needs, and every folder keeps to the same parts."""

import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import compare, pipeline, report, suites
from bench.core import runner
from bench.core.stage import Choices
from tests.changing import examples


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A suite in a folder of its own."""
    examples()["Benchmark suite"].apply(tmp_path)
    monkeypatch.setattr(suites, "__path__", [*suites.__path__, str(tmp_path / "bench" / "suites")])
    importlib.invalidate_caches()
    yield
    for name in [name for name in sys.modules if name.startswith("bench.suites.toy")]:
        del sys.modules[name]
    vars(suites).pop("toy", None)


@pytest.mark.usefixtures("toy")
def test_a_folder_is_all_that_a_new_suite_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "bind", lambda threads: 2)
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert "toy: Sums per second." in capsys.readouterr().out
    results = tmp_path / "results"
    monkeypatch.setattr(runner, "run_name", lambda suite, preset, threads: f"{suite}-{preset}")

    def stages() -> list[float]:
        return [stage.seconds for stage in pipeline.stages(Choices("smoke", results)) if stage.name == "toy, preset smoke"]

    assert stages() == [1.0]
    assert command.main(["toy", "--preset", "smoke", "--results", str(results / "toy")]) == 0
    assert stages() == [0.0]
    (path,) = results.glob("toy/*/toy-smoke.json")
    assert list(compare.figures(compare.load(path))) == ["sums"]
    report.build(results)
    page = (results / "README.md").read_text()
    assert "| Sums | 1 runs | [Toys](#toys) |" in page
    assert page.rstrip().endswith("preset smoke: 2 rounds")


@pytest.mark.parametrize("name", suites.find())
def test_a_suite_has_the_parts_that_it_says(name: str) -> None:
    suite = suites.find()[name]
    assert suite.name == name and suite.about.endswith(".") and "\n" not in suite.about
    assert suite.samples is None or suite.samples.suite == name
    section, measure = f"{suite.package}.section", f"{suite.package}.measure"
    if importlib.util.find_spec(section):
        assert callable(getattr(importlib.import_module(section), "section", None))
    else:
        assert suite.main is not None and suite.samples is None
    stages = getattr(importlib.import_module(measure), "stages", None) if importlib.util.find_spec(measure) else None
    assert (stages is not None) is (suite.stage_order is not None)


def test_the_page_and_the_whole_run_have_one_order() -> None:
    found = suites.find().values()
    for orders in ([suite.section_order for suite in found], [suite.stage_order for suite in found if suite.stage_order is not None]):
        assert len(orders) == len(set(orders))


def test_core_imports_no_suite_and_a_suite_no_other() -> None:
    read = {"backends": "learning", "tasks": "learning"}  # sections that read the records of another
    bench = Path(suites.__path__[0]).parent
    for path in sorted(bench.rglob("*.py")):
        owner = path.relative_to(bench).parts
        if owner[0] in ("core", "suites"):
            own = {owner[1], read.get(owner[1])} if owner[0] == "suites" else set()
            imported = set(re.findall(r"^\s*from bench\.suites\.(\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE))
            assert imported <= own, path
