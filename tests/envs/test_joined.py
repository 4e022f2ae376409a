"""Vector environments joined to one: rows are those of the parts, which wait, fail and are reset by themselves."""

from typing import Any

import numpy as np
import pytest

from sacref import envs
from sacref.envs.joined import JoinedEnvs

ACTIONS = np.linspace(-2.0, 2.0, 6, dtype=np.float32)[:, None]


def parts(**options: Any) -> list[Any]:
    return [envs.make("Pendulum-v1", 2, seed=10 * number, env_kwargs={"max_episode_steps": 3}, **options) for number in range(3)]


def joined(made: list[Any]) -> tuple[JoinedEnvs, Any]:
    together = JoinedEnvs(made, None)
    starts = [part.reset(seed=number)[0] for number, part in enumerate(made)]
    observations, states = together.begin(starts, [None] * len(made))
    assert states is None
    return together, observations


def test_rows_are_those_of_the_parts_alone() -> None:
    together, observations = joined(parts())
    alone = parts()
    np.testing.assert_array_equal(observations, np.concatenate([part.reset(seed=number)[0] for number, part in enumerate(alone)]))
    for _ in range(5):
        found = together.step(ACTIONS)
        wanted = [part.step(ACTIONS[2 * number : 2 * number + 2]) for number, part in enumerate(alone)]
        for values, expected in zip(found[:4], zip(*(step[:4] for step in wanted), strict=True), strict=True):
            np.testing.assert_array_equal(values, np.concatenate(expected))
    assert together.num_envs == 6 and together.observation_space.shape == (6, 3)


def test_a_part_that_waits_or_fails_stays_as_it_is_while_the_others_go_on() -> None:
    made = parts()
    together, observations = joined(made)
    together.active = np.array([True, False, True])

    def fail(actions: object) -> None:
        raise OSError("gone")

    made[2].step = fail
    found = together.step(ACTIONS)
    assert not np.array_equal(found[0][:2], observations[:2])
    np.testing.assert_array_equal(found[0][2:], observations[2:])
    assert found[1][2:].tolist() == [0.0] * 4
    assert together.active.tolist() == [True, False, False]
    assert {number: str(error) for number, error in together.failures.items()} == {2: "gone"}
    together.forget(2)
    together.active[1] = True
    waited = together.step(ACTIONS)[0]
    alone = parts()[1]
    alone.reset(seed=1)
    np.testing.assert_array_equal(waited[2:4], alone.step(ACTIONS[2:4])[0])
    assert not waited[4:].any()


def test_some_copies_are_reset() -> None:
    together, observations = joined(parts())
    mask = np.array([False, True, False, False, False, False])
    found, _ = together.reset(options={"reset_mask": mask})
    assert (found != observations).any(axis=1).tolist() == mask.tolist()


@pytest.mark.parametrize("vectorization", ["sync", "batched"])
def test_parts_that_step_in_threads_begin_together_and_report_divergence(vectorization: Any) -> None:
    pytest.importorskip("mujoco")
    made: list[Any] = [envs.make("InvertedPendulum-v5", 2, seed=number, vectorization=vectorization) for number in range(2)]
    together, _ = joined(made)
    found = together.step(np.zeros((4, 1), np.float32))
    np.testing.assert_array_equal(found[1], np.ones(4))
    assert together.complaints() == {}
    if vectorization == "sync":
        made[1].envs[1].unwrapped.data.warning.number[5] = 1
        assert list(together.complaints()) == [3]
    for part in made:
        part.close()
