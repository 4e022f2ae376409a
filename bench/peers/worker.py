"""The process of one contender: `python -m bench.peers.worker JOB`, run by the interpreter of the contender's environment.

JOB is the JSON that `bench.peers.process` makes. The process keeps to its cores, trains, and stops at `bench.peers.gate`. Prints of
the contender go to stderr; stdout holds the answers alone.
"""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from bench.core import entry, machine
from bench.peers.setting import Setting, Trainer

LIBRARIES = (*machine.LIBRARIES, "sbx-rl", "skrl", "tensordict", "torchrl")


def main(arguments: Sequence[str]) -> int:
    """Train until the requests end; 1 after an error, which is the last answer."""
    todo = entry.read("python -m bench.peers.worker JOB, as JSON", "bench throughput", arguments, _job)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    machine.keep_to_cores(todo["cores"])
    try:
        # Imported now that the cores are chosen: NumPy, torch and JAX size their thread pools at import.
        from bench.peers import gate

        door = gate.Gate(sys.stdin.readline, answers, gate.synchronise)
        env = gate.count_steps(todo["setting"]["env"], door)
        setting = Setting(**{**todo["setting"], "env": env})
        trainer: Trainer = importlib.import_module(f"bench.peers.{todo['module']}").make(setting, **todo["options"])
        door.describe = lambda: description(env, todo["library"], trainer)
        trainer.train()
        raise RuntimeError("training came to an end, and is expected to go on until the requests end")
    except Exception as error:
        traceback.print_exc()
        answers.write(json.dumps({"error": f"{type(error).__name__}: {error}".partition("\n")[0]}) + "\n")
        answers.flush()
        return 1


def _job(arguments: Sequence[str]) -> dict[str, Any]:
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
