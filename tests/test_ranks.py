"""What ranks tell each other arrives bit for bit, in two real processes on each backend; a lost rank is an error in bounded time."""

import json
import os
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sacref.ranks import Launch, Ranks, launched
from tests.ranked import TOO_LONG, finish, run, start

EXCHANGES = """
import importlib, json, os, sys
import numpy as np
module = importlib.import_module(f"sacref.{sys.argv[1]}.ranks")
ranks = module.join("cpu", timeout=60)
assert module.join("cpu").rank == ranks.rank, "a second call joins nothing"
rank = ranks.rank
shown = {"rank": rank, "size": ranks.size, "class": type(module.ranks()).__name__}
for dtype in ("float64", "float32", "float16", "int64", "uint8", "bool"):
    array = (np.arange(6).reshape(2, 3) / 3 + rank).astype(dtype)
    gathered = ranks.all_gather(array)
    same = [gathered[other].tobytes() == (np.arange(6).reshape(2, 3) / 3 + other).astype(dtype).tobytes() for other in range(2)]
    shown[dtype] = [same, str(gathered.dtype), gathered.shape, bool(gathered.flags.writeable)]
shown["scalar"] = ranks.all_gather(np.array(rank + 0.1)).tolist()
shown["large"] = float(ranks.all_gather(np.full(300_000, rank + 0.25)).sum())
shown["gather"] = ranks.gather({"name": "x" * (1 + 400 * rank), "nan": float("nan"), "rank": rank})
shown["rows"] = ranks.rows(np.full((3 * rank, 2), rank + 0.1)).tolist()
shown["no_rows"] = ranks.rows(np.zeros((0, 4), np.float32)).shape
first = ranks.from_first({"weights": np.full((2, 2), 0.1 + rank), "count": np.array(7 + rank)})
shown["from_first"] = {name: [array.tolist(), str(array.dtype)] for name, array in first.items()}
try:
    ranks.from_first({"weights": np.zeros(2 + rank)})
except ValueError as error:
    shown["refused"] = str(error)
ranks.wait()
print(json.dumps(shown))
"""

LOST = """
import importlib, os, signal, sys, time
from pathlib import Path
import numpy as np

def meet(place):
    # By files: one rank may be later than the other by more than the timeout of an exchange.
    Path(f"{place}_{os.environ['RANK']}").touch()
    while not all(Path(f"{place}_{rank}").exists() for rank in range(2)): time.sleep(0.01)

module = importlib.import_module(f"sacref.{sys.argv[1]}.ranks")
meet("imported")
ranks = module.join("cpu", timeout=float(sys.argv[3]))
ranks.wait()
meet("waited")
if ranks.rank == 1:
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
began = time.monotonic()
try:
    ranks.wait()
except Exception as error:
    print(f"{type(error).__name__}: {error}", flush=True)
    print(time.monotonic() - began, flush=True)
    os._exit(3)
"""

LEAVE = """
import atexit, os
from pathlib import Path

@atexit.register
def after_all_others() -> None:
    print(*sorted(Path(f"/proc/self/task/{thread}/comm").read_text().strip() for thread in os.listdir("/proc/self/task")))

import torch
from sacref.torch.graph import Recorded
from sacref.torch.optim import average_over_ranks
from sacref.torch.ranks import join

ranks = join("cpu", timeout=60)
averaged = Recorded(lambda state, part: average_over_ranks({"part": part}))({}, torch.full((3,), float(ranks.rank)))
assert averaged["part"].tolist() == [0.5] * 3
"""


def require(backend: str) -> None:
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")


@pytest.fixture(scope="module", params=["torch", "jax"])
def shown(request: pytest.FixtureRequest) -> tuple[str, list[dict[str, Any]]]:
    """What each of two ranks got from the other."""
    require(request.param)
    return request.param, [json.loads(ended.out.splitlines()[-1]) for ended in run(EXCHANGES, request.param)]


def test_each_rank_knows_its_place(shown: tuple[str, list[dict[str, Any]]]) -> None:
    backend, ranks = shown
    assert [(seen["rank"], seen["size"]) for seen in ranks] == [(0, 2), (1, 2)]
    assert [seen["class"] for seen in ranks] == [f"{backend.capitalize()}Ranks"] * 2


def test_arrays_of_every_dtype_arrive_bit_for_bit(shown: tuple[str, list[dict[str, Any]]]) -> None:
    for seen in shown[1]:
        for dtype in ("float64", "float32", "float16", "int64", "uint8", "bool"):
            assert seen[dtype] == [[True, True], dtype, [2, 2, 3], True]
        assert seen["scalar"] == [0.1, 1.1]
        assert seen["large"] == 300_000 * 1.5


