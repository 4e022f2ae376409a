"""The list of contenders: each has its module, its requirements and its place in the report."""

import importlib.util
import inspect
import re
import subprocess
import sys

import pytest

from bench.core import machine
from bench.peers import CHUNK, CONTENDERS, OVERLAPPED, STRICT, Peer, chunked, environments
from bench.suites.throughput.section import PEERS


@pytest.mark.parametrize("peer", CONTENDERS.values(), ids=lambda peer: peer.name)
def test_a_contender_can_be_made_of_what_the_list_says(peer: Peer) -> None:
    module = importlib.import_module(f"bench.peers.{peer.module}")
    arguments = inspect.signature(module.make)
    arguments.bind("setting", **peer.options, **({"script": "path"} if peer.script else {}))
    assert peer.environment is None or peer.environment in environments.NAMES
    assert peer.own == (peer.environment is None) == peer.name.startswith("sacref ")


def test_strictness_follows_from_the_options() -> None:
    steps = {peer.name: peer.options.get("chunk", peer.options.get("steps", 1)) for peer in CONTENDERS.values()}
    assert {name: peer.strictness for name, peer in CONTENDERS.items()} == {
        name: OVERLAPPED if name == "sacref jax overlapped" else STRICT if count == 1 else chunked(count) for name, count in steps.items()
    }
    assert [peer.name for peer in CONTENDERS.values() if peer.options.get("overlap")] == ["sacref jax overlapped"]
    assert {name for name, count in steps.items() if count == CHUNK} == {"sacref torch chunked", "sacref jax chunked", "SBX scan"}
    assert chunked(64) == "chunked (up to 64 steps old)"


def test_a_peer_whose_memory_differs_says_so() -> None:
    assert CONTENDERS["skrl jax"].options["memory"] == 200_000
    assert "200,000 transitions in place of 1,000,000" in str(CONTENDERS["skrl jax"].note)


def test_the_ratios_of_the_report_are_to_contenders_of_the_list() -> None:
    assert set(PEERS.values()) <= set(CONTENDERS)


def test_what_a_foreign_interpreter_loads_needs_nothing_but_python() -> None:
    # The environments of peers lack what this one has: only gate and the contender's own module may import what Python lacks.
    for name in ("", ".core", ".core.machine", ".core.entry", ".peers", ".peers.setting", ".peers.worker"):
        found = importlib.util.find_spec(f"bench{name}")
        assert found is not None
        assert found.origin is not None
        with open(found.origin, encoding="utf-8") as file:
            imported = set(re.findall(r"^(?:from|import) (\w+)", file.read(), flags=re.MULTILINE))
        assert imported <= {"bench", *sys.stdlib_module_names}, name
    check = "import sys, bench.peers.worker; print(sorted({'msgspec', 'numpy', 'sacref'} & sys.modules.keys()))"
    loaded = subprocess.run([sys.executable, "-c", check], cwd=machine.ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
