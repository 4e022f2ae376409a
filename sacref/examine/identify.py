"""Finds the choices that reproduce an update, stage by stage: target, critics, policy, temperature, target networks.

Each stage starts from the weights that were shown before and after the update, so that only its own choices have to be searched, and an
error of one stage is not carried into the next. The critics' gradient is J^T e with the Jacobian J of their values: least squares give e,
the derivative of the loss by each row's value, and with it the target. What survives all stages is joined where stages share choices.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from sacref.examine import oracle
from sacref.examine.choices import AFTER, BEFORE, FRESH, FROZEN, NEWEST, VALUES, Choices, canonical, contradictions
from sacref.examine.observed import Trajectory, Update, difference
from sacref.examine.oracle import DENSITY, Adam, Oracle
from sacref.parity.networks import Arrays, Floats, Named, Seen, backward, forward
from sacref.parity.oracle import critics

TARGET = (
    *DENSITY,
    *("target_value", "target_entropy_term", "target_alpha", "target_policy", "target_networks", "termination", "discount"),
    *("target_rows", "critic_loss", "critic_gradient", "target_draw"),
)
POLICY = (*DENSITY, "policy_value", "policy_critics", "policy_alpha", "policy_entropy", "policy_loss", "policy_draw")
TEMPERATURE = (*DENSITY, "temperature_loss", "target_entropy", "temperature_policy", "temperature_draw")
OPTIMIZER = ("adam_epsilon", "adam_epsilon_place", "adam_decays", "weight_decay")
"""Fields that a stage searches; a "_draw" is the name of a noise array."""

FEW = 4
LOOSE = {"float64": 1e-5, "float32": 3e-2}
"""Relative difference up to which a variant is looked at closely."""

Found = set[tuple[str, ...]]
"""Values of a stage's fields, in their order."""


class Left(NamedTuple):
    """The first quantity that is in no variant."""

    quantity: str
    update: int
    scene: str
    nearest: str
    """The variant that comes nearest, in words."""
    difference: float
    """Relative, of the nearest one."""


