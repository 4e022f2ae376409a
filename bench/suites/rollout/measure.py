"""Parts of the training loop: environments, acting, the whole loop by number of environments: `python -m bench rollout`.

Environments are stepped in every vectorization, beside MuJoCo's own `rollout` of the same simulations, without observations and rewards.

The contenders of a comparison take turns. The parts are measured in a separate pass, with the device idle before and after each: parts that
overlap in the loop then follow each other, and add up to slightly more than the loop takes.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, get_args, get_type_hints

from msgspec.structs import replace

from bench.core import runner, timing
from bench.core.samples import Timing
from bench.core.stage import Preset
from bench.core.timing import Timed
from bench.suites.rollout.samples import ActCell, EnvironmentCell, LoopCell, PartCell, RolloutSamples

ENVS = tuple(
    f"{name}-v5"
    for name in (
        "Ant",
        "HalfCheetah",
        "Hopper",
        "Humanoid",
        "HumanoidStandup",
        "InvertedDoublePendulum",
        "InvertedPendulum",
        "Pusher",
        "Reacher",
        "Swimmer",
        "Walker2d",
    )
)
"""Gymnasium's MuJoCo tasks."""
LOOP_ENV = "HalfCheetah-v5"
"""The task of the loop, which is also stepped in every vectorization."""
PARTS = get_args(get_type_hints(PartCell)["part"])
STORED = 10_000
"""Transitions in the memory when a loop starts."""
CAPACITY = 1_000_000
BATCH, WIDTH = 256, 256
Way: TypeAlias = tuple[Any, int]
"""Vectorization, as an `EnvironmentCell` names it, and number of threads."""
ACTIONS = 64
"""Random actions that are drawn before the environments are timed, and used in turn."""
STEPPED_BY = get_args(get_type_hints(EnvironmentCell)["stepped_by"])
SECONDS_OF_A_PROCESS = 1.5
"""For the estimate: starting one."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes that a preset measures."""

    envs: tuple[str, ...]
    num_envs: tuple[int, ...]
    rounds: int
    round_seconds: float
    """Duration of a round of environments and of acting."""
    loop_steps: int
    """Environment steps in a round of a loop."""


PRESETS: dict[Preset, Sizes] = {
    "smoke": Sizes(envs=("HalfCheetah-v5", "Hopper-v5"), num_envs=(1, 4), rounds=2, round_seconds=0.05, loop_steps=32),
    "cpu": Sizes(envs=ENVS, num_envs=(1, 4, 16), rounds=5, round_seconds=0.3, loop_steps=320),
    "gpu": Sizes(envs=ENVS, num_envs=(1, 4, 16), rounds=7, round_seconds=0.3, loop_steps=3_200),
}
LOOP_STEPS_PER_SECOND = {"smoke": 80.0, "cpu": 80.0, "gpu": 1_000.0}
"""For the estimate."""


def plan(preset: Preset, threads: int, seed: int) -> runner.Plan[RolloutSamples]:
    """Plan a preset on so many cores."""
    sizes = PRESETS[preset]
    return runner.Plan(
        title="Environments, acting and the training loop",
        configuration={
            "envs": list(sizes.envs),
            "num_envs": list(sizes.num_envs),
            "stepped_by": list(STEPPED_BY),
            "vectorization": "sync",
            "rounds": sizes.rounds,
            "round_seconds": sizes.round_seconds,
            "loop_env": LOOP_ENV,
            "loop_steps": sizes.loop_steps,
            "batch_size": BATCH,
            "hidden": [WIDTH, WIDTH],
            "memory_capacity": CAPACITY,
            "stored": STORED,
            "dtype": "float32",
            "matmul_precision": "highest",
        },
        pieces=list(pieces(preset, seed, threads)),
    )


