"""Published curves and the settings that they were trained with."""

import csv

import numpy as np
import pytest

from bench.suites.learning.presets import PRESETS, act_for_two_steps
from bench.suites.learning.published import REFERENCE, SETTINGS, published, settings_of
from tests.envs.counting import CountingEnv


def test_every_source_says_its_settings_and_where_they_stand() -> None:
    with (REFERENCE / "settings.csv").open(encoding="utf-8", newline="") as stream:
        settings = {row["source"]: row for row in csv.DictReader(stream)}
    for name in ("published_curves.csv", "per_seed_curves.csv"):
        with (REFERENCE / name).open(encoding="utf-8", newline="") as stream:
            assert {row["source"] for row in csv.DictReader(stream)} <= settings.keys()
    assert all(all(row[name] for name in (*SETTINGS, "evaluation", "citation")) for row in settings.values())


def test_seeds_that_are_published_give_the_mean_at_each_milestone() -> None:
    found = {(one.name, one.steps): one for one in published("Ant-v5", 200_000) if one.env_version == "v5"}
    assert [(name, steps, round(one.mean), round(one.sample_std), one.seeds) for (name, steps), one in found.items()] == [
        ("SB3", 50_000, 345, 96, 10),
        ("SB3", 100_000, 581, 195, 10),
        ("SB3", 200_000, 1_343, 374, 10),
    ]
    assert all(one.comparable("Ant-v5") for one in found.values())
    last = found["SB3", 200_000]
    assert len(last.curves) == 10
    assert sorted(last.curves[0])[:2] == [10_000, 20_000]
    assert max(last.curves[0]) == 200_000


LATE = {"random_timesteps": 10_000, "learning_starts": 10_000}


@pytest.mark.parametrize(
    ("changed", "source", "differences"),
    [
        (LATE, "nnabla-rl", []),
        ({"random_timesteps": 100, "learning_starts": 100}, "SB3", []),
        ({"random_timesteps": 100}, "SB3", ["learning starts 5000 here"]),
        (
            {"random_timesteps": 100, "learning_starts": 100, "initial_entropy_value": 0.01},
            "SB3",
            ["temperature learned from 1 (here learned from 0.01)"],
        ),
        (
            {**LATE, "initial_entropy_value": 0.01},
            "nnabla-rl",
            ["temperature learned from exp(N(0, 1)) (here learned from 0.01)"],
        ),
        ({}, "nnabla-rl", ["random steps 10000 (here 5000)"]),
        ({**LATE, "target_entropy": -4.0}, "jaxrl", []),
        ({**LATE, "target_entropy": -3.0}, "jaxrl", ["target entropy -dim(A)/2 (here -3)"]),
        ({**LATE, "learning_rate": 1e-3, "learn_entropy": False, "initial_entropy_value": 0.2}, "Tianshou", []),
        ({**LATE, "n_step": 3}, "nnabla-rl", ["n step 3 here"]),
        (LATE, "SimbaV2's SAC", ["unknown"]),
    ],
)
def test_differences_are_named(changed: dict[str, object], source: str, differences: list[str]) -> None:
    reference = next(one for one in published("Ant-v5", 200_000) if one.name == source)
    assert settings_of("Ant-v5", changed).differences(reference.settings) == differences


@pytest.mark.parametrize(
    ("changed", "repeated", "differences"),
    [
        (dict(PRESETS["cheetah-run-100k"].settings), True, []),
        ({"gradient_steps": 2}, True, []),
        ({}, False, ["updates per step 2 (here 1)", "action repeat 2 (here 1)"]),
    ],
)
def test_updates_per_step_and_action_repeat_are_settings(changed: dict[str, object], repeated: bool, differences: list[str]) -> None:
    found = published(PRESETS["cheetah-run-100k"].env, 100_000)
    assert [(one.name, one.steps, round(one.mean), round(one.sample_std), one.seeds) for one in found] == [
        ("SimBa's SAC", 50_000, 329, 46, 10),
        ("SimBa's SAC", 100_000, 493, 67, 10),
    ]
    assert all(one.comparable(PRESETS["cheetah-run-100k"].env) for one in found)
    assert sorted(found[-1].curves[0]) == [25_000, 50_000, 75_000, 100_000]
    own = settings_of(found[0].env, changed, repeated=repeated)
    assert own.differences(found[0].settings) == differences
    assert own.remark(found[0].settings) == "its policy's standard deviation starts at 0.02, ours at 1"


def test_an_action_acts_for_two_steps() -> None:
    env = act_for_two_steps(CountingEnv(lengths=(5,)))
    env.reset(seed=0)
    steps = [env.step(np.zeros(1, np.float32)) for _ in range(3)]
    assert [(observation[1], reward, terminated) for observation, reward, terminated, *_ in steps] == [
        (2.0, 1.0 + 2.0, False),
        (4.0, 3.0 + 4.0, False),
        (5.0, 5.0, True),
    ]


def test_a_temperature_that_starts_at_random_around_ours_is_remarked() -> None:
    sources = {one.name: one.settings for one in published("Ant-v5", 200_000)}
    own = settings_of("Ant-v5", LATE)
    assert {name: own.remark(settings) for name, settings in sources.items() if own.remark(settings)} == {
        "nnabla-rl": "its temperature is learned from exp(N(0, 1)), ours from 1"
    }
    assert settings_of("Ant-v5", {**LATE, "initial_entropy_value": 0.5}).remark(sources["nnabla-rl"]) == ""


@pytest.mark.parametrize(
    ("env", "versions"),
    [
        ("HalfCheetah-v5", {"v2", "v3", "v4"}),
        ("Hopper-v4", {"v2", "v3", "v4"}),
        ("Walker2d-v4", {"v2", "v3", "v4"}),
        ("Hopper-v5", set()),
        ("Walker2d-v5", set()),
        ("Ant-v5", {"v5"}),
        ("Ant-v4", {"v4"}),
        ("Humanoid-v4", {"v4"}),
    ],
)
def test_versions_are_comparable_where_their_rewards_and_models_are_one(env: str, versions: set[str]) -> None:
    """Gymnasium's histories: healthy_reward and a foot's friction changed in v5, Ant's contact cost in v4 and v5."""
    points = published(env, 1_000_000)
    assert {point.env_version for point in points if point.comparable(env)} == versions & {point.env_version for point in points}
    assert len({point.env_version for point in points}) > 1
