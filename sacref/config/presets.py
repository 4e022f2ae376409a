"""Settings of published SACs by name, each with its source: `sacref train --preset NAME`, `sacref.train(preset=NAME)`."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sacref.config.sac_config import SACConfig, paper_config


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings of one published SAC."""

    name: str
    title: str
    source: str
    """Repository and commit."""
    files: tuple[str, ...]
    """Files of the source that say the settings."""
    random_steps: int = 5_000
    """Environment steps with uniform actions."""
    learning_starts: int | None = None
    """Environment steps before the first gradient step; None is `random_steps`."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Fields of `SACConfig` in which it differs from the paper's settings, for one environment: `chunk` counts environment steps."""
    arguments: Mapping[str, object] = field(default_factory=dict)
    """Arguments of the critics' networks (`num_critics`, `layer_norm`, `dropout`) in which it differs from the paper's."""
    not_reproduced: tuple[str, ...] = ()
    """Parts of the source that sacref does not have, or has otherwise."""

    @property
    def differences(self) -> dict[str, object]:
        """Return the settings other than the paper's, by the names of the flags, for one environment."""
        steps = {"random_timesteps": self.random_steps}
        if self.learning_starts is not None:
            steps["learning_starts"] = self.learning_starts
        return {**({} if steps == {"random_timesteps": PAPER_RANDOM_STEPS} else steps), **self.settings, **self.arguments}

    def config(self, num_envs: int = 1) -> SACConfig:
        """Make the configuration for environments that are stepped together.

        Args:
            num_envs: environments of a timestep, of all ranks together.
        """
        paper = paper_config(num_envs)
        if self.learning_starts is not None or self.random_steps != PAPER_RANDOM_STEPS:
            learning_starts = self.random_steps if self.learning_starts is None else self.learning_starts
            paper.random_timesteps, paper.learning_starts = math.ceil(self.random_steps / num_envs), math.ceil(learning_starts / num_envs)
        chunk = self.settings.get("chunk", 1)
        assert isinstance(chunk, int)
        return SACConfig.from_dict({**paper.to_dict(), **self.settings, "chunk": math.ceil(chunk / num_envs)})

    @property
    def critics(self) -> dict[str, Any]:
        """Return the arguments of the critics' networks, as `sacref.train` takes them."""
        return {"num_critics": 2, "layer_norm": False, "dropout": 0.0, **self.arguments}


def find(name: str | None) -> Preset:
    """Return the preset of that name; the paper's for None.

    Raises:
        ValueError: if there is none; it names the nearest, or all.
    """
    if name is None:
        return PRESETS["paper"]
    if name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, n=1)
        raise ValueError(f"preset is {name!r}, expected one of {', '.join(PRESETS)}" + (f": did you mean {near[0]!r}?" if near else ""))
    return PRESETS[name]


def changes(name: str | None, cfg: SACConfig, networks: Mapping[str, object], num_envs: int) -> dict[str, object]:
    """List what a run has beside its preset: fields of the configuration and arguments of the critics, each with the run's value.

    Args:
        name: the preset's; None gives nothing, as no preset was asked for.
        cfg: the run's configuration.
        networks: arguments of the critics, among others.
        num_envs: environments of a timestep, of all ranks together.
    """
    if name is None:
        return {}
    preset = find(name)
    said, own = preset.config(num_envs).to_dict(), cfg.to_dict()
    different = {key: value for key, value in own.items() if key not in ("experiment", "seed") and value != said[key]}
    return different | {key: networks[key] for key, value in preset.critics.items() if networks[key] != value}


PAPER_RANDOM_STEPS = 5_000
EPSILON = "1e-6 inside the logarithm of the log-density; sacref's is exact"
SCALED = "the action's scale inside the log-density, so that the target entropy counts in the Box's units"
UNITS = "critics that see actions in the Box's units; sacref's see them between -1 and 1"
INITIAL_WEIGHTS = "PyTorch's initial weights; sacref's are Xavier's, uniform, with biases of zero"

PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="paper",
            title="Haarnoja et al. 2018, arXiv:1812.05905, appendix D",
            source="arXiv:1812.05905",
            files=("appendix D",),
        ),
        Preset(
            name="sb3",
            title="Stable-Baselines3's defaults",
            source="DLR-RM/stable-baselines3@e05d2db",
            files=("stable_baselines3/sac/sac.py",),
            random_steps=100,
            not_reproduced=(EPSILON, INITIAL_WEIGHTS, "the temperature steps before the critics, which see it from before that step"),
        ),
        Preset(
            name="cleanrl",
            title="CleanRL, sac_continuous_action.py",
            source="vwxyzjn/cleanrl@004f8a0",
            files=("cleanrl/sac_continuous_action.py",),
            settings={"learning_rate": [3e-4, 1e-3, 1e-3]},
            not_reproduced=(
                "two steps of the policy and of the temperature, on one batch, after every second step of the critics; sacref takes one"
                " after each",
                "log standard deviations between -5 and 2 by a tanh; sacref bounds them at -20 and 2",
                "a temperature that steps along the gradient by alpha; sacref's loss is of log alpha",
                EPSILON,
                SCALED,
                UNITS,
                INITIAL_WEIGHTS,
            ),
        ),
        Preset(
            name="jaxrl",
            title="jaxrl's defaults",
            source="ikostrikov/jaxrl@44f1b70",
            files=("examples/configs/sac_default.py", "jaxrl/networks/policies.py"),
            random_steps=10_000,
            settings={"target_entropy_per_dimension": -0.5},
            not_reproduced=(
                "the temperature's loss is of alpha, sacref's of log alpha",
                "log standard deviations are clipped at -10 and 2; sacref bounds them at -20 and 2",
                "orthogonal initial weights",
            ),
        ),
        Preset(
            name="tianshou",
            title="Tianshou's MuJoCo benchmark",
            source="thu-ml/tianshou@002ffd9",
            files=("examples/mujoco/mujoco_sac.py",),
            random_steps=10_000,
            settings={"learning_rate": 1e-3, "learn_entropy": False, "initial_entropy_value": 0.2},
            not_reproduced=("1.2e-7 inside the logarithm of the log-density; sacref's is exact", INITIAL_WEIGHTS),
        ),
        Preset(
            name="spinningup",
            title="Spinning Up, PyTorch",
            source="openai/spinningup@038665d",
            files=("spinup/algos/pytorch/sac/sac.py",),
            random_steps=10_000,
            learning_starts=1_000,
            settings={"learning_rate": 1e-3, "learn_entropy": False, "initial_entropy_value": 0.2, "batch_size": 100, "chunk": 50},
            not_reproduced=(UNITS, INITIAL_WEIGHTS),
        ),
        Preset(
            name="crossq-baseline",
            title="SAC as CrossQ's baseline",
            source="adityab/CrossQ@a318a26",
            files=("train.py", "slurm/submit_everything.sh", "sbx/sac/sac.py"),
            settings={"learning_rate": 1e-3},
            not_reproduced=(
                "the temperature's loss is of alpha, sacref's of log alpha",
                "a discount factor of 0.9999 for Swimmer: give --discount-factor",
                "Flax's initial weights, LeCun's",
            ),
        ),
        Preset(
            name="redq",
            title="REDQ, Chen et al. 2021, arXiv:2101.05982",
            source="watchernyu/REDQ@06f64ba",
            files=("experiments/train_redq_sac.py", "redq/algos/core.py"),
            settings={
                "update_to_data": 20.0,
                "target_subset": 2,
                "policy_value": "mean",
                "policy_delay": 20,
                "target_entropy_per_dimension": -0.5,
            },
            arguments={"num_critics": 10},
            not_reproduced=(
                "target entropies of its own for Hopper (-1) and Humanoid (-2), which are not -dim(A)/2: give --target-entropy",
                "a policy that sees the critics of before their step, and an alpha of 0.2 until the temperature's first step",
                UNITS,
                EPSILON,
            ),
        ),
        Preset(
            name="droq",
            title="DroQ, Hiraoka et al. 2022, arXiv:2110.02034",
            source="TakuyaHiraoka/Dropout-Q-Functions-for-Doubly-Efficient-Reinforcement-Learning@8afca72",
            files=("KUCodebase/code/main.py",),
            settings={"update_to_data": 20.0, "policy_value": "mean", "policy_delay": 20, "target_entropy_per_dimension": -0.5},
            arguments={"layer_norm": True, "dropout": 0.01},
            not_reproduced=(
                "a dropout rate of its own for each task; this is the one that CrossQ's train.py takes for all: give --dropout",
                "target entropies of its own for Hopper (-1) and Humanoid (-2), which are not -dim(A)/2: give --target-entropy",
                "a batch of its own for the policy's step",
                "actions between -1 and 1 that the environment gets as they are; sacref's are scaled to the Box",
                EPSILON,
            ),
        ),
    )
}
