"""The adapters that come with sacref, each an example to copy. None of them loads its library before it makes an agent."""

import importlib
from functools import partial

from sacref.config.callables import NotFoundError, find
from sacref.examine.adapter import Adapter, AdapterError

ADAPTERS = {
    "sacref-torch": "sacref.examine.adapters.sacref:Torch",
    "sacref-jax": "sacref.examine.adapters.sacref:Jax",
    "stable-baselines3": "sacref.examine.adapters.stable_baselines3:StableBaselines3",
    "sbx": "sacref.examine.adapters.sbx:SBX",
    "skrl-torch": "sacref.examine.adapters.skrl_torch:SkrlTorch",
    "skrl-jax": "sacref.examine.adapters.skrl_jax:SkrlJax",
    "tianshou": "sacref.examine.adapters.tianshou:Tianshou",
    "torchrl": "sacref.examine.adapters.torchrl:TorchRL",
    "cleanrl": "sacref.examine.adapters.cleanrl:CleanRL",
}
"""Name on the command line -> "module:class"."""
METHODS = ("make", "set_weights", "update", "weights", "versions")


def load(name: str) -> Adapter:
    """Make the adapter of a name, or of "module:class".

    Raises:
        ValueError: if there is none of that name. AdapterError: if it lacks what an adapter has.
    """
    if name not in ADAPTERS and ":" not in name:
        raise ValueError(f"examine: {name!r} is no adapter, expected module:Adapter, or one of {', '.join(ADAPTERS)}")
    try:
        found = find(ADAPTERS.get(name, name))
    except NotFoundError as error:
        raise ValueError(f"examine: {name!r} is no adapter, expected {error}") from error
    adapter = found() if isinstance(found, type | partial) else found
    missing = [each for each in METHODS if not hasattr(adapter, each)]
    if missing or not isinstance(adapter, Adapter):
        raise AdapterError(f"examine: {name} has no {', '.join(missing or ['name'])}, expected those of sacref.examine.Adapter: write them")
    return adapter


def version(*distributions: str) -> dict[str, str]:
    """Read the installed versions of some libraries."""
    metadata = importlib.import_module("importlib.metadata")
    return {name: metadata.version(name) for name in distributions}
