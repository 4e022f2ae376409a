"""Populations: agents whose gradient steps and actions are one compiled call, mapped over a leading axis of members."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sacref.agent.agent import Agent
from sacref.agent.execution import Acted, ActInputs, pack
from sacref.agent.members import OPTIMIZERS, Mask, Members, by_member, by_row, differences, member_of, stacked
from sacref.agent.population import Population
from sacref.algorithm.data import Inputs, Noise, Sampled
from sacref.algorithm.optimizer import Parameters
from sacref.algorithm.sequences import PartRings
from sacref.algorithm.tree import Tree, map_leaves
from sacref.jax.execution import Act, Fused, HeldState, Streams, acts, draw
from sacref.jax.memory import MemoryState, ReplayMemory, sampler
from sacref.jax.optim import State, Update
from sacref.spec import arrays


class Together:
    """The members' states and streams, stacked; the update is mapped over them (`sacref.agent.members.Together`)."""

    def __init__(self, members: Members[Array, Update, Array]) -> None:
        self._members, self._block, self._memory = len(members.states), members.block, members.memory
        self._held = HeldState(stacked(members.states))
        self._streams: Streams = stacked(members.streams)
        self._moments: Tree = {}
        dtype = members.states[0].log_alpha.dtype
        self._different = {name: jnp.asarray(values, dtype) for name, values in differences(members.updates).items()}
        update, spec, count = members.updates[0], members.specs[0], self._members
        envs = members.memory.num_envs // count
        discounts_steps = "discount_factor" in self._different and members.follow.n_step > 1

        def step(state: State, batch: Sampled[Array], noise: Noise[Array], different: Mapping[str, Array]) -> tuple[State, Array]:
            fields: dict[str, Any] = {
                name: getattr(update, name).with_rate(value) if name in OPTIMIZERS else value for name, value in different.items()
            }
            state, metrics = replace(update, **fields)(state, batch, noise)
            return state, pack(metrics)

        def scan(
            different: Mapping[str, Array], steps: int, state: State, memory: MemoryState, moments: Tree, streams: Streams
        ) -> tuple[State, Streams, Array]:
            heads, sizes = by_member((memory.head, memory.size), count)
            first = envs * jnp.arange(count, dtype=jnp.int32)

            def draw_one(streams: Streams, moments: Tree, head: Array, size: Array, first: Array, different: Mapping[str, Array]) -> Any:
                sample = spec.sample
                if discounts_steps:
                    sample = sampler(members.follow._replace(discount_factor=cast(Any, different["discount_factor"])))
                rings: Any = PartRings(memory, head, size, first)
                return draw(rings, moments, streams, replace(spec, sample=sample))

            def all_step(carry: tuple[State, Streams], _: None) -> tuple[tuple[State, Streams], Array]:
                state, streams = carry
                batch, noise, streams = jax.vmap(draw_one)(streams, moments, heads, sizes, first, different)
                state, metrics = jax.vmap(step)(state, batch, noise, different)
                return (state, streams), metrics

            (state, streams), metrics = jax.lax.scan(all_step, (state, streams), length=steps)
            return state, streams, jnp.moveaxis(metrics, 1, 0)

        @partial(jax.jit, donate_argnums=(0, 1), static_argnums=(6, 7))
        def learn(
            state: State,
            streams: Streams,
            memory: MemoryState,
            moments: Tree,
            different: Mapping[str, Array],
            which: Array,
            steps: int,
            all_learn: bool,
        ) -> tuple[State, Streams, Array]:
            stepped, after, metrics = scan(different, steps, state, memory, moments, streams)
            if not all_learn:
                stepped, after = _where(which, (stepped, after), (state, streams))
            return stepped, after, metrics

        modes = acts(members.actor, members.bounds)

        def act_together(mode: str) -> Act:
            def act(policy: Parameters[Array], streams: Streams, given: ActInputs[Array]) -> tuple[Array, Array, Tree, Streams]:
                inputs, carry = by_member((given.inputs, given.carry), count)
                actions, mean_actions, after, drawn = jax.vmap(modes[mode])(policy, streams, ActInputs(inputs, given.moments, carry))
                return *by_row((actions, mean_actions, after)), drawn

            return act

        all_act = {name: act_together(name) for name in modes}

        @partial(jax.jit, static_argnums=(0, 5))
        def act(
            mode: str, policy: Parameters[Array], streams: Streams, given: ActInputs[Array], which: Array, all_active: bool
        ) -> tuple[Array, Array, Tree, Streams]:
            actions, mean_actions, after, drawn = all_act[mode](policy, streams, given)
            if not all_active:
                drawn = _where(which, drawn, streams)
                after = by_row(_where(which, by_member(after, count), by_member(given.carry, count)))
            return actions, mean_actions, after, drawn

        @jax.jit
        def act_alone(policy: Parameters[Array], streams: Streams, member: int, inputs: ActInputs[Array]) -> tuple[Array, Array, Tree]:
            policy, streams = member_of((policy, streams), member)
            return modes["greedy"](policy, streams, inputs)[:3]

        self._learn, self._act, self._act_alone = learn, act, act_alone
        self._fused: Fused | None = None
        if members.execution == "scan":
            self._fused = Fused(partial(scan, self._different, self._block), all_act, steps=self._block, dtype=dtype)
        self._of = jax.jit(member_of)
        self._with = jax.jit(
            lambda tree, member, value: map_leaves(lambda leaf, own: leaf.at[member].set(own), tree, value), donate_argnums=0
        )

    def __getitem__(self, member: int) -> State:
        state: State = self._of(self._held.separate, member)
        return state

    def __setitem__(self, member: int, state: State) -> None:
        self._held.separate = self._with(self._held.separate, member, state)

    def streams(self, member: int) -> Streams:
        streams: Streams = self._of(self._streams, member)
        return streams

    def set_streams(self, member: int, streams: Streams) -> None:
        self._streams = self._with(self._streams, member, streams)

    def hold_moments(self, moments: Sequence[Tree]) -> Sequence[Tree]:
        self._moments = map_leaves(lambda *arrays: np.stack(arrays), *moments)
        return moments

    def learn(self, which: Mask, steps: int) -> list[Array]:
        packed, memory, all_learn = [], self._memory.state, bool(which.all())
        for length in [self._block] * (steps // self._block) + [1] * (steps % self._block):
            self._held.separate, self._streams, metrics = self._learn(
                self._held.separate, self._streams, memory, self._moments, self._different, which, length, all_learn
            )
            packed.append(metrics)
        return packed

    @property
    def fused_steps(self) -> int | None:
        return None if self._fused is None else self._fused.steps

    def learn_and_act(self, mode: str, inputs: Inputs[arrays.Array], carry: Tree) -> tuple[Array, Acted[Array]]:
        assert self._fused is not None
        memory, rows = self._memory.hand_over()
        given = ActInputs(inputs, self._moments, carry)
        _, memory, self._streams, metrics, acted = self._fused(self._held, memory, rows, self._streams, mode, given)
        self._memory.take_back(memory)
        return metrics, acted

    def exploration(self) -> Sequence[object]:
        return cast(Sequence[object], self._streams.exploration)  # an array, which is not cut before one is asked for

    def act(self, mode: str, inputs: Inputs[Array], carry: Tree, which: Mask) -> tuple[Array, Array, Tree]:
        given = ActInputs(inputs, self._moments, carry)
        *acted, self._streams = self._act(mode, self._held.separate.policy, self._streams, given, which, bool(which.all()))
        return acted[0], acted[1], acted[2]

    def act_alone(self, member: int, inputs: ActInputs[Array]) -> tuple[Array, Array, Tree]:
        acted: tuple[Array, Array, Tree] = self._act_alone(self._held.separate.policy, self._streams, member, inputs)
        return acted

    def apart(self, packed: Sequence[Array]) -> Sequence[Any]:
        return [*np.concatenate(jax.device_get(list(packed)), axis=1)]

    def synchronise(self) -> None:
        wait: Callable[[object], object] = jax.block_until_ready
        wait((self._held.separate, self._streams, self._memory.state))


def _where(which: Array, new: Tree, old: Tree) -> Tree:
    """Return the new arrays of some members, and the old ones of the others."""
    return map_leaves(lambda new, old: jnp.where(which.reshape(-1, *[1] * (new.ndim - 1)), new, old), new, old)


def populate(agents: Sequence[Agent[Array] | None], memory: ReplayMemory, timesteps: Sequence[int]) -> Population[Array]:
    """Let agents learn and act together from now on; for the arguments see `Population`.

    Raises:
        ValueError: if an agent computes on several devices.
    """
    backends: list[Any] = [agent.learner.backend for agent in agents if agent is not None]
    if any(backend.parallel is not None for backend in backends):
        raise ValueError("a population learns on one device: leave out the other devices, or train its members one by one")
    return Population(agents, memory, Together, timesteps)
