"""Tracking: what is written reads back, through TensorBoard's own reader and as JSON lines."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sacref.storage.metric_files import CSV, JsonLines, Origin, Sinks, TensorBoard


class Tracker:
    """Both files; `environment_steps` are those of this write."""

    def __init__(self, directory: Path) -> None:
        self.steps: dict[int, int] = {}
        self.sinks = Sinks([TensorBoard(), JsonLines()], Origin(directory, self.steps.__getitem__, {}))

    def write(self, timestep: int, environment_steps: int, scalars: dict[str, Any]) -> None:
        self.steps[timestep] = environment_steps
        self.sinks.write(timestep, scalars)

    def close(self) -> None:
        self.sinks.close()


def lines(directory: Path) -> list[dict[str, Any]]:
    """`metrics.jsonl`, read as strict JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value), as TensorBoard reads the directory."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(directory)).Reload()
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def test_a_sink_is_reported_once_until_it_works_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Flaky:
        def write(self, step: int, scalars: Mapping[str, float]) -> None:
            if step in (2, 3, 5):
                raise OSError(f"full at {step}")

    sinks = Sinks([Flaky()], Origin(tmp_path, lambda timestep: timestep, {}))
    for step in range(7):
        sinks.write(step, {"Loss / Critic loss": 0.5})
    said = [record.getMessage() for record in caplog.records]
    assert [message.partition(": ")[2] for message in said] == [
        f"what was measured up to timestep {step} is not written: full at {step}. Training goes on" for step in (2, 5)
    ]


def test_both_files_hold_the_same_numbers(tmp_path: Path) -> None:
    directory, before = tmp_path / "runs" / "one", time.time()
    tracker = Tracker(directory)
    assert not directory.exists()
    tracker.write(10, 40, {"Loss / Critic loss": 0.1, "Q-network / Q1 (max)": -3})
    tracker.write(20, 80, {"Loss / Critic loss": np.float32(0.3), "Stats / Steps per second": np.float64(1e-3)})
    # Read before the tracker is closed: a killed run loses nothing.
    assert scalars(directory) == {
        "Loss / Critic loss": [(10, np.float32(0.1)), (20, np.float32(0.3))],
        "Q-network / Q1 (max)": [(10, -3.0)],
        "Stats / Steps per second": [(20, np.float32(1e-3))],
    }
    found = lines(directory)
    wall_times = [line.pop("wall_time") for line in found]
    assert found == [
        {"timestep": 10, "environment_steps": 40, "Loss / Critic loss": 0.1, "Q-network / Q1 (max)": -3.0},
        {"timestep": 20, "environment_steps": 80, "Loss / Critic loss": float(np.float32(0.3)), "Stats / Steps per second": 1e-3},
    ]
    assert before <= wall_times[0] <= wall_times[1] <= time.time()
    tracker.close()
    assert len(lines(directory)) == 2


def test_values_that_are_not_finite_are_null_in_json_and_themselves_in_tensorboard(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path)
    tracker.write(1, 1, {"nan": math.nan, "up": math.inf, "down": np.float32(-np.inf), "zero": 0.0})
    tracker.close()
    line = lines(tmp_path)[0]
    assert [line[tag] for tag in ("nan", "up", "down", "zero")] == [None, None, None, 0.0]
    read = scalars(tmp_path)
    assert math.isnan(read["nan"][0][1])
    assert (read["up"], read["down"], read["zero"]) == ([(1, math.inf)], [(1, -math.inf)], [(1, 0.0)])


def test_a_resumed_run_goes_on_in_the_same_place(tmp_path: Path) -> None:
    for timestep in (1, 2):
        tracker = Tracker(tmp_path)
        tracker.write(timestep, timestep, {"x": 0.5 * timestep})
        tracker.close()
        tracker.close()
    tracker.write(3, 3, {"x": 1.5})  # closed is not the end
    tracker.close()
    assert [(line["timestep"], line["x"]) for line in lines(tmp_path)] == [(1, 0.5), (2, 1.0), (3, 1.5)]
    # The accumulator reads the files in the order of their names, which hold seconds: those of one second have none.
    assert sorted(scalars(tmp_path)["x"]) == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 3


@pytest.mark.parametrize("torn", ["", '{"timestep": 2, "wall_ti', '{"timestep": 2}'])
def test_half_a_line_of_a_killed_process_is_cut_off(tmp_path: Path, torn: str) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"timestep": 1}\n' + torn)
    tracker = Tracker(tmp_path)
    tracker.write(3, 3, {"x": 1.0})
    tracker.close()
    assert [line["timestep"] for line in lines(tmp_path)] == [1, 3]


@pytest.mark.parametrize("tag", ["timestep", "environment_steps", "wall_time"])
def test_a_tag_that_would_hide_a_field_is_refused_and_nothing_is_written(tmp_path: Path, tag: str) -> None:
    with pytest.raises(ValueError, match=f"tag '{tag}' is the name of a field"):
        Tracker(tmp_path / "run").write(1, 1, {tag: 1.0})
    assert not (tmp_path / "run").exists()


def test_closing_what_was_never_written_makes_no_file(tmp_path: Path) -> None:
    Tracker(tmp_path / "run").close()
    assert not (tmp_path / "run").exists()


WRITE = """
import sys
from pathlib import Path
from sacref.storage.metric_files import CSV, JsonLines, Origin, Sinks, TensorBoard
heavy = {"tensorboard", "tensorflow", "torch", "jax"}
early = heavy & sys.modules.keys()
tracker = Sinks([TensorBoard(), JsonLines()], Origin(Path("run"), int, {}))
tracker.write(1, {"x": 1.0})
tracker.close()
print(sorted(early), sorted(heavy & sys.modules.keys()))
"""


def test_nothing_heavy_is_imported_even_where_it_is_installed(tmp_path: Path) -> None:
    (tmp_path / "path" / "tensorflow").mkdir(parents=True)
    (tmp_path / "path" / "tensorflow" / "__init__.py").write_text("raise SystemExit('tensorflow was imported')")
    path = os.pathsep.join([str(tmp_path / "path"), *sys.path])
    ran = subprocess.run([sys.executable, "-c", WRITE], env={"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.returncode) == ("[] ['tensorboard']\n", 0), ran.stderr


def test_a_table_whose_header_was_being_written_gets_it_anew(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("timestep,environ")
    sink = CSV()
    sink.open(Origin(tmp_path, lambda timestep: 2 * timestep, {}))
    sink.write(5, {"x": 1.0})
    assert (tmp_path / "metrics.csv").read_text() == "timestep,environment_steps,tag,value\n5,10,x,1.0\n"