@dataclass
class Identification:
    """What reproduces the trajectories."""

    combinations: Mapping[Choices, tuple[int, ...]]
    """All that do, the one nearest to sacref's first, and the order in which each draws its noise; empty where a quantity left all."""
    left: Left | None
    partial: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Field -> the values that remain, of the stages that were reproduced."""


class Stage:
    """The variants of one stage that no update has ruled out yet."""

    def __init__(self, fields: tuple[str, ...]) -> None:
        self.fields = fields
        self.found: Found | None = None
        self.densities: list[Choices] = []
        """Those to search; the other stages have ruled out the rest."""
        self.nearest: tuple[float, str] = (math.inf, "none")

    def choices(self, variant: tuple[str, ...]) -> tuple[Choices, str]:
        """A variant as choices, and its draw."""
        named = dict(zip(self.fields, variant, strict=True))
        draw = named.pop(self.fields[-1])
        return Choices(**named), draw

    def near(self, distance: float, variant: Iterable[str]) -> None:
        """Remember a variant that is not far."""
        if distance < self.nearest[0]:
            named = {name: value for name, value in zip(self.fields, variant, strict=True) if name.endswith("_draw") is False}
            away = [f"{name}: {value}" for name, value in named.items() if value != VALUES[name][0]]
            self.nearest = (distance, "; ".join(away) or "that of sacref")


def identify(trajectories: Sequence[Trajectory]) -> Identification:
    """Search all choices that are seen in plain updates, those without clipping and schedules.

    Args:
        trajectories: of scenes whose gradients are known.
    """
    optimizer, left = _optimizers(trajectories)
    plainest = sorted(optimizer, key=_rank)[0] if optimizer else _FIRST
    adam = Adam.of(Choices(**dict(zip(OPTIMIZER, plainest, strict=True))))
    stages = {"target": Stage(TARGET), "policy": Stage(POLICY), "temperature": Stage(TEMPERATURE)}
    lefts: dict[str, Left] = {}
    for trajectory in trajectories:
        rate = trajectory.scene.problem.learning_rate
        policies, temperatures = (trajectory.between(network, adam, rate) for network in ("policy", "temperature"))
        for update in trajectory.updates:
            for name, stage in stages.items():
                if name in lefts:
                    continue
                number = update.number
                stage.densities = _densities(stages[each] for each in stages if each not in lefts)
                if name == "target":
                    quantity = _target(stage, trajectory, update)
                else:
                    look = _policy if name == "policy" else _temperature
                    quantity = look(stage, trajectory, update, policies[number], temperatures[number])
                if quantity is not None:
                    lefts[name] = Left(quantity, number, trajectory.scene.name, stage.nearest[1], stage.nearest[0])
    averaging, averaging_left = _averaging(trajectories)
    names = ("critics", "policy", "alpha")
    steps = {name: left if left is not None and left.quantity.startswith(f"new {name}") else None for name in names}
    in_turn = (
        *(lefts.get("target"), steps["critics"], lefts.get("policy"), steps["policy"]),
        *(lefts.get("temperature"), steps["alpha"], averaging_left),
    )
    first = next((each for each in in_turn if each is not None), None)
    slow = {"policy_steps": _policy_steps(trajectories[0])}
    partial = _partial(stages, lefts, optimizer, averaging) | {name: [value] for name, value in slow.items()}
    if first is not None:
        return Identification({}, first, partial)
    combinations = _joined(stages, optimizer, averaging, slow)
    if not combinations:
        nowhere = Left(
            "the choices of all stages together", 0, trajectories[0].scene.name, "each stage has variants, but no two agree", math.inf
        )
        return Identification({}, nowhere, partial)
    ordered = sorted(combinations, key=lambda each: (len(each.differences()), str(each)))
    return Identification({each: combinations[each] for each in ordered}, None, partial)


# The critics' target.


def _target(stage: Stage, trajectory: Trajectory, update: Update) -> str | None:
    """Rule out variants by the critics' gradient; the quantity that leaves all of them, or None."""
    steps = update.steps["critics"]
    if not steps:
        return None if update.number else "critics: they take no step"
    gradient, problem, tolerance = steps[0], trajectory.scene.problem, trajectory.tolerance
    loose = LOOSE[problem.dtype]
    spans = {}
    for units in VALUES["critic_actions"]:
        actions = problem.box(update.batch.actions) if units == "in the Box's units" else update.batch.actions
        spans[units] = [Span(update.before, f"critic_{i + 1}", update.batch.observations, actions) for i in range(critics(update.before))]
    if stage.found is None:
        stage.found = set()
        fitted = False
        for units, jacobians in spans.items():
            for kind, errors in _row_errors(jacobians, gradient, loose):
                fitted = True
                stage.found |= set(_targets(stage, trajectory, update, units, kind, errors, np.stack([each.q for each in jacobians])))
        if not fitted:
            return "critic gradient: it is not one of these rows of the batch"
    kept = set()
    noise, cache = update.noise(), _Cache(update, problem.bound)
    for variant in stage.found:
        chosen, draw = stage.choices(variant)
        jacobians = spans[chosen.critic_actions]
        q = np.stack([each.q for each in jacobians])
        y = oracle.paired(cache.target(chosen, noise[draw], draw, problem.discount), chosen.target_rows)
        errors = oracle.critic_errors(q, y, chosen.critic_loss, number=len(q), size=q.shape[-1])
        own = chosen.critic_gradient == "its own"
        predicted: Arrays = {}
        for i, jacobian in enumerate(jacobians):
            source = i if own else len(jacobians) - 1
            part = jacobians[source].gradient(errors[source])
            predicted |= {f"{jacobian.model}.{name}": array for name, array in part.items()}
        distance = difference(predicted, gradient)
        stage.near(distance, variant)
        if distance <= tolerance:
            kept.add(variant)
    if not kept:
        return "target"
    stage.found = kept
    return None


