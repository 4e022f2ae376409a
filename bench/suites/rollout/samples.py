"""The samples of the rollout suite."""

from collections.abc import Iterator
from typing import ClassVar, Literal

from bench.core.samples import Figure, Samples, Strict, Timing, rates


class EnvironmentCell(Strict, frozen=True, kw_only=True):
    """Steps of a vector environment under random actions."""

    env: str
    num_envs: int
    stepped_by: Literal["sync", "async", "batched", "rollout, closed loop", "rollout, open loop"]
    """The vectorization; or `mujoco.rollout` alone, without observations, rewards and resets: of a control step a call, or of many."""
    threads: int
    """Number of threads that compute; under async each environment has its own process."""
    timings: list[Timing]
    """Timings of environment steps, `num_envs` for each vector step."""
    missing: str | None


class ActCell(Strict, frozen=True, kw_only=True):
    """Calls of the policy, from an observation on the host to a sampled action on the host."""

    backend: str
    num_envs: int
    """Rows of the observation."""
    timings: list[Timing]
    """Timings of calls."""
    compile_seconds: float | None
    missing: str | None


class LoopCell(Strict, frozen=True, kw_only=True):
    """The whole training loop of one backend."""

    backend: str
    num_envs: int
    execution: str | None
    """The execution of the gradient steps, as `agent.execution` names it."""
    timings: list[Timing]
    """Timings of environment steps, one gradient step each."""
    compile_seconds: float | None
    missing: str | None


class PartCell(Strict, frozen=True, kw_only=True):
    """A part of the training loop with one environment, the device idle before and after it."""

    backend: str
    part: Literal["act", "environment", "record", "update", "rest"]
    timings: list[Timing]
    """Timings of environment steps: the seconds of the part in that many steps of the loop."""


class RolloutSamples(Samples, frozen=True, kw_only=True):
    """Raw samples of one run of the rollout suite."""

    suite: ClassVar[str] = "rollout"
    environments: list[EnvironmentCell]
    acts: list[ActCell]
    loops: list[LoopCell]
    parts: list[PartCell]

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Yield the names and figures that two runs are compared by."""
        for environment in self.environments:
            name = f"{environment.env}, {environment.num_envs} environments"
            yield from rates(name, environment.timings, "steps/s", reference=True)
        for act in self.acts:
            yield from rates(f"{act.backend}, acting, {act.num_envs} environments", act.timings, "calls/s")
        for loop in self.loops:
            yield from rates(f"{loop.backend}, loop, {loop.num_envs} environments", loop.timings, "steps/s")
        for part in self.parts:
            milliseconds = [1e3 * timing.seconds / timing.count for timing in part.timings]
            if milliseconds:
                yield f"{part.backend}, part {part.part}", Figure(milliseconds, "ms", higher_is_better=False)
