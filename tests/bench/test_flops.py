"""The operations of a gradient step, counted by hand, and by torch as it does one."""

from functools import partial

import pytest

from bench.flops import matmul_flops, update_flops


def test_the_count_of_the_usual_size() -> None:
    # Of an element: policy 2 (17 256 + 256^2 + 256 12) = 145,920, first layer 8,704; critic 143,360, first layer 11,776, its action's
    # columns 3,072. Policy: forward twice, backward twice less the first layer. Each critic: forward thrice, backward by weights and by
    # inputs (less the first layer's), backward by inputs again, where the first layer has the action's columns alone.
    policy = 4 * 145_920 - 8_704
    critic = 6 * 143_360 - 2 * 11_776 + 3_072
    assert update_flops(observation=17, action=6, hidden=(256, 256), batch=256) == 256 * (policy + 2 * critic) == 577_110_016


def test_the_count_is_linear_in_batch_and_in_critics() -> None:
    count = partial(update_flops, observation=5, action=2, hidden=(8, 16, 4))
    one, two, three = (count(batch=1, critics=critics) for critics in (1, 2, 3))
    assert three - two == two - one > 0
    assert count(batch=7, critics=1) == 7 * one


def test_torch_counts_the_same_in_a_plain_step() -> None:
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from bench import synthetic

    assert torch.get_num_threads() >= 1
    agent = synthetic.agent("torch", batch_size=32, width=64, stored=100, execution="plain")
    with FlopCounterMode(display=False) as counter:
        agent.update(timestep=0, timesteps=1)
    # A plain step also computes the critics' gradient by the observations, beside the action, and throws it away.
    unused = 2 * 2 * 17 * 64 * 32
    expected = update_flops(observation=17, action=6, hidden=(64, 64), batch=32)
    assert expected <= counter.get_total_flops() <= expected + unused


def test_a_product_is_two_operations_an_entry_and_term() -> None:
    assert matmul_flops(256) == 33_554_432
