"""Update-to-data: how much is learned from each transition, in numbers, and as other libraries call it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction

from sacref.config.sac_config import SACConfig

FINEST = 1_000_000
"""Gradient steps for each timestep are counted exactly, in fractions with denominators up to this."""


@dataclass(frozen=True)
class UpdateToData:
    """How much a run learns from its data."""

    gradient_steps_per_environment_step: float
    """Gradient steps for each step of an environment, of all ranks' environments together."""
    transitions_drawn_per_transition_stored: float
    """The times that a transition is drawn in a batch, on average: gradient steps for each environment step times the batch. Of sequences
    all steps that are learned from are counted."""
    warm_up_transitions: int
    """Transitions that are stored before learning starts."""
    random_transitions: int
    """Transitions with uniform actions."""
    called_elsewhere: Mapping[str, Mapping[str, int]]
    """Library -> its names and values for the same; without a library that has no value for it."""

    def to_dict(self) -> dict[str, object]:
        """Return the fields as `config.json` holds them."""
        return asdict(self)

    def __str__(self) -> str:
        """Say the numbers in a line, and in a second one what other libraries call them."""
        ratio, drawn = self.gradient_steps_per_environment_step, self.transitions_drawn_per_transition_stored
        steps = "gradient step" if ratio == 1 else "gradient steps"
        said = (
            f"{ratio:,.6g} {steps} per environment step, {drawn:,.6g} transitions drawn per transition stored; "
            f"learning starts after {self.warm_up_transitions:,} transitions, the first {self.random_transitions:,} with random actions"
        )
        called = [
            f"{library} with " + ", ".join(f"{name}={value}" for name, value in names.items())
            for library, names in self.called_elsewhere.items()
        ]
        return f"{said}\nthe same elsewhere: {'; '.join(called)}" if called else said


def update_to_data(cfg: SACConfig, num_envs: int, *, ranks: int = 1, recurrent: bool = False) -> UpdateToData:
    """Compute how much a run learns from its data.

    Args:
        cfg: of the agent. num_envs: environments of each rank. ranks: processes that train the agent together.
        recurrent: whether a batch is of sequences, as SAC_RNN's are.
    """
    together, batch = num_envs * ranks, cfg.batch_size * ranks
    per_timestep = Fraction(cfg.gradient_steps_per_timestep(num_envs)).limit_denominator(FINEST)
    drawn = per_timestep * batch * (cfg.sequence_length if recurrent else 1) / together
    warm_up, steps = cfg.learning_starts * together, per_timestep * cfg.chunk
    called: dict[str, dict[str, int]] = {}
    if steps.denominator == 1 and not recurrent:
        names = {"train_freq": cfg.chunk, "gradient_steps": int(steps), "batch_size": batch, "learning_starts": warm_up}
        called["Stable-Baselines3"] = names
        if cfg.chunk == 1:
            called["Brax"] = {"grad_updates_per_step": int(steps), "batch_size": batch, "min_replay_size": warm_up}
    if drawn.denominator == 1 and drawn and not recurrent:
        called["rl_games (PPO)"] = {"horizon_length": cfg.chunk, "minibatch_size": batch, "mini_epochs": int(drawn)}
    return UpdateToData(float(per_timestep / together), float(drawn), warm_up, cfg.random_timesteps * together, called)
