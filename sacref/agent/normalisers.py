"""What the models of an agent see: observations and states behind their preprocessors, which learn from the rows."""

from abc import abstractmethod
from typing import Any

import numpy as np

from sacref.agent.transitions import Border, Rows
from sacref.algorithm.tree import Tree, map_leaves, named_leaves
from sacref.envs.spaces import boxes
from sacref.preprocessing import Preprocessor
from sacref.ranks import Ranks
from sacref.spec.arrays import ArrayT


class Prepared(Border[ArrayT]):
    """The preprocessors of an agent. What they know is on the host; a copy of it, the moments, is where the models run."""

    observation_space: Any
    state_space: Any
    ranks: Ranks
    _preprocessors: dict[str, Preprocessor]
    """Name of an array -> its preprocessor."""

    # What a backend provides.

    _moments: Tree
    """What the preprocessors know, on the device in the agent's dtype: name of an array -> their arrays."""

    @abstractmethod
    def _take_moments(self) -> None:
        """Take what the preprocessors know to the device."""

    # The preprocessors.

    def _make_preprocessors(self, kind: str, space: Any) -> dict[str, Preprocessor]:
        """Name of an array -> its preprocessor, for each Box of a space; none where none is asked for.

        Raises:
            ValueError: if one is asked for states and there is no state_space.
        """
        factory, kwargs = getattr(self.cfg, f"{kind}_preprocessor"), getattr(self.cfg, f"{kind}_preprocessor_kwargs")
        if factory is None:
            return {}
        if space is None:
            raise ValueError(f"{kind}_preprocessor is set and there is no {kind}_space: construct the agent with one, or leave it at None")
        return {name: factory(box, **kwargs) for name, box in named_leaves(boxes(space), f"{kind}s").items()}

    def _feed_preprocessors(self, rows: Rows[Any]) -> None:
        """Show each observation that the environments produced to the preprocessors, once: successors, and what episodes began with.

        Those of all ranks, in one order: the moments stay equal everywhere.
        """
        if not self._preprocessors:
            return
        transition = rows.transition
        keep, begun = (self.to_numpy(mask) for mask in (rows.keep, rows.keep & rows.first))
        now = {**named_leaves(transition.observations, "observations"), **named_leaves(transition.states, "states")}
        then = {**named_leaves(transition.next_observations, "observations"), **named_leaves(transition.next_states, "states")}
        for name, preprocessor in self._preprocessors.items():
            preprocessor.update(self.ranks.rows(np.concatenate([self.to_numpy(now[name])[begun], self.to_numpy(then[name])[keep]])))
        self._take_moments()

    def _preprocessed(self, moments: Tree, kind: str, tree: Tree) -> Tree:
        """Observations or states (`kind`) as the models see them."""
        names = iter(named_leaves(tree, kind))

        def transform(values: Any) -> Any:
            name = next(names)
            if name not in self._preprocessors:
                return values
            return self._preprocessors[name].transform(moments[name], self._as_floats(values))

        return map_leaves(transform, tree)

    def _prepare_inputs(self, moments: Tree, inputs: Any) -> Any:
        """What a model is called with as it sees it."""
        if not self._preprocessors:
            return inputs
        return {**inputs, **{kind: self._preprocessed(moments, kind, inputs[kind]) for kind in ("observations", "states")}}

    def _prepare(self, moments: Tree, batch: Any) -> Any:
        """A batch, or sequences, as the models see them."""
        if not self._preprocessors:
            return batch
        fields = {"observations": "observations", "states": "states", "next_observations": "observations", "next_states": "states"}
        return batch._replace(
            **{field: self._preprocessed(moments, kind, getattr(batch, field)) for field, kind in fields.items() if hasattr(batch, field)}
        )
