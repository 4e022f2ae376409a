"""Throughput: contenders are timed in turn, compiling is told apart, one that cannot run is missing, and a stopped run goes on."""

import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from bench.core import machine, record
from bench.peers import CHUNK, CONTENDERS, Peer
from bench.peers.process import Description, MissingError, Process
from bench.suites.throughput import measure as throughput
from bench.suites.throughput.measure import Kept, Size
from bench.suites.throughput.samples import Contender, Round, ThroughputSamples

SIZE = Size(rounds=3, steps=64, random_steps=256, first_steps=128, warm_steps=64)
CONSOLE = Console(file=io.StringIO())
NAMES = ("sacref torch strict", "Stable-Baselines3")
PEERS = [CONTENDERS[name] for name in NAMES]


class Fake:
    """A contender that takes as long as it is told to: compiling before its first step and before the first that learns."""

    def __init__(
        self, name: str, calls: list[tuple[str, int]], compiling: tuple[float, float] = (0.0, 0.0), dies_after: int = 10**9
    ) -> None:
        self.name, self.calls, self.compiling, self.dies_after = name, calls, compiling, dies_after
        self.steps = 0
        self.closed = False

    def start(self) -> Description:
        return Description(env="Task-v0", execution=f"by {self.name}", settings={}, accelerator=None, libraries={"a": "1"}, threads=1)

    def advance(self, steps: int) -> Round:
        self.calls.append((self.name, steps))
        random = max(0, min(SIZE.random_steps - self.steps, steps))
        seconds = 0.001 * random + 0.01 * (steps - random)
        seconds += self.compiling[0] * (self.steps == 0) + self.compiling[1] * (self.steps < SIZE.random_steps <= self.steps + steps)
        self.steps += steps
        if self.steps > self.dies_after:
            raise MissingError("it broke")
        return Round(steps=steps, seconds=seconds, waited_seconds=1.0, waited_cpu_seconds=0.0)

    def close(self) -> None:
        self.closed = True


def measure(fakes: Mapping[str, Fake], partial: Path, peers: Sequence[Peer] = PEERS, size: Size = SIZE) -> dict[str, Contender]:
    """The contenders of a run, by name; a peer without a fake cannot be started."""

    def start(peer: Peer) -> Process:
        if peer.name not in fakes:
            raise MissingError("not installed")
        return cast(Process, fakes[peer.name])

    with throughput.processes(peers, start, size, CONSOLE) as (running, missing):
        kept = Kept(partial, "run", ["circumstances"])
        timed, stopped = throughput.rounds_of({name: warm.process for name, warm in running.items()}, size, kept, CONSOLE)
    missing = {**missing, **stopped}
    return {peer.name: throughput.contender(peer, running.get(peer.name), timed.get(peer.name), missing) for peer in peers}


def test_rounds_alternate_after_every_contender_is_warm(tmp_path: Path) -> None:
    calls: list[tuple[str, int]] = []
    fakes = {name: Fake(name, calls) for name in NAMES}
    measure(fakes, tmp_path)
    warm = [(name, steps) for name in NAMES for steps in (128, 64, 192, 64)]
    assert calls == [*warm, *[(name, 64) for _ in range(3) for name in NAMES]]
    assert all(fake.closed for fake in fakes.values())


def test_speed_and_compiling_are_told_apart(tmp_path: Path) -> None:
    found = measure({name: Fake(name, [], compiling=(2.0, 5.0)) for name in NAMES}, tmp_path)["Stable-Baselines3"]
    assert [timed.steps for timed in found.rounds] == [64, 64, 64]
    assert [timed.seconds for timed in found.rounds] == pytest.approx([0.64, 0.64, 0.64])
    assert found.compile_seconds == pytest.approx(7.0)
    assert (found.library, found.strictness, found.execution) == ("torch", "strict", "by Stable-Baselines3")
    assert (found.env, found.libraries) == ("Task-v0", {"a": "1"})


def test_no_compiling_is_never_negative(tmp_path: Path) -> None:
    compiling = measure({name: Fake(name, [], compiling=(-1.0, -1.0)) for name in NAMES}, tmp_path)["Stable-Baselines3"].compile_seconds
    assert compiling == 0.0


