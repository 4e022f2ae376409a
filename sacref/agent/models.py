"""The models of an agent: its own copies of the policy and the critics, as functions of their parameters."""

from collections.abc import Callable, Mapping
from typing import Any, Generic

import numpy as np

from sacref.agent.backend import Backend
from sacref.agent.model_checks import (
    call_on_trial,
    check_targets,
    has_head,
    held_values,
    refuse_changed,
    refuse_shared,
    require_learning,
    split_models,
    warn_of_quantisation,
)
from sacref.algorithm.optimizer import Parameters
from sacref.algorithm.tree import Tree, leaves
from sacref.config import ConfigError, SACConfig
from sacref.spec.arrays import ArrayT


class Models(Generic[ArrayT]):
    """Own copies of the policy and the critics. What they learn is the learner's; what they do not learn is in them.

    Args:
        models: as of the agents: `policy`, `critic_1`, ..., `target_critic_1`, ...
        learns: whether critics must be there.

    Raises:
        ValueError, TypeError, ConfigError: if a model is missing, unknown, or cannot be used.
    """

    def __init__(self, backend: Backend[ArrayT], cfg: SACConfig, models: Mapping[str, object], *, learns: bool) -> None:
        self._backend, weights = backend, backend.weights
        self._precision = cfg.precision if cfg.mixed_precision else None
        self.critics: list[str]
        self.critics, targets = split_models(models, learns=learns)
        """Names of the critics, in order."""
        if cfg.target_subset is not None and cfg.target_subset > len(self.critics) > 0:
            raise ConfigError(
                f"target_subset is {cfg.target_subset} and there are {len(self.critics)} critics, expected at most as many: lower it, or "
                f"give more critics, default_models(num_critics={cfg.target_subset})"
            )
        names = ("policy", *self.critics)
        for name in (*names, *targets):
            weights.refuse_hidden_state(name, models[name])
        refuse_shared(models, {name: weights.identities_of(models[name]) for name in (*names, *targets)})
        self.modules: dict[str, Any] = backend.own_copies({name: models[name] for name in names})
        parameters = {name: weights.parameters_of(models[name], backend.device) for name in names}
        for target in targets:
            parameters[target] = weights.parameters_of(models[target], backend.device, parameters[target.removeprefix("target_")])
        self.initial_parameters: dict[str, Parameters[ArrayT]] = parameters
        """Model, target critics included where they were given -> its parameters before the first gradient step."""
        constants = {name: weights.constants_of(models[name], own) for name, own in parameters.items()}
        self.constants: dict[str, Parameters[ArrayT]] = {
            name: weights.constants_of(model, parameters[name]) for name, model in self.modules.items()
        }
        """Model -> what it computes with and does not learn: buffers and frozen parameters, by name."""
        backend.take_dtype({name: parameters[name] or constants[name] for name in parameters}, cfg.mixed_precision)
        require_learning(parameters, self.critics)
        check_targets(parameters, {name: {key: backend.to_numpy(a) for key, a in held.items()} for name, held in constants.items()})
        for name in self.modules:
            if self.is_recurrent(name):
                self._refuse_learned_carry(name)
        self.functions: dict[str, Callable[..., Any]] = {}
        """Model -> the model as a function of its parameters."""
        self.take_functions()
        if self._precision is not None:
            warn_of_quantisation([name for name, model in self.modules.items() if not has_head(model)], self._precision)
        self.layouts: dict[str, str] = {
            name: "common" if isinstance(model, weights.CommonLayout) else backend.name for name, model in self.modules.items()
        }
        """Model -> "common", or the backend whose own layout its parameters have."""

    @property
    def are_common(self) -> bool:
        """True where `default_models` makes such models."""
        return all(layout == "common" for layout in self.layouts.values())

    def take_functions(self) -> None:
        """Compute with the models as they are now: functions may read their mode and constants once."""
        self.functions = {name: self._backend.function(name, model, self._precision) for name, model in self.modules.items()}

    def in_evaluation_mode(self, name: str) -> tuple[Any, Callable[..., Any]]:
        """Return a copy of a model, in evaluation mode, and the copy as a function of its parameters."""
        copied = self._backend.own_copies({name: self.modules[name]})[name]
        copied.eval()
        return copied, self._backend.function(name, copied, self._precision)

    def set_constants(self, constants: Mapping[str, Parameters[ArrayT]]) -> bool:
        """Compute with other constants; tell whether `functions` are to be taken anew."""
        replaced = self._backend.set_constants(self.modules, self.constants, constants)
        if replaced is None:
            return False
        self.modules, self.constants = replaced, {name: dict(own) for name, own in constants.items()}
        return True

    def is_recurrent(self, name: str) -> bool:
        return hasattr(self.modules[name], "initial_carry")

    def initial_carry(self, name: str, batch: int) -> Tree:
        """Return a model's carry before an episode, `(batch, ...)` each; () of a model without.

        Raises:
            TypeError: if it is no array, or a tuple or dict of arrays. ValueError: if they do not have a row for each environment or
                sequence.
        """
        carry = self.modules[name].initial_carry(batch) if self.is_recurrent(name) else ()
        strange = [type(leaf).__name__ for leaf in leaves(carry) if not hasattr(leaf, "shape")]
        if strange:
            raise TypeError(f"model {name!r} gives an initial_carry of type {strange[0]}, expected an array, or a tuple or dict of arrays")
        shapes = [tuple(leaf.shape) for leaf in leaves(carry)]
        if any(shape[:1] != (batch,) for shape in shapes):
            raise ValueError(
                f"model {name!r} gives initial_carry({batch}) of shapes {shapes}, expected ({batch}, ...): put the batch axis first, "
                f"before that of layers"
            )
        return carry

    def _refuse_learned_carry(self, name: str) -> None:
        self.initial_carry(name, 1)
        unknown = {key: self._backend.upload(np.full(array.shape, np.nan)) for key, array in self.initial_parameters[name].items()}
        carry = self._backend.weights.with_parameters(self.modules[name], unknown).initial_carry(1)
        if any(np.isnan(self._backend.to_numpy(leaf)).any() for leaf in leaves(carry)):
            raise ValueError(
                f"model {name!r} has an initial_carry that reads parameters which learn, expected a constant: no gradient goes back to the "
                f"carry before an episode; freeze them (requires_grad_(False), or a variable that is no nnx.Param)"
            )

    def try_out(self, name: str, function: Callable[..., object], *arguments: object) -> Any:
        """Call a model on example inputs; raise ValueError if that fails, or changes the model."""
        before = held_values(self.modules[name], self._backend.weights.fingerprint)
        with self._backend.trial():
            outputs = call_on_trial(name, function, *arguments)
        refuse_changed(name, before, held_values(self.modules[name], self._backend.weights.fingerprint))
        return outputs
