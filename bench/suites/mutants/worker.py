"""The process that runs the tests of mutants; it reads jobs as JSON from its standard input, and prints a line of JSON for each outcome.

torch and JAX take seconds to import: this process imports them once, and forks a child for each mutant. The child replaces the source of
the file as Python reads it, so that the file itself does not change, and runs pytest.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import types
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any, Literal

import pytest

from bench.core import entry

WALL_PER_CPU_SECOND = 20.0
"""Wall-clock limit of a child, as a multiple of its processor time: it may sleep, or wait for other work on the machine."""
EXAMPLES = 25
"""Examples of each hypothesis test that sets no number itself."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A mutant and its tests."""

    key: str
    path: str
    """Absolute path of the mutated file."""
    source: str | None
    """Mutated source; None for the unchanged file."""
    tests: list[str]
    """Absolute paths of files of tests, which run one after the other until one fails."""
    without: list[str]
    """Names of tests, or of parameters of tests, that are left out."""
    seconds: float | None
    """Limit of the processor time of one file of tests; None for no limit."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a job."""

    key: str
    outcome: Literal["killed", "survived", "timed out"]
    by: str | None
    """The first test that failed, or another cause of their end."""
    seconds: float
    """Processor time of all tests together."""
    longest: float
    """Processor time of the slowest file of tests."""
    modules: list[str]
    """Imports of the tests, for the unchanged file."""


class Plugin:
    """Pytest plugin for the run of a mutant."""

    def __init__(self, without: Sequence[str], first: Sequence[str]) -> None:
        self.without = set(without)
        self.order = {name: i for i, name in enumerate(first)}
        self.failed: str | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self) -> None:
        """Set few examples, the same for every mutant."""
        import hypothesis

        settings = hypothesis.settings
        settings.register_profile("mutants", deadline=None, derandomize=True, database=None, max_examples=EXAMPLES, print_blob=False)
        settings.load_profile("mutants")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out the tests of `without`, and run those first that have seen other mutants of the file."""

        def named(item: pytest.Item) -> set[str]:
            callspec = getattr(item, "callspec", None)
            given = [value for value in callspec.params.values() if isinstance(value, str)] if callspec else []
            return {item.name.partition("[")[0], *given}

        left = [item for item in items if not named(item) & self.without]
        items[:] = sorted(left, key=lambda item: self.order.get(item.nodeid, len(self.order)))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep the name of a file that could not be imported."""
        if report.failed:
            self.failed = self.failed or report.nodeid

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the name of the first test that failed."""
        if report.failed:
            self.failed = self.failed or report.nodeid


def put_in_place(path: str, source: str) -> None:
    """Make this process import `source` in place of the file `path`, without bytecode."""
    read, stats = SourceFileLoader.get_data, SourceFileLoader.path_stats

    def get_data(self: SourceFileLoader, asked: str) -> bytes:
        return source.encode() if asked == path else read(self, asked)

    def path_stats(self: SourceFileLoader, asked: str) -> Any:
        if asked == path:
            raise OSError("a mutant has no bytecode")
        return stats(self, asked)

    for function in (get_data, path_stats):
        setattr(SourceFileLoader, function.__name__, function)


def serve(jobs: Sequence[Job], at_once: int, seen: Mapping[str, Sequence[str]]) -> Iterator[Outcome]:
    """Yield the outcomes of jobs, in the order in which they end.

    Args:
        jobs: in order.
        at_once: number of children.
        seen: path of a mutated file -> tests that have failed for its mutants, which run first.
    """
    killers = {path: Counter(names) for path, names in seen.items()}
    waiting, running = list(reversed(jobs)), dict[int, _Running]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                started = _Running(waiting.pop(), killers)
                running[started.output] = started
            limit = min(each.until for each in running.values()) - time.monotonic()
            ready, _, _ = select.select(list(running), [], [], max(0.0, min(limit, 60.0)))
            for output in ready:
                if not running[output].read():
                    ended = running.pop(output)
                    if ended.next() is None:
                        outcome = ended.outcome()
                        if outcome.by is not None:
                            killers.setdefault(ended.job.path, Counter())[outcome.by] += 1
                        yield outcome
                    else:
                        running[ended.output] = ended
            for one in running.values():
                if time.monotonic() > one.until:
                    one.kill()
    finally:
        for one in running.values():
            one.kill()
            one.next()


class _Running:
    """A job, and the child that runs the next of its files of tests."""

    def __init__(self, job: Job, killers: Mapping[str, Counter[str]]) -> None:
        self.job, self.killers = job, killers
        self.seconds, self.longest = 0.0, 0.0
        self.failed: str | None = None
        self.late = False
        self.modules: list[str] = []
        self.tests = list(job.tests)
        self._start()

    def _start(self) -> None:
        self.until = time.monotonic() + (float("inf") if self.job.seconds is None else WALL_PER_CPU_SECOND * self.job.seconds)
        self.said = b""
        self.folder = tempfile.mkdtemp(prefix="mutant-")
        self.output, theirs = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.close(self.output)
                first = [name for name, _ in self.killers.get(self.job.path, Counter()).most_common()]
                _child(self.job, self.tests[0], first, Path(self.folder), theirs)
                status = 0
            finally:
                os._exit(status)
        os.close(theirs)

    def read(self) -> bool:
        """Read the child's output; return False at its end."""
        said = os.read(self.output, 2**16)
        self.said += said
        return bool(said)

    def kill(self) -> None:
        """End the child and its children."""
        self.late, self.until = True, float("inf")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def next(self) -> int | None:
        """Run the next file of tests, if there is one and none has failed; return the id of its child."""
        os.close(self.output)
        _, status, used = os.wait4(self.pid, 0)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)
        took = used.ru_utime + used.ru_stime
        self.seconds, self.longest = self.seconds + took, max(self.longest, took)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
            self.late = True
        if self.late:
            self.failed = "time limit"
        elif status or not self.said:
            self.failed = f"exit status {os.waitstatus_to_exitcode(status)}"
        else:
            said = json.loads(self.said)
            self.failed, self.modules = said["failed"], [*self.modules, *said["modules"]]
        if self.failed is not None or len(self.tests) == 1:
            return None
        self.tests = self.tests[1:]
        self._start()
        return self.pid

    def outcome(self) -> Outcome:
        verdict: Literal["killed", "survived", "timed out"] = "survived" if self.failed is None else "timed out" if self.late else "killed"
        return Outcome(
            key=self.job.key,
            outcome=verdict,
            by=self.failed,
            seconds=round(self.seconds, 2),
            longest=round(self.longest, 2),
            modules=sorted(set(self.modules)),
        )


