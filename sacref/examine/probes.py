"""Checks beyond the update: initial weights, acting, stored transitions, its own training loop, and saving and loading.

Each is optional: an adapter without the method gets "not checkable", with what it would have to offer.
"""

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

import sacref.examine.oracle as oracle
from sacref.algorithm.data import Batch
from sacref.examine.adapter import Acting, Adapter, Collecting, Replaying, Saving, Training, Windows, check_acting, record
from sacref.examine.choices import VALUES, Choices
from sacref.examine.observed import Trajectory, difference
from sacref.examine.problem import Problem, Scene
from sacref.parity.networks import Arrays, Floats, Named, Seen, forward
from sacref.spec.arrays import NumpyArray

Status = Literal["absent", "present", "not checkable"]
SATURATED = (20.0, 50.0)
RESUMED = 0.0
"""Relative difference of a resumed agent that is none: it repeats the same operations, and keeps its own dtype."""
SAVED_UPDATES, RESUMED_UPDATES = 3, 2
"""Updates before an agent is saved and after it is loaded: one of two takes the steps that are taken at every second."""
PATIENCE = 32
"""Updates in which a policy is expected to step."""
FAR = 5.0
"""Factor of the observations that are acted on: some of the policy's means then lie beyond the Box."""
NATS = 0.01
"""Error of a log-density that is worth a mistake."""


class Finding(NamedTuple):
    """Known mistake and its status."""

    mistake: str
    status: Status
    got: str = ""
    expected: str = ""
    why: str = ""
    """Reason that a mistake is not checkable, or consequence of one that is present."""


def log_density(choices: Sequence[Choices]) -> Finding:
    """Judge the identified form of the log-density where the tanh saturates."""
    title = "log-density wrong where the tanh saturates"
    if not choices:
        return Finding(title, "not checkable", why="the form of the log-density is not identified")
    chosen = choices[0]
    if chosen.squash != "tanh":
        return Finding(title, "not checkable", why="nothing is squashed")
    u = np.array(SATURATED)
    with np.errstate(divide="ignore"):
        got, _ = oracle.tanh_correction(u, chosen.log_prob, 1.0)
    expected, _ = oracle.tanh_correction(u, "exact, from u", 1.0)
    status: Status = "present" if np.abs(got - expected).max() > NATS else "absent"
    said = ["; ".join(f"{value:.1f} nats at u = {at:g}" for value, at in zip(values, SATURATED, strict=True)) for values in (got, expected)]
    return Finding(title, status, said[0], said[1], "log(1 - a^2) of each dimension" if status == "present" else "")


def learning(adapter: Adapter, trajectories: Sequence[Trajectory]) -> Finding:
    """Check that the policy moves; where it does not, many more updates tell one that never does from one with a long delay."""
    title = "a policy that never learns"
    scene = trajectories[0].scene
    moved = any(update.moved("policy") for trajectory in trajectories for update in trajectory.updates)
    if moved or any(update.moved("policy") for update in record(adapter, replace(scene, updates=PATIENCE)).updates):
        return Finding(title, "absent")
    return Finding(title, "present", f"no step in {PATIENCE} updates", "steps", "it acts as it was made")


def start(weights: Named) -> Iterator[Finding]:
    """Check the weights that an agent is made with: twin critics differ, and target networks are copies."""
    gap = max(
        float(np.abs(weights[name] - weights[name.replace("critic_1", "critic_2", 1)]).max())
        for name in weights
        if name.startswith("critic_1")
    )
    title = "twin critics that start equal"
    if gap > 0:
        yield Finding(title, "absent")
    else:
        yield Finding(title, "present", "critic_1 and critic_2 are equal", "other weights", "they see equal targets and stay one critic")
    targets = {name: array for name, array in weights.items() if name.startswith("target_")}
    far = difference(targets, {name: weights[name.removeprefix("target_")] for name in targets})
    title = "target networks that do not start as copies"
    if far == 0:
        yield Finding(title, "absent")
    else:
        yield Finding(title, "present", f"{far:.1e} relative", "copies of the critics")