class Span:
    """The gradients that a critic can have for some rows: its values, and their Jacobian by its parameters."""

    def __init__(self, state: Named, model: str, observations: Floats, actions: Floats) -> None:
        self.model = model
        output, tape = forward(state, model, Seen(observations), actions)
        self.q: Floats = output[:, 0]
        rows = np.eye(len(self.q), dtype=output.dtype)[:, :, None]
        parts = [backward(state, model, tape, row)[0] for row in rows]
        self._names = [name.removeprefix(f"{model}.") for name in parts[0]]
        self._shapes = [array.shape for array in parts[0].values()]
        self._jacobian = np.stack([np.concatenate([array.ravel() for array in part.values()]) for part in parts])

    def gradient(self, errors: Floats) -> Arrays:
        """The parameters' gradient, from the derivatives by the values; names without the model's."""
        flat = errors @ self._jacobian
        ends = np.cumsum([math.prod(shape) for shape in self._shapes])[:-1]
        return {name: part.reshape(shape) for name, part, shape in zip(self._names, np.split(flat, ends), self._shapes, strict=True)}

    def errors(self, gradient: Named, model: str) -> tuple[Floats, float]:
        """The derivatives by the values that give a gradient, here that of `model`, best, and the relative difference that remains."""
        flat = np.concatenate([gradient[f"{model}.{name}"].ravel() for name in self._names])
        errors: Floats = np.linalg.lstsq(self._jacobian.T, flat, rcond=None)[0]
        size = float(np.abs(flat).max())
        return errors, float(np.abs(errors @ self._jacobian - flat).max()) / size if size > 0 else 0.0


def _row_errors(jacobians: Sequence[Span], gradient: Named, loose: float) -> Iterator[tuple[str, Floats]]:
    """How the critics' gradients came about, and the derivatives by the values; NaN for a critic whose own gradient is not seen."""
    own = [each.errors(gradient, each.model) for each in jacobians]
    if all(rest < loose for _, rest in own):
        yield "its own", np.stack([errors for errors, _ in own])
    last = jacobians[-1]
    others = [last.errors(gradient, each.model) for each in jacobians]
    alike = all(np.allclose(errors, others[-1][0], rtol=loose, atol=0) for errors, _ in others)
    if len(jacobians) > 1 and alike and all(rest < loose for _, rest in others):
        errors = np.full((len(jacobians), len(last.q)), np.nan)
        errors[-1] = others[-1][0]
        yield "the last critic's, for all", errors


def _targets(
    stage: Stage, trajectory: Trajectory, update: Update, units: str, critic_gradient: str, errors: Floats, q: Floats
) -> Iterator[tuple[str, ...]]:
    """Variants whose rows come near the errors that were found; everything that one draw gives is compared at once."""
    problem = trajectory.scene.problem
    loose = LOOSE[problem.dtype] * float(np.nanmax(np.abs(errors)))
    known, sizes = ~np.isnan(errors[:, 0]), {"number": q.shape[0], "size": q.shape[1]}
    cache = _Cache(update, problem.bound)
    alphas = _alphas(update)
    terms = [("there", BEFORE, alphas[BEFORE]), ("there", AFTER, alphas[AFTER]), ("left out", BEFORE, 0.0)]
    ends = list(itertools.product(VALUES["termination"], VALUES["discount"]))
    losses = list(itertools.product(VALUES["target_rows"], VALUES["critic_loss"]))
    joins = list(itertools.product(VALUES["target_networks"], VALUES["target_value"]))
    for density, forms in _by_draw(stage.densities, units):
        for policy, (name, noise) in itertools.product(VALUES["target_policy"], update.noise().items()):
            if update.number == 0 and name.startswith("frozen"):
                continue
            log_probs = np.stack([cache.drawn(True, policy, replace(density, **form), noise, name).log_prob for form in forms])
            value = np.stack([cache.next_value(networks, kind, policy, density, noise, name) for networks, kind in joins])
            # (joins, forms, terms, batch), then with ends in front.
            soft = value[:, None, None] - np.stack([alpha * log_probs for _, _, alpha in terms], axis=1)[None]
            y = np.stack([oracle.target(update.batch, soft, problem.discount, Choices(termination=t, discount=d)) for t, d in ends])
            for rows, kind in losses:
                seen = oracle.paired(y, rows)
                # The last critic is always known, and a few rows rule out almost everything.
                gap = np.abs(oracle.critic_errors(q[-1, :FEW], seen[..., :FEW], kind, **sizes) - errors[-1, :FEW]).max(axis=-1)
                best = np.unravel_index(int(gap.argmin()), gap.shape)
                for index in {tuple(int(i) for i in each) for each in np.argwhere(gap <= loose)} | {tuple(int(i) for i in best)}:
                    end, join, form, term = index
                    variant = {
                        **{field: getattr(density, field) for field in DENSITY},
                        **forms[form],
                        "critic_actions": units,
                        "target_value": joins[join][1],
                        "target_networks": joins[join][0],
                        "target_entropy_term": terms[term][0],
                        "target_alpha": terms[term][1],
                        "target_policy": policy,
                        "termination": ends[end][0],
                        "discount": ends[end][1],
                        "target_rows": rows,
                        "critic_loss": kind,
                        "critic_gradient": critic_gradient,
                        "target_draw": name,
                    }
                    ordered = tuple(variant[field] for field in stage.fields)
                    every = oracle.critic_errors(q[known], seen[index], kind, **sizes)
                    distance = float(np.abs(every - errors[known]).max())
                    stage.near(distance / (loose / LOOSE[problem.dtype]), ordered)
                    if distance <= loose:
                        yield ordered
                        if update.number == 0:
                            yield (*ordered[:-1], name.replace("fresh", "frozen"))


