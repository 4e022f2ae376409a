"""What the page says of our runs beside published ones, and of all tasks together."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from bench.core import bootstrap, pictures, record, statistics
from bench.core.record import Hardware, Record
from bench.suites.learning import plots, runs
from bench.suites.learning import verdicts as agreement
from bench.suites.learning.presets import HIDDEN, REPEATED
from bench.suites.learning.published import published
from bench.suites.learning.runs import Group, Run
from bench.suites.learning.samples import Evaluation, LearningSamples, Session
from bench.suites.tasks import section as aggregate


def trained(preset: str, env: str, backend: str, seed: int, last: float, settings: Mapping[str, Any]) -> Record[LearningSamples]:
    """A run of 100,000 steps in 1,000 seconds; half of its last return at half of them."""
    return Record(
        schema_version=record.SCHEMA_VERSION,
        suite="learning",
        run=f"{preset}-{backend}-seed{seed}",
        date="2026-01-02T03:04:05+00:00",
        sacref_version="0.1.0",
        commit=None,
        dirty=False,
        configuration={"preset": preset, "env": env, "backend": backend, "steps": 100_000, "settings": dict(settings)},
        hardware=Hardware(cpu_model="A CPU", cores=4, threads=1, memory_bytes=2**30, accelerator=None),
        libraries={},
        seed=seed,
        compile_seconds=None,
        samples=LearningSamples(
            evaluations=[Evaluation(step=50_000, returns=[last / 2], seconds=None), Evaluation(step=100_000, returns=[last], seconds=None)],
            sessions=[Session(started="", resumed=False, wall_seconds=1_000.0, cpu_seconds=0.0, members=1, energy_joules=None)],
        ),
    )


def grouped(preset: str, env: str, finals: Mapping[str, tuple[float, ...]], **settings: Any) -> Group:
    """The runs of a preset: backend -> return of each seed."""
    (found,) = runs.group(
        trained(preset, env, backend, seed, last, settings) for backend, values in finals.items() for seed, last in enumerate(values)
    )
    return found


# jaxrl's settings, so that its verdict is given.
JAXRL = {"target_entropy": -3.0, "random_timesteps": 10_000, "learning_starts": 10_000}
LOW = grouped("few", "HalfCheetah-v5", {"torch": (4_700.0, 4_800.0, 4_900.0), "jax": (5_700.0, 5_800.0, 5_900.0)}, **JAXRL)


def test_every_published_point_of_a_step_stands_beside_each_backend() -> None:
    found = agreement.beside(LOW)
    names = ["SimbaV2's SAC", "SB3's zoo", "jaxrl", "nnabla-rl", "Tianshou"]
    assert [(one.step, one.reference.name, one.backend) for one in found[:10]] == [
        (100_000, name, backend) for name in names for backend in ("torch", "jax")
    ]
    assert len(found) == 20
    assert [one.verdict for one in found if one.reference.name == "jaxrl" and one.step == 100_000] == ["below", "agrees"]
    # At half of the steps half of the return is compared.
    assert {tuple(one.returns) for one in found if one.step == 50_000 and one.backend == "torch"} == {(2_350.0, 2_400.0, 2_450.0)}


def test_a_repeated_action_is_a_setting_and_another_wrapper_another_task() -> None:
    run = trained("few", "HalfCheetah-v5", "jax", 0, 5_800.0, JAXRL)
    run.configuration["arguments"] = {"wrappers": [*REPEATED]}
    (repeated,) = runs.group([run])
    assert {one.differences for one in agreement.beside(repeated) if one.reference.name == "jaxrl"} == {("action repeat 1 (here 2)",)}
    run.configuration["arguments"] = {"wrappers": [*HIDDEN]}
    assert agreement.beside(*runs.group([run])) == []


def test_a_verdict_is_given_between_like_settings_alone() -> None:
    of_torch = {one.reference.name: one for one in agreement.beside(LOW) if (one.step, one.backend) == (100_000, "torch")}
    assert {name: one.verdict for name, one in of_torch.items()} == {
        "SimbaV2's SAC": "other settings",
        "SB3's zoo": "other settings",
        "jaxrl": "below",
        "nnabla-rl": "other settings",
        "Tianshou": "other settings",
    }
    assert of_torch["SimbaV2's SAC"].differences == ("unknown",)
    assert of_torch["nnabla-rl"].differences == ("target entropy -dim(A) (here -dim(A)/2)",)
    assert of_torch["Tianshou"].differences == (
        "policy learning rate 0.001 (here 0.0003)",
        "critic learning rate 0.001 (here 0.0003)",
        "entropy learning rate none (here 0.0003)",
        "target entropy none (here -dim(A)/2)",
        "temperature fixed at 0.2 (here learned from 1)",
    )
    assert all(one.found.interval is not None and one.found.interval.high < 0 for one in of_torch.values() if one.reference.seeds > 3)
    text = "".join(agreement.paragraphs(LOW, [LOW]))
    assert "| other settings: target entropy -dim(A) (here -dim(A)/2) |" in text


def test_a_setting_that_no_source_names_is_another_setting_too() -> None:
    chunked = grouped("many", "HalfCheetah-v5", {"jax": (5_700.0, 5_800.0)}, **JAXRL, chunk=64)
    assert {one.differences for one in agreement.beside(chunked) if one.reference.name == "jaxrl"} == {("chunk 64 here",)}


def test_a_row_holds_the_difference_and_what_would_have_shown() -> None:
    text = "".join(agreement.paragraphs(LOW, [LOW]))
    # Sample deviations 460.5 of ten and 100 of three: standard error sqrt(460.5^2 / 10 + 100^2 / 3) = 156.7, 10.5 degrees of freedom.
    (row,) = re.findall(
        r"^\| jaxrl \| HalfCheetah-v2 \| 100,000 \| 10 det[^|]* \| 5,794 ± 461 \(10\) \| torch \| (.*) \|$", text, re.MULTILINE
    )
    cells = row.split(" | ")
    assert cells[0] == "4,800 ± 100 (3)"
    assert re.fullmatch(r"-994 \[-1,3\d\d, -6\d\d\]", cells[1])
    assert 470 < float(cells[2]) < 500  # About 3 standard errors.
    assert cells[4] == "below"


def test_a_curve_apart_from_one_with_the_same_settings_is_named() -> None:
    (said,) = [each for each in agreement.paragraphs(LOW, [LOW]) if "Apart" in each]
    # Half of each return is below jaxrl's 3,910 at half of the steps; of the others the settings differ, however far away they are.
    assert said == (
        "**Apart from what is published with the same settings**: torch is below jaxrl (HalfCheetah-v2) after 100,000 steps; torch is below"
        " jaxrl (HalfCheetah-v2) after 50,000 steps; jax is below jaxrl (HalfCheetah-v2) after 50,000 steps.\n"
    )
    usual = grouped("usual", "HalfCheetah-v5", {"torch": (1.0, 2.0)})
    assert not any("Apart" in each for each in agreement.paragraphs(usual, [usual]))


def test_runs_with_the_settings_of_a_source_stand_in_the_place_of_a_guess() -> None:
    usual = grouped("usual", "HalfCheetah-v5", {"torch": (5_000.0, 5_100.0)})
    (said,) = [each for each in agreement.paragraphs(usual, [usual, LOW]) if "with the settings of" in each]
    assert said == (
        "After 100,000 steps, mean (seeds): with the settings of jaxrl (5,794) sacref reaches torch 4,800 (3), jax 5,800 (3)"
        " (HalfCheetah-v5 (few)).\n"
    )


def alike(*lasts: float) -> Group:
    """Runs with nnabla-rl's settings."""
    return grouped("same", "HalfCheetah-v5", {"jax": lasts}, random_timesteps=10_000, learning_starts=10_000)


