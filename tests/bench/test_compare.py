"""The regression guard: what moved beyond its noise, which way is worse, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from bench import compare
from bench.compare import figures
from bench.core import record, statistics
from bench.core.record import Hardware, Record
from bench.core.samples import Figure, Timing
from bench.suites.amp.samples import AmpCell, AmpSamples
from bench.suites.learning.samples import Evaluation, LearningSamples, Session
from bench.suites.population.samples import PopulationCell, PopulationSamples
from bench.suites.recurrent.samples import ProductCell, RecurrentCell, RecurrentSamples
from bench.suites.rollout.samples import LoopCell, PartCell, RolloutSamples
from bench.suites.update.samples import MatmulCell, UpdateCell, UpdateSamples

HARDWARE = Hardware(cpu_model="A CPU", cores=4, threads=2, memory_bytes=2**30, accelerator=None)


def timings(*speeds: float) -> list[Timing]:
    return [Timing(count=100, seconds=100 / speed) for speed in speeds]


def update(*speeds: float, product: float = 1_000.0, **changes: Any) -> Record[Any]:
    """A record of one cell with rounds of these speeds, and of one product."""
    cell = UpdateCell(
        backend="jax",
        execution="auto",
        chosen="scan",
        batch=256,
        width=256,
        stored=10,
        gradient_steps=16,
        flops=1,
        timings=timings(*speeds),
        compile_seconds=1.0,
        missing=None,
    )
    matmul = MatmulCell(backend="jax", size=256, batch=256, width=256, timings=timings(product, product, product))
    written = Record(
        schema_version=record.SCHEMA_VERSION,
        suite="update",
        run="update-cpu-2cores",
        date="2026-01-02T03:04:05+00:00",
        sacref_version="0.1.0",
        commit="0123456789abcdef",
        dirty=False,
        configuration={"preset": "cpu"},
        hardware=HARDWARE,
        libraries={"jax": "1"},
        seed=0,
        compile_seconds=None,
        samples=UpdateSamples(cells=[cell], matmuls=[matmul], stored=[]),
    )
    return replace(written, **changes)


def figure(*values: float, higher_is_better: bool = True) -> Figure:
    return Figure(list(values), "x", higher_is_better)


OLD = (100.0, 102.0, 98.0, 101.0, 99.0)


@pytest.mark.parametrize(
    ("new", "higher_is_better", "verdict"),
    [
        ((80.0, 82.0, 78.0, 81.0, 79.0), True, "worse"),
        ((80.0, 82.0, 78.0, 81.0, 79.0), False, "better"),
        ((120.0, 122.0, 118.0, 121.0, 119.0), True, "better"),
        ((120.0, 122.0, 118.0, 121.0, 119.0), False, "worse"),
        # The medians are 20% apart, and so are the rounds of one side.
        ((80.0, 130.0, 75.0, 120.0, 79.0), True, "same"),
        # Beyond the rounds' noise, but less than the tolerance.
        ((97.0, 97.1, 96.9, 97.0, 97.0), True, "same"),
        ((80.0,), True, "unknown"),
    ],
)
def test_a_figure_moves_beyond_its_noise_and_the_tolerance_or_not(new: tuple[float, ...], higher_is_better: bool, verdict: str) -> None:
    found = compare.change("f", figure(*OLD), figure(*new, higher_is_better=higher_is_better), 0.05)
    assert found.verdict == verdict
    assert found.ratio == pytest.approx(np.median(new) / 100)


def test_the_interval_is_that_of_the_ratio_of_medians() -> None:
    old, new = np.random.default_rng(0).normal([[100], [150]], [[5], [5]], (2, 400))
    found = compare.ratio_interval(list(old), list(new))
    assert found is not None
    assert found.low < np.median(new) / np.median(old) < found.high
    # Standard error of a median of n: 1.2533 std / sqrt(n), 0.31 here; relative to 100 and 150, together 0.375%, and 1.96 of it a side.
    assert (found.high - found.low) / 2 == pytest.approx(1.5 * 1.96 * 0.00375, rel=0.3)
    assert found == compare.ratio_interval(list(old), list(new))
    assert compare.ratio_interval([1.0], [1.0, 2.0]) is None


def test_fewer_samples_than_a_bootstrap_needs_give_no_verdict() -> None:
    for old, new in ((OLD[:4], OLD), (OLD, OLD[:4]), (OLD[:2], OLD[:2])):
        found = compare.change("f", figure(*old), figure(*(2 * value for value in new)), 0.05)
        assert (found.interval, found.verdict, found.unknown) == (None, "unknown", "too few samples")
    found = compare.change("f", figure(*OLD), figure(*(2 * value for value in OLD)), 0.05)
    assert (found.verdict, found.unknown) == ("better", "")


def test_a_figure_that_is_not_positive_has_no_ratio() -> None:
    found = compare.change("f", figure(-1.0, -2.0), figure(3.0, 4.0), 0.05)
    assert (found.ratio, found.interval, found.verdict) == (None, None, "unknown")
    # A median above 0 has a ratio, and values below it no interval.
    for old in ((-1.0, -2.0), (0.0, 100.0, 102.0, 98.0, 101.0)):
        assert compare.change("f", figure(*old), figure(*OLD), 0.05).unknown == "a ratio needs positive values"


@pytest.mark.parametrize(
    ("new", "verdict"),
    [
        ((-1_200.0, -1_204.0, -1_208.0), "worse"),
        ((796.0, 800.0, 804.0), "better"),
        # The difference is clear of 0, and 4.5% of the old mean.
        ((-209.0, -213.0, -217.0), "same"),
        ((-220.0, -224.0, -228.0), "worse"),
        # Half as much again, within the spread of the seeds.
        ((-106.0, -306.0, -506.0), "same"),
        ((-1_200.0,), "unknown"),
    ],
)
def test_returns_are_compared_by_the_difference_of_their_means(new: tuple[float, ...], verdict: str) -> None:
    old = (-200.0, -204.0, -208.0)
    found = compare.change("f", Figure([*old], "return"), Figure([*new], "return"), 0.05)
    assert (found.verdict, found.unknown) == (verdict, "too few samples" if verdict == "unknown" else "")
    assert (found.old, found.ratio, found.difference) == (-204.0, None, float(np.mean(new)) + 204.0)
    assert found.interval == (None if len(new) == 1 else statistics.difference_interval(new, old))


def write(path: Path, *records: Record[Any]) -> Path:
    for number, one in enumerate(records):
        record.write(path / f"{number}.json", one)
    return path


def test_the_exit_status_tells_what_got_worse_only_if_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = write(tmp_path / "old", update(*OLD)), write(tmp_path / "new", update(*(0.8 * speed for speed in OLD)))
    assert compare.main(old, new) == 0
    assert compare.main(old, new, fail=True) == 1
    assert compare.main(new, old, fail=True) == 0
    assert compare.main(old, new, fail=True, tolerance=0.3) == 0
    said = capsys.readouterr().out
    assert "1 figures: 0 better, 1 worse, 0 same, 0 unknown (tolerance 5%)" in said
    assert "0.800" in said


def test_a_reference_that_got_slower_is_the_machine_s_and_fails_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = write(tmp_path / "old", update(*OLD)), write(tmp_path / "new", update(*OLD, product=500.0))
    assert compare.main(old / "0.json", new / "0.json", fail=True) == 0
    said = capsys.readouterr().out
    assert "The references' median ratio is 0.500" in said
    assert said.index("product of 256 (reference)") < said.index("jax auto, batch 256")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hardware": replace(HARDWARE, cpu_model="Another")}, "cpu_model: 'A CPU' and 'Another'"),
        ({"hardware": replace(HARDWARE, threads=1)}, "threads: 2 and 1"),
        ({"configuration": {"preset": "gpu"}}, "configuration.preset: 'cpu' and 'gpu'"),
    ],
)
def test_another_machine_or_configuration_is_refused_unless_forced(
    change: dict[str, Any], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = write(tmp_path / "old", update(*OLD)), write(tmp_path / "new", update(*OLD, **change))
    assert compare.main(old, new) == 2
    assert named in capsys.readouterr().out
    assert compare.main(old, new, force=True) == 0


def test_other_versions_of_libraries_may_be_compared() -> None:
    assert compare.comparable([update(*OLD)], [update(*OLD, libraries={"jax": "2"}, sacref_version="0.2.0", commit=None)]) == []


def test_a_run_that_one_folder_lacks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = update(*OLD, run="update-cpu-1core")
    old, new = write(tmp_path / "old", update(*OLD), other), write(tmp_path / "new", update(*OLD))
    assert compare.main(old, new) == 2
    assert "run update-cpu-1core is on one side only" in capsys.readouterr().out


def test_two_suites_and_what_is_no_record_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rollout = update(suite="rollout", samples=RolloutSamples(environments=[], acts=[], loops=[], parts=[]))
    assert compare.main(write(tmp_path / "a", update(*OLD)), write(tmp_path / "b", rollout), force=True) == 2
    assert "of the suites rollout, update" in capsys.readouterr().err
    assert compare.main(tmp_path / "a", tmp_path / "none") == 2
    assert "is no record and no folder" in capsys.readouterr().err


def trained(seed: int, last: float) -> Record[Any]:
    """A training run that ends at return `last`."""
    samples = LearningSamples(
        evaluations=[Evaluation(step=100, returns=[last - 1, last + 1], seconds=None)],
        sessions=[Session(started="", resumed=False, wall_seconds=4.0, cpu_seconds=4.0, members=1, energy_joules=None)],
    )
    return update(suite="learning", run=f"short-jax-seed{seed}", seed=seed, samples=samples)


def test_returns_that_fell_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    returns = (-200.0, -204.0, -208.0)
    old = write(tmp_path / "old", *(trained(seed, value) for seed, value in enumerate(returns)))
    new = write(tmp_path / "new", *(trained(seed, value - 1_000) for seed, value in enumerate(returns)))
    assert compare.main(old, new, fail=True) == 1
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines() if "short-jax" in line]
    # Standard error 4 sqrt(2 / 3) with four degrees of freedom: 2.776 * 3.266 = 9.067.
    assert rows == [
        ["short-jax: final return", "-204", "-1,204 return", "-1,000 (new - old)", "-1,009 to -990.9", "worse"],
        ["short-jax: speed", "25", "25 steps/s", "1.000", "", "unknown: too few samples"],
    ]
    assert compare.main(old, new, fail=True, tolerance=5.0) == 0
    assert compare.main(new, old, fail=True) == 0


def test_seeds_are_samples_of_one_figure_and_runs_stay_apart() -> None:
    assert figures([trained(0, 5.0), trained(1, 7.0)]) == {
        "short-jax: final return": Figure([5.0, 7.0], "return"),
        "short-jax: speed": Figure([25.0, 25.0], "steps/s"),
    }
    both = figures([update(*OLD), update(*OLD, run="update-cpu-1core")])
    assert [name for name in both if "auto" in name] == [
        "update-cpu-2cores: jax auto, batch 256, width 256",
        "update-cpu-1core: jax auto, batch 256, width 256",
    ]


def test_of_a_part_of_the_loop_less_is_better() -> None:
    samples = RolloutSamples(
        environments=[],
        acts=[],
        loops=[LoopCell(backend="jax", num_envs=1, execution="scan", timings=timings(200.0), compile_seconds=None, missing=None)],
        parts=[PartCell(backend="jax", part="act", timings=timings(2_000.0))],
    )
    found = figures([update(suite="rollout", samples=samples)])
    assert found["jax, part act"] == Figure([0.5], "ms", higher_is_better=False)
    assert found["jax, loop, 1 environments"] == Figure([200.0], "steps/s")


def test_recurrent_agents_are_told_apart_and_their_products_are_the_machine_s() -> None:
    cell = RecurrentCell(
        backend="jax",
        execution="auto",
        chosen="scan",
        recurrent="gru",
        sequence_length=32,
        batch=4,
        gradient_steps=2,
        flops=1,
        recurrence_flops=1,
        cell_steps=1,
        timings=timings(10.0, 20.0),
        compile_seconds=1.0,
        missing=None,
    )
    plain = replace(cell, recurrent=None, sequence_length=1, batch=128, timings=timings(40.0))
    product = ProductCell(backend="jax", rows=4, inner=8, columns=24, timings=timings(5.0))
    found = figures([replace(update(), suite="recurrent", samples=RecurrentSamples(cells=[cell, plain], products=[product]))])
    assert {name: (figure.values, figure.reference) for name, figure in found.items()} == {
        "jax auto, gru, sequence 32, batch 4": ([10.0, 20.0], False),
        "jax auto, feed-forward, batch 128": ([40.0], False),
        "jax, product of 4 x 8 and 8 x 24": ([5.0], True),
    }


def test_populations_are_told_apart_by_their_size() -> None:
    cell = PopulationCell(
        backend="jax",
        members=1,
        width=64,
        batch=256,
        chosen="scan",
        gradient_steps=2,
        timings=timings(40.0),
        compile_seconds=1.0,
        missing=None,
    )
    ten = replace(cell, members=10, timings=timings(10.0))
    found = figures([replace(update(), suite="population", samples=PopulationSamples(cells=[cell, ten]))])
    assert {name: (figure.values, figure.unit) for name, figure in found.items()} == {
        "jax, 1 together, width 64": ([40.0], "updates/s of each"),
        "jax, 10 together, width 64": ([10.0], "updates/s of each"),
    }


def test_precisions_of_recurrent_networks_are_figures_of_their_own() -> None:
    cell = AmpCell(
        backend="jax",
        precision="bfloat16",
        recurrent=None,
        sequence_length=1,
        batch=64,
        width=256,
        chosen="scan",
        gradient_steps=16,
        timings=timings(40.0),
        compile_seconds=1.0,
        memory_bytes=2**20,
        memory_of="process",
        loss_error=None,
        gradient_error=None,
        missing=None,
    )
    gru = replace(cell, recurrent="gru", sequence_length=32, timings=timings(10.0))
    found = figures([replace(update(), suite="amp", samples=AmpSamples(cells=[cell, gru]))])
    assert found["jax bfloat16, batch 64, width 256"].values == [40.0]
    assert found["jax bfloat16, gru, batch 64, width 256"].values == [10.0]
    assert found["jax bfloat16, gru, batch 64, width 256: memory"].values == [1.0]
