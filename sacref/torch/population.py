"""Populations: agents whose gradient steps and actions are one recording, mapped over a leading axis of members."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sacref.agent.agent import Agent
from sacref.agent.execution import Acted, ActInputs, action_modes, numbers_shape
from sacref.agent.members import OPTIMIZERS, Mask, Members, by_member, by_row, differences, member_of, stacked
from sacref.agent.population import Population
from sacref.algorithm.data import Inputs, Noise
from sacref.algorithm.optimizer import Parameters
from sacref.algorithm.sequences import PartRings
from sacref.algorithm.tree import Tree, leaves, map_leaves
from sacref.spec.arrays import Array
from sacref.torch.capture import Captured
from sacref.torch.device import synchronise
from sacref.torch.execution import DISTRIBUTIONS, Fused, Streams, advance_schedules, draw, in_place, learner
from sacref.torch.graph import Recorded, RecordedTogether, detects_anomalies
from sacref.torch.memory import MemoryState, ReplayMemory, draw_together
from sacref.torch.optim import State, Update


class Together:
    """The members' states, stacked, and their streams; the update is mapped over them (`sacref.agent.members.Together`).

    Where the execution is "plain", or only some members learn, they take their steps one after another.

    Raises:
        ValueError: if the members differ in a learning rate, which here is a constant of a recording.
    """

    def __init__(self, members: Members[Tensor, Update, torch.Generator]) -> None:
        self._members = len(members.states)
        self._updates, self._specs, self._bounds, self._memory = members.updates, members.specs, members.bounds, members.memory
        self._state: State = stacked(members.states)
        self._states: list[State] = [member_of(self._state, member) for member in range(self._members)]
        self._streams = list(members.streams)
        self._moments: Tree = None
        self._moments_of: list[Tree] = []
        self._rings: list[Any] = []
        different = differences(members.updates)
        for slot in OPTIMIZERS:
            if slot in different:
                raise ValueError(
                    f"the members' learning rates are {different[slot]}: on PyTorch they have to be the same, on JAX they may differ"
                )
        self._different = {name: self._state.log_alpha.new_tensor(values) for name, values in different.items()}
        self._modes = action_modes(members.actor, members.bounds)
        self._together = {name: RecordedTogether(mode.function) for name, mode in self._modes.items()}
        self._plain = members.execution == "plain"
        greedy = self._modes["greedy"].function
        self._alone = torch.no_grad()(greedy) if self._plain else Recorded(greedy)
        self._step = RecordedTogether(self._in_place)
        each = zip(members.updates, members.specs, strict=True)
        self._learn_one = [learner(*own, execution=members.execution) for own in each]
        generators = tuple(generator for spec in members.specs for generator in spec.generators)
        captured = members.execution == "cuda_graph"
        spec = members.specs[0]
        self._draws_together = not (members.follow.needs_first or spec.draw_widths or spec.target_subset)
        """Members draw transitions of one step and the noise of two actions."""
        self._gradient_step = Captured(self._draw_and_step, generators) if captured else self._draw_and_step
        self._fused: Fused[tuple[Streams, ...]] | None = None
        if not (self._plain or (captured and any(update.scheduled_on_host for update in members.updates))):
            self._fused = Fused(
                partial(self._learn_all, self._draw_and_step),
                {mode: partial(self._act_all, mode) for mode in self._modes},
                steps=members.block,
                like=members.bounds.low,
                captures=captured,
                generators=generators,
            )

    def __getitem__(self, member: int) -> State:
        return self._states[member]

    def __setitem__(self, member: int, state: State) -> None:
        for old, new in zip(leaves(self._states[member]), leaves(state), strict=True):
            if old is not new:
                old.copy_(new)

    def streams(self, member: int) -> Streams:
        return self._streams[member]

    def set_streams(self, member: int, streams: Streams) -> None:
        self._streams[member] = streams

    def hold_moments(self, moments: Sequence[Tree]) -> Sequence[Tree]:
        if self._moments is None:
            # The members write into their own parts, where a captured graph reads them.
            self._moments = stacked(moments)
            self._draws_together = self._draws_together and not leaves(self._moments)  # which are for one member's batch
            self._moments_of = [member_of(self._moments, member) for member in range(self._members)]
        return self._moments_of

    def learn(self, which: Mask, steps: int) -> list[Tensor]:
        memory = self._memory.state
        self._find_rings(memory)
        if self._plain or not which.all() or detects_anomalies():
            return self._learn_apart(which, steps)
        return self._learn_all(self._gradient_step, self._state, memory, tuple(self._moments_of), tuple(self._streams), steps)[2]

    def _find_rings(self, memory: MemoryState) -> None:
        """Find each member's part of the memory, once: it is written in place."""
        if not self._rings or self._rings[0].memory is not memory:
            head, size = by_member((memory.head, memory.size), self._members)
            envs = self._memory.num_envs // self._members
            self._rings = [PartRings(memory, *own, envs * member) for member, own in enumerate(zip(head, size, strict=True))]

    def _learn_all(
        self,
        gradient_step: Callable[..., Tensor],
        state: State,
        memory: MemoryState,
        moments: Tree,
        streams: tuple[Streams, ...],
        steps: int,
    ) -> tuple[State, tuple[Streams, ...], list[Tensor]]:
        metrics = []
        for _ in range(steps):
            for update, own in zip(self._updates, self._states, strict=True):
                advance_schedules(update, own)
            metrics.append(gradient_step(state, tuple(self._rings), moments, streams))
        return state, streams, [torch.stack(metrics, 1)] if metrics else []

    @property
    def fused_steps(self) -> int | None:
        return None if self._fused is None or detects_anomalies() else self._fused.steps

    def learn_and_act(self, mode: str, inputs: Inputs[Array], carry: Tree) -> tuple[Tensor, Acted[Tensor]]:
        assert self._fused is not None
        memory, rows = self._memory.hand_over()
        self._find_rings(memory)
        given = ActInputs(inputs, tuple(self._moments_of), carry)
        _, _, _, metrics, acted = self._fused(self._state, memory, rows, tuple(self._streams), mode, given)
        self._memory.take_back(memory)
        return metrics, acted

    def exploration(self) -> Sequence[Tensor]:
        return [own.exploration.get_state() for own in self._streams]

    def _learn_apart(self, which: Mask, steps: int) -> list[Tensor]:
        learned = {
            member: self._learn_one[member](
                self._states[member], self._rings[member], self._moments_of[member], self._streams[member], steps
            )[2]
            for member in np.flatnonzero(which).tolist()
        }
        like = next(iter(learned.values()))
        nothing = map_leaves(torch.zeros_like, tuple(like))
        return [torch.stack(each) for each in zip(*(learned.get(member, nothing) for member in range(self._members)), strict=True)]

    def act(self, mode: str, inputs: Inputs[Tensor], carry: Tree, which: Mask) -> tuple[Tensor, Tensor, Tree]:
        actions, mean_actions, after = self._act_of(mode, self._state.policy, self._streams, inputs, carry, which)
        if not which.all():
            some = torch.from_numpy(which).to(actions.device)
            new, old = by_member((after, carry), self._members)
            after = by_row(map_leaves(lambda new, old: torch.where(some.reshape(-1, *[1] * (new.ndim - 1)), new, old), new, old))
        return actions, mean_actions, after

    def _act_all(
        self, mode: str, policy: Parameters[Tensor], streams: tuple[Streams, ...], given: ActInputs[Tensor]
    ) -> tuple[Tensor, Tensor, Tree, tuple[Streams, ...]]:
        everyone = np.ones(self._members, np.bool_)
        return *self._act_of(mode, policy, streams, given.inputs, given.carry, everyone), streams

    def _act_of(
        self, mode: str, policy: Parameters[Tensor], streams: Sequence[Streams], inputs: Inputs[Tensor], carry: Tree, which: Mask
    ) -> tuple[Tensor, Tensor, Tree]:
        """Return actions, mean actions and the carry, `(members * envs, ...)`; random numbers are drawn for some members."""
        function, distribution = self._modes[mode]
        inputs, carry = by_member((inputs, carry), self._members)
        given = ActInputs(inputs, self._moments, carry)
        drawn = self._numbers(distribution, given, streams, which)
        acted: tuple[Tensor, Tensor, Tree]
        if self._plain:
            with torch.no_grad():
                members = range(self._members)
                acted = stacked([function(self._states[i].policy, *member_of((given, *drawn), i)) for i in members])
        else:
            acted = self._together[mode](policy, given, *drawn)
        rows: tuple[Tensor, Tensor, Tree] = by_row(acted)
        return rows

    def _numbers(self, distribution: str | None, given: ActInputs[Tensor], streams: Sequence[Streams], which: Mask) -> tuple[Tensor, ...]:
        """Draw the random numbers of an action mode, each member's from its own stream."""
        if distribution is None:
            return ()
        drawn = torch.zeros(
            (self._members, *numbers_shape(member_of(given, 0), self._bounds)), dtype=self._bounds.low.dtype, device=self._bounds.low.device
        )
        for member in np.flatnonzero(which).tolist():
            DISTRIBUTIONS[distribution](drawn.shape[1:], generator=streams[member].exploration, out=drawn[member])
        return (drawn,)

    def act_alone(self, member: int, inputs: ActInputs[Tensor]) -> tuple[Tensor, Tensor, Tree]:
        acted: tuple[Tensor, Tensor, Tree] = self._alone(self._states[member].policy, inputs)
        return acted

    def apart(self, packed: Sequence[Tensor]) -> Sequence[Tensor]:
        return list(torch.cat(list(packed), 1))

    def synchronise(self) -> None:
        synchronise(self._state.log_alpha.device)

    def _draw_and_step(self, state: State, rings: Any, moments: Any, streams: Any) -> Tensor:
        if self._draws_together:
            memory, spec = rings[0].memory, self._specs[0]
            batch: Any = draw_together(memory, self._members, spec.batch_size, [own.sampling for own in streams])
            first, second = (self._normal(batch.actions, streams) for _ in range(2))
            noise = Noise(next_actions=first, actions=second)
        else:
            drawn = [draw(*given) for given in zip(rings, moments, streams, self._specs, strict=True)]
            batch, noise = (stacked([each[field] for each in drawn]) for field in (0, 1))
        metrics: Tensor = self._step(state, batch, noise, self._different)
        return metrics

    def _normal(self, like: Tensor, streams: Sequence[Streams]) -> Tensor:
        numbers = torch.empty_like(like)
        for row, own in zip(numbers, streams, strict=True):
            torch.randn(row.shape, generator=own.noise, out=row)
        return numbers

    def _in_place(self, state: State, batch: Any, noise: Noise[Tensor], different: Mapping[str, Tensor]) -> Tensor:
        fields: dict[str, Any] = dict(different)
        return in_place(replace(self._updates[0], **fields), state, batch, noise)


def populate(agents: Sequence[Agent[Tensor] | None], memory: ReplayMemory, timesteps: Sequence[int]) -> Population[Tensor]:
    """Let agents learn and act together from now on; for the arguments see `Population`."""
    return Population(agents, memory, Together, timesteps)
