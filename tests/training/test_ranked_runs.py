"""Whole runs of several ranks, in real processes: what is written, how a run goes on after a rank's death, after Ctrl-C and with others."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sacref
from sacref.agent.checkpoints import REPLAY, rank_part
from sacref.cli import launch
from sacref.config.update_to_data import UpdateToData
from sacref.envs.vector import EnvError
from sacref.ranks import Ranks
from sacref.storage import checkpoint, replay_log
from sacref.training.checkpoints import entry_of
from sacref.training.run_directory import on_every_rank
from tests.ranked import TOO_LONG, free_port, together

ROOT = str(Path(sacref.__file__).parents[1])

SETTINGS = [
    *("--env", "Pendulum-v1", "--hidden", "8", "--batch-size", "8", "--random-timesteps", "6", "--learning-starts", "6", "--seed", "3"),
    *("--evaluation-episodes", "3", "--evaluation-interval", "200000", "--no-progress", "--device", "cpu"),
    *("--experiment.checkpoint-interval", "10", "--experiment.write-interval", "10", "--steps", "200000", "--num-envs", "2"),
]


def sacref_process(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SACREF_", "JAX_"))}
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "sacref", "train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "PYTHONPATH": ROOT},
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=TOO_LONG)
    finally:
        process.kill()
    return process.returncode, out, err


def finished(*arguments: str, launcher: tuple[str, ...] = ()) -> tuple[str, str]:
    """Standard output and error of a training that ends well."""
    status, out, err = ended(sacref_process(*arguments, launcher=launcher))
    assert status == 0, err
    return out, err


def torchrun(ranks: int) -> tuple[str, ...]:
    """Start so many ranks by PyTorch's launcher."""
    return ("-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--master-port", str(free_port()))


def newest(run: Path) -> int:
    """Timestep of the newest whole checkpoint; 0 for none."""
    return max((int(path.name.removeprefix("agent_")) for path in (run / "checkpoints").glob("agent_*") if "." not in path.name), default=0)


def wait_for_checkpoint(run: Path, process: subprocess.Popen[str], after: int = 0) -> None:
    deadline = time.monotonic() + TOO_LONG
    while newest(run) <= after:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def pid_of(rank: int, launcher: int) -> int:
    """The process of a rank, among the launcher's children."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            variables = (path / "environ").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        if parent == launcher and f"RANK={rank}".encode() in variables:
            return int(path.name)
    raise AssertionError(f"no process of rank {rank}")


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def config(run: Path) -> Any:
    return json.loads((run / "config.json").read_text())


@dataclass(frozen=True)
class Killed:
    """A run of two ranks, the second of which was killed."""

    backend: str
    run: Path
    err: str
    """What the launcher and rank 0 said."""
    seconds: float
    """From the death to the end of all."""


@pytest.fixture(scope="module", params=["torch", pytest.param("jax", marks=pytest.mark.full)])
def killed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Killed:
    if find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    run = tmp_path_factory.mktemp(request.param) / "run"
    execution = ["--execution", "plain"] if request.param == "torch" else []  # nothing to record at each start
    process = sacref_process("--backend", request.param, "--ranks", "2", "--run-dir", str(run), *SETTINGS, *execution)
    wait_for_checkpoint(run, process)
    began = time.monotonic()
    os.kill(pid_of(1, process.pid), signal.SIGKILL)
    status, _, err = ended(process)
    assert status == 128 + signal.SIGKILL
    return Killed(request.param, run, err, time.monotonic() - began)


def check_death(killed: Killed) -> None:
    """The run ended everywhere, and one message says why and what to do."""
    assert killed.seconds < 2 * launch.GRACE_SECONDS + 10
    assert killed.err.splitlines()[-1] == (
        "sacref: rank 1 was ended by SIGKILL, and all ranks have ended. To go on from the last checkpoint, if there is one: "
        f"sacref train --resume --run-dir {killed.run}"
    )


def memories(run: Path, timestep: int, ranks: int) -> list[Any]:
    """The arrays of each rank's memory, from the segments that its part of the checkpoint names."""
    found = []
    for rank in range(ranks):
        entry = entry_of(rank_part(run / "checkpoints" / f"agent_{timestep}", rank))
        assert entry is not None
        log = rank_part(run / "checkpoints" / REPLAY, rank)
        kinds = checkpoint.read(log / f"segment_{entry['segments'][0]['number']}").groups["rows"]
        like: Any = SimpleNamespace(slots=entry["slots"], num_envs=entry["envs"], rows=lambda index, kinds=kinds: take(kinds, index))
        found.append(replay_log.read(log, entry, like))
    return found


def take(arrays: dict[str, NDArray[Any]], index: NDArray[Any]) -> dict[str, NDArray[Any]]:
    return {name: array[index] for name, array in arrays.items()}


def test_environments_that_one_rank_refuses_all_refuse() -> None:
    def make(ranks: Ranks) -> int:
        if ranks.rank == 1:
            raise EnvError("rank 1 has no such task")
        return ranks.rank

    def refusal(ranks: Ranks) -> tuple[str, str]:
        with pytest.raises(ValueError, match="rank 1 has no such task") as refused:
            on_every_rank(ranks, lambda: make(ranks))
        return type(refused.value).__name__, str(refused.value)

    said = together(2, refusal)
    assert said == [("RunError", "rank 1 has no such task"), ("EnvError", "rank 1 has no such task")]


