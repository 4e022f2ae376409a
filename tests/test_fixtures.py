"""What older code wrote (tests/fixtures) loads bit for bit, and goes on as it did."""

import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

import sacref
from sacref.parity.compare import difference
from sacref.ranks import Ranks
from tests.backends import BACKENDS, Backend, assert_same_arrays, load_backend, without_shape_checks
from tests.fixtures import write
from tests.ranked import together

backend = pytest.fixture(params=BACKENDS)(load_backend)


@pytest.fixture(autouse=True)
def unchecked() -> Iterator[None]:
    """Checks of shapes take most of the time of so many small calls."""
    with without_shape_checks():
        yield


TOLERANCE = {"checkpoint": 1e-12, "gru": 1e-5, "population": 1e-5}
"""For what is computed after loading, as processors add in different orders: the agent of the checkpoint is in float64, runs in float32."""


def written(backend: Backend, what: str, tmp_path: Path) -> Path:
    """A copy of a fixture."""
    return Path(shutil.copytree(write.HERE / backend.name / what, tmp_path / what))


def expected(backend: Backend) -> Any:
    return json.loads((write.HERE / backend.name / "expected.json").read_text())


def checkpoint_of(what: str, name: str) -> Path:
    """Where the arrays of a fixture are, or of a member of one."""
    if what == "checkpoint":
        return Path(what)
    return Path(what, *[name] * (what == "population"), "checkpoints", f"agent_{write.TIMESTEPS}")


def rows_of(arrays: Mapping[str, NDArray[Any]]) -> list[bytes]:
    """The bytes of each transition of a memory."""
    fields = [array for name, array in sorted(arrays.items()) if name not in ("head", "size")]
    return [b"".join(row.tobytes() for row in rows) for rows in zip(*fields, strict=True)]


def assert_close(found: Mapping[str, NDArray[Any]], wanted: Mapping[str, NDArray[Any]], tolerance: float) -> None:
    assert found.keys() >= wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype, name
        if array.dtype.kind == "f":
            assert difference(found[name], array, name).relative <= tolerance, name
        else:
            np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("what", write.ALONE)
def test_trap_20_what_older_code_wrote_loads_bit_for_bit(backend: Backend, what: str, tmp_path: Path) -> None:
    directory = written(backend, what, tmp_path)
    for name, agent, _ in write.go_on(backend.name, what, directory, 0):
        groups = write.saved(agent, tmp_path / f"saved_{name}")
        arrays = load_file(write.HERE / backend.name / checkpoint_of(what, name) / "agent.safetensors")
        assert_same_arrays({key: groups["agent"][key] for key in arrays}, arrays)
        wanted = expected(backend)[name]
        assert write.digest(groups["memory"]) == wanted["memory, loaded"], name
        assert write.digest(groups["streams"]) == wanted["streams, loaded"], name


@pytest.mark.parametrize("what", write.CONTINUED)
def test_trap_20_what_older_code_wrote_goes_on_as_it_did(backend: Backend, what: str, tmp_path: Path) -> None:
    directory = written(backend, what, tmp_path)
    arrays = load_file(write.HERE / backend.name / "resumed.safetensors")
    for name, agent, returns in write.go_on(backend.name, what, directory, write.MORE):
        groups = write.saved(agent, tmp_path / f"saved_{name}")
        for group in ("agent", "memory"):
            prefix = f"{name}/{group}/"
            stored = {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}
            assert_close(groups[group], stored, TOLERANCE[what])
        wanted = expected(backend)[name]
        assert write.digest(groups["streams"]) == wanted["streams, resumed"], name
        np.testing.assert_allclose(returns, wanted["returns"], rtol=TOLERANCE[what], err_msg=name)


def test_trap_20_each_rank_loads_its_own_part_bit_for_bit(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = written(backend, "ranks", tmp_path)
    place = threading.local()
    for module in ("ranks", "agent"):
        monkeypatch.setattr(backend.module(module), "ranks", lambda: getattr(place, "ranks", Ranks()))

    def load(ranks: Ranks) -> Any:
        place.ranks = ranks
        given = write.arguments(backend.name, "ranks", directory, write.TIMESTEPS, ranks.size)
        agent: Any = sacref.train(**given, seed=write.SEEDS[0], resume=True).agent
        arrays: Any = agent.arrays(), agent.learner.stream_states(), agent.memory.arrays()
        return arrays

    for rank, (arrays, streams, memory) in enumerate(together(write.RANKS, load)):
        at = write.HERE / backend.name / "ranks" / "checkpoints"
        part = at / (f"agent_{write.TIMESTEPS}" + f".rank_{rank}" * (rank > 0))
        assert_same_arrays(arrays, load_file(at / f"agent_{write.TIMESTEPS}" / "agent.safetensors"))
        assert_same_arrays(streams, load_file(part / "streams.safetensors"))
        stored = load_file(at / ("replay" + f".rank_{rank}" * (rank > 0)) / "segment_0" / "rows.safetensors")
        assert sorted(rows_of(memory)) == sorted(rows_of(stored)), "the log has one environment after the other"