def test_values_of_any_length_arrive_in_order(shown: tuple[str, list[dict[str, Any]]]) -> None:
    for seen in shown[1]:
        assert [value["rank"] for value in seen["gather"]] == [0, 1]
        assert [value["name"] for value in seen["gather"]] == ["x", "x" * 401]
        assert all(np.isnan(value["nan"]) for value in seen["gather"])


def test_rows_are_those_of_all_ranks(shown: tuple[str, list[dict[str, Any]]]) -> None:
    for seen in shown[1]:
        assert seen["rows"] == [[1.1, 1.1]] * 3, "rank 0 has none"
        assert seen["no_rows"] == [0, 4]


def test_the_first_ranks_arrays_are_everyones(shown: tuple[str, list[dict[str, Any]]]) -> None:
    for seen in shown[1]:
        assert seen["from_first"] == {"weights": [[[0.1, 0.1], [0.1, 0.1]], "float64"], "count": [7, "int64"]}
        assert "the arrays of rank 1 are not those of rank 0" in seen["refused"]
        assert "['weights', [3], '<f8']" in seen["refused"]


def test_a_process_alone_is_all_ranks() -> None:
    alone = Ranks()
    array = np.arange(6, dtype=np.float16).reshape(2, 3)
    gathered = alone.all_gather(array)
    assert (alone.rank, alone.size) == (0, 1)
    np.testing.assert_array_equal(gathered, array[None], strict=True)
    gathered[0, 0, 0] = 5.0
    assert array[0, 0] == 0.0, "what was gathered is a copy"
    assert alone.gather({"x": [1, None]}) == [{"x": [1, None]}]
    np.testing.assert_array_equal(alone.rows(array), array, strict=True)
    np.testing.assert_array_equal(alone.from_first({"a": array})["a"], array, strict=True)
    assert isinstance(alone.from_first({"a": np.array(1.0)})["a"], np.ndarray)
    alone.wait()


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_without_a_launcher_nothing_is_joined(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    require(backend)
    module: Any = __import__(f"sacref.{backend}.ranks", fromlist=["join"])
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert type(module.join()) is type(module.ranks()) is Ranks
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert type(module.join()) is Ranks


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_rank_that_was_killed_is_noticed_at_once(backend: str) -> None:
    require(backend)
    survivor = finish(start(["-c", LOST, backend, "SIGKILL", "60"], 2))[0]
    assert survivor.status == 3, survivor.err
    message, seconds = survivor.out.splitlines()[-2:]
    assert message.startswith("LostRankError: rank 0 of 2 lost another rank, which ended or did not answer in time (")
    assert message.endswith("sacref train --resume --run-dir RUN_DIR")
    assert float(seconds) < 20, "the timeout is 60 s"


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_rank_that_hangs_ends_the_other_in_bounded_time(backend: str) -> None:
    """torch raises after the timeout; JAX's coordinator misses the rank's heartbeats, and ends the process itself."""
    require(backend)
    processes = start(["-c", LOST, backend, "SIGSTOP", "5"], 2)
    began = time.monotonic()
    try:
        out, err = processes[0].communicate(timeout=TOO_LONG)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert time.monotonic() - began > 4
    if backend == "torch":
        assert (processes[0].returncode, "LostRankError: rank 0 of 2" in out) == (3, True), err
    else:
        assert processes[0].returncode not in (0, 3)
        assert "heartbeat" in err.lower()


def test_the_environment_says_who_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert launched() is None
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert launched() == Launch(rank=3, size=4, local_rank=0, local_size=1, address="node0", port=29500)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert launched() == Launch(rank=3, size=4, local_rank=1, local_size=2, address="node0", port=29500)
    for name, value, message in [
        ("RANK", "4", "RANK is '4', expected an integer from 0 to 3: start with torchrun"),
        ("RANK", "", "RANK is '', expected an integer from 0 to 3"),
        ("MASTER_PORT", "http", "MASTER_PORT is 'http', expected an integer from 1 to 65535"),
        ("MASTER_ADDR", "", "WORLD_SIZE is 4 and MASTER_ADDR is not set"),
        ("WORLD_SIZE", "-1", "WORLD_SIZE is '-1', expected an integer of at least 1"),
        ("LOCAL_RANK", "2", "LOCAL_RANK is '2', expected an integer from 0 to 1"),
    ]:
        before = os.environ[name]
        monkeypatch.setenv(name, value)
        with pytest.raises(ValueError) as refused:
            launched()
        assert message in str(refused.value)
        monkeypatch.setenv(name, before)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted where Linux lists them")
def test_no_thread_of_the_group_outlives_the_interpreter() -> None:
    # One that frees a tensor then aborts the process. What recording imports must not keep the group.
    require("torch")
    for ended in run(LEAVE):
        assert not [name for name in ended.out.split() if "gloo" in name or "tcpstore" in name], ended.out
