"""The process of one contender: `python -m bench.peers.worker JOB`, run by the interpreter of the contender's environment.

JOB is the JSON that `bench.peers.process` makes. The process keeps to its cores, trains, and stops at `bench.peers.gate`. Prints of
the contender go to stderr; stdout holds the answers alone.
"""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.core import entry, machine
from bench.peers.setting import Setting, Trainer

if TYPE_CHECKING:
    from bench.peers.gate import Gate

LIBRARIES = (*machine.LIBRARIES, "sbx-rl", "skrl", "tensordict", "torchrl")


def main(arguments: Sequence[str]) -> int:
    """Train until the requests end; 1 after an error, which is the last answer."""
    return run(entry.read("python -m bench.peers.worker JOB, as JSON", "bench throughput", arguments, job), counted)


def run(todo: Mapping[str, Any], make: "Callable[[Gate, Mapping[str, Any]], tuple[str, Trainer]]") -> int:
    """Train until the requests end.

    Args:
        todo: what `job` reads.
        make: makes the contender, and lets the steps of its environment pass the gate; returns the environment's id and the contender.

    Returns:
        1 after an error, which is the last answer.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    machine.keep_to_cores(todo["cores"])
    try:
        # Imported now that the cores are chosen: NumPy, torch and JAX size their thread pools at import.
        from bench.peers import gate

        door = gate.Gate(sys.stdin.readline, answers, gate.synchronise)
        env, trainer = make(door, todo)
        door.describe = lambda: description(env, todo["library"], trainer)
        trainer.train()
        raise RuntimeError("training came to an end, and is expected to go on until the requests end")
    except Exception as error:
        traceback.print_exc()
        answers.write(json.dumps({"error": f"{type(error).__name__}: {error}".partition("\n")[0]}) + "\n")
        answers.flush()
        return 1


def counted(door: "Gate", todo: Mapping[str, Any]) -> tuple[str, Trainer]:
    """Make the contender; each step of a single environment passes the gate."""
    from bench.peers import gate

    env = gate.count_steps(todo["setting"]["env"], door)
    return env, load(todo, env)


def load(todo: Mapping[str, Any], env: str) -> Trainer:
    """Make the contender of a job, in the environment of this id."""
    trainer: Trainer = importlib.import_module(f"bench.peers.{todo['module']}").make(
        Setting(**{**todo["setting"], "env": env}), **todo["options"]
    )
    return trainer


def job(arguments: Sequence[str]) -> dict[str, Any]:
    """Read the job that `bench.peers.process` makes."""
    (text,) = arguments
    todo = json.loads(text)
    return {name: todo[name] for name in ("cores", "module", "library", "options", "setting")}


def description(env: str, library: str, trainer: Trainer) -> Mapping[str, Any]:
    """Describe the contender for its record, from inside its process."""
    return {
        "env": env,
        "execution": trainer.execution,
        "settings": trainer.settings,
        "accelerator": machine.accelerator(library),
        "libraries": machine.libraries(LIBRARIES),
        "threads": len(machine.available_cores()),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
