"""The command line: `sacref train`, `eval`, `video`, `export`, `plot`, `report`, `parity`, `examine`, `presets` and `doctor`."""

import os
import sys
import traceback
from collections.abc import Sequence

import sacref
from sacref.cli import commands, launch
from sacref.cli.flags import TRACEBACK, Train, parse
from sacref.ranks import LostRankError, launched, says_a_rank_is_lost


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    Args:
        arguments: those of the command line unless given.

    Returns:
        0 if all went well; 2 if what was asked cannot be done, with one message on standard error; 3 if another rank was lost; 130 after
        Ctrl-C. A rank that fails ends its process.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if "" not in sys.path:
        sys.path.append("")  # module:name is looked for beside what is installed, and then in the working directory
    if arguments == ["--version"]:
        print(f"sacref {sacref.__version__}")
        return 0
    try:
        return _run(arguments)
    except Exception:
        if _is_alone():
            raise
        traceback.print_exc()
        return _failed(1)


def _is_alone() -> bool:
    """Return whether no other rank may wait for this process."""
    return os.environ.get("WORLD_SIZE", "1") in ("", "1")


def _failed(status: int) -> int:
    """Return the exit status after an error. A rank ends at once: an orderly exit would wait for the others, which wait for this one."""
    if not _is_alone():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _run(arguments: Sequence[str]) -> int:
    try:
        command = parse(arguments)
        if isinstance(command, Train):
            place = launched()
            if place is None and command.ranks > 1:
                return launch.run(arguments, command.ranks, run_dir=str(command.run_dir or "RUN_DIR"))
            if place is not None and command.ranks != place.size:
                raise ValueError(
                    f"--ranks is {command.ranks}, and {place.size} processes were started together (WORLD_SIZE): leave --ranks out"
                )
        return commands.run(command)
    except LostRankError as error:
        if os.environ.get(launch.STARTED_HERE) != "1":  # else the launcher says which rank was lost
            print(f"sacref: {error}", file=sys.stderr)
        return _failed(launch.LOST_STATUS)
    except KeyboardInterrupt:
        print("sacref: interrupted at once; what was written before stays in the run directory", file=sys.stderr)
        return _failed(130)
    except (ValueError, TypeError, ImportError, OSError, RuntimeError) as error:
        if not _is_alone() and says_a_rank_is_lost(error):
            # Said under the launcher, too: should it be something else, nobody else knows.
            print(f"sacref: another rank ended or did not answer in time ({error})", file=sys.stderr)
            return _failed(launch.LOST_STATUS)
        if os.environ.get(TRACEBACK) == "1":
            raise
        said = "; ".join([str(error), *getattr(error, "__notes__", ())])
        print(f"sacref: {said}\n({type(error).__name__}; {TRACEBACK}=1 shows where)", file=sys.stderr)
        return _failed(2)
