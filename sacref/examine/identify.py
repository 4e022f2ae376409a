"""Finds the choices that reproduce an update: stage by stage, then joined where stages share choices."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import sacref.examine.oracle as oracle
from sacref.examine.choices import FRESH, FROZEN, OWN, OWN_FROZEN, VALUES, Choices, canonical, contradictions
from sacref.examine.observed import Trajectory, Update, difference, recovered
from sacref.examine.oracle import DENSITY, Adam, Oracle
from sacref.examine.problem import Scene
from sacref.examine.stages import LOG_PROB, TARGET, Found, Policy, Stage, Target, Temperature, Variant, every_density, in_words

OPTIMIZER = ("adam_epsilon", "adam_epsilon_place", "adam_decays", "weight_decay")
COLD = -40.0
"""Log alpha whose entropy terms are below any rounding."""
STAGES: Mapping[str, type[Stage]] = {"critics": Target, "policy": Policy, "temperature": Temperature}


class Left(NamedTuple):
    """The first quantity that is in no variant."""

    quantity: str
    """One of these, and what was found after a colon; docs/examine.md says what establishes each.

    "critic gradient", "target", "alpha", "log-density", "critic loss", "target or critic loss", "new critics", "policy gradient", "actor
    loss", "new policy", "temperature gradient", "temperature" that stops moving, "new alpha", "target networks", the "step interval" of a
    network, an array "after several updates", "the choices of all stages together".
    """
    update: int
    scene: str
    nearest: str
    """The variant that comes nearest, in words."""
    difference: float
    """Relative, of the nearest one; infinite where none was compared."""


@dataclass
class Identification:
    """Combinations of choices that reproduce the trajectories."""

    combinations: Mapping[Choices, tuple[int, ...]]
    """The one nearest to sacref's first, each with the order in which it draws its noise; empty where a quantity left all variants."""
    left: Left | None
    partial: Mapping[str, Sequence[str]]
    """Field -> the values that remain, of the stages that were reproduced."""


def identify(trajectories: Sequence[Trajectory], observe: Callable[[Scene], Trajectory] | None = None) -> Identification:
    """Search all choices that are seen in plain updates, those without clipping and schedules.

    Args:
        trajectories: of scenes; where an agent did not show its gradients, those of first steps are computed from its weights.
        observe: takes the same agent through another scene, without which an unknown log-density is called an unknown target.
    """
    if not all(trajectory.shown for trajectory in trajectories):
        return _identify_by_weights(trajectories, observe)
    optimizers, left = _optimizers(trajectories)
    found = _search(trajectories, optimizers, left)
    # In float32 Adam turns the rounding of small gradients into whole steps: a trajectory says nothing then.
    exact = [each for each in trajectories if each.scene.problem.dtype == "float64"]
    if found.left is not None:
        return _closer(found, trajectories, _nearest(optimizers), observe)
    return _followed(found, exact) if exact else found


def _followed(found: Identification, trajectories: Sequence[Trajectory]) -> Identification:
    """Keep the combinations that follow the weights of all updates; without any, name what leaves the nearest one."""
    reproduced: dict[Choices, tuple[int, ...]] = {}
    lefts: list[Left] = []
    for chosen, order in found.combinations.items():
        runs = [(distance, kind, each) for each in trajectories for kind, distance in replay(each, chosen, order).items()]
        distance, kind, worst = max(runs, key=lambda run: run[0] / run[2].tolerance)
        if distance <= worst.tolerance:
            reproduced[chosen] = order
        else:
            lefts.append(Left(f"{kind}, after several updates", len(worst.updates) - 1, worst.scene.name, in_words(chosen), distance))
    left = None if reproduced else min(lefts, key=lambda each: each.difference)
    return Identification(reproduced, left, found.partial)


