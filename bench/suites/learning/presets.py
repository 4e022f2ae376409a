"""Presets of the learning suite: the paper's settings (batch 256, learning rate 3e-4) where a preset names no others."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One task, trained with every backend and seed."""

    name: str
    title: str
    """Title for a reader, without its length."""
    env: str
    steps: int
    """Environment steps."""
    evaluation_interval: int
    """Environment steps between two evaluations; divides `steps`, so that the last evaluation is of the finished agent."""
    seeds: tuple[int, ...]
    evaluation_episodes: int = 10
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Differences from the paper's settings: fields of `SACConfig`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of `sacref.train`; wrappers by name, "module:name"."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two presets that differ in one thing, compared at the last step that both have."""

    name: str
    question: str
    preset: str
    """The one that has it."""
    label: str
    """Its agent in this comparison."""
    beside: str
    """The one that does not."""
    beside_label: str


HIDDEN = ("sacref.envs.partial:HideVelocities",)
"""The policy and the critics see positions alone."""
PRIVILEGED = ("sacref.envs.partial:PrivilegedState", *HIDDEN)
"""The policy sees positions alone, the critics see everything."""
REPEATED = ("bench.suites.learning.presets:act_for_two_steps",)
"""Each action acts for two steps of the task, which are one step of the agent."""
PENDULUM = {"learning_rate": 1e-3, "random_timesteps": 500, "learning_starts": 500}
EARLY = {"learning_rate": 1e-3, "initial_entropy_value": 0.2, "random_timesteps": 1_000, "learning_starts": 1_000}
JAXRL = {"target_entropy": -3.0, "random_timesteps": 10_000, "learning_starts": 10_000}
"""On HalfCheetah; ikostrikov/jaxrl aims at -dim(A)/2, the paper at -dim(A)."""
TIANSHOU = {
    "learning_rate": 1e-3,
    "learn_entropy": False,
    "initial_entropy_value": 0.2,
    "random_timesteps": 10_000,
    "learning_starts": 10_000,
}
SEQUENCES = {"batch_size": 32, "sequence_length": 8}
GRU = {"recurrent": "gru", "recurrent_size": 64}
TASKS = {"Humanoid": 17, "Ant": 8, "Walker2d": 6, "Hopper": 3, "HalfCheetah": 6}
"""MuJoCo task -> dimensions of its actions. HalfCheetah last: of presets that take equally long, `python -m bench` takes the last."""
ALIKE = {"Walker2d": ("v2", "v3", "v4"), "Hopper": ("v2", "v3", "v4"), "HalfCheetah": ("v2", "v3", "v4", "v5")}
"""Task -> versions with one reward and one model, by Gymnasium's version histories; each other version is alone.

Ant's and Humanoid's contact costs came and went, and Humanoid's model changed within v2 and v3.
"""


