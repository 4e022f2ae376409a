"""Scripts that are a main loop: CleanRL's and LeanRL's, run as they are, with command-line flags of their own."""

import hashlib
import os
import runpy
import sys
from pathlib import Path

from bench.peers.setting import ENDLESS, Setting, Trainer


def make(setting: Setting, *, script: str, compiled: bool) -> Trainer:
    """Run the script; LeanRL's is compiled, and captured in CUDA graphs where there is a GPU.

    Args:
        setting: the task.
        script: path of the script. Its folder, and the one above (its repository's), are put on `sys.path`.
        compiled: pass the flags with which LeanRL's script compiles.
    """
    path = Path(script).resolve()
    flags = {
        "--env-id": setting.env,
        "--seed": setting.seed,
        "--total-timesteps": ENDLESS,
        "--buffer-size": setting.memory_capacity,
        "--batch-size": setting.batch_size,
        "--learning-starts": setting.random_steps,
        "--policy-lr": setting.learning_rate,
        "--q-lr": setting.learning_rate,
    }
    arguments = [str(part) for flag in flags.items() for part in flag]
    execution = "torch, eager"
    if compiled:
        import torch

        graphs = torch.cuda.is_available()
        arguments += ["--compile", *(["--cudagraphs"] if graphs else [])]
        execution = "torch.compile" + (" and CUDA graphs" if graphs else "")
        os.environ["WANDB_MODE"] = "disabled"

    def train() -> None:
        sys.path[:0] = [str(path.parent), str(path.parent.parent)]
        sys.argv = [str(path), *arguments]
        runpy.run_path(str(path), run_name="__main__")

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Trainer(train=train, execution=execution, settings={"script": path.name, "script_sha256": digest})
