"""The end of a run says what its return means beside those that are known."""

from typing import Any

import pytest

from bench.suites.learning.published import UNKNOWN, published, settings_of
from sacref.config import presets
from sacref.training.known_returns import OWN, meaning, table


def config(env: str = "HalfCheetah-v5", preset: str = "paper", **changes: Any) -> dict[str, Any]:
    found = presets.find(preset)
    models = {**found.critics, "recurrent": None, "recurrent_size": 128}
    plain = {"env": env, "num_envs": 1, "ranks": 1, "wrappers": (), "env_kwargs": {}, "hidden": (256, 256), "models": models}
    return {**plain, "cfg": found.config().to_dict(), "action_space": {"shape": [6]}, **changes}


def test_a_run_stands_beside_both_neighbours_of_its_step_and_the_nearest_published_source() -> None:
    own, nearest = meaning(config(), 35_000, 2_400.0)
    assert "30,000 and 2,820 +- 191 after 40,000 steps with these settings; 2,400 is within 2 standard deviations" in own
    assert nearest == (
        "sacref knows no published return of HalfCheetah-v5 with these settings after 35,000 steps; nnabla-rl (HalfCheetah, 3 runs) has "
        "850 +- 485 after 30,000 and 2,693 +- 362 after 40,000 steps with random_timesteps 10,000 (here 5,000), "
        "learning_starts 10,000 (here 5,000)"
    )


@pytest.mark.parametrize(("mean", "place"), [(400.0, "400 is below that by more than 2"), (9e3, "9,000 is above that by more than 2")])
def test_a_return_apart_from_the_known_ones_is_said_to_be(mean: float, place: str) -> None:
    own, _ = meaning(config(), 35_000, mean)
    assert place in own
    assert ("docs/troubleshooting.md" in own) == (mean < 1e3)


@pytest.mark.parametrize(
    ("preset", "source", "steps"), [("jaxrl", "jaxrl", 100_000), ("tianshou", "Tianshou", 200_000), ("paper", "nnabla-rl", 50_000)]
)
def test_the_settings_of_a_source_are_recognised_on_all_versions_of_one_reward(preset: str, source: str, steps: int) -> None:
    run = config("HalfCheetah-v4", preset)
    run["cfg"] |= {"random_timesteps": 10_000, "learning_starts": 10_000, "seed": 7, "execution": "plain"}
    said = meaning(run, steps, 5_000.0)
    assert any(line.startswith(f"{source} (HalfCheetah") and " steps with these settings; 5,000 " in line for line in said)
    assert not any("knows no" in line for line in said)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"env": "Pendulum-v1"}, ""),
        ({"hidden": [64, 64]}, "hidden [256, 256] (here [64, 64])"),
        ({"num_envs": 4}, "num_envs 1 (here 4)"),
        ({"models": {"network": "simba"}}, "network mlp (here simba)"),
        ({"network": "simba"}, "network mlp (here simba)"),
    ],
)
def test_other_tasks_and_settings_are_beside_no_source_or_the_difference(changes: dict[str, Any], told: str) -> None:
    (line,) = meaning(config(**changes), 35_000, 0.0)
    assert line.startswith(f"sacref knows no published return of {changes.get('env', 'HalfCheetah-v5')} with these settings")
    assert told in line
    assert (line.count(";") == 0) == (told == "")


def test_many_differences_are_no_comparison() -> None:
    assert meaning(config(preset="redq"), 35_000, 0.0) == [
        "sacref knows no published return of HalfCheetah-v5 with these settings after 35,000 steps"
    ]


def test_the_table_holds_the_published_points_and_their_settings() -> None:
    """The report's test holds the file against what its maker makes; this holds that against the points themselves."""
    for row in (row for row in table() if row.source != OWN):
        env = row.task if "-v" in row.task else f"{row.task}-v5"
        points = [point for point in published(env, 1_000_000) if point.name == row.source and point.comparable(env)]
        assert {str(point.steps) for point in points} <= row.returns.keys()
        for point in points:
            assert UNKNOWN not in point.settings
            assert row.returns[str(point.steps)] == pytest.approx([point.mean, point.sample_std], abs=0.051)
            changed = {name: value for name, value in row.settings.items() if name != "target_entropy_per_dimension"}
            if "target_entropy_per_dimension" in row.settings:
                changed["target_entropy"] = row.settings["target_entropy_per_dimension"] * 6
            assert settings_of(env, changed).differences(point.settings) == []
