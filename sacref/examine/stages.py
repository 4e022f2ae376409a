"""Stages of the identification: the critics' target, the policy and the temperature, each with the variants that its gradients leave.

Each stage starts from the weights that were shown before and after the update, so that only its own choices have to be searched, and an
error of one stage is not carried into the next. The critics' gradient is J^T e with the Jacobian J of their values: least squares give e,
the derivative of the loss by each row's value, and with it the target. Where no variant is left, e also says which quantity is unknown.
"""

import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

import sacref.examine.oracle as oracle
from sacref.examine.choices import AFTER, BEFORE, NEWEST, VALUES, Choices, canonical
from sacref.examine.observed import LOOSE, ROUNDED, Trajectory, Update, gradient_difference
from sacref.examine.oracle import DENSITY, Adam
from sacref.parity.networks import Arrays, Floats, Named, Seen, backward, forward
from sacref.parity.oracle import critics
from sacref.spec.arrays import NumpyArray

FEW = 4
"""Rows of a batch that rule out almost every variant."""
BIAS = 1e-4
"""Relative difference of the head's bias up to which a variant of the policy is looked at closely."""
IN_BOX = "in the Box's units"
NEVER = "none: it never moves"
NO_STEP = "no optimizer makes this step of one gradient, as weights alone show it"
LOG_PROB = ("log_prob", "log_prob_units", "log_prob_dimensions")
"""Fields of a density that no action depends on."""
NO_ROWS = "it is not one of these rows of the batch"
TARGET = "target"
ENDS = list(itertools.product(VALUES["termination"], VALUES["discount"]))
JOINS = list(itertools.product(VALUES["target_networks"], VALUES["target_value"]))

Variant = tuple[str, ...]
"""Values of a stage's fields, in their order."""
Found = set[Variant]


class Stage(ABC):
    """Variants of one part of the update that no data have ruled out yet.

    Args:
        adam: optimizer that the steps between two shown states are taken with.
        densities: choices of the log-density to search.
    """

    fields: tuple[str, ...]
    """Searched fields of `Choices`; the last one, a "_draw", is the name of a noise array."""

    def __init__(self, adam: Adam, densities: Sequence[Choices]) -> None:
        self.adam: Adam = adam
        self.densities: Sequence[Choices] = densities
        self.found: Found | None = None
        self.nearest: tuple[float, str] = (math.inf, "none")

    @abstractmethod
    def rule_out(self, trajectory: Trajectory, update: Update) -> str | None:
        """Drop the variants that an update contradicts; name the quantity that contradicts all of them."""

    def choices(self, variant: Variant) -> tuple[Choices, str]:
        """Split a variant into choices and its draw."""
        *values, draw = variant
        return Choices(**dict(zip(self.fields, values, strict=False))), draw

    def near(self, distance: float, variant: Variant) -> None:
        """Remember the nearest variant."""
        if distance < self.nearest[0]:
            self.nearest = distance, in_words(self.choices(variant)[0])


def in_words(chosen: Choices) -> str:
    """Name the choices that are not sacref's."""
    return "; ".join(f"{name}: {value}" for name, value in chosen.differences().items()) or "that of sacref"


@functools.cache
def every_density() -> list[Choices]:
    """List the choices of the log-density that differ in effect."""
    every = (Choices(**dict(zip(DENSITY, each, strict=True))) for each in itertools.product(*(VALUES[name] for name in DENSITY)))
    return [each for each in every if each == canonical(each)]


def _values(chosen: Choices, names: Iterable[str] = DENSITY) -> dict[str, str]:
    return {name: getattr(chosen, name) for name in names}


def _by_action(densities: Iterable[Choices], units: str) -> list[tuple[Choices, list[dict[str, str]]]]:
    """Group densities that draw the same actions: one of them, and the fields of each log-density."""
    found: dict[tuple[str, str], tuple[Choices, list[dict[str, str]]]] = {}
    for density in densities:
        if density.critic_actions == units:
            together = found.setdefault((density.squash, density.std), (density, []))
            together[1].append(_values(density, LOG_PROB))
    return list(found.values())


def _alphas(update: Update) -> dict[str, float]:
    return {BEFORE: float(np.exp(update.before["log_alpha"])), AFTER: float(np.exp(update.after["log_alpha"]))}


