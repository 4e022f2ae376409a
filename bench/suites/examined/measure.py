"""Examinations of all adapters, each in the environment that has its library."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tyro.conf import Positional

from bench.core import machine
from bench.peers import environments
from sacref.examine.adapters import ADAPTERS

ENVIRONMENTS = {name: name.removesuffix("-torch").removesuffix("-jax") for name in ADAPTERS if not name.startswith(("sacref", "cleanrl"))}
"""Adapter -> environment of `make bench-peers`; the others run in this one."""


def main(names: Positional[tuple[str, ...]] = (), *, results: Path | None = None) -> int:
    """Examine implementations, and write the record of each; those of earlier examinations are replaced.

    Args:
        names: of adapters of `sacref examine`; unless given, all of them. cleanrl needs the path of its script in CLEANRL_SAC.
        results: folder for the records; unless given results/examined.

    Returns:
        Exit status: 1 if one could not be examined, else 0, also where mistakes were found.
    """
    if unknown := [name for name in names if name not in ADAPTERS]:
        raise SystemExit(f"examined: {', '.join(unknown)} is no adapter, expected some of {', '.join(ADAPTERS)}")
    folder = (results or machine.ROOT / "results" / "examined").absolute()
    chosen, failed, began = names or tuple(ADAPTERS), 0, time.perf_counter()
    for name in chosen:
        started = time.perf_counter()
        outcome = examine(name, folder / f"{name}.json")
        failed += outcome > 1
        said = "not examined" if outcome > 1 else "mistakes found" if outcome else "no known mistake"
        print(f"{name}: {said}, {time.perf_counter() - started:.1f} s", flush=True)
    print(f"{len(chosen) - failed} of {len(chosen)} examined in {time.perf_counter() - began:.0f} s; records are in {folder}")
    return 1 if failed else 0


def examine(name: str, path: Path) -> int:
    """Run `sacref examine`; return its exit status, 2 where there is no record of it: an earlier one stays then."""
    python = Path(sys.executable)
    if name in ENVIRONMENTS:
        python = environments.python(environments.FOLDER / ENVIRONMENTS[name])
        if not python.exists():
            print(f"{name}: no environment {ENVIRONMENTS[name]}: run `make bench-peers PEERS={ENVIRONMENTS[name]}`", file=sys.stderr)
            return 2
    with tempfile.TemporaryDirectory(prefix="sacref-bench-") as folder:
        record = Path(folder) / path.name
        command = [str(python), "-m", "sacref", "examine", name, "--json", str(record)]
        variables = {**os.environ, "PYTHONPATH": str(machine.ROOT)}
        status = subprocess.run(command, cwd=machine.ROOT, env=variables, stdout=subprocess.DEVNULL, check=False).returncode
        if not record.is_file():  # Python exits with 1 after an error, too, and a killed process with less than 0
            return 2
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(record, path)
        return status
