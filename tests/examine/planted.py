"""Choices and mistakes put into the NumPy oracle, and what the examiner makes of it."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from gymnasium.vector import AutoresetMode

from sacref.algorithm.data import Batch
from sacref.examine.adapter import Adapter, Env, Windows, record
from sacref.examine.adapters.oracle import OracleAdapter
from sacref.examine.choices import AFTER, BEFORE, MISTAKES, NEWEST, VALUES, Choices, canonical, contradictions
from sacref.examine.identify import Identification, identify
from sacref.examine.observed import Trajectory
from sacref.examine.probes import CAPACITY, COLLECTED, DISCOUNT, N_STEP, STORED, WINDOWS, Counting
from sacref.examine.problem import Problem, Scene, scenes
from sacref.parity.networks import Arrays, Floats

WITH_OPTIONS = ("clipping", "schedule", "temperature_schedule", "update_ratio", "batches")
"""Fields that plain updates do not show."""


def completed(named: dict[str, str]) -> dict[str, str]:
    """The values, and what they need beside them to stand together."""
    found = dict(named)
    if found.get("target_networks") == "after their average":
        found.setdefault("averaging", "tau of the critics before their step")
    if found.get("target_policy") == AFTER:
        found.setdefault("policy_critics", BEFORE)
    if found.get("policy_alpha") == NEWEST:
        found.setdefault("policy_steps", "every second update, two")
    return found


def singles() -> Iterator[dict[str, str]]:
    """Each value of each field that is not sacref's."""
    for name, values in VALUES.items():
        if name not in WITH_OPTIONS:
            yield from (completed({name: value}) for value in values[1:])


def pairs() -> Iterator[dict[str, str]]:
    """Two values of two fields, all that can stand together and have an effect."""
    for (name, value), (other, another) in itertools.combinations([next(iter(each.items())) for each in singles()], 2):
        named = completed({name: value, other: another})
        chosen = Choices(**named)
        if name != other and not contradictions(chosen) and canonical(chosen) == chosen:
            yield named


def together() -> Iterator[dict[str, str]]:
    """A few updates of which each holds many values: every value of every field is in one of them."""
    left = [next(iter(each.items())) for each in singles()]
    while left:
        named: dict[str, str] = {}
        for name, value in list(left):
            more = {**named, **completed({name: value})}
            fits = all(more[each] == named[each] for each in named)
            chosen = Choices(**more)
            if name not in named and fits and not contradictions(chosen) and canonical(chosen) == chosen:
                named = more
                left.remove((name, value))
        yield named


def examined(named: dict[str, str], problem: Problem | None = None, *, shown: bool = True) -> Identification:
    """Identify an oracle with these choices, which shows its gradients or nothing but its weights."""
    return identify([observed(OracleAdapter(**named), scene, shown=shown) for scene in scenes(problem or Problem())])


def observed(adapter: Adapter, scene: Scene, *, shown: bool) -> Trajectory:
    """Record a trajectory, with the gradients or without."""
    seen = record(adapter, scene)
    return seen if shown else replace(seen, shown=False, updates=[replace(update, steps={}) for update in seen.updates])


def agrees(found: Identification, named: dict[str, str]) -> bool:
    """Say whether an identification names exactly these choices."""
    return list(found.combinations) == [canonical(Choices(**named))]


def collected(problem: Problem, **wrong: bool) -> Batch[Floats]:
    """Give what a loop stores of two episodes of `Counting`, with a mistake in it."""
    environment, stored, generator = Counting(problem), [], np.random.default_rng(0)
    beside = np.eye(1, problem.observation)[0]
    for _ in range(2):
        now, _ = environment.reset()
        while True:
            after, reward, terminated, truncated, _ = environment.step(now)
            done = (terminated and not wrong.get("unterminated", False)) or (truncated and wrong.get("truncated", False))
            leaks = (terminated and wrong.get("leaks_terminated", False)) or ((terminated or truncated) and wrong.get("leaks", False))
            stored.append((now, reward, after + beside if leaks else after, done))
            if terminated or truncated:
                if wrong.get("resets", False):
                    stored.append((after, 0.0, after + beside, False))
                break
            now = after
    observations, rewards, next_observations, ends = (np.array(part) for part in zip(*stored, strict=True))
    actions = generator.uniform(-1, 1, (1 if wrong.get("repeats", False) else len(ends), problem.action))
    return Batch(observations, None, np.resize(actions, (len(ends), problem.action)), rewards, next_observations, None, ends)


