"""Files that a stranger may hand over: whatever is in them, loading gives what was written or one clear error, and does nothing else.

Over 10,000 cases with those marked `full`, and a part of them without; `SACREF_FUZZ=200000` adds so many random ones.
"""

import importlib
import itertools
import json
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load as library_load

import sacref
from sacref import envs, training
from sacref.agent.backend import BackendError
from sacref.agent.numerics import NumericalError
from sacref.cli.flags import SweepError
from sacref.cli.sweep import grid
from sacref.envs import snapshots
from sacref.envs.snapshots import Snapshot, SnapshotError
from sacref.ranks import Ranks
from sacref.storage import checkpoint, replay_log
from sacref.storage.checkpoint import DTYPES, CheckpointError
from sacref.storage.replay_log import ReplayLog
from sacref.storage.values import decode, encode
from sacref.training import experiment
from sacref.training.checkpoints import newest_whole
from sacref.training.resume import resume
from sacref.training.run_directory import RunError
from tests import hostile
from tests.backends import BACKENDS, Backend, assert_same_arrays, fill, load_backend, without_shape_checks
from tests.hostile import CASES, NASTY, PICKLES, Tally, damaged, put, sealed, trusting, watched, with_header
from tests.storage.test_replay_log import Memory, write

AT_LEAST = {
    "truncated": 1_000,
    "flipped": 8_000,
    "damaged": 600,
    "json": 4_500,
    "header": 2_000,
    "decoded": 3_000,
    "log": 1_300,
    "agent": 250,
    "snapshot": 450,
    "live": 500,
}
"""Cases of each test that tries all."""