def act_for_two_steps(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Wrap an environment so that each action acts for two of its steps; the reward is their sum."""
    return gymnasium.wrappers.RepeatAction(env, num_repeats=2)


def _standard(task: str) -> Preset:
    """Make the preset of a task as the field reports it: a million steps, ten seeds."""
    return Preset(
        name=f"{task.lower()}-1m",
        title=f"{task}-v5",
        env=f"{task}-v5",
        steps=1_000_000,
        evaluation_interval=25_000,
        seeds=tuple(range(10)),
    )


def _agreement(task: str, dimensions: int) -> Preset:
    """Make the preset of a task with the settings of ikostrikov/jaxrl, on v4, whose reward is that of its published curves, of v2."""
    return Preset(
        name=f"{task.lower()}-v4-1m",
        title=f"{task}-v4, jaxrl's settings",
        env=f"{task}-v4",
        steps=1_000_000,
        evaluation_interval=25_000,
        seeds=tuple(range(10)),
        settings=JAXRL | {"target_entropy": -dimensions / 2},
    )


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(name="smoke", title="HalfCheetah-v5", env="HalfCheetah-v5", steps=10_000, evaluation_interval=5_000, seeds=(0,)),
        Preset(
            name="invertedpendulum",
            title="InvertedPendulum-v5",
            env="InvertedPendulum-v5",
            steps=15_000,
            evaluation_interval=1_000,
            seeds=(0, 1, 2),
        ),
        # With the paper's settings the temperature, which starts at 1, is still too high for this task after 15,000 steps.
        Preset(
            name="invertedpendulum-fast",
            title="InvertedPendulum-v5, faster settings",
            env="InvertedPendulum-v5",
            steps=15_000,
            evaluation_interval=1_000,
            seeds=(0, 1, 2),
            settings={"learning_rate": 1e-3, "random_timesteps": 1_000, "learning_starts": 1_000},
        ),
        # As the next one, with 64 steps, then 64 gradient steps at once: does the older policy learn as well?
        Preset(
            name="halfcheetah-100k-chunked",
            title="HalfCheetah-v5, 64 steps at a time",
            env="HalfCheetah-v5",
            steps=100_000,
            evaluation_interval=10_000,
            seeds=(0, 1, 2),
            settings={"chunk": 64},
        ),
        # Does memory matter? The same tasks with velocities hidden, with a recurrent agent and with a feed-forward one.
        Preset(
            name="pendulum-hidden",
            title="Pendulum-v1, velocities hidden",
            env="Pendulum-v1",
            steps=15_000,
            evaluation_interval=1_000,
            seeds=(0, 1, 2),
            settings=PENDULUM,
            arguments={"wrappers": HIDDEN, "hidden": (64, 64)},
        ),
        Preset(
            name="pendulum-hidden-gru",
            title="Pendulum-v1, velocities hidden, GRU",
            env="Pendulum-v1",
            steps=15_000,
            evaluation_interval=1_000,
            seeds=(0, 1, 2),
            settings=PENDULUM | SEQUENCES,
            arguments={"wrappers": HIDDEN, "hidden": (64, 64), **GRU},
        ),
        Preset(
            name="halfcheetah-hidden",
            title="HalfCheetah-v5, velocities hidden",
            env="HalfCheetah-v5",
            steps=20_000,
            evaluation_interval=2_000,
            seeds=(0, 1, 2),
            settings=EARLY,
            arguments={"wrappers": HIDDEN, "hidden": (128, 128)},
        ),
        Preset(
            name="halfcheetah-hidden-gru",
            title="HalfCheetah-v5, velocities hidden, GRU",
            env="HalfCheetah-v5",
            steps=20_000,
            evaluation_interval=2_000,
            seeds=(0, 1, 2),
            settings=EARLY | SEQUENCES,
            arguments={"wrappers": HIDDEN, "hidden": (128, 128), **GRU},
        ),
        # As halfcheetah-hidden, with critics that see the velocities.
        Preset(
            name="halfcheetah-privileged",
            title="HalfCheetah-v5, velocities hidden from the policy alone",
            env="HalfCheetah-v5",
            steps=20_000,
            evaluation_interval=2_000,
            seeds=(0, 1, 2),
            settings=EARLY,
            arguments={"wrappers": PRIVILEGED, "hidden": (128, 128)},
        ),
        # Is learning hurt where the networks are computed in bfloat16? Half as long as the next one, whose first half it stands beside.
        Preset(
            name="halfcheetah-50k-bfloat16",
            title="HalfCheetah-v5, bfloat16",
            env="HalfCheetah-v5",
            steps=50_000,
            evaluation_interval=10_000,
            seeds=(0, 1, 2),
            settings={"mixed_precision": True},
        ),
        # As halfcheetah-100k, with SimBa's networks of as many weights (68,000 each, there 72,000), and nothing else of theirs: does the
        # architecture help? Its authors' critics have 62 times as many, too many for a processor.
        Preset(
            name="halfcheetah-100k-simba",
            title="HalfCheetah-v5, SimBa networks of as many weights",
            env="HalfCheetah-v5",
            steps=100_000,
            evaluation_interval=10_000,
            seeds=(0, 1, 2),
            arguments={"network": "simba", "hidden": (64, 64)},
        ),
        Preset(
            name="hopper-100k",
            title="Hopper-v5",
            env="Hopper-v5",
            steps=100_000,
            evaluation_interval=10_000,
            seeds=(0, 1, 2),
        ),
        Preset(
            name="halfcheetah-100k",
            title="HalfCheetah-v5",
            env="HalfCheetah-v5",
            steps=100_000,
            evaluation_interval=10_000,
            seeds=(0, 1, 2),
        ),
        # SimBa's authors' baseline without their networks, of which ten seeds are published. It needs `sacref[dmc]`, and so MuJoCo 3.
        Preset(
            name="cheetah-run-100k",
            title="cheetah-run, two simulator steps and two updates an action",
            env="dm_control/cheetah-run-v0",
            steps=100_000,
            evaluation_interval=5_000,
            seeds=(0, 1, 2),
            settings={"update_to_data": 2.0},
            arguments={"wrappers": REPEATED},
        ),
        # Stable-Baselines3's defaults on a v5 task, of which ten seeds are published: learning after 100 random steps.
        Preset(
            name="ant-200k-sb3",
            title="Ant-v5, Stable-Baselines3's settings",
            env="Ant-v5",
            steps=200_000,
            evaluation_interval=10_000,
            seeds=tuple(range(10)),
            settings={"random_timesteps": 100, "learning_starts": 100},
        ),
        # The paper's settings after 10,000 random steps, of which nnabla-rl published its seeds.
        *(
            Preset(
                name=f"{task.lower()}-200k-nnabla",
                title=f"{task}-v5, 10,000 random steps",
                env=f"{task}-v5",
                steps=200_000,
                evaluation_interval=10_000,
                seeds=tuple(range(seeds)),
                settings={"random_timesteps": 10_000, "learning_starts": 10_000},
            )
            for task, seeds in {"Walker2d": 3, "Hopper": 3, "HalfCheetah": 10}.items()
        ),
        # As halfcheetah-200k, with the settings of Tianshou and of jaxrl where they differ: what their published curves were measured with.
        Preset(
            name="halfcheetah-200k-tianshou",
            title="HalfCheetah-v5, alpha fixed at 0.2, learning rate 1e-3",
            env="HalfCheetah-v5",
            steps=200_000,
            evaluation_interval=10_000,
            seeds=(0, 1, 2),
            settings=TIANSHOU,
        ),
        Preset(
            name="halfcheetah-200k-jaxrl",
            title="HalfCheetah-v5, target entropy -dim(A)/2",
            env="HalfCheetah-v5",
            steps=200_000,
            evaluation_interval=10_000,
            seeds=(0, 1, 2),
            settings=JAXRL,
        ),
        Preset(
            name="halfcheetah-200k",
            title="HalfCheetah-v5",
            env="HalfCheetah-v5",
            steps=200_000,
            evaluation_interval=10_000,
            seeds=(0, 1, 2),
        ),
        *(_agreement(task, TASKS[task]) for task in ALIKE),
        *(_standard(task) for task in TASKS),
    )
}

SUITES = {
    "standard": tuple(_standard(task).name for task in reversed(TASKS)),
    "agreement": tuple(_agreement(task, TASKS[task]).name for task in reversed(ALIKE)),
}
"""Name -> presets that one command trains, in this order."""


def presets_of(name: str) -> list[Preset]:
    """Return the presets of a suite, or the one preset of that name."""
    return [PRESETS[member] for member in SUITES.get(name, (name,))]


COMPARISONS = (
    Comparison(
        name="pendulum-memory",
        question="Does memory matter where velocities are hidden?",
        preset="pendulum-hidden-gru",
        label="GRU",
        beside="pendulum-hidden",
        beside_label="feed-forward",
    ),
    Comparison(
        name="halfcheetah-memory",
        question="Does memory matter where velocities are hidden?",
        preset="halfcheetah-hidden-gru",
        label="GRU",
        beside="halfcheetah-hidden",
        beside_label="feed-forward",
    ),
    Comparison(
        name="halfcheetah-critics",
        question="Does it help if the critics see what is hidden from the policy?",
        preset="halfcheetah-privileged",
        label="critics see velocities",
        beside="halfcheetah-hidden",
        beside_label="critics do not",
    ),
    Comparison(
        name="halfcheetah-precision",
        question="Is learning hurt by bfloat16?",
        preset="halfcheetah-50k-bfloat16",
        label="bfloat16",
        beside="halfcheetah-100k",
        beside_label="float32",
    ),
    Comparison(
        name="halfcheetah-network",
        question="Do SimBa's residual networks and its normaliser help?",
        preset="halfcheetah-100k-simba",
        label="SimBa",
        beside="halfcheetah-100k",
        beside_label="perceptron",
    ),
)