def _closer(
    found: Identification, trajectories: Sequence[Trajectory], adam: Adam, observe: Callable[[Scene], Trajectory] | None
) -> Identification:
    """Name the log-density where target and actor loss are both unknown, and both known once the temperature leaves no entropy in them."""
    if observe is None or found.left is None or found.left.quantity != TARGET:
        return found
    hot = next(each for each in trajectories if each.scene.name == found.left.scene)
    weights = hot.scene.weights | {"log_alpha": hot.scene.problem.cast(COLD)}
    cold = observe(replace(hot.scene, weights=weights, updates=found.left.update + 1))
    every = every_density()
    actions = [each for each in every if not each.differences().keys() & set(LOG_PROB)]

    def unknown(stage: type[Stage], trajectory: Trajectory, densities: Sequence[Choices]) -> bool:
        seen, searched = trajectory if trajectory.shown else recovered(trajectory, adam), stage(adam, densities)
        return any(searched.rule_out(seen, update) for update in seen.updates)

    shared = unknown(Policy, hot, every) and not unknown(Target, cold, actions) and not unknown(Policy, cold, actions)
    return replace(found, left=found.left._replace(quantity="log-density")) if shared else found


def _identify_by_weights(trajectories: Sequence[Trajectory], observe: Callable[[Scene], Trajectory] | None) -> Identification:
    """Search with the gradients that each Adam's first step gives, and keep the combinations that follow the weights of all updates.

    The first Adam that explains the critics' steps is the one: another epsilon moves the parameters of small gradients elsewhere.
    """
    alike: dict[tuple[object, ...], Found] = {}
    for settings in itertools.product(*(VALUES[name] for name in OPTIMIZER)):
        adam = _adam(settings)
        alike.setdefault((adam.place == "inside the root", adam.epsilon_at(1), adam.weight_decay), set()).add(settings)
    failed: list[tuple[Identification, Adam]] = []
    for optimizers in alike.values():
        adam = _adam(next(iter(optimizers)))
        found = _search([recovered(trajectory, adam) for trajectory in trajectories], optimizers, None)
        tried = _followed(found, trajectories) if found.combinations else found
        if tried.combinations:
            return tried
        failed.append((tried, adam))
        if "target_value" in found.partial:
            break
    nearest, adam = min(failed, key=lambda each: (-len(each[0].partial), each[0].left.difference if each[0].left else 0.0))
    return _closer(nearest, trajectories, adam, observe)


def _search(trajectories: Sequence[Trajectory], optimizers: Found, left: Left | None) -> Identification:
    """Search all stages; `left` is the step that no optimizer makes."""
    adam = _nearest(optimizers)
    densities = every_density()
    stages: dict[str, Stage] = {}
    lefts: dict[str, Left] = {}
    shown = all(trajectory.shown for trajectory in trajectories)
    for name, kind in STAGES.items():
        if lefts and not shown:
            break  # Most of the optimizers that are tried are not the one.
        stages[name] = stage = kind(adam, densities)
        for seen, update in ((each, update) for each in trajectories for update in each.updates):
            if quantity := stage.rule_out(seen, update):
                lefts[name] = Left(quantity, update.number, seen.scene.name, stage.nearest[1], stage.nearest[0])
                break
        else:
            if name == "policy" and stage.found is None:
                last = max((each.updates[-1].number, each.scene.name) for each in trajectories)
                lefts[name] = Left(f"new policy: it never moves in {last[0] + 1} updates", *last, stage.nearest[1], stage.nearest[0])
            remaining = {variant[: len(DENSITY)] for variant in stage.found or ()}
            densities = [each for each in densities if tuple(getattr(each, name) for name in DENSITY) in remaining] or densities
    averaging, averaging_left = _averaging(trajectories)
    intervals, interval_lefts = step_intervals(trajectories)
    partial = _partial({name: stage for name, stage in stages.items() if name not in lefts}, optimizers, averaging, intervals)
    in_turn: list[Left | None] = []
    for name in STAGES:
        in_turn += [lefts.get(name), left if left and STEPS[name] in left.quantity else None, interval_lefts.get(name)]
    in_turn += [averaging_left, interval_lefts.get("target networks")]
    first = next((each for each in in_turn if each is not None), None)
    combinations = _joined(stages, optimizers, averaging, intervals) if first is None else {}
    if first is None and not combinations:
        words = "each stage has variants, but no two agree"
        first = Left("the choices of all stages together", 0, trajectories[0].scene.name, words, math.inf)
    return Identification(_ordered(combinations), first, partial)