class Target(Stage):
    """The critics' target and loss, seen in the critics' gradient."""

    fields: tuple[str, ...] = (
        *DENSITY,
        *("target_value", "target_entropy_term", "target_alpha", "target_policy", "target_networks", "termination", "discount"),
        *("target_rows", "critic_loss", "critic_gradient", "target_draw"),
    )

    def rule_out(self, trajectory: Trajectory, update: Update) -> str | None:
        steps = update.steps["critics"]
        if not steps:
            return None if self.found else f"new critics: {NO_STEP}"
        problem, gradient = trajectory.scene.problem, steps[0]
        spans = {
            units: [Span(update.before, f"critic_{i + 1}", update.batch.observations, actions) for i in range(critics(update.before))]
            for units, actions in ((VALUES["critic_actions"][0], update.batch.actions), (IN_BOX, problem.box(update.batch.actions)))
        }
        targets = _Targets(update, problem.bound, problem.discount)
        if self.found is None:
            rows = [
                (units, kind, errors)
                for units, jacobians in spans.items()
                for kind, errors in _row_errors(jacobians, gradient, update.errors, trajectory.loose)
            ]
            if not rows:
                return f"critic gradient: {NO_ROWS}"
            candidates = {
                variant
                for units, kind, errors in rows
                for variant in self._search(trajectory.loose, targets, units, kind, errors, np.stack([each.q for each in spans[units]]))
            }
        else:
            candidates = self.found
        kept = set()
        for variant in candidates:
            chosen, draw = self.choices(variant)
            jacobians = spans[chosen.critic_actions]
            q = np.stack([each.q for each in jacobians])
            y = oracle.paired(targets.of(chosen, draw), chosen.target_rows)
            errors = oracle.critic_errors(q, y, chosen.critic_loss, number=len(q), size=q.shape[-1])
            predicted: Arrays = {}
            for i, jacobian in enumerate(jacobians):
                source = i if chosen.critic_gradient == "its own" else len(jacobians) - 1
                part = jacobians[source].gradient(errors[source])
                predicted |= {f"{jacobian.model}.{name}": array for name, array in part.items()}
            distance = gradient_difference(predicted, gradient, update.errors)
            self.near(distance, variant)
            if distance <= trajectory.tolerance_of(chosen):
                kept.add(variant)
        if not kept:
            return self._unknown(targets, spans, gradient)
        self.found = kept
        return None

    def _unknown(self, targets: "_Targets", spans: Mapping[str, Sequence["Span"]], gradient: Named) -> str:
        """Name the quantity that no variant has, as closely as the derivatives by two critics' values establish it."""
        uncertain = targets.update.errors
        rows = [(units, *each) for units, spanned in spans.items() for each in _row_errors(spanned, gradient, uncertain, LOOSE)]
        if not rows:
            return f"critic gradient: {NO_ROWS}"
        for units, kind, errors in rows:
            q = np.stack([each.q for each in spans[units]])
            if kind != "its own" or len(q) == 1:
                continue
            shared = [y for y in (shared_target(q, errors, loss) for loss in VALUES["critic_loss"]) if y is not None]
            if shared:
                alpha = targets.alpha(self.densities, units, shared[0])
                return TARGET if alpha is None else f"alpha: the target is a known one with an alpha of {alpha:.4g}"
            for *_, y in targets.every(self.densities, units, [*_alphas(targets.update).values(), 0.0]):
                for pairing in VALUES["target_rows"]:
                    if grows(errors, q - oracle.paired(y, pairing)[..., None, :]).any():
                        return "critic loss"
        return "target or critic loss"

    def _search(self, loose: float, targets: "_Targets", units: str, critic_gradient: str, errors: Floats, q: Floats) -> Iterator[Variant]:
        """Find variants whose rows come near the errors that were found; everything that one draw gives is compared at once."""
        update = targets.update
        size = float(np.nanmax(np.abs(errors)))
        known, sizes = ~np.isnan(errors[:, 0]), {"number": q.shape[0], "size": q.shape[1]}
        alphas = _alphas(update)
        terms = [("there", BEFORE, alphas[BEFORE]), ("there", AFTER, alphas[AFTER]), ("left out", BEFORE, 0.0)]
        losses = list(itertools.product(VALUES["target_rows"], VALUES["critic_loss"]))
        for density, forms, policy, name, y in targets.every(self.densities, units, [alpha for _, _, alpha in terms]):
            for rows, loss in losses:
                seen = oracle.paired(y, rows)
                # The last critic is always known.
                gap = np.abs(oracle.critic_errors(q[-1, :FEW], seen[..., :FEW], loss, **sizes) - errors[-1, :FEW]).max(axis=-1)
                best = np.unravel_index(int(gap.argmin()), gap.shape)
                for index in {tuple(int(i) for i in each) for each in np.argwhere(gap <= loose * size)} | {tuple(int(i) for i in best)}:
                    end, join, form, term = index
                    variant = {
                        **_values(density),
                        **forms[form],
                        "target_value": JOINS[join][1],
                        "target_networks": JOINS[join][0],
                        "target_entropy_term": terms[term][0],
                        "target_alpha": terms[term][1],
                        "target_policy": policy,
                        "termination": ENDS[end][0],
                        "discount": ENDS[end][1],
                        "target_rows": rows,
                        "critic_loss": loss,
                        "critic_gradient": critic_gradient,
                        "target_draw": name,
                    }
                    ordered = tuple(variant[field] for field in self.fields)
                    distance = float(np.abs(oracle.critic_errors(q[known], seen[index], loss, **sizes) - errors[known]).max()) / size
                    self.near(distance, ordered)
                    if distance <= loose:
                        yield ordered
                        if update.number == 0:
                            yield (*ordered[:-1], name.replace("fresh", "frozen"))


