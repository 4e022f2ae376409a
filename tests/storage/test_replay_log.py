"""The replay log: what is read is what the memory holds, whatever came between two writings; a writing costs what came since the last."""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sacref.algorithm.replay import check_arrays, filled_rows
from sacref.storage import checkpoint, replay_log
from sacref.storage.checkpoint import CheckpointError
from sacref.storage.replay_log import Entry, ReplayLog
from tests.algorithm.test_replay import add, memory_of
from tests.backends import BACKENDS, Backend, assert_same_arrays, load_backend

backend = pytest.fixture(params=BACKENDS)(load_backend)


class Memory:
    """A replay memory in NumPy, written row by row."""

    def __init__(self, slots: int, envs: int = 1, width: int = 2) -> None:
        self.slots, self.num_envs, self.added = slots, envs, 0
        self.head, self.size = np.zeros(envs, np.int64), np.zeros(envs, np.int64)
        self.rings: dict[str, NDArray[Any]] = {
            "observations.a": np.zeros((slots * envs, width), np.float32),
            "terminated": np.zeros(slots * envs, np.bool_),
        }

    def add(self, keep: list[bool]) -> None:
        self.added += 1
        for env in np.flatnonzero(keep).tolist():
            row = int(self.head[env]) * self.num_envs + env
            number = 10 * self.added + env
            self.rings["observations.a"][row] = number
            self.rings["terminated"][row] = number % 3 == 0
            self.head[env] = (self.head[env] + 1) % self.slots
            self.size[env] = min(self.size[env] + 1, self.slots)

    def counters(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return self.head.copy(), self.size.copy()

    def rows(self, index: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return {name: ring[index] for name, ring in self.rings.items()}

    def arrays(self) -> dict[str, NDArray[Any]]:
        filled = {name: ring[: filled_rows(self.size)].copy() for name, ring in self.rings.items()}
        return {**filled, "head": self.head.copy(), "size": self.size.copy()}

    def restored(self, arrays: dict[str, NDArray[Any]]) -> "Memory":
        """A new one, of the same size, which holds the arrays."""
        kinds = {name: (ring.shape[1:], ring.dtype) for name, ring in self.rings.items()}
        check_arrays(arrays, kinds, self.slots, self.num_envs)
        new = Memory(self.slots, self.num_envs, self.rings["observations.a"].shape[1])
        for name, ring in new.rings.items():
            ring[: filled_rows(arrays["size"])] = arrays[name]
        new.head, new.size = arrays["head"].copy(), arrays["size"].copy()
        return new


def filled(slots: int, envs: int = 1, *, timesteps: int, width: int = 2) -> Memory:
    memory = Memory(slots, envs, width)
    for _ in range(timesteps):
        memory.add([True] * envs)
    return memory


def write(log: ReplayLog, memory: Any) -> Entry:
    """Append, and commit."""
    entry, added = log.append(memory)
    log.commit(entry, added)
    return entry


def numbers(entry: Entry) -> list[int]:
    return [segment["number"] for segment in entry["segments"]]


def there(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens when a writing is cut off is for the tests of checkpoints; here forcing it to the disk only takes time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


# What is read is what the memory holds.

ENVS = 3
step = st.lists(st.booleans(), min_size=ENVS, max_size=ENVS).map(lambda keep: ("add", keep))
many = st.integers(1, 14).map(lambda count: ("add many", count))
other = st.sampled_from([("write", None), ("lost", None), ("fails", None), ("resume", None), ("resume the older", None), ("prune", None)])


@settings(max_examples=150, deadline=None)
@given(envs=st.sampled_from([1, ENVS]), slots=st.integers(1, 7), actions=st.lists(st.one_of(step, many, other, other), max_size=30))
def test_any_sequence_of_adds_and_writings(tmp_path_factory: pytest.TempPathFactory, envs: int, slots: int, actions: list[Any]) -> None:
    directory = tmp_path_factory.mktemp("log") / "replay"
    memory, log = Memory(slots, envs), ReplayLog(directory)
    kept: list[tuple[Entry, dict[str, NDArray[Any]]]] = []
    """The entries of the last two checkpoints, and what the memory held then."""
    for what, value in [*actions, ("write", None)]:
        if what == "add":
            memory.add(value[:envs])
        elif what == "add many":
            for number in range(value):
                memory.add([True, number % 2 == 0, False][:envs])
        elif what == "write":
            entry, added = log.append(memory)
            log.commit(entry, added)
            kept = [*kept[-1:], (entry, memory.arrays())]
        elif what == "lost":
            log.append(memory)  # The checkpoint that was to name it could not be written.
        elif what == "fails":
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(checkpoint, "write", failing)
                with contextlib.suppress(OSError):
                    log.append(memory)
        elif what.startswith("resume") and kept:
            kept = kept[: 1 if what == "resume the older" else 2]
            memory = memory.restored(replay_log.read(directory, kept[-1][0], memory))
            log = ReplayLog(directory, kept[-1][0])
            log.restored(memory)
        elif what == "prune":
            directory.mkdir(exist_ok=True)
            log.prune([entry for entry, _ in kept])
            assert {int(name.removeprefix("segment_")) for name in there(directory)} == {n for entry, _ in kept for n in numbers(entry)}
        for entry, arrays in kept:
            assert_same_arrays(replay_log.read(directory, entry, Memory(slots, envs)), arrays)
            assert numbers(entry) == sorted(set(numbers(entry)))


def failing(*arguments: Any, **keywords: Any) -> str:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("envs", [1, 3])
def test_a_backends_memory_comes_back(backend: Backend, tmp_path: Path, envs: int) -> None:
    generator = np.random.default_rng(0)
    memory, log = memory_of(backend, 8 * envs, envs, staged_timesteps=2), ReplayLog(tmp_path / "replay")
    added = 0
    for timesteps in (0, 3, 1, 0, 5, 9, 2, 20, 4):
        for _ in range(timesteps):
            added += 1
            add(backend, memory, [10 * added + env for env in range(envs)], (generator.random(envs) < 0.7).tolist())
        entry = write(log, memory)
        arrays = memory.arrays()
        assert_same_arrays(replay_log.read(tmp_path / "replay", entry, memory), arrays)
        fresh = memory_of(backend, 8 * envs, envs)
        fresh.set_arrays(replay_log.read(tmp_path / "replay", entry, fresh))
        assert_same_arrays(fresh.arrays(), arrays)
    assert arrays["size"].tolist() == [8] * envs
    assert len(set(arrays["head"].tolist())) == envs  # Or the rings would all stand at the same place.
    assert_same_arrays(replay_log.read(tmp_path / "replay", entry, fresh), arrays)


def test_an_empty_memory_comes_back(backend: Backend, tmp_path: Path) -> None:
    memory = memory_of(backend, 4)
    entry = write(ReplayLog(tmp_path / "replay"), memory)
    assert entry == {"slots": 4, "envs": 1, "head": [0], "size": [0], "segments": []}
    assert_same_arrays(replay_log.read(tmp_path / "replay", entry, memory), memory.arrays())
    assert not (tmp_path / "replay").exists()


def test_a_larger_memory_takes_a_ring_that_was_not_full(tmp_path: Path) -> None:
    small, log = filled(8, timesteps=5), ReplayLog(tmp_path)
    entry = write(log, small)
    large = Memory(20)
    large = large.restored(replay_log.read(tmp_path, entry, large))
    log = ReplayLog(tmp_path, entry)
    log.restored(large)
    for _ in range(9):
        large.add([True])
    entry = write(log, large)
    assert [segment["count"] for segment in entry["segments"]] == [[5], [9]]
    assert_same_arrays(replay_log.read(tmp_path, entry, Memory(20)), large.arrays())


# What a writing costs.


def segment_bytes(directory: Path, number: int) -> int:
    return sum(file.stat().st_size for file in (directory / f"segment_{number}").iterdir())


def test_a_writing_costs_what_came_since_the_last_one(tmp_path: Path) -> None:
    costs = {}
    for slots in (100, 1_000, 10_000):
        memory, log = filled(slots, timesteps=slots + 30, width=25), ReplayLog(tmp_path / str(slots))
        whole = write(log, memory)
        assert segment_bytes(log.directory, 0) > slots * 101
        for _ in range(40):
            memory.add([True])
        entry = write(log, memory)
        assert numbers(entry) == [*numbers(whole), 1] == [0, 1]
        costs[slots] = segment_bytes(log.directory, 1)
        assert [segment["count"] for segment in entry["segments"]] == [[slots], [40]]
    # 40 rows of 25 floats and a bool; what is over is names and numbers.
    assert 40 * 101 < costs[100] < 40 * 101 + 1_000
    assert max(costs.values()) - min(costs.values()) < 20  # Digits.


def test_nothing_new_costs_nothing(tmp_path: Path) -> None:
    memory, log = filled(8, timesteps=5), ReplayLog(tmp_path)
    entry = write(log, memory)
    memory.add([False])
    again = write(log, memory)
    assert again == entry
    assert there(tmp_path) == ["segment_0"]


def test_as_many_rows_as_the_ring_has_are_written_once(tmp_path: Path) -> None:
    memory, log = filled(8, timesteps=8), ReplayLog(tmp_path)
    write(log, memory)
    counts = []
    for timesteps in (7, 8, 9, 30, 1):
        for _ in range(timesteps):
            memory.add([True])
        entry = write(log, memory)
        counts.append([(segment["number"], segment["count"]) for segment in entry["segments"]])
        assert_same_arrays(replay_log.read(tmp_path, entry, Memory(8)), memory.arrays())
    assert counts == [[(0, [8]), (1, [7])], [(2, [8])], [(3, [8])], [(4, [8])], [(4, [8]), (5, [1])]]


def test_segments_whose_rows_are_overwritten_are_no_longer_named(tmp_path: Path) -> None:
    memory, log = Memory(10, 2), ReplayLog(tmp_path)
    named = []
    for _ in range(6):
        for _ in range(4):
            memory.add([True, False])
        memory.add([False, True])
        named.append(numbers(write(log, memory)))
    # The second environment's ring never fills, so that each segment keeps rows that are needed.
    assert named[-1] == [0, 1, 2, 3, 4, 5]
    for _ in range(10):
        memory.add([True, True])
    assert numbers(write(log, memory)) == [6]


# Numbers, and what is deleted.


def test_prune_deletes_what_no_kept_entry_names_and_nothing_else(tmp_path: Path) -> None:
    memory, log = Memory(6), ReplayLog(tmp_path)
    entries = []
    for _ in range(5):
        for _ in range(2):
            memory.add([True])
        entries.append(write(log, memory))
    assert [numbers(entry) for entry in entries] == [[0], [0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    others = ["notes.txt", "segment_", "segment_02", "segment_2.txt", "segment_-1", "segment_x", "segments_7", "segment_2.rank_1"]
    for name in others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("")
    (tmp_path / "segment_17").symlink_to(tmp_path / "elsewhere")
    log.prune([entries[3], entries[1]])
    assert there(tmp_path) == sorted([*others, "elsewhere", "segment_0", "segment_1", "segment_17", "segment_2", "segment_3"])
    log.prune(entries[4:])
    assert there(tmp_path) == sorted([*others, "elsewhere", "segment_17", "segment_2", "segment_3"])
    assert all(there(tmp_path / name) == ["file"] for name in [*others, "elsewhere"])
    log.prune([])
    assert there(tmp_path) == sorted([*others, "elsewhere", "segment_17"])


def test_a_restored_log_goes_on_with_the_next_number(tmp_path: Path) -> None:
    memory, log = filled(8, timesteps=3), ReplayLog(tmp_path)
    older = write(log, memory)
    memory.add([True])
    newer = write(log, memory)
    for entry, expected in ((newer, [0, 1, 2]), (older, [0, 3])):
        again = memory.restored(replay_log.read(tmp_path, entry, memory))
        log = ReplayLog(tmp_path, entry)
        log.restored(again)
        again.add([True])
        assert numbers(write(log, again)) == expected
    # What the newer one named is still there, as it was.
    assert_same_arrays(replay_log.read(tmp_path, newer, memory), memory.arrays())
    # A log that was not told of a restored memory writes all of it.
    assert [segment["count"] for segment in write(ReplayLog(tmp_path, newer), memory)["segments"]] == [[4]]


def test_a_failed_writing_takes_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, log = filled(8, timesteps=3), ReplayLog(tmp_path)
    entry, arrays = write(log, memory), memory.arrays()
    memory.add([True])
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", failing)
        with pytest.raises(OSError, match="No space left"):
            log.append(memory)
    assert there(tmp_path) == ["segment_0"]
    assert_same_arrays(replay_log.read(tmp_path, entry, Memory(8)), arrays)
    memory.add([True])
    assert [segment["count"] for segment in write(log, memory)["segments"]] == [[3], [2]]


# What is not sound.


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, Entry, Memory]:
    """Three segments of a ring of 8 rows, the first of them half overwritten."""
    memory, log = filled(8, timesteps=6), ReplayLog(tmp_path / "replay")
    for timesteps in (0, 2, 3):
        for _ in range(timesteps):
            memory.add([True])
        entry = write(log, memory)
    assert [segment["count"] for segment in entry["segments"]] == [[6], [2], [3]]
    return tmp_path / "replay", entry, memory


def overwrite(directory: Path) -> None:
    checkpoint.write(directory, {"rows": checkpoint.read(directory).groups["rows"]}, {"number": 1})


def shorten(directory: Path) -> None:
    file = directory / "rows.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def flip(directory: Path) -> None:
    file = directory / "rows.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (shutil.rmtree, r"segment_1.checkpoint.json does not exist"),
    "overwritten": (overwrite, "segment_1 is another checkpoint than the one that is meant: use the checkpoint before"),
    "truncated": (shorten, "rows.safetensors is damaged or foreign, it has"),
    "flipped": (flip, "rows.safetensors is damaged or foreign, its content does not have the checksum"),
    "half": (lambda directory: (directory / "rows.safetensors").unlink(), "rows.safetensors does not exist"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_damaged_segment_is_found(written: tuple[Path, Entry, Memory], damage: str, number: int) -> None:
    directory, entry, memory = written
    change, message = DAMAGE[damage]
    for segment in entry["segments"]:
        replay_log.verify(directory, segment)
    change(directory / f"segment_{number}")
    message = message.replace("segment_1", f"segment_{number}")
    with pytest.raises(CheckpointError, match=message):
        replay_log.read(directory, entry, memory)
    for segment in entry["segments"]:
        if segment["number"] == number:
            with pytest.raises(CheckpointError, match=message):
                replay_log.verify(directory, segment)
        else:
            replay_log.verify(directory, segment)


def rows_of(memory: Memory, **others: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {**memory.rows(np.arange(2)), **others}


@pytest.mark.parametrize(
    "groups",
    [
        {},
        {"rows": {}},
        {"other": {"x": np.zeros(1)}},
        {"rows": {"terminated": np.zeros(2, np.bool_)}},
        {"rows": rows_of(Memory(8), more=np.zeros(2))},
        {"rows": rows_of(Memory(8), terminated=np.zeros(2, np.uint8))},
        {"rows": rows_of(Memory(8), terminated=np.zeros(3, np.bool_))},
        {"rows": rows_of(Memory(8), terminated=np.zeros(1, np.bool_))},
        {"rows": rows_of(Memory(8), terminated=np.zeros((), np.bool_))},
        {"rows": {**rows_of(Memory(8)), "observations.a": np.zeros((2, 10_000), np.float32)}},
        {"rows": {**rows_of(Memory(8)), "observations.a": np.zeros(2, np.float32)}},
        {"rows": rows_of(Memory(8)), "other": {"x": np.zeros(1)}},
    ],
    ids=lambda groups: str({group: {name: array.shape for name, array in arrays.items()} for group, arrays in groups.items()}),
)
def test_a_segment_of_other_rows_is_refused_unread(
    written: tuple[Path, Entry, Memory], groups: dict[str, dict[str, NDArray[Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, entry, memory = written
    entry["segments"][1]["token"] = checkpoint.write(directory / "segment_1", groups, {})
    read: list[Any] = []
    original = checkpoint._read_group

    def reading(path: Path, *arguments: Any) -> Any:
        read.append(path.name)
        return original(path, *arguments)

    monkeypatch.setattr(checkpoint, "_read_group", reading)
    with pytest.raises(CheckpointError, match=r"segment_1 holds .*, expected .*: use the checkpoint before"):
        replay_log.read(directory, entry, memory)
    assert read == ["segment_0"]


HUGE = 10**30
UNSOUND = "says nothing sound about its replay memory: use the checkpoint before"
LACKS = "lacks rows that the checkpoint names: use the checkpoint before"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"envs": 2},
            "has a replay memory of 2 environments and 8 rows for each, expected 1 and at most 8: use the number of environments",
        ),
        ({"envs": None}, "of None environments"),
        ({"slots": 9}, "9 rows for each, expected 1 and at most 8"),
        ({"slots": 0}, "0 rows for each"),
        ({"slots": True}, "True rows"),
        ({"slots": HUGE}, "rows for each"),
        ({"slots": 8.0}, "8.0 rows"),
        ({"head": [8]}, UNSOUND),
        ({"head": [-1]}, UNSOUND),
        ({"head": [3, 3]}, UNSOUND),
        ({"head": 3}, UNSOUND),
        ({"head": [HUGE]}, UNSOUND),
        ({"head": [3.0]}, UNSOUND),
        ({"size": [9]}, UNSOUND),
        ({"size": [2]}, UNSOUND),  # Of a ring that is not full, which the head would have left behind.
        ({"size": ["8"]}, UNSOUND),
        ({"head": [7], "size": [7]}, "segment_1 has rows that the checkpoint's memory does not have"),
        ({"segments": []}, LACKS),
        ({"segments": None}, UNSOUND),
        ({"segments": {}}, UNSOUND),
        ({"segments": [None]}, UNSOUND),
        ({"segments": [{}]}, UNSOUND),
    ],
    ids=str,
)
def test_an_unsound_entry_is_refused(written: tuple[Path, Entry, Memory], change: dict[str, Any], message: str) -> None:
    directory, entry, memory = written
    with pytest.raises(CheckpointError, match=message):
        replay_log.read(directory, {**entry, **change}, memory)
    for name in entry:
        with pytest.raises(CheckpointError, match=f"{UNSOUND}|of None environments|and None rows"):
            replay_log.read(directory, {key: value for key, value in entry.items() if key != name}, memory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": -1}, UNSOUND),
        ({"number": "../../segment_1"}, UNSOUND),
        ({"number": 1.0}, UNSOUND),
        ({"number": True}, UNSOUND),
        ({"number": HUGE}, UNSOUND),
        ({"number": 0}, UNSOUND),  # Not behind the one before.
        ({"number": 2}, UNSOUND),
        ({"token": 7}, UNSOUND),
        ({"token": "00000000"}, "segment_1 is another checkpoint than"),
        ({"first": [8]}, UNSOUND),
        ({"first": [-1]}, UNSOUND),
        ({"first": 6}, UNSOUND),
        ({"first": [5]}, LACKS),
        ({"count": [9]}, UNSOUND),
        ({"count": [3]}, r"segment_1 holds 'observations.a' .*\(2, 2\)\), expected .*\(3, 2\)\)"),
        ({"count": []}, UNSOUND),
        ({"count": [HUGE]}, UNSOUND),
    ],
    ids=str,
)
def test_an_unsound_segment_of_an_entry_is_refused(written: tuple[Path, Entry, Memory], change: dict[str, Any], message: str) -> None:
    directory, entry, memory = written
    entry["segments"][1] |= change
    with pytest.raises(CheckpointError, match=message):
        replay_log.read(directory, entry, memory)
    if "number" in change and change["number"] not in (0, 2):
        with pytest.raises(CheckpointError, match=UNSOUND):
            replay_log.verify(directory, entry["segments"][1])


def test_more_segments_than_any_run_writes_are_refused_at_once(written: tuple[Path, Entry, Memory]) -> None:
    directory, entry, memory = written
    entry["segments"] = [{**entry["segments"][0], "number": number} for number in range(replay_log.LARGEST_LOG + 1)]
    with pytest.raises(CheckpointError, match=UNSOUND):
        replay_log.read(directory, entry, memory)
