"""Trees of host arrays in one buffer."""

from typing import Any

import numpy as np

from sacref.algorithm.packing import Packed


def test_arrays_are_found_by_their_place_in_the_tree() -> None:
    packed = Packed({"a": np.zeros((2, 3), np.float32), "b": (np.zeros(2, np.bool_), None, np.zeros((), np.int64))})
    tree: dict[str, Any] = {"b": (np.array([True, False]), None, np.array(7)), "a": np.arange(6.0).reshape(2, 3)}
    assert packed.holds(tree)
    packed.fill(tree)
    views: Any = packed.views
    np.testing.assert_array_equal(views["a"], tree["a"])
    assert (views["b"][0].tolist(), views["b"][1], views["b"][2].item()) == ([True, False], None, 7)
    assert not packed.holds({**tree, "a": np.zeros((1, 3))})


def test_rows_are_filled_and_the_others_stay() -> None:
    packed = Packed((np.zeros((3, 2), np.float32), np.zeros(3, np.bool_)))
    packed.fill((np.array([[1.0, 2.0]]), np.array([True])), slice(1, 2))
    values, kept = packed.views
    assert values.tolist() == [[0, 0], [1, 2], [0, 0]] and kept.tolist() == [False, True, False]
