"""Trees of arrays, as Dict spaces, carries and transitions are: an array, None, or a mapping or tuple of trees."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Tree = Any
"""An array (a leaf), None, or a mapping or tuple of trees."""


def map_leaves(function: Callable[..., object], tree: Tree, *others: Tree) -> Tree:
    """Apply `function` to the leaves at the same place of each tree; return a tree of the same shape: dicts, tuples, None.

    Raises:
        KeyError, ValueError: if a tree of `others` lacks a branch.
    """
    if tree is None:
        return None
    branch_type = _branch_type(type(tree))
    if branch_type is None:
        return function(tree, *others)
    if branch_type is Mapping:
        return {key: map_leaves(function, branch, *(other[key] for other in others)) for key, branch in tree.items()}
    branches = [map_leaves(function, *parts) for parts in zip(tree, *others, strict=True)]
    return type(tree)(*branches) if hasattr(tree, "_fields") else tuple(branches)


def leaves(tree: Tree) -> list[Any]:
    """Return the leaves, in the order of the tree."""
    if tree is None:
        return []
    branch_type = _branch_type(type(tree))
    if branch_type is None:
        return [tree]
    return [leaf for branch in (tree.values() if branch_type is Mapping else tree) for leaf in leaves(branch)]


def named_leaves(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Dotted path -> leaf, in the order of the tree; `prefix` is the name of the tree itself."""
    return dict(_walk(tree, prefix))


def concatenate(trees: Sequence[Tree | None], *, fill: float = 0) -> Tree | None:
    """Concatenate NumPy leaves of the same place along their first axis; None where all trees are.

    Args:
        fill: value of the rows of a tree that is None, of which there are as many as of the first that is not.
    """
    known = next((tree for tree in trees if tree is not None), None)
    filled = [map_leaves(lambda leaf: np.full_like(leaf, fill), known) if tree is None else tree for tree in trees]
    return None if known is None else map_leaves(lambda *parts: np.concatenate(parts), *filled)


def map_named(
    function: Callable[..., object], name: str, tree: Tree, *others: Any, require: Callable[..., None] = lambda name, *trees: None
) -> Tree:
    """Map `function(name, leaf, *other leaves)` over trees that branch as the first one does; names are like `observations['image']`.

    Args:
        name: of the tree itself.
        others: further trees; a branch is what stands under its key.
        require: called with the name and the trees at each branching, to refuse others that do not branch so.
    """
    if _branch_type(type(tree)) is not Mapping:
        return function(name, tree, *others)
    require(name, tree, *others)
    return {
        key: map_named(function, f"{name}[{key!r}]", branch, *(other[key] for other in others), require=require)
        for key, branch in tree.items()
    }


def _walk(tree: Tree, path: str) -> Iterator[tuple[str, object]]:
    if tree is None:
        return
    branch_type = _branch_type(type(tree))
    if branch_type is None:
        yield path, tree
        return
    branches = tree.items() if branch_type is Mapping else zip(getattr(tree, "_fields", range(len(tree))), tree, strict=True)
    for key, branch in branches:
        yield from _walk(branch, f"{path}.{key}" if path else str(key))


def _branch_type(kind: type) -> type | None:
    """Return how a tree of this type branches: Mapping, tuple, or not at all (None)."""
    try:
        return _BRANCH_TYPES[kind]
    except KeyError:
        found = Mapping if issubclass(kind, Mapping) else tuple if issubclass(kind, tuple) else None
        return _BRANCH_TYPES.setdefault(kind, found)


_BRANCH_TYPES: dict[type, type | None] = {}
"""Answers of `_branch_type`: the check for a Mapping takes longer than most functions of one environment's array."""