def acting(adapter: Adapter, scene: Scene, squash: Sequence[str]) -> Iterator[Finding]:
    """Check deterministic actions, their units, and fresh noise in the others.

    Args:
        adapter: makes the agent that acts.
        scene: holds its weights.
        squash: values of this choice that the update leaves; none if it is not identified.
    """
    titles = (
        "deterministic actions that are not the policy's mean",
        "actions that do not fill the Box",
        "actions outside the Box",
        "exploration without fresh noise",
    )
    if not isinstance(adapter, Acting):
        yield from (Finding(title, "not checkable", why="the adapter has no act()") for title in titles)
        return
    problem = scene.problem
    adapter.make(problem)
    adapter.set_weights({name: array.copy() for name, array in scene.weights.items()})
    observations = FAR * next(scene.data())[0].observations
    shown, one, two = check_acting(adapter, adapter.weights, adapter.name, observations)
    outside = float(max(np.abs(each).max() for each in (shown, one, two))) / problem.bound
    output = np.split(forward(scene.weights, "policy", Seen(observations))[0], 2, axis=-1)[0]
    forms = []
    for form in squash or VALUES["squash"]:
        cut = form != "tanh"
        mean = np.clip(shown, -problem.bound, problem.bound) if cut else shown
        expected = np.clip(output, -problem.bound, problem.bound) if cut else problem.box(np.tanh(output))
        # The scale that fits best tells units from another action.
        scale = float((mean * expected).sum() / (expected**2).sum())
        gap = np.abs(mean - scale * expected)
        forms.append((float(gap.max()) / problem.bound, np.unravel_index(int(gap.argmax()), gap.shape), mean, expected, scale))
    off, worst, mean, expected, scale = min(forms, key=lambda form: form[0])
    tolerance = 1e-5
    if off <= tolerance:
        yield Finding(titles[0], "absent")
    elif len(forms) > 1:
        yield Finding(titles[0], "not checkable", why="they are neither its tanh nor its cut, and the update does not say which")
    else:
        yield Finding(titles[0], "present", f"{mean[worst]:.4f}", f"{expected[worst]:.4f}", "an evaluation explores")
    if off > tolerance:
        yield Finding(titles[1], "not checkable", why="its deterministic actions are not known")
    elif abs(scale - 1) > tolerance:
        yield Finding(titles[1], "present", f"{scale:.3f} of the Box", "1", "the task gets other actions than the policy chose")
    else:
        yield Finding(titles[1], "absent")
    if outside > 1 + tolerance:
        yield Finding(titles[2], "present", f"{outside:.2f} of the bound", "at most 1", "the task cuts them, or does not bear them")
    else:
        yield Finding(titles[2], "absent")
    if np.array_equal(one, two) or np.allclose(one, mean, rtol=0, atol=tolerance):
        got = "twice the same actions" if np.array_equal(one, two) else "the deterministic actions"
        yield Finding(titles[3], "present", got, "other actions each time")
    else:
        yield Finding(titles[3], "absent")


def saving(adapter: Adapter, scene: Scene) -> Finding:
    """Find what a saved and loaded agent has forgotten: weights at once, optimizers and counters at the next updates."""
    title = "a loaded agent that forgets"
    if not isinstance(adapter, Saving):
        return Finding(title, "not checkable", why="the adapter has no save() and load()")
    updates = list(replace(scene, updates=SAVED_UPDATES + RESUMED_UPDATES).data())
    seen: list[list[Arrays]] = []
    with tempfile.TemporaryDirectory() as folder:
        for resumed in (False, True):
            adapter.make(scene.problem)
            adapter.set_weights({name: array.copy() for name, array in scene.weights.items()})
            if not resumed:
                for batch, draws in updates[:SAVED_UPDATES]:
                    adapter.update(batch, draws)
                adapter.save(Path(folder) / "agent")
            else:
                adapter.load(Path(folder) / "agent")
            states = [_copy(adapter.weights())]
            for batch, draws in updates[SAVED_UPDATES:]:
                adapter.update(batch, draws)
                states.append(_copy(adapter.weights()))
            seen.append(states)
    parts: Mapping[str, Callable[[Named], Arrays]] = {
        **{network: partial(oracle.group, network=network) for network in oracle.NETWORKS},
        "target networks": oracle.targets,
    }
    for number, (kept, loaded) in enumerate(zip(*seen, strict=True)):
        lost = [name for name, part in parts.items() if difference(part(loaded), part(kept)) > RESUMED]
        if number:
            lost = [f"the optimizer of the {name}" for name in lost if name in oracle.NETWORKS] or lost
        if lost:
            return Finding(
                title, "present", f"lost: {', '.join(lost)}", "everything that the next update needs", "a resumed run is another run"
            )
    kept, after = seen[0][0], seen[0][-1]
    fixed = difference(oracle.group(scene.weights, "temperature"), oracle.group(after, "temperature")) == 0  # with nothing to forget
    still = [name for name, part in parts.items() if difference(part(kept), part(after)) == 0 and not (fixed and name == "temperature")]
    if still:
        return Finding(title, "not checkable", why=f"no step in the {RESUMED_UPDATES} updates after loading: {', '.join(still)}")
    return Finding(title, "absent")