class _Cache:
    """Draws and values of one update, each computed once."""

    def __init__(self, update: Update, bound: float) -> None:
        self._update, self._bound = update, bound
        self._outputs: dict[tuple[bool, str], Floats] = {}
        self._draws: dict[tuple[str, ...], oracle.Draw] = {}
        self._values: dict[tuple[str, ...], Floats] = {}

    def drawn(self, after: bool, policy: str, chosen: Choices, noise: Floats, name: str) -> oracle.Draw:
        """A draw for the next observations (`after`) or for the observations, of the policy before or after its step."""
        key = (str(after), policy, name, *(getattr(chosen, each) for each in DENSITY))
        if key not in self._draws:
            if (after, policy) not in self._outputs:
                state = self._update.after if policy == AFTER else self._update.before
                observations = self._update.batch.next_observations if after else self._update.batch.observations
                self._outputs[after, policy] = forward(state, "policy", Seen(observations))[0]
            self._draws[key] = oracle.draw_from(self._outputs[after, policy], noise, chosen, self._bound)
        return self._draws[key]

    def next_value(self, networks: str, kind: str, policy: str, chosen: Choices, noise: Floats, name: str) -> Floats:
        """Value of the next observations and of actions drawn for them."""
        key = (networks, policy, chosen.squash, chosen.std, chosen.critic_actions, name)
        if key not in self._values:
            action = self.drawn(True, policy, chosen, noise, name).action
            state = self._update.after if networks == "after their average" else self._update.before
            prefix = "" if networks == "none: the critics" else "target_"
            self._values[key] = oracle.values(state, self._update.batch.next_observations, action, prefix)
        return oracle.joined(self._values[key], kind)

    def target(self, chosen: Choices, noise: Floats, name: str, discount: float) -> Floats:
        """The target of a variant."""
        drawn = self.drawn(True, chosen.target_policy, chosen, noise, name)
        value = self.next_value(chosen.target_networks, chosen.target_value, chosen.target_policy, chosen, noise, name)
        alpha = _alphas(self._update)[chosen.target_alpha] if chosen.target_entropy_term == "there" else 0.0
        return oracle.target(self._update.batch, value - alpha * drawn.log_prob, discount, chosen)


# The policy.


def _policy(stage: Stage, trajectory: Trajectory, update: Update, policies: list[Arrays], temperatures: list[Arrays]) -> str | None:
    """Rule out variants by the policy's gradient of each of its steps in this update."""
    problem, batch = trajectory.scene.problem, update.batch
    for turn, seen in enumerate(update.steps["policy"]):
        alphas = {BEFORE: _alphas(update)[BEFORE]}
        if len(update.steps["policy"]) == 1:
            alphas[AFTER] = _alphas(update)[AFTER]
        else:
            alphas[NEWEST] = float(np.exp(temperatures[min(turn, len(temperatures) - 1)]["log_alpha"]))
        judges = {AFTER: update.after, BEFORE: update.before}
        output, tape = forward(policies[turn], "policy", Seen(batch.observations))
        gradient = oracle.gradient_of(policies[turn], tape)
        first = stage.found is None
        candidates = stage.found if stage.found is not None else set(_policies(stage, trajectory, update, output, alphas, judges, seen))
        noise, kept, slopes = update.noise(), set(), {}
        for variant in candidates:
            chosen, draw = stage.choices(variant)
            # A second step of the policy draws another array of the update.
            draws = [name for name in noise if name.split()[0] == draw.split()[0]] if turn else [draw]
            if chosen.policy_alpha not in alphas:
                continue
            for name in draws:
                drawn = oracle.draw_from(output, noise[name], chosen, problem.bound)
                key = (chosen.squash, chosen.std, chosen.critic_actions, name, chosen.policy_critics, chosen.policy_value)
                if key not in slopes:
                    slopes[key] = oracle.by_actions(judges[chosen.policy_critics], batch.observations, drawn.action, chosen.policy_value)
                predicted = oracle.policy_gradients(drawn, gradient, slopes[key], alphas[chosen.policy_alpha], chosen)
                distance = difference(predicted, seen)
                stage.near(distance, variant)
                if distance <= trajectory.tolerance:
                    kept.add(variant)
                    if first and update.number == 0:
                        kept.add((*variant[:-1], draw.replace("fresh", "frozen")))
        stage.found = kept
        if not kept:
            return "policy gradient"
    return None