SMALL: dict[str, dict[str, NDArray[Any]]] = {
    "agent": {"policy.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "log_alpha": np.array(-0.5)},
    "memory": {"terminated": np.array([True, False, True]), "actions": np.empty((0, 2), np.float32)},
}
METADATA = {"algorithm": "SAC", "numbers": [1, 2.5, None], "nested": {"name": "gr\u00fcn"}}

backend = pytest.fixture(params=BACKENDS)(load_backend)


@pytest.fixture(params=[8, pytest.param(1, marks=pytest.mark.full)], ids=["part", "all"])
def every(request: pytest.FixtureRequest) -> int:
    """One case in so many is tried."""
    found: int = request.param
    return found


def extra(share: float) -> int:
    """Random cases of one test beyond those of every run."""
    return int(CASES * share)


def source_of(name: str) -> random.Random:
    return random.Random(f"{name} {CASES}")


@pytest.fixture(autouse=True)
def as_it_is_used(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without the checks of types that only the tests have, and would refuse what nothing else does.

    And nothing is forced to the disk: that is for the tests of checkpoints, and here it only takes time.
    """
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    with without_shape_checks():
        yield


def test_there_are_ten_thousand_cases() -> None:
    assert sum(AT_LEAST.values()) >= 10_000


# One checkpoint.


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small"
    checkpoint.write(path, SMALL, METADATA)
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def assert_small(found: checkpoint.Checkpoint | None, groups: dict[str, dict[str, NDArray[Any]]] = SMALL) -> None:
    assert found is not None and found.metadata == METADATA and found.groups.keys() == groups.keys()
    for name, arrays in groups.items():
        assert_same_arrays(found.groups[name], arrays)


def read_in_every_way(path: Path, tally: Tally, what: str, *names: str) -> checkpoint.Checkpoint | None:
    """Read it; the other ways must come to the same end. One case."""
    found: checkpoint.Checkpoint | None = tally.attempt(what, lambda: checkpoint.read(path), *names)
    others = Tally(tally.kinds)
    token = others.attempt(what, lambda: checkpoint.token(path), *names)
    assert others.attempt(what, lambda: checkpoint.verify(path), *names) is None or token is not None
    if found is not None:
        assert others.refused == 0
        assert checkpoint.verify(path) == token
        assert checkpoint.declared(path).metadata == found.metadata
    return found


def test_every_truncation_of_every_file(small: Path) -> None:
    tally, original = Tally([CheckpointError]), contents(small)
    with watched(small.parent):
        for name, content in original.items():
            for length in range(len(content)):
                put(small / name, content[:length])
                read_in_every_way(small, tally, f"{name}[:{length}]", name)
            put(small / name, content)
        assert_small(checkpoint.read(small))
    assert tally.refused == tally.cases >= AT_LEAST["truncated"]


def test_every_bit_of_every_file(small: Path) -> None:
    tally, original = Tally([CheckpointError]), contents(small)
    with watched(small.parent):
        for name, content in original.items():
            for bit in range(8 * len(content)):
                flipped = bytearray(content)
                flipped[bit // 8] ^= 1 << bit % 8
                put(small / name, bytes(flipped))
                tally.attempt(f"{name}, bit {bit}", lambda: checkpoint.read(small), name)
            put(small / name, content)
        assert_small(checkpoint.read(small))
    assert tally.refused == tally.cases >= AT_LEAST["flipped"]


def test_random_damage(small: Path) -> None:
    tally, original, source = Tally([CheckpointError]), contents(small), source_of("damage")
    same = 0
    with watched(small.parent):
        for number in range(AT_LEAST["damaged"] + extra(0.3)):
            name, other = source.sample(sorted(original), 2)
            content = damaged(original[name], original[other], source)
            put(small / name, content)
            found = read_in_every_way(small, tally, f"{number}: {name}", name)
            assert (found is not None) == (content == original[name])
            same += found is not None
            put(small / name, original[name])
        # Each of the files in the place of each other one.
        for name in original:
            for other in {*original} - {name}:
                put(small / name, original[other])
                read_in_every_way(small, tally, f"{other} as {name}", name)
                put(small / name, original[name])
        assert_small(checkpoint.read(small))
    assert tally.refused == tally.cases - same and tally.cases >= AT_LEAST["damaged"] and same < tally.cases / 20


def is_sound(found: checkpoint.Checkpoint, manifest: Any, path: Path) -> None:
    """What a sealed checkpoint gives is what its files say, and nothing else."""
    assert text(found.metadata) == text(manifest["metadata"])
    for name, arrays in found.groups.items():
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz") and arrays.keys() == manifest["groups"][name]["arrays"].keys()
        other = library_load((path / f"{name}.safetensors").read_bytes())
        for key, array in arrays.items():
            assert {"dtype": array.dtype.name, "shape": list(array.shape)} == manifest["groups"][name]["arrays"][key]
            assert (array.dtype, array.shape, array.tobytes()) == (other[key].dtype, other[key].shape, other[key].tobytes())


def text(value: Any) -> bytes:
    return hostile.text_of(value)


def test_json_that_says_something_else(small: Path, every: int) -> None:
    """Every part of checkpoint.json is something else, and its checksum is right."""
    tally, original = Tally([CheckpointError]), contents(small)
    manifest = json.loads(original["checkpoint.json"])
    source = source_of("json")
    changes = [*hostile.mutants(manifest), *hostile.some_mutants(manifest, extra(0.25), source)][::every]
    with watched(small.parent):
        for what, changed in changes:
            put(small / "checkpoint.json", sealed(changed))
            found = tally.attempt(what, lambda: checkpoint.read(small), str(small))
            if found is not None:
                is_sound(found, json.loads(sealed(changed)), small)
        put(small / "checkpoint.json", original["checkpoint.json"])
        assert_small(checkpoint.read(small))
    assert tally.cases >= AT_LEAST["json"] // every
    # What stands in the metadata is anybody's, and groups may be left out: nothing else is taken.
    allowed = sum("metadata" in what or "left out" in what for what, _ in changes)
    assert tally.cases - tally.refused <= allowed


def test_headers_that_say_something_else(small: Path, every: int) -> None:
    """The header of an array file is something else, or the same lie stands in checkpoint.json; sizes and checksums are right."""
    tally, original, source = Tally([CheckpointError]), contents(small), source_of("header")
    manifest = json.loads(original["checkpoint.json"])
    taken = 0
    with watched(small.parent):
        for group in SMALL:
            file = small / f"{group}.safetensors"
            header, data = hostile.header_of(original[file.name])
            lies: list[tuple[str, Any, Any]] = [
                (what, changed, manifest)
                for what, changed in [*hostile.mutants(header), *hostile.some_mutants(header, extra(0.05), source)]
            ]
            # In both places: types and shapes that fit the bytes, or do not.
            shapes: list[list[int]] = [[], [1], [2, 3], [3, 2], [6], [12], [3], [0, 5], [0, 2**62, 2**62]]
            for key, dtype, shape in itertools.product(SMALL[group], DTYPES, shapes):
                lie = hostile.replaced(manifest, ("groups", group, "arrays", key), {"dtype": dtype, "shape": shape})
                lies.append((f"{key} {dtype} {shape}", {**header, key: {**header[key], "dtype": DTYPES[dtype], "shape": shape}}, lie))
            for what, changed, lie in lies[::every]:
                put(file, with_header(text(changed), data))
                put(small / "checkpoint.json", trusting(lie, group, file.read_bytes()))
                found = tally.attempt(what, lambda: checkpoint.read(small), file.name)
                if found is not None:
                    is_sound(found, lie, small)
                    taken += 1
            put(file, original[file.name])
        put(small / "checkpoint.json", original["checkpoint.json"])
        assert_small(checkpoint.read(small))
    assert tally.cases >= AT_LEAST["header"] // every
    assert 4 / every <= taken <= 100  # float32 as int32, a shape as another of as many numbers


def test_a_pickle_is_never_run(small: Path) -> None:
    tally, original = Tally([CheckpointError]), contents(small)
    manifest = json.loads(original["checkpoint.json"])
    with watched(small.parent):
        for payload in PICKLES:
            for content in (payload, with_header(payload), with_header(b"{}", payload), payload + original["agent.safetensors"]):
                for name in original:
                    put(small / name, content)
                    read_in_every_way(small, tally, name, name)
                    if name != "checkpoint.json":
                        put(small / "checkpoint.json", trusting(manifest, name.removesuffix(".safetensors"), content))
                        read_in_every_way(small, tally, f"{name}, sealed", name)
                    put(small / "checkpoint.json", original["checkpoint.json"])
                    put(small / name, original[name])
            file = small.parent / "agent.pt"
            put(file, payload)
            read_in_every_way(file, tally, "a file", "agent.pt")
        assert_small(checkpoint.read(small))
    assert tally.refused == tally.cases == len(PICKLES) * (4 * 5 + 1)


def links(where: Path, target: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What may stand where a file is expected."""
    yield "a pipe", lambda: os.mkfifo(where)
    yield "a folder", where.mkdir
    yield "a loop", lambda: where.symlink_to(where.name)
    yield "a link to nothing", lambda: where.symlink_to("nothing")
    for path in ("/dev/zero", "/dev/urandom", "/dev/stdin", "/dev/full", "/proc/self/mem", "/", "/etc/passwd"):
        if os.path.exists(path):
            yield f"a link to {path}", partial(where.symlink_to, path)

    def link_to_a_pipe() -> None:
        os.mkfifo(target)
        where.symlink_to(target)

    yield "a link to a pipe", link_to_a_pipe


def test_what_is_no_file_is_not_waited_for(small: Path) -> None:
    tally, original = Tally([CheckpointError]), contents(small)
    target = small.parent / "pipe"
    for name in original:
        for what, make in links(small / name, target):
            (small / name).unlink()
            make()
            read_in_every_way(small, tally, f"{name} is {what}", name)
            tally.attempt(what, partial(checkpoint.read_json, small / name), name)
            if (small / name).is_dir() and not (small / name).is_symlink():
                (small / name).rmdir()
            else:
                (small / name).unlink()
            target.unlink(missing_ok=True)
            put(small / name, original[name])
    assert_small(checkpoint.read(small))
    assert tally.refused == tally.cases >= 50


LOOKS = 30
"""More than a reading takes at the files."""


@pytest.mark.parametrize("name", ["checkpoint.json", "agent.safetensors", "memory.safetensors"])
def test_a_file_that_changes_while_it_is_read(small: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given is what was written, or nothing is: between any two looks at it a file may be cut, grow, go, or become another."""
    tally, original = Tally([CheckpointError]), contents(small)
    content, others = original[name], [original[other] for other in original if other != name]
    file = small / name

    def in_place(new: bytes) -> Callable[[], Any]:
        def write_over() -> None:
            with file.open("r+b") as stream:
                stream.truncate(0)
                stream.write(new)

        return write_over

    def become_a_pipe() -> None:
        file.unlink()
        os.mkfifo(file)

    changes: dict[str, Callable[[], Any]] = {
        "goes": file.unlink,
        "becomes a pipe": become_a_pipe,
        "becomes another": lambda: put(file, others[0]),
        "is damaged": in_place(content[:-9] + b"\xff" + content[-8:]),
        "grows": in_place(content + b"more"),
        **{f"is cut to {length}": partial(os.truncate, file, length) for length in (0, 4, 8, 30, len(content) - 1)},
    }
    for what, change in changes.items():
        for look, late in itertools.product(range(LOOKS), (False, True)):
            calls = iter(range(100))

            def looking(
                function: Callable[..., Any],
                *arguments: Any,
                calls: Any = calls,
                when: Any = (look, late),
                change: Any = change,
                **keywords: Any,
            ) -> Any:
                now = next(calls)
                if (now, False) == when:
                    change()
                try:
                    return function(*arguments, **keywords)
                finally:
                    if (now, True) == when:
                        change()

            with monkeypatch.context() as patched:
                patched.setattr(Path, "stat", lambda self, looking=looking, stat=Path.stat, **keywords: looking(stat, self, **keywords))
                patched.setattr(os, "fstat", partial(looking, os.fstat))
                patched.setattr(zlib, "crc32", partial(looking, zlib.crc32))
                found = tally.attempt(f"{name} {what} at look {look}, {late}", lambda: checkpoint.read(small), name)
            if found is not None:
                assert_small(found)
            if file.exists() and stat.S_ISFIFO(file.stat().st_mode):
                file.unlink()
            put(file, content)
    assert 40 < tally.refused < tally.cases == 2 * LOOKS * len(changes)


# Values.


def test_values_that_are_none() -> None:
    arrays: dict[str, NDArray[Any]] = {}
    value = {"a": [1, 2.5, (None, np.float32(3.0))], "b": {"c": np.arange(3), "d": -(2**70), "e": float("inf")}}
    written = encode(value, "v", arrays)
    tally, source = Tally([ValueError]), source_of("values")
    for what, changed in [*hostile.mutants(written), *hostile.some_mutants(written, extra(0.3), source)]:
        tally.attempt(what, partial(decode, changed, arrays))
    assert tally.cases >= AT_LEAST["decoded"] and tally.refused > tally.cases / 10


# A replay memory in segments.


def test_a_replay_log(tmp_path: Path) -> None:
    memory, log = Memory(8), ReplayLog(tmp_path / "replay")
    for timesteps in (6, 2, 3):
        for _ in range(timesteps):
            memory.add([True])
        entry = write(log, memory)
    wanted, tally, source = memory.arrays(), Tally([CheckpointError]), source_of("log")

    def same(found: dict[str, NDArray[Any]] | None) -> None:
        if found is not None:
            assert {name: (array.shape[1:], array.dtype) for name, array in found.items()} == {
                name: (array.shape[1:], array.dtype) for name, array in wanted.items()
            }
            assert all(len(array) <= 8 for array in found.values())
            Memory(8).restored(found)

    def verify(changed: Any) -> None:
        for segment in replay_log.segments_of(tmp_path / "replay", changed):
            replay_log.verify(tmp_path / "replay", segment)

    with watched(tmp_path):
        for what, changed in hostile.some_mutants(entry, 700 + extra(0.03), source):
            if not hostile.is_plain(changed):
                continue
            if isinstance(changed, dict):  # an agent looks before
                same(tally.attempt(what, partial(replay_log.read, tmp_path / "replay", changed, Memory(8)), "replay"))
            tally.attempt(what, partial(verify, changed), "replay")
        for path in sorted((tmp_path / "replay").iterdir()):
            original = contents(path)
            manifest = json.loads(original["checkpoint.json"])
            number = int(path.name.removeprefix("segment_"))
            for what, changed in hostile.some_mutants(manifest, 40, source):
                put(path / "checkpoint.json", sealed(changed))
                # Even where the entry knows the forged one.
                forged = json.loads(json.dumps(entry))
                for segment in forged["segments"]:
                    if segment["number"] == number:
                        segment["token"] = f"{zlib.crc32(sealed(changed)[: sealed(changed).rfind(b',')] + b'}'):08x}"
                for each in (entry, forged):
                    same(tally.attempt(what, partial(replay_log.read, tmp_path / "replay", each, Memory(8)), path.name, "replay"))
            put(path / "checkpoint.json", original["checkpoint.json"])
            for name, content in original.items():
                for _ in range(20):
                    put(path / name, damaged(content, content[::-1], source))
                    same(tally.attempt(f"{path.name}/{name}", lambda: replay_log.read(tmp_path / "replay", entry, Memory(8)), path.name))
                put(path / name, content)
    assert_same_arrays(replay_log.read(tmp_path / "replay", entry, memory), wanted)
    assert tally.cases >= AT_LEAST["log"] and tally.refused > tally.cases / 2


# An agent.


def forged(groups: dict[str, dict[str, NDArray[Any]]], source: random.Random) -> Iterator[tuple[str, dict[str, dict[str, NDArray[Any]]]]]:
    """Checkpoints whose arrays are not what they should be."""
    names = [(group, name) for group, arrays in groups.items() for name in arrays]

    def other(group: str, name: str, new: NDArray[Any] | None, called: str | None = None) -> dict[str, dict[str, NDArray[Any]]]:
        arrays = {key: array for key, array in groups[group].items() if key != name}
        return {**groups, group: arrays if new is None else {**arrays, called or name: new}}

    for group, name in names:
        array = groups[group][name]
        yield f"{group}/{name} left out", other(group, name, None)
        yield (
            f"{group}/{name} renamed",
            other(group, name, array, source.choice([name for name in hostile.NAMES if name.isprintable() and name]) + "\u00fc"),
        )
        for new in (
            array[None],
            array.reshape(-1)[:-1],
            array.reshape(-1).repeat(3),
            np.zeros((0, *array.shape[1:]), array.dtype),
            np.zeros((64, 64, 64)),
        ):
            if new.shape != array.shape:
                yield f"{group}/{name} of shape {new.shape}", other(group, name, new)
        for dtype in ("bool", "int8", "uint8", "int64", "uint64", "float16", "float64"):
            if array.dtype != dtype:
                with np.errstate(all="ignore"):
                    yield f"{group}/{name} of dtype {dtype}", other(group, name, array.astype(dtype))
        if array.size and array.dtype != bool:
            noise = np.frombuffer(source.randbytes(array.nbytes), array.dtype).reshape(array.shape)
            yield f"{group}/{name} of noise", other(group, name, noise)
            least = np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).min or np.iinfo(array.dtype).max
            extreme = np.full(array.shape, least, array.dtype)
            yield f"{group}/{name} of {extreme.flat[0]}", other(group, name, extreme)
    for group in groups:
        yield f"no {group}", {key: arrays for key, arrays in groups.items() if key != group}
    yield "more", {**groups, "more": {"x": np.zeros(3)}}


def test_an_agent(backend: Backend, tmp_path: Path, every: int) -> None:
    """Of a checkpoint that is refused nothing is left in the agent."""

    def trained(seed: int) -> Any:
        agent = backend.agent(num_envs=2, seed=seed, hidden=(2,), capacity=8)
        fill(agent, 6, seed)
        agent.update(timestep=0, timesteps=1)
        return agent

    agent, path = trained(3), tmp_path / "saved"
    agent.save(path)
    other = trained(4)
    read, original = checkpoint.read(path), contents(path)
    manifest, source, tally = json.loads(original["checkpoint.json"]), source_of(backend.name), Tally([CheckpointError])

    def state() -> dict[str, Any]:
        streams = {f"stream {name}": array for name, array in other.learner.stream_states().items()}
        counters = {
            "counters": np.array(
                [other.gradient_step_count, *other.update_schedule.progress.due.as_integer_ratio(), len(other.learner.streams_key)]
            )
        }
        memory = {f"memory {name}": array for name, array in other.memory.arrays().items()}
        return {**other.arrays(), **streams, **memory, **counters}

    before = state()

    def attempt(what: str) -> None:
        nonlocal before
        done = tally.attempt(what, lambda: other.load(path) or "done", "saved")
        after = state()
        if done is None:
            for name in before:  # the bits: what is NaN here is so there
                assert before[name].tobytes() == after[name].tobytes(), f"{what}: {name}"
        before = after

    with watched(tmp_path):
        for what, changed in hostile.some_mutants(manifest, 80 // every + extra(0.002), source):
            put(path / "checkpoint.json", sealed(changed))
            attempt(what)
        put(path / "checkpoint.json", original["checkpoint.json"])
        for name, content in original.items():
            for number in range(4):
                put(path / name, damaged(content, content[::-1], source))
                attempt(f"{name} damaged, {number}")
            put(path / name, content)
        changes = list(forged(read.groups, source))
        for what, groups in source.sample(changes, min(len(changes), 140 // every + extra(0.002))):
            checkpoint.write(path, groups, read.metadata)
            attempt(what)
        for at in itertools.islice(hostile.places(read.metadata), None, None, every):
            for new in source.sample(NASTY, 2):
                try:
                    checkpoint.write(path, read.groups, hostile.replaced(read.metadata, at, new) if at else {"x": 1})
                except CheckpointError:
                    continue
                attempt(f"{at} = {new!r:.40}")
    checkpoint.write(path, read.groups, read.metadata)
    other.load(path)
    assert_same_arrays(other.arrays(), agent.arrays())
    assert_same_arrays(other.learner.stream_states(), agent.learner.stream_states())
    assert_same_arrays(other.memory.arrays(), agent.memory.arrays())
    assert tally.cases >= AT_LEAST["agent"] // every and tally.refused > tally.cases / 2


def test_what_does_not_fit_an_agent_is_not_read(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large its arrays are; and of what was begun before nothing is left."""
    agent = backend.agent(num_envs=2, hidden=(2,), capacity=8)
    fill(agent, 3)
    agent.save(tmp_path / "saved")
    read, seen = checkpoint.read(tmp_path / "saved"), []
    original = checkpoint._read_group

    def reading(path: Path, name: str, *arguments: Any) -> Any:
        seen.append(name)
        return original(path, name, *arguments)

    large = {name: np.zeros((200, *rows.shape[1:]), rows.dtype) for name, rows in read.groups["memory"].items()}
    changes: dict[str, dict[str, Any]] = {
        "memory has .* bytes, expected at most": {"memory": large},
        "streams has .* bytes, expected at most": {"streams": {"noise": np.zeros(2**18)}},
        "log_alpha has shape": {"agent": {**read.groups["agent"], "log_alpha": np.zeros(100_000)}},
        "unknown arrays": {"more": {"x": np.zeros(100_000)}},
    }
    monkeypatch.setattr(checkpoint, "_read_group", reading)
    for message, groups in changes.items():
        checkpoint.write(tmp_path / "other", {**read.groups, **groups}, read.metadata)
        with pytest.raises(CheckpointError, match=f"other does not fit this agent: .*{message}"):
            agent.load(tmp_path / "other")
    assert seen == []
    memory = {**read.groups["memory"], "head": read.groups["memory"]["head"] + 5}
    checkpoint.write(tmp_path / "other", {**read.groups, "memory": memory}, {**read.metadata, "ranks": 2})
    before = agent.learner.stream_states()
    with pytest.raises(CheckpointError, match="do not fit a ring of 4 rows"):
        agent.load(tmp_path / "other")
    assert agent.learner.streams_key == ()
    assert_same_arrays(agent.learner.stream_states(), before)


# A run.


RUN: dict[str, Any] = {
    "env": "Pendulum-v1",
    "env_kwargs": {"max_episode_steps": 15},
    "hidden": (2,),
    "num_envs": 2,
    "steps": 80,
    "evaluation_interval": 40,
    "evaluation_episodes": 1,
    "keep_checkpoints": 2,
    "cfg": {"batch_size": 4, "random_timesteps": 5, "learning_starts": 5, "experiment": {"write_interval": 15, "checkpoint_interval": 8}},
    "progress": False,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 timesteps; its checkpoints are of 32 and 40."""
    pytest.importorskip("torch", reason="torch is not installed")
    run_dir = tmp_path_factory.mktemp("run") / "run"
    experiment.train(**RUN, run_dir=run_dir)
    return run_dir


def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def test_an_environment(finished: Path, every: int) -> None:
    """A snapshot that is refused leaves the environments as they were; one that is taken can be stepped on from."""
    path = finished / "checkpoints" / "agent_40"
    read = checkpoint.read(path, only=("environment",))
    arrays, metadata = read.groups["environment"], read.metadata["environment"]
    tally, source = Tally([SnapshotError]), source_of("snapshot")
    made = envs.make("Pendulum-v1", 2, env_kwargs=RUN["env_kwargs"])
    made.reset(seed=0)

    def attempt(what: str, snapshot: Snapshot) -> None:
        before = snapshots.capture(made)
        assert isinstance(before, Snapshot)
        refused = tally.refused
        tally.attempt(what, partial(snapshots.restore, made, snapshot))
        if tally.refused > refused:
            after = snapshots.capture(made)
            assert isinstance(after, Snapshot)
            assert_same_arrays(after.arrays, before.arrays)
            assert json.dumps(without_clock(after.metadata)) == json.dumps(without_clock(before.metadata))
        else:
            with np.errstate(all="ignore"):  # numbers of any size are numbers
                for _ in range(2):
                    made.step(np.zeros((2, 1), np.float32))
            snapshots.restore(made, Snapshot(arrays, metadata))

    for what, changed in hostile.some_mutants(metadata, 500 // every + extra(0.02), source):
        if hostile.is_plain(changed) and isinstance(changed, dict):
            attempt(what, Snapshot(arrays, changed))
    for what, groups in itertools.islice(forged({"environment": arrays}, source), None, None, every):
        attempt(what, Snapshot(groups.get("environment", {}), metadata))
    attempt("as it was", Snapshot(arrays, metadata))
    made.close()
    assert tally.cases >= AT_LEAST["snapshot"] // every and tally.refused > tally.cases / 2


def without_clock(metadata: dict[str, Any]) -> Any:
    return json.loads(re.sub(r'"episode_start_time": [^,}]*', '"episode_start_time": 0', json.dumps(metadata)))


@pytest.mark.parametrize(
    ("kind", "within", "name", "least", "most"), [("MT19937", "state", "pos", 0, 624), ("Philox", None, "buffer_pos", 1, 4)]
)
def test_a_generator_reads_nothing_but_its_own_state(kind: str, within: str | None, name: str, least: int, most: int) -> None:
    """Most versions of NumPy take any place in a buffer, and read there."""
    state = dict(getattr(np.random, kind)(1).state)
    for place in (least, 2, most):
        (state[within] if within else state)[name] = place
        assert snapshots.generator_of({"seed": 1, "state": state}) is not None
    wrong: list[Any] = [least - 1, most + 1, 2**31 - 1, -(2**31), 2**64, 1.0, True, None]
    for place in wrong:
        (state[within] if within else state)[name] = place
        with pytest.raises(ValueError, match=f"{name} of a generator {kind} is {place}, expected an integer from {least} to {most}"):
            snapshots.generator_of({"seed": 1, "state": state})


def test_what_a_run_was_in_the_middle_of(finished: Path, tmp_path: Path, every: int) -> None:
    """A run goes on from what it can be resumed from, and refuses all else before its first step."""
    path = copied(finished, tmp_path) / "checkpoints" / "agent_40"
    read, tally, source = checkpoint.read(path), Tally([CheckpointError]), source_of("live")
    agent: Any = sacref.load(finished)
    memory = importlib.import_module("sacref.torch").ReplayMemory(40, 2)
    spaces = {"observation_space": agent.observation_space, "state_space": None, "action_space": agent.action_space}
    agent = type(agent)(
        models=agent.own_models.modules,
        memory=memory,
        **spaces,
        cfg={**RUN["cfg"], "experiment": {"write_interval": 0, "checkpoint_interval": 0}},
    )
    made = envs.make("Pendulum-v1", 2, env_kwargs=RUN["env_kwargs"])
    made.reset(seed=0)

    def go_on() -> str:
        resumption = resume(path, agent, agent.ranks, made, 40)
        began = False

        def on_begin() -> None:
            nonlocal began
            assert resumption.on_begin is None or resumption.on_begin() is None
            began = True

        try:
            training.run(agent, made, timesteps=42, start=40, begin=resumption.begin, on_begin=on_begin)
        except CheckpointError:
            assert not began  # no step was taken
            raise
        except NumericalError:  # of metrics that were NaN, if sound otherwise
            assert began
        return "done"

    assert go_on() == "done"
    for what, groups in itertools.islice(forged({"live": read.groups["live"]}, source), None, None, every):
        checkpoint.write(path, {**read.groups, **groups, "live": groups.get("live", {})}, read.metadata)
        tally.attempt(what, go_on, "agent_40")
    middle = {key: read.metadata[key] for key in ("live", "environment", "files")}
    for what, changed in hostile.some_mutants(middle, 350 // every + extra(0.005), source):
        try:
            checkpoint.write(path, read.groups, {**read.metadata, **changed})
        except (CheckpointError, TypeError):
            continue
        tally.attempt(what, go_on, "agent_40")
    made.close()
    assert tally.cases >= AT_LEAST["live"] // every and tally.refused > tally.cases / 3


def test_a_run_directory(finished: Path, tmp_path: Path) -> None:
    """Resumed from the last sound checkpoint, or refused; `load` the same."""
    run_dir, tally, source = copied(finished, tmp_path), Tally([RunError, CheckpointError]), source_of("run")
    where = run_dir / "checkpoints"
    ranks, chosen = Ranks(), []
    with watched(tmp_path):
        for path in sorted(file for file in where.rglob("*") if file.is_file() and "best" not in file.parts):
            content = path.read_bytes()
            for number in range(4):
                change = damaged(content, content[::-1], source)
                if path.name == "checkpoint.json" and number < 2:
                    _, lie = next(hostile.some_mutants(json.loads(content), 1, source))
                    change = sealed(lie)
                put(path, change)
                timestep = tally.attempt(f"{path.name}, {number}", lambda: newest_whole(ranks, run_dir), str(run_dir))
                chosen.append(timestep)
                assert timestep in (32, 40, None)
                if change != content and number >= 2 and path.parent.name == "agent_40":
                    assert timestep == 32
                tally.attempt(f"{path.name}, {number}", lambda: sacref.load(run_dir), str(run_dir))
            put(path, content)
        assert newest_whole(ranks, run_dir) == 40
    assert {32, 40} <= set(chosen)


def test_the_configuration_of_a_run(finished: Path, tmp_path: Path, every: int) -> None:
    run_dir, tally, source = copied(finished, tmp_path), Tally([RunError, CheckpointError, BackendError]), source_of("config")
    config = json.loads((run_dir / "config.json").read_text())
    with watched(tmp_path):
        for what, changed in hostile.some_mutants(config, 300 // every + extra(0.01), source):
            put(run_dir / "config.json", hostile.text_of(changed))
            tally.attempt(what, lambda: sacref.load(run_dir))
    used = {key: config[key] for key in ("backend", "seed", "hidden", "models", "observation_space", "action_space", "state_space")}
    for what, changed in hostile.some_mutants(used, 300 // every + extra(0.01), source):
        if isinstance(changed, dict):
            put(run_dir / "config.json", hostile.text_of({**config, **changed}))
            tally.attempt(what, lambda: sacref.load(run_dir))
    assert tally.cases > 500 // every and tally.refused > tally.cases / 4


def test_models_that_no_checkpoint_could_fill_are_not_made(finished: Path, tmp_path: Path) -> None:
    run_dir = copied(finished, tmp_path)
    config = json.loads((run_dir / "config.json").read_text())
    box = {"low": 0, "high": 1, "shape": [10_000, 10_000], "dtype": "float32"}
    changes: list[tuple[str, dict[str, Any]]] = [
        ("its models have over 4848[0-9]* parameters, and no checkpoint has as many", {"hidden": [40, 4000, 4000]}),
        ("its models have over", {"hidden": [1] * 5_000}),
        ("its models have over", {"models": {**config["models"], "critic_hidden": [40, 4000, 4000]}}),
        (
            "its models have over",
            {"models": {**config["models"], "network": "simba", "layer_norm": False, "dropout": 0.0}, "hidden": [9999]},
        ),
        ("its models have over", {"models": {**config["models"], "num_critics": 10**9}}),
        ("its models have over", {"models": {**config["models"], "recurrent": "gru", "recurrent_size": 10**5}}),
        ("expected at most 10000000 numbers", {"observation_space": box}),
        ("its models have over", {"observation_space": {**box, "shape": [1_000_000]}}),
        ("its models have over", {"state_space": {**box, "shape": [1_000_000]}}),
    ]
    for message, change in changes:
        put(run_dir / "config.json", json.dumps({**config, **change}).encode())
        with pytest.raises(RunError, match=rf"config.json is damaged \(ValueError: .*{message}"):
            sacref.load(run_dir)
    # To go on with them is refused too: they are made before the checkpoint is read.
    hidden = [40, 4000, 4000]
    put(run_dir / "config.json", json.dumps({**config, "hidden": hidden}).encode())
    with pytest.raises(RunError, match=r"config.json is damaged \(ValueError: its models have over"):
        experiment.train(**{**RUN, "cfg": None, "hidden": hidden, "steps": 84, "resume": True, "run_dir": run_dir})


def test_a_resumed_run(finished: Path, tmp_path: Path) -> None:
    """The whole way, from every file of a run directory: it goes on, or is refused and has changed nothing."""
    tally, source = Tally([RunError, CheckpointError], most_lines=25), source_of("resumed")
    keys = ["num_envs", "ranks", "steps_offset", "cfg", "seed", "env_kwargs", "models", "evaluation_episodes"]
    for number in range(24 + extra(0.0005)):
        run_dir = copied(finished, tmp_path)
        before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
        name = source.choice(
            [
                "config.json",
                "evaluation.json",
                "metrics.jsonl",
                "checkpoints/agent_40/checkpoint.json",
                "checkpoints/agent_40/agent.safetensors",
            ]
        )
        file = run_dir / name
        if name == "config.json":
            config = json.loads(file.read_text())
            _, lie = next(hostile.some_mutants({key: config[key] for key in source.sample(keys, 2)}, 1, source))
            put(file, hostile.text_of({**config, **lie} if isinstance(lie, dict) else lie))
        elif name == "evaluation.json":
            put(file, hostile.text_of(next(hostile.some_mutants(json.loads(file.read_text()), 1, source))[1]))
        elif name.endswith("checkpoint.json") and number % 2:
            put(file, sealed(next(hostile.some_mutants(json.loads(file.read_text()), 1, source))[1]))
        else:
            put(file, damaged(before[file], before[file][::-1], source))
        changed = {**before, file: file.read_bytes()}
        resumed = {**RUN, "cfg": None if number % 3 else RUN["cfg"], "steps": 84, "resume": True, "run_dir": run_dir}
        with watched(tmp_path):
            found = tally.attempt(f"{number}: {name}", partial(experiment.train, **resumed))
        if found is None and number % 3 == 0:
            assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == changed, name
        shutil.rmtree(run_dir)
    assert 5 < tally.refused < tally.cases - 5


def test_a_run_writes_through_no_link(finished: Path, tmp_path: Path) -> None:
    """What a run changes where it is, or appends to, may be somebody else's file."""
    tally, mine = Tally([RunError]), tmp_path / "mine"
    events = next(finished.glob("events*")).name
    for name in ("metrics.jsonl", "curve.png", events, "checkpoints", "checkpoints/replay", "checkpoints/agent_40", "checkpoints/best"):
        for target in ("file", "folder", "pipe", "nothing"):
            run_dir = copied(finished, tmp_path)
            path = run_dir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            mine.mkdir()
            (mine / "file").write_text("mine\nof one line")
            (mine / "folder").mkdir()
            os.mkfifo(mine / "pipe")
            shutil.copytree(finished / "checkpoints", mine / "folder" / "checkpoints")
            before = {file: file.read_bytes() for file in mine.rglob("*") if file.is_file()}
            path.symlink_to(mine / target)
            with watched(run_dir):
                tally.attempt(
                    f"{name} -> {target}",
                    partial(experiment.train, **{**RUN, "steps": 84, "resume": True, "run_dir": run_dir}),
                    name,
                )
            assert {file: file.read_bytes() for file in mine.rglob("*") if file.is_file()} == before
            shutil.rmtree(mine)
            shutil.rmtree(run_dir)
    assert tally.refused == tally.cases == 7 * 4


def test_the_file_of_a_sweep(tmp_path: Path) -> None:
    tally, source = Tally([SweepError, CheckpointError]), source_of("sweep")
    plan = {
        "train": {"steps": 100, "env": "Pendulum-v1", "experiment": {"write_interval": 5}},
        "grid": {"seed": "0:2", "hidden": [[8], [8, 8]]},
        "slurm": {"cpus": 1},
    }
    lines = b'[train]\nsteps = 100\nenv = "Pendulum-v1"\n[grid]\nseed = "0:2"\nbatch-size = [4, 8]\n'
    with watched(tmp_path):
        for what, changed in hostile.some_mutants(plan, 25 + extra(0.001), source):
            put(tmp_path / "sweep.json", hostile.text_of(changed))
            tally.attempt(what, lambda: grid.read(tmp_path / "sweep.json", tmp_path))
        for number in range(15 + extra(0.0005)):
            put(tmp_path / "sweep.toml", damaged(lines, lines[::-1], source))
            tally.attempt(f"toml, {number}", lambda: grid.read(tmp_path / "sweep.toml", tmp_path))
        for content in (
            '[grid]\nseed = "0:99999999999"',
            "[grid]\n" + "\n".join(f"{name} = {list(range(1, 60))}" for name in ("seed", "steps", "batch-size")),
            "a = " + "[" * 100_000,
            "x = 1\n" * 10**6,
            "\0",
            "a" * 20 * 2**20,
        ):
            put(tmp_path / "sweep.toml", content.encode())
            assert tally.attempt(content[:40], lambda: grid.read(tmp_path / "sweep.toml", tmp_path), "sweep.toml") is None
    assert tally.refused > tally.cases / 2


# Memory.


BOMBS = """
import json, os, resource, sys, zlib
import numpy as np
from pathlib import Path
from sacref.storage import checkpoint
from sacref.storage import replay_log
from sacref.storage.checkpoint import CheckpointError
from tests.hostile import sealed, with_header
class Memory:
    slots, num_envs = 8, 1
    def rows(self, index):
        return {"x": np.zeros((len(index), 2), np.float32)}

path, file = Path("c"), Path("c/agent.safetensors")
checkpoint.write(path, {"agent": {"x": np.zeros(1)}}, {})
manifest = json.loads((path / "checkpoint.json").read_text())
def used(field):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(field)) * 1024
before = used("VmRSS")
# What is asked for beyond is refused by the kernel, and would end in a MemoryError that is no CheckpointError's cause.
resource.setrlimit(resource.RLIMIT_AS, (used("VmSize") + int(sys.argv[1]),) * 2)
cases = 0
def refused(load):
    global cases
    cases += 1
    try:
        load()
    except CheckpointError as error:
        assert not isinstance(error.__cause__, MemoryError), error
        assert len(str(error)) < 2000
    else:
        raise AssertionError(cases)
def sparse(size, header=b""):
    with open(file, "wb") as stream:
        stream.write(header)
        stream.truncate(size)
for shape in ([2**30], [2**40], [2**59], [2**62], [2**62, 2**62], [0, 2**62, 2**62], [1] * 70, [2**31, 2**31], [10**30]):
    for size in (8, 2**20, 2**34, 2**43):
        header = with_header(json.dumps({"x": {"dtype": "F64", "shape": shape, "data_offsets": [0, size]}}).encode())
        for claimed in (header, with_header(header[8:], claimed=2**63), with_header(header[8:], claimed=size)):
            sparse(size, claimed)
            lie = json.loads(json.dumps(manifest))
            lie["groups"]["agent"] = {"size": os.path.getsize(file), "crc32": 0, "arrays": {"x": {"dtype": "float64", "shape": shape}}}
            (path / "checkpoint.json").write_bytes(sealed(lie))
            if shape != [2**30] or size < 2**33:
                refused(lambda: checkpoint.read(path))
                refused(lambda: checkpoint.verify(path))
            refused(lambda: replay_log.read(Path("."), {"slots": 8, "envs": 1, "head": [0], "size": [8], "segments": [
                {"number": 0, "token": "0", "first": [0], "count": [8]}]}, Memory()))
file.unlink()
LARGEST = checkpoint.LARGEST_JSON
for text in ("[" + "[]," * (LARGEST // 3 - 2) + "[]]", "{" + ",".join(f'"{i}":[]' for i in range(10**6)) + "}",
             "[" * LARGEST, "[" + "0," * (LARGEST // 2 - 2) + "0]", "1" * LARGEST, "1e" + "9" * (LARGEST - 2)):
    assert len(text) <= LARGEST
    (path / "checkpoint.json").write_text(text)
    refused(lambda: checkpoint.read(path))
(path / "checkpoint.json").write_bytes(b"")
os.truncate(path / "checkpoint.json", 2**40)
refused(lambda: checkpoint.read(path))
# One line: how many, and how much more there was at the worst.
print(cases, used("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the memory it takes")
def test_no_file_takes_more_memory_than_json_of_the_largest_size(tmp_path: Path) -> None:
    """Absurd sizes that only stand in a header or that a sparse file really has: nothing is allocated for them."""
    limit = 1_000 * 2**20
    command = [sys.executable, "-c", BOMBS, str(limit)]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    cases, most = map(int, done.stdout.split())
    assert cases > 250
    assert most < 700 * 2**20  # 16 MiB of "[]," are 5.6 million lists
