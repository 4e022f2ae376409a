"""Checks, each in an environment of its own: `nox -s tests parity types lint`. With NO_VENV=1 they run in this interpreter."""

import json
import os
import shutil
import sys
from pathlib import Path

import nox

NO_VENV = os.environ.get("NO_VENV") == "1"

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "none" if NO_VENV else "venv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests", "parity"]

INTEGRATIONS = ("tests/training/test_export.py", "tests/test_docs.py")
"""Tests that skip what is not installed in the environment of the others."""
LEAST_COMPLETE = 99.0
"""Percentage of public symbols with complete types."""


def install(session: nox.Session, *requirements: str) -> None:
    """Install with the versions of constraints.txt; with NO_VENV=1 the interpreter is used as it is."""
    if not NO_VENV:
        session.install(*requirements, "--constraint", "constraints.txt")


def python_module(session: nox.Session, *command: str) -> None:
    """Run `python -m command` in the session's environment; with NO_VENV=1 in the interpreter that runs nox."""
    # The tests start many processes: bytecode of sacref itself is kept, too.
    session.run(sys.executable if NO_VENV else "python", "-m", *command, external=NO_VENV, env={"PYTHONDONTWRITEBYTECODE": None})


@nox.session
def tests(session: nox.Session) -> None:
    """All tests but the long ones; arguments after `--` go to pytest."""
    install(session, "--editable", ".[all,dev]")
    python_module(session, "pytest", "--numprocesses", "2", *session.posargs)


@nox.session
def full(session: nox.Session) -> None:
    """All tests, those marked `full` too; arguments after `--` go to pytest."""
    install(session, "--editable", ".[all,dev]")
    python_module(session, "pytest", "--numprocesses", "2", "-m", "", *session.posargs)
    session.notify("integrations", [])


@nox.session
def integrations(session: nox.Session) -> None:
    """The tests of what works with other programs, which `.[all,dev]` leaves out; arguments after `--` go to pytest."""
    install(session, "--editable", ".[all,dev,export-torch]")
    if not NO_VENV:  # without its own dependencies: it needs an orbax-checkpoint that is older than Flax's
        session.install("--no-deps", "jax2onnx>=0.17")
    python_module(session, "pytest", *INTEGRATIONS, "-m", "", *session.posargs)


@nox.session
def parity(session: nox.Session) -> None:
    """The parity tests, the long ones too, with Stable-Baselines3 beside the oracle; arguments after `--` go to pytest."""
    install(session, "--editable", ".[bench,dev]")
    python_module(session, "pytest", "tests/parity", "-m", "", *session.posargs)


@nox.session
def faults(session: nox.Session) -> None:
    """200 SIGKILLs of whole runs, which are resumed and held against others; arguments after `--` go to `python -m bench faults`."""
    install(session, "--editable", ".[bench,dev]")
    python_module(session, "bench", "faults", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Memory and open files over 200,000 steps of each backend; arguments after `--` go to `python -m bench soak`."""
    install(session, "--editable", ".[bench,dev]")
    python_module(session, "bench", "soak", *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """Mutants of the equations and of the update, about half an hour of one core; arguments after `--` go to `python -m bench mutants`."""
    install(session, "--editable", ".[all,dev]")
    python_module(session, "bench", "mutants", *(session.posargs or ("--processes", "2")))


@nox.session
def docs(session: nox.Session) -> None:
    """The site, in build/site; a broken link or a missing docstring fails. Arguments after `--` go to `mkdocs build`."""
    install(session, "--editable", ".[docs]")
    python_module(session, "mkdocs", "build", "--strict", "--quiet", *session.posargs)


@nox.session
def types(session: nox.Session) -> None:
    """mypy --strict, as pyproject.toml says, and the share of public symbols whose types a user's checker knows."""
    install(session, "--editable", ".[bench,dev]")
    python_module(session, "mypy", *session.posargs)
    verify_public_types(session)


def verify_public_types(session: nox.Session) -> None:
    """Build and install a wheel, and require that `LEAST_COMPLETE` percent of its public symbols have complete type annotations."""
    folder = Path(session.create_tmp()).resolve()
    source, wheels, site = (folder / name for name in ("source", "wheels", "site"))
    for old in (source, wheels, site):
        shutil.rmtree(old, ignore_errors=True)
    # A copy: setuptools would put what earlier builds left in build/ into the wheel.
    shutil.copytree("sacref", source / "sacref", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(name, source)
    python_module(session, "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(source))
    python_module(session, "pip", "install", "--quiet", "--no-deps", "--target", str(site), *map(str, wheels.iterdir()))
    # basedpyright looks for packages where the first `python` of the PATH does.
    python = Path(sys.executable if NO_VENV else f"{session.bin}/python")
    with session.chdir(folder):
        said = session.run(
            *(python, "-m", "basedpyright", "--verifytypes", "sacref", "--ignoreexternal", "--outputjson"),
            env={"PATH": os.pathsep.join((str(python.parent), os.environ["PATH"])), "PYTHONPATH": str(site)},
            external=NO_VENV or "error",
            silent=True,
            success_codes=[0, 1],  # 1: less than 100 percent
        )
    found = json.loads(str(said))["typeCompleteness"]
    score = 100 * found["completenessScore"]
    if score < LEAST_COMPLETE:
        for symbol in found["symbols"]:
            if symbol["isExported"] and (not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"]):
                session.log(f"{symbol['name']}: {'; '.join(each['message'].partition(chr(10))[0] for each in symbol['diagnostics'])}")
        session.error(f"{score:.1f}% of the public symbols have complete types, expected {LEAST_COMPLETE}%: annotate those above")
    session.log(f"{score:.1f}% of the public symbols have complete types")


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: rules and format."""
    install(session, "ruff")
    python_module(session, "ruff", "check", ".")
    python_module(session, "ruff", "format", "--check", ".")
