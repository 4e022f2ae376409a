"""Trees: what is a branch, what a leaf, and in which order."""

from collections import OrderedDict
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest

from sacref.algorithm.tree import concatenate, leaves, map_leaves, map_named, named_leaves


class Pair(NamedTuple):
    first: Any
    second: Any


class Array(np.ndarray[Any, Any]):
    """A leaf of another type."""


TREE = Pair({"b": 1, "a": MappingProxyType({"x": (2, None, [3])})}, OrderedDict(c=Pair(None, 4)))
"""A list is a leaf, as in what Gymnasium gives."""


def test_leaves_come_in_the_order_of_the_tree_and_none_is_not_one() -> None:
    assert leaves(TREE) == [1, 2, [3], 4]
    assert list(named_leaves(TREE).items()) == [("first.b", 1), ("first.a.x.0", 2), ("first.a.x.2", [3]), ("second.c.second", 4)]
    assert leaves(None) == [] and leaves(7) == [7]
    assert named_leaves(7, "all") == {"all": 7}


def test_a_mapped_tree_has_the_same_branches() -> None:
    found = map_leaves(lambda *parts: parts, TREE, TREE)
    assert found == Pair({"b": (1, 1), "a": {"x": ((2, 2), None, ([3], [3]))}}, {"c": Pair(None, (4, 4))})
    assert type(found) is type(found.second["c"]) is Pair
    with pytest.raises(KeyError, match="a"):
        map_leaves(lambda *parts: parts, {"a": 1}, {"b": 1})
    with pytest.raises(ValueError, match="shorter"):
        map_leaves(lambda *parts: parts, (1, 2), (1,))


def test_an_array_is_a_leaf_whatever_its_type() -> None:
    array = np.zeros(2).view(Array)
    for _ in range(2):  # asked for the first time, and remembered
        assert leaves({"a": array})[0] is array
        assert map_leaves(lambda leaf: leaf, array) is array


def test_trees_are_concatenated_and_one_that_is_none_is_filled() -> None:
    tree = {"a": np.array([[1], [2]]), "b": (np.array([True, False]), None)}
    other = {"a": np.array([[3]]), "b": (np.array([False]), None)}
    found: Any = concatenate([None, tree, other], fill=1)
    np.testing.assert_array_equal(found["a"], [[1], [1], [1], [2], [3]])
    np.testing.assert_array_equal(found["b"][0], [True, True, True, False, False])
    assert found["b"][0].dtype == bool and found["b"][1] is None
    filled: Any = concatenate([tree["a"], None])
    np.testing.assert_array_equal(filled, [[1], [2], [0], [0]])
    assert concatenate([None, None]) is None


def test_a_named_map_tells_each_leaf_its_place_and_each_branching_is_checked() -> None:
    checked: list[str] = []
    tree, other = {"a": {"b": 1}, "c": (2, 3)}, {"a": {"b": 10}, "c": 20, "d": 30}
    found = map_named(lambda *parts: parts, "it", tree, other, require=lambda name, *trees: checked.append(f"{name} {len(trees)}"))
    assert found == {"a": {"b": ("it['a']['b']", 1, 10)}, "c": ("it['c']", (2, 3), 20)}
    assert checked == ["it 2", "it['a'] 2"]
