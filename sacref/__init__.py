"""Soft Actor-Critic written once as equations and run twice, on PyTorch and on JAX."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sacref import envs as envs
    from sacref.agent.numerics import NumericalError as NumericalError
    from sacref.config import ConfigError as ConfigError
    from sacref.config import ExperimentConfig as ExperimentConfig
    from sacref.config import SACConfig as SACConfig
    from sacref.config import paper_config as paper_config
    from sacref.config import presets as presets
    from sacref.config.train_config import TrainConfig as TrainConfig
    from sacref.training.evaluation import Evaluation as Evaluation
    from sacref.training.evaluation import evaluate as evaluate
    from sacref.training.experiment import TrainingResult as TrainingResult
    from sacref.training.experiment import train as train
    from sacref.training.export import export_policy as export_policy
    from sacref.training.load import load as load
    from sacref.training.population import PopulationError as PopulationError
    from sacref.training.population import PopulationResult as PopulationResult
    from sacref.training.population import train_population as train_population
    from sacref.training.video import render_episodes as render_episodes

__version__ = "0.1.0"

# Loaded when first asked for: importing sacref loads neither a backend nor Gymnasium.
_HOMES = {
    "ConfigError": "sacref.config",
    "ExperimentConfig": "sacref.config",
    "SACConfig": "sacref.config",
    "paper_config": "sacref.config",
    "presets": "sacref.config",
    "TrainConfig": "sacref.config.train_config",
    "Evaluation": "sacref.training.evaluation",
    "evaluate": "sacref.training.evaluation",
    "TrainingResult": "sacref.training.experiment",
    "export_policy": "sacref.training.export",
    "load": "sacref.training.load",
    "train": "sacref.training.experiment",
    "NumericalError": "sacref.agent.numerics",
    "PopulationError": "sacref.training.population",
    "PopulationResult": "sacref.training.population",
    "train_population": "sacref.training.population",
    "render_episodes": "sacref.training.video",
}


def __getattr__(name: str) -> Any:
    if name == "envs":
        return importlib.import_module("sacref.envs")
    if name not in _HOMES:
        raise AttributeError(f"module 'sacref' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "envs"})
