"""The process of one long run of one backend, which samples its memory and its open files.

It is a whole run of `sacref.train`, with tracking, evaluations and checkpoints. The last line of its output holds the samples as JSON.
"""

import gc
import inspect
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.core import entry
from bench.suites.soak.samples import SoakSample

EPISODE_STEPS = 200


class Counting(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """An environment that counts its episodes and steps and rewards actions near 0.5, at next to no cost in time and memory."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.episode, self.count = -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.count = self.episode + 1, 0
        return self._observe(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self.count += 1
        return self._observe(), 1.0 - abs(float(action[0]) - 0.5), False, self.count >= EPISODE_STEPS, {}

    def _observe(self) -> NDArray[np.float32]:
        return np.array([self.count / EPISODE_STEPS, np.sin(self.count), self.episode % 2], np.float32)


class Gauge:
    """A wrapper of the first environment that is made, that of the training, which samples this process as it steps.

    Args:
        every: steps between two samples.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.samples: list[SoakSample] = []
        self._taken = False

    def __call__(self, env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
        if self._taken:
            return env
        self._taken = True
        return _Gauged(env, self)


class _Gauged(gymnasium.Wrapper[Any, Any, Any, Any]):
    def __init__(self, env: gymnasium.Env[Any, Any], gauge: Gauge) -> None:
        super().__init__(env)
        self.gauge, self.steps = gauge, 0

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps % self.gauge.every == 0:
            gc.collect()
            sample = SoakSample(step=self.steps, resident_bytes=resident_bytes(), open_files=open_files(), blocks=sys.getallocatedblocks())
            self.gauge.samples.append(sample)
        return self.env.step(action)


def resident_bytes() -> int:
    """Return the memory of this process in RAM."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import psutil  # type: ignore[import-untyped]  # it comes without types, and is needed where there is no /proc alone

    return int(psutil.Process().memory_info().rss)


def open_files() -> int:
    """Return the number of file descriptors of this process."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        if os.path.isdir(folder):
            return len(os.listdir(folder)) - 1  # without the one that lists
    raise OSError("neither /proc/self/fd nor /dev/fd is there: run this on Linux or macOS")


def run(*, backend: Any, steps: int, capacity: int, samples: int, seed: int = 0) -> dict[str, Any]:
    """Train for `steps` steps with a memory for `capacity` transitions, and take about `samples` samples.

    Returns:
        `execution`, how updates ran, and `samples`.
    """
    import sacref

    gauge = Gauge(steps // samples)
    cfg = {
        "batch_size": 32,
        "random_timesteps": steps // 100,
        "learning_starts": steps // 100,
        "experiment": {"write_interval": max(1, steps // 200), "checkpoint_interval": max(1, steps // 20)},
    }
    with tempfile.TemporaryDirectory() as folder:
        result = sacref.train(
            backend=backend,
            env=Counting,
            steps=steps,
            seed=seed,
            run_dir=Path(folder) / "run",
            cfg=cfg,
            hidden=(32, 32),
            memory_capacity=capacity,
            evaluation_interval=max(1, steps // 20),
            evaluation_episodes=2,
            device="cpu",
            wrappers=(gauge,),
            progress=False,
        )
        agent: Any = result.agent
        execution = agent.execution
    return {"execution": execution, "samples": msgspec.to_builtins(gauge.samples)}


def main(arguments: Sequence[str]) -> int:
    """Print the samples of one long run; the one argument holds those of `run`."""
    todo = entry.read("python -m bench.suites.soak.worker JOB, as JSON", "bench soak", arguments, _job)
    print(json.dumps(run(**todo)))
    return 0


def _job(arguments: Sequence[str]) -> dict[str, Any]:
    (text,) = arguments
    return inspect.signature(run).bind(**json.loads(text)).kwargs


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
