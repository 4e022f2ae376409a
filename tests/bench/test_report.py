"""The report says what the records hold, repeats itself, and notices when it is out of date."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from bench import plots, record, report
from bench.published import published
from bench.record import Contender, Evaluation, Hardware, LearningSamples, Record, Round, Session, ThroughputSamples
from bench.sections import learning, throughput

HARDWARE = Hardware(cpu_model="A CPU", cores=4, threads=1, memory_bytes=2**30, accelerator=None)


def run(backend: str, seed: int, last: float, **changes: object) -> Record:
    """A run of 100,000 steps that ends at return `last`."""
    written = Record(
        schema_version=record.SCHEMA_VERSION,
        suite="learning",
        run=f"headline-{backend}-seed{seed}",
        date="2026-01-02T03:04:05+00:00",
        sacref_version="0.1.0",
        commit="0123456789abcdef",
        dirty=False,
        configuration={"preset": "headline", "env": "HalfCheetah-v5", "backend": backend, "steps": 100_000},
        hardware=HARDWARE,
        libraries={"numpy": "2"},
        seed=seed,
        compile_seconds=None,
        samples=LearningSamples(
            evaluations=[Evaluation(step=50_000, returns=[last / 2]), Evaluation(step=100_000, returns=[last - 100, last + 100])],
            sessions=[
                Session(started="", resumed=False, wall_seconds=600.0, cpu_seconds=600.0),
                Session(started="", resumed=True, wall_seconds=400.0, cpu_seconds=400.0),
            ],
        ),
    )
    return dataclasses.replace(written, **changes)  # type: ignore[arg-type]  # The tests name fields only.


def rounds(*seconds: float) -> list[Round]:
    return [Round(steps=100, seconds=each) for each in seconds]


def speeds(peer: bool = True) -> Record:
    contenders = [
        Contender(name="sacref torch", rounds=[Round(steps=100, seconds=s) for s in (1.0, 0.5, 2.0)], compile_seconds=0.0, missing=None),
        Contender(name="sacref jax", rounds=[Round(steps=100, seconds=s) for s in (0.25, 0.5, 0.2)], compile_seconds=1.25, missing=None),
        Contender(
            name="A peer", rounds=[Round(steps=100, seconds=2.0)] * 3 * peer, compile_seconds=None, missing=None if peer else "absent"
        ),
    ]
    return dataclasses.replace(
        run("torch", 0, 0.0),
        suite="throughput",
        run="speed",
        configuration={"env": "HalfCheetah-v5"},
        samples=ThroughputSamples(contenders=contenders),
    )


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Three seeds of each backend, and a throughput run."""
    for backend, finals in {"torch": (5000.0, 5500.0, 6000.0), "jax": (5400.0, 5600.0, 6100.0)}.items():
        for seed, last in enumerate(finals):
            record.write(tmp_path / "learning" / "2026-01-02-a" / f"{backend}{seed}.json", run(backend, seed, last))
    record.write(tmp_path / "throughput" / "2026-01-02-a" / "speed.json", speeds())
    return tmp_path