def windows(rows: Batch[Floats], truncated: Floats, **wrong: bool) -> Windows:
    """Give the windows of a ring that holds the newest of `STORED` rows, with a mistake in them."""
    ring = [STORED - CAPACITY + i for i in range(CAPACITY)]
    found = []
    for first in range(CAPACITY):
        reward, last = 0.0, ring[first]
        for taken in range(N_STEP):
            last = ring[(first + taken) % CAPACITY]
            reward += DISCOUNT**taken * float(rows.rewards[last])
            ends = bool(rows.terminated[last] or truncated[last]) and not wrong.get("on", False)
            if ends or (last == STORED - 1 and not wrong.get("round", False)):
                break
        power = N_STEP if wrong.get("exponent", False) else taken + 1
        done = bool(rows.terminated[ring[first] if wrong.get("first_end", False) else last]) or (
            wrong.get("cut", False) and bool(truncated[last])
        )
        # A memory that gathers has another episode's row as the successor of a terminated one.
        after = ring[(first + N_STEP) % CAPACITY] if wrong.get("gathers", False) and done else last
        found.append((rows.observations[ring[first]], reward, rows.next_observations[after], done, DISCOUNT**power))
    return Windows(*(np.array(part) for part in zip(*found, strict=True)))


class Delayed(OracleAdapter):
    """An oracle parts of which step at every `delay`-th update alone.

    Args:
        delay: in updates. parts: prefixes of their weights. choices: of its update.
    """

    def __init__(self, delay: int, *parts: str, **choices: str) -> None:
        super().__init__(**choices)
        self._delay, self._parts = delay, parts

    def update(self, batch: Batch[Floats], draws: Floats) -> None:
        agent = self.agent
        weights, moments = dict(agent.weights), dict(agent.moments)
        super().update(batch, draws)
        if agent.updates % self._delay:
            agent.weights |= {name: array for name, array in weights.items() if name.startswith(self._parts)}
            agent.moments |= {name: each for name, each in moments.items() if name.startswith(self._parts)}
            agent.gradients = [step for step in agent.gradients if not next(iter(step)).startswith(self._parts)]


NEVER = 10**6
"""Delay beyond all updates."""


class Complete(OracleAdapter):
    """An oracle that offers all that is checked, with a mistake beyond its update.

    Args:
        made: changes the weights that it is made with. acts: changes how it acts. forgets: prefix of the weights that loading leaves.
        collects: mistake of `collected`. cuts: mistake of `windows`. choices: of its update.
    """

    def __init__(
        self,
        *,
        made: Callable[[Arrays], Arrays] = lambda weights: weights,
        acts: Callable[[Floats, Floats, bool], Floats] = lambda mean, sampled, deterministic: mean if deterministic else sampled,
        forgets: str = "nothing",
        collects: str = "",
        cuts: str = "",
        choices: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(**choices)
        self._made, self._acts, self._forgets, self._collects, self._cuts = made, acts, forgets, collects, cuts

    def make(self, problem: Problem) -> None:
        super().make(problem)
        self.set_weights(self._made(self.weights()))

    def act(self, observations: Floats, *, deterministic: bool) -> Floats:
        mean, sampled = (super(Complete, self).act(observations, deterministic=each) for each in (True, False))
        return self._acts(mean, sampled, deterministic)

    def load(self, path: Path) -> None:
        made = self.weights()
        super().load(path)
        self.agent.weights |= {name: array for name, array in made.items() if name.startswith(self._forgets)}

    def collect(self, make_env: Callable[[], Env], num_envs: int, steps: int, autoreset_mode: AutoresetMode) -> Batch[Floats]:
        return collected(self.agent.problem, **{self._collects: True})

    def windows(self, rows: Batch[Floats], truncated: Floats, capacity: int, n_step: int, discount: float) -> Windows:
        return windows(rows, truncated, **{self._cuts: True})


SATURATES = "log-density wrong where the tanh saturates"


def plants() -> dict[str, OracleAdapter]:
    """Title of each finding -> an oracle with that mistake."""
    bound = Problem().bound
    return {
        **{each.title: Complete(choices=completed({each.field: each.value})) for each in MISTAKES},
        SATURATES: Complete(choices={"log_prob": "log(1 - a^2 + 1e-6)"}),
        "a policy that never learns": Delayed(NEVER, "policy", "log_alpha"),
        "twin critics that start equal": Complete(
            made=lambda weights: {name: weights[name.replace("critic_2", "critic_1")] for name in weights}
        ),
        "target networks that do not start as copies": Complete(
            made=lambda weights: {name: array + name.startswith("target_") for name, array in weights.items()}
        ),
        "deterministic actions that are not the policy's mean": Complete(
            acts=lambda mean, sampled, d: mean * (1 - 0.1 * mean) if d else sampled
        ),
        "actions that do not fill the Box": Complete(acts=lambda mean, sampled, d: (mean if d else sampled) / 2),
        "actions outside the Box": Complete(acts=lambda mean, sampled, d: mean if d else sampled / bound),
        "exploration without fresh noise": Complete(acts=lambda mean, sampled, d: mean),
        "a loaded agent that forgets": Complete(forgets="log_alpha"),
        **{
            title: Complete(collects=wrong)
            for title, wrong in zip(COLLECTED, ("truncated", "unterminated", "resets", "leaks", "repeats"), strict=True)
        },
        **{title: Complete(cuts=wrong) for title, wrong in zip(WINDOWS, ("exponent", "round", "on"), strict=True)},
    }