def test_a_contender_that_cannot_start_is_missing_with_the_reason_and_the_others_run(tmp_path: Path) -> None:
    found = measure({NAMES[0]: Fake(NAMES[0], [])}, tmp_path)
    assert [(one.name, one.missing, len(one.rounds)) for one in found.values()] == [(NAMES[0], None, 3), (NAMES[1], "not installed", 0)]


def test_a_contender_that_stops_half_way_is_missing_and_the_others_go_on(tmp_path: Path) -> None:
    calls: list[tuple[str, int]] = []
    fakes = {NAMES[0]: Fake(NAMES[0], calls, dies_after=256 + 128 + 64 + 64), NAMES[1]: Fake(NAMES[1], calls)}
    found = measure(fakes, tmp_path)
    assert (found[NAMES[0]].missing, found[NAMES[0]].rounds) == ("it broke", [])
    assert len(found[NAMES[1]].rounds) == 3
    assert [name for name, _ in calls[8:]] == [NAMES[0], NAMES[1], NAMES[0], NAMES[1], NAMES[1]]


def test_every_contender_is_ended_when_the_run_is_interrupted(tmp_path: Path) -> None:
    fakes = {name: Fake(name, []) for name in NAMES}

    def interrupted(steps: int) -> Round:
        raise KeyboardInterrupt

    fakes[NAMES[1]].advance = interrupted  # type: ignore[method-assign]  # Ctrl-C comes while it warms up.
    with pytest.raises(KeyboardInterrupt):
        measure(fakes, tmp_path)
    assert all(fake.closed for fake in fakes.values())


def test_a_stopped_run_goes_on_after_its_last_whole_round(tmp_path: Path) -> None:
    calls: list[tuple[str, int]] = []
    measure({name: Fake(name, []) for name in NAMES}, tmp_path, size=dataclasses.replace(SIZE, rounds=2))
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text() + '{"sacref torch strict": {"steps": 64, "sec')  # A kill cut this line short.
    found = measure({name: Fake(name, calls) for name in NAMES}, tmp_path)
    assert calls[8:] == [(name, 64) for name in NAMES]
    assert [len(one.rounds) for one in found.values()] == [3, 3]
    assert [sorted(json.loads(line)) for line in file.read_text().splitlines()] == [sorted(NAMES)] * 3


def test_other_circumstances_start_anew(tmp_path: Path) -> None:
    Kept(tmp_path, "run", ["a"]).add({"x": Round(steps=64, seconds=1.0, waited_seconds=None, waited_cpu_seconds=None)})
    assert Kept(tmp_path, "run", ["a"]).rounds == [{"x": Round(steps=64, seconds=1.0, waited_seconds=None, waited_cpu_seconds=None)}]
    assert Kept(tmp_path, "run", ["b"]).rounds == []
    assert Kept(tmp_path, "other", ["a"]).rounds == []


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """`main` without processes; what each contender was started with."""
    started: list[dict[str, Any]] = []

    def start(peer: Peer, setting: object, **how: Any) -> Fake:
        started.append({"name": peer.name, **how})
        if peer.name == "SBX strict":
            raise MissingError("not here")
        return Fake(peer.name, [])

    monkeypatch.setattr(throughput, "open_process", start)
    monkeypatch.setattr(throughput, "PARTIAL", tmp_path / "partial")
    monkeypatch.setattr(machine, "available_cores", lambda: [3, 5])
    monkeypatch.setattr(machine, "find_accelerator", lambda: None)
    monkeypatch.delenv("CLEANRL_SAC", raising=False)
    monkeypatch.delenv("LEANRL_SAC", raising=False)
    return started


