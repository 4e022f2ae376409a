"""Mutants of a file, made by cosmic-ray's operators, and the list of those that are equivalent to it."""

import ast
import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

RANDOM_OPERATORS = ("core/VariableReplacer", "core/VariableInserter")
"""Operators that are left out: they replace variables and numbers by random ones."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A file with one mistake."""

    file: str
    operator: str
    """Operator, as cosmic-ray names it."""
    occurrence: int
    """Number among the mutants of this operator in the file, from 0."""
    number: int
    """Number of the line, from 1."""
    function: str
    """Function of the line, `Class.function`; empty for the module."""
    line: str
    """The unchanged line."""
    mutated: str
    """The mutated line; empty if it was removed."""
    source: str
    """The whole mutated file."""

    @property
    def key(self) -> str:
        """Hash that names the mutant among outcomes; it changes with the file."""
        return digest(self.file, self.source)

    def __str__(self) -> str:
        return f"{self.file}:{self.number}: {self.line}  ->  {self.mutated}"


@dataclass(frozen=True, kw_only=True)
class Equivalent:
    """Mutants of one line that are equivalent to the file."""

    file: str
    function: str
    line: str
    mutants: tuple[str, ...]
    """The mutated lines."""
    reason: str


def equivalents(path: Path) -> list[Equivalent]:
    """Read a list of equivalent mutants."""
    return [Equivalent(**{**entry, "mutants": tuple(entry["mutants"])}) for entry in json.loads(text(path))]


class EquivalentError(ValueError):
    """The list of equivalent mutants is out of date; the message names the entry and the fix."""


def mutants_of(root: Path, file: str, *, only: Collection[str] | None = None) -> tuple[list[Mutant], Counter[str]]:
    """Return all mutants of a file, and the number of those left out: in annotations, or because Python does not compile them.

    Args:
        root: folder that the file's name is relative to.
        file: a name such as sacref/spec/losses.py.
        only: lines to mutate; None for all.
    """
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = text(root / file)
    lines, without = source.splitlines(), _without_annotations(source)
    functions, nodes = _functions(source), list(ast_nodes(get_ast(source)))
    found: list[Mutant] = []
    skipped: Counter[str] = Counter()
    for name in _operator_names():
        operator = get_operator(name)()
        positions = [position for node in nodes for position in operator.mutation_positions(node)]
        for occurrence, ((number, _), _) in enumerate(positions):
            if only is not None and lines[number - 1].strip() not in only:
                continue
            mutated = mutate_code(source, operator, occurrence)
            try:
                same = _without_annotations(mutated) == without
            except SyntaxError:
                skipped["not compiled"] += 1
                continue
            if same:
                skipped["annotation"] += 1
                continue
            old, new = _difference(lines, mutated.splitlines())
            found.append(
                Mutant(
                    file=file,
                    operator=name,
                    occurrence=occurrence,
                    number=number,
                    function=functions.get(number, ""),
                    line=old,
                    mutated=new,
                    source=mutated,
                )
            )
    return sorted(found, key=lambda mutant: mutant.number), skipped


def match(entries: Iterable[Equivalent], mutants: Sequence[Mutant]) -> dict[str, str]:
    """Return key -> reason of the mutants that are listed as equivalent.

    Raises:
        EquivalentError: if an entry matches no mutant, or several.
    """
    found: dict[str, str] = {}
    for entry in entries:
        if not entry.reason.strip():
            raise EquivalentError(f"mutants_equivalent.json: {entry.file}: {entry.line}: the reason is empty, expected one")
        for mutated in entry.mutants:
            wanted = (entry.file, entry.function, entry.line, mutated)
            # Two operators may make the same change.
            same = {one.key for one in mutants if (one.file, one.function, one.line, one.mutated) == wanted}
            if len(same) != 1:
                raise EquivalentError(
                    f"mutants_equivalent.json: {entry.file}, {entry.function or 'module'}: {entry.line}  ->  {mutated}: "
                    f"there are {len(same)} such mutants, expected 1: "
                    + ("tell the lines apart" if same else "take the entry out, the line has changed")
                )
            found[same.pop()] = entry.reason
    return found


def _operator_names() -> list[str]:
    from cosmic_ray.plugins import operator_names

    return [name for name in operator_names() if name not in RANDOM_OPERATORS]


class _Unannotated(ast.NodeTransformer):
    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self.generic_visit(node)
        node.annotation = ast.Constant(None)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        return node


def _without_annotations(source: str) -> str:
    """Return the syntax tree of a file without its annotations."""
    with warnings.catch_warnings(action="ignore"):
        compile(source, "mutant", "exec")
        return ast.dump(_Unannotated().visit(ast.parse(source)))


def _functions(source: str) -> dict[int, str]:
    """Return number of a line -> its innermost function or class, decorators included."""
    found: dict[int, str] = {}

    def walk(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                name = f"{prefix}{child.name}"
                first = min([child.lineno, *(each.lineno for each in child.decorator_list)])
                found.update(dict.fromkeys(range(first, (child.end_lineno or first) + 1), name))
                walk(child, f"{name}.")
            else:
                walk(child, prefix)

    walk(ast.parse(source), "")
    return found


def _difference(old: Sequence[str], new: Sequence[str]) -> tuple[str, str]:
    """Return the lines that differ, before and after, as one text each."""
    first = next(i for i in range(len(old)) if i >= len(new) or old[i] != new[i])
    last = 0
    while last < min(len(old), len(new)) - first and old[-1 - last] == new[-1 - last]:
        last += 1
    before, after = (" ".join(line.strip() for line in lines[first : len(lines) - last]).strip() for lines in (old, new))
    return before, after


def text(path: Path) -> str:
    """Read a file; empty if there is none."""
    return path.read_text(encoding="utf-8") if path.exists() else ""


def digest(*texts: str) -> str:
    """Hash texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
