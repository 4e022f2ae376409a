"""Predictions: the policy's actions for people who use a trained agent, outside of any rollout."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sacref.agent.backend import Backend
from sacref.agent.carry import AnyCarry, NoCarry, Prediction, zero_where
from sacref.agent.execution import Act, ActInputs, Actor, AnyStreams, action_modes
from sacref.agent.learner import STREAMS, Learner
from sacref.agent.model_checks import example_inputs
from sacref.agent.models import Models
from sacref.agent.networks import PREVIOUS, Network
from sacref.agent.normalisers import Normalisers
from sacref.agent.transitions import Transitions
from sacref.algorithm.optimizer import Parameters
from sacref.algorithm.tree import Tree, leaves, map_leaves, named_leaves
from sacref.config import SACConfig
from sacref.envs.interface import Space
from sacref.envs.scaling import as_box, from_box
from sacref.envs.spaces import Spaces
from sacref.spec.arrays import ArrayT, NumpyArray, as_numpy, namespace

NO_CARRY = object()
"""Stands for a carry that was not asked for."""


class ExportablePolicy(NamedTuple, Generic[ArrayT]):
    """The deterministic policy behind its preprocessors, as exporters take it."""

    model: Any
    """The policy's module, in evaluation mode; the function calls it."""
    function: Callable[..., tuple[ArrayT, ...]]
    """`(parameters, moments, *inputs) -> outputs`; inputs and outputs in the order of their names, a row for each observation."""
    parameters: Parameters[ArrayT]
    moments: Tree
    inputs: Mapping[str, NumpyArray]
    """Name -> an example of two rows: `observations` (of a Dict space `observations.<key>`); of a recurrent policy also `carry`,
    `previous_actions` and `previous_rewards`, those that it has."""
    outputs: tuple[str, ...]
    """`actions` in the Box's units; of a recurrent policy also `next_carry` and `next_previous_actions`."""


