"""`python -m bench`: what fits the machine, what is left to do, and that one stage's failure is its exit status."""

from pathlib import Path

import pytest

from bench import pipeline, report
from bench.core import machine, runner, stage
from bench.core.stage import Choices, Stage
from bench.suites.amp import measure as amp
from bench.suites.executions import measure as executions
from bench.suites.host import measure as host
from bench.suites.learning import measure as learning
from bench.suites.learning.presets import PRESETS
from bench.suites.parity import measure as parity
from bench.suites.population import measure as population
from bench.suites.recurrent import measure as recurrent
from bench.suites.rollout import measure as rollout
from bench.suites.scaling import measure as scaling
from bench.suites.throughput import measure as throughput
from bench.suites.update import measure as update

RUNS = ("1core", "2cores")


@pytest.fixture(autouse=True)
def one_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "slug", lambda where: "a-cpu")
    monkeypatch.setattr(machine, "find_accelerator", lambda: None)
    monkeypatch.setattr(machine, "available_cores", lambda: [0, 1])
    monkeypatch.setattr(learning, "RUNS", tmp_path / "runs")


@pytest.mark.parametrize(
    ("speed", "preset"),
    [
        (1e4, "standard"),
        (9e3, "halfcheetah-1m"),
        (1e3, "halfcheetah-200k-nnabla"),
        (80.0, "halfcheetah-100k"),
        (50.0, "invertedpendulum-fast"),
        (1.0, "smoke"),
    ],
)
def test_the_longest_preset_that_fits_is_chosen(speed: float, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Six runs of 100,000 steps on two cores take 62 minutes at 80 steps per second and 100 at 50. The hundred runs of the standard suite,
    # of 1,000,000 steps each, take 83 minutes at 10,000 steps per second and 93 at 9,000.
    monkeypatch.setattr(learning, "steps_per_second", lambda results, here, preset=None, *, together=1: speed)
    assert learning.fitting_preset(tmp_path / "learning") == preset


def test_a_preset_whose_packages_are_missing_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "steps_per_second", lambda results, here, preset=None, *, together=1: 80.0)
    names = ("cheetah-run-100k", "smoke")
    monkeypatch.setattr(learning, "PRESETS", {name: PRESETS[name] for name in names})
    monkeypatch.setattr(learning, "COMPARISONS", ())
    for installed, chosen in ((True, "cheetah-run-100k"), (False, "smoke")):
        monkeypatch.setattr(learning, "register_dm_control", lambda installed=installed: installed)
        assert learning.fitting_preset(tmp_path / "learning") == chosen


def test_what_is_recorded_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {each.name: each.seconds for each in pipeline.stages(Choices("cpu", tmp_path, "smoke"))}
    assert before == {
        "throughput, preset medium": throughput.estimated_seconds(),
        "host, preset cpu": host.estimated_seconds("cpu", 1),
        "update, preset cpu": update.estimated_seconds("cpu", 2),
        "recurrent, preset cpu": recurrent.estimated_seconds("cpu", 2),
        "population, preset cpu": population.estimated_seconds("cpu", 2),
        "rollout, preset cpu": rollout.estimated_seconds("cpu", 2),
        "amp, preset cpu": amp.estimated_seconds("cpu", 2),
        "scaling, preset cpu": scaling.estimated_seconds("cpu", 2),
        "parity in float64": parity.SECONDS,
        "parity in float32": parity.SECONDS,
        "executions, preset cpu": executions.estimated_seconds("cpu", 2),
        "learning, preset smoke": 10_000 / learning.UNMEASURED_STEPS_PER_SECOND,
    }
    path = parity.record_path(tmp_path, "float64")
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    names: list[str] = []

    def recorded(results: Path, name: str, here: str) -> Path | None:
        names.append(name)
        return results if (name, results) in there else None

    there = {("rollout-cpu-2cores", tmp_path / "rollout"), *((f"HalfCheetah-v5-{cores}", tmp_path / "throughput") for cores in RUNS)}

    monkeypatch.setattr(runner, "recorded", recorded)
    after = {each.name: each.seconds for each in pipeline.stages(Choices("cpu", tmp_path, "smoke"))}
    assert [name for name, seconds in after.items() if not seconds] == [
        "throughput, preset medium",
        "rollout, preset cpu",
        "parity in float64",
    ]
    suites = ("update", "recurrent", "population", "rollout", "amp", "scaling", "executions")
    on_all = [*(f"HalfCheetah-v5-{cores}" for cores in RUNS), *(f"{suite}-cpu-2cores" for suite in suites)]
    assert sorted(names) == sorted([*on_all, "host-cpu-1core"])


def test_a_throughput_that_was_cut_off_goes_on_with_the_threads_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "recorded", lambda results, name, here: results if name == "HalfCheetah-v5-1core" else None)
    ran: list[tuple[str, ...]] = []

    def module(*arguments: str) -> int:
        ran.append(arguments)
        return 0

    monkeypatch.setattr(stage, "module", module)
    first = pipeline.stages(Choices("cpu", tmp_path, "smoke"))[0]
    assert first.seconds == throughput.estimated_seconds(throughput.PRESETS["medium"])
    first.run()
    assert ran == [("bench", "throughput", "--preset", "medium", "--threads", "2", "--results", str(tmp_path / "throughput"))]


def test_where_there_is_an_accelerator_seeds_are_trained_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_accelerator", lambda: "A GPU")
    stages = pipeline.stages(Choices("gpu", tmp_path, "halfcheetah-1m"))
    # Ten seeds of both backends, one process after the other.
    assert stages[-1].seconds == 20 * 1_000_000 / learning.UNMEASURED_STEPS_PER_SECOND_TOGETHER
    # 20 million steps take more than 90 minutes at 2,000 a second, and 4 million 33.
    assert learning.fitting_preset(tmp_path / "learning") == "halfcheetah-200k-nnabla"


