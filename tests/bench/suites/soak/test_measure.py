"""Long runs: what counts as flat, what is noted on the way, and, over a few thousand steps, that nothing is left behind."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from msgspec.structs import replace

from bench import report
from bench.compare import figures
from bench.core import machine, record, runner
from bench.core.plots import NAMES
from bench.core.record import Hardware, Record
from bench.suites.soak import measure as soak
from bench.suites.soak.measure import full, growth, verdict
from bench.suites.soak.samples import SoakCell, SoakSample, SoakSamples
from bench.suites.soak.worker import EPISODE_STEPS, Counting, Gauge, open_files
from tests.backends import BACKENDS, Backend, jax_in_full, load_backend

backend = pytest.fixture(params=BACKENDS)(load_backend)


def cell(*megabytes: float, files: tuple[int, ...] = (5,), left: float = 0.0, **changes: Any) -> SoakCell:
    """A run of 1,000 steps whose memory is full after 300, with a sample every 100, that leaves so many blocks behind in each step."""
    samples = [
        SoakSample(
            step=100 * (i + 1),
            resident_bytes=int(2**20 * each),
            open_files=files[i % len(files)],
            blocks=int(left * 100 * (i + 1)) + 5 * (i % 2),
        )
        for i, each in enumerate(megabytes)
    ]
    made = SoakCell(backend="torch", execution="traced", steps=1_000, capacity=300, samples=samples, missing=None)
    return replace(made, **changes)


# From 400 on the memory is full: 300 transitions are stored, and the first 10 steps are random.
FLAT = cell(50, 80, 99, 100, 101, 99, 100.5)


def test_samples_count_from_when_the_memory_is_full() -> None:
    assert [sample.step for sample in full(FLAT)] == [400, 500, 600, 700]
    assert growth(FLAT) == pytest.approx(0.01)
    assert verdict(FLAT) == ""


def test_what_grows_or_shrinks_is_told() -> None:
    assert verdict(cell(50, 80, 99, 100, 101, 102.5)) == "resident memory differs by 2.5%, at most 2% are expected"
    assert verdict(cell(50, 80, 99, 100, 101, 97)) == "resident memory differs by 3.0%, at most 2% are expected"
    assert verdict(cell(1, 1, 1, 100, 100, 100, files=(7, 5, 6))) == "there are 5 to 7 open files, their number is expected to stay"
    assert verdict(cell(missing="no torch")) == ""
    assert verdict(cell(*[1] * 9, left=0.4)) == ""
    assert verdict(cell(*[1] * 9, left=1.0)) == "each step leaves 0.98 blocks behind, at most 0.5 are expected"


def test_a_gauge_samples_the_first_environment_alone() -> None:
    gauge = Gauge(every=3)
    first, second = gauge(Counting()), gauge(Counting())
    assert isinstance(first, gymnasium.Wrapper) and isinstance(second, Counting)
    for env in (first, second):
        env.reset()
        for _ in range(7):
            env.step(np.zeros(1, np.float32))
    assert [sample.step for sample in gauge.samples] == [3, 6]
    assert {sample.open_files for sample in gauge.samples} == {open_files()}


GROWN = """
import sys
import numpy as np
from bench.suites.soak.worker import open_files, resident_bytes
before, files = resident_bytes(), open_files()
held = np.ones(2**23)
with open(sys.argv[1], "w"):
    print((resident_bytes() - before) / held.nbytes, open_files() - files)
"""


def test_memory_and_files_are_those_of_this_process(tmp_path: Path) -> None:
    # In a process of its own: what other tests left behind may be freed at any moment in this one.
    printed = subprocess.run(
        [sys.executable, "-c", GROWN, str(tmp_path / "file")], capture_output=True, text=True, check=True, cwd=machine.ROOT
    ).stdout
    memory, files = printed.split()
    assert 0.9 < float(memory) < 1.5
    assert int(files) == 1


def test_an_environment_truncates_after_its_steps() -> None:
    env = Counting()
    env.reset()
    ends = [env.step(np.full(1, 0.25, np.float32))[1:4] for _ in range(EPISODE_STEPS)]
    assert ends[0] == (0.75, False, False) and ends[-1] == (0.75, False, True)
    assert env.observation_space.contains(env.reset()[0])


@jax_in_full
def test_a_run_leaves_nothing_behind(backend: Backend) -> None:
    """Resident memory shows so little in so few steps only where it is much; Python's own count shows each object."""
    sizes = soak.Sizes(steps=3_000, capacity=1_000, samples=60)
    (found,) = soak.measure(backend.name, sizes, seed=0).cells
    assert (found.backend, found.steps, found.capacity, found.missing) == (backend.name, 3_000, 1_000, None)
    assert found.execution == {"torch": "traced", "jax": "scan"}[backend.name]
    assert [sample.step for sample in found.samples] == list(range(50, 3_000, 50))
    assert {sample.open_files for sample in full(found)} == {full(found)[0].open_files}
    assert soak.blocks_per_step(found) < soak.BLOCKS_PER_STEP
    assert growth(found) < soak.TOLERANCE


def test_a_backend_that_is_not_there_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "missing_backends", lambda: {"jax": "no jax"})
    assert soak.measure("jax", soak.PRESETS["cpu"], seed=0).cells[0].missing == "no jax"


def test_growth_is_the_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(runner, "bind", lambda threads: 2)
    monkeypatch.setattr(runner, "PARTIAL", tmp_path / "partial")
    monkeypatch.setattr(machine, "find_accelerator", lambda: None)
    assert soak.main(results=tmp_path, dry_run=True) == 0
    assert not list(tmp_path.iterdir())
    for backends, status in ({"torch": FLAT, "jax": FLAT}, 0), ({"torch": FLAT, "jax": cell(1, 1, 1, 100, 103)}, 1):
        monkeypatch.setattr(soak, "measure", lambda name, *_, found=backends: SoakSamples(cells=[replace(found[name], backend=name)]))
        assert soak.main(results=tmp_path) == status
    assert "jax: resident memory differs by 3.0%" in capsys.readouterr().out


def soak_record() -> Record[SoakSamples]:
    cells = [FLAT, cell(backend="jax", execution=None, missing="no jax")]
    return Record(
        schema_version=record.SCHEMA_VERSION,
        suite="soak",
        run="soak-cpu-2cores",
        date="2026-01-02T03:04:05+00:00",
        sacref_version="0.1.0",
        commit="0123456789abcdef",
        dirty=False,
        configuration={"preset": "cpu"},
        hardware=Hardware(cpu_model="A CPU", cores=2, threads=2, memory_bytes=2**30, accelerator=None),
        libraries={"numpy": "2"},
        seed=0,
        compile_seconds=None,
        samples=SoakSamples(cells=cells),
    )


def test_the_page_says_what_grew(tmp_path: Path) -> None:
    record.write(tmp_path / "soak" / "2026-01-02-a" / "s.json", soak_record())
    assert [path.name for path in report.build(tmp_path)] == ["README.md"]
    text = (tmp_path / "README.md").read_text()
    assert f"| {NAMES['torch']} | traced | 1,000 | 400 | 100.0 | 100.5 | 1.00% | 0.000 | 5 |" in text
    assert f"| {NAMES['jax']} |  | 1,000 | missing: no jax |  |  |  |  |  |" in text
    assert report.build(tmp_path) == []
    found = figures([soak_record()])
    assert {name: figure.values for name, figure in found.items()} == {"torch, memory at the end": [100.5]}
    assert not found["torch, memory at the end"].higher_is_better