class Span:
    """Gradients that a network can have on some rows: its outputs, a critic's being its values, and their Jacobian by its parameters."""

    def __init__(self, state: Named, model: str, observations: Floats, actions: Floats | None = None) -> None:
        self.model = model
        output, tape = forward(state, model, Seen(observations), actions)
        self.q: Floats = output.ravel()
        rows = np.eye(output.size, dtype=output.dtype).reshape(-1, *output.shape)
        parts = [backward(state, model, tape, row)[0] for row in rows]
        self._names = [name.removeprefix(f"{model}.") for name in parts[0]]
        self._shapes = [array.shape for array in parts[0].values()]
        self._jacobian = np.stack([np.concatenate([array.ravel() for array in part.values()]) for part in parts])

    def gradient(self, errors: Floats) -> Arrays:
        """Compute the parameters' gradient from the derivatives by the values; names without the model's."""
        flat = errors @ self._jacobian
        ends = np.cumsum([math.prod(shape) for shape in self._shapes])[:-1]
        return {name: part.reshape(shape) for name, part, shape in zip(self._names, np.split(flat, ends), self._shapes, strict=True)}

    def solve(self, gradient: Named, model: str, uncertain: Named) -> tuple[Floats, float]:
        """Compute the derivatives by the values that best give the gradient of `model`, and the relative difference that remains."""
        flat, errors = (
            np.concatenate(
                [named.get(f"{model}.{name}", np.zeros(shape)).ravel() for name, shape in zip(self._names, self._shapes, strict=True)]
            )
            for named in (gradient, uncertain)
        )
        size = float(np.abs(flat[np.isfinite(errors)]).max(initial=0))
        if size == 0:
            return np.zeros_like(self.q), 0.0
        weight = 1 / (1e-9 * size + errors)
        found: Floats = np.linalg.lstsq((self._jacobian * weight).T, np.where(weight > 0, flat, 0) * weight, rcond=None)[0]
        rest = np.where(weight > 0, np.abs(found @ self._jacobian - flat) - np.where(weight > 0, errors, 0), 0)
        return found, max(float(rest.max()), 0.0) / size


def _row_errors(jacobians: Sequence[Span], gradient: Named, uncertain: Named, loose: float) -> Iterator[tuple[str, Floats]]:
    """Yield how the critics' gradients came about, and the derivatives by the values; NaN for a critic whose own gradient is not seen."""
    own = [each.solve(gradient, each.model, uncertain) for each in jacobians]
    if all(rest < loose for _, rest in own):
        yield "its own", np.stack([errors for errors, _ in own])
    last = jacobians[-1]
    others = [last.solve(gradient, each.model, uncertain) for each in jacobians]
    alike = all(np.allclose(errors, others[-1][0], rtol=loose, atol=0) for errors, _ in others)
    if len(jacobians) > 1 and alike and all(rest < loose for _, rest in others):
        errors = np.full((len(jacobians), len(last.q)), np.nan)
        errors[-1] = others[-1][0]
        yield "the last critic's, for all", errors


