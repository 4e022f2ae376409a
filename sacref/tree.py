"""Trees of arrays: an array, None, or a mapping or tuple of trees. What a Dict space, a carry and a transition are."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Tree = Any
"""An array (a leaf), None, or a mapping or tuple of trees."""


def map_leaves(function: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """`function` of the leaves that stand at the same place of each tree, as a tree of the same shape: dicts, tuples, None.

    Raises:
        KeyError, ValueError: if a tree of `others` lacks a branch.
    """
    if tree is None:
        return None
    if isinstance(tree, Mapping):
        return {key: map_leaves(function, branch, *(other[key] for other in others)) for key, branch in tree.items()}
    if isinstance(tree, tuple):
        branches = [map_leaves(function, *parts) for parts in zip(tree, *others, strict=True)]
        return type(tree)(*branches) if hasattr(tree, "_fields") else tuple(branches)
    return function(tree, *others)


def leaves(tree: Tree) -> list[Any]:
    """The leaves, in the order of the tree."""
    return list(named_leaves(tree).values())


def named_leaves(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Dotted path -> leaf, in the order of the tree; `prefix` is the name of the tree itself."""
    return dict(_walk(tree, prefix))


def _walk(tree: Tree, path: str) -> Iterator[tuple[str, Any]]:
    if tree is None:
        return
    if isinstance(tree, Mapping | tuple):
        if isinstance(tree, Mapping):
            branches = list(tree.items())
        else:
            branches = list(zip(getattr(tree, "_fields", range(len(tree))), tree, strict=True))
        for key, branch in branches:
            yield from _walk(branch, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree
