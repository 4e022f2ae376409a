"""Soft Actor-Critic on PyTorch."""

from sacref.config import SACConfig
from sacref.config import SACConfig as SAC_CFG
from sacref.preprocessing import RunningStandardScaler
from sacref.torch.agent import SAC, SAC_RNN
from sacref.torch.memory import ReplayMemory
from sacref.torch.models import default_models

__all__ = ["SAC", "SAC_CFG", "SAC_RNN", "ReplayMemory", "RunningStandardScaler", "SACConfig", "default_models"]
