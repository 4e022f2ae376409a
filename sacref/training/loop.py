"""The training loop: it drives any agent through its life cycle, in any Gymnasium vector environment."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import numpy as np
from gymnasium.vector import AutoresetMode

from sacref.agent.agent import UNTRACKED_CHECK_INTERVAL
from sacref.agent.protocol import Agent
from sacref.algorithm.tree import Tree
from sacref.envs.divergence import DivergenceGuard
from sacref.envs.interface import Envs, Space
from sacref.envs.space_records import refuse_other_environments
from sacref.envs.vector import require_separate
from sacref.ranks import Ranks
from sacref.training.rollout import Rollout

AGREEMENT_SECONDS = 1.0
"""About how often ranks tell each other whether Ctrl-C was pressed."""
AGREEMENT_TIMESTEPS = 100
"""Timesteps between two exchanges, at most: timesteps become slower when learning starts."""

AfterTimestep = Callable[[int], bool | None]
"""Called with the number of timesteps that are finished; False ends the loop, as Ctrl-C does."""


@dataclass(frozen=True)
class LoopState:
    """The state of a loop between two timesteps."""

    timesteps: int
    """Timesteps finished."""
    observations: Tree
    """`(envs, *observation)`: what the next actions are chosen on; the agent's arrays where the environments' are on a device."""
    states: Tree | None
    """`(envs, *state)`, or None."""


@dataclass(frozen=True)
class Outcome:
    """The result of a training loop."""

    timesteps: int
    """Timesteps finished, those before `start` included."""
    seconds: float
    """Time that the timesteps of this loop took, without what `after_timestep` did."""
    interrupted: bool
    """Ctrl-C, or `after_timestep`, ended it."""


def run(
    agent: Agent,
    envs: Envs,
    *,
    timesteps: int,
    start: int = 0,
    seed: int | None = None,
    state_space: Space | None = None,
    after_timestep: AfterTimestep | None = None,
    begin_again: Callable[[], bool] | None = None,
    after_all: Callable[[LoopState], None] | None = None,
    begin: LoopState | None = None,
    on_begin: Callable[[], None] | None = None,
    on_recorded: Callable[[], None] | None = None,
    ranks: Ranks | None = None,
) -> Outcome:
    """Train an agent for `timesteps` steps of the vector environment.

    Strict order: the action of timestep t uses the parameters after the update that follows transition t-1, and that update may
    sample the newest transition.

    Ctrl-C ends the loop after the current timestep (a second one raises KeyboardInterrupt at once). Of several ranks, any one's ends all
    loops after the same timestep, about a second later.

    An environment that diverges is reported and reset, its episode dropped: see `sacref.envs.divergence`.

    Args:
        agent: `init` is called, and it is put into training mode.
        envs: reset first; of any autoreset mode.
        timesteps: vector steps of the whole run; `timesteps * envs.num_envs` environment steps. A step under NEXT_STEP that only
            resets an environment counts.
        start: timesteps that were finished before, of a run that is resumed.
        seed: passed on to `envs.reset`.
        state_space: of the privileged states that the environments hand over (`sacref.envs.states`); None for none.
        after_timestep: called after each timestep, with the number of finished ones: for evaluation and progress. False ends the loop.
        begin_again: tells whether `after_timestep` has used the environments, so that new episodes have to begin.
        after_all: called after that: for checkpoints.
        begin: where to go on, of environments that were restored to how they were; None to reset them. It takes the place of `start`.
        on_begin: called when agent and environments are ready.
        on_recorded: called once, when the first transition is recorded and before it is learned from; at the end, if there is none.
        ranks: the processes that train this agent together, each of which runs this loop; None for this one alone.

    Raises:
        EnvError: if two copies are one environment. ValueError: if `start` is not within [0, timesteps], or the environments have
            other spaces than the agent. NumericalError: if training becomes NaN or infinite. DivergenceError: if an environment does
            nothing but diverge.
    """
    start = start if begin is None else begin.timesteps
    rollout = start_rollout(
        agent, envs, timesteps=timesteps, start=start, seed=seed, state_space=state_space, begin=begin, on_begin=on_begin
    )
    disabled_autoreset = envs.metadata.get("autoreset_mode") == AutoresetMode.DISABLED
    guard = DivergenceGuard(envs, None if ranks is None or ranks.size == 1 else ranks.rank, getattr(agent, "float_limit", np.inf))
    tell_interval = getattr(agent, "write_interval", None) or 0
    if tell_interval <= 0:
        tell_interval = UNTRACKED_CHECK_INTERVAL
    finished, seconds = start, 0.0
    with interruption() as pressed:
        stop = _Stop(pressed, ranks or Ranks(), start)
        while finished < timesteps and not stop.after(finished):
            began = time.perf_counter()
            clock = {"timestep": finished, "timesteps": timesteps}
            agent.pre_interaction(**clock)
            taken = rollout.step(**clock)
            diverged = guard.look(
                observations=taken.observations,
                states=taken.states,
                rewards=taken.rewards,
                ended=taken.ended,
                infos=taken.infos,
                timestep=finished,
            )
            agent.track_data("Stats / Inference time (ms)", 1000 * (taken.acted - began))
            agent.track_data("Stats / Env stepping time (ms)", 1000 * (taken.stepped - taken.acted))
            rollout.record(taken, diverged, **clock)
            if on_recorded is not None and finished == start:
                on_recorded()
            agent.post_interaction(**clock)
            again = diverged | taken.ended if disabled_autoreset else diverged
            # On a device nobody looks: there a mask may name no environment.
            if again is not None and (rollout.on_device or again.any()):
                rollout.reset_some(again)
            finished += 1
            if rollout.on_device and (finished == timesteps or finished % tell_interval == 0):
                guard.tell(finished)
            seconds += time.perf_counter() - began
            if after_timestep is not None and after_timestep(finished) is False:
                stop.requested = True
            if begin_again is not None and begin_again():
                agent.init(trainer_cfg={"timesteps": timesteps})
                rollout.reset()
            if after_all is not None:
                after_all(LoopState(finished, rollout.observations, rollout.states))
        if on_recorded is not None and finished == start:
            on_recorded()
        return Outcome(finished, seconds, stop.agreed())


def start_rollout(
    agent: Agent,
    envs: Envs,
    *,
    timesteps: int,
    start: int,
    seed: int | None,
    state_space: Space | None,
    begin: LoopState | None,
    on_begin: Callable[[], None] | None,
) -> Rollout:
    """Bring agent and environments to where a loop begins; for arguments and errors see `run`."""
    require_separate(envs)
    if not 0 <= start <= timesteps:
        raise ValueError(f"start is {start}, expected it within [0, timesteps], and timesteps is {timesteps}")
    refuse_other_environments(agent, envs, state_space)
    agent.init(trainer_cfg={"timesteps": timesteps})
    agent.enable_training_mode(True, apply_to_models=True)
    rollout = Rollout(agent, envs, state_space, stays_on_device=True)
    if begin is None:
        rollout.reset(seed)
    else:
        rollout.observations, rollout.states = begin.observations, begin.states
    if on_begin is not None:
        on_begin()
    return rollout


class _Stop:
    """Decision whether Ctrl-C ends the loop. Ranks stop after the same timestep: one that went on alone would wait for the others for ever.

    They ask each other at timesteps that all of them know: asking at each would cost an exchange at each.
    """

    def __init__(self, pressed: Callable[[], bool], ranks: Ranks, start: int) -> None:
        self.requested = False
        self._interrupted, self._ranks = pressed, ranks
        self._asked, self._ask = start, start + 1
        self._began = time.perf_counter()

    def _pressed(self) -> bool:
        return self.requested or self._interrupted()

    def after(self, finished: int) -> bool:
        if self._ranks.size == 1:
            return self._pressed()
        if finished < self._ask:
            return False
        seconds = (time.perf_counter() - self._began) / (finished - self._asked)
        told = self._ranks.gather([self._pressed(), seconds])
        slowest = max(seconds for _, seconds in told)
        self._asked, self._began = finished, time.perf_counter()
        self._ask = finished + int(np.clip(AGREEMENT_SECONDS / max(slowest, 1e-9), 1, AGREEMENT_TIMESTEPS))
        return any(pressed for pressed, _ in told)

    def agreed(self) -> bool:
        """Return whether any rank was interrupted by now."""
        return any(self._ranks.gather(self._pressed()))


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Note whether Ctrl-C was pressed. The first one is only noted, the handler before takes the second."""
    pressed = False
    if threading.current_thread() is not threading.main_thread():
        # Python delivers signals to the main thread alone, which is not ours to stop from here.
        yield lambda: pressed
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
