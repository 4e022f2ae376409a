"""The host suite: parts of the loop as its calls take them, steps counted by vector environments, launches as the profilers see them."""

import io
import json
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.core import record
from bench.core.page import Section
from bench.core.record import Hardware
from bench.core.samples import Timing
from bench.peers import CONTENDERS
from bench.peers.gate import Gate
from bench.peers.process import Description, MissingError
from bench.suites.host import counts, hooks, section
from bench.suites.host import measure as host
from bench.suites.host.measure import Contender, Sizes
from bench.suites.host.samples import Counts, HostCell, HostSamples, OverheadCell, PartTime, Round
from bench.suites.host.worker import COUNT, Entrance, PartClock
from sacref.training.callbacks import RunView

SIZES = Sizes(rounds=3, timesteps=10, warm=5, counted=4, stretches=2)


class Agent:
    """An agent whose calls take known times, one of them within another."""

    def __init__(self, clock: Any) -> None:
        self.clock = clock

    def act(self) -> None:
        self.clock.work(0.1)
        self.to_numpy()

    def to_numpy(self) -> None:
        self.clock.work(0.2)


def test_a_call_within_a_call_belongs_to_the_outer_one(clock: Any) -> None:
    agent: Any = Agent(clock)
    parts = PartClock()
    for name in ("act", "to_numpy"):
        setattr(agent, name, parts.timed(name, getattr(agent, name)))
    agent.act()
    end = parts.start()
    agent.act()
    agent.to_numpy()
    found = end()["parts"]
    assert {name: part["seconds"] for name, part in found.items()} == pytest.approx({"act": 0.3, "to_numpy": 0.2})


def test_threads_have_parts_of_their_own() -> None:
    parts = PartClock()
    meet = threading.Barrier(2)
    call = parts.timed("act", lambda: meet.wait(10))
    end = parts.start()
    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(end()["parts"]) == {"act"}


class Envs:
    num_envs = 3

    def step(self) -> int:
        return 1


class Outer(Envs):
    num_envs = 6

    def step(self) -> int:
        return sum(Envs.step(self) for _ in range(2))


