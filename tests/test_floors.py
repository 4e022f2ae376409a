"""The house: a floor imports only floors below it, and each backend works where the other is not installed."""

import ast
import json
import os
import re
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import sacref

FLOORS = {
    "spec": 0,
    "ranks": 0,
    "config": 1,
    "preprocessing": 1,
    "algorithm": 2,
    "storage": 3,
    "envs": 4,
    "agent": 5,
    "torch": 6,
    "jax": 6,
    "training": 7,
    "parity": 8,
    "examine": 9,
    "cli": 10,
}
"""Folder, or module, of sacref -> its floor. It may import those of lower floors alone."""

SHARED_TEXT = 0.15
"""Largest share of the lines of sacref/torch and sacref/jax that the other has as well."""
FEWEST_WORDS = 3
"""Words of a line that counts: one with fewer says nothing by itself, as `return None` or `Raises:`."""

BACKEND_PACKAGES = {"torch", "jax", "jaxlib", "flax", "optax"}

PACKAGE = Path(sacref.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path not in (PACKAGE / "__init__.py", PACKAGE / "__main__.py")
)


def part(module: str) -> str:
    return module.split(".")[1]


@cache
def source(module: str) -> ast.Module:
    """Return the parsed file of a module."""
    path = PACKAGE.parent / Path(*module.split("."))
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8"))


@cache
def imports() -> dict[str, set[str]]:
    """Return the modules of sacref that each module names in its import statements, those inside of functions included."""
    found = {}
    for module in MODULES:
        names: set[str] = set()
        for node in ast.walk(source(module)):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
        found[module] = names & set(MODULES) - {module}
    return found


def run(program: str, *arguments: str) -> Any:
    """What a fresh process prints as JSON on its last line. Shape checks are off: they import more than the modules themselves."""
    finished = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=os.environ)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


# One process for all: libraries stay loaded, sacref's own modules are forgotten before each import.
EACH_MODULE = """
import importlib, json, sys
loads = {}
for name in sys.argv[1:]:
    for loaded in [loaded for loaded in sys.modules if loaded.split(".")[0] == "sacref"]:
        del sys.modules[loaded]
    importlib.import_module(name)
    loads[name] = sorted(loaded for loaded in sys.modules if loaded.startswith("sacref."))
print(json.dumps(loads))
"""

ALL_MODULES = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted({loaded.split(".")[0] for loaded in sys.modules})))
"""


@cache
def loads() -> dict[str, list[str]]:
    loaded: dict[str, list[str]] = run(EACH_MODULE, *MODULES)
    return loaded


def test_a_module_imports_only_its_own_folder_and_lower_floors() -> None:
    found = [(module, other) for others in (loads(), imports()) for module in MODULES for other in others[module]]
    wrong = {(module, other) for module, other in found if part(other) != part(module) and FLOORS[part(other)] >= FLOORS[part(module)]}
    assert wrong == set()


def test_no_module_imports_itself_by_way_of_others() -> None:
    below = imports()
    while free := {module for module, others in below.items() if not others & below.keys()}:
        below = {module: others for module, others in below.items() if module not in free}
    assert sorted(below) == []


def owned_names(tree: ast.Module) -> set[str]:
    """Return the names that a file defines: functions, classes, fields, and attributes that it sets on `self` or `cls`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) in ("self", "cls"):
            names.add(node.attr)
    return names


OF_OTHERS = {"_replace", "_asdict", "_fields", "_make", "_add_info", "_train", "_version"}
"""Names of other libraries, named tuples' first, that files of sacref use and others define."""


@cache
def owners() -> dict[str, set[str]]:
    """Return the files that define each name with an underscore. A name that no file defines is another library's."""
    found: dict[str, set[str]] = {}
    for module in MODULES:
        for name in owned_names(source(module)):
            if name.startswith("_") and not name.startswith("__") and name not in OF_OTHERS:
                found.setdefault(name, set()).add(module)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_no_attribute_with_an_underscore_is_touched_outside_the_file_that_owns_it(module: str) -> None:
    attributes = {node.attr: ast.unparse(node) for node in ast.walk(source(module)) if isinstance(node, ast.Attribute)}
    assert {text for name, text in attributes.items() if module not in owners().get(name, {module})} == set()


DEEPER = {
    "sacref.envs.mujoco_tasks.Hopper",
    *(f"sacref.{b}.recurrent.Recurrent{m}" for b in ("torch", "jax") for m in ("Policy", "QFunction")),
}
"""Classes with more than two of sacref's above them."""


def classes() -> dict[str, list[str]]:
    """Return the bases of each class of sacref, by their last names."""
    found = {}
    for module in MODULES:
        for node in ast.walk(source(module)):
            if isinstance(node, ast.ClassDef):
                bases = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
                found[f"{module}.{node.name}"] = [ast.unparse(base).rpartition(".")[2] for base in bases]
    return found


def test_inheritance_is_at_most_three_classes_deep() -> None:
    found = classes()
    names: dict[str, list[str]] = {}
    for path in found:
        names.setdefault(path.rpartition(".")[2], []).append(path)

    def depth(path: str, below: frozenset[str] = frozenset()) -> int:
        # Of several classes of one name the deepest counts.
        bases = [base for name in found[path] for base in names.get(name, []) if base not in below | {path}]
        return 1 + max((depth(base, below | {path}) for base in bases), default=0)

    assert {path for path in found if depth(path) > 3} <= DEEPER


