"""Runs: from the plan over the loop to the run directory, evaluations, plots and videos."""

from sacref.training.loop import Outcome as Outcome
from sacref.training.loop import run as run