def pieces(preset: Preset, seed: int, threads: int) -> Iterator[runner.Piece[RolloutSamples]]:
    """Yield the pieces of a preset."""
    sizes = PRESETS[preset]
    a_round = (sizes.rounds + 2) * sizes.round_seconds
    a_loop = 2 * (5 + (sizes.rounds + 1) * sizes.loop_steps / LOOP_STEPS_PER_SECOND[preset])
    for env in sizes.envs:
        ways = ways_of(env, threads)
        seconds = 1 + len(ways) * len(sizes.num_envs) * a_round
        if env == LOOP_ENV:
            seconds += SECONDS_OF_A_PROCESS * sum(sizes.num_envs)
        yield runner.Piece(name=env, seconds=seconds, measure=partial(measure_environment, env, sizes, seed, ways))
    acts = 2 * len(sizes.num_envs) * (1 + a_round)
    yield runner.Piece(name="acting", seconds=acts, measure=partial(measure_acts, sizes, seed))
    for num_envs in sizes.num_envs:
        name = f"the loop, {num_envs} environment{'s' if num_envs > 1 else ''}"
        yield runner.Piece(name=name, seconds=a_loop, measure=partial(measure_loops, num_envs, sizes, seed))
    yield runner.Piece(name="the loop's parts", seconds=a_loop, measure=partial(measure_parts, sizes, seed))


def ways_of(env: str, threads: int) -> list[Way]:
    """Return the vectorizations of a task, each with the number of threads."""
    if env != LOOP_ENV:
        return [("sync", 1), ("batched", threads)]
    each = sorted({1, threads})
    return [("sync", 1), ("async", 1), *((by, number) for by in STEPPED_BY[2:] for number in each)]


def measure_environment(env: str, sizes: Sizes, seed: int, ways: Sequence[Way]) -> RolloutSamples:
    """Measure one task under random actions, in some ways with every number of environments in turn."""
    from sacref.envs import EnvError

    cells = [
        EnvironmentCell(env=env, num_envs=num_envs, stepped_by=by, threads=threads, timings=[], missing=None)
        for by, threads in ways
        for num_envs in sizes.num_envs
    ]
    contenders, opened = {}, []
    for number, cell in enumerate(cells):
        try:
            timed, close = _open(cell, seed)
        except EnvError as error:
            cells[number] = replace(cell, missing=str(error))
            continue
        opened.append(close)
        contenders[number] = timed, timing.warm(timed, sizes.round_seconds)[1]
    for number, timings in timing.interleave(contenders, sizes.rounds).items():
        cells[number] = replace(cells[number], timings=timings)
    for close in opened:
        close()
    return _samples(environments=cells)


def _open(cell: EnvironmentCell, seed: int) -> tuple[Timed, Callable[[], object]]:
    """Return a call that steps the environments, and one that closes them."""
    from sacref.envs import make

    if cell.stepped_by.startswith("rollout"):
        return _rollout(cell, seed)
    if cell.stepped_by == "batched":
        from sacref.envs.batched import BatchedVectorEnv

        # `make` says what is missing, but does not take the number of threads.
        one: Any = make(cell.env, 1)
        envs: Any = BatchedVectorEnv(one.envs[0], cell.num_envs, threads=cell.threads)
        envs.reset(seed=seed)
    else:
        envs = make(cell.env, cell.num_envs, seed=seed, vectorization="sync" if cell.stepped_by == "sync" else "async")
    return Timed(call=_stepping(envs, seed), synchronise=lambda: None, count=cell.num_envs), envs.close


