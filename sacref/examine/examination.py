"""The examination of one implementation: trajectories, identification, probes, and what follows from them."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

import sacref.examine.probes as probes
from sacref.examine.adapter import Adapter, Training, check_noise, record
from sacref.examine.choices import BEFORE, MISTAKES, NEWEST, VALUES, Choices, is_mistake
from sacref.examine.identify import Identification, Left, identify, replay
from sacref.examine.oracle import Oracle
from sacref.examine.probes import Finding
from sacref.examine.problem import Problem, ordinary, scenes

OPTIONS = {"clip": ("clipping",), "schedule": ("schedule", "temperature_schedule")}
"""Option that an adapter may support -> the choices that are seen with it alone."""
LOOP = ("update_ratio", "batches")
"""Choices that are seen in an implementation's own loop."""
MORE = 2
"""Times that other data are drawn where several combinations are left."""
SHOWN = 8
"""Combinations that are run along whole trajectories."""
DECAY = 0.5
CLIPPED = 1e-5
"""Relative difference that the small number explains which torch and others add to the norm that they divide by."""


@dataclass(frozen=True)
class Examination:
    """Result of examining an implementation: its choices, and its known mistakes."""

    name: str
    versions: Mapping[str, str]
    dtype: str
    updates: int
    """Compared with the oracle, of all scenes together."""
    seconds: float
    """Of processor time."""
    choices: Mapping[str, Sequence[str]]
    """Field of `Choices` -> the values that reproduce the numbers: one, or several that the data cannot tell apart; none if not seen."""
    unseen: Mapping[str, str]
    """Field -> why it was not seen."""
    combinations: Sequence[Choices]
    left: Left | None
    """The first quantity that is in no variant, or None."""
    differences: Mapping[str, float]
    """Kind of array -> largest relative difference from the oracle with these choices, along whole trajectories."""
    findings: Sequence[Finding]

    @property
    def mistakes(self) -> list[Finding]:
        """Those that are present."""
        return [finding for finding in self.findings if finding.status == "present"]

    @property
    def identified(self) -> bool:
        """Whether some combination of choices reproduces the update."""
        return self.left is None


def examine(adapter: Adapter, *, problem: Problem | None = None, on_stage: Callable[[str], None] = lambda stage: None) -> Examination:
    """Find out which SAC an implementation is.

    Args:
        adapter: of the implementation.
        problem: sizes and settings; small ones unless given. Its clipping and decay are set here.
        on_stage: called with the name of each stage when it begins.

    Raises:
        AdapterError: if the adapter does not do what the examiner relies on.
    """
    began = time.process_time()
    problem = replace(problem or Problem(dtype=getattr(adapter, "dtype", "float64")), clip=0.0, decay=1.0)
    on_stage("weights")
    adapter.make(problem)
    made = {name: np.array(array) for name, array in adapter.weights().items()}
    trajectories = []
    for scene in scenes(problem):
        on_stage(f"updates: {scene.name}")
        trajectories.append(record(adapter, scene))
    on_stage("noise")
    check_noise(adapter, trajectories[0])
    on_stage("identification")
    found = identify(trajectories, partial(record, adapter))
    for seed in range(problem.seed + 1, problem.seed + 1 + MORE):
        if len(found.combinations) < 2:
            break
        on_stage("updates: more data, to tell what is left apart")
        trajectories += [record(adapter, scene) for scene in scenes(replace(problem, seed=seed))]
        found = identify(trajectories, partial(record, adapter))
    differences: dict[str, float] = {}
    reproduced = dict(found.combinations)
    for chosen, order in list(found.combinations.items())[:SHOWN]:
        runs = [replay(trajectory, chosen, order) for trajectory in trajectories]
        largest = {kind: max(run[kind] for run in runs) for kind in runs[0]}
        if not differences or max(largest.values()) < max(differences.values()):
            differences = largest
    on_stage("options")
    base = next(iter(found.combinations), None)
    optional, unseen = options(adapter, problem, base, found.combinations.get(base, ()) if base else ())
    on_stage("loop")
    usual = replace(problem, dtype="float32")
    if isinstance(adapter, Training):
        seen, why = probes.training(adapter, usual)
        optional, unseen = optional | seen, unseen | why
    else:
        unseen |= dict.fromkeys(LOOP, "the adapter has no train()")
    choices = _values(found, optional, unseen)
    on_stage("probes")
    findings = [
        *_mistakes(choices, found, unseen),
        probes.log_density(list(reproduced)),
        probes.learning(adapter, trajectories),
        *probes.start(made),
        *probes.acting(adapter, trajectories[0].scene, choices["squash"]),
        probes.saving(adapter, ordinary(usual)),
        *probes.collecting(adapter, usual),
        *probes.windows(adapter, usual),
    ]
    return Examination(
        name=adapter.name,
        versions=dict(adapter.versions()),
        dtype=problem.dtype,
        updates=sum(len(trajectory.updates) for trajectory in trajectories),
        seconds=time.process_time() - began,
        choices=choices,
        unseen=unseen,
        combinations=list(reproduced),
        left=found.left,
        differences=differences,
        findings=findings,
    )