def beside_nnabla(*early: float) -> tuple[agreement.Beside, str]:
    """Three runs with those returns after 20,000 steps, and 5,200, 5,300 and 5,400 after 100,000; the page."""
    group = alike(5_200.0, 5_300.0, 5_400.0)
    for run, value in zip(group.all_runs, early, strict=True):
        run.samples.evaluations.insert(0, Evaluation(step=20_000, returns=[value], seconds=None))
    (one,) = [one for one in agreement.beside(group) if (one.reference.name, one.step) == ("nnabla-rl", 100_000)]
    return one, "".join(agreement.paragraphs(group, [group]))


def test_seeds_that_are_published_are_compared_along_the_curve() -> None:
    one, text = beside_nnabla(800.0, 1_000.0, 1_200.0)
    assert (one.verdict, one.reference.seeds, round(one.reference.sample_std)) == ("agrees", 3, 350)
    # Evaluated at 20,000, 50,000 (half of the return) and 100,000: 1,000 and 1.5 x 5,300 beside the mean of nnabla-rl's three.
    assert one.curve is not None
    theirs = [statistics.mean([curve[step] for curve in one.reference.curves]) for step in (20_000, 50_000, 100_000)]
    assert theirs[1:] == pytest.approx([2_876.9, 5_233.0], abs=0.1)
    assert one.curve.difference == pytest.approx((1_000 + 1.5 * 5_300) / 3 - statistics.mean(theirs), abs=0.1)
    assert f"| {one.curve.difference:+,.0f} [" in text
    assert f"({one.curve.verdict}; 3 evaluations) |" in text
    # Two evaluations give no curve.
    (one,) = [one for one in agreement.beside(alike(5_200.0, 5_300.0)) if (one.reference.name, one.step) == ("nnabla-rl", 100_000)]
    assert one.curve is None


