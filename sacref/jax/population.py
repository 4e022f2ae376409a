"""Populations: agents whose gradient steps and actions are one compiled call, mapped over a leading axis of members."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sacref.agent import population as shared
from sacref.agent.execution import action_modes, pack
from sacref.agent.lockstep import Lockstep
from sacref.agent.population import OPTIMIZERS, Members, differences, meet, member_of, members_of, stacked
from sacref.algorithm.data import Noise, Sampled
from sacref.algorithm.optimizer import Parameters
from sacref.algorithm.tree import map_leaves
from sacref.jax.execution import Act, Streams, acting, advance, draw_noise
from sacref.jax.memory import MemoryState
from sacref.jax.optim import State, Update

LearnRequest: TypeAlias = shared.LearnRequest[MemoryState, Array]
ActRequest: TypeAlias = shared.ActRequest[Array, Array]
Learned: TypeAlias = shared.Learned[Array, Array]
Acted: TypeAlias = shared.Acted[Array, Array]


class Population:
    """The members' states, stacked; the update is mapped over them (`sacref.agent.population.Population`).

    Args:
        block: gradient steps of one compiled call, as for one agent.
    """

    def __init__(self, members: Members[Array, Update], *, block: int = 1) -> None:
        updates, specs, actor, bounds, states = members
        self.members: int = len(states)
        self._block = block
        self._state: State = stacked(states)
        dtype = states[0].log_alpha.dtype
        self._different = {name: jnp.asarray(values, dtype) for name, values in differences(updates).items()}
        update = updates[0]
        self._lock = threading.Lock()
        """Held by threads that read and write members' states; while any does, none learns."""

        def step(state: State, batch: Sampled[Array], noise: Noise[Array], different: Mapping[str, Array]) -> tuple[State, Array]:
            fields: dict[str, Any] = {
                name: getattr(update, name).with_rate(value) if name in OPTIMIZERS else value for name, value in different.items()
            }
            state, metrics = replace(update, **fields)(state, batch, noise)
            return state, pack(metrics)

        @partial(jax.jit, donate_argnums=0, static_argnums=(4, 5))
        def scan(
            state: State, requests: Sequence[LearnRequest], different: Mapping[str, Array], learns: Array, steps: int, all_learn: bool
        ) -> tuple[State, list[Streams], Array]:
            moments = stacked([request.moments for request in requests])

            def all_step(carry: tuple[State, Streams], _: None) -> tuple[tuple[State, Streams], Array]:
                state, streams = carry
                sampling, keys = jax.vmap(advance)(streams.sampling)
                # Each from its own memory: stacked, all memories would be copied.
                rows = [spec.sample(request.memory, spec.batch_size, key) for request, spec, key in zip(requests, specs, keys, strict=True)]
                streams = streams._replace(sampling=sampling)
                batch, noise, streams = jax.vmap(partial(draw_noise, spec=specs[0]))(stacked(rows), moments, streams)
                stepped, metrics = jax.vmap(step)(state, batch, noise, different)
                return (stepped, streams), metrics

            (stepped, streams), metrics = jax.lax.scan(all_step, (state, stacked([request.streams for request in requests])), length=steps)
            if not all_learn:
                stepped = map_leaves(lambda new, old: jnp.where(learns.reshape(-1, *[1] * (new.ndim - 1)), new, old), stepped, state)
            return stepped, self._apart(streams), jnp.moveaxis(metrics, 1, 0)

        self._scan = scan
        self._modes = {name: self._together(acting(mode, bounds)) for name, mode in action_modes(actor, bounds).items()}
        self._of = jax.jit(member_of)
        self._with = jax.jit(
            lambda tree, member, value: map_leaves(lambda leaf, own: leaf.at[member].set(own), tree, value), donate_argnums=0
        )

    def __getitem__(self, member: int) -> State:
        with self._lock:
            state: State = self._of(self._state, member)
        return state

    def __setitem__(self, member: int, state: State) -> None:
        with self._lock:
            self._state = self._with(self._state, member, state)

    def learn(self, requests: Mapping[int, LearnRequest], steps: int) -> dict[int, Learned]:
        anyone = next(iter(requests.values()))
        given = [requests.get(member, anyone) for member in range(self.members)]
        learns = np.array([member in requests for member in range(self.members)])
        packed: dict[int, list[Array]] = {member: [] for member in requests}
        for length in [self._block] * (steps // self._block) + [1] * (steps % self._block):
            self._state, streams, metrics = self._scan(self._state, given, self._different, learns, length, bool(learns.all()))
            given = [request._replace(streams=its) for request, its in zip(given, streams, strict=True)]
            for member, of_member in packed.items():
                of_member.append(metrics[member])
        return {member: (given[member].streams, of_member) for member, of_member in packed.items()}

    def act(self, mode: str, requests: Mapping[int, ActRequest]) -> dict[int, Acted]:
        anyone = next(iter(requests.values()))
        acted = self._modes[mode](self._state.policy, [requests.get(member, anyone) for member in range(self.members)])
        return {member: acted[member] for member in requests}

    def _together(self, act: Act) -> Callable[[Parameters[Array], Sequence[ActRequest]], list[Acted]]:
        @jax.jit
        def act_together(parameters: Parameters[Array], requests: Sequence[ActRequest]) -> list[Acted]:
            request = stacked(requests)
            return self._apart(jax.vmap(act)(parameters, request.streams, request.inputs))

        return act_together

    def _apart(self, tree: object) -> list[Any]:
        return [member_of(tree, member) for member in range(self.members)]


def populate(agents: Sequence[Any]) -> Lockstep[Any, Any]:
    """Let agents that are alike learn and act together from now on; see `meet`.

    Raises:
        ValueError: if an agent computes on several devices.
    """
    if agents[0].learner.backend.parallel is not None:
        raise ValueError("a population learns on one device: leave out the other devices, or train its members one by one")
    return meet(agents, Population(members_of(agents), block=agents[0].learner.block))