class Predictor(Generic[ArrayT]):
    """Chooses actions with the learner's parameters and a copy of the policy in evaluation mode. It changes nothing of a training.

    Args:
        action_space: of one environment.
    """

    def __init__(
        self,
        backend: Backend[ArrayT],
        cfg: SACConfig,
        spaces: Spaces,
        action_space: Space,
        *,
        models: Models[ArrayT],
        normalisers: Normalisers[ArrayT],
        learner: Learner[ArrayT],
        carry: AnyCarry[ArrayT],
        transitions: Transitions[ArrayT],
    ) -> None:
        self._backend, self._spaces, self._action_space = backend, spaces, action_space
        self._models, self._normalisers, self._learner = models, normalisers, learner
        self._carry, self._transitions = carry, transitions
        seed = np.random.SeedSequence([cfg.seed, backend.ranks.rank, STREAMS])  # beside those that the agent learns with
        self._seeds = [seed] * STREAMS
        self._streams: AnyStreams | None = None
        self._acts: Mapping[str, Act[ArrayT, Any]] | None = None

    def predict(
        self,
        observations: object,
        states: object,
        *,
        carry: object,
        episode_start: object,
        rewards: object,
        deterministic: bool,
    ) -> tuple[NumpyArray, Prediction, bool]:
        """Return actions, `(n, *action)`, the carry after them, and whether several were asked for; see `Agent.predict`."""
        if carry is NO_CARRY and not isinstance(self._carry, NoCarry):
            raise ValueError(
                "predict: this agent's policy has a carry, and predict was called without: call "
                "actions, carry = agent.predict(observations, carry=carry), with carry=None before the first observation"
            )
        batched, given = self._batched(observations, self._spaces.observations, "observations")
        if states is not None and self._spaces.states is not None:
            _, states = self._batched(states, self._spaces.states, "states", batched=batched)
        checked = self._transitions.check_inputs(given, states)
        rows = int(leaves(checked[0])[0].shape[0])
        starts = _starts(episode_start, rows)
        carried = self._carry.initial_prediction(rows)
        begins = carry is None or carry is NO_CARRY
        if not begins:
            carried = map_leaves(lambda fresh, held: zero_where(starts, held, fresh), carried, _like(carry, carried))
        inputs = {"observations": checked[0], "states": checked[1], **carried.previous}
        if carried.previous and (begins or rewards is not None or starts.all()):
            before = np.zeros(rows) if begins or rewards is None else self._transitions.shape_rewards(_rows(rewards, batched), rows)
            inputs["previous_rewards"] = zero_where(starts, before)
        chosen, after = self._act("greedy" if deterministic else "sampled", inputs, carried.carry)
        actions = as_box(chosen, self._action_space)
        previous = {name: self._transitions.unscaled(actions) for name in carried.previous}
        return actions, Prediction(after, previous), batched

    def exportable(self) -> ExportablePolicy[ArrayT]:
        """Return the deterministic policy as a function of its inputs, as exporters take it."""
        model, function = self._models.in_evaluation_mode("policy")
        greedy = action_modes(self._carry.actor(function), self._learner.bounds)["greedy"].function
        inputs = {"observations": example_inputs(self._spaces, 2, 0)["observations"]}
        initial = self._carry.initial_prediction(2)
        if initial.previous:
            network = getattr(model, "network", None)
            fed = network.feed_previous if isinstance(network, Network) else PREVIOUS  # a model of a user's own may read both
            values = {"actions": initial.previous["previous_actions"], "rewards": np.zeros(2)}
            inputs |= {f"previous_{name}": values[name] for name in PREVIOUS if name in fed}
        template = {**map_leaves(self._backend.act_inputs, inputs), "carry": initial.carry}

        def run(parameters: Parameters[ArrayT], moments: Tree, *arrays: ArrayT) -> tuple[ArrayT, ...]:
            given = iter(arrays)
            values: Any = {**map_leaves(lambda _: next(given), template), "states": None}
            carry = values.pop("carry")
            actions, _, carry = greedy(parameters, ActInputs(values, moments, carry))
            shaped = namespace(actions).reshape(actions, (-1, *self._spaces.action_shape))
            outputs = {"actions": self._transitions.narrow(shaped), "next_carry": carry}
            if "previous_actions" in values:
                outputs["next_previous_actions"] = from_box(actions, *self._learner.bounds)
            return tuple(leaves(outputs))

        outputs = ["actions", *(f"next_{name}" for name in named_leaves(initial.carry, "carry"))]
        return ExportablePolicy(
            model=model,
            function=run,
            parameters=self._learner.state.policy,
            moments=self._normalisers.moments,
            inputs=map_leaves(self._backend.to_numpy, map_leaves(self._backend.upload, named_leaves(template))),
            outputs=tuple([*outputs, "next_previous_actions"] if "previous_actions" in inputs else outputs),
        )

    def forget(self) -> None:
        """Forget a copy of the policy whose constants are others now."""
        self._acts = None

    def _actor(self) -> Actor[ArrayT]:
        return self._carry.actor(self._models.in_evaluation_mode("policy")[1])

    def _act(self, mode: str, inputs: Mapping[str, Tree], carry: Tree) -> tuple[NumpyArray, Tree]:
        learner, backend = self._learner, self._backend
        if self._acts is None:
            self._acts = backend.functions(learner.update, learner.draw_spec(), self._actor(), learner.bounds, "plain", 1).act
        if self._streams is None:
            self._streams = backend.streams(self._seeds)
        given: Any = {name: backend.act_inputs(values) for name, values in inputs.items()}
        acting = ActInputs(given, self._normalisers.moments, backend.act_inputs(carry))
        try:
            actions, _, carry, self._streams = self._acts[mode](learner.state.policy, self._streams, acting)
        except KeyError as error:
            if error.args != ("previous_rewards",):
                raise
            raise ValueError(
                "predict: this policy sees the reward of the step before, and rewards is None: pass what the step gave, "
                "agent.predict(observations, carry=carry, rewards=rewards)"
            ) from error
        shaped = backend.to_numpy(self._transitions.narrow(actions)).reshape(-1, *self._spaces.action_shape)
        return shaped, map_leaves(backend.to_numpy, carry)

    def _batched(self, values: object, fields: Tree, kind: str, *, batched: bool | None = None) -> tuple[bool, Tree]:
        """Tell whether values are of several observations, and return them with a leading axis, as arrays.

        Args:
            batched: whether they must be; None where that is to be found.
        """
        arrays = named_leaves(_as_arrays(values, kind), kind)
        found = named_leaves(fields, kind)
        if arrays.keys() != found.keys():
            return True, values  # whose keys, or lack of them, the check of transitions names
        for name, field in found.items():
            got, one = tuple(arrays[name].shape), field.shape
            several = len(got) == len(one) + 1
            if got[several:] != one or several is not (several if batched is None else batched):
                many = f"(n, *{one})"
                expected = f"{one} for one, or {many} for n" if batched is None else f"{many if batched else one} as the others"
                raise ValueError(
                    f"predict: {name} have shape {got}, expected {expected}: give one observation as the space says, "
                    f"or several stacked along a first axis"
                )
            batched = several
        tree = _as_arrays(values, kind)
        return bool(batched), tree if batched else map_leaves(lambda array: array[None], tree)


def _as_arrays(values: object, name: str) -> Tree:
    if isinstance(values, Mapping):
        return {key: _as_arrays(branch, f"{name}.{key}") for key, branch in values.items()}
    return as_numpy(values, name)


def _rows(values: object, batched: bool) -> object:
    return values if batched else [values]


def _starts(episode_start: object, rows: int) -> NDArray[np.bool_]:
    """Return which of the rows begin an episode, `(rows,)`."""
    given = np.asarray(False if episode_start is None else episode_start)
    if given.shape not in ((), (rows,)) or (given.dtype.kind != "b" and not np.isin(given, (0, 1)).all()):
        raise ValueError(
            f"predict: episode_start is {episode_start!r}, expected None, True, False, or {rows} of them: one for each observation"
        )
    return np.broadcast_to(given.astype(np.bool_), (rows,))


def _like(carry: object, initial: Prediction) -> Tree:
    """Return a carry that was given, if it has the shapes of this one."""
    expected, got = ({path: np.shape(leaf) for path, leaf in named_leaves(tree).items()} for tree in (initial, carry))
    if not isinstance(carry, Prediction) or got != expected:
        raise ValueError(
            f"predict: carry is {got if isinstance(carry, Prediction) else f'{carry!r:.100}'}, expected {expected}: pass what predict "
            f"returned for as many observations, "
            f"or None to begin episodes"
        )
    return carry
