"""What an agent has learned, as arrays under common names that both backends have; and its random streams."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sacref.agent.normalisers import Prepared
from sacref.spec.arrays import ArrayT
from sacref.storage.naming import prefixed, require_same_arrays, under

MOMENTS = ("first_moment", "second_moment")
FLOATS = ("learning_rate", "loss_scale")
"""What an optimizer holds beside its moments that is no integer."""
NOT_NEGATIVE = ("count", "second_moment")
"""What of an optimizer's is never below 0: the next step would divide by 0 or take the root of a negative number."""


class Learned(Prepared[ArrayT]):
    """The state of an agent: parameters, optimizers, the temperature, preprocessors, and where its random streams are."""

    def __init__(self) -> None:
        super().__init__()
        self.gradient_step_count = 0
        self._streams_key: tuple[int, ...] = ()
        """Empty for streams that began with the agent; else when they began anew."""

    # What a backend provides.

    _runner: Any
    """An `AgentRunner`, or a `MemberRunner` of a population: holds the state, learns and acts."""
    _update: Any
    """The backend's `update.Update`."""
    _random: Any
    """The `Streams`."""

    _constants: Mapping[str, Mapping[str, Any]]
    """Model, but for targets -> what it computes with and does not learn: buffers and frozen parameters, by name."""

    @abstractmethod
    def _set_constants(self, constants: Mapping[str, Mapping[str, Any]]) -> None:
        """Let the models, and what runs them, compute with other constants; the arguments are those of `_constants`."""

    @abstractmethod
    def _export(self, model: str, parameters: Any) -> dict[str, NDArray[Any]]:
        """Parameters, gradients or moments of a model under common names."""

    @abstractmethod
    def _import(self, model: str, arrays: Mapping[str, NDArray[Any]], like: Any) -> Any:
        """The inverse of `_export`, in the dtypes of `like`."""

    @abstractmethod
    def _like(self, array: NDArray[Any], like: Any) -> Any:
        """A backend array of the dtype and device of `like`."""

    @abstractmethod
    def _streams(self) -> dict[str, NDArray[Any]]:
        """The random streams' states."""

    @abstractmethod
    def _begin_streams(self) -> None:
        """Put the random streams to where `_stream_seed` has them begin."""

    @abstractmethod
    def _set_streams(self, streams: Mapping[str, NDArray[Any]]) -> None: ...

    # State under common names.

    @property
    def _state(self) -> Any:
        """The backend's `update.State`."""
        return self._runner.state

    @_state.setter
    def _state(self, state: Any) -> None:
        self._runner.state = state

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All that the agent knows, under common names: parameters, log alpha, optimizer moments, counters; and the models' constants.

        `policy.<name>`, `critic_1.<name>`, `target_critic_1.<name>`, `log_alpha`, `gradient_steps`, and per optimizer `<optimizer>.count`,
        `<optimizer>.first_moment...` and `<optimizer>.second_moment...`; of preprocessors `preprocessor.observations...`. Buffers and
        frozen parameters are `policy.<name>` and `critic_1.<name>`; target critics have those of their critics.
        """
        return {**self._learned_arrays(), **self._constant_arrays()}

    def _constant_arrays(self) -> dict[str, NDArray[Any]]:
        """The models' constants under common names. They may be infinite, as masks are."""
        return self._flatten("", self._constants, "critics")

    def _learned_arrays(self) -> dict[str, NDArray[Any]]:
        """`arrays` without the models' constants."""
        state = self._state
        arrays = self._flatten("policy", state.policy, "policy") | self._flatten("", state.critics, "critics")
        arrays |= {f"target_{name}": array for name, array in self._flatten("", state.target_critics, "critics").items()}
        arrays |= {"log_alpha": self.to_numpy(state.log_alpha), "gradient_steps": np.array(self.gradient_step_count, np.int64)}
        for slot, (kind, tree) in self._optimized(state).items():
            moments = getattr(self._update, slot).moments(tree, getattr(state, slot))
            for name, moment in (moments or {}).items():
                if name in MOMENTS:
                    arrays |= self._flatten(f"{slot}.{name}", moment, kind)
                else:
                    scalar = self.to_numpy(moment)
                    arrays[f"{slot}.{name}"] = scalar if name in FLOATS else scalar.astype(np.int64)
        for name, preprocessor in self._preprocessors.items():
            # Copies, here and where they are set: one of a user's own may give the arrays that it goes on to write into.
            arrays |= {path: np.array(array) for path, array in prefixed(f"preprocessor.{name}", preprocessor.arrays()).items()}
        return arrays

    def set_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `arrays` gave, on this backend or the other.

        Raises:
            ValueError: if a name or a shape is not this agent's, or an optimizer's count or second moments are negative. Nothing is
                changed then.
        """
        self._put_arrays(arrays)
        self._forget_former()

    def _put_arrays(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """`set_arrays`, with all that is known of the former ones still there."""
        require_same_arrays(arrays, self.arrays())
        old = self._state
        held = {"policy": old.policy, **old.critics}
        models = {name: self._import(name, under(arrays, name), {**own, **self._constants[name]}) for name, own in held.items()}
        learned = {name: {key: models[name][key] for key in own} for name, own in held.items()}
        constants = {name: {key: models[name][key] for key in own} for name, own in self._constants.items()}
        targets = {name: self._import(name, under(arrays, f"target_{name}"), like) for name, like in old.target_critics.items()}
        state = old._replace(
            policy=learned.pop("policy"),
            critics=learned,
            target_critics=targets,
            log_alpha=self._like(arrays["log_alpha"], old.log_alpha),
        )
        for slot, (kind, tree) in self._optimized(state).items():
            optimizer = getattr(self._update, slot)
            if f"{slot}.count" in arrays:
                _require_not_negative(slot, under(arrays, slot))
                trees = {moment: self._unflatten(f"{slot}.{moment}", arrays, tree, kind) for moment in MOMENTS}
                scalars = {name: array for name, array in under(arrays, slot).items() if name.partition(".")[0] not in MOMENTS}
                state = state._replace(**{slot: optimizer.with_moments(tree, {**scalars, **trees})})
            else:
                state = state._replace(**{slot: optimizer.init(tree)})
        for name, preprocessor in self._preprocessors.items():
            preprocessor.set_arrays({key: np.array(array) for key, array in under(arrays, f"preprocessor.{name}").items()})
        self._take_moments()
        self._set_constants(constants)
        self._state, self.gradient_step_count = state, int(arrays["gradient_steps"])

    def _forget_former(self) -> None:
        """Forget what is known of arrays in whose place others are now. Who knows something of them adds to this."""

    def _begin_alike(self) -> None:
        """Let all ranks begin with what rank 0 does, whatever their models were drawn from."""
        if self.ranks.size > 1:
            self.set_arrays(self.ranks.from_first(self.arrays()))

    @staticmethod
    def _optimized(state: Any) -> dict[str, tuple[str, Any]]:
        """Optimizer -> what kind of tree it steps, and the tree. None without critics: such an agent only acts."""
        if not state.critics:
            return {}
        return {
            "policy_optimizer": ("policy", state.policy),
            "critic_optimizer": ("critics", state.critics),
            "temperature_optimizer": ("scalar", state.log_alpha),
        }

    def _flatten(self, prefix: str, tree: Any, kind: str) -> dict[str, NDArray[Any]]:
        if kind == "scalar":
            return {prefix: self.to_numpy(tree)}
        if kind == "policy":
            return prefixed(prefix, self._export("policy", tree))
        flat: dict[str, NDArray[Any]] = {}
        for name, branch in tree.items():
            flat |= prefixed(f"{prefix}.{name}" if prefix else name, self._export(name, branch))
        return flat

    def _unflatten(self, prefix: str, arrays: Mapping[str, NDArray[Any]], like: Any, kind: str) -> Any:
        if kind == "scalar":
            return self._like(arrays[prefix], like)
        if kind == "policy":
            return self._import("policy", under(arrays, prefix), like)
        return {name: self._import(name, under(arrays, f"{prefix}.{name}" if prefix else name), branch) for name, branch in like.items()}

    # Random streams.

    def _stream_seed(self, stream: int) -> np.random.SeedSequence:
        """Where a random stream of this rank begins."""
        return np.random.SeedSequence([self.cfg.seed, self.ranks.rank, stream], spawn_key=self._streams_key)


def _require_not_negative(slot: str, arrays: Mapping[str, NDArray[Any]]) -> None:
    for name, array in arrays.items():
        if name.partition(".")[0] in NOT_NEGATIVE and (array < 0).any():
            raise ValueError(f"{slot}.{name} has {array.min()}, expected numbers >= 0: take another checkpoint, or what arrays() gave")
