"""A run that is killed at any moment and resumed ends as the run that was never killed: bit for bit but for wall-clock times."""

import pytest

from bench import faults
from bench.faults import TASKS, Task

KILLS = 5
"""SIGKILLs of each task: twenty together. `nox -s faults` has ten times as many."""


@pytest.mark.parametrize("task", TASKS, ids=lambda task: "-".join(filter(None, (task.backend, task.env, task.what))))
def test_trap_20_a_killed_run_ends_as_one_that_was_not(task: Task) -> None:
    pytest.importorskip(task.backend, reason=f"{task.backend} is not installed")
    (found,) = faults.measure(task, KILLS, f"{task.backend} {task.env} {task.what}").cells
    assert found.differences == []
    assert found.kills >= KILLS and found.resumed >= faults.LEAST_RESUMED and found.runs >= 1
