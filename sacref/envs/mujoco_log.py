"""MuJoCo's own warnings go to Python's `logging`, not into a file MUJOCO_LOG.TXT in the working folder.

MuJoCo writes its warnings from C, past `sys.stderr` and past the `warnings` module, and appends them to that file unless a
handler of the program's own is installed.
"""

import contextlib
import importlib
import logging
import sys

# Gymnasium's HalfCheetah asks MuJoCo >= 4 for it; nothing about the task's physics follows from the warning.
KNOWN_AND_HARMLESS = ("compiler attribute 'settotalmass' is deprecated",)

_logger = logging.getLogger("sacref.mujoco")


def redirect_mujoco_warnings(*, import_mujoco: bool = False) -> None:
    """Log MuJoCo's warnings of this process under "sacref.mujoco"; leave out those known to be harmless.

    Args:
        import_mujoco: import MuJoCo to do so, where it is installed. Otherwise nothing happens unless it is loaded already.

    A handler that the program has installed itself stays.
    """
    if import_mujoco:
        with contextlib.suppress(ImportError):
            importlib.import_module("mujoco")
    mujoco = sys.modules.get("mujoco")
    if mujoco is not None and mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_log)


def _log(message: str) -> None:
    # Nothing is raised here: MuJoCo's C code is the caller.
    if not message.startswith(KNOWN_AND_HARMLESS):
        _logger.warning("MuJoCo: %s", message)