def shared_target(q: Floats, errors: Floats, loss: str) -> Floats | None:
    """Find the target, `(batch,)`, that gives all critics their derivatives by the values, `(critic, batch)`, under a known loss.

    Returns:
        The target, NaN in rows where a Huber loss shows only a bound; None if the critics do not share one.
    """
    gaps = errors / oracle.critic_errors(np.ones_like(q), np.zeros_like(q), loss, number=q.shape[0], size=q.shape[1])
    loose, huber = LOOSE * float(np.abs(gaps).max()), loss.startswith("Huber")
    cut = np.abs(gaps) > 1 - LOOSE if huber else np.zeros(q.shape, bool)
    lowest = np.where(cut & (gaps > 0), -np.inf, q - gaps).max(axis=0)
    highest = np.where(cut & (gaps < 0), np.inf, q - gaps).min(axis=0)
    if (lowest - highest > loose).any() or (huber and loose > LOOSE * (1 + LOOSE)):
        return None
    return np.asarray(np.where(highest - lowest > loose, np.nan, lowest))


def grows(errors: Floats, gaps: Floats) -> NumpyArray:
    """Say whether derivatives by the values, `(critic, batch)`, grow with Q - y, `(..., critic, batch)`, as those of a convex loss do."""
    order = errors.argsort(axis=None)
    starts = np.flatnonzero(np.diff(errors.ravel()[order], prepend=-np.inf) > LOOSE * np.abs(errors).max())
    sorted_gaps = gaps.reshape(*gaps.shape[:-2], -1)[..., order]
    highest, lowest = (each.reduceat(sorted_gaps, starts, axis=-1) for each in (np.maximum, np.minimum))
    return np.asarray((highest[..., :-1] <= lowest[..., 1:] + LOOSE * np.abs(gaps).max()).all(axis=-1))


class _Targets:
    """Draws, values and targets of one update, each computed once."""

    def __init__(self, update: Update, bound: float, discount: float) -> None:
        self.update, self.discount, self._bound = update, discount, bound
        self._noise = update.noise()
        self._outputs = {
            when: forward(state, "policy", Seen(update.batch.next_observations))[0]
            for when, state in ((BEFORE, update.before), (AFTER, update.after))
        }
        self._draws: dict[tuple[str, ...], oracle.Draw] = {}
        self._values: dict[tuple[str, ...], Floats] = {}

    def drawn(self, policy: str, chosen: Choices, name: str) -> oracle.Draw:
        """Draw for the next observations, with the policy before or after its step and the noise of this name."""
        key = (policy, name, *_values(chosen).values())
        if key not in self._draws:
            self._draws[key] = oracle.draw_from(self._outputs[policy], self._noise[name], chosen, self._bound)
        return self._draws[key]

    def value(self, networks: str, kind: str, policy: str, chosen: Choices, name: str) -> Floats:
        """Compute the joined value of the next observations and of actions drawn for them."""
        key = (networks, policy, chosen.squash, chosen.std, chosen.critic_actions, name)
        if key not in self._values:
            state = self.update.after if networks == "after their average" else self.update.before
            prefix = "" if networks == "none: the critics" else "target_"
            action = self.drawn(policy, chosen, name).action
            self._values[key] = oracle.values(state, self.update.batch.next_observations, action, prefix)
        return oracle.joined(self._values[key], kind)

    def of(self, chosen: Choices, name: str) -> Floats:
        """Compute the target of a variant."""
        log_prob = self.drawn(chosen.target_policy, chosen, name).log_prob
        value = self.value(chosen.target_networks, chosen.target_value, chosen.target_policy, chosen, name)
        alpha = _alphas(self.update)[chosen.target_alpha] if chosen.target_entropy_term == "there" else 0.0
        return oracle.target(self.update.batch, value - alpha * log_prob, self.discount, chosen)

    def every(
        self, densities: Iterable[Choices], units: str, alphas: Sequence[float]
    ) -> Iterator[tuple[Choices, list[dict[str, str]], str, str, Floats]]:
        """Compute targets with these alphas, of all variants that one draw gives at once: `(ends, joins, forms, alphas, batch)`.

        Yields:
            A density, the forms of its log-density, the policy, the noise's name, and the targets.
        """
        draws = [name for name in self._noise if self.update.number or not name.startswith("frozen")]
        for (density, forms), policy, name in itertools.product(_by_action(densities, units), VALUES["target_policy"], draws):
            log_probs = np.stack([self.drawn(policy, replace(density, **form), name).log_prob for form in forms])
            value = np.stack([self.value(networks, kind, policy, density, name) for networks, kind in JOINS])
            soft = value[:, None, None] - np.stack([alpha * log_probs for alpha in alphas], axis=1)[None]
            each = [oracle.target(self.update.batch, soft, self.discount, Choices(termination=t, discount=d)) for t, d in ENDS]
            yield density, forms, policy, name, np.stack(each)

    def alpha(self, densities: Iterable[Choices], units: str, seen: Floats) -> float | None:
        """Find the alpha that turns a known target into the seen one; NaN of the seen one are left out."""
        known = ~np.isnan(seen)
        for *_, y in self.every(densities, units, [0.0, 1.0]):
            cold, entropy = y[..., 0, known], y[..., 1, known] - y[..., 0, known]
            alphas = ((seen[known] - cold) * entropy).sum(axis=-1) / np.maximum((entropy**2).sum(axis=-1), 1e-300)
            gaps = np.abs(cold + alphas[..., None] * entropy - seen[known]).max(axis=-1)
            if gaps.min() <= LOOSE * np.abs(seen[known]).max():
                return float(alphas.ravel()[gaps.argmin()])
        return None


