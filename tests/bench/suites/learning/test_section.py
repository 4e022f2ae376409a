"""What the page says of the machines and the commits of learning runs, and what it draws."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from msgspec.structs import replace

from bench.core import record
from bench.core.page import Section
from bench.core.record import Hardware, Record
from bench.suites.learning import section as learning
from bench.suites.learning.presets import Comparison
from bench.suites.learning.samples import Evaluation, LearningSamples, Session

SESSION = Session(started="", resumed=False, wall_seconds=60.0, cpu_seconds=60.0, members=1, energy_joules=None)


def run(
    seed: int, *sessions: Session, preset: str = "some", env: str = "Task-v0", backend: str = "jax", cpu: str = "A"
) -> Record[LearningSamples]:
    """A run of 100,000 steps by commit c."""
    return Record(
        schema_version=record.SCHEMA_VERSION,
        suite="learning",
        run=f"{preset}-{backend}-seed{seed}",
        date="2026-01-02T03:04:05+00:00",
        sacref_version="0.1.0",
        commit="c" * 40,
        dirty=False,
        configuration={"preset": preset, "env": env, "backend": backend, "steps": 100_000},
        hardware=Hardware(cpu_model=cpu, cores=4, threads=1, memory_bytes=2**30, accelerator=None),
        libraries={},
        seed=seed,
        compile_seconds=None,
        samples=LearningSamples(evaluations=[Evaluation(step=100_000, returns=[float(seed)], seconds=None)], sessions=[*sessions]),
    )


def page(results: Path, *records: Record[LearningSamples]) -> Section:
    for one in records:
        record.write(results / "learning" / "2026-01-02-a" / f"{one.run}.json", one)
    return learning.section(results)


def line(section: Section, ends: str = "2026-01-02") -> str:
    (found,) = (each for each in section.paragraphs if each.startswith("sacref 0.1.0") and ends in each)
    return found


def by(*commits: str) -> Sequence[Session]:
    """Return a session by each commit; one that ends with "+" had changes."""
    return [replace(SESSION, commit=commit[0] * 40, dirty=commit.endswith("+")) for commit in commits]


def test_the_commits_of_all_sessions_are_listed(tmp_path: Path) -> None:
    said = line(page(tmp_path, run(0, SESSION), run(1, *by("b", "c")), run(2, *by("a+", "c"))))
    commits = [f"sacref 0.1.0, commit {each}" for each in ("a" * 10 + " with changes", "b" * 10, "c" * 10)]
    assert said == f"{' and '.join(commits)}, on A, 4 cores; each run on 1 core; 2026-01-02.\n"


def test_of_resumed_runs_without_commits_the_last_session_s_is_said_to_be_its(tmp_path: Path) -> None:
    resumed = [run(0, SESSION, SESSION, backend="torch"), run(3, SESSION, SESSION), run(4, SESSION, *by("b"))]
    assert line(page(tmp_path, *resumed, run(1, SESSION), run(2, *by("c", "c")))) == (
        "sacref 0.1.0, commit bbbbbbbbbb and sacref 0.1.0, commit cccccccccc, on A, 4 cores; each run on 1 core; 2026-01-02."
        " A resumed run is named by the commit of its last session: torch, seed 0; jax, seeds 3, 4.\n"
    )


def test_a_comparison_names_the_machines_of_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = Comparison(name="x", question="Does it?", preset="some", label="this", beside="other", beside_label="that")
    monkeypatch.setattr(learning, "COMPARISONS", (compared,))
    sides = run(0, SESSION, cpu="B"), run(0, SESSION, preset="other", cpu="A"), run(1, SESSION, preset="other", cpu="C")
    assert page(tmp_path, *sides).paragraphs[-1] == "sacref 0.1.0, on A, 4 cores and B, 4 cores and C, 4 cores.\n"


def drawn(section: Section, name: str) -> Figure:
    (picture,) = (picture for path, picture in section.pictures.items() if path.name == name)
    return picture.draw()


def test_the_picture_names_the_machine_of_its_wall_clock(tmp_path: Path) -> None:
    # Shared by both backends: A and B, of which B has more; C has the most, and torch none there.
    torch = [
        run(0, SESSION, backend="torch", cpu="A"),
        run(1, SESSION, backend="torch", cpu="B"),
        run(2, SESSION, backend="torch", cpu="B"),
    ]
    section = page(tmp_path, *torch, run(0, SESSION), run(1, SESSION, cpu="B"), *(run(seed, SESSION, cpu="C") for seed in range(2, 9)))
    assert drawn(section, "some.png").axes[1].get_xlabel() == "seconds, spread evenly over the steps,\nmedian on B, 4 cores"
    section = page(tmp_path / "other", run(0, SESSION, backend="torch"), run(0, SESSION, cpu="B"))
    assert drawn(section, "some.png").axes[1].get_xlabel() == "seconds, spread evenly over the steps,\nmedian on A, 4 cores and B, 4 cores"


def test_published_points_of_another_reward_are_drawn_as_such(tmp_path: Path) -> None:
    for env, others in (("Hopper-v5", 5), ("Ant-v5", 5), ("HalfCheetah-v5", 0)):
        axes = drawn(page(tmp_path / env, run(0, SESSION, env=env)), "some.png").axes[0]
        labels = [str(container.get_label()) for container in axes.containers]
        assert (len(labels) >= 5, sum("another reward" in label for label in labels)) == (True, others)