def _policies(
    stage: Stage,
    trajectory: Trajectory,
    update: Update,
    output: Floats,
    alphas: Mapping[str, float],
    judges: Mapping[str, Named],
    gradient: Named,
) -> Iterator[tuple[str, ...]]:
    """Variants that give the gradient of the head's bias, which is the sum of the derivatives by the policy's output."""
    problem, batch = trajectory.scene.problem, update.batch
    seen = gradient["policy.head.bias"]
    loose = LOOSE[problem.dtype] * float(np.abs(seen).max())
    size = len(batch.rewards)
    signs = {"there": 1.0, "left out": 0.0, "with the wrong sign": -1.0}
    terms = [(e, a, signs[e] * alphas[a]) for e, a in itertools.product(VALUES["policy_entropy"], alphas) if e != "left out" or a == BEFORE]
    weights = {"mean": 1 / size, "sum": 1.0}
    sees = list(itertools.product(VALUES["policy_critics"], VALUES["policy_value"]))
    for units in VALUES["critic_actions"]:
        for density, forms in _by_draw(stage.densities, units):
            for name, noise in update.noise().items():
                if update.number == 0 and name.startswith("frozen"):
                    continue
                drawn = oracle.draw_from(output, noise, density, problem.bound)
                nothing, ones = np.zeros_like(drawn.action), np.ones(size, drawn.action.dtype)
                by_log_prob = np.stack(
                    [
                        oracle.draw_from(output, noise, replace(density, **form), problem.bound).by_output(nothing, ones).sum(axis=0)
                        for form in forms
                    ]
                )
                by_value = np.stack(
                    [
                        drawn.by_output(oracle.by_actions(judges[who], batch.observations, drawn.action, kind), 0 * ones).sum(axis=0)
                        for who, kind in sees
                    ]
                )
                for loss, weight in weights.items():
                    factors = np.array([factor for _, _, factor in terms])
                    predicted = weight * (factors[:, None, None, None] * by_log_prob[None, :, None] - by_value[None, None])
                    gap = np.abs(predicted - seen).max(axis=-1)
                    for term, form, see in np.argwhere(gap <= loose):
                        variant = {
                            **{field: getattr(density, field) for field in DENSITY},
                            **forms[form],
                            "critic_actions": units,
                            "policy_critics": sees[see][0],
                            "policy_value": sees[see][1],
                            "policy_entropy": terms[term][0],
                            "policy_alpha": terms[term][1],
                            "policy_loss": loss,
                            "policy_draw": name,
                        }
                        yield tuple(variant[field] for field in stage.fields)


# The temperature.