class Policy(Stage):
    """The policy's loss, seen in the gradient of each of its steps."""

    fields: tuple[str, ...] = (*DENSITY, "policy_value", "policy_critics", "policy_alpha", "policy_entropy", "policy_loss", "policy_draw")

    def rule_out(self, trajectory: Trajectory, update: Update) -> str | None:
        problem, observations, noise = trajectory.scene.problem, update.batch.observations, update.noise()
        if self.found is None and not update.steps["policy"] and update.moved("policy"):
            return f"new policy: {NO_STEP}"
        policies, temperatures = (trajectory.between(network, self.adam)[update.number] for network in ("policy", "temperature"))
        judges = {AFTER: update.after, BEFORE: update.before}
        for turn, seen in enumerate(update.steps["policy"]):
            alphas = _alphas(update)
            if len(update.steps["policy"]) > 1:
                alphas = {BEFORE: alphas[BEFORE], NEWEST: float(np.exp(temperatures[min(turn, len(temperatures) - 1)]["log_alpha"]))}
            output, tape = forward(policies[turn], "policy", Seen(observations))
            gradient = oracle.gradient_of(policies[turn], tape)
            first = self.found is None
            candidates = self.found
            if candidates is None:
                candidates = set(self._search(trajectory, update, output, alphas, judges, seen))
            kept: Found = set()
            slopes: dict[tuple[str, ...], Floats] = {}
            for variant in candidates:
                chosen, draw = self.choices(variant)
                if chosen.policy_alpha not in alphas:
                    continue
                # A second step of the policy draws another array of the update.
                for name in [name for name in noise if name.split()[0] == draw.split()[0]] if turn else [draw]:
                    drawn = oracle.draw_from(output, noise[name], chosen, problem.bound)
                    key = (chosen.squash, chosen.std, chosen.critic_actions, name, chosen.policy_critics, chosen.policy_value)
                    if key not in slopes:
                        slopes[key] = oracle.by_actions(judges[chosen.policy_critics], observations, drawn.action, chosen.policy_value)
                    predicted = oracle.policy_gradients(drawn, gradient, slopes[key], alphas[chosen.policy_alpha], chosen)
                    distance = gradient_difference(predicted, seen, update.errors)
                    self.near(distance, variant)
                    if distance <= trajectory.tolerance_of(chosen):
                        kept.add(variant)
                        if first and update.number == 0:
                            kept.add((*variant[:-1], draw.replace("fresh", "frozen")))
            if not kept:
                span = Span(policies[turn], "policy", observations)
                return "actor loss" if span.solve(seen, "policy", update.errors)[1] <= LOOSE else f"policy gradient: {NO_ROWS}"
            self.found = kept
        return None

    def _search(
        self,
        trajectory: Trajectory,
        update: Update,
        output: Floats,
        alphas: Mapping[str, float],
        judges: Mapping[str, Named],
        gradient: Named,
    ) -> Iterator[Variant]:
        """Find variants that give the gradient of the head's bias, which is the sum of the derivatives by the policy's output."""
        bound, batch, noise = trajectory.scene.problem.bound, update.batch, update.noise()
        seen, size = gradient["policy.head.bias"], len(batch.rewards)
        loose = (BIAS if trajectory.scene.problem.dtype == "float64" else ROUNDED) * float(np.abs(seen).max())
        signs = {"there": 1.0, "left out": 0.0, "with the wrong sign": -1.0}
        terms = [(e, a, signs[e] * alphas[a]) for e, a in itertools.product(signs, alphas) if e != "left out" or a == BEFORE]
        factors = np.array([factor for _, _, factor in terms])[:, None, None, None]
        sees = list(itertools.product(VALUES["policy_critics"], VALUES["policy_value"]))
        groups = [group for units in VALUES["critic_actions"] for group in _by_action(self.densities, units)]
        draws = [name for name in noise if update.number or not name.startswith("frozen")]
        for (density, forms), name in itertools.product(groups, draws):
            drawn = oracle.draw_from(output, noise[name], density, bound)
            nothing, ones = np.zeros_like(drawn.action), np.ones(size, drawn.action.dtype)
            every = [oracle.draw_from(output, noise[name], replace(density, **form), bound) for form in forms]
            by_log_prob = np.stack([each.by_output(nothing, ones).sum(axis=0) for each in every])
            slopes = [oracle.by_actions(judges[who], batch.observations, drawn.action, kind) for who, kind in sees]
            by_value = np.stack([drawn.by_output(slope, 0 * ones).sum(axis=0) for slope in slopes])
            for loss, weight in (("mean", 1 / size), ("sum", 1.0)):
                predicted = weight * (factors * by_log_prob[None, :, None] - by_value[None, None])
                for term, form, see in np.argwhere(np.abs(predicted - seen).max(axis=-1) <= loose):
                    variant = {
                        **_values(density),
                        **forms[form],
                        "policy_critics": sees[see][0],
                        "policy_value": sees[see][1],
                        "policy_entropy": terms[term][0],
                        "policy_alpha": terms[term][1],
                        "policy_loss": loss,
                        "policy_draw": name,
                    }
                    yield tuple(variant[field] for field in self.fields)


