"""The end of a run says what its return means beside those that are known."""

from typing import Any

import pytest

from bench.suites.learning.published import UNKNOWN, published, settings_of
from sacref.config import presets
from sacref.training import known_returns
from sacref.training.known_returns import OWN, Known, meaning, table


def config(env: str = "HalfCheetah-v5", preset: str = "paper", **changes: Any) -> dict[str, Any]:
    found = presets.find(preset)
    models = {**found.critics, "recurrent": None, "recurrent_size": 128}
    plain = {"env": env, "num_envs": 1, "ranks": 1, "wrappers": (), "env_kwargs": {}, "hidden": (256, 256), "models": models}
    return {**plain, "cfg": found.config().to_dict(), "action_space": {"shape": [6]}, **changes}


def test_a_run_stands_beside_both_neighbours_of_its_step_and_the_nearest_published_source() -> None:
    own, nearest = meaning(config(), 35_000, 2_400.0)
    assert (
        "30,000 and 2,820 +- 191 after 40,000 steps with these settings; 2,400 is within the 95% prediction interval of another run, "
        in own
    )
    assert nearest == (
        "sacref knows no published return of HalfCheetah-v5 with these settings after 35,000 steps; nnabla-rl (HalfCheetah, 3 runs) has "
        "850 +- 485 after 30,000 and 2,693 +- 362 after 40,000 steps with random_timesteps 10,000 (here 5,000), "
        "learning_starts 10,000 (here 5,000)"
    )


@pytest.mark.parametrize(("mean", "place"), [(200.0, "200 is below the 95%"), (9e3, "9,000 is above the 95%")])
def test_a_return_apart_from_the_known_ones_is_said_to_be(mean: float, place: str) -> None:
    own, _ = meaning(config(), 35_000, mean)
    assert place in own
    assert ("docs/troubleshooting.md" in own) == (mean < 1e3)


def known(runs: int, *, std: float = 10.0, remark: str = "") -> Known:
    return Known("theirs", "Pendulum-v1", runs, {}, remark, {"1000": (100.0, std), "2000": (200.0, std)})


@pytest.mark.parametrize(
    ("row", "mean", "place"),
    [
        # t(0.975) is 4.303 of 2 degrees of freedom and 2.262 of 9; a new run's deviation is 10 sqrt(1 + 1/n).
        (known(3), 150.0, "150 is within the 95% prediction interval of another run, 50 to 250"),
        (known(3), 251.0, "251 is above the 95% prediction interval of another run, 50 to 250"),
        (known(10), 75.0, "75 is below the 95% prediction interval of another run, 76 to 224, for which docs/troubleshooting.md says"),
        (known(2), 0.0, "2 runs say little about another"),
        (known(1), 0.0, "one run says little about another"),
        (known(6, std=0.0), 99.0, "its runs returned the same, and say little about how far another may be from them"),
    ],
)
def test_another_run_is_expected_where_so_many_runs_tell(monkeypatch: pytest.MonkeyPatch, row: Known, mean: float, place: str) -> None:
    monkeypatch.setattr(known_returns, "table", lambda: (row,))
    (said,) = meaning(config("Pendulum-v1"), 1_500, mean)
    assert f"with these settings; {place}" in said


def test_the_mean_of_several_runs_is_beside_that_of_as_many_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three known runs that deviate by 10, t(0.975) is 4.303: five's mean deviates by 10 sqrt(1/5 + 1/3) = 7.303, one by 11.547."""
    monkeypatch.setattr(known_returns, "table", lambda: (known(3),))
    (said,) = meaning(config("Pendulum-v1"), 1_000, 140.0, runs=5)
    assert said.endswith(
        "; 140 is above the 95% prediction interval of the mean of 5 others, 69 to 131"  # 100 -+ 31.4
    )
    (said,) = meaning(config("Pendulum-v1"), 1_000, 140.0)
    assert said.endswith("; 140 is within the 95% prediction interval of another run, 50 to 150")  # 100 -+ 49.7


def test_what_differs_beside_the_settings_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_returns, "table", lambda: (known(3, remark="their weights are zeros"),))
    (said,) = meaning(config("Pendulum-v1"), 1_500, 150.0)
    assert " steps with these settings (their weights are zeros); 150 is within" in said
    monkeypatch.undo()
    assert {row.source: row.remark for row in table() if row.remark} == {"nnabla-rl": "their temperature is learned from exp(N(0, 1))"}


@pytest.mark.parametrize(
    ("preset", "source", "steps"), [("jaxrl", "jaxrl", 100_000), ("tianshou", "Tianshou", 200_000), ("paper", "nnabla-rl", 50_000)]
)
def test_the_settings_of_a_source_are_recognised_on_all_versions_of_one_reward(preset: str, source: str, steps: int) -> None:
    run = config("HalfCheetah-v4", preset)
    run["cfg"] |= {"random_timesteps": 10_000, "learning_starts": 10_000, "seed": 7, "execution": "plain"}
    said = meaning(run, steps, 5_000.0)
    known = (
        "steps with these settings (their temperature is learned from exp(N(0, 1))); " if source == "nnabla-rl" else "with these settings; "
    )
    assert any(line.startswith(f"{source} (HalfCheetah") and f"{known}5,000 " in line for line in said)
    assert not any("knows no" in line for line in said)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"env": "Pendulum-v1"}, ""),
        ({"hidden": [64, 64]}, "hidden [256, 256] (here [64, 64])"),
        ({"num_envs": 4}, "num_envs 1 (here 4)"),
        ({"models": {"network": "simba"}}, "network mlp (here simba)"),
        ({"network": "simba"}, "network mlp (here simba)"),
        ({"memory_capacity": 500}, "memory_capacity 1,000,000 (here 500)"),
        ({"vector_env": "my.module:env"}, "vector_env None (here my.module:env)"),
        ({"evaluation_max_steps": 100}, "evaluation_max_steps None (here 100)"),
    ],
)
def test_other_tasks_and_settings_are_beside_no_source_or_the_difference(changes: dict[str, Any], told: str) -> None:
    (line,) = meaning(config(**changes), 35_000, 0.0)
    assert line.startswith(f"sacref knows no published return of {changes.get('env', 'HalfCheetah-v5')} with these settings")
    assert told in line
    assert (line.count(";") == 0) == (told == "")


def test_a_replay_that_has_forgotten_nothing_yet_is_as_good_as_theirs() -> None:
    assert meaning(config(memory_capacity=35_000), 35_000, 2_400.0) == meaning(config(), 35_000, 2_400.0)
    assert "memory_capacity" in meaning(config(memory_capacity=34_999), 35_000, 2_400.0)[-1]


def test_updates_for_each_transition_are_compared_however_they_are_asked_for() -> None:
    asked = config()
    asked["cfg"] |= {"update_to_data": 1.0}
    assert meaning(asked, 35_000, 2_400.0) == meaning(config(), 35_000, 2_400.0)
    for fields in ({"update_to_data": 2.0}, {"gradient_steps": 2}):
        more = config()
        more["cfg"] |= fields
        (line,) = meaning(more, 35_000, 2_400.0)
        assert "update_to_data 1.0 (here 2.0)" in line and "gradient_steps" not in line


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
