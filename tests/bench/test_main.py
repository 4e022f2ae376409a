"""`python -m bench`: what fits the machine, what is left to do, and that one stage's failure is its exit status."""

from pathlib import Path

import pytest

from bench import __main__ as whole
from bench import learning, machine, report, throughput


@pytest.fixture(autouse=True)
def one_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "slug", lambda where: "a-cpu")
    monkeypatch.setattr(machine, "find_accelerator", lambda: None)
    monkeypatch.setattr(machine, "available_cores", lambda: [0, 1])
    monkeypatch.setattr(learning, "RUNS", tmp_path / "runs")


@pytest.mark.parametrize(("speed", "preset"), [(80.0, "halfcheetah-100k"), (50.0, "invertedpendulum-fast"), (1.0, "smoke")])
def test_the_longest_preset_that_fits_is_chosen(speed: float, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Six runs of 100,000 steps on two cores take 62 minutes at 80 steps per second and 100 at 50.
    monkeypatch.setattr(learning, "steps_per_second", lambda results, here: speed)
    assert whole.fitting_preset(tmp_path) == preset


def test_what_is_recorded_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {stage.name: stage.seconds for stage in whole.stages("smoke", tmp_path)}
    assert before == {
        "throughput": throughput.estimated_seconds(),
        "parity in float64": whole.PARITY_SECONDS,
        "parity in float32": whole.PARITY_SECONDS,
        "learning, preset smoke": 10_000 / learning.UNMEASURED_STEPS_PER_SECOND,
    }
    path = whole.parity_file(tmp_path, "float64")
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    monkeypatch.setattr(whole, "_recorded", lambda folder: True)
    after = {stage.name: stage.seconds for stage in whole.stages("smoke", tmp_path)}
    assert [name for name, seconds in after.items() if not seconds] == ["throughput", "parity in float64"]


def test_a_stage_that_fails_does_not_keep_the_others_from_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def module(*arguments: str) -> int:
        ran.append(arguments[0])
        return 3 if arguments[0] == "bench.throughput" else 0

    monkeypatch.setattr(whole, "_module", module)

    def reported(results: Path) -> int:
        ran.append("report")
        return 0

    monkeypatch.setattr(report, "main", reported)
    assert whole.main(preset="smoke", results=tmp_path, dry_run=True) == 0
    assert ran == []
    assert whole.main(preset="smoke", results=tmp_path) == 3
    assert ran == ["bench.throughput", "sacref", "sacref", "bench.learning", "report"]


def test_ctrl_c_ends_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def interrupted(*arguments: str) -> int:
        ran.append(arguments[0])
        return 130

    monkeypatch.setattr(whole, "_module", interrupted)
    assert whole.main(preset="smoke", results=tmp_path) == 130
    assert ran == ["bench.throughput"]
