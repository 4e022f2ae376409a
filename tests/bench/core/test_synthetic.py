"""The memories of timed agents: as if that many transitions had been recorded, each environment its share, episodes of their length."""

import numpy as np
import pytest

from bench.core import synthetic


@pytest.mark.parametrize(("backend", "capacity", "head"), [("torch", 20, 5), ("torch", 11, 0), ("jax", 20, 5)])
def test_each_environment_has_its_share(backend: str, capacity: int, head: int) -> None:
    pytest.importorskip(backend)
    agent = synthetic.agent(backend, batch_size=4, width=8, stored=11, capacity=capacity, num_envs=2)
    arrays = agent.memory.arrays()
    assert (arrays["head"].tolist(), arrays["size"].tolist(), len(agent.memory)) == ([head, head], [5, 5], 10)
    np.testing.assert_array_equal(arrays["actions"], synthetic.replay(10, 0).actions)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_rows_of_a_recurrent_agent_know_what_they_follow(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(backend)
    monkeypatch.setattr(synthetic, "EPISODE", 3)
    agent = synthetic.agent(
        backend,
        batch_size=2,
        width=8,
        stored=14,
        num_envs=2,
        execution="plain",
        settings={"sequence_length": 3},
        recurrent="lstm",
        recurrent_size=4,
    )
    arrays = agent.memory.arrays()
    assert arrays["first"].reshape(7, 2).all(axis=1).tolist() == [True, False, False] * 2 + [True]
    assert not arrays["terminated"].any()
    actions, previous = (arrays[name].reshape(7, 2, 6) for name in ("actions", "previous_actions"))
    np.testing.assert_array_equal(previous[[1, 2, 4, 5]], actions[[0, 1, 3, 4]])
    assert not previous[[0, 3, 6]].any()
    rewards, previous_rewards = (arrays[name].reshape(7, 2) for name in ("rewards", "previous_rewards"))
    np.testing.assert_array_equal(previous_rewards[[1, 2]], rewards[[0, 1]])
    assert type(agent).__name__ == "SAC_RNN"
    assert agent.cfg.sequence_length == 3