def test_a_curve_that_lies_apart_is_told_where_the_point_does_not() -> None:
    one, text = beside_nnabla(8_000.0, 8_100.0, 8_200.0)
    assert one.verdict == "agrees, its curve above"
    assert "jax is above nnabla-rl (HalfCheetah-v2) in the mean of the curve up to 100,000 steps" in text
    assert "jax is above nnabla-rl (HalfCheetah-v2) after 100,000 steps" not in text


def test_a_temperature_that_starts_at_random_is_said_beside_the_verdict() -> None:
    one, text = beside_nnabla(800.0, 1_000.0, 1_200.0)
    assert one.alike
    assert "| agrees (its temperature is learned from exp(N(0, 1)), ours from 1) |" in text


def test_of_the_evaluations_near_a_point_the_nearest_counts() -> None:
    group = alike(5_200.0, 5_300.0, 5_400.0)
    for run in group.all_runs:
        run.samples.evaluations.insert(1, Evaluation(step=99_500, returns=[0.0], seconds=None))
    (one,) = [one for one in agreement.beside(group) if (one.reference.name, one.reference.steps) == ("nnabla-rl", 100_000)]
    assert (one.step, one.returns) == (100_000, [5_200.0, 5_300.0, 5_400.0])


def test_no_agreement_is_claimed_of_another_reward() -> None:
    hopper = grouped("more", "Hopper-v5", {"jax": (2_000.0, 2_100.0)})
    assert {one.verdict for one in agreement.beside(hopper)} == {"not comparable"}
    text = "".join(agreement.paragraphs(hopper, [hopper]))
    assert text.count("| not comparable: the reward of this version differs |") == 10
    # They are drawn hollow.
    points = published("Hopper-v5", 100_000)
    curves = {"jax": runs.curve(hopper.all_runs)}
    for other_reward in (set[str](), {point.source for point in points if point.name == "jaxrl"}):
        axes = plots.learning_curve("", curves, points, other_reward=other_reward).axes[0]
        labels = [container.get_label() for container in axes.containers]
        (jaxrl,) = (container for container in axes.containers if str(container.get_label()).startswith("jaxrl"))
        faces = {str(container.get_label()).split()[0]: container[0].get_markerfacecolor() for container in axes.containers}
        assert faces == {name: pictures.paper() if name == "jaxrl" and other_reward else "0.5" for name in faces}
        said = ", another reward" if other_reward else ""
        assert jaxrl.get_label() == f"jaxrl (Hopper-v2{said}), ± std of 10 seeds:\n10 deterministic eval episodes per point per seed"
        assert sum("another reward" in str(label) for label in labels) == len(other_reward)
    same = grouped("more", "Hopper-v4", {"jax": (2_000.0, 2_100.0)})
    assert {one.reference.name for one in agreement.beside(same) if one.comparable} == {
        "SimbaV2's SAC",
        "SB3's zoo",
        "jaxrl",
        "nnabla-rl",
        "Tianshou",
    }


OF_HOPPER, OF_CHEETAH = (
    next(point.mean for point in published(env, 100_000) if (point.name, point.steps) == ("jaxrl", 100_000))
    for env in ("Hopper-v5", "HalfCheetah-v5")
)
"""jaxrl's means after 100,000 steps: 2,013.9 and 5,794.1."""
HOPPER = grouped("hops", "Hopper-v5", {"jax": (OF_HOPPER / 2, OF_HOPPER)})
CHEETAH = grouped("runs", "HalfCheetah-v5", {"torch": (OF_CHEETAH,) * 3, "jax": (OF_CHEETAH, OF_CHEETAH, 0.0)})


def test_the_most_tasks_count_and_a_backend_that_lacks_one_is_left_out() -> None:
    chosen = aggregate.choose([CHEETAH, HOPPER])
    assert chosen is not None
    assert [task.group.env for task in chosen.tasks] == ["HalfCheetah-v5", "Hopper-v5"]
    assert (list(chosen.backends), chosen.left_out) == (["jax"], ["torch"])
    # As many seeds of each task: the two of Hopper. jaxrl's means are the scores of 1.
    scores = aggregate.final_scores(chosen.tasks, chosen.backends["jax"])
    assert scores == [[1.0, 1.0], [0.5, 1.0]]
    half, end = aggregate.curve(chosen.tasks, chosen.backends["jax"])
    assert (half.step, end.step) == (50_000, 100_000)
    assert end.iqm == bootstrap.iqm(scores)
    assert half.iqm.value == 0.5
    assert end.seconds == pytest.approx(1_000)
    alone = aggregate.choose([CHEETAH])
    assert alone is not None
    assert list(alone.backends) == ["torch", "jax"]


