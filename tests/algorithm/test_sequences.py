"""Transitions of n steps and sequences, on both backends, against lists of rows that are followed one by one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from sacref.algorithm.data import Sequences, Transition
from sacref.algorithm.sequences import Follow
from sacref.algorithm.tree import leaves, map_leaves, named_leaves
from sacref.envs.spaces import check_spaces
from tests.backends import BACKENDS, Backend, assert_same_arrays, box, fill, load_backend

backend = pytest.fixture(params=BACKENDS)(load_backend)

OBSERVATIONS = gymnasium.spaces.Dict(
    whole=box(-np.inf, np.inf, (2,)),
    inner=gymnasium.spaces.Dict(count=box(0, 255, (1, 2), np.uint8), flag=box(0, 255, (), np.int32)),
)
STATES = box(-np.inf, np.inf, (3,))
ACTIONS = box(-1.0, 1.0, (2,))
BATCH = 48


@dataclass
class Row:
    """A stored transition. Its observation, and its successor's, say a moment: a number that no other observation has."""

    number: int
    """Reward and action say it."""
    moment: int
    successor: int
    terminated: bool
    first: bool
    """Whether it begins an episode, or follows a row that was not stored."""
    previous: int
    """The number of the row before, 0 where `first`."""


def observation(moment: Any) -> Any:
    m = np.asarray(moment)
    whole = np.stack([m, -m], axis=-1).astype(np.float32)
    count = np.stack([m % 256, m // 256], axis=-1)[..., None, :].astype(np.uint8)
    return {"whole": whole, "inner": {"count": count, "flag": m.astype(np.int32)}}


def state(moment: Any) -> Any:
    m = np.asarray(moment)
    return np.stack([m + 0.25, m + 0.5, m], axis=-1).astype(np.float32)


def action(number: Any) -> Any:
    n = np.asarray(number)
    return np.stack([n / 4096, -n / 8192], axis=-1).astype(np.float32)


def carry(moment: Any) -> Any:
    """Of an LSTM, say: before the observation of that moment."""
    m = np.asarray(moment)
    return np.stack([m + 1000.0] * 4, axis=-1).astype(np.float32), np.stack([-m, m, m - 2000.0], axis=-1).astype(np.float32)


def reward(number: Any) -> Any:
    return np.asarray(number, np.float32)


@dataclass
class History:
    """Random episodes of some environments, and what each one's ring must hold, oldest first."""

    envs: int
    slots: int
    seed: int
    kept: list[list[Row]] = field(init=False)

    def __post_init__(self) -> None:
        self.generator = np.random.default_rng(self.seed)
        self.kept = [[] for _ in range(self.envs)]
        self.numbers = 0
        self.moments = 0
        # Quiet and restless environments: long and short episodes, many and few rows that are not stored.
        self.end_rate = self.generator.choice([0.05, 0.2, 0.5], self.envs)
        self.drop_rate = self.generator.choice([0.0, 0.1, 0.4], self.envs)
        self._begun = [self._moment() for _ in range(self.envs)]
        self._before = [0] * self.envs

    def _moment(self) -> int:
        self.moments += 1
        return self.moments

    def step(self) -> tuple[Transition[Any], NDArray[np.bool_]]:
        """The next row of each environment, and which are kept."""
        rows, keep = [], self.generator.random(self.envs) >= self.drop_rate
        for env in range(self.envs):
            self.numbers += 1
            ended, truncated = self.generator.random() < self.end_rate[env], self.generator.random() < 0.5
            before = self._before[env]
            row = Row(self.numbers, self._begun[env], self._moment(), bool(ended and not truncated), before == 0, before)
            rows.append(row)
            if keep[env]:
                self.kept[env] = [*self.kept[env], row][-self.slots :]
            self._begun[env] = self._moment() if ended else row.successor
            self._before[env] = 0 if ended or not keep[env] else row.number
        moments, successors, numbers, previous = (
            np.array([getattr(row, name) for row in rows]) for name in ("moment", "successor", "number", "previous")
        )
        transition = Transition(
            observations=observation(moments),
            states=state(moments),
            actions=action(numbers),
            rewards=reward(numbers),
            next_observations=observation(successors),
            next_states=state(successors),
            terminated=np.array([row.terminated for row in rows]),
            first=np.array([row.first for row in rows]),
            previous_actions=action(previous),
            previous_rewards=reward(previous),
            carry=carry(moments),
        )
        return transition, keep

    def stored(self) -> dict[int, tuple[list[Row], int]]:
        """Number -> the rows of its environment, and its place among them."""
        return {row.number: (rows, place) for rows in self.kept for place, row in enumerate(rows)}


def onward(rows: list[Row], place: int, steps: int) -> list[Row]:
    """The row and those that continue it, `steps` at most."""
    found = [rows[place]]
    while len(found) < steps and place + len(found) < len(rows) and not rows[place + len(found)].first:
        found.append(rows[place + len(found)])
    return found


def backward(rows: list[Row], place: int, steps: int) -> list[Row]:
    """The rows that the row continues, oldest first, `steps` at most."""
    begin = place
    while begin > 0 and place - begin < steps and not rows[begin].first:
        begin -= 1
    return rows[begin:place]


def memory_of(backend: Backend, envs: int, slots: int, settings: Follow, dtype: str = "float32", **options: Any) -> Any:
    memory = backend.package.ReplayMemory(envs * slots + envs - 1, envs)
    memory.allocate(
        check_spaces(OBSERVATIONS, STATES, ACTIONS),
        backend.array(np.zeros(0, dtype)).dtype,
        backend.module("device").device_of("cpu"),
        settings=settings,
        carry=map_leaves(backend.array, carry(np.zeros(1))) if settings.sequence_length else None,
        **options,
    )
    return memory


def add(backend: Backend, memory: Any, transition: Transition[Any], keep: NDArray[np.bool_], *, on_device: bool) -> None:
    if memory.settings.sequence_length == 0:
        transition = transition._replace(previous_actions=None, previous_rewards=None, carry=None)
    if not memory.settings.needs_first:
        transition = transition._replace(first=None)
    if on_device:
        transition, keep = transition.map(backend.array), backend.array(keep)
    memory.add(transition, keep)


def drawer(backend: Backend, sample: Callable[..., Any]) -> Callable[[Any, int, int], Any]:
    """`(memory, batch_size, seed)` -> a batch on the host, drawn as the agent does: on JAX in a compiled function."""
    if backend.name == "torch":
        import torch

        return lambda memory, size, seed: map_leaves(backend.numpy, sample(memory.state, size, torch.Generator().manual_seed(seed)))
    import jax

    compiled = jax.jit(sample, static_argnums=1)
    return lambda memory, size, seed: map_leaves(backend.numpy, compiled(memory.state, size, jax.random.key(seed)))


def drawer_of(backend: Backend, settings: Follow) -> Callable[[Any, int, int], Any]:
    return drawer(backend, backend.module("memory").sampler(settings))


class Ring(NamedTuple):
    envs: int
    slots: int


def histories(backend: Backend, ring: Ring, settings: Follow, *, runs: int = 4, **options: Any) -> Iterator[tuple[History, Any, int]]:
    """Random histories in a memory, at random moments: before rings are full, when they have just wrapped, and long after."""
    for seed in range(runs):
        history = History(*ring, seed=seed)
        memory = memory_of(backend, *ring, settings, **options)
        looks = {1, ring.slots - 1, ring.slots + 1, *history.generator.integers(2, 4 * ring.slots, 4).tolist()}
        for timestep in range(1, max(looks) + 1):
            add(backend, memory, *history.step(), on_device=bool(history.generator.random() < 0.3))
            if timestep in looks and any(history.kept):
                yield history, memory, seed + 10 * timestep


ONE, THREE, TWO = Ring(1, 7), Ring(3, 6), Ring(2, 11)


def assert_tree_equal(got: Any, wanted: Any, what: str) -> None:
    got, wanted = named_leaves(got, what), named_leaves(wanted, what)
    assert sorted(got) == sorted(wanted)
    for name, values in wanted.items():
        assert got[name].dtype == values.dtype, name
        np.testing.assert_array_equal(got[name], values, err_msg=name)


def numbers_of(actions: NDArray[Any]) -> list[int]:
    numbers: list[int] = np.rint(actions[..., 0] * 4096).astype(int).tolist()
    return numbers


# Transitions of n steps.


@pytest.mark.parametrize(("ring", "n_step"), [(ONE, 2), (THREE, 3), (TWO, 6)], ids=str)
def test_n_steps_end_where_the_episode_or_the_memory_does(backend: Backend, ring: Ring, n_step: int) -> None:
    gamma = 0.9
    settings = Follow(n_step=n_step, discount_factor=gamma)
    draw = drawer_of(backend, settings)
    lengths: set[int] = set()
    for history, memory, seed in histories(backend, ring, settings):
        batch, stored = draw(memory, BATCH, seed), history.stored()
        found = [onward(*stored[number], n_step) for number in numbers_of(batch.actions)]
        begin = np.array([rows[0].moment for rows in found])
        end = np.array([rows[-1].successor for rows in found])
        assert_tree_equal((batch.observations, batch.states), (observation(begin), state(begin)), "batch")
        assert_tree_equal((batch.next_observations, batch.next_states), (observation(end), state(end)), "next")
        assert_tree_equal(batch.actions, action([rows[0].number for rows in found]), "actions")
        assert batch.terminated.tolist() == [rows[-1].terminated for rows in found]
        assert batch.rewards.dtype == batch.discounts.dtype == np.float32
        returns = [sum(gamma**k * row.number for k, row in enumerate(rows)) for rows in found]
        np.testing.assert_allclose(batch.rewards, returns, rtol=1e-6)
        np.testing.assert_allclose(batch.discounts, [gamma ** len(rows) for rows in found], rtol=1e-6)
        assert batch.mask is None
        lengths |= {len(rows) for rows in found}
    assert lengths == set(range(1, n_step + 1))


@pytest.mark.parametrize(("ring", "dtype"), [(ONE, "float32"), (THREE, "float64")], ids=str)
def test_transitions_of_one_step_are_those_that_are_drawn_one_by_one(backend: Backend, ring: Ring, dtype: str) -> None:
    sampler = backend.module("memory").sampler
    plain, stepwise = (drawer(backend, sample) for sample in (sampler.transitions, partial(sampler.n_steps, settings=Follow())))
    assert sampler(Follow()) == sampler.transitions
    for _, memory, seed in histories(backend, ring, Follow(n_step=2), dtype=dtype, runs=2):
        one, other = plain(memory, BATCH, seed), stepwise(memory, BATCH, seed)
        assert one.discounts is None
        assert_tree_equal(other._replace(discounts=None), one, "batch")
        assert other.discounts.dtype == np.dtype(dtype)
        assert (other.discounts == np.array(0.99, dtype)).all()


# Sequences.


class Wanted(NamedTuple):
    """A sequence that begins to be learned from at a row."""

    warm_up: list[Row]
    learned: list[Row]


def check_sequences(batch: Sequences[Any], history: History, settings: Follow) -> list[Wanted]:
    """Every number of the sequences that anything is computed from; the rest must be finite."""
    stored, time = history.stored(), settings.burn_in + settings.sequence_length
    seen = (batch.observations, batch.states, batch.previous_actions, batch.previous_rewards)
    assert {leaf.shape[:2] for leaf in leaves(seen)} == {(time + 1, BATCH)}
    done = (batch.actions, batch.rewards, batch.terminated)
    assert {leaf.shape[:2] for leaf in (*done, batch.mask)} == {(time, BATCH)}
    assert all(np.isfinite(leaf).all() for leaf in leaves(batch))
    assert batch.mask.any(axis=0).all()
    begin = np.argmax(batch.mask, axis=0)
    found = []
    for number in numbers_of(batch.actions[begin, np.arange(BATCH)]):
        rows, place = stored[number]
        found.append(Wanted(backward(rows, place, settings.burn_in), onward(rows, place, settings.sequence_length)))

    mask = [[len(one.warm_up) <= k < len(one.warm_up + one.learned) for one in found] for k in range(time)]
    assert batch.mask.tolist() == mask
    # (step, sequence) where a sequence has a row, one after the other; and with what comes after the last one.
    moments, shifted, numbers, terminated, at, upto = [], [], [], [], [], []
    for i, one in enumerate(found):
        rows = one.warm_up + one.learned
        at += [(k, i) for k in range(len(rows))]
        upto += [(k, i) for k in range(len(rows) + 1)]
        moments += [*(row.moment for row in rows), rows[-1].successor]
        numbers += [row.number for row in rows]
        shifted += [rows[0].previous, *(row.number for row in rows)]
        terminated += [row.terminated for row in rows]
    there, through = tuple(np.transpose(at)), tuple(np.transpose(upto))
    wanted_seen = (observation(moments), state(moments), action(shifted), reward(shifted))
    assert_tree_equal(map_leaves(lambda leaf: leaf[through], seen), wanted_seen, "seen")
    wanted_done = (action(numbers), reward(numbers), np.array(terminated))
    assert_tree_equal(map_leaves(lambda leaf: leaf[there], done), wanted_done, "done")
    carried = carry([(one.warm_up + one.learned)[0].moment for one in found])
    assert_tree_equal(batch.carry, carried, "carry")
    return found


@pytest.mark.parametrize(
    ("ring", "settings"),
    [
        (THREE, Follow(sequence_length=1)),
        (ONE, Follow(sequence_length=4)),
        (ONE, Follow(sequence_length=3, burn_in=2)),
        (THREE, Follow(sequence_length=3, burn_in=2)),
        (TWO, Follow(sequence_length=2, burn_in=4)),
    ],
    ids=lambda value: str(value) if isinstance(value, Ring) else f"{value.burn_in}+{value.sequence_length}",
)
def test_trap_17_sequences_end_where_the_episode_or_the_memory_does(backend: Backend, ring: Ring, settings: Follow) -> None:
    draw = drawer_of(backend, settings)
    lengths, warm_ups = set(), set()
    for history, memory, seed in histories(backend, ring, settings):
        for wanted in check_sequences(draw(memory, BATCH, seed), history, settings):
            lengths.add(len(wanted.learned))
            warm_ups.add(len(wanted.warm_up))
    assert lengths == set(range(1, settings.sequence_length + 1))
    assert warm_ups == set(range(settings.burn_in + 1))


def lines(lengths: list[int]) -> Iterator[tuple[Transition[Any], NDArray[np.bool_]]]:
    """Rows of one environment whose episodes have these lengths; numbers and moments count from 1."""
    number = 0
    for length in lengths:
        for step in range(length):
            number += 1
            n, previous = np.array([number]), np.array([number - 1 if step else 0])
            yield (
                Transition(
                    observations=observation(n),
                    states=state(n),
                    actions=action(n),
                    rewards=reward(n),
                    next_observations=observation(n + 1 if step < length - 1 else n + 100),
                    next_states=state(n + 1 if step < length - 1 else n + 100),
                    terminated=np.array([step == length - 1]),
                    first=np.array([step == 0]),
                    previous_actions=action(previous),
                    previous_rewards=reward(previous),
                    carry=carry(n),
                ),
                np.array([True]),
            )


def sequences_by_number(backend: Backend, memory: Any) -> dict[int, tuple[list[int], list[bool]]]:
    """First number that is learned from -> the rewards of its sequence, and the mask."""
    batch = drawer_of(backend, memory.settings)(memory, 200, 0)
    found: dict[int, tuple[list[int], list[bool]]] = {}
    for i in range(200):
        mask = batch.mask[:, i].tolist()
        found[int(batch.rewards[mask.index(True), i])] = batch.rewards[:, i].astype(int).tolist(), mask
    return found


def test_trap_19_episodes_shorter_than_the_burn_in_are_learned_from(backend: Backend) -> None:
    """Episodes of 1, 2 and 5 steps, a burn-in of 3: each of the 8 rows is the first that is learned from, none lost to the burn-in."""
    memory = memory_of(backend, 1, 8, Follow(sequence_length=2, burn_in=3))
    for transition, keep in lines([1, 2, 5]):
        add(backend, memory, transition, keep, on_device=False)
    found = sequences_by_number(backend, memory)
    wanted = {
        # number: (rows before it, and from it on)
        1: ([], [1]),
        2: ([], [2, 3]),
        3: ([2], [3]),
        4: ([], [4, 5]),
        5: ([4], [5, 6]),
        6: ([4, 5], [6, 7]),
        7: ([4, 5, 6], [7, 8]),
        8: ([5, 6, 7], [8]),
    }
    assert sorted(found) == sorted(wanted)
    for number, (before, learned) in wanted.items():
        rewards, mask = found[number]
        assert rewards[: len(before) + len(learned)] == [*before, *learned]
        assert mask == [False] * len(before) + [True] * len(learned) + [False] * (5 - len(before) - len(learned))


def test_trap_17_no_sequence_runs_over_the_write_head(backend: Backend) -> None:
    """One episode without an end, in a ring of 5 that has wrapped: 8 9 | 5 6 7, where 9 is the newest and 5 the oldest."""
    memory = memory_of(backend, 1, 5, Follow(sequence_length=3, burn_in=2))
    for _, (transition, keep) in zip(range(9), lines([20]), strict=False):
        add(backend, memory, transition, keep, on_device=True)
    assert memory.arrays()["rewards"].tolist() == [6, 7, 8, 9, 5]
    found = sequences_by_number(backend, memory)
    wanted = {5: ([], [5, 6, 7]), 6: ([5], [6, 7, 8]), 7: ([5, 6], [7, 8, 9]), 8: ([6, 7], [8, 9]), 9: ([7, 8], [9])}
    assert sorted(found) == sorted(wanted)
    for number, (before, learned) in wanted.items():
        rewards, mask = found[number]
        assert rewards[: len(before) + len(learned)] == [*before, *learned]
        assert mask == [len(before) <= k < len(before) + len(learned) for k in range(5)]


def test_every_stored_row_is_as_likely_to_be_learned_from_first(backend: Backend) -> None:
    """In environments that have stored more or less, in the middle of an episode and at its end."""
    settings = Follow(sequence_length=3, burn_in=2)
    history, memory = History(3, 6, seed=3), memory_of(backend, 3, 6, settings)
    history.drop_rate[:] = 0.0, 0.4, 0.8
    for _ in range(7):
        add(backend, memory, *history.step(), on_device=False)
    present = sorted(history.stored())
    assert [len(rows) for rows in history.kept] == memory.arrays()["size"].tolist()
    assert len({len(rows) for rows in history.kept}) == 3
    draws = 20_000
    batch = drawer_of(backend, settings)(memory, draws, 0)
    begin = batch.rewards[np.argmax(batch.mask, axis=0), np.arange(draws)].astype(int)
    assert sorted(set(begin.tolist())) == present
    counts = np.array([(begin == number).sum() for number in present])
    chi_square = ((counts - draws / len(present)) ** 2 * len(present) / draws).sum()
    free = len(present) - 1
    # The 99.9% quantile, by Wilson and Hilferty's approximation.
    assert chi_square < free * (1 - 2 / (9 * free) + 3.09 * (2 / (9 * free)) ** 0.5) ** 3


@pytest.mark.parametrize("wait", [2, 3])
def test_rows_that_wait_on_the_host_are_followed_like_others(backend: Backend, wait: int) -> None:
    settings = Follow(sequence_length=3, burn_in=2)
    draw = drawer_of(backend, settings)
    for history, memory, seed in histories(backend, THREE, settings, staged_timesteps=wait, runs=2):
        check_sequences(draw(memory, BATCH, seed), history, settings)


def test_sequences_are_the_same_without_x64() -> None:
    jax, backend = pytest.importorskip("jax"), Backend("jax")
    settings = Follow(sequence_length=3, burn_in=2)
    with jax.enable_x64(False):
        draw = drawer_of(backend, settings)
        for history, memory, seed in histories(backend, THREE, settings, runs=1):
            assert memory.state.head.dtype == memory.state.size.dtype == np.int32
            check_sequences(draw(memory, BATCH, seed), history, settings)


# State.


@pytest.mark.parametrize("stored", [3, 5, 14])
def test_arrays_carry_the_whole_state_of_a_memory_of_sequences(backend: Backend, stored: int) -> None:
    settings = Follow(sequence_length=3, burn_in=1)
    history = History(3, 5, seed=stored)
    memory, other = (memory_of(backend, 3, 5, settings) for _ in range(2))
    for _ in range(stored):
        add(backend, memory, *history.step(), on_device=False)
    saved = memory.arrays()
    names = {"whole", "inner.count", "inner.flag"}
    assert set(saved) == {
        *(f"{kind}.{name}" for kind in ("observations", "next_observations") for name in names),
        *("states", "next_states", "actions", "rewards", "terminated", "first", "previous_actions", "previous_rewards"),
        *("carry.0", "carry.1", "head", "size"),
    }
    assert saved["observations.inner.count"].dtype == np.uint8
    assert saved["size"].tolist() == [len(rows) for rows in history.kept]
    other.set_arrays(saved)
    assert_same_arrays(other.arrays(), saved)
    draw = drawer_of(backend, settings)
    assert_tree_equal(draw(other, BATCH, 0), draw(memory, BATCH, 0), "batch")
    for _ in range(4):
        transition, keep = history.step()
        for each in (memory, other):
            add(backend, each, transition, keep, on_device=False)
    assert_same_arrays(other.arrays(), memory.arrays())
    check_sequences(draw(other, BATCH, 1), history, settings)


def test_what_a_memory_held_before_it_was_restored_is_forgotten(backend: Backend) -> None:
    settings = Follow(sequence_length=3, burn_in=2)
    history, before = History(2, 5, seed=0), History(2, 5, seed=1)
    memory, other = (memory_of(backend, 2, 5, settings) for _ in range(2))
    for _ in range(12):
        add(backend, other, *before.step(), on_device=False)
    for _ in range(3):
        add(backend, memory, *history.step(), on_device=False)
    other.set_arrays(memory.arrays())
    check_sequences(drawer_of(backend, settings)(other, BATCH, 0), history, settings)


def test_rows_of_another_number_of_environments_are_refused(backend: Backend) -> None:
    settings = Follow(sequence_length=2)
    memory, other = memory_of(backend, 2, 6, settings), memory_of(backend, 3, 4, settings)
    for envs, each in ((2, memory), (3, other)):
        history = History(envs, 4, seed=0)
        for _ in range(2):
            add(backend, each, *history.step(), on_device=False)
    before = other.arrays()
    with pytest.raises(
        ValueError, match=r"head has shape \(2,\) .* expected \(3,\) integers: use the number of environments it was saved with"
    ):
        other.set_arrays(memory.arrays())
    assert_same_arrays(other.arrays(), before)
    with pytest.raises(ValueError, match=r"the arrays are .*expected .*'carry\.0'"):
        other.set_arrays({name: array for name, array in before.items() if name != "carry.0"})
    assert_same_arrays(other.arrays(), before)


def test_a_checkpoint_of_another_number_of_environments_is_refused(backend: Backend, tmp_path: Path) -> None:
    agents = [backend.agent(num_envs=envs, capacity=12) for envs in (2, 3)]
    fill(agents[0], 4)
    fill(agents[1], 3)
    agents[0].save(tmp_path / "two")
    before = agents[1].memory.arrays()
    with pytest.raises(ValueError, match="use the number of environments it was saved with"):
        agents[1].load(tmp_path / "two")
    assert_same_arrays(agents[1].memory.arrays(), before)
