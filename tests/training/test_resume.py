"""A run that is killed at any moment and resumed ends as the run that was never killed: bit for bit but for wall-clock times."""

import pytest

from bench.suites.faults import measure as faults
from bench.suites.faults.measure import TASKS, Task


@pytest.mark.parametrize(("kills", "resumed"), [(1, 1), pytest.param(5, faults.LEAST_RESUMED, marks=pytest.mark.full)])
@pytest.mark.parametrize(
    "task",
    # HalfCheetah's run is as Humanoid's, of a smaller observation.
    [pytest.param(task, marks=pytest.mark.full if task.env == "Humanoid-v5" else ()) for task in TASKS],
    ids=lambda task: "-".join(filter(None, (task.backend, task.env, task.what))),
)
def test_trap_20_a_killed_run_ends_as_one_that_was_not(task: Task, kills: int, resumed: int) -> None:
    """The long ones are twenty SIGKILLs together; `nox -s faults` has ten times as many."""
    pytest.importorskip(task.backend, reason=f"{task.backend} is not installed")
    (found,) = faults.measure(task, kills, f"{task.backend} {task.env} {task.what}", least_resumed=resumed).cells
    assert found.differences == []
    assert found.kills >= kills and found.resumed >= resumed and found.runs >= 1