def _rollout(cell: EnvironmentCell, seed: int) -> tuple[Timed, Callable[[], object]]:
    """Return `mujoco.rollout` of the simulations, a control step of all in a call, or `ACTIONS`. It drops the warm start between calls."""
    import gymnasium
    import mujoco
    import numpy as np
    from mujoco import rollout

    task: Any = gymnasium.make(cell.env).unwrapped
    model, substeps, copies = task.model, task.frame_skip, cell.num_envs
    kind = mujoco.mjtState.mjSTATE_FULLPHYSICS
    state = np.zeros((copies, mujoco.mj_stateSize(model, kind)))
    for copy in range(copies):
        task.reset(seed=seed + copy)
        mujoco.mj_getState(model, task.data, state[copy], kind)
    low, high = model.actuator_ctrlrange.T
    controls = np.random.default_rng(seed).uniform(low, high, (copies, ACTIONS, model.nu)).repeat(substeps, axis=1)
    data = [mujoco.MjData(model) for _ in range(cell.threads)]
    pool = rollout.Rollout(nthread=cell.threads if cell.threads > 1 else 0)
    closed = cell.stepped_by == "rollout, closed loop"
    length = substeps if closed else substeps * ACTIONS
    parts = [np.ascontiguousarray(controls[:, first : first + length]) for first in range(0, controls.shape[1], length)]
    states, sensors = np.empty((copies, length, state.shape[1])), np.empty((copies, length, model.nsensordata))
    turn = 0

    def call() -> None:
        nonlocal state, turn
        options = {"skip_checks": True, "nstep": length, "state": states, "sensordata": sensors}
        pool.rollout([model] * copies, data, state, parts[turn % len(parts)], **options)
        turn += 1
        if closed:
            state = states[:, -1].copy()

    return Timed(call=call, synchronise=lambda: None, count=copies * length // substeps), pool.close


def _stepping(envs: Any, seed: int) -> Callable[[], None]:
    envs.action_space.seed(seed)
    actions = [envs.action_space.sample() for _ in range(ACTIONS)]
    count = 0

    def step() -> None:
        nonlocal count
        envs.step(actions[count % ACTIONS])
        count += 1

    return step


def measure_acts(sizes: Sizes, seed: int) -> RolloutSamples:
    """Measure actions of the policy, as the training loop asks for them, on both backends, for every number of environments in turn."""
    missing = runner.missing_backends()
    cells = [
        ActCell(backend=backend, num_envs=num_envs, timings=[], compile_seconds=None, missing=missing.get(backend))
        for backend in runner.BACKENDS
        for num_envs in sizes.num_envs
    ]
    contenders, first = {}, {}
    for number, cell in enumerate(cells):
        if cell.missing is None:
            agent = _agent(cell.backend, cell.num_envs, seed)
            timed = Timed(call=_acting(agent, cell.num_envs, seed), synchronise=agent.synchronise)
            first[number], calls = timing.warm(timed, sizes.round_seconds)
            contenders[number] = timed, calls
    for number, timings in timing.interleave(contenders, sizes.rounds).items():
        cells[number] = replace(cells[number], timings=timings, compile_seconds=timing.compile_seconds(first[number], 1, timings))
    return _samples(acts=cells)


def _acting(agent: Any, num_envs: int, seed: int) -> Callable[[], object]:
    from bench.core.synthetic import replay

    observations = replay(STORED, seed).observations[:num_envs].astype("float64")

    def act() -> object:
        actions, _ = agent.act(observations, None, timestep=0, timesteps=1)
        return agent.to_numpy(actions)

    return act


def measure_loops(num_envs: int, sizes: Sizes, seed: int) -> RolloutSamples:
    """Measure both backends' training loops with `num_envs` environments, in turn."""
    missing = runner.missing_backends()
    cells = [
        LoopCell(backend=backend, num_envs=num_envs, execution=None, timings=[], compile_seconds=None, missing=missing.get(backend))
        for backend in runner.BACKENDS
    ]
    loops = {number: Loop(cell.backend, num_envs, seed) for number, cell in enumerate(cells) if cell.missing is None}
    timings: dict[int, list[Timing]] = defaultdict(list)
    first = {number: _seconds(partial(loop.advance, sizes.loop_steps)) for number, loop in loops.items()}
    for _ in range(sizes.rounds):
        for number, loop in loops.items():
            timings[number].append(loop.advance(sizes.loop_steps))
    for number, loop in loops.items():
        compiling = timing.compile_seconds(first[number], sizes.loop_steps + num_envs, timings[number])
        cells[number] = replace(cells[number], execution=loop.agent.execution, timings=timings[number], compile_seconds=compiling)
        loop.close()
    return _samples(loops=cells)


def measure_parts(sizes: Sizes, seed: int) -> RolloutSamples:
    """Measure the parts of both backends' loops with one environment, in turn."""
    missing = runner.missing_backends()
    loops = {backend: Loop(backend, 1, seed) for backend in runner.BACKENDS if backend not in missing}
    clocks = {backend: PartClock(loop.agent, loop.envs) for backend, loop in loops.items()}
    for loop in loops.values():
        loop.advance(sizes.loop_steps)
    timings: dict[tuple[str, str], list[Timing]] = defaultdict(list)
    for _ in range(sizes.rounds):
        for backend, loop in loops.items():
            whole = loop.advance(sizes.loop_steps, clocks[backend].restart)
            for part, seconds in clocks[backend].split(whole.seconds).items():
                timings[backend, part].append(Timing(count=whole.count, seconds=seconds))
    for loop in loops.values():
        loop.close()
    return _samples(parts=[PartCell(backend=backend, part=part, timings=timings[backend, part]) for backend in loops for part in PARTS])


class Loop:
    """sacref's training loop with one gradient step for each environment step, in rounds."""

    def __init__(self, backend: str, num_envs: int, seed: int) -> None:
        from sacref.envs import make

        self.envs = make(LOOP_ENV, num_envs, seed=seed)
        self.agent = _agent(backend, num_envs, seed)
        self._finished = 0

    def advance(self, steps: int, started: Callable[[], object] = lambda: None) -> Timing:
        """Train for `steps` environment steps, from an idle device to an idle device.

        The loop resets the environments when it is entered; its first timestep is not counted, so that neither is the reset.

        Args:
            steps: a multiple of the number of environments.
            started: called when the clock starts.
        """
        from sacref import training

        begin = self._finished + 1
        end = begin + steps // self.envs.num_envs
        marks: list[float] = []

        def mark(finished: int) -> None:
            if finished in (begin, end):
                self.agent.synchronise()
                if finished == begin:
                    started()
                marks.append(time.perf_counter())

        outcome = training.run(self.agent, self.envs, timesteps=end, start=self._finished, after_timestep=mark)
        if outcome.interrupted:
            raise KeyboardInterrupt
        self._finished = end
        return Timing(count=(end - begin) * self.envs.num_envs, seconds=marks[1] - marks[0])

    def close(self) -> None:
        """Close the environments and the files."""
        self.agent.close()
        self.envs.close()


class PartClock:
    """The seconds of each part of the loop, from wrappers around the calls that it makes.

    Each call ends when the device is idle. A call within a call belongs to the outer one; what lies in none of them is the rest.
    """

    def __init__(self, agent: Any, envs: Any) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._inside = False
        self._synchronise = agent.synchronise
        calls = {"act": "act", "to_numpy": "act", "record_transition": "record", "update": "update", "write_tracking_data": "rest"}
        for name, part in calls.items():
            setattr(agent, name, self._clocked(part, getattr(agent, name)))
        envs.step = self._clocked("environment", envs.step)

    def restart(self) -> None:
        """Set all seconds to 0."""
        self._seconds.clear()

    def split(self, whole: float) -> dict[str, float]:
        """Return the seconds of each part since the restart, of `whole` seconds."""
        parts = {part: self._seconds[part] for part in PARTS if part != "rest"}
        return {**parts, "rest": whole - sum(parts.values())}

    def _clocked(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if self._inside:
                return function(*arguments, **keywords)
            self._inside = True
            try:
                began = time.perf_counter()
                returned = function(*arguments, **keywords)
                self._synchronise()
                self._seconds[part] += time.perf_counter() - began
            finally:
                self._inside = False
            return returned

        return call


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _agent(backend: str, num_envs: int, seed: int) -> Any:
    # Imported here, as the process must be bound to its cores first.
    from bench.core import precisions, synthetic

    precisions.use(backend, "float32")
    return synthetic.agent(
        backend,
        batch_size=BATCH,
        width=WIDTH,
        stored=STORED,
        capacity=CAPACITY,
        gradient_steps=num_envs,
        num_envs=num_envs,
        seed=seed,
    )


def _samples(**lists: Any) -> RolloutSamples:
    return RolloutSamples(**{"environments": [], "acts": [], "loops": [], "parts": [], **lists})


SWEEP = runner.Sweep(RolloutSamples, plan)
main, stages, estimated_seconds = SWEEP.main, SWEEP.stages, SWEEP.estimated_seconds
