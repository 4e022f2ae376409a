"""PyTorch, JAX and the NumPy oracle feature by feature, and mistakes put back, which the comparison must see."""

import importlib
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from sacref.agent import carry, networks
from sacref.agent.networks import Network
from sacref.algorithm import optimizer
from sacref.algorithm.data import Batch, Window
from sacref.algorithm.tree import map_leaves
from sacref.parity.compare import side_by_side
from sacref.parity.drivers import BackendAgent, Implementation, Oracle, Problem, installed_backends
from sacref.spec.policy_value import POLICY_VALUES
from tests.parity.features import FEATURES

BACKENDS = installed_backends()
Patch = pytest.MonkeyPatch


@pytest.mark.parametrize("updates", [10, pytest.param(100, marks=pytest.mark.full)])
@pytest.mark.parametrize("feature", FEATURES)
def test_float64_agrees_over_many_updates(feature: str, updates: int) -> None:
    """Losses, gradients before clipping, parameters, targets, moments with all counters and rates, and log alpha."""
    problem = FEATURES[feature]
    state = problem.initial_state()
    found: dict[str, Implementation] = {name: BackendAgent(name, problem, state) for name in BACKENDS}
    traces = side_by_side({**found, "numpy": Oracle(problem, state)}, itertools.islice(problem.draws(), updates))
    for pair, kinds in traces.pairs.items():
        for kind, trace in kinds.items():
            assert trace.largest_relative.value < 1e-10, (pair, kind, trace.largest_relative)


def next_states_are_the_states(patch: Patch, name: str) -> None:
    wrong = property(lambda batch: {"observations": batch.next_observations, "states": batch.states})
    patch.setattr(Batch, "next_inputs", wrong)


def leaves_in_another_order(patch: Patch, name: str) -> None:
    right = Network.leaves
    patch.setattr(Network, "leaves", lambda network, tree: right(network, tree)[::-1])


def discounts_of_one_step(patch: Patch, name: str) -> None:
    change_what_is_fed(patch, name, lambda batch, noise: (batch._replace(discounts=None), noise))


def minimum_over_all_targets(patch: Patch, name: str) -> None:
    change_what_is_fed(patch, name, lambda batch, noise: (batch, noise._replace(target_critics=None)))


def one_dropout_for_all(patch: Patch, name: str) -> None:
    change_what_is_fed(patch, name, lambda batch, noise: (batch, noise._replace(dropout=(noise.dropout[1],) * 3)))


def minimum_in_the_place_of_the_mean(patch: Patch, name: str) -> None:
    patch.setitem(POLICY_VALUES, "mean", POLICY_VALUES["min"])


def flax_epsilon(patch: Patch, name: str) -> None:
    module = importlib.import_module("torch.nn" if name == "torch" else "flax.nnx")
    right = module.LayerNorm
    key = "eps" if name == "torch" else "epsilon"
    patch.setattr(module, "LayerNorm", lambda width, **options: right(width, **{**options, key: 1e-6}))


def delay_short_by_one(patch: Patch, name: str) -> None:
    optim = part(name, "optim")
    right = optim.Optimizer
    patch.setattr(optim, "Optimizer", lambda rate, clip, schedule, every=1, **more: right(rate, clip, schedule, max(every - 1, 1), **more))


def factors_that_multiply_each_other(patch: Patch, name: str) -> None:
    optim = part(name, "optim")
    right = optim._rate_of

    def wrong(schedule: Any, rate: float) -> Any:
        factor = right(schedule, 1.0)
        return factor and (lambda calls, held: held * factor(calls, held))

    patch.setattr(optim, "_rate_of", wrong)


def adaptive_rates_that_stay(patch: Patch, name: str) -> None:
    patch.setattr(part(name, "optim").Optimizer, "adapt", lambda optimizer, state, divergence: state)


def no_mask(patch: Patch, name: str) -> None:
    patch.setattr(optimizer, "masked_mean", lambda values, mask, count: values.mean(axis=tuple(range(-mask.ndim, 0))))


def next_step_from_the_current_carry(patch: Patch, name: str) -> None:
    def wrong(policy: Any, *, recurrent: bool) -> Any:
        def run(parameters: Any, window: Window[Any]) -> tuple[Any, Any]:
            kept = map_leaves(lambda leaf: leaf[window.shift : len(leaf) - 1 + window.shift], window.sequence)
            mean, raw_log_std, _ = policy(parameters, kept, window.carry)
            return mean, raw_log_std

        return run

    patch.setattr(carry, "over_window_policy", wrong)


def critics_from_the_carry_of_the_policy(patch: Patch, name: str) -> None:
    right = carry.over_window_critic

    def wrong(critic: Any, initial_carry: Any, *, recurrent: bool) -> Any:
        return lambda parameters, window, *given: right(critic, lambda batch: window.carry, recurrent=recurrent)(parameters, window, *given)

    patch.setattr(carry, "over_window_critic", wrong)


def policy_from_zeros(patch: Patch, name: str) -> None:
    change_what_is_fed(patch, name, lambda batch, noise: (batch._replace(carry=map_leaves(lambda leaf: 0 * leaf, batch.carry)), noise))