class Counting(gymnasium.Env[NumpyArray, NumpyArray]):
    """Environment that shows its episode and step, and ends even episodes by termination and odd ones by truncation."""

    TERMINATED, TRUNCATED = 3, 5

    def __init__(self, problem: Problem) -> None:
        self.observation_space: gymnasium.spaces.Box[Any] = problem.observation_space
        self.action_space: gymnasium.spaces.Box[Any] = problem.action_space
        self._episode, self._step = -1, 0

    def _see(self) -> NumpyArray:
        shown = np.zeros(self.observation_space.shape or (), np.float32)
        shown[:2] = self._episode, self._step
        return shown

    def reset(self, *, seed: int | None = None, options: dict[str, object] | None = None) -> tuple[NumpyArray, dict[str, Any]]:
        self._episode, self._step = self._episode + 1, 0
        return self._see(), {}

    def step(self, action: NumpyArray) -> tuple[NumpyArray, float, bool, bool, dict[str, Any]]:
        self._step += 1
        even = self._episode % 2 == 0
        ends = even and self._step == self.TERMINATED, not even and self._step == self.TRUNCATED
        return self._see(), float(self._step), *ends, {}


COLLECTED = (
    "truncation stored as termination",
    "termination not stored",
    "resets stored as transitions",
    "an episode's last successor that is the next one's first observation",
    "first steps that repeat one action",
)
AUTORESETS = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP)


def collecting(adapter: Adapter, problem: Problem) -> Iterator[Finding]:
    """Check what the implementation's own loop stores of its first steps and of episodes that end, in two environments."""
    if not isinstance(adapter, Collecting):
        yield from (Finding(title, "not checkable", why="the adapter has no collect()") for title in COLLECTED)
        return
    runs: list[list[Finding]] = []
    for mode in AUTORESETS:
        adapter.make(problem)
        runs.append(list(stored(adapter.collect(lambda: Counting(problem), 2, 20, mode))))
    for findings in zip(*runs, strict=True):
        worst = min(findings, key=lambda each: ("present", "absent", "not checkable").index(each.status))
        where = [mode.name for mode, each in zip(AUTORESETS, findings, strict=True) if each.status == "present"]
        yield worst._replace(got=f"{worst.got} under {where[0]}") if len(where) == 1 else worst


def stored(rows: Batch[Floats]) -> Iterator[Finding]:
    """Judge stored rows of `Counting`."""
    (episode, step), next_episode = rows.observations[:, :2].T, rows.next_observations[:, 0]
    even, done = episode % 2 == 0, np.asarray(rows.terminated, bool).ravel()
    last = np.where(even, Counting.TERMINATED, Counting.TRUNCATED) - 1 == step
    after = np.where(even, Counting.TERMINATED, Counting.TRUNCATED) == step
    cases = (
        (last & ~even & done, last & ~even, "a task that only truncates learns that its end is worth nothing"),
        (last & even & ~done, last & even, "a state after the end has a value"),
        (after, last, "the step that only resets is learned from"),
        # No target reads the successor of a terminated row.
        (last & ~done & (next_episode != episode), last & ~done, "values leak from one episode into the next"),
    )
    for title, (wrong, of, consequence) in zip(COLLECTED[:-1], cases, strict=True):
        if not of.any():
            yield Finding(title, "not checkable", why="no such row is stored")
        elif wrong.any():
            yield Finding(title, "present", f"{int(wrong.sum())} rows of {int(of.sum())} ends", "none", consequence)
        else:
            yield Finding(title, "absent")
    different = len(np.unique(rows.actions, axis=0))
    if different < len(rows.actions) / 2:
        said = f"{different} actions in {len(rows.actions)} rows"
        yield Finding(COLLECTED[-1], "present", said, "others in each", "the replay memory begins with what one action does")
    else:
        yield Finding(COLLECTED[-1], "absent")


WINDOWS = ("n-step exponents wrong", "n-step windows over the write head", "n-step windows over an episode's end")
N_STEP, CAPACITY, STORED, DISCOUNT = 3, 20, 33, 0.9


def windows(adapter: Adapter, problem: Problem) -> Iterator[Finding]:
    """Check the n-step transitions of a replay memory that has overwritten its oldest rows."""
    if not isinstance(adapter, Replaying):
        yield from (Finding(title, "not checkable", why="the adapter has no windows()") for title in WINDOWS)
        return
    adapter.make(problem)
    rows, truncated = played(problem, STORED)
    yield from windowed(adapter.windows(rows, truncated, CAPACITY, N_STEP, DISCOUNT), rows.observations[-1])


