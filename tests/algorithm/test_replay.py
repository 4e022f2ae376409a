"""The replay memory, on both backends: a ring for each environment, whose order, masks, draws and restored state are all known."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sacref.algorithm.data import Transition
from sacref.algorithm.replay import host_bytes
from sacref.algorithm.sequences import Follow
from sacref.envs.spaces import check_spaces
from tests.backends import BACKENDS, Backend, Spaces, assert_same_arrays, box, load_backend

backend = pytest.fixture(params=BACKENDS)(load_backend)

SPACES = Spaces(box(-np.inf, np.inf, (2,)), box(-1.0, 1.0, (1,)))


def memory_of(backend: Backend, capacity: int, num_envs: int = 1, **options: Any) -> Any:
    """A memory without an agent; for the options see `allocate`."""
    memory = backend.package.ReplayMemory(capacity, num_envs)
    dtype, device = backend.array(np.zeros(0, np.float32)).dtype, backend.module("device").device_of("cpu")
    memory.allocate(check_spaces(SPACES.observation, None, SPACES.action), dtype, device, **options)
    return memory


def test_a_memory_that_cannot_be_allocated_says_what_would_fit(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32: twice 2 observations, an action and a reward, and a bool."""
    monkeypatch.setattr("sacref.algorithm.replay.host_bytes", lambda: 2_900)
    assert len(memory_of(backend, 98, 2)) == 0
    with pytest.raises(
        ValueError, match=r"\(memory_capacity\) is .* at 25 bytes for each transition, and .* are free: expected at most 116"
    ):
        memory_of(backend, 200_000, 2)
    monkeypatch.setattr("sacref.algorithm.replay.host_bytes", lambda: None)
    assert len(memory_of(backend, 200_000, 2)) == 0


def test_sizes_of_any_integer_type_are_saved(backend: Backend, tmp_path: Path) -> None:
    """JSON knows no integers of NumPy's."""
    agent = backend.agent(memory=backend.package.ReplayMemory(np.int64(8), np.int32(2)), num_envs=2)
    agent.save(tmp_path / "saved")
    agent.load(tmp_path / "saved")


def test_the_hosts_memory_is_known() -> None:
    free = host_bytes()
    assert free is not None and 10**7 < free < 10**15


def add(backend: Backend, memory: Any, numbers: list[int], keep: list[bool] | None = None) -> None:
    """Store one row per number, all of whose fields say that number."""
    n = np.array(numbers, np.float32)
    transition = Transition(
        observations=backend.array(np.stack([n, -n], axis=1)),
        states=None,
        actions=backend.array(n[:, None] / 100),
        rewards=backend.array(n),
        next_observations=backend.array(np.stack([n + 1, -n - 1], axis=1)),
        next_states=None,
        terminated=backend.array(np.array(numbers) % 3 == 0),
    )
    memory.add(transition, backend.array(np.ones(len(numbers), bool) if keep is None else np.array(keep)))


def assert_holds(rows: Any, numbers: NDArray[Any] | list[int]) -> None:
    n = np.array(numbers, np.float32)
    assert np.asarray(rows["rewards"]).tolist() == n.tolist()
    np.testing.assert_array_equal(rows["observations"], np.stack([n, -n], axis=1))
    np.testing.assert_array_equal(rows["next_observations"], np.stack([n + 1, -n - 1], axis=1))
    np.testing.assert_array_equal(rows["actions"], n[:, None] / np.float32(100))
    np.testing.assert_array_equal(rows["terminated"], n % 3 == 0)