def test_each_number_of_threads_has_its_record_and_its_cores(faked: list[dict[str, Any]], tmp_path: Path) -> None:
    assert throughput.main(only=("sacref jax chunked", "SBX strict", "SBX scan"), rounds=2, steps=128, results=tmp_path) == 0
    assert [(one["name"], one["cores"]) for one in faked] == [
        (name, cores) for cores in ([3], [3, 5]) for name in ("sacref jax chunked", "SBX strict", "SBX scan")
    ]
    found = [record.read(path, ThroughputSamples) for path in sorted(tmp_path.glob("2*/*.json"))]
    assert [(one.run, one.hardware.threads) for one in found] == [("HalfCheetah-v5-1core", 1), ("HalfCheetah-v5-2cores", 2)]
    assert isinstance(found[0].samples, ThroughputSamples)
    own, strict, scan = found[0].samples.contenders
    assert (own.strictness, strict.strictness, scan.strictness) == (
        "chunked (up to 64 steps old)",
        "strict",
        "chunked (up to 64 steps old)",
    )
    assert (strict.missing, strict.rounds, len(own.rounds), len(scan.rounds)) == ("not here", [], 2, 2)
    assert own.rounds[0].steps == 128
    assert not list((tmp_path / "partial").iterdir())


def test_the_status_is_1_where_none_of_sacrefs_own_could_run(
    faked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert throughput.main(only=("SBX strict",), threads=(1,), results=tmp_path) == 0

    def broken(peer: Peer, setting: object, **how: Any) -> Fake:
        raise MissingError("broken")

    monkeypatch.setattr(throughput, "open_process", broken)
    assert throughput.main(only=("sacref torch strict",), threads=(1,), results=tmp_path) == 1


def test_the_plan_alone_starts_nothing(faked: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert throughput.main(results=tmp_path, dry_run=True) == 0
    assert faked == []
    said = capsys.readouterr().out
    assert "7 round(s) of 512 steps" in said
    assert "LeanRL compiled" in said
    assert "2 thread(s): about" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threads": (3,)}, "--threads is 3, expected numbers from 1 to 2"),
        ({"rounds": 0}, "--rounds is 0"),
        ({"steps": CHUNK + 1}, "positive multiple of 64"),
        ({"steps": 0}, "positive multiple of 64"),
        ({"only": ("RLlib",)}, "--only names RLlib, expected some of: sacref torch strict"),
        ({"cleanrl": Path("nowhere.py")}, "CLEANRL_SAC: nowhere.py is no file"),
    ],
)
def test_settings_that_measure_nothing_are_refused(
    arguments: dict[str, Any], message: str, faked: list[dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=message):
        throughput.main(results=tmp_path, **arguments)
    assert faked == []


def test_a_script_is_taken_from_the_command_line_and_else_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, known = tmp_path / "given.py", tmp_path / "known.py"
    given.touch()
    known.touch()
    monkeypatch.setenv("CLEANRL_SAC", str(known))
    assert throughput.find_scripts({"CLEANRL_SAC": None, "OTHER_SAC": None}) == {"CLEANRL_SAC": known}
    assert throughput.find_scripts({"CLEANRL_SAC": given}) == {"CLEANRL_SAC": given}


def test_presets_are_made_of_whole_chunks() -> None:
    for size in throughput.PRESETS.values():
        assert all(steps % CHUNK == 0 for steps in (size.steps, size.random_steps, size.first_steps, size.warm_steps))
        assert size.random_steps > size.first_steps + CHUNK


def test_no_record_of_a_part_or_of_a_smoke_run_reaches_the_report() -> None:
    reported = machine.ROOT / "results" / "throughput"
    assert throughput.default_results("medium", ()) == reported
    assert throughput.default_results("smoke", ()) == machine.ROOT / "runs" / "smoke" / "throughput"
    assert throughput.default_results("medium", ("SBX scan",)) == machine.ROOT / "runs" / "part" / "throughput"


def test_the_smoke_preset_starts_no_contender_late(faked: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = dataclasses.replace(throughput.PRESETS["smoke"], start_within=-1.0)
    monkeypatch.setitem(throughput.PRESETS, "smoke", late)
    assert throughput.main(preset="smoke", threads=(1,), results=tmp_path) == 1
    assert faked == []
    (path,) = tmp_path.glob("2*/*.json")
    samples = record.read(path, ThroughputSamples).samples
    assert isinstance(samples, ThroughputSamples)
    assert {one.missing for one in samples.contenders} == {"not started within the -1 s of the preset smoke"}
