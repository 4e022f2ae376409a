"""What a run's evaluations say, by metric."""

import pytest
from msgspec.structs import replace

from bench.core import record
from bench.core.record import Hardware, Record
from bench.suites.learning import plots, runs
from bench.suites.learning.samples import Evaluation, LearningSamples, Session


def run(*returns: float, seed: int = 0, seconds: float = 7_200.0) -> Record[LearningSamples]:
    """Of a training of 20 steps for each of the returns."""
    return Record(
        schema_version=record.SCHEMA_VERSION,
        suite="learning",
        run=f"a-jax-seed{seed}",
        date="2026-01-02T03:04:05+00:00",
        sacref_version="0.1.0",
        commit=None,
        dirty=False,
        configuration={"preset": "a", "env": "Task-v0", "backend": "jax", "steps": 20 * len(returns)},
        hardware=Hardware(cpu_model="A CPU", cores=4, threads=1, memory_bytes=2**30, accelerator=None),
        libraries={},
        seed=seed,
        compile_seconds=None,
        samples=LearningSamples(
            evaluations=[Evaluation(step=20 * (at + 1), returns=[each - 1, each + 1], seconds=None) for at, each in enumerate(returns)],
            sessions=[
                Session(started="", resumed=bool(at), wall_seconds=seconds / 2, cpu_seconds=0.0, members=1, energy_joules=None)
                for at in range(2)
            ],
        ),
    )


def test_the_final_evaluation_the_last_tenth_and_the_maximum_are_three_numbers() -> None:
    one = run(*[0.0] * 17, 80.0, 50.0, 30.0)
    assert runs.final(one) == 30.0
    # Of 400 steps: the evaluations after 380 and 400, not that after 360.
    assert runs.last_tenth(one) == 40.0
    # Of the mean over seeds: 40 and 45, not the mean of the maxima, 80.
    other = run(*[0.0] * 18, 80.0, 60.0, seed=1)
    best = runs.best([one, other])
    assert (best.mean, best.step) == (65.0, 380)
    assert runs.best([one]).step == 360


def test_seconds_are_spread_over_the_steps() -> None:
    # Two sessions of an hour each, 40 steps.
    assert runs.seconds(run(1.0, 2.0), 20) == 3_600
    slow = run(1.0, 2.0, seconds=14_400.0)
    assert [point.seconds for point in runs.curve([run(1.0, 2.0), slow])] == [5_400, 10_800]


def test_seconds_are_those_of_the_evaluations_where_they_are_known() -> None:
    spread = run(1.0, 2.0)
    evaluations = [Evaluation(step=20 * (at + 1), returns=[1.0], seconds=seconds) for at, seconds in enumerate((1_800.0, 7_200.0))]
    assert isinstance(spread.samples, LearningSamples)
    timed = replace(spread, samples=replace(spread.samples, evaluations=evaluations))
    assert [runs.seconds(timed, step) for step in (20, 40)] == [1_800, 7_200]
    assert [(point.seconds, point.spread) for point in runs.curve([timed])] == [(1_800, False), (7_200, False)]
    assert [(point.seconds, point.spread) for point in runs.curve([timed, spread])] == [(2_700, True), (7_200, True)]
    labels = [plots.learning_curve("", {"jax": runs.curve(found)}, []).axes[1].get_xlabel() for found in ([timed], [timed, spread])]
    assert labels == ["minutes of wall-clock", "minutes, spread evenly over the steps"]


def test_wall_clock_is_the_median_over_the_runs_of_the_commonest_machine_that_all_backends_share() -> None:
    def on(model: str, *seconds: float) -> list[Record[LearningSamples]]:
        first = run(1.0)
        return [
            replace(run(1.0, seed=seed, seconds=each), hardware=replace(first.hardware, cpu_model=model))
            for seed, each in enumerate(seconds)
        ]

    # The last of A stalled. C has the most, of one backend alone.
    torch, jax = [*on("A", 10.0, 20.0, 900.0), *on("B", 1.0, 3.0)], [*on("B", 7.0), *on("A", 100.0), *on("C", *[5.0] * 9)]
    where = runs.shared_place([torch, jax])
    assert where == "A, 4 cores"
    assert [[point.seconds for point in runs.curve(members, where)] for members in (torch, jax)] == [[20.0], [100.0]]
    # Where they share none, over all.
    assert runs.shared_place([torch, jax[2:]]) is None
    assert [point.seconds for point in runs.curve(torch)] == [10.0]
    # The returns are those of all runs.
    assert [point.seeds for point in runs.curve(torch, where)] == [5]


def test_only_steps_that_every_run_has_are_shared() -> None:
    short = replace(run(1.0), samples=LearningSamples(evaluations=[Evaluation(step=40, returns=[1.0], seconds=None)], sessions=[]))
    assert runs.steps([run(1.0, 2.0, 3.0), short]) == [40]
    assert runs.after(run(1.0, 2.0, 3.0), 40) == 2.0
    with pytest.raises(ValueError, match="not enough values"):
        runs.after(short, 20)


def test_of_each_preset_the_largest_group_counts_and_of_equals_the_newest() -> None:
    newer = replace(run(3.0), sacref_version="0.2.0", date="2027-01-01T00:00:00+00:00")
    (found,) = runs.largest(runs.group([run(1.0), newer]))
    assert found.version == "0.2.0"
    second = replace(run(2.0), seed=run(1.0).seed + 1)
    (found,) = runs.largest(runs.group([run(1.0), second, newer]))
    assert (found.version, len(found.all_runs)) == ("0.1.0", 2)


def test_seeds_on_other_processors_are_seeds_and_those_on_an_accelerator_a_group_of_their_own() -> None:
    first = run(1.0)
    other = replace(first, seed=first.seed + 1, hardware=replace(first.hardware, cpu_model="B CPU"))
    device = replace(first, seed=first.seed + 2, hardware=replace(first.hardware, accelerator="A GPU"))
    on_device, together = sorted(runs.group([other, first, device]), key=lambda found: found.device)
    assert (together.device, together.place, len(together.all_runs)) == ("cpu", "A CPU, 4 cores and B CPU, 4 cores", 2)
    assert (on_device.device, on_device.place) == ("A GPU", "A GPU, A CPU, 4 cores")
    assert runs.by_place(together.all_runs) == {"A CPU, 4 cores": [first], "B CPU, 4 cores": [other]}
