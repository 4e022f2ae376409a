"""sacref's agents as a population, trained as `sacref.train_population` trains them."""

import os
from functools import partial
from pathlib import Path
from typing import Any, cast

from bench.peers import own
from bench.peers.setting import ENDLESS, Setting, Trainer


def make(setting: Setting, *, backend: str, members: int) -> Trainer:
    """Make a population of seeds; each member has the environments of the setting, and one call steps those of all.

    Tracking is on, checkpoints are off.

    Args:
        setting: the task; its seed is the first member's.
        backend: "torch" or "jax".
        members: number of agents.
    """
    import sacref
    from sacref.agent.population import Population
    from sacref.envs.batched import BatchedVectorEnv

    alone = own.make(setting, backend=backend)
    train = partial(
        sacref.train_population,
        seeds=range(setting.seed, setting.seed + members),
        run_dir=Path(os.getcwd()) / "population",
        backend=cast(Any, backend),
        env=setting.env,
        steps=ENDLESS,
        num_envs=setting.num_envs,
        vectorization="batched",
        hidden=tuple(setting.hidden),
        memory_capacity=setting.memory_capacity,
        cfg=own.configuration(setting),
        progress=False,
    )
    return Trainer(
        train=train,
        execution=alone.execution,
        settings={"members": members},
        # Made inside: the classes of the population, and of its environments.
        parts={
            "act": [(Population, "act")],
            "environment": [(BatchedVectorEnv, "step_some")],
            "record": [(Population, "record_transition")],
            "learn": [(Population, "post_interaction")],
        },
    )