def _adam(settings: Variant) -> Adam:
    return Adam.of(Choices(**dict(zip(OPTIMIZER, settings, strict=True))))


def _nearest(optimizers: Found) -> Adam:
    return _adam(min(optimizers, key=_rank, default=_FIRST))


def _ordered(combinations: Mapping[Choices, tuple[int, ...]]) -> dict[Choices, tuple[int, ...]]:
    """Sort combinations, the one nearest to sacref's first."""
    return {each: combinations[each] for each in sorted(combinations, key=lambda each: (len(each.differences()), str(each)))}


STEPS = {"critics": "new critics", "policy": "new policy", "temperature": "new alpha"}


def _optimizers(trajectories: Sequence[Trajectory]) -> tuple[Found, Left | None]:
    """Find Adam's settings that turn the gradients into the steps that were taken."""
    found: Found = set(itertools.product(*(VALUES[name] for name in OPTIMIZER)))
    for trajectory, network in itertools.product(trajectories, oracle.NETWORKS):
        kept, nearest = set(), (math.inf, 0)
        for settings in found:
            states = trajectory.between(network, _adam(settings))
            steps = zip(trajectory.updates, states, strict=True)
            worst = max((difference(made[-1], oracle.group(update.after, network)), update.number) for update, made in steps)
            nearest = min(nearest, worst)
            if worst[0] <= trajectory.tolerance:
                kept.add(settings)
        if not kept:
            quantity = f"{STEPS[network]}: no optimizer makes this step of its gradient"
            return set(), Left(quantity, nearest[1], trajectory.scene.name, "Adam", nearest[0])
        found = kept
    return found, None


def _averaging(trajectories: Sequence[Trajectory]) -> tuple[list[str], Left | None]:
    """Find how target networks step."""
    found = set(VALUES["averaging"])
    for trajectory in trajectories:
        for update in trajectory.updates:
            after = oracle.targets(update.after)
            if not _averages(update):
                continue
            tau = trajectory.scene.problem.tau
            distances = {kind: difference(oracle.averaged(update.before, update.after, tau, kind), after) for kind in found}
            found = {kind for kind, distance in distances.items() if distance <= trajectory.tolerance}
            if not found:
                kind = min(distances, key=lambda each: distances[each])
                return [], Left("target networks", update.number, trajectory.scene.name, kind, distances[kind])
    return sorted(found), None


def _averages(update: Update) -> bool:
    after = oracle.targets(update.after)
    return difference({name: update.before[name] for name in after}, after) > 0.0


def step_intervals(trajectories: Sequence[Trajectory]) -> tuple[dict[str, str], dict[str, Left]]:
    """Find at which updates networks step: field -> its value, and network -> what leaves all of its values."""
    every = [(trajectory, update) for trajectory in trajectories for update in trajectory.updates]

    def of(network: str, values: Sequence[str]) -> str | Left:
        kept = list(values)
        for trajectory, update in every:
            if network == "target networks":
                steps = int(_averages(update))
            else:
                steps = len(update.steps[network]) if trajectory.shown else int(update.moved(network))
            nearest, kept = kept[0], [each for each in kept if oracle.steps_at(each, update.number) == steps]
            if not kept:
                return Left(f"step interval of the {network}", update.number, trajectory.scene.name, nearest, math.inf)
        return kept[0]

    policy = of("policy", VALUES["policy_steps"])
    found = {"critics": of("critics", ["every update"]), "policy": policy}
    if isinstance(policy, str) and any(update.moved("temperature") for _, update in every):
        found["temperature"] = of("temperature", [policy])
    found["target networks"] = of("target networks", VALUES["averaging_interval"])
    fields = {"policy": "policy_steps", "target networks": "averaging_interval"}
    intervals = {fields[network]: each for network, each in found.items() if network in fields and isinstance(each, str)}
    return intervals, {network: each for network, each in found.items() if isinstance(each, Left)}