def row(results: Path, start: str) -> list[str]:
    """The cells of the page's row that starts with `start`."""
    line = next(line for line in (results / "README.md").read_text().splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_holds_the_final_evaluations(results: Path) -> None:
    report.build(results)
    cells = row(results, "torch")
    # Mean 5,500, std 500; half width of the t interval 4.302653 * 500 / sqrt(3) = 1,242; 100,000 steps in 1,000 seconds.
    assert cells[:5] == ["torch", "0, 1, 2", "5,500", "500", "[4,258, 6,742]"]
    assert cells[6:] == ["5,000, 5,500, 6,000", "100"]
    text = (results / "README.md").read_text()
    assert "final evaluation of 10 deterministic episodes" in text
    assert "The backends' intervals of the mean overlap." in text
    assert "sacref 0.1.0, commit 0123456789, on A CPU, 4 cores; each run on 1 core(s); 2026-01-02." in text


def test_intervals_apart_are_said_to_be(tmp_path: Path) -> None:
    for backend, finals in {"torch": (1000.0, 1001.0), "jax": (9000.0, 9001.0)}.items():
        for seed, last in enumerate(finals):
            record.write(tmp_path / "learning" / "2026-01-02-a" / f"{backend}{seed}.json", run(backend, seed, last))
    report.build(tmp_path)
    assert "intervals of the mean do **not** overlap" in (tmp_path / "README.md").read_text()


def test_published_points_stand_with_their_metric_and_citation(results: Path) -> None:
    report.build(results)
    cells = row(results, "ikostrikov/jaxrl@7745b27")
    assert cells[1:4] == ["HalfCheetah-v2", "50,000", "3,910 ± 462"]
    assert cells[5] == "10 deterministic eval episodes per point per seed"
    assert cells[6].startswith("`ikostrikov/jaxrl@7745b27:learning_curves/")


def test_published_points_are_those_of_the_task_within_its_steps() -> None:
    found = published("HalfCheetah-v5", 100_000)
    at_the_end = {point.source.split("@")[0]: (point.mean, point.std) for point in found if point.steps > 99_000}
    assert at_the_end["ikostrikov/jaxrl"] == (5794.1, 436.9)
    assert at_the_end["thu-ml/tianshou"] == (6514.6, 514.2)
    assert {point.env for point in found} == {"HalfCheetah"}
    assert max(point.steps for point in published("HalfCheetah-v5", 60_000)) == 50_000
    assert published("Hopper-v5", 100_000) == []


def test_a_speed_is_a_ratio_to_the_peer_of_the_same_run(results: Path) -> None:
    report.build(results)
    # Medians: 100 steps in 1 s, in 0.25 s, and the peer's in 2 s.
    assert row(results, "sacref torch") == ["sacref torch", "100", "50 to 200", "2.00", "0.0 s"]
    assert row(results, "sacref jax") == ["sacref jax", "400", "200 to 500", "8.00", "1.2 s"]
    assert row(results, "A peer")[3] == "1.00"


def test_a_missing_peer_is_reported_and_no_ratio_given(tmp_path: Path) -> None:
    record.write(tmp_path / "throughput" / "2026-01-02-a" / "speed.json", speeds(peer=False))
    report.build(tmp_path)
    assert row(tmp_path, "A peer")[1] == "missing: absent"
    assert row(tmp_path, "sacref jax")[3] == "no peer in this run"


def test_the_curve_has_the_steps_that_every_seed_has() -> None:
    short = run("torch", 1, 7000.0)
    short = dataclasses.replace(short, samples=LearningSamples(evaluations=[Evaluation(step=100_000, returns=[7000.0])], sessions=[]))
    (point,) = learning.curve([run("torch", 0, 5000.0), short])
    assert (point.step, point.mean, point.seeds) == (100_000, 6000.0, 2)


def test_the_newer_record_of_one_run_counts_and_versions_stay_apart() -> None:
    old, new = run("torch", 0, 1.0), run("torch", 0, 2.0, date="2026-02-01T00:00:00+00:00")
    other = run("torch", 0, 3.0, sacref_version="0.2.0", date="2026-03-01T00:00:00+00:00")
    groups = learning.group([new, old, other])
    assert [(found.version, [learning.final(one) for one in found.runs["torch"]]) for found in groups] == [
        ("0.2.0", [3.0]),
        ("0.1.0", [2.0]),
    ]


def test_one_name_for_two_tasks_is_refused() -> None:
    longer = run("torch", 1, 1.0, configuration={"preset": "headline", "env": "HalfCheetah-v5", "backend": "torch", "steps": 7})
    with pytest.raises(record.RecordError, match="preset headline stands for"):
        learning.group([run("torch", 0, 1.0), longer])


def test_the_report_repeats_itself(results: Path) -> None:
    written = report.build(results)
    assert {path.name for path in written} == {"headline.png", "throughput.png", "README.md"}
    before = {path: path.read_bytes() for path in written}
    assert report.build(results) == []
    for path in written:
        path.unlink()
    report.build(results)
    assert {path: path.read_bytes() for path in written} == before


@pytest.mark.parametrize("name", ["README.md", "learning/headline.png", "throughput/throughput.png"])
def test_check_fails_where_a_file_is_missing_and_writes_nothing(results: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    report.build(results)
    assert report.main(results=results, check=True) == 0
    (results / name).unlink()
    assert report.main(results=results, check=True) == 1
    assert re.search(rf"{name}: .*run `python -m bench.report`", capsys.readouterr().err)
    assert not (results / name).exists()


def test_check_fails_after_a_record_changed_or_the_page_was_edited(results: Path) -> None:
    report.build(results)
    record.write(results / "learning" / "2026-01-02-a" / "torch0.json", run("torch", 0, 5001.0))
    with pytest.raises(report.StaleError, match=r"headline\.png.*README\.md"):
        report.build(results, check=True)
    report.build(results)
    page = results / "README.md"
    page.write_text(page.read_text().replace("5,500", "9,500"))
    with pytest.raises(report.StaleError, match=r"README\.md"):
        report.build(results, check=True)


def test_a_record_that_lacks_a_field_stops_the_report(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = results / "learning" / "2026-01-02-a" / "torch0.json"
    broken = json.loads(path.read_text())
    del broken["samples"]["evaluations"][1]["returns"]
    path.write_text(json.dumps(broken))
    assert report.main(results=results) == 1
    assert "torch0.json: samples.evaluations[1].returns is missing" in capsys.readouterr().err
    assert not (results / "README.md").exists()


def test_a_picture_carries_the_digest_of_its_data(results: Path) -> None:
    report.build(results)
    first = plots.digest_of(results / "learning" / "headline.png")
    assert first is not None
    assert len(first) == 64
    assert plots.digest_of(results / "learning" / "none.png") is None


def test_the_newest_throughput_run_of_a_machine_counts(results: Path) -> None:
    newer = dataclasses.replace(speeds(peer=False), date="2027-01-01T00:00:00+00:00")
    record.write(results / "throughput" / "2027-01-01-a" / "speed.json", newer)
    assert len([part for part in throughput.section(results).paragraphs if part.startswith("###")]) == 1
    report.build(results)
    assert row(results, "A peer")[1] == "missing: absent"


def test_the_largest_relative_difference_of_each_pair_is_shown_beside_the_plot(tmp_path: Path) -> None:
    largest = {"absolute": {"value": 1.0, "update": 1, "where": "x"}, "relative": {"value": 2.5e-12, "update": 7, "where": "y"}}
    value = {
        "suite": "parity",
        "date": "2026-01-02T00:00:00+00:00",
        "sacref_version": "0.1.0",
        "commit": None,
        "dirty": True,
        "configuration": {"updates": 1000, "dtype": "float64"},
        "hardware": {"cpu_model": "A CPU", "cores": 4},
        "largest": {"torch - jax": {"parameters": largest}, "jax - numpy": {"parameters": largest, "alpha": largest}},
    }
    path = tmp_path / "parity" / "a" / "float64.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(value))
    path.with_suffix(".png").write_bytes(b"")
    report.build(tmp_path)
    assert row(tmp_path, "torch - jax") == ["torch - jax", "2.5e-12", ""]
    assert row(tmp_path, "jax - numpy") == ["jax - numpy", "2.5e-12", "2.5e-12"]
    assert "](parity/a/float64.png)" in (tmp_path / "README.md").read_text()
    path.write_text(json.dumps({**value, "largest": {"torch - jax": {"parameters": {}}}}))
    with pytest.raises(record.RecordError, match=r"float64\.json: KeyError: 'relative'"):
        report.build(tmp_path)


def test_the_report_in_the_tree_is_up_to_date() -> None:
    if not report.RESULTS.exists():
        pytest.skip("nothing is recorded yet")
    assert report.build(report.RESULTS, check=True) == []