def draw(backend: Backend, memory: Any, size: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Sample from the memory; the batch on the host."""
    if backend.name == "torch":
        import torch

        batch = memory.sample(size, torch.Generator().manual_seed(seed))
    else:
        import jax

        batch = memory.sample(size, jax.random.key(seed))
    return {name: backend.numpy(value) for name, value in batch._asdict().items() if value is not None}


def ring_of(memory: Any, environment: int) -> dict[str, NDArray[Any]]:
    """The rows of one environment, slot by slot."""
    arrays = memory.arrays()
    size = arrays.pop("size")
    del arrays["head"]
    return {name: rows.reshape(-1, len(size), *rows.shape[1:])[: size[environment], environment] for name, rows in arrays.items()}


def test_rows_are_stored_in_order_and_the_oldest_are_overwritten(backend: Backend) -> None:
    memory = memory_of(backend, 5)
    assert len(memory) == 0
    for number in range(1, 4):
        add(backend, memory, [number])
        assert len(memory) == number
    assert_holds(memory.arrays(), [1, 2, 3])
    for number in range(4, 9):
        add(backend, memory, [number])
    assert len(memory) == 5
    assert_holds(memory.arrays(), [6, 7, 8, 4, 5])
    assert memory.arrays()["head"].tolist() == [3]


def test_rows_of_several_environments_are_interleaved_and_wrap(backend: Backend) -> None:
    """A capacity of 8 is 2 rows for each of 3 environments."""
    memory = memory_of(backend, 8, 3)
    add(backend, memory, [1, 2, 3])
    assert_holds(memory.arrays(), [1, 2, 3])
    add(backend, memory, [4, 5, 6])
    assert_holds(memory.arrays(), [1, 2, 3, 4, 5, 6])
    add(backend, memory, [7, 8, 9])
    assert_holds(memory.arrays(), [7, 8, 9, 4, 5, 6])
    arrays = memory.arrays()
    assert (len(memory), arrays["head"].tolist(), arrays["size"].tolist()) == (6, [1, 1, 1], [2, 2, 2])


@pytest.mark.parametrize(
    ("keep", "wanted"),
    [
        ([False, True, False], [[], [10, 2], []]),
        ([True, False, True], [[1], [10], [3]]),
        ([False] * 3, [[], [10], []]),
        ([True, True, False], [[1], [10, 2], []]),
    ],
)
def test_rows_that_are_not_kept_take_no_place(backend: Backend, keep: list[bool], wanted: list[list[int]]) -> None:
    memory = memory_of(backend, 6, 3)
    add(backend, memory, [9, 10, 8], [False, True, False])
    add(backend, memory, [1, 2, 3], keep)
    for environment, numbers in enumerate(wanted):
        assert_holds(ring_of(memory, environment), numbers)
    arrays = memory.arrays()
    assert (arrays["size"].tolist(), arrays["head"].tolist()) == ([len(own) for own in wanted], [len(own) % 2 for own in wanted])
    assert len(memory) == sum(map(len, wanted))
    # Nor do they overwrite anything in a full ring, their own or another environment's.
    for number in (20, 21, 22, 23):
        add(backend, memory, [0, 0, number], [False, False, True])
    before = memory.arrays()
    add(backend, memory, [1, 2, 3], [False] * 3)
    assert_same_arrays(memory.arrays(), before)
    for environment, numbers in enumerate(wanted[:2]):
        assert_holds(ring_of(memory, environment), numbers)
    assert sorted(ring_of(memory, 2)["rewards"].tolist()) == [22, 23]


def test_a_ring_as_small_as_one_step(backend: Backend) -> None:
    memory = memory_of(backend, 3, 3)
    add(backend, memory, [1, 2, 3])
    add(backend, memory, [4, 5, 6], [True, False, True])
    assert_holds(memory.arrays(), [4, 2, 6])


@pytest.mark.parametrize("wait", [1, 2, 3])
def test_rows_that_waited_on_the_host_are_stored_as_if_they_had_not(backend: Backend, wait: int) -> None:
    """Blocks of timesteps with rows that are not kept, over the end of the rings."""
    direct, waited = memory_of(backend, 8, 2), memory_of(backend, 8, 2, staged_timesteps=wait)
    generator = np.random.default_rng(wait)
    for number in range(11):
        keep = (generator.random(2) < 0.7).tolist()
        add(backend, direct, [2 * number, 2 * number + 1], keep)
        add(Host(backend.name), waited, [2 * number, 2 * number + 1], keep)
        if generator.random() < 0.3:
            assert_same_arrays(waited.arrays(), direct.arrays())
    assert_same_arrays(waited.arrays(), direct.arrays())
    assert direct.arrays()["size"].tolist() == [4, 4]


class Host(Backend):
    """Rows as NumPy arrays, which wait until they are needed."""

    def array(self, values: Any) -> Any:
        return np.array(values)


@pytest.mark.parametrize("stored", [5, 10, 13])
def test_sampling_is_uniform_over_what_is_stored_and_with_replacement(backend: Backend, stored: int) -> None:
    memory = memory_of(backend, 10)
    for number in range(1, stored + 1):
        add(backend, memory, [number])
    assert_uniform(backend, memory, list(range(max(1, stored - 9), stored + 1)))


def test_sampling_is_uniform_over_environments_that_have_stored_more_or_less(backend: Backend) -> None:
    """Not over environments: the second has stored nothing, the last one row, the third has wrapped."""
    memory = memory_of(backend, 20, 4)
    for number in range(1, 8):
        add(backend, memory, [10 * number + environment for environment in range(4)], [number < 4, False, True, number == 5])
    assert memory.arrays()["size"].tolist() == [3, 0, 5, 1]
    assert_uniform(backend, memory, [10, 20, 30, 32, 42, 52, 62, 72, 53])


def assert_uniform(backend: Backend, memory: Any, present: list[int]) -> None:
    batch = draw(backend, memory, 20_000)
    assert_holds(batch, batch["rewards"])
    counts = np.array([(batch["rewards"] == number).sum() for number in present])
    assert counts.sum() == 20_000
    expected = 20_000 / len(present)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    # The 99.9% quantile, by Wilson and Hilferty's approximation. Far below it no one looks: a sample without replacement has 0.
    free = len(present) - 1
    assert 0.1 < chi_square < free * (1 - 2 / (9 * free) + 3.09 * (2 / (9 * free)) ** 0.5) ** 3
    small = [draw(backend, memory, len(present), seed)["rewards"] for seed in range(20)]
    assert any(len(set(rewards.tolist())) < len(present) for rewards in small)
    assert len({tuple(rewards) for rewards in small}) > 15


@pytest.mark.parametrize("stored", [0, 2, 4, 5, 7])
def test_arrays_carry_the_whole_state(backend: Backend, stored: int) -> None:
    memory = memory_of(backend, 5)
    for number in range(1, stored + 1):
        add(backend, memory, [number])
    saved = memory.arrays()
    assert (saved["size"].tolist(), saved["head"].tolist()) == ([min(stored, 5)], [stored % 5])
    assert saved["size"].dtype == saved["head"].dtype == np.int64
    other = memory_of(backend, 5)
    for number in (31, 32, 33):
        add(backend, other, [number])
    other.set_arrays(saved)
    assert_same_arrays(other.arrays(), saved)
    assert other.written == (stored > 0)
    # The same rows are drawn, and the next one goes to the same place.
    if stored:
        assert_same_arrays(draw(backend, other, 8), draw(backend, memory, 8))
    for ring in (memory, other):
        add(backend, ring, [40])
    assert_same_arrays(other.arrays(), memory.arrays())


def test_arrays_are_copies(backend: Backend) -> None:
    memory = memory_of(backend, 3)
    add(backend, memory, [1])
    saved = memory.arrays()
    add(backend, memory, [2])
    add(backend, memory, [3])
    add(backend, memory, [4])
    assert saved["rewards"].tolist() == [1]
    given = memory.arrays()
    memory.set_arrays(given)
    given["rewards"][:] = 99
    assert memory.arrays()["rewards"].tolist() == [4, 2, 3]


def changed(arrays: dict[str, NDArray[Any]], **changes: Any) -> dict[str, NDArray[Any]]:
    return {name: array for name, array in {**arrays, **changes}.items() if array is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": np.array([1])}, "head 1 and size 2 do not fit a ring of 5 rows: use the capacity it was saved with"),
        ({"head": np.array([5])}, "head 5 and size 2 do not fit"),
        ({"head": np.array([-1])}, "head -1 and size 2 do not fit"),
        ({"size": np.array([6])}, "head 2 and size 6 do not fit"),
        ({"size": np.array([-3])}, "head 2 and size -3 do not fit"),
        ({"size": np.array([3])}, "head 2 and size 3 do not fit"),
        ({"size": np.array(2)}, r"size has shape \(\) and dtype int64, expected \(1,\) integers: use the number of environments"),
        ({"size": np.array([1, 1]), "head": np.array([1, 1])}, r"head has shape \(2,\) and dtype int64, expected \(1,\) integers"),
        ({"head": np.array([2.0])}, r"head has shape \(1,\) and dtype float64, expected \(1,\) integers"),
        ({"rewards": np.zeros(3, np.float32)}, r"rewards has shape \(3,\) and dtype float32, expected \(2,\) and float32"),
        ({"rewards": np.zeros(2)}, r"rewards has shape \(2,\) and dtype float64, expected \(2,\) and float32"),
        ({"observations": np.zeros((2, 3), np.float32)}, r"observations has shape \(2, 3\) .*expected \(2, 2\)"),
        ({"terminated": np.zeros(2, np.uint8)}, "terminated has shape .* uint8, expected .* bool"),
        ({"rewards": None}, "the arrays are .*, expected .*'rewards'"),
        ({"extra": np.zeros(2)}, "the arrays are .*'extra'"),
    ],
)
def test_arrays_of_another_memory_are_refused_and_change_nothing(backend: Backend, changes: dict[str, Any], message: str) -> None:
    memory = memory_of(backend, 5)
    for number in (1, 2):
        add(backend, memory, [number])
    before = memory.arrays()
    with pytest.raises(ValueError, match=message):
        memory.set_arrays(changed(before, **changes))
    assert_same_arrays(memory.arrays(), before)


def test_a_full_ring_of_another_capacity_is_refused(backend: Backend) -> None:
    memory = memory_of(backend, 5)
    for number in range(7):
        add(backend, memory, [number])
    with pytest.raises(ValueError, match="head 2 and size 5 do not fit a ring of 6 rows"):
        memory_of(backend, 6).set_arrays(memory.arrays())


@pytest.mark.parametrize(("head", "size"), [([0, 1], [3, 2]), ([2, 0], [1, 3]), ([1, 0], [4, 2])])
def test_each_environment_must_fit_its_ring(backend: Backend, head: list[int], size: list[int]) -> None:
    memory = memory_of(backend, 7, 2)
    for _ in range(3):
        add(backend, memory, [1, 2])
    before = memory.arrays()
    memory.set_arrays({**before, "head": np.array([0, 2])})
    assert memory.arrays()["head"].tolist() == [0, 2]
    with pytest.raises(ValueError, match="do not fit a ring of 3 rows"):
        memory.set_arrays({**before, "head": np.array(head), "size": np.array(size)})
    assert memory.arrays()["head"].tolist() == [0, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Follow(n_step=5), "n_step is 5, and each environment has room for 4 rows .*lower it, or make the memory larger"),
        (Follow(sequence_length=5), r"burn_in \+ sequence_length is 5, and each"),
        (Follow(sequence_length=3, burn_in=2), r"burn_in \+ sequence_length is 5, and each"),
    ],
)
def test_more_successive_rows_than_a_ring_has_are_refused(backend: Backend, settings: Follow, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        memory_of(backend, 9, 2, settings=settings)
    memory_of(backend, 10, 2, settings=Follow(n_step=5))


def test_positions_must_fit_into_32_bits(backend: Backend) -> None:
    with pytest.raises(ValueError, match="capacity is 2147483648, expected at most 2147483647: positions have 32 bits"):
        backend.package.ReplayMemory(2**31, 1)
    assert backend.package.ReplayMemory(2**31 - 1, 1).capacity == 2**31 - 1


def test_saving_and_restoring_take_no_second_copy(backend: Backend, tmp_path: Path) -> None:
    """What NumPy allocates on the way is a block of rows, not the ring."""
    rows, width = 200_000, 20
    spaces = Spaces(box(-np.inf, np.inf, (width,)), box(-1.0, 1.0, (1,)))
    agent, other = (backend.agent(spaces, capacity=rows) for _ in range(2))
    agent.memory.set_arrays({**_known_rows(rows, width), "head": np.array([7]), "size": np.array([rows])})
    ring_bytes = rows * width * 4
    # Checksums go through a buffer of 1 MiB; rows are restored in blocks of 65,536, of which JAX may hold two: a third of the ring each.
    assert allocated_by(lambda: agent.save(tmp_path / "a")) < 0.2 * ring_bytes
    arrays = agent.memory.arrays(copy=False)
    assert allocated_by(lambda: other.memory.set_arrays(arrays)) < 0.8 * ring_bytes
    assert allocated_by(lambda: agent.memory.arrays()) > ring_bytes
    assert_same_arrays(other.memory.arrays(), agent.memory.arrays())


def allocated_by(function: Callable[[], object]) -> int:
    """The most bytes that a call holds at once, of Python's and NumPy's memory."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _known_rows(rows: int, width: int) -> dict[str, NDArray[Any]]:
    observations = np.arange(rows, dtype=np.float32)[:, None] * np.ones((1, width), np.float32)
    return {
        "observations": observations,
        "next_observations": -observations,
        "actions": np.full((rows, 1), 0.5, np.float32),
        "rewards": np.arange(rows, dtype=np.float32),
        "terminated": np.arange(rows) % 3 == 0,
    }


def test_parts_of_a_memory_have_their_own_rows_and_go_on_by_themselves(backend: Backend, tmp_path: Path) -> None:
    """Two parts of two environments each: what one restores leaves the other as it is."""
    whole = backend.package.ReplayMemory(16, 4)
    parts = [whole.part(number, 2) for number in range(2)]
    dtype, device = backend.array(np.zeros(0, np.float32)).dtype, backend.module("device").device_of("cpu")
    for part in parts:
        part.allocate(check_spaces(SPACES.observation, None, SPACES.action), dtype, device)
    for step in range(5):
        add(backend, whole, [10 * step, 10 * step + 1, 10 * step + 2, 10 * step + 3], [True, True, True, step < 2])
    first, second = (part.arrays() for part in parts)
    assert_holds(first, [40, 41, 10, 11, 20, 21, 30, 31])
    assert (second["head"].tolist(), second["size"].tolist()) == ([1, 2], [4, 2])
    assert second["rewards"].tolist()[:4] == [42, 3, 12, 13]
    assert len(parts[0]) == 8
    assert parts[1].rows(np.array([2]))["rewards"].tolist() == [12]
    alone = memory_of(backend, 8, 2)
    add(backend, alone, [7, 8])
    parts[1].set_arrays(alone.arrays())
    assert_same_arrays(parts[1].arrays(), alone.arrays())
    assert_same_arrays(parts[0].arrays(), first)
    with pytest.raises(ValueError, match="this memory is a part of a population's"):
        add(backend, parts[0], [1, 2])
    parts[0].detach()
    add(backend, parts[0], [51, 52])
    assert parts[0].arrays()["rewards"].tolist()[2:4] == [51, 52]
    assert whole.arrays()["rewards"].tolist()[4:6] == [10, 11]
