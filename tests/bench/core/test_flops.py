"""The operations of a gradient step, counted by hand, and by torch as it does one."""

from functools import partial

import pytest

from bench.core.flops import matmul_flops, product_flops, recurrent_update_flops, update_flops


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

    from bench.core import synthetic

    assert torch.get_num_threads() >= 1
    agent = synthetic.agent("torch", batch_size=32, width=64, stored=100, execution="plain")
    with FlopCounterMode(display=False) as counter:
        agent.update(timestep=0, timesteps=1)
    # A plain step also computes the critics' gradient by the observations, beside the action, and throws it away.
    unused = 2 * 2 * 17 * 64 * 32
    expected = update_flops(observation=17, action=6, hidden=(64, 64), batch=32)
    assert expected <= counter.get_total_flops() <= expected + unused


def test_the_count_of_a_recurrent_step_by_hand() -> None:
    # A GRU of 2 over 3 observations and 1 action, no hidden layer, one critic, one sequence of one step. The cell: 2 * 4 * 6 = 48 of its
    # input, 2 * 2 * 6 = 24 of its state. Heads: policy 2 (2 + 3) 2 = 20, of which 8 by the cell's output; critic 2 (2 + 3 + 1) = 12, 4 by
    # the cell's output and 2 by the action. Cells: policy and target over two steps, critic, policy, critic over one: 7 steps forward;
    # weights of critic and policy: 2 steps backward; no state's gradient, since there is no step before.
    found = recurrent_update_flops(observation=3, action=1, hidden=(), size=2, gates=3, sequence_length=1, batch=1, critics=1)
    heads = (20 + 12) + (12 + 12 + 4) + (20 + 20 + 8) + (12 + 2)
    assert found == (9 * (48 + 24) + heads, 9 * 24, 9)
    # A step more: seven more passes of the cell and the gradient of two states.
    longer = recurrent_update_flops(observation=3, action=1, hidden=(), size=2, gates=3, sequence_length=2, batch=1, critics=1)
    assert longer == (found.total + 7 * (48 + 24) + 2 * 24 + heads, found.recurrence + 9 * 24, 16)


def test_a_recurrent_count_is_linear_in_the_batch_and_in_critics() -> None:
    count = partial(recurrent_update_flops, observation=5, action=2, hidden=(8, 16), size=4, gates=4, sequence_length=6)
    one, two, three = (count(batch=1, critics=critics) for critics in (1, 2, 3))
    assert [b - a for a, b in zip(one, two, strict=True)] == [b - a for a, b in zip(two, three, strict=True)]
    assert count(batch=7, critics=1) == (7 * one.total, 7 * one.recurrence, one.cell_steps)


def test_torch_counts_the_same_in_a_plain_recurrent_step() -> None:
    pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    from bench.core import synthetic

    steps, batch, width, size = 5, 4, 16, 8
    agent = synthetic.agent(
        "torch",
        batch_size=batch,
        width=width,
        stored=100,
        execution="plain",
        settings={"sequence_length": steps},
        recurrent="gru",
        recurrent_size=size,
    )
    with FlopCounterMode(display=False) as counter:
        agent.update(timestep=0, timesteps=1)
    count = partial(recurrent_update_flops, observation=17, action=6, hidden=(width, width), size=size, gates=3, batch=batch)
    assert count(sequence_length=steps).total <= counter.get_total_flops()
    # A plain step runs every pass over all steps and the one after them, and computes the first layers' gradients by all they see.
    whole = count(sequence_length=steps + 1).total - 3 * product_flops(batch, 17 + 6 + size, 3 * size)
    by_inputs = 17 + 2 * (17 + 6) + 2 * (size + 17)
    assert counter.get_total_flops() == whole + product_flops(batch * (steps + 1), by_inputs, width)


def test_a_product_is_two_operations_an_entry_and_term() -> None:
    assert matmul_flops(256) == 33_554_432