def test_the_wall_clock_of_tasks_together_is_the_mean_of_their_medians_on_one_machine() -> None:
    chosen = aggregate.choose([CHEETAH, HOPPER])
    assert chosen is not None

    def slow(run: Run, seconds: float, model: str = "A CPU") -> Run:
        sessions = [structs.replace(run.samples.sessions[0], wall_seconds=seconds)]
        hardware = structs.replace(run.hardware, cpu_model=model)
        return structs.replace(run, hardware=hardware, samples=structs.replace(run.samples, sessions=sessions))

    first, second = (of_task[0] for of_task in chosen.backends["jax"])
    members = [[slow(first, 10.0), slow(first, 20.0), slow(first, 990.0)], [slow(second, 40.0), *[slow(second, 9.0, "Another")] * 2]]
    assert [point.seconds for point in aggregate.curve(chosen.tasks, members, "A CPU, 4 cores")] == [15.0, 30.0]  # 20 and 40 at the end
    assert [point.seconds for point in aggregate.curve(chosen.tasks, members)] == [7.25, 14.5]  # 20 and 9


def test_tasks_without_a_published_mean_or_with_other_settings_do_not_count() -> None:
    assert aggregate.choose([grouped("a", "Pusher-v5", {"jax": (1.0,)})]) is None
    assert aggregate.choose([grouped("a", "Hopper-v5", {"jax": (1.0,)}, chunk=64)]) is None


def test_tasks_of_four_runs_have_no_interval_and_of_five_they_have(tmp_path: Path) -> None:
    for seeds in (4, 5):
        for env, mean in (("HalfCheetah-v5", OF_CHEETAH), ("Hopper-v5", OF_HOPPER)):
            for run in grouped(env, env, {"jax": (mean,) * seeds}).all_runs:
                record.write(tmp_path / "learning" / "a" / f"{run.run}.json", run)
        section = aggregate.section(tmp_path)
        text = "".join(section.paragraphs)
        assert (f"| jax | {seeds} | 1.00{' [1.00, 1.00]' * (seeds == 5)} |" in text) is True
        assert ("Too few runs" in text) is (seeds == 4)
        (picture,) = section.pictures.values()
        assert [len(axes.collections) for axes in picture.draw().get_axes()] == [int(seeds == 5)] * 3


def test_the_profile_goes_down_from_all_to_none() -> None:
    profile = aggregate.profile([[1.0, 1.0], [0.5, 1.75]])
    assert (profile.thresholds[0], profile.thresholds[-1]) == (0.0, 1.75)
    assert (profile.shares[0], profile.shares[-1]) == (1.0, 0.0)
    assert profile.shares == sorted(profile.shares, reverse=True)


def test_the_page_shows_the_profile_of_several_tasks_alone(tmp_path: Path) -> None:
    for group in (CHEETAH, HOPPER):
        for run in group.all_runs:
            record.write(tmp_path / "learning" / "a" / f"{group.preset}-{run.run}.json", run)
    section = aggregate.section(tmp_path)
    ((path, picture),) = section.pictures.items()
    assert path == tmp_path / "learning" / "tasks.png"
    titles = [axes.get_title() for axes in picture.draw().get_axes()]
    assert titles == ["sample efficiency", "wall-clock", "performance profile"]
    text = "".join(section.paragraphs)
    assert "HalfCheetah-v5 (score of 1: 5,794, jaxrl on HalfCheetah-v2), Hopper-v5 (score of 1: 2,014, jaxrl on Hopper-v2)" in text
    assert "The reward of Hopper-v5 differs from that version's: there a score is a unit, and no comparison with jaxrl." in text
    # The lowest and a highest of 0.5, 1, 1 and 1 are cut off; four runs are too few for an interval.
    assert "| jax | 2 | 1.00 |" in text
    assert "where a backend has 5 runs or more of each task." in text
    assert "Too few runs of a task for an interval: jax (2).\n" in text
    by_step, by_clock, profile = picture.draw().get_axes()
    assert [len(axes.collections) for axes in (by_step, by_clock, profile)] == [0, 0, 0]  # no bands
    assert by_step.get_legend_handles_labels()[1] == ["sacref, JAX"]
    assert by_clock.get_xlabel() == "minutes, spread evenly over the steps,\nmedian on A CPU, 4 cores"
    assert "Left out, as it was not run on all of these tasks: torch." in text
    for path in (tmp_path / "learning" / "a").glob("hops-*"):
        path.unlink()
    section = aggregate.section(tmp_path)
    (picture,) = section.pictures.values()
    assert len(picture.draw().get_axes()) == 2
    # Each of torch's three ties with two of jax's and wins over the third: 2 / 3.
    assert "A run of torch ends above one of jax with probability 0.67 (ties" in "".join(section.paragraphs)
