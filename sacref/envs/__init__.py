"""Gymnasium vector environments, their spaces, and where their episodes end."""

from sacref.envs.vector import EnvError as EnvError
from sacref.envs.vector import make as make
from sacref.envs.vector import make_vector as make_vector