def _child(job: Job, tests: str, first: Sequence[str], folder: Path, output: int) -> None:
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sink = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    if job.seconds is not None:
        most = int(job.seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))
    if job.source is not None:
        put_in_place(job.path, job.source)
    plugin = Plugin(job.without, first)
    # -m "": all tests, also those that `make test` leaves out.
    own = [
        "-x",
        "-q",
        "-m",
        "",
        "--tb=short" if job.source is None else "--tb=no",
        "-p",
        "no:cacheprovider",
        "--basetemp",
        str(folder / "tmp"),
    ]
    status = int(pytest.main([*own, tests], plugins=[plugin]))
    failed = None if status == 0 else plugin.failed or f"pytest's exit status {status}"
    if failed is not None and job.source is None:
        failed += "\n" + (folder / "output").read_text(encoding="utf-8")[-2000:]
    loaded = [] if job.source is not None else list(_elsewhere(dict(sys.modules)))
    os.write(output, json.dumps({"failed": failed, "modules": loaded}).encode())


def _elsewhere(modules: dict[str, types.ModuleType]) -> Iterator[str]:
    """Yield the names of modules whose files lie outside the current folder, so that no mutant changes them."""
    here = str(Path.cwd()) + os.sep
    for name, module in modules.items():
        file = getattr(module, "__file__", None)
        spec = getattr(module, "__spec__", None)
        if file is not None and spec is not None and spec.name == name and not file.startswith(here):
            yield name


def preload(names: Sequence[str]) -> None:
    """Import those of `names` that can be imported, once for all children."""
    with tempfile.TemporaryDirectory() as empty, open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        # pytest rewrites the assertions of its plugins, if it is the one that imports them.
        pytest.main(["-p", "no:cacheprovider", "--collect-only", "-q", "-c", os.devnull, "--rootdir", empty, empty])
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


def main() -> int:
    """Read `{"at_once", "modules", "seen", "jobs"}`, and print a line for each job."""
    takes = "python -m bench.suites.mutants.worker, with jobs as JSON on its standard input"
    jobs, asked = entry.read(takes, "bench mutants", sys.argv[1:], _asked)
    # So that its children end with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    preload(asked["modules"])
    with contextlib.suppress(KeyboardInterrupt):
        for outcome in serve(jobs, asked["at_once"], asked["seen"]):
            print(json.dumps(outcome.__dict__), flush=True)
        return 0
    return 130


def _asked(arguments: Sequence[str]) -> tuple[list[Job], dict[str, Any]]:
    """Read the jobs and the other fields from the standard input."""
    if arguments:
        raise ValueError("it takes no arguments")
    if sys.stdin.isatty():
        raise ValueError("its standard input is a terminal")
    asked = json.load(sys.stdin)
    return [Job(**job) for job in asked["jobs"]], {name: asked[name] for name in ("at_once", "modules", "seen")}


if __name__ == "__main__":
    sys.exit(main())
