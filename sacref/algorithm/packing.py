"""Trees of host arrays in one buffer, so that one upload takes all of them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import EllipsisType

import numpy as np

from sacref.algorithm.tree import Tree, map_leaves
from sacref.spec.arrays import ArrayT, NumpyArray

ALIGNMENT = 8
"""Bytes: PyTorch views a part of a buffer as another dtype where it begins at a multiple of the item's size."""


@dataclass(frozen=True)
class Place:
    """The bytes of an array in a buffer."""

    part: slice
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


class Packed:
    """A tree of arrays that lie in one buffer of bytes.

    Args:
        like: arrays of the shapes and dtypes.
    """

    def __init__(self, like: Tree) -> None:
        size = 0

        def place(leaf: NumpyArray) -> Place:
            nonlocal size
            start, count = size, leaf.dtype.itemsize * math.prod(leaf.shape)
            size += -(-count // ALIGNMENT) * ALIGNMENT
            return Place(slice(start, start + count), leaf.shape, leaf.dtype)

        self._places: Tree = map_leaves(place, like)
        self.buffer: NumpyArray = np.zeros(size, np.uint8)
        """uint8; what is written into `views` is written here."""
        self.views: Tree = map_leaves(lambda place: self.buffer[place.part].view(place.dtype).reshape(place.shape), self._places)
        self._flat: list[tuple[NumpyArray, tuple[object, ...]]] = [(_at(self.views, path), path) for path in _paths(self.views)]

    def holds(self, tree: Tree) -> bool:
        """Tell whether arrays have the shapes of these, so that `fill` takes them; branches beyond these are not read."""
        return all(view.shape == _at(tree, path).shape for view, path in self._flat)

    def fill(self, tree: Tree, rows: slice | EllipsisType = ...) -> None:
        """Copy arrays into the buffer, converted to its dtypes: whole ones, or these rows of them."""
        for view, path in self._flat:
            np.copyto(view[rows], _at(tree, path), casting="unsafe")

    def unpack(self, buffer: ArrayT, typed: Callable[[ArrayT, np.dtype[np.generic], tuple[int, ...]], ArrayT]) -> Tree:
        """Return the arrays of a copy of the buffer, as `typed(bytes, dtype, shape)` makes each of its part."""
        return map_leaves(lambda place: typed(buffer[place.part], place.dtype, place.shape), self._places)


def _at(tree: Tree, path: tuple[object, ...]) -> NumpyArray:
    """Return the leaf at a path."""
    for key in path:
        tree = tree[key]
    leaf: NumpyArray = tree
    return leaf


def _paths(tree: Tree) -> list[tuple[object, ...]]:
    """Return the paths of all leaves: walked once, as walking a tree takes longer than copying a row."""
    if tree is None or isinstance(tree, np.ndarray):
        return [] if tree is None else [()]
    branches = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
    return [(key, *path) for key, branch in branches for path in _paths(branch)]