def test_a_class_of_environments_counts_the_steps_of_its_objects_and_none_within_another_s(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = io.StringIO("advance 6\nadvance 12 count\n")
    answers = io.StringIO()
    gate = Gate(requests.readline, answers, lambda: None)
    words: list[str] = []

    def begin(said: str) -> Any:
        words.append(said)
        return lambda: {"launches": len(words)}

    gate.begin = begin
    entrance = Entrance(gate)
    for owner in (Envs, Outer):
        monkeypatch.setattr(owner, "step", entrance.passing(owner, owner.step))
    alone, both = Envs(), Outer()
    for envs in (alone, alone, both, both):
        envs.step()
    with pytest.raises(SystemExit):
        alone.step()
    found = [json.loads(line) for line in answers.getvalue().splitlines()][1:]
    assert [(answer["steps"], answer["launches"]) for answer in found] == [(6, 1), (12, 2)]
    assert words == ["", COUNT]


class Fake:
    """A contender's process that answers as it is told."""

    log: list[tuple[str, str]]

    def __init__(self, contender: Contender, stops: bool) -> None:
        self.name, self.stops = contender.peer.name, stops

    def start(self) -> Description:
        return Description(env="E", execution="by hand", settings={}, accelerator=None, libraries={}, threads=1)

    def ask(self, request: str) -> dict[str, Any]:
        self.log.append((self.name, request))
        if self.stops and len([name for name, _ in self.log if name == self.name]) > 2:
            raise MissingError("it ended")
        steps = int(request.split()[1])
        if request.endswith(COUNT):
            return {"steps": steps, "seconds": 1.0, "unit": "calls", "uploads": steps, "launches": 2 * steps, "downloads": None}
        parts = {"environment": {"seconds": 0.25, "processor_seconds": 0.2}}
        return {"steps": steps, "seconds": 1.0, "waited_seconds": 0.0, "processor_seconds": 0.9, "parts": parts}

    def close(self) -> None:
        self.log.append((self.name, "close"))


def test_contenders_take_turns_and_one_that_stops_is_missing() -> None:
    which = [host.own("torch", "auto", 1), host.own("jax", "auto", 1), Contender(peer=CONTENDERS["SBX strict"]), host.population("jax")]
    log: list[tuple[str, str]] = []

    def start(contender: Contender, seed: int) -> Any:
        if contender.peer.name == "SBX strict":
            raise MissingError("sbx not installed")
        made = Fake(contender, stops=contender.peer.name == "sacref jax auto")
        made.log = log
        return made

    found = {cell.name: cell for cell in host.measure(which, SIZES, 0, start).cells}
    assert [name for name, said in log if said == "advance 10"] == ["sacref torch auto", "sacref jax auto"] * 2 + ["sacref torch auto"]
    assert [said for name, said in log if name == "sacref jax population"] == [
        "advance 2050",
        *["advance 100"] * 3,
        "advance 40 count",
        "close",
    ]
    assert [said for name, said in log if name == "sacref torch auto"] == [
        "advance 205",
        *["advance 10"] * 3,
        "advance 4 count",
        "close",
    ]
    assert [len(cell.rounds) for cell in found.values()] == [3, 0, 0, 3]
    assert (found["sacref jax auto"].missing, found["SBX strict"].missing) == ("it ended", "sbx not installed")
    assert found["sacref torch auto"].counts == Counts(timesteps=4, unit="calls", uploads=1.0, launches=2.0, downloads=None)


def test_jax_s_arguments_and_calls_are_counted() -> None:
    jax = pytest.importorskip("jax")
    double = jax.jit(lambda x, y: x + 2 * y)
    ones, there = np.ones(3, np.float32), jax.numpy.ones(3)
    for _ in range(2):
        double(ones, there)
        double(ones, ones)
    end = counts.start("jax")
    for _ in range(5):
        double(ones, there)
        double(ones, ones)
        double(there, there)
    found = end()
    assert (found["unit"], found["uploads"], found["launches"]) == ("compiled calls", 15, 15)


def test_torch_s_operations_are_counted_and_not_those_within() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("kernels are counted there")
    x = torch.ones(4, 4)
    end = counts.start("torch")
    for _ in range(5):
        torch.nn.functional.linear(x, x)
        x.relu()
    assert end() == {"unit": "operations", "uploads": None, "launches": 10, "downloads": None}


def test_spans_within_others_are_not_counted() -> None:
    assert counts.outermost([(0.0, 3.0), (1.0, 2.0), (3.0, 4.0), (3.0, 5.0), (6.0, 7.0)]) == 3


def cell(name: str, host_us: float, **changes: Any) -> HostCell:
    """A contender whose environment takes 100 microseconds a timestep, and the rest `host_us`, half of it its learning."""

    def timed(number: int) -> Round:
        seconds = 1e-6 * (host_us + number)
        learn = PartTime(seconds=seconds / 2, processor_seconds=seconds / 2)
        parts: dict[Any, PartTime] = {"environment": PartTime(seconds=1e-4, processor_seconds=1e-4), "learn": learn}
        return Round(timesteps=1, seconds=1e-4 + seconds, processor_seconds=1e-4 + 2 * seconds, parts=parts)

    about: dict[str, Any] = {
        "library": "jax",
        "members": 1,
        "num_envs": 1,
        "execution": "scan",
        "accelerator": None,
        "libraries": {},
        "rounds": [timed(number) for number in (-10, 0, 10)],
        "counts": Counts(timesteps=4, unit="compiled calls", uploads=1.0, launches=3.25, downloads=None),
        "missing": None,
    }
    return HostCell(name=name, **about | changes)


def make_record(samples: HostSamples, folder: Path) -> Section:
    found = record.make(
        samples,
        run="host-cpu-1core",
        source=(None, True),
        configuration={"preset": "cpu"},
        hardware=Hardware(cpu_model="A CPU", cores=4, threads=1, memory_bytes=2**30, accelerator=None),
        libraries={},
        seed=0,
    )
    record.write_new(folder / "host", found)
    return section.section(folder)


def test_the_report_says_how_much_the_host_does_beside_the_environment(tmp_path: Path) -> None:
    none: dict[str, Any] = {"rounds": [], "counts": None, "execution": None}
    cells = [
        cell("sacref jax auto", 300.0),
        cell("SBX strict", 0.0, missing="sbx not installed", **none),
        cell("sacref jax auto", 400.0, num_envs=10),
        cell("sacref jax population", 600.0, members=10, counts=None),
    ]
    samples = HostSamples(cells=cells)
    made = make_record(samples, tmp_path)
    page = "\n".join(made.paragraphs)
    assert (
        "| sacref jax auto | scan |  |  |  |  | 150 | 150 | 300 (290 to 310) | 100 | 0.00 | 1.50 | 3.00 | 1, 3.25, - | compiled calls |"
        in page
    )
    assert "| SBX strict | missing: sbx not installed |" in page
    assert "| jax | 1,200 | 800 | 1.50 |" in page
    assert [finding.found for finding in made.findings] == ["sacref jax auto 3.0 times"]
    (picture,) = made.pictures.values()
    assert picture.draw().get_axes()
    assert dict(samples.figures())["sacref jax auto, 1 environments"].values == pytest.approx([290.0, 300.0, 310.0])


def test_the_report_says_what_callbacks_and_loggers_cost(tmp_path: Path) -> None:
    stretches = [Timing(count=100, seconds=1e-4 * each) for each in (202.0, 440.0, 101.0)]
    calls = [Timing(count=101, seconds=1e-4 * each) for each in (2.0, 40.0, 1.0)]
    measured = OverheadCell(backend="jax", env="E-v0", stretches=stretches, calls=calls, missing=None)
    absent = OverheadCell(backend="torch", env="E-v0", stretches=[], calls=[], missing="no torch")
    samples = HostSamples(cells=[], overheads=[measured, absent])
    made = make_record(samples, tmp_path)
    page = "\n".join(made.paragraphs)
    assert "| jax | E-v0 | 202 | 2.0 | +1.00% (1.00% to 10.00%) |" in page
    assert "| torch | E-v0 | missing: no torch |" in page
    assert [finding.found for finding in made.findings] == ["+1.00% on jax (E-v0)"]
    assert dict(samples.figures())["callbacks and loggers, jax, E-v0"].values == pytest.approx([2.0, 40.0, 1.0])


def test_the_calls_of_callbacks_and_loggers_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    called: list[int] = []

    def noted(callback: hooks.NoCallback, run: RunView) -> None:
        called.append(run.timestep)
        time.sleep(2e-4)

    monkeypatch.setattr(hooks.NoCallback, "on_timestep", noted)
    monkeypatch.setattr(hooks.NoLogger, "write", lambda self, step, scalars: time.sleep(5e-3))
    settings = {
        "hidden": (4,),
        "cfg": {
            "batch_size": 4,
            "random_timesteps": 4,
            "learning_starts": 4,
            "execution": "plain",
            "experiment": {"write_interval": 5, "checkpoint_interval": 0},
        },
    }
    found = hooks.measure("torch", None, settings=settings, warm=6, timesteps=5, stretches=3)
    assert called == [timestep for timestep in range(1, 22) for _ in range(hooks.NUMBER)]
    assert [(each.count, calls.count) for each, calls in zip(found.stretches, found.calls, strict=True)] == [(5, 6)] * 3
    asleep = hooks.NUMBER * (5 * 2e-4 + 5e-3)
    assert all(asleep <= calls.seconds < each.seconds for each, calls in zip(found.stretches, found.calls, strict=True))


@pytest.mark.full
@pytest.mark.parametrize("name", ["torch auto", "jax plain", "torch population"])
def test_the_parts_of_a_real_loop_lie_within_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backend: Any
    backend, _, execution = name.partition(" ")
    pytest.importorskip(backend)
    pytest.importorskip("mujoco")
    which: Any = host.population(backend) if execution == "population" else host.own(backend, execution, 2)
    (found,) = host.measure([which], Sizes(rounds=2, timesteps=20, warm=10, counted=5, stretches=2), 0).cells
    assert found.missing is None and found.libraries["python"]
    for timed in found.rounds:
        assert set(timed.parts) == (
            {"act", "environment", "record", "learn"} | (set() if execution == "population" else {"pre", "to_numpy"})
        )
        assert 0 < sum(part.processor_seconds for part in timed.parts.values()) <= timed.processor_seconds
        assert sum(part.seconds for part in timed.parts.values()) > 0 and statistics.mean(section.host_microseconds(found)) > 0
    assert found.counts is not None and found.counts.launches > 0