def fed_what_is_done_now(patch: Patch, name: str) -> None:
    def wrong(batch: Any, noise: Any) -> Any:
        now = batch.previous_actions.copy()
        now[:-1] = batch.actions
        return batch._replace(previous_actions=now), noise

    change_what_is_fed(patch, name, wrong)


def blocks_without_a_sum(patch: Patch, name: str) -> None:
    change_blocks(patch, lambda model, x, norm, expand, contract: contract(model.relu(expand(norm(x)))))


def norms_behind_the_sum(patch: Patch, name: str) -> None:
    change_blocks(patch, lambda model, x, norm, expand, contract: norm(x + contract(model.relu(expand(x)))))


def blocks_that_add_to_the_norm(patch: Patch, name: str) -> None:
    change_blocks(patch, lambda model, x, norm, expand, contract: norm(x) + contract(model.relu(expand(norm(x)))))


def no_norm_before_the_head(patch: Patch, name: str) -> None:
    change_blocks(patch, right_block, last=lambda x, norm: x)


def pytorchs_epsilon(patch: Patch, name: str) -> None:
    patch.setitem(networks.NORM_EPSILON, "simba", 1e-5)


MISTAKES: dict[str, list[Callable[[Patch, str], None]]] = {
    "states, dict observations": [next_states_are_the_states, leaves_in_another_order],
    "n-step, mask": [discounts_of_one_step, no_mask],
    "layer norm, dropout, subset, mean": [
        minimum_over_all_targets,
        one_dropout_for_all,
        minimum_in_the_place_of_the_mean,
        flax_epsilon,
    ],
    "policy delay, warm-up, piecewise, linear": [delay_short_by_one],
    "adaptive, cosine, exponential": [factors_that_multiply_each_other, adaptive_rates_that_stay],
    "simba": [blocks_without_a_sum, norms_behind_the_sum, blocks_that_add_to_the_norm, no_norm_before_the_head, pytorchs_epsilon],
    "gru": [
        no_mask,
        next_step_from_the_current_carry,
        critics_from_the_carry_of_the_policy,
        policy_from_zeros,
        fed_what_is_done_now,
    ],
}


@pytest.mark.parametrize(("feature", "mistake"), [(feature, each) for feature, mistakes in MISTAKES.items() for each in mistakes])
@pytest.mark.parametrize("backend", BACKENDS[:1])
def test_a_mistake_put_back_is_seen(backend: str, feature: str, mistake: Callable[[Patch, str], None], monkeypatch: Patch) -> None:
    """In one backend, PyTorch where it is installed: the oracle is one for both, and JAX would compile each mistake."""
    mistake(monkeypatch, backend)
    assert apart(FEATURES[feature], backend) > 1e-6


@pytest.mark.skipif("jax" not in BACKENDS, reason="jax is not installed")
def test_a_mistake_put_back_is_seen_in_jax(monkeypatch: Patch) -> None:
    no_mask(monkeypatch, "jax")
    assert apart(FEATURES["n-step, mask"], "jax") > 1e-6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"recurrent": "gru", "masked": True}, "sequences have a mask of their own"),
        ({"recurrent": "gru", "n_step": 2}, "with masked False and n_step 2, expected False and 1"),
        ({"dict_observations": True, "observation": 1}, "observation is 1, expected at least 2"),
    ],
)
def test_a_problem_that_would_ignore_a_field_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Problem(**fields)


def apart(problem: Problem, name: str) -> float:
    """The largest relative difference from the oracle within four updates."""
    state = problem.initial_state()
    found: dict[str, Implementation] = {name: BackendAgent(name, problem, state), "numpy": Oracle(problem, state)}
    traces = side_by_side(found, itertools.islice(problem.draws(), 4))
    return max(trace.largest_relative.value for kinds in traces.pairs.values() for trace in kinds.values())


def part(name: str, module: str) -> Any:
    return importlib.import_module(f"sacref.{name}.{module}")


def right_block(model: Any, x: Any, norm: Any, expand: Any, contract: Any) -> Any:
    return x + contract(model.relu(expand(norm(x))))


def change_blocks(patch: Patch, block: Callable[..., Any], last: Callable[[Any, Any], Any] = lambda x, norm: norm(x)) -> None:
    """Let residual networks, but not the oracle's, have other blocks, or another layer before the head."""

    def wrong(model: Any, x: Any) -> Any:
        x = model.hidden[0](x)
        *norms, behind = model.norms
        for layers in zip(norms, model.expand, model.contract, strict=True):
            x = block(model, x, *layers)
        return model.head(last(x, behind))

    patch.setattr(networks, "add_blocks", wrong)


def change_what_is_fed(patch: Patch, name: str, change: Callable[[Any, Any], tuple[Any, Any]]) -> None:
    """Let the agent, and it alone, see another batch or other noise."""
    sac = part(name, "agent").SAC
    right = sac.update_on
    patch.setattr(sac, "update_on", lambda agent, batch, noise: right(agent, *change(batch, noise)))
