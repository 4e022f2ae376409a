"""The mutants of a file, as cosmic-ray's operators make them, and the list of those that are equivalent to the file."""

import ast
import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

RANDOM_OPERATORS = ("core/VariableReplacer", "core/VariableInserter")
"""Left out: they put variables and numbers in the place of others at random, and ask which."""


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A file with one mistake."""

    file: str
    operator: str
    """As cosmic-ray names it."""
    occurrence: int
    """Among the mutants of this operator in the file, from 0."""
    number: int
    """Of the line, from 1."""
    function: str
    """What the line belongs to, `Class.function`; empty for the module."""
    line: str
    """As it is."""
    mutated: str
    """As it was made; empty if it was taken away."""
    source: str
    """The whole file, with the mistake."""

    @property
    def key(self) -> str:
        """Name of the mutant among outcomes: it changes with whatever else changes in the file."""
        return digest(self.file, self.source)

    def __str__(self) -> str:
        return f"{self.file}:{self.number}: {self.line}  ->  {self.mutated}"


@dataclass(frozen=True, kw_only=True)
class Equivalent:
    """Mutants of one line that do what the file does."""

    file: str
    function: str
    line: str
    mutants: tuple[str, ...]
    """What they make of the line."""
    reason: str


def equivalents(path: Path) -> list[Equivalent]:
    """The entries of a list of equivalent mutants."""
    return [Equivalent(**{**entry, "mutants": tuple(entry["mutants"])}) for entry in json.loads(text(path))]


class EquivalentError(ValueError):
    """The list of equivalent mutants is out of date; the message says where, and what to do."""


def mutants_of(root: Path, file: str, *, only: Collection[str] | None = None) -> tuple[list[Mutant], Counter[str]]:
    """All mutants of a file, and how many were left out: for an annotation, or because Python does not compile them.

    Args:
        root: folder that the file's name is relative to.
        file: a name such as sacref/spec/losses.py.
        only: texts of lines; no mutants of other lines are made.
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
    """Key of each mutant that is listed as equivalent -> the reason.

    Raises:
        EquivalentError: if an entry is of no mutant, or of more than one.
    """
    found: dict[str, str] = {}
    for entry in entries:
        if not entry.reason.strip():
            raise EquivalentError(f"mutants_equivalent.json: {entry.file}: {entry.line}: the reason is empty, expected one")
        for mutated in entry.mutants:
            wanted = (entry.file, entry.function, entry.line, mutated)
            # Two operators may make the same of a line.
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
    """What is run of a file: its syntax tree, without annotations."""
    with warnings.catch_warnings(action="ignore"):
        compile(source, "mutant", "exec")
        return ast.dump(_Unannotated().visit(ast.parse(source)))


def _functions(source: str) -> dict[int, str]:
    """Number of a line -> the function or class that it belongs to, decorators included; the innermost that has a name."""
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
    """The lines that differ, of the one and of the other, as one text each."""
    first = next(i for i in range(len(old)) if i >= len(new) or old[i] != new[i])
    last = 0
    while last < min(len(old), len(new)) - first and old[-1 - last] == new[-1 - last]:
        last += 1
    before, after = (" ".join(line.strip() for line in lines[first : len(lines) - last]).strip() for lines in (old, new))
    return before, after


def text(path: Path) -> str:
    """What a file holds; nothing where there is none."""
    return path.read_text(encoding="utf-8") if path.exists() else ""


def digest(*texts: str) -> str:
    """A short name for texts."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