def test_a_killed_rank_ends_the_run_everywhere_and_the_run_goes_on(killed: Killed) -> None:
    check_death(killed)
    run, last = killed.run, newest(killed.run)
    before = memories(run, last, 2)
    if killed.backend == "torch":  # and Ctrl-C ends all at one timestep
        process = sacref_process("--resume", "--run-dir", str(run))
        wait_for_checkpoint(run, process, after=last + 10)  # the third, if the first run wrote but one
        process.send_signal(signal.SIGINT)
        status, out, err = ended(process)
        end = newest(run)
        said = UpdateToData(**json.loads((run / "config.json").read_text())["update_to_data"])  # when it starts
        assert (status, err) == (130, f"{said}\n")
        assert out.splitlines()[0].startswith(f"interrupted after {4 * end:,} steps")
        assert out.splitlines()[-1] == f"to go on: sacref train --resume --run-dir {run}"
    else:
        end = last + 16
        out, err = finished("--resume", "--run-dir", str(run), "--steps", str(4 * last + 61))
        assert f"finished after {4 * end:,} steps of Pendulum-v1 on {killed.backend}" in out
        evaluations = json.loads((run / "evaluation.json").read_text())
        assert [(entry["step"], len(entry["returns"])) for entry in evaluations] == [(4 * end, 3)]
        assert lines(run)[-1]["timestep"] == end
        assert (run / "curve.png").is_file()
    assert "were written by" not in err
    assert (config(run)["ranks"], config(run)["steps_offset"]) == (2, 0)
    after = memories(run, end, 2)
    for old, new in zip(before, after, strict=True):
        assert int(old["size"].sum()) <= 2 * last, "the step after an episode's end is no transition"
        kept = int(old["size"].min()) * 2
        np.testing.assert_array_equal(new["observations"][:kept], old["observations"][:kept])
        assert int(new["size"].sum()) > int(old["size"].sum())
    assert not np.array_equal(after[0]["observations"][:6], after[1]["observations"][:6]), "each rank has environments of its own"
    assert not np.array_equal(after[0]["actions"][:6], after[1]["actions"][:6]), "and random streams"
    assert {path.name for path in (run / "checkpoints").glob("replay*")} == {"replay", "replay.rank_1"}
    assert len(list((run / "checkpoints").glob("agent_*"))) == 2 * 3, "of each rank the last three parts are kept"
    assert not list((run / "checkpoints").glob(".agent_*"))
    assert [entry["environment_steps"] for entry in lines(run)] == [4 * entry["timestep"] for entry in lines(run)]
    assert len(list(run.glob("events.out.tfevents.*"))) <= 2, "at most one of each start: rank 0 writes"


# The numbers are changed by what the backends share; test_ranked_agents changes them on both.
@pytest.mark.parametrize("killed", ["torch"], indirect=True)
def test_a_run_goes_on_with_another_number_of_ranks(killed: Killed) -> None:
    run, first = killed.run, newest(killed.run)
    steps = 4 * first
    two = [memory["actions"] for memory in memories(run, first, 2)]

    out, err = finished("--resume", "--run-dir", str(run), "--steps", str(steps + 18), launcher=torchrun(3))
    assert "was written by 2 ranks, and 3 go on: ranks 2 to 2 begin with copies of the memories of the first ones" in err
    assert out.count(f"finished after {steps + 18:,} steps") == out.count("finished") == 1
    second = first + 3  # 3 ranks of 2 environments
    assert newest(run) == second
    assert (config(run)["ranks"], config(run)["steps_offset"]) == (3, steps - 6 * first)
    three = [memory["actions"] for memory in memories(run, second, 3)]
    rows = min(len(actions) for actions in two) - 2
    for rank, actions in enumerate(three):
        np.testing.assert_array_equal(actions[:rows], two[rank % 2][:rows])
    assert len({actions[-4:].tobytes() for actions in three}) == 3, "from here on each goes its own way"

    _, err = finished("--resume", "--run-dir", str(run), "--ranks", "1", "--steps", str(steps + 22))
    assert "was written by 3 ranks, and 1 go on: the memories of ranks 1 to 2 are left out" in err
    assert newest(run) == second + 2
    np.testing.assert_array_equal(memories(run, second + 2, 1)[0]["actions"][:rows], three[0][:rows])
    assert lines(run)[-1]["environment_steps"] == steps + 22
    assert [entry["step"] for entry in json.loads((run / "evaluation.json").read_text())] == [steps + 18, steps + 22]
    assert config(run)["ranks"] == 1


@pytest.mark.full
@pytest.mark.parametrize("killed", ["torch"], indirect=True)
def test_the_checkpoint_of_one_rank_is_every_ranks(killed: Killed) -> None:
    run, first = killed.run, newest(killed.run)
    steps = config(run)["steps_offset"] + 2 * config(run)["ranks"] * first  # of 2 environments
    finished("--resume", "--run-dir", str(run), "--ranks", "1", "--steps", str(steps + 4))
    one = memories(run, first + 2, 1)[0]["actions"]

    out, err = finished("--resume", "--run-dir", str(run), "--steps", str(steps + 8), launcher=torchrun(2))
    assert "was written by 1 ranks, and 2 go on: ranks 1 to 1 begin with copies" in err
    assert out.count(f"finished after {steps + 8:,} steps") == out.count("finished") == 1
    assert (config(run)["ranks"], newest(run)) == (2, first + 3)
    both = [memory["actions"] for memory in memories(run, first + 3, 2)]
    for actions in both:
        np.testing.assert_array_equal(actions[: len(one) - 2], one[: len(one) - 2])
