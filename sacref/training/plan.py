"""The plan of a run: its options checked, its backend found, its directory judged, and the checkpoint from which it is resumed."""

import contextlib
import importlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any, TypedDict

import numpy as np

import sacref
from sacref import envs
from sacref.agent.backend import BackendError
from sacref.algorithm.replay import AnyReplayMemory
from sacref.algorithm.tree import leaves
from sacref.config import SACConfig, presets
from sacref.config.train_config import Backend, TrainConfig, Wrapper
from sacref.config.update_to_data import UpdateToData, update_to_data
from sacref.envs import snapshots
from sacref.envs.device import is_on_device
from sacref.envs.interface import Envs, Space
from sacref.envs.space_records import write_space
from sacref.envs.spaces import check_spaces
from sacref.envs.states import state_space_of
from sacref.envs.vector import closing, require_separate
from sacref.ranks import Ranks
from sacref.storage.replay_log import Entry
from sacref.storage.versions import installed
from sacref.training import run_directory
from sacref.training.checkpoints import AnyAgent, slots_of
from sacref.training.evaluation import with_plain_rewards
from sacref.training.run_directory import Resumed, reading_config_of

BACKENDS: Mapping[str, tuple[str, ...]] = {"torch": ("torch",), "jax": ("jax", "jaxlib", "flax", "optax")}
"""Backend -> the packages that its extra installs."""
ENVIRONMENT_LIBRARIES = ("numpy", "gymnasium", "mujoco", "dm-control")
"""Packages beside the backend's on whose version a return may depend."""

LONGEST_SLUG = 100
"""Letters of the environment's name in that of a directory."""
EVALUATION_COPIES = 10
"""Copies of the environment that an evaluation runs side by side, at most."""


class Spaces(TypedDict):
    """The spaces of one environment, by the names that an agent takes."""

    observation_space: Space
    state_space: Space | None
    action_space: Space


@dataclass(frozen=True)
class Environments:
    """The environments of a run on one rank."""

    training: Envs
    evaluation: Envs | None
    """None on a rank that evaluates no episode; those for training where there are no others."""
    spaces: Spaces
    uncaptured: str | None
    """Reason why the methods by which users' environments are captured cannot be used; None if they can."""