class Temperature(Stage):
    """The temperature's loss, seen in the gradient of log alpha."""

    fields: tuple[str, ...] = (*DENSITY, "temperature_loss", "target_entropy", "temperature_policy", "temperature_draw")

    def rule_out(self, trajectory: Trajectory, update: Update) -> str | None:
        problem, noise, steps = trajectory.scene.problem, update.noise(), update.steps["temperature"]
        if self.found is None and not steps and update.moved("temperature"):
            return f"new alpha: {NO_STEP}"
        if not any(gradients["log_alpha"].any() for gradients in steps):
            if not update.steps["policy"]:
                return None  # It waits with the policy.
            rest = [VALUES[name][0] for name in self.fields[len(DENSITY) + 1 : -1]]
            none = {(*_values(density).values(), NEVER, *rest, "") for density in self.densities}
            kept = none if self.found is None else self.found & none
            if not kept:
                return "temperature: it stops moving"
            self.found = kept
            return None
        policies, temperatures = (trajectory.between(network, self.adam)[update.number] for network in ("policy", "temperature"))
        last = len(policies) - 1
        for turn, gradients in enumerate(steps):
            seen, log_alpha = float(gradients["log_alpha"]), float(temperatures[turn]["log_alpha"])
            error = float(update.errors.get("log_alpha", 0.0))
            states = {BEFORE: policies[min(turn, max(last - 1, 0))], AFTER: policies[min(turn + 1, last)]}
            outputs = {when: forward(state, "policy", Seen(update.batch.observations))[0] for when, state in states.items()}
            candidates = self.found
            if candidates is None:
                losses = [each for each in VALUES["temperature_loss"] if each != NEVER]
                rests = itertools.product(losses, VALUES["target_entropy"], states, noise)
                candidates = {(*_values(density).values(), *rest) for density, rest in itertools.product(self.densities, rests)}
            kept = set()
            log_probs: dict[tuple[str, ...], Floats] = {}
            for variant in candidates:
                chosen, draw = self.choices(variant)
                for name in [name for name in noise if name.split()[0] == draw.split()[0]] if turn else [draw]:
                    key = (*variant[: len(DENSITY)], chosen.temperature_policy, name)
                    if key not in log_probs:
                        log_probs[key] = oracle.draw_from(outputs[chosen.temperature_policy], noise[name], chosen, problem.bound).log_prob
                    goal = oracle.entropy_goal(chosen.target_entropy, problem.action)
                    gap = abs(oracle.temperature_gradient(log_alpha, log_probs[key], goal, chosen.temperature_loss) - seen)
                    self.near(gap / max(abs(seen), 1e-300), variant)
                    # The mean of log pi and the goal nearly cancel: the difference is measured against what cancels.
                    if gap <= trajectory.tolerance_of(chosen) * max(abs(seen), 1.0) + error:
                        kept.add(variant)
            if not kept:
                return "temperature gradient"
            self.found = kept
        return None