def _temperature(stage: Stage, trajectory: Trajectory, update: Update, policies: list[Arrays], temperatures: list[Arrays]) -> str | None:
    """Rule out variants by the gradient of log alpha."""
    problem, batch = trajectory.scene.problem, update.batch
    steps = update.steps["temperature"]
    if not any(gradients["log_alpha"].any() for gradients in steps):
        if not update.steps["policy"]:
            return None  # It waits with the policy.
        rest = [VALUES[name][0] for name in stage.fields[len(DENSITY) + 1 : -1]]
        none = {(*_named(density).values(), "none: it never moves", *rest, "") for density in stage.densities}
        stage.found = none if stage.found is None else stage.found & none
        return None if stage.found else "temperature: it stops moving"
    for turn, gradients in enumerate(steps):
        seen, log_alpha = float(gradients["log_alpha"]), float(temperatures[turn]["log_alpha"])
        last = len(policies) - 1
        states = {BEFORE: policies[min(turn, max(last - 1, 0))], AFTER: policies[min(turn + 1, last)]}
        outputs = {when: forward(state, "policy", Seen(batch.observations))[0] for when, state in states.items()}
        noise, kept = update.noise(), set()
        candidates = stage.found
        if candidates is None:
            candidates = {
                (*_named(density).values(), loss, goal, when, name)
                for density in stage.densities
                for loss in VALUES["temperature_loss"]
                if not loss.startswith("none")
                for goal in VALUES["target_entropy"]
                for when in states
                for name in noise
            }
        log_probs: dict[tuple[str, ...], Floats] = {}
        for variant in candidates:
            chosen, draw = stage.choices(variant)
            draws = [name for name in noise if name.split()[0] == draw.split()[0]] if turn else [draw]
            for name in draws:
                key = (*variant[: len(DENSITY)], chosen.temperature_policy, name)
                if key not in log_probs:
                    log_probs[key] = oracle.draw_from(outputs[chosen.temperature_policy], noise[name], chosen, problem.bound).log_prob
                goal = oracle.entropy_goal(chosen.target_entropy, problem.action)
                predicted = oracle.temperature_gradient(log_alpha, log_probs[key], goal, chosen.temperature_loss)
                distance = abs(predicted - seen) / max(abs(seen), 1e-300)
                stage.near(distance, variant)
                # The mean of log pi and the goal nearly cancel: the difference is measured against what cancels.
                if abs(predicted - seen) <= trajectory.tolerance * max(abs(seen), 1.0):
                    kept.add(variant)
        stage.found = kept
        if not kept:
            return "temperature gradient"
    return None


# Optimizers and averages.


def _optimizers(trajectories: Sequence[Trajectory]) -> tuple[Found, Left | None]:
    """Adam's settings that turn the gradients into the steps that were taken."""
    found: Found = set(itertools.product(*(VALUES[name] for name in OPTIMIZER)))
    for trajectory in trajectories:
        rate = trajectory.scene.problem.learning_rate
        for network in oracle.NETWORKS:
            kept, nearest = set(), (math.inf, 0)
            for variant in found:
                adam = Adam.of(Choices(**dict(zip(OPTIMIZER, variant, strict=True))))
                worst = (0.0, 0)
                for update, states in zip(trajectory.updates, trajectory.between(network, adam, rate), strict=True):
                    worst = max(worst, (difference(states[-1], oracle.group(update.after, network)), update.number))
                nearest = min(nearest, worst)
                if worst[0] <= trajectory.tolerance:
                    kept.add(variant)
            if not kept:
                quantity = {"critics": "new critics", "policy": "new policy", "temperature": "new alpha"}[network]
                return set(), Left(
                    f"{quantity}: no optimizer makes this step of its gradient", nearest[1], trajectory.scene.name, "Adam", nearest[0]
                )
            found = kept
    return found, None


def _averaging(trajectories: Sequence[Trajectory]) -> tuple[list[tuple[str, str]], Left | None]:
    """How target networks step, and how often."""
    found = set(VALUES["averaging"])
    interval = "every update"
    for trajectory in trajectories:
        for update in trajectory.updates:
            after = oracle.targets(update.after)
            if difference({name: update.before[name] for name in after}, after) == 0.0:
                interval = "every second update"
                continue
            distances = {
                kind: difference(oracle.averaged(update.before, update.after, trajectory.scene.problem.tau, kind), after) for kind in found
            }
            found = {kind for kind, distance in distances.items() if distance <= trajectory.tolerance}
            if not found:
                kind = min(distances, key=lambda each: distances[each])
                return [], Left("target networks", update.number, trajectory.scene.name, kind, distances[kind])
    return [(kind, interval) for kind in sorted(found)], None


def _policy_moves(trajectory: Trajectory) -> list[int]:
    """How many steps the policy took at each update."""
    return [len(update.steps["policy"]) for update in trajectory.updates]


def _policy_steps(trajectory: Trajectory) -> str:
    moves = _policy_moves(trajectory)
    if all(moves):
        return "every update"
    return "every second update, two" if max(moves) > 1 else "every second update"


# Putting it together.


