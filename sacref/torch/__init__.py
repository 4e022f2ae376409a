"""Soft Actor-Critic on PyTorch."""

from sacref.config import SACConfig
from sacref.config import SACConfig as SAC_CFG
from sacref.torch.agent import SAC
from sacref.torch.memory import ReplayMemory
from sacref.torch.models import default_models

__all__ = ["SAC", "SAC_CFG", "ReplayMemory", "SACConfig", "default_models"]