def _joined(
    stages: Mapping[str, Stage], optimizers: Found, averaging: Iterable[str], intervals: Mapping[str, str]
) -> dict[Choices, tuple[int, ...]]:
    """Combine the stages' variants that agree on the density and can stand together."""
    by_density: list[dict[Variant, list[dict[str, str]]]] = []
    for stage in stages.values():
        by_density.append({})
        for variant in stage.found or ():
            by_density[-1].setdefault(variant[: len(DENSITY)], []).append(dict(zip(stage.fields, variant, strict=True)))
    combinations: dict[Choices, tuple[int, ...]] = {}
    for density in set.intersection(*(set(places) for places in by_density)):
        for parts in itertools.product(*(places[density] for places in by_density)):
            named = {name: value for part in parts for name, value in part.items()}
            draws = [named.pop(f"{name}_draw") for name in ("target", "policy", "temperature")]
            named |= {**intervals, **_noise_fields(*draws)}
            for settings, kind in itertools.product(optimizers, averaging):
                full = named | dict(zip(OPTIMIZER, settings, strict=True)) | {"averaging": kind}
                chosen = Choices(**full)
                if not contradictions(chosen):
                    combinations[canonical(chosen)] = tuple(dict.fromkeys(int(draw.split()[1]) for draw in draws if draw))
    return combinations


def _noise_fields(target: str, policy: str, temperature: str) -> dict[str, str]:
    """Derive choices from the names of the drawn arrays."""
    own = OWN_FROZEN if temperature.startswith("frozen") else OWN
    shared = "the policy's of the same update" if target == policy else FROZEN if target.startswith("frozen") else FRESH
    return {
        "target_noise": shared,
        "policy_noise": FROZEN if policy.startswith("frozen") else FRESH,
        "temperature_noise": own if temperature not in (policy, "") else "the policy's",
    }


def _partial(
    stages: Mapping[str, Stage], optimizers: Found, averaging: Sequence[str], intervals: Mapping[str, str]
) -> dict[str, list[str]]:
    """Collect what remains of each field."""
    found = {name: [value] for name, value in intervals.items()}
    for stage in stages.values():
        for i, each in enumerate(stage.fields[:-1]):
            remaining = {variant[i] for variant in stage.found or () if variant[i]}
            if remaining:
                found[each] = sorted(remaining & set(found[each]) if each in found else remaining)
    if optimizers:
        found |= {each: sorted({settings[i] for settings in optimizers}) for i, each in enumerate(OPTIMIZER)}
    if averaging:
        found["averaging"] = list(averaging)
    return found


_FIRST = tuple(VALUES[name][0] for name in OPTIMIZER)


def _rank(settings: Variant) -> int:
    return sum(VALUES[name].index(value) for name, value in zip(OPTIMIZER, settings, strict=True))


def replay(trajectory: Trajectory, choices: Choices, order: Sequence[int] = ()) -> dict[str, float]:
    """Run the oracle along a scene, and say how far the agent is from it: kind of array -> largest relative difference of any update.

    Args:
        trajectory: of the agent.
        choices: of the oracle.
        order: indices of the noise arrays for the target, the policy, and the temperature if it has its own; the others follow.
    """
    agent = Oracle(trajectory.scene.problem, trajectory.scene.weights, choices)
    largest: dict[str, float] = {}
    for update in trajectory.updates:
        # Where the target shares the policy's noise, the oracle leaves the first array alone.
        first = order if choices.target_noise != "the policy's of the same update" else (len(update.draws) - 1, *order)
        rest = [i for i in range(len(update.draws)) if i not in first]
        agent.update(update.batch, update.draws[[*first, *rest]])
        for network in (*oracle.NETWORKS, "target networks"):
            theirs = oracle.group(update.after, network) if network in oracle.NETWORKS else oracle.targets(update.after)
            largest[network] = max(largest.get(network, 0.0), difference({name: agent.weights[name] for name in theirs}, theirs))
    return largest
