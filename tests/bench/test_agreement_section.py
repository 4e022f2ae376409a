"""What the page says of our runs beside published ones, and of all tasks together."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bench import bootstrap, record, runs
from bench.presets import PRESETS, Cause, Preset
from bench.record import Evaluation, Hardware, LearningSamples, Record, Session
from bench.runs import Group
from bench.sections import aggregate, agreement

CAUSE = Cause(text="too few steps.", tested_by="more")


def trained(preset: str, env: str, backend: str, seed: int, last: float, settings: Mapping[str, Any]) -> Record:
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
            evaluations=[Evaluation(step=50_000, returns=[last / 2]), Evaluation(step=100_000, returns=[last])],
            sessions=[Session(started="", resumed=False, wall_seconds=1_000.0, cpu_seconds=0.0)],
        ),
    )


def grouped(preset: str, env: str, finals: Mapping[str, tuple[float, ...]], **settings: Any) -> Group:
    """The runs of a preset: backend -> return of each seed."""
    (found,) = runs.group(
        trained(preset, env, backend, seed, last, settings) for backend, values in finals.items() for seed, last in enumerate(values)
    )
    return found


@pytest.fixture(autouse=True)
def presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """One with a likely cause, and one without it."""
    for name, cause in (("few", CAUSE), ("more", None)):
        monkeypatch.setitem(PRESETS, name, Preset(name=name, title=name, env="", steps=1, evaluation_interval=1, seeds=(0,), cause=cause))


LOW = grouped("few", "HalfCheetah-v5", {"torch": (4_700.0, 4_800.0, 4_900.0), "jax": (5_700.0, 5_800.0, 5_900.0)})


def test_every_published_point_of_a_step_stands_beside_each_backend() -> None:
    found = agreement.beside(LOW)
    assert [(one.step, one.reference.name, one.backend) for one in found[:4]] == [
        (100_000, "SimbaV2's SAC", "torch"),
        (100_000, "SimbaV2's SAC", "jax"),
        (100_000, "jaxrl", "torch"),
        (100_000, "jaxrl", "jax"),
    ]
    assert len(found) == 12
    verdicts = [one.found.verdict for one in found if one.found and one.reference.name == "jaxrl" and one.step == 100_000]
    assert verdicts == ["below", "agrees"]
    # At half of the steps half of the return is compared.
    assert {tuple(one.returns) for one in found if one.step == 50_000 and one.backend == "torch"} == {(2_350.0, 2_400.0, 2_450.0)}


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
    assert cells[3] == "below"


def test_a_curve_below_is_said_to_be_with_its_likely_cause() -> None:
    (said,) = [each for each in agreement.paragraphs(LOW, [LOW]) if "Below" in each]
    assert said.startswith("**Below what is published** after 100,000 steps: torch below SimbaV2's SAC (HalfCheetah-v4), jaxrl (HalfChee")
    # Half of jax's return is below everything at half of the steps, and its 5,800 below Tianshou's alone at the end.
    assert "; jax below Tianshou (HalfCheetah-v3). **Below what is published** after 50,000 steps: torch" in said
    assert "Likely cause: too few steps. It is not tested yet" in said
    high = grouped("few", "HalfCheetah-v5", {"torch": (9_000.0, 9_001.0)})
    assert not any("Below" in each or "cause" in each for each in agreement.paragraphs(high, [high]))
    unknown = grouped("more", "HalfCheetah-v5", {"torch": (1.0, 2.0)})
    assert any("The cause is not known." in each for each in agreement.paragraphs(unknown, [unknown]))


@pytest.mark.parametrize(
    ("without", "verdict"),
    [
        ((5_700.0, 5_800.0, 5_900.0), "]: it matters"),
        ((4_700.0, 4_800.0, 5_900.0), "]: it is not shown to matter"),
        ((5_800.0,), "+1,000, of which one seed tells nothing"),
    ],
)
def test_a_cause_is_tested_by_runs_without_it(without: tuple[float, ...], verdict: str) -> None:
    other = grouped("more", "HalfCheetah-v5", {"torch": without}, target_entropy=-3.0)
    (said,) = [each for each in agreement.paragraphs(LOW, [LOW, other]) if "Below" in each]
    mean = sum(without) / len(without)
    assert (
        f"Tested: after 100,000 steps torch reaches {mean:,.0f} without it (HalfCheetah-v5 (more)) and 4,800 with it, a difference of"
        in said
    )
    assert said.endswith(f"{verdict}.\n")


def test_no_agreement_is_claimed_of_another_reward() -> None:
    hopper = grouped("more", "Hopper-v5", {"jax": (2_000.0, 2_100.0)})
    assert {one.found for one in agreement.beside(hopper)} == {None}
    text = "".join(agreement.paragraphs(hopper, [hopper]))
    assert text.count("| not comparable: the reward of this version differs |") == 6
    assert "Below" not in text
    same = grouped("more", "Hopper-v4", {"jax": (2_000.0, 2_100.0)})
    assert {one.reference.source.split("@")[0] for one in agreement.beside(same) if one.found} == {"DAVIAN-Robotics/SimbaV2"}


HOPPER = grouped("hops", "Hopper-v5", {"jax": (1_006.95, 2_013.9)})
CHEETAH = grouped("runs", "HalfCheetah-v5", {"torch": (5_794.1,) * 3, "jax": (5_794.1, 5_794.1, 0.0)})


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


def test_tasks_without_a_published_mean_or_with_other_settings_do_not_count() -> None:
    assert aggregate.choose([grouped("a", "Pusher-v5", {"jax": (1.0,)})]) is None
    assert aggregate.choose([grouped("a", "Hopper-v5", {"jax": (1.0,)}, chunk=64)]) is None


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
    # Of 0.5, 1, 1 and 1 the lowest and a highest are cut off; the two of Hopper are 0.5 twice once in four resamples.
    assert "| jax | 2 | 1.00 [0.75, 1.00] |" in text
    assert "Left out, as it was not run on all of these tasks: torch." in text
    for path in (tmp_path / "learning" / "a").glob("hops-*"):
        path.unlink()
    section = aggregate.section(tmp_path)
    (picture,) = section.pictures.values()
    assert len(picture.draw().get_axes()) == 2
    # Each of torch's three ties with two of jax's and wins over the third: 2 / 3.
    assert "A run of torch ends above one of jax with probability 0.67 [" in "".join(section.paragraphs)