def test_a_suite_of_learning_presets_is_one_stage(tmp_path: Path) -> None:
    stages = pipeline.stages(Choices("cpu", tmp_path, "standard"))
    assert stages[-1].name == "learning, preset standard"
    assert stages[-1].seconds == 50 * 1_000_000 / learning.UNMEASURED_STEPS_PER_SECOND


def test_each_stage_says_how_long_all_that_is_left_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stages(choices: Choices) -> list[Stage]:
        return [Stage(name=name, seconds=seconds, run=lambda: 0) for name, seconds in (("a", 120.0), ("b", 0.0), ("c", 300.0))]

    monkeypatch.setattr(pipeline, "stages", stages)
    monkeypatch.setattr(report, "main", lambda results: 0)
    assert pipeline.main(preset="smoke", results=tmp_path) == 0
    lines = [line.strip("─ ") for line in capsys.readouterr().out.splitlines() if line.startswith("─")]
    assert lines == ["1 of 2: a (about 7 min to the end of all)", "2 of 2: c (about 5 min to the end of all)"]


@pytest.mark.parametrize(
    ("seconds", "dry_run", "lines"),
    [
        (
            (90.0, 0.0, 90.0, 722.0),
            True,
            "a: about 90 s b: recorded already c: about 90 s d: about 12 min "
            "3 of 4 to measure, one after the other: about 15 min together. Nothing was started.",
        ),
        (
            (20.0, 50_000.0),
            False,
            "a: about 20 s b: about 14 h 2 of 2 to measure, one after the other: about 14 h together, then the report. "
            "Ctrl-C stops; the same command goes on where it stopped.",
        ),
        ((0.0,), True, "a: recorded already All is recorded, and nothing is left to measure. Nothing was started."),
        ((0.0,), False, "a: recorded already All is recorded, and nothing is left to measure: only the report is written."),
    ],
)
def test_the_sum_is_that_of_what_is_left(
    seconds: tuple[float, ...],
    dry_run: bool,
    lines: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = [Stage(name=name, seconds=each, run=lambda: 0) for name, each in zip("abcd", seconds, strict=False)]
    monkeypatch.setattr(pipeline, "stages", lambda choices: found)
    monkeypatch.setattr(report, "main", lambda results: 0)
    assert pipeline.main(preset="smoke", results=tmp_path, dry_run=dry_run) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("─")]
    assert " ".join(said[1:]) == lines


def test_a_stage_that_fails_does_not_keep_the_others_from_running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, ...]] = []

    def module(*arguments: str) -> int:
        ran.append(arguments)
        return 3 if arguments[:2] == ("bench", "throughput") else 0

    monkeypatch.setattr(stage, "module", module)

    def reported(results: Path) -> int:
        ran.append(("report",))
        return 0

    monkeypatch.setattr(report, "main", reported)
    assert pipeline.main(preset="smoke", results=tmp_path, dry_run=True) == 0
    assert ran == []
    assert pipeline.main(preset="smoke", results=tmp_path) == 3
    suites = ["throughput", "host", "update", "recurrent", "population", "rollout", "amp", "scaling"]
    assert [" ".join(arguments[:2]) for arguments in ran] == [
        *(f"bench {name}" for name in suites),
        *("sacref parity", "sacref parity", "bench executions", "bench learning", "report"),
    ]
    assert [arguments[2:4] for arguments in ran[:8]] == [("--preset", "smoke")] * 8
    assert ran[8][:4] == ("sacref", "parity", "--updates", "100")
    assert ran[11][2] == "smoke"


def test_a_smoke_run_stays_out_of_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ROOT", tmp_path)
    went: list[str] = []

    def module(*arguments: str) -> int:
        went.append(arguments[-1])
        return 0

    monkeypatch.setattr(stage, "module", module)
    monkeypatch.setattr(report, "main", lambda results: module(str(results)))
    assert pipeline.main(preset="smoke") == 0
    assert len(went) == 13
    assert all(path.startswith(str(tmp_path / "runs" / "smoke")) for path in went)


def test_a_smoke_run_takes_a_few_minutes(tmp_path: Path) -> None:
    assert sum(each.seconds for each in pipeline.stages(Choices("smoke", tmp_path))) < 12 * 60


def test_the_preset_follows_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    presets: list[str] = []

    def stages(choices: Choices) -> list[Stage]:
        presets.append(f"{choices.preset}: {learning.stages(choices)[0].name}")
        return []

    monkeypatch.setattr(pipeline, "stages", stages)
    monkeypatch.setattr(learning, "steps_per_second", lambda results, here, preset=None, *, together=1: 80.0)
    pipeline.main(results=tmp_path, dry_run=True)
    monkeypatch.setattr(machine, "find_accelerator", lambda: "A GPU")
    pipeline.main(results=tmp_path, dry_run=True, learning_preset="invertedpendulum")
    assert presets == ["cpu: learning, preset halfcheetah-100k", "gpu: learning, preset invertedpendulum"]
    with pytest.raises(SystemExit, match="--learning-preset is 'ants', expected one of"):
        pipeline.main(learning_preset="ants", results=tmp_path)


def test_ctrl_c_ends_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def interrupted(*arguments: str) -> int:
        ran.append(arguments[1])
        return 130

    monkeypatch.setattr(stage, "module", interrupted)
    assert pipeline.main(preset="smoke", results=tmp_path) == 130
    assert ran == ["throughput"]
