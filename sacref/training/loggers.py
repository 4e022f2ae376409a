"""Loggers: where the metrics of a run are written, by name, and services that keep them."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from sacref.algorithm.tree import named_leaves
from sacref.config.callables import NotFoundError, find
from sacref.storage.metric_files import CSV, JsonLines, Origin, Sink, TensorBoard


class LoggerError(ValueError):
    """A logger that cannot be used; the message says why, and the fix."""


class WandB:
    """Sink that writes to Weights & Biases, at steps that are environment steps.

    Its variables say where: `WANDB_MODE=offline`, `WANDB_PROJECT` (else "sacref"), `WANDB_ENTITY`. Each process is a run
    there, grouped by the name of the run directory, so that a resumed run is a second one.
    """

    def open(self, origin: Origin) -> None:
        import wandb

        origin.directory.mkdir(parents=True, exist_ok=True)
        self._environment_steps = origin.environment_steps
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "sacref"),
            dir=origin.directory,
            name=origin.directory.name,
            group=os.environ.get("WANDB_RUN_GROUP", origin.directory.name),
            config=dict(origin.config),
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=self._environment_steps(step))

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """Sink that writes to MLflow, at steps that are environment steps; its parameters are the run's configuration.

    Its variables say where: `MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME` (else "sacref"). Each process is a run there, with the
    name of the run directory, so that a resumed run is a second one. Names have no brackets there: "Total reward max".
    """

    def open(self, origin: Origin) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client, self._environment_steps = MlflowClient(), origin.environment_steps
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "sacref")
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        self._run = self._client.create_run(experiment, run_name=origin.directory.name).info.run_id
        parameters = [Param(_plain(name), str(value)[:500]) for name, value in named_leaves(origin.config).items()]
        for first in range(0, len(parameters), 100):  # as many as it takes at once
            self._client.log_batch(self._run, params=parameters[first : first + 100])

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now, steps = int(1000 * time.time()), self._environment_steps(step)
        self._client.log_batch(self._run, metrics=[Metric(_plain(tag), value, now, steps) for tag, value in scalars.items()])

    def close(self) -> None:
        self._client.set_terminated(self._run)


def _plain(name: str) -> str:
    """Return a name without what MLflow refuses."""
    return "".join(letter for letter in name if letter.isalnum() or letter in " ._-/:").replace(" / ", "/")


SINKS: Mapping[str, Callable[[], Sink]] = {
    "tensorboard": TensorBoard,
    "jsonl": JsonLines,
    "csv": CSV,
    "wandb": WandB,
    "mlflow": MLflow,
}
"""Name of a logger -> what makes it."""
EXTRAS = ("wandb", "mlflow")
"""Loggers that are an extra, and a package, of the same name."""


def make_sinks(entries: Sequence[Any]) -> list[Sink]:
    """Make the sinks of `TrainConfig.log`: names of `SINKS`, "module:Class", classes or functions that make one, or sinks.

    Raises:
        LoggerError: if one is none of these, or its package is not installed.
    """
    made = []
    for entry in entries:
        expected = f"one of {', '.join(SINKS)}, module:Class, or an object with write(step, scalars)"
        if entry in EXTRAS and find_spec(entry) is None:
            raise LoggerError(f'log has {entry!r}, whose package is not installed: pip install "sacref[{entry}]", or leave it out')
        maker = entry
        if isinstance(entry, str):
            try:
                maker = SINKS[entry] if entry in SINKS else find(entry)
            except NotFoundError as error:
                raise LoggerError(f"log has {entry!r}, expected {expected} ({error})") from error
        sink = maker() if callable(maker) else maker
        if not callable(getattr(sink, "write", None)):
            raise LoggerError(f"log has {entry!r}, expected {expected}: give it a method write(step, scalars)")
        made.append(sink)
    return made
