"""MuJoCo's warnings: the known one is silent, others are logged, and no file is written."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import warnings
warnings.simplefilter("error")
from sacref import envs
made = envs.make("HalfCheetah-v5", 1, seed=0)
{body}
"""

DIVERGE = """
import mujoco
simulation = made.envs[0].unwrapped
simulation.data.qpos[:] = float("nan")
mujoco.mj_step(simulation.model, simulation.data)
"""

OWN_HANDLER = """
import mujoco
own = print
mujoco.set_mju_user_warning(own)
envs.make("HalfCheetah-v5", 1)
assert mujoco.get_mju_user_warning() is own
"""


def run(body: str) -> tuple[str, str]:
    """Output of a fresh process: MuJoCo keeps one handler per process."""
    finished = subprocess.run([sys.executable, "-c", PROGRAM.format(body=body)], capture_output=True, text=True, env=os.environ, check=True)
    return finished.stdout, finished.stderr


def test_a_task_is_made_in_silence_and_leaves_no_log_file(tmp_path: Path) -> None:
    assert run("") == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_other_warnings_are_logged_and_leave_no_file(tmp_path: Path) -> None:
    output, errors = run(DIVERGE)
    assert output == ""
    assert errors.startswith("MuJoCo: Nan, Inf or huge value in QPOS")
    assert list(tmp_path.iterdir()) == []


def test_a_handler_of_the_programs_own_stays() -> None:
    output, _ = run(OWN_HANDLER)
    assert "settotalmass" in output
