"""Choices and mistakes put into the NumPy oracle, and what the examiner makes of it."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

from sacref.examine.adapter import Adapter, record
from sacref.examine.adapters.oracle import OracleAdapter
from sacref.examine.choices import AFTER, BEFORE, NEWEST, VALUES, Choices, canonical, contradictions
from sacref.examine.identify import Identification, identify
from sacref.examine.observed import Trajectory
from sacref.examine.problem import Problem, Scene, ordinary, wide

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
    problem = problem or Problem()
    return identify([observed(OracleAdapter(**named), scene, shown=shown) for scene in (ordinary(problem), wide(problem))])


def observed(adapter: Adapter, scene: Scene, *, shown: bool) -> Trajectory:
    """Record a trajectory, with the gradients or without."""
    seen = record(adapter, scene)
    return seen if shown else replace(seen, shown=False, updates=[replace(update, steps={}) for update in seen.updates])


def agrees(found: Identification, named: dict[str, str]) -> bool:
    """Say whether an identification names exactly these choices."""
    return list(found.combinations) == [canonical(Choices(**named))]