def test_the_parts_of_an_agent_do_not_know_it() -> None:
    """A population is no part of one: it is made of agents."""
    agent = "sacref.agent.agent"
    assert {module for module, others in imports().items() if part(module) == "agent" and agent in others} == {"sacref.agent.population"}


def test_few_entries_stand_at_the_top() -> None:
    assert {part(module) for module in MODULES} == set(FLOORS)
    assert len(FLOORS) <= 14


def test_what_the_backends_have_in_common_lies_below_them() -> None:
    """Lines of one folder that are also in the other, but for the libraries' names: mostly signatures of what each provides."""
    folders = [text_of(PACKAGE / backend) for backend in ("torch", "jax")]
    shared = sum(line in other for lines, other in zip(folders, [set(lines) for lines in reversed(folders)], strict=True) for line in lines)
    assert shared / sum(map(len, folders)) < SHARED_TEXT


def text_of(folder: Path) -> list[str]:
    """Return the lines of a folder's modules that hold some words, without imports; the libraries have one name."""
    found = []
    for path in folder.glob("*.py"):
        source = path.read_text(encoding="utf-8")
        imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
        skipped = {line for node in imports for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
        lines = [line.strip() for number, line in enumerate(source.splitlines(), 1) if number not in skipped]
        lines = [line for line in lines if len(re.findall(r"[A-Za-z_]\w*", line)) >= FEWEST_WORDS]
        found += [re.sub(r"\bArray\b", "Tensor", re.sub(r"\bjnp\b|jax", "torch", line, flags=re.IGNORECASE)) for line in lines]
    return found


def test_nothing_but_the_backends_and_what_compares_them_loads_a_backend() -> None:
    modules = [module for module in MODULES if part(module) not in {"torch", "jax", "parity"}]
    assert set(run(ALL_MODULES, *modules)) & BACKEND_PACKAGES == set()


def test_the_spec_and_the_algorithm_load_no_library_but_numpy_and_what_names_shapes() -> None:
    modules = [module for module in MODULES if part(module) in {"spec", "algorithm"}]
    assert set(run(ALL_MODULES, *modules)) & {*BACKEND_PACKAGES, "gymnasium", "scipy", "safetensors", "rich", "tyro"} == set()


def test_importing_sacref_loads_neither_a_backend_nor_gymnasium_and_is_quick() -> None:
    program = """
import json, sys, time
import numpy
began = time.process_time()
import sacref
print(json.dumps([time.process_time() - began, sorted({name.split(".")[0] for name in sys.modules})]))
"""
    seconds, loaded = run(program)
    assert set(loaded) & {*BACKEND_PACKAGES, "gymnasium", "matplotlib", "tensorboard"} == set()
    assert seconds < 0.3


@pytest.mark.parametrize(("backend", "absent"), [("torch", ("jax", "jaxlib", "flax", "optax")), ("jax", ("torch",))])
def test_a_backend_works_where_the_other_is_not_installed(backend: str, absent: tuple[str, ...]) -> None:
    program = """
import importlib, json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[2:]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import gymnasium, numpy as np
backend = importlib.import_module(f"sacref.{sys.argv[1]}")
spaces = {
    "observation_space": gymnasium.spaces.Box(-np.inf, np.inf, (3,)),
    "action_space": gymnasium.spaces.Box(-2, 2, (1,)),
}
agent = backend.SAC(models=backend.default_models(**spaces, hidden=(4,), seed=0), **spaces)
actions, _ = agent.act(np.ones((2, 3), np.float32), None, timestep=0, timesteps=1)
print(json.dumps(agent.to_numpy(actions).shape))
"""
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    assert run(program, backend, *absent) == [2, 1]


def test_importing_the_jax_backend_changes_no_flag_of_jax() -> None:
    if find_spec("jax") is None:
        pytest.skip("jax is not installed")
    program = """
import json, sys
import flax.nnx, jax, optax
before = dict(jax.config.values)
import sacref.jax
after = dict(jax.config.values)
print(json.dumps([len(before), sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))]))
"""
    count, changed = run(program)
    assert count > 50
    assert changed == []


def test_no_public_function_has_a_submodules_name() -> None:
    assert {name for name in dir(sacref) if not name.startswith("_")} & set(FLOORS) <= {
        name for name in FLOORS if f"sacref.{name}" in sys.modules
    }
    for name in (
        "train",
        "load",
        "evaluate",
        "SACConfig",
        "ExperimentConfig",
        "paper_config",
        "TrainingResult",
        "Evaluation",
        "ConfigError",
        "NumericalError",
        "render_episodes",
    ):
        assert name not in FLOORS
        assert getattr(sacref, name).__name__ == name


def test_environments_are_there_where_only_sacref_was_imported() -> None:
    program = """
import json, sys
import sacref
listed, early = "envs" in dir(sacref), "sacref.envs" in sys.modules
made = sacref.envs.make("Pendulum-v1", 2)
print(json.dumps([listed, early, made.num_envs, sacref.envs.states.states_of.__name__]))
"""
    assert run(program) == [True, False, 2, "states_of"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'sacref' has no attribute 'trian'"):
        _ = sacref.trian
