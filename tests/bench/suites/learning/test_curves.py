"""The tables of all curves hold what the records do, and are read back."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from bench.report import RESULTS
from bench.suites.learning import curves, runs


@pytest.fixture(scope="module")
def groups() -> list[runs.Group]:
    return runs.largest(runs.read(RESULTS))


def test_the_table_has_a_row_for_each_evaluation_of_each_seed(groups: list[runs.Group]) -> None:
    text = curves.files(groups, Path())[Path("curves.csv")].decode()
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == sum(len(run.samples.evaluations) for group in groups for run in group.all_runs)
    (row,) = [
        row
        for row in rows
        if (row["preset"], row["backend"], row["seed"], row["step"]) == ("halfcheetah-200k-tianshou", "jax", "3", "200000")
    ]
    (group,) = [group for group in groups if group.preset == "halfcheetah-200k-tianshou"]
    (run,) = [run for run in group.runs["jax"] if run.seed == 3]
    assert float(row["return"]) == pytest.approx(runs.final(run), rel=1e-5)
    assert float(row["std"]) == pytest.approx(np.std(run.samples.evaluations[-1].returns), rel=1e-5)
    assert (row["env"], row["episodes"]) == ("HalfCheetah-v5", "10")
    assert json.loads(row["settings"])["initial_entropy_value"] == 0.2


def test_scores_have_the_axes_of_rliable(groups: list[runs.Group], tmp_path: Path) -> None:
    (tmp_path / "curves.npz").write_bytes(curves.files(groups, tmp_path)[tmp_path / "curves.npz"])
    with np.load(tmp_path / "curves.npz") as arrays:
        scores, steps = arrays["halfcheetah-100k/torch/scores"], arrays["halfcheetah-100k/torch/steps"]
        assert scores.shape == (3, 1, len(steps)) and steps[-1] == 100_000
        assert list(arrays["halfcheetah-100k/torch/seeds"]) == [0, 1, 2]
    (group,) = [group for group in groups if group.preset == "halfcheetah-100k"]
    np.testing.assert_array_equal(scores[:, 0, -1], [runs.final(run) for run in group.runs["torch"]])


def test_no_records_make_no_table(tmp_path: Path) -> None:
    assert curves.files([], tmp_path) == {}