def played(problem: Problem, steps: int) -> tuple[Batch[Floats], Floats]:
    """Play `Counting`: its transitions, and which of them are truncated."""
    environment, rows = Counting(problem), []
    now, _ = environment.reset()
    for _ in range(steps):
        after, reward, terminated, truncated, _ = environment.step(now)
        rows.append((now, reward, after, terminated, truncated))
        now = environment.reset()[0] if terminated or truncated else after
    observations, rewards, next_observations, ends, cuts = (np.array(part) for part in zip(*rows, strict=True))
    actions = np.zeros((steps, problem.action), np.float32)
    return Batch(observations, None, actions, rewards.astype(np.float32), next_observations, None, ends), cuts


def windowed(seen: Windows, newest: Floats) -> Iterator[Finding]:
    """Judge windows of `Counting`; `newest` is the observation of the row that was stored last."""
    (episode, step), (next_episode, next_step) = seen.observations[:, :2].T, seen.next_observations[:, :2].T
    even, ends = episode % 2 == 0, np.asarray(seen.terminated, bool).ravel()
    # At most n steps before the newest row, in its episode.
    at_head = (episode == newest[0]) & (step > newest[1] - N_STEP)
    taken = np.where(next_episode == episode, next_step - step, 0)
    # No target reads the successor of a terminated window: the rewards alone say where it ends.
    taken = np.where(ends & even & ~at_head, Counting.TERMINATED - step, taken)
    inside = (taken >= 1) & (taken <= N_STEP)
    powers = DISCOUNT ** np.arange(N_STEP)
    # The reward of a step is the number of the step that it leads to.
    sums = np.array(
        [float((powers[: int(k)] * (s + 1 + np.arange(int(k)))).sum()) for s, k in zip(step, np.where(inside, taken, 0), strict=True)]
    )
    away = np.abs(np.asarray(seen.rewards, np.float64).ravel() - sums)
    away = np.maximum(away, np.where(ends, 0, np.abs(np.asarray(seen.discounts, np.float64).ravel() - DISCOUNT**taken)))
    unended = inside & even & ~ends & (step + taken == Counting.TERMINATED)
    cut = inside & ~even & ends
    beyond = ~inside & ~at_head
    follows = (
        "rewards leak from one episode into the next"
        if beyond.any()
        else "a state after the end has a value"
        if unended.any()
        else "a task that only truncates learns that its end is worth nothing"
    )
    cases = (
        (inside & (away > 1e-5), inside, "values of other steps are discounted as if they were n steps away"),
        (~inside & at_head, at_head, "the newest rows are followed by the oldest ones"),
        (beyond | unended | cut, ~at_head | unended | cut, follows),
    )
    for title, (wrong, of, consequence) in zip(WINDOWS, cases, strict=True):
        if not of.any():
            yield Finding(title, "not checkable", why="no such window is sampled")
        elif wrong.any():
            yield Finding(title, "present", f"{int(wrong.sum())} windows of {int(of.sum())}", "none", consequence)
        else:
            yield Finding(title, "absent")


ENVIRONMENTS, FIRST_STEPS, MORE_STEPS = 4, 20, 8


def training(adapter: Training, problem: Problem) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Find how many gradient steps an implementation's own loop takes, and on which batches.

    Returns:
        The values of the choices that were seen, and why others were not.
    """

    def batches(num_envs: int, steps: int, gradient_steps: int) -> Sequence[Floats]:
        adapter.make(problem)
        return adapter.train(lambda: Counting(problem), num_envs, steps, gradient_steps)

    numbers = [len(batches(ENVIRONMENTS, FIRST_STEPS + more, 1)) for more in (0, MORE_STEPS)]
    each = (numbers[1] - numbers[0]) / MORE_STEPS
    # From the first steps a memory may hold a single row.
    pairs = list(itertools.pairwise(batches(1, FIRST_STEPS, 2)))[::2][-MORE_STEPS:]
    alike = [np.array_equal(one, other) for one, other in pairs]
    ratio, own = VALUES["update_ratio"], VALUES["batches"]
    found = {
        "update_ratio": [value for value, expected in zip(ratio, (1, ENVIRONMENTS), strict=True) if each == expected],
        "batches": [own[all(alike)]] if pairs and len(set(alike)) == 1 else [],
    }
    why = {
        "update_ratio": f"{each:g} gradient steps for each step of {ENVIRONMENTS} environments",
        "batches": f"{sum(alike)} of {len(pairs)} pairs of batches are equal",
    }
    return found, {name: why[name] for name, values in found.items() if not values}


def _copy(arrays: Named) -> Arrays:
    return {name: np.array(array, np.float64) for name, array in arrays.items()}
