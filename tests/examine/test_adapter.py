"""Adapters that do not do what the examiner relies on are refused: what was got, what was expected, and the fix."""

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sacref.examine import examine
from sacref.examine.adapter import Adapter, AdapterError, check_noise, record
from sacref.examine.adapters import ADAPTERS, load
from sacref.examine.adapters.oracle import OracleAdapter
from sacref.examine.problem import Problem, ordinary, wide
from sacref.parity.networks import Arrays, Named

SCENE = ordinary(Problem(), updates=1)


class Bad(OracleAdapter):
    """An oracle whose weights are changed when they are shown, or not taken when they are set."""

    def __init__(self, shown: Callable[[Arrays], Arrays] = lambda weights: weights, takes: bool = True) -> None:
        super().__init__("bad")
        self._shown, self._takes = shown, takes

    def weights(self) -> Arrays:
        return self._shown(super().weights())

    def set_weights(self, weights: Named) -> None:
        if self._takes or not hasattr(self, "agent"):
            super().set_weights(weights)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            Bad(lambda w: {name: w[name] for name in w if name != "log_alpha"}),
            "bad: weights() lacks log_alpha, expected critic_1.head.bias, ",
        ),
        (Bad(lambda w: w | {"extra": w["log_alpha"]}), "bad: weights() holds extra, expected critic_1.head.bias, "),
        (
            Bad(lambda w: w | {"policy.head.kernel": w["policy.head.kernel"].T}),
            "bad: weights() has policy.head.kernel of shape (6, 16), expected (16, 6): transpose it, kernels are (inputs, outputs)",
        ),
        (
            Bad(lambda w: w | {"log_alpha": np.zeros(1)}),
            "bad: weights() has log_alpha of shape (1,), expected (): make networks of the problem's sizes",
        ),
        (
            Bad(lambda w: w | {"log_alpha": np.array(np.nan)}),
            "bad: weights() has a log_alpha that is not finite, expected numbers: check the update",
        ),
        (
            Bad(lambda w: w | {"log_alpha": np.array(np.float32(w["log_alpha"]), np.float64)}),
            "from what was set, expected it as it was set: make it in problem.dtype, it has the digits of a narrower one",
        ),
        (
            Bad(takes=False),
            "from what was set, expected it as it was set: write into the arrays that the agent computes with, and not into",
        ),
    ],
)
def test_weights_of_other_names_or_shapes_and_weights_that_do_not_stick_are_refused(adapter: Adapter, message: str) -> None:
    with pytest.raises(AdapterError, match=re.escape(message)):
        record(adapter, SCENE)


class Infinite(OracleAdapter):
    """An oracle whose weights are no numbers after an update in which actions saturate."""

    def update(self, batch: Any, draws: Any) -> None:
        super().update(batch, draws)
        if np.abs(self.agent.weights["policy.head.bias"]).max() > 30:
            self.agent.weights["policy.head.bias"] = np.full(6, np.nan)


def test_an_update_that_is_infinite_where_actions_saturate_is_told_why() -> None:
    adapter = Infinite("steep")
    assert len(record(adapter, SCENE).updates) == 1
    message = (
        "steep: weights() has a policy.head.bias that is not finite, expected numbers: actions saturate in these data, check what the "
        "update computes there; log(1 - a^2) is infinite, 2 (log 2 - u - softplus(-2 u)) is the same and finite"
    )
    with pytest.raises(AdapterError, match=re.escape(message)):
        record(adapter, wide(Problem()))


class Noisy(OracleAdapter):
    """An oracle that takes its noise from somewhere else."""

    def __init__(self, source: Callable[[Any], Any]) -> None:
        super().__init__("noisy")
        self._source = source

    def update(self, batch: Any, draws: Any) -> None:
        super().update(batch, self._source(draws))


def test_an_update_that_ignores_the_noise_is_refused() -> None:
    adapter = Noisy(np.zeros_like)
    with pytest.raises(
        AdapterError, match=re.escape("noisy: update() gives the same weights for other noise, expected others: hand `draws`")
    ):
        check_noise(adapter, record(adapter, SCENE))


def test_an_update_that_draws_noise_of_its_own_is_refused() -> None:
    generator = np.random.default_rng(0)
    adapter = Noisy(lambda draws: generator.standard_normal(draws.shape))
    with pytest.raises(AdapterError, match="noisy: two updates on the same weights, batch and noise differ, expected the same result"):
        check_noise(adapter, record(adapter, SCENE))


def test_adapters_are_found_by_name_and_by_module() -> None:
    assert load("sacref-torch").name == "sacref torch"
    assert load("sacref.examine.adapters.oracle:OracleAdapter").name == "NumPy oracle"
    for name in ADAPTERS:
        assert load(name).name


def test_names_that_are_no_adapters_are_refused() -> None:
    with pytest.raises(ValueError, match="examine: 'stable' is no adapter, expected module:Adapter, or one of sacref-torch, sacref-jax, "):
        load("stable")
    with pytest.raises(
        ValueError,
        match=r"examine: 'nowhere:Adapter' is no adapter, expected module:name of something that can .* \(No module named 'nowhere'\)",
    ):
        load("nowhere:Adapter")
    with pytest.raises(
        AdapterError,
        match=r"examine: sacref.examine.problem:Problem has no make, set_weights, update, weights, versions, expected those of",
    ):
        load("sacref.examine.problem:Problem")


def test_a_refused_adapter_ends_the_examination() -> None:
    with pytest.raises(AdapterError, match="bad: set_weights"):
        examine(Bad(takes=False))


def test_weights_alone_need_float64() -> None:
    adapter = OracleAdapter("narrow")
    bare = SimpleNamespace(**{name: getattr(adapter, name) for name in ("name", "make", "set_weights", "update", "weights", "versions")})
    with pytest.raises(
        AdapterError, match="narrow: no gradients\\(\\), and weights alone show nothing but their signs in float32, expected one"
    ):
        record(bare, ordinary(Problem(dtype="float32")))
    assert not record(bare, SCENE).shown


class Silent(OracleAdapter):
    """An oracle that shows no gradients, or those of something else."""

    def __init__(self, shown: list[Named]) -> None:
        super().__init__("silent")
        self._shown = shown

    def gradients(self) -> list[Named]:
        return self._shown


def test_gradients_that_are_missing_or_of_other_shapes_are_refused() -> None:
    with pytest.raises(AdapterError, match=re.escape("silent: gradients() is empty after an update, expected those of each opt")):
        record(Silent([]), SCENE)
    with pytest.raises(AdapterError, match=re.escape("silent: gradients() has log_alpha of shape (1,), expected (): give gradients by")):
        record(Silent([{"log_alpha": np.zeros(1)}]), SCENE)
