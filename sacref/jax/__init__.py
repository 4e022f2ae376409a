"""Soft Actor-Critic on JAX."""

from sacref.config import SACConfig
from sacref.config import SACConfig as SAC_CFG
from sacref.jax.agent import SAC
from sacref.jax.memory import ReplayMemory
from sacref.jax.models import default_models

__all__ = ["SAC", "SAC_CFG", "ReplayMemory", "SACConfig", "default_models"]
