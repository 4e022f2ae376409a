"""Soft Actor-Critic written once as equations and run twice, on PyTorch and on JAX."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sacref.config import ConfigError as ConfigError
    from sacref.config import ExperimentConfig as ExperimentConfig
    from sacref.config import SACConfig as SACConfig
    from sacref.config import paper_config as paper_config
    from sacref.evaluation import Evaluation as Evaluation
    from sacref.evaluation import evaluate as evaluate
    from sacref.experiment import TrainingResult as TrainingResult
    from sacref.experiment import load as load
    from sacref.experiment import train as train
    from sacref.numerics import NumericalError as NumericalError
    from sacref.population import PopulationError as PopulationError
    from sacref.population import PopulationResult as PopulationResult
    from sacref.population import train_population as train_population
    from sacref.video import render_episodes as render_episodes

__version__ = "0.1.0"

# Loaded when first asked for: importing sacref loads neither a backend nor Gymnasium.
_HOMES = {
    "ConfigError": "sacref.config",
    "ExperimentConfig": "sacref.config",
    "SACConfig": "sacref.config",
    "paper_config": "sacref.config",
    "Evaluation": "sacref.evaluation",
    "evaluate": "sacref.evaluation",
    "TrainingResult": "sacref.experiment",
    "load": "sacref.experiment",
    "train": "sacref.experiment",
    "NumericalError": "sacref.numerics",
    "PopulationError": "sacref.population",
    "PopulationResult": "sacref.population",
    "train_population": "sacref.population",
    "render_episodes": "sacref.video",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sacref' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
