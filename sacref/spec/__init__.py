"""exports"""
from sacref.spec.averaging import polyak
from sacref.spec.losses import actor_loss, critic_loss, td_target, temperature_loss
from sacref.spec.policy import bound_log_std, log_prob, squash

__all__ = ["actor_loss", "bound_log_std", "critic_loss", "log_prob", "polyak", "squash", "td_target", "temperature_loss"]
