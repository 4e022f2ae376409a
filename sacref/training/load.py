"""The agent of a finished run, loaded to act: `sacref.load`."""

import contextlib
import importlib
import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sacref.agent.checkpoints import LIVE
from sacref.agent.networks import EXPANSION
from sacref.config import SACConfig
from sacref.config.train_config import widths_of
from sacref.envs.interface import Space
from sacref.envs.space_records import read_space
from sacref.envs.spaces import flat_size
from sacref.storage import checkpoint
from sacref.training.checkpoints import AnyAgent, checkpoints_of
from sacref.training.plan import BACKENDS, Spaces, algorithm, import_backend
from sacref.training.run_directory import CONFIG, RunError, find_checkpoints, read_config, reading_config_of, states_space

OTHER_GROUPS = {"streams", "memory", *LIVE}
"""Groups of a checkpoint that hold nothing of what was learned."""

logger: logging.Logger = logging.getLogger(__name__)


def load(
    run_dir: str | Path, *, checkpoint: str | Path | None = None, device: str | None = None, import_callables: bool = False
) -> AnyAgent:
    """Load the agent of a run, ready to act: in evaluation mode, without a replay memory.

    No code that the run names is run, unless allowed.

    Args:
        run_dir: as `train` wrote it; or one of its checkpoints, `RUN/checkpoints/agent_<timestep>` or, for short, `RUN/agent_<timestep>`
            and `RUN/best`.
        checkpoint: the name of one of its checkpoints ("best" is that of the best evaluation), or a path to one; None is the newest that
            is whole.
        device: the backend's name of a device; None lets the backend choose.
        import_callables: whether what acting needs of the run's own code may be imported, which runs it: its preprocessors, and the
            rewards shaper of a recurrent policy that sees rewards.

    Raises:
        RunError: if the directory holds no run, or no such checkpoint, or the run names code that may not be imported.
        BackendError: if its backend is not installed.
        CheckpointError: if the checkpoint is damaged.
    """
    directory, named = run_of(run_dir)
    if named is not None and checkpoint is not None:
        raise RunError(f"{run_dir} is a checkpoint, and checkpoint is {str(checkpoint)!r} too: leave out one or the other")
    config = read_config(directory)
    paths = find_checkpoints(directory, named or checkpoint)
    with reading_config_of(directory):
        if config["backend"] not in list(BACKENDS):
            raise ValueError(f"backend is {config['backend']!r}, expected one of {', '.join(BACKENDS)}")
        backend, hidden, seed = config["backend"], _widths(config["hidden"]), int(config["seed"])
        spaces: Spaces = {
            "observation_space": read_space(config["observation_space"]),
            "state_space": states_space(config),
            "action_space": read_space(config["action_space"]),
        }
        options = dict(config["models"])
        # Acting needs no learning-rate schedule, and no shaper of rewards that the policy does not see, whose names would be imported.
        unneeded: dict[str, object] = {"learning_rate_scheduler": None, "learning_rate_scheduler_kwargs": {}}
        if options.get("recurrent") is None or "rewards" not in options.get("feed_previous", ()):
            unneeded["rewards_shaper"] = None
        cfg = SACConfig.from_dict({**config["cfg"], **unneeded}, import_callables=import_callables)
        refuse_large_models(paths, spaces, hidden, options)
    cfg.experiment.directory, cfg.experiment.experiment_name = str(directory.parent), directory.name
    module = import_backend(backend)
    importlib.import_module(f"{module.__name__}.device").device_of(device)  # refuses one that is not here, which is no fault of the run
    with reading_config_of(directory):
        models = module.default_models(**spaces, hidden=hidden, seed=seed, **options)
        agent: AnyAgent = algorithm(module, options)(models=models, **spaces, device=device, cfg=cfg)
    _load_first(agent, paths)
    agent.enable_training_mode(False, apply_to_models=True)
    return agent


def run_of(path: str | Path) -> tuple[Path, str | None]:
    """Return the run directory, and the name of the checkpoint where the path is one of its checkpoints, or `RUN/<checkpoint>`."""
    given = Path(path).expanduser().absolute()
    if not (given / CONFIG).is_file():
        for directory in (given.parent, given.parent.parent):
            if (directory / CONFIG).is_file() and given.parent in (directory, checkpoints_of(directory)):
                return directory, given.name
    return given, None


def _widths(stored: object) -> tuple[int, ...]:
    if not isinstance(stored, list) or any(type(width) is not int for width in stored):
        raise TypeError(f"hidden is {stored}, expected a list of integers")
    return tuple(stored)


def refuse_large_models(paths: Sequence[Path], spaces: Spaces, hidden: Sequence[int] | None, options: Mapping[str, Any]) -> None:
    """Refuse models that none of the checkpoints could fill, before they are made: a file may ask for any size."""
    observations, states = spaces["observation_space"], spaces["state_space"]

    def least(inputs: Space, widths: Sequence[int]) -> int:
        if options.get("network") == "simba":
            return 2 * EXPANSION * sum(width**2 for width in widths)
        return sum(before * after for before, after in itertools.pairwise([flat_size(inputs), *widths]))

    cells = 0 if options.get("recurrent") is None else (1 + options["num_critics"]) * options["recurrent_size"] ** 2
    widths, critic_widths = widths_of(options.get("network", "mlp"), hidden, options.get("critic_hidden"))
    critic = least(observations if states is None else states, widths if critic_widths is None else critic_widths)
    needed, most = least(observations, widths) + options["num_critics"] * critic + cells, 0
    for path in paths:
        with contextlib.suppress(checkpoint.CheckpointError):  # which loading it says
            groups = checkpoint.declared(path).groups
            most = max(most, sum(array.size for name in groups.keys() - OTHER_GROUPS for array in groups[name].values()))
    if most and needed > most:
        raise ValueError(f"its models have over {needed} parameters, and no checkpoint has as many")


def _load_first(agent: AnyAgent, paths: Sequence[Path]) -> None:
    """Load the first checkpoint that is whole, and warn of those that are not."""
    for path, following in zip(paths, [*paths[1:], None], strict=True):
        try:
            agent.load(path)
            return
        except checkpoint.CheckpointError as error:
            if following is None:
                raise
            logger.warning("%s is left out, and %s taken: %s", path.name, following.name, error)