def _joined(
    stages: Mapping[str, Stage], optimizer: Found, averaging: list[tuple[str, str]], slow: Mapping[str, str]
) -> dict[Choices, tuple[int, ...]]:
    """Combinations of all stages' variants that agree on the density and can stand together."""
    by_density: dict[str, dict[tuple[str, ...], list[dict[str, str]]]] = {}
    for name, stage in stages.items():
        places = by_density.setdefault(name, {})
        for variant in stage.found or ():
            named = dict(zip(stage.fields, variant, strict=True))
            places.setdefault(variant[: len(DENSITY)], []).append(named)
    shared = set.intersection(*(set(places) for places in by_density.values()))
    combinations: dict[Choices, tuple[int, ...]] = {}
    for density in shared:
        for parts in itertools.product(*(places[density] for places in by_density.values())):
            named = {}
            for part in parts:
                named |= part
            draws = (named["target_draw"], named["policy_draw"], named["temperature_draw"])
            noise = _noise_fields(*draws)
            named = {name: value for name, value in named.items() if not name.endswith("_draw")} | noise | dict(slow)
            for settings, (kind, interval) in itertools.product(optimizer, averaging):
                full = named | dict(zip(OPTIMIZER, settings, strict=True)) | {"averaging": kind, "averaging_interval": interval}
                chosen = Choices(**full)
                if not contradictions(chosen):
                    combinations[canonical(chosen)] = tuple(dict.fromkeys(int(draw.split()[1]) for draw in draws if draw))
    return combinations


def _noise_fields(target: str, policy: str, temperature: str) -> dict[str, str]:
    """The choices that the names of the drawn arrays tell."""
    shared = "the policy's of the same update" if target == policy else FROZEN if target.startswith("frozen") else FRESH
    return {
        "target_noise": shared,
        "policy_noise": FROZEN if policy.startswith("frozen") else FRESH,
        "temperature_noise": "its own" if temperature not in (policy, "") else "the policy's",
    }


def _partial(
    stages: Mapping[str, Stage], lefts: Mapping[str, Left], optimizer: Found, averaging: list[tuple[str, str]]
) -> dict[str, list[str]]:
    """Field -> what remains of it, of the stages that were reproduced."""
    found: dict[str, list[str]] = {}
    for name, stage in stages.items():
        if name in lefts or not stage.found:
            continue
        for i, each in enumerate(stage.fields[:-1]):
            remaining = {variant[i] for variant in stage.found if variant[i]}
            found[each] = sorted(remaining & set(found[each]) if each in found else remaining)
    for i, each in enumerate(OPTIMIZER):
        if optimizer:
            found[each] = sorted({variant[i] for variant in optimizer})
    if averaging:
        found |= {"averaging": sorted({kind for kind, _ in averaging}), "averaging_interval": [averaging[0][1]]}
    return found


def _alphas(update: Update) -> dict[str, float]:
    return {BEFORE: float(np.exp(update.before["log_alpha"])), AFTER: float(np.exp(update.after["log_alpha"]))}


def _densities(stages: Iterable[Stage]) -> list[Choices]:
    """The densities that no stage has ruled out."""
    founds = [{variant[: len(DENSITY)] for variant in stage.found} for stage in stages if stage.found]
    if founds:
        return [Choices(**dict(zip(DENSITY, each, strict=True))) for each in sorted(set.intersection(*founds))]
    every = (Choices(**dict(zip(DENSITY, each, strict=True))) for each in itertools.product(*(VALUES[name] for name in DENSITY)))
    return [each for each in every if each == canonical(each)]


def _by_draw(densities: Iterable[Choices], units: str) -> list[tuple[Choices, list[dict[str, str]]]]:
    """Densities together that draw the same actions: one of them, and how the log-density of each differs from it."""
    names = ("log_prob", "log_prob_units", "log_prob_dimensions")
    found: dict[tuple[str, str], tuple[Choices, list[dict[str, str]]]] = {}
    for density in densities:
        if density.critic_actions == units:
            together = found.setdefault((density.squash, density.std), (density, []))
            together[1].append({name: getattr(density, name) for name in names})
    return list(found.values())


def _named(density: Choices) -> dict[str, str]:
    return {name: getattr(density, name) for name in DENSITY}


_FIRST = tuple(VALUES[name][0] for name in OPTIMIZER)


def _rank(variant: tuple[str, ...]) -> int:
    return sum(VALUES[name].index(value) for name, value in zip(OPTIMIZER, variant, strict=True))


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