@dataclass(frozen=True)
class Plan:
    """The run that will be made, before anything is made or deleted."""

    options: TrainConfig
    """As they were checked; the seed is the run's."""
    backend: ModuleType
    ranks: Ranks
    directory: Path
    resumed: Resumed | None
    settings: SACConfig
    """The agent's configuration, the run's own."""

    @property
    def steps_per_timestep(self) -> int:
        """Environment steps of a timestep, of all ranks together."""
        return self.options.num_envs * self.ranks.size

    @property
    def start(self) -> int:
        """Timesteps finished before."""
        return 0 if self.resumed is None else self.resumed.timestep

    @property
    def steps_offset(self) -> int:
        """Environment steps beyond those of a timestep of today: timesteps of before may have had another number of them."""
        return 0 if self.resumed is None else self.resumed.steps - self.resumed.timestep * self.steps_per_timestep

    @property
    def timesteps(self) -> int:
        """Timesteps of the whole run."""
        return math.ceil((self.options.steps - self.steps_offset) / self.steps_per_timestep)

    @property
    def evaluation_interval(self) -> int:
        """Environment steps between evaluations."""
        return math.ceil(self.options.steps / 20) if self.options.evaluation_interval is None else self.options.evaluation_interval

    @property
    def checkpoint_interval(self) -> int:
        """Timesteps between checkpoints; none at 0 or below."""
        interval = self.settings.experiment.checkpoint_interval
        return max(1, self.timesteps // 10) if interval == "auto" else interval

    @property
    def env_seed(self) -> int:
        """Seed of this rank's training environments."""
        return derive_seed(self.options.seed, 0, self.start, self.ranks.rank)

    @property
    def update_to_data(self) -> UpdateToData:
        """How much is learned from each transition."""
        recurrent = self.options.recurrent is not None
        return update_to_data(self.settings, self.options.num_envs, ranks=self.ranks.size, recurrent=recurrent)

    def make_environments(self, closed_at_end: contextlib.ExitStack) -> Environments:
        """Make this rank's environments. Those for training are reset, and will be once more.

        Raises:
            EnvError, TypeError, ValueError: if they cannot be made, or an agent cannot act in them.
        """
        training = closed_at_end.enter_context(closing(self._make_envs(self.options.num_envs, self.env_seed)))
        observations, _ = training.reset(seed=self.env_seed)
        spaces: Spaces = {
            "observation_space": training.single_observation_space,
            "state_space": state_space_of(training),
            "action_space": training.single_action_space,
        }
        check_spaces(*spaces.values())
        copies = evaluation_copies(min(self.options.evaluation_episodes, EVALUATION_COPIES), self.ranks)
        seed = derive_seed(self.options.seed, 1)
        evaluation = self._make_envs(copies, seed, training=training) if copies else None
        if evaluation is not training:
            closed_at_end.enter_context(closing(evaluation))
            require_separate(training, evaluation)
        uncaptured = None
        if any(map(is_on_device, leaves(observations))):
            uncaptured = "the environments' arrays are on a device, and their state is not captured"
        elif snapshots.with_methods(training):
            with closing(self._make_envs(1, self.env_seed)) as tried:  # nothing else uses it
                tried.reset(seed=self.env_seed)
                uncaptured = snapshots.refused(tried)
        return Environments(training, evaluation, spaces, uncaptured)

    def _make_envs(self, copies: int, seed: int, *, training: Envs | None = None) -> Envs:
        """Make environments for training, or, beside those, for evaluation."""
        options = self.options
        if options.vector_env is not None:
            made = envs.make_vector(options.vector_env, copies, seed=seed, env_kwargs=options.env_kwargs, made=training)
            return made if training is None or made is training else with_plain_rewards(made)
        plain: list[Wrapper] = [] if training is None else [with_plain_rewards]
        wrappers = (*options.wrappers, *plain)
        return envs.make(options.env, copies, vectorization=options.vectorization, env_kwargs=options.env_kwargs, wrappers=wrappers)

    def config(self, spaces: Spaces) -> dict[str, object]:
        """Return what `config.json` will hold."""
        options = replace(self.options, cfg=self.settings, evaluation_interval=self.evaluation_interval)
        return {
            "sacref": sacref.__version__,
            "versions": installed((*ENVIRONMENT_LIBRARIES, *BACKENDS[options.backend])),
            **options.to_dict(),
            "ranks": self.ranks.size,
            "steps_offset": self.steps_offset,
            "update_to_data": self.update_to_data.to_dict(),
            "beside_preset": presets.changes(options.preset, self.settings, options.model_options, self.steps_per_timestep),
            "observation_space": write_space(spaces["observation_space"]),
            "state_space": None if spaces["state_space"] is None else write_space(spaces["state_space"]),
            "action_space": write_space(spaces["action_space"]),
        }

    def memory_capacity(self, entry: Entry | None) -> int:
        """Return the transitions of a memory that takes the rows of a replay log's entry."""
        envs = self.options.num_envs
        # One timestep more than the run fills: a ring that was never full also fits into the larger one of a run resumed with more steps.
        # With less steps than were once asked for, it is as large as it was.
        return min(self.options.memory_capacity, max((self.timesteps + 1) * envs, self.settings.batch_size, slots_of(entry) * envs))

    def make_memory(self, capacity: int, members: int = 1) -> AnyReplayMemory:
        """Make a replay memory of so many transitions of each member of a population."""
        envs = self.options.num_envs
        memory: AnyReplayMemory = self.backend.ReplayMemory(members * capacity, members * envs, device=self.options.device)
        return memory

    def make_agent(self, spaces: Spaces, memory: AnyReplayMemory) -> AnyAgent:
        """Make the agent as it begins."""
        options = self.options
        agent: AnyAgent = algorithm(self.backend, options.model_options)(
            models=self.backend.default_models(**spaces, hidden=options.hidden, seed=options.seed, **options.model_options),
            memory=memory,
            **spaces,
            device=options.device,
            cfg=self.settings,
        )
        agent.environment_steps_offset = self.steps_offset
        agent.checkpoint_interval = 0  # the run writes them, with its environments
        return agent


def prepare(options: TrainConfig) -> Plan:
    """Check the options and judge the directory. Nothing is changed in it.

    Raises:
        BackendError, RunError, ConfigError, TypeError, ValueError: if it cannot be trained, or not there.
    """
    options = options.checked()
    backend = import_backend(options.backend)
    ranks: Ranks = importlib.import_module(f"{backend.__name__}.ranks").ranks()
    chosen = fresh_run_directory(options) if options.run_dir is None else options.run_dir
    directory = Path(ranks.gather(str(Path(chosen).expanduser().absolute()))[0])
    resumed = run_directory.prepare(ranks, directory, overwrite=options.overwrite, resume=options.resume)
    with reading_config_of(directory) if resumed is not None and options.cfg is None else contextlib.nullcontext():
        stored = None if resumed is None else resumed.config["cfg"]
        settings = options.settings(options.num_envs * ranks.size, stored)
    if resumed is not None and options.preset is None:  # the settings are the run's, and so is what they started from
        with reading_config_of(directory):
            preset = resumed.config.get("preset")
            presets.find(preset)  # which refuses what is none
            options = replace(options, preset=preset)
    settings.seed = options.seed
    settings.experiment.directory, settings.experiment.experiment_name = str(directory.parent), directory.name
    return Plan(replace(options, seed=settings.seed), backend, ranks, directory, resumed, settings)


def fresh_run_directory(options: TrainConfig) -> Path:
    """Return where a run is written that was given no directory."""
    slug = re.sub(r"[^\w.-]", "-", options.task.partition("(")[0][:LONGEST_SLUG])
    return Path("runs") / f"{slug}-{options.backend}-{options.seed}-{datetime.now():%Y%m%d-%H%M%S-%f}"


def prepare_process(backend: Backend, device: str | None = None) -> None:
    """Set what is the process's own to set. For programs, not for libraries.

    Where the environment names other ranks, meet them; on JAX, keep what is compiled for the next run.

    Raises:
        BackendError: if the backend is not installed. ValueError: if the environment names ranks and is incomplete. LostRankError: if they
            do not come.
    """
    module = import_backend(backend)
    importlib.import_module(f"{module.__name__}.ranks").join(device)
    if backend == "jax":
        importlib.import_module("sacref.jax.compilation").keep_compilations()


def import_backend(backend: str) -> ModuleType:
    """Import `sacref.<backend>`.

    Raises:
        BackendError: if there is none of that name, or it is not installed.
    """
    if backend not in BACKENDS:
        raise BackendError(f"backend is {backend!r}, expected one of {', '.join(BACKENDS)}")
    try:
        return importlib.import_module(f"sacref.{backend}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in BACKENDS[backend]:
            raise
        raise BackendError(f'backend {backend!r} is not installed ({error}): pip install "sacref[{backend}]"') from error


def algorithm(backend: ModuleType, model_options: Mapping[str, object]) -> Any:
    """Return the agent's class for models of these options."""
    return backend.SAC if model_options.get("recurrent") is None else backend.SAC_RNN


def derive_seed(seed: int, stream: int, step: int = 0, rank: int = 0) -> int:
    """Derive a seed for one purpose: stream 0 for a rank's training environments from a timestep on, 1 for the evaluations."""
    key = (stream, step, rank) if rank else (stream, step)
    # Of 31 bits: an environment may hand it to a library that wants a signed integer.
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1)[0] >> 1)


def evaluation_copies(copies: int, ranks: Ranks) -> int:
    """Return how many of the evaluation environments are this rank's: the first ranks have one more."""
    return copies // ranks.size + (ranks.rank < copies % ranks.size)
