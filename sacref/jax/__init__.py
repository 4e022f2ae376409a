"""Soft Actor-Critic on JAX."""

from sacref.config import SACConfig
from sacref.config import SACConfig as SAC_CFG
from sacref.jax.agent import SAC, SAC_RNN
from sacref.jax.memory import ReplayMemory
from sacref.jax.models import default_models
from sacref.preprocessing import RunningStandardScaler

__all__ = ["SAC", "SAC_CFG", "SAC_RNN", "ReplayMemory", "RunningStandardScaler", "SACConfig", "default_models"]
