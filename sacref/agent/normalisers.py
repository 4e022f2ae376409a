"""Normalisers: observations and states as the models see them, behind preprocessors that learn from the rows."""

from collections.abc import Mapping
from typing import Any, Generic

import numpy as np

from sacref.agent.backend import Backend
from sacref.agent.transitions import Rows
from sacref.algorithm.tree import Tree, map_leaves, named_leaves
from sacref.config import SACConfig
from sacref.envs.interface import Space
from sacref.preprocessing import Preprocessor
from sacref.spec.arrays import Array, ArrayT, NumpyArray, namespace
from sacref.storage.naming import prefixed, under

FIELDS = {"observations": "observations", "states": "states", "next_observations": "observations", "next_states": "states"}
"""Field of a batch -> the kind of its values."""


def make_preprocessors(cfg: SACConfig, observation_space: Space, state_space: Space | None) -> dict[str, Preprocessor]:
    """Return the preprocessor of each Box, by name ("observations", "observations.camera", "states"); none where none is asked for.

    Raises:
        ValueError: if one is asked for states and there is no state_space.
    """
    made: dict[str, Preprocessor] = {}
    for kind, space in {"observation": observation_space, "state": state_space}.items():
        factory, kwargs = getattr(cfg, f"{kind}_preprocessor"), getattr(cfg, f"{kind}_preprocessor_kwargs")
        if factory is None:
            continue
        if space is None:
            raise ValueError(f"{kind}_preprocessor is set and there is no {kind}_space: construct the agent with one, or leave it at None")
        made |= {name: factory(box, **kwargs) for name, box in named_leaves(space, f"{kind}s").items()}
    return made


class Normalisers(Generic[ArrayT]):
    """The preprocessors of an agent. What they know is on the host; a copy of it, `moments`, is where the models run."""

    def __init__(self, backend: Backend[ArrayT], preprocessors: Mapping[str, Preprocessor]) -> None:
        self._backend = backend
        self.preprocessors = preprocessors
        self.moments: Tree = {}
        """Name of a preprocessor -> its arrays in the agent's dtype, as `Backend.update_moments` gives them."""
        self._update_moments()

    def feed(self, rows: Rows[Array]) -> None:
        """Show each observation that the environments produced to the preprocessors, once: successors, and what episodes began with.

        Those of all ranks, in one order: the moments stay equal everywhere.
        """
        if not self.preprocessors:
            return
        transition, to_numpy = rows.transition, self._backend.to_numpy
        keep, begun = to_numpy(rows.keep), to_numpy(namespace(rows.keep).logical_and(rows.keep, rows.first))
        now = {**named_leaves(transition.observations, "observations"), **named_leaves(transition.states, "states")}
        then = {**named_leaves(transition.next_observations, "observations"), **named_leaves(transition.next_states, "states")}
        for name, preprocessor in self.preprocessors.items():
            fresh = np.concatenate([to_numpy(now[name])[begun], to_numpy(then[name])[keep]])
            fresh = self._backend.ranks.rows(fresh)
            if len(fresh):
                preprocessor.update(fresh)
        self._update_moments()

    def prepare_inputs(self, moments: Tree, inputs: Any) -> Any:
        """Return the inputs of a model as it sees them."""
        if not self.preprocessors:
            return inputs
        return {**inputs, **{kind: self._transformed(moments, kind, inputs[kind]) for kind in ("observations", "states")}}

    def prepare(self, moments: Tree, batch: Any) -> Any:
        """Return a batch, or sequences, as the models see them."""
        if not self.preprocessors:
            return batch
        return batch._replace(
            **{field: self._transformed(moments, kind, getattr(batch, field)) for field, kind in FIELDS.items() if hasattr(batch, field)}
        )

    def arrays(self) -> dict[str, NumpyArray]:
        """Return what the preprocessors know, as `preprocessor.observations...`."""
        # Copies, here and where they are set: one of a user's own may give the arrays that it goes on to write into.
        return {
            path: np.array(array)
            for name, preprocessor in self.preprocessors.items()
            for path, array in prefixed(f"preprocessor.{name}", preprocessor.arrays()).items()
        }

    def set_arrays(self, arrays: Mapping[str, NumpyArray]) -> None:
        """Go on from what `arrays` gave; other names are left out."""
        for name, preprocessor in self.preprocessors.items():
            preprocessor.set_arrays({key: np.array(array) for key, array in under(arrays, f"preprocessor.{name}").items()})
        self._update_moments()

    def _transformed(self, moments: Tree, kind: str, tree: Tree) -> Tree:
        names = iter(named_leaves(tree, kind))

        def transform(values: Any) -> Any:
            name = next(names)
            if name not in self.preprocessors:
                return values
            return self.preprocessors[name].transform(moments[name], self._backend.as_floats(values))

        return map_leaves(transform, tree)

    def _update_moments(self) -> None:
        held = {name: preprocessor.arrays() for name, preprocessor in self.preprocessors.items()}
        self.moments = self._backend.update_moments(self.moments, held)
