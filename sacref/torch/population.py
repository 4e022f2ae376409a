"""Populations: agents whose gradient steps and actions are one recording, mapped over a leading axis of members."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sacref.agent import population as shared
from sacref.agent.execution import action_modes
from sacref.agent.lockstep import Lockstep
from sacref.agent.population import OPTIMIZERS, Members, differences, meet, member_of, members_of, stacked
from sacref.algorithm.data import Noise
from sacref.algorithm.tree import leaves
from sacref.config import Execution
from sacref.torch.capture import Captured
from sacref.torch.execution import advance_schedules, draw, in_place, learner, numbers
from sacref.torch.graph import RecordedTogether, detects_anomalies
from sacref.torch.memory import MemoryState
from sacref.torch.optim import State, Update

LearnRequest: TypeAlias = shared.LearnRequest[MemoryState, torch.Generator]
ActRequest: TypeAlias = shared.ActRequest[Tensor, torch.Generator]
Learned: TypeAlias = shared.Learned[torch.Generator, Tensor]
Acted: TypeAlias = shared.Acted[Tensor, torch.Generator]


class Population:
    """The members' states, stacked; the update is mapped over them (`sacref.agent.population.Population`).

    Args:
        execution: as for one agent. Where it is "plain", or only some members learn, they take their steps one after another.

    Raises:
        ValueError: if the members differ in a learning rate, which here is a constant of a recording.
    """

    def __init__(self, members: Members[Tensor, Update], *, execution: Execution) -> None:
        updates, specs, actor, bounds, states = members
        self.members: int = len(states)
        self._updates, self._specs, self._bounds = updates, specs, bounds
        self._state: State = stacked(states)
        self._states: list[State] = [member_of(self._state, member) for member in range(self.members)]
        different = differences(updates)
        for slot in OPTIMIZERS:
            if slot in different:
                raise ValueError(
                    f"the members' learning rates are {different[slot]}: on PyTorch they have to be the same, on JAX they may differ"
                )
        self._different = {name: self._state.log_alpha.new_tensor(values) for name, values in different.items()}
        self._modes = action_modes(actor, bounds)
        self._together = {name: RecordedTogether(mode.function) for name, mode in self._modes.items()}
        self._plain = execution == "plain"
        self._step = RecordedTogether(self._in_place)
        self._learn_one = [learner(*each, execution=execution) for each in zip(updates, specs, strict=True)]
        generators = tuple(generator for spec in specs for generator in spec.generators)
        self._gradient_step = Captured(self._draw_and_step, generators) if execution == "cuda_graph" else self._draw_and_step

    def __getitem__(self, member: int) -> State:
        return self._states[member]

    def __setitem__(self, member: int, state: State) -> None:
        for old, new in zip(leaves(self._states[member]), leaves(state), strict=True):
            if old is not new:
                old.copy_(new)

    def learn(self, requests: Mapping[int, LearnRequest], steps: int) -> dict[int, Learned]:
        if self._plain or len(requests) < self.members or detects_anomalies():
            return {member: self._learn_one[member](self._states[member], *request, steps)[1:] for member, request in requests.items()}
        memories, moments, streams = zip(*(requests[member] for member in range(self.members)), strict=True)
        metrics = []
        for _ in range(steps):
            for update, state in zip(self._updates, self._states, strict=True):
                advance_schedules(update, state)
            metrics.append(self._gradient_step(self._state, memories, moments, streams))
        packed = torch.stack(metrics, 1) if metrics else None
        return {member: (request.streams, [] if packed is None else [packed[member]]) for member, request in requests.items()}

    def act(self, mode: str, requests: Mapping[int, ActRequest]) -> dict[int, Acted]:
        function, distribution = self._modes[mode]
        drawn = {member: numbers(distribution, *request, self._bounds) for member, request in requests.items()}
        if self._plain:
            with torch.no_grad():
                return {
                    member: (*function(self._states[member].policy, inputs, *drawn[member]), streams)
                    for member, (streams, inputs) in requests.items()
                }
        anyone = next(iter(requests))
        given = [member if member in requests else anyone for member in range(self.members)]
        inputs = stacked([requests[member].inputs for member in given])
        actions = self._together[mode](self._state.policy, inputs, *stacked([drawn[member] for member in given]))
        return {member: (*member_of(actions, member), request.streams) for member, request in requests.items()}

    def _draw_and_step(self, state: State, memories: Any, moments: Any, streams: Any) -> Tensor:
        drawn = [draw(*given) for given in zip(memories, moments, streams, self._specs, strict=True)]
        batch, noise = (stacked([each[field] for each in drawn]) for field in (0, 1))
        metrics: Tensor = self._step(state, batch, noise, self._different)
        return metrics

    def _in_place(self, state: State, batch: Any, noise: Noise[Tensor], different: Mapping[str, Tensor]) -> Tensor:
        fields: dict[str, Any] = dict(different)
        return in_place(replace(self._updates[0], **fields), state, batch, noise)


def populate(agents: Sequence[Any]) -> Lockstep[Any, Any]:
    """Let agents that are alike learn and act together from now on; see `meet`."""
    return meet(agents, Population(members_of(agents), execution=agents[0].execution))