def options(adapter: Adapter, problem: Problem, base: Choices | None, order: Sequence[int]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Find the choices that are seen where an option is on: those whose oracle takes the same steps.

    Args:
        adapter: of the implementation.
        problem: sizes and settings, without an option.
        base: choices of the plain update, or None if it is not identified.
        order: in which its noise is drawn.

    Returns:
        The values of the choices that were seen, and why others were not.
    """
    found: dict[str, list[str]] = {}
    unseen: dict[str, str] = {}
    supported = getattr(adapter, "supports", ())
    for option, names in OPTIONS.items():
        if base is None:
            unseen |= dict.fromkeys(names, "the update is not identified")
        elif option not in supported:
            unseen |= dict.fromkeys(names, f"the adapter does not say that it supports {option!r}")
        else:
            scene = ordinary(replace(problem, clip=_limit(problem, base)) if option == "clip" else replace(problem, decay=DECAY))
            trajectory = record(adapter, scene)
            variants = [replace(base, clipping=each) for each in VALUES["clipping"]] if option == "clip" else _schedules(base)
            runs = [(each, replay(trajectory, each, order)) for each in variants]
            tolerance = max(100 * trajectory.tolerance, CLIPPED if option == "clip" else 0.0)
            fitting = [each for each, run in runs if max(run.values()) <= tolerance]
            found |= {name: list(dict.fromkeys(getattr(each, name) for each in fitting)) for name in names}
            if not fitting:
                unseen |= dict.fromkeys(names, f"no variant fits; the nearest is {min(max(run.values()) for _, run in runs):.1e} away")
    return found, unseen


def _schedules(base: Choices) -> list[Choices]:
    return [
        replace(base, schedule=schedule, temperature_schedule=temperature)
        for schedule in VALUES["schedule"]
        for temperature in VALUES["temperature_schedule"]
        if schedule != "accepted and ignored" or temperature == VALUES["temperature_schedule"][0]
    ]


def _limit(problem: Problem, base: Choices) -> float:
    """A norm that every way of clipping does something else with: below the largest element of each network's gradient."""
    scene = ordinary(problem, updates=1)
    alpha = BEFORE if base.policy_alpha == NEWEST else base.policy_alpha  # There is one step alone.
    agent = Oracle(problem, scene.weights, replace(base, policy_steps="every update", policy_alpha=alpha))
    agent.update(*next(scene.data()))
    sizes = [max(float(np.abs(g).max()) for g in step.values()) for step in agent.gradients if "log_alpha" not in step]
    return 0.3 * min(sizes)


def _values(found: Identification, options: Mapping[str, list[str]], unseen: dict[str, str]) -> dict[str, list[str]]:
    """Field -> its remaining values, the combinations' where there are any."""
    values: dict[str, list[str]] = {}
    for name in VALUES:
        if name in options or name in unseen:
            values[name] = options.get(name, [])
        elif found.combinations:
            values[name] = list(dict.fromkeys(getattr(each, name) for each in found.combinations))
        else:
            values[name] = list(found.partial.get(name, ()))
            if not values[name]:
                unseen[name] = (
                    "not reached" if found.left is None else f"left open: the {found.left.quantity.split(':')[0]} is in no variant"
                )
    return values


def _mistakes(choices: Mapping[str, Sequence[str]], found: Identification, unseen: Mapping[str, str]) -> list[Finding]:
    findings = []
    for mistake in MISTAKES:
        values = choices[mistake.field]
        expected = next(value for value in VALUES[mistake.field] if not is_mistake(mistake.field, value))
        if not values:
            findings.append(Finding(mistake.title, "not checkable", why=unseen[mistake.field]))
        elif mistake.value not in values:
            findings.append(Finding(mistake.title, "absent"))
        elif len(values) > 1:
            findings.append(Finding(mistake.title, "not checkable", why=f"the data do not tell it from: {values[0]}"))
        else:
            findings.append(Finding(mistake.title, "present", mistake.value, expected, mistake.consequence))
    return findings
