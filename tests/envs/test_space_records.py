"""Spaces through JSON, and which of them mean the same to an agent."""

import json
from collections import OrderedDict
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from sacref.envs.space_records import differences, read_space, write_space
from tests.backends import box


@pytest.mark.parametrize(
    "space",
    [
        gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float64),
        gymnasium.spaces.Box(np.array([-1.1, -np.inf], np.float32), np.array([0.3, 7], np.float32)),
        gymnasium.spaces.Box(0, 255, (2, 3), np.uint8),
        gymnasium.spaces.Box(-(2**63), 2**63 - 1, (1,), np.int64),
        gymnasium.spaces.Box(-0.4, 0.4, (), np.float32),
        gymnasium.spaces.Dict(
            {"b": gymnasium.spaces.Box(0, 255, (2,), np.uint8), "a": gymnasium.spaces.Dict({"x": gymnasium.spaces.Box(-1, 1, (1,))})}
        ),
    ],
    ids=str,
)
def test_a_space_survives_its_way_through_json(space: gymnasium.Space[Any]) -> None:
    assert read_space(json.loads(json.dumps(write_space(space), allow_nan=False))) == space


def record(space: gymnasium.Space[Any] | None) -> Any:
    return None if space is None else json.loads(json.dumps(write_space(space)))


AB = Dict(OrderedDict([("a", Box(-1, 1, (2,))), ("b", Box(0, 255, (), np.uint8))]))
BA = Dict(OrderedDict([("b", Box(0, 255, (), np.uint8)), ("a", Box(-1, 1, (2,)))]))


@pytest.mark.parametrize(
    ("got", "expected", "text"),
    [
        (Box(-1, 1, (3,)), Box(-1, 1, (2,)), r"space has shape [3], expected [2]"),
        (Box(-1, 1, (3, 1)), Box(-1, 1, (3,)), r"space has shape [3, 1], expected [3]"),
        (Box(-1, 1, ()), Box(-1, 1, (1,)), r"space has shape [], expected [1]"),
        (Box(-1, 1, (2,)), Box(-2, 1, (2,)), "space.low is -1.0 at 0, expected -2.0"),
        (box([-1, -1], [1, 3]), Box(-1, 1, (2,)), "space.high is 3.0 at 1, expected 1.0"),
        (Box(0, 255, (2,), np.uint8), Box(0, 1, (2,), np.uint8), "space.high is 255 at 0, expected 1"),
        (Box(0, 2**62 + 1, (2,), np.int64), Box(0, 2**62, (2,), np.int64), f"space.high is {2**62 + 1} at 0, expected {2**62}"),
        (Box(0, 255, (2,), np.uint8), Box(0, 255, (2,), np.float32), "space has dtype 'uint8', expected float32"),
        (Box(-1, 1, (2,), np.float16), Box(-1, 1, (2,)), "space has dtype 'float16', expected float32"),
        (Box(-1, 1, (2,)), None, "space is a Box of shape [2] and dtype 'float32', expected None"),
        (None, AB, "space is None, expected a Dict with the keys ['a', 'b']"),
        (AB, Box(-1, 1, (3,)), "space is a Dict with the keys ['a', 'b'], expected a Box of shape [3] and dtype 'float32'"),
        (AB, Dict(a=AB["a"]), "space has the keys ['a', 'b'], expected ['a']"),
        (AB, Dict(a=AB["a"], b=Box(0, 1, (), np.uint8)), "space['b'].high is 255 at 0, expected 1"),
    ],
)
def test_each_difference_that_means_something_is_named(got: Any, expected: Any, text: str) -> None:
    assert differences(record(got), record(expected), "space") == [text]


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (Box(-np.inf, np.inf, (2,)), Box(-3, 3, (2,))),
        (Box(-np.inf, np.inf, (2,)), Box(-np.inf, np.inf, (2,), np.float64)),
        (Box(-0.4, 0.4, (2,)), Box(-0.4, 0.4, (2,), np.float64)),
        (Box(-1, 1, (2,), np.dtype(">f4")), Box(-1, 1, (2,))),
        (box([-1, -1], [1, 1]), Box(-1, 1, (2,))),
        (box(0, 1, (2,), np.bool_), box(0, 1, (2,), np.bool_)),
        (AB, BA),
        (None, None),
    ],
)
def test_what_means_the_same_to_an_agent_is_no_difference(got: Any, expected: Any) -> None:
    assert differences(record(got), record(expected), "space") == []


def test_the_order_of_keys_is_one_to_networks_alone() -> None:
    assert differences(record(AB), record(BA), "space", ordered=True) == ["space has the keys ['a', 'b'], expected ['b', 'a']"]


@pytest.mark.parametrize("change", [{"low": "x"}, {"high": [[1.0], [2.0]]}, {"high": [1.0] * 3}, {"dtype": []}])
def test_what_is_no_record_raises(change: dict[str, Any]) -> None:
    own = record(Box(-1, 1, (2,)))
    with pytest.raises((TypeError, ValueError)):
        differences({**own, **change}, own, "space")


@pytest.mark.parametrize("change", [{"shape": 3}, {"dtype": None}, {"low": [1.0]}])
def test_what_a_record_cannot_say_differs(change: dict[str, Any]) -> None:
    own = record(Box(-1, 1, (2,)))
    assert len(differences({**own, **change}, own, "space")) == 1
