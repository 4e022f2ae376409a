"""The scaling suite: the ranks of a group work together, groups take turns, a lost one is told so, and the page says what it costs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from bench import report
from bench.compare import figures
from bench.core import machine, record, runner
from bench.core.record import Hardware, Record
from bench.core.samples import Timing
from bench.suites.scaling import measure as scaling
from bench.suites.scaling import section as page
from bench.suites.scaling.measure import PRESETS, Sizes
from bench.suites.scaling.samples import ScalingCell, ScalingSamples
from bench.suites.scaling.worker import Group, LostGroup, Place, Work, shares

SIZES = Sizes(ranks=(1, 2, 4), widths=(8,), gradient_steps=3, rounds=2, round_seconds=0.0)


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_accelerators", list)
    monkeypatch.setattr(machine, "available_cores", lambda: [3, 5])


class Fake:
    """A group that notes what it is asked; a rank of three is lost in its second round."""

    log: Sequence[Any] = []

    def __init__(self, backend: str, size: int, cores: Sequence[int], device: str, *, stored: int, seed: int) -> None:
        self.size = size
        self.closed = False
        self.calls = 0
        Fake.log = [*Fake.log, ("start", backend, size, tuple(cores), device)]

    def prepare(self, work: Work) -> str:
        return f"way of {work.batch}"

    def stretch(self, work: Work, calls: int) -> Timing:
        Fake.log = [*Fake.log, (self.size, work.batch)]
        self.calls += 1
        if self.size == 4 and self.calls > 4:
            raise LostGroup("a rank of 4 ended")
        return Timing(count=calls * work.gradient_steps, seconds=2.0)

    def ask(self, method: str, work: Work) -> list[str]:
        return [method] * self.size

    def close(self) -> None:
        Fake.log = [*Fake.log, ("close", self.size)]


def test_ranks_take_turns_and_a_lost_group_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "missing_backends", dict)
    monkeypatch.setattr(Fake, "log", [])
    start: Any = Fake
    cells = scaling.measure("torch", 8, SIZES, seed=0, start=start).cells
    assert Fake.log[:3] == [("start", "torch", count, (3, 5), "cpu") for count in (1, 2, 4)]
    turn = [(1, 256), (2, 256), (2, 128), (4, 256)]
    # Two calls warm each up; the rank of four that is lost in the first round has no turn in the second.
    assert Fake.log[3:13] == [work for work in [*turn, (4, 64)] for _ in range(2)]
    assert Fake.log[13:] == [*turn, *turn[:3], ("close", 4), ("close", 2), ("close", 1)]
    assert [(cell.ranks, cell.scaling, cell.threads, cell.batch, cell.chosen, len(cell.timings), cell.missing) for cell in cells] == [
        (1, "weak", 2, 256, "way of 256", 2, None),
        (2, "weak", 1, 256, "way of 256", 2, None),
        (2, "strong", 1, 128, "way of 128", 2, None),
        (4, "weak", 1, 256, None, 0, "a rank of 4 ended"),
        (4, "strong", 1, 64, None, 0, "a rank of 4 ended"),
    ]
    assert {timed.count for cell in cells for timed in cell.timings} == {3}


def test_a_backend_that_is_not_there_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "missing_backends", lambda: {"jax": "no jax"})
    monkeypatch.setattr(Fake, "log", [])
    start: Any = Fake
    assert [cell.missing for cell in scaling.measure("jax", 8, SIZES, seed=0, start=start).cells] == ["no jax"] * 5
    assert Fake.log == []


def test_cores_are_shared_and_a_rank_has_at_least_one() -> None:
    assert shares([3, 5], 1) == [(3, 5)]
    assert shares([3, 5], 2) == [(3,), (5,)]
    assert shares([3, 5], 4) == [(3,), (5,), (3,), (5,)]
    assert shares([0, 1, 2, 3, 4, 5, 6, 7], 3) == [(0, 1), (2, 3), (4, 5)]
    environment = Place(rank=1, size=2, port=7, cores=(3, 5), device="cpu").environment()
    assert {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items() <= environment.items()
    assert (environment["MASTER_PORT"], environment["OMP_NUM_THREADS"]) == ("7", "2")


def test_ranks_compute_on_gpus_where_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    assert scaling.device_and_ranks(PRESETS["gpu"]) == ("cpu", (1, 2, 4))
    assert scaling.plan("gpu", 2, 0).on_cpu
    monkeypatch.setattr(machine, "find_accelerators", lambda: ["A GPU"])
    assert scaling.device_and_ranks(PRESETS["gpu"]) == ("cpu", (1, 2, 4))
    assert scaling.plan("gpu", 2, 0).on_cpu
    monkeypatch.setattr(machine, "find_accelerators", lambda: ["A GPU"] * 2)
    assert scaling.device_and_ranks(PRESETS["gpu"]) == ("cuda", (1, 2))
    assert not scaling.plan("gpu", 2, 0).on_cpu


def test_the_presets_are_what_they_promise() -> None:
    assert all(scaling.BATCH % count == 0 and sizes.ranks[0] == 1 for sizes in PRESETS.values() for count in sizes.ranks)
    assert {1, 2, 4} <= set(PRESETS["cpu"].ranks)
    assert scaling.estimated_seconds("smoke", 2) < 60
    assert scaling.estimated_seconds("cpu", 2) < 10 * 60


@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.full)])
def test_two_ranks_learn_as_one_agent_and_a_rank_that_ends_ends_the_group(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(backend)
    cores = sorted(os.sched_getaffinity(0))
    group = Group(backend, 2, cores, "cpu", stored=40, seed=0)
    try:
        work = Work(batch=4, width=8, gradient_steps=2)
        assert group.prepare(work) == ("traced" if backend == "torch" else "scan")
        timed = group.stretch(work, 3)
        assert (timed.count, timed.seconds > 0) == (6, True)
        # Each draws its own batches: had they learned apart, they would differ.
        group.require_equal(work)
        with monkeypatch.context() as patched:
            patched.setattr(group, "ask", lambda method, work: ["one", "another"])
            with pytest.raises(LostGroup, match="the 2 ranks have not learned the same"):
                group.require_equal(work)
        group._processes[1].kill()
        with pytest.raises(LostGroup, match="a rank of 2 ended at stretch"):
            group.stretch(work, 1)
    finally:
        group.close()


def test_the_plan_is_printed_and_nothing_measured_in_a_dry_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "bind", lambda threads: 2)
    monkeypatch.setattr(machine, "find_accelerator", lambda: None)
    assert scaling.main(preset="cpu", results=tmp_path, dry_run=True) == 0
    shown = capsys.readouterr().out
    assert "by ranks (1, 2, 4) on cpu, preset cpu, 2 core(s)" in shown
    assert "scaling-cpu-2cores: 4 of 4 to do, together about" in shown
    assert not list(tmp_path.iterdir())


def cell(scale: Any, ranks: int, *rates: float, **changes: Any) -> ScalingCell:
    made = ScalingCell(
        backend="torch",
        scaling=scale,
        ranks=ranks,
        threads=max(1, 2 // ranks),
        device="cpu",
        batch=256 if scale == "weak" else 256 // ranks,
        width=64,
        chosen="traced",
        gradient_steps=2,
        timings=[Timing(count=2, seconds=2 / rate) for rate in rates],
        compile_seconds=1.25,
        missing=None,
    )
    return replace(made, **changes)


def scaling_record() -> Record[ScalingSamples]:
    cells = [
        cell("weak", 1, 90.0, 100.0, 400.0),
        cell("weak", 2, 80.0),
        cell("strong", 2, 150.0),
        cell("weak", 1, missing="no jax", backend="jax", chosen=None, compile_seconds=None),
    ]
    return Record(
        schema_version=record.SCHEMA_VERSION,
        suite="scaling",
        run="scaling-cpu-2cores",
        date="2026-01-02T03:04:05+00:00",
        sacref_version="0.1.0",
        commit="0123456789abcdef",
        dirty=False,
        configuration={"preset": "cpu", "device": "cpu"},
        hardware=Hardware(cpu_model="A CPU", cores=2, threads=2, memory_bytes=2**30, accelerator=None),
        libraries={"numpy": "2"},
        seed=0,
        compile_seconds=None,
        samples=ScalingSamples(cells=cells),
    )


def test_the_page_says_what_ranks_gain(tmp_path: Path) -> None:
    record.write(tmp_path / "scaling" / "2026-01-02-a" / "s.json", scaling_record())
    written = report.build(tmp_path)
    assert {path.name for path in written} == {"scaling-cpu-2cores-a-2core.png", "scaling-cpu-2cores-a-2core-dark.png", "README.md"}
    text = (tmp_path / "README.md").read_text()
    assert "not the gain of another machine" in text
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| 64 |")]
    # 100 steps of 256 transitions alone; 80 of 512 are 1.6 times as many, 150 of 256 one and a half times.
    assert rows[0] == ["64", "torch", "one rank", "1", "2", "256", "traced", "100", "25,600", "1.00", "100%", "1.2 s"]
    assert rows[1] == ["64", "torch", "weak", "2", "1", "256", "traced", "80", "40,960", "1.60", "80%", "1.2 s"]
    assert rows[2] == ["64", "torch", "strong", "2", "1", "128", "traced", "150", "38,400", "1.50", "75%", "1.2 s"]
    assert rows[3][1:7] == ["jax", "one rank", "1", "2", "256", "missing: no jax"]
    samples = scaling_record().samples
    assert isinstance(samples, ScalingSamples)
    assert page.curves(samples.cells) == {64: [("torch", True, [1, 2], [1.0, 1.6]), ("torch", False, [1, 2], [1.0, 1.5])]}
    assert report.build(tmp_path) == []


def test_the_figures_of_two_records_can_be_compared() -> None:
    found = figures([scaling_record()])
    assert {name: figure.values[-1] for name, figure in found.items()} == {
        "torch, one rank, width 64 on cpu": 400.0,
        "torch, 2 ranks, weak, width 64 on cpu": 80.0,
        "torch, 2 ranks, strong, width 64 on cpu": 150.0,
    }
