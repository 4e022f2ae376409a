"""One SAC update in NumPy whose every named choice and mistake is a field of `Choices`. Networks and their backward passes are parity's.

The pieces (a draw from the policy, the critics' values, a gradient, a step of Adam) are public: `identify` calls them with arrays that an
implementation showed, `Oracle` with its own. Without choices the update is that of `sacref.parity.oracle`, which a test holds it to.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from sacref.algorithm.data import Batch
from sacref.examine.choices import AFTER, FRESH, FROZEN, NEWEST, OWN_FROZEN, Choices, contradictions
from sacref.examine.problem import Problem
from sacref.parity.networks import Arrays, Floats, Named, Seen, Tape, backward, forward
from sacref.parity.oracle import critics, norm

NETWORKS = ("critics", "policy", "temperature")
"""Networks by whose optimizer parameters are grouped."""
DENSITY = ("squash", "std", "log_prob", "log_prob_units", "log_prob_dimensions", "critic_actions")
"""Fields of `Choices` that a draw from the policy depends on."""


Gradient = Callable[[Floats], Arrays]


class Draw(NamedTuple):
    """Actions of the policy for some rows, their log-density, and the way back to the network's output."""

    action: Floats
    """`(batch, action)`, in the units that the critics see."""
    log_prob: Floats
    """`(batch,)`, in nats."""
    by_output: Callable[[Floats, Floats], Floats]
    """From the derivatives by `action` and by `log_prob` to that by the network's output."""


def standard_deviation(raw: Floats, kind: str) -> tuple[Floats, Floats]:
    """Compute the log standard deviation from the network's output, and its derivative."""
    one = np.ones_like(raw)
    if kind.startswith("exp, cut"):
        low = float(kind.removeprefix("exp, cut to [").partition(",")[0])
        return np.clip(raw, low, 2.0), ((raw >= low) & (raw <= 2.0)).astype(raw.dtype)
    if kind.startswith("exp, bounded"):
        low = -20.0 if "-20" in kind else -5.0
        bent = np.tanh(raw)
        return low + (2.0 - low) / 2 * (bent + 1), (2.0 - low) / 2 * (1 - bent**2)
    if kind == "exp, not bounded":
        return raw, one
    shift, least = (0.0, 0.001) if kind == "softplus + 0.001" else (math.log(math.expm1(0.99)), 0.01)
    std = np.logaddexp(raw + shift, 0) + least
    return np.log(std), 1 / (1 + np.exp(-(raw + shift))) / std


def tanh_correction(u: Floats, kind: str, scale: float) -> tuple[Floats, Floats]:
    """Compute log |da/du| of the tanh for each dimension, which the Gaussian's log-density is reduced by, and its derivative by u."""
    a = np.tanh(u)
    open_share = scale * (1 - a**2)
    if kind == "exact, from u":
        return 2 * (math.log(2) - u - np.logaddexp(-2 * u, 0)) + math.log(scale), -2 * a
    if kind == "left out":
        return np.full_like(u, math.log(scale)), np.zeros_like(u)
    if kind.startswith("log(max"):
        least = scale * 1e-6
        return np.log(np.maximum(open_share, least)), np.where(open_share > least, -2 * a, 0)
    epsilon = 1e-6 if "1e-6" in kind else float(np.finfo(np.float32).eps)
    return np.log(open_share + epsilon), -2 * a * open_share / (open_share + epsilon)


def draw(state: Named, observations: Floats, noise: Floats, choices: Choices, bound: float) -> tuple[Draw, Gradient]:
    """Draw actions of the policy in `state` for rows of observations and of standard normal noise.

    Args:
        state: holds `policy.*`.
        observations: `(batch, observation)`.
        noise: `(batch, action)`.
        choices: the fields of `DENSITY` are read.
        bound: the Box is from -bound to bound.

    Returns:
        The draw, and the gradient of the policy as a function of the derivative by its output.
    """
    output, tape = forward(state, "policy", Seen(observations))
    return draw_from(output, noise, choices, bound), gradient_of(state, tape)


def gradient_of(state: Named, tape: Tape) -> Gradient:
    """Make the function from the derivative by the policy's output to the policy's gradient."""
    return lambda by_output: backward(state, "policy", tape, by_output)[0]


def draw_from(output: Floats, noise: Floats, choices: Choices, bound: float) -> Draw:
    """Draw as `draw` does, from the network's output, `(batch, 2 action)`."""
    mean, raw = np.split(output, 2, axis=-1)
    log_std, by_raw = standard_deviation(raw, choices.std)
    std = np.exp(log_std)
    u = mean + std * noise
    share = 1 / noise.shape[-1] if choices.log_prob_dimensions == "mean" else 1.0
    gaussian = -log_std - math.log(2 * math.pi) / 2
    in_box = choices.critic_actions == "in the Box's units"

    if choices.squash != "tanh":
        action = np.clip(u, -bound, bound)
        inside = (np.abs(u) <= bound).astype(u.dtype)
        standard = (action - mean) / std
        log_prob = (gaussian - standard**2 / 2).sum(axis=-1) * share
        units = 1.0 if in_box else 1 / bound

        def cut_back(by_action: Floats, by_log_prob: Floats) -> Floats:
            by_log_prob = by_log_prob[..., None] * share
            by_inside = by_action * units * inside
            by_mean = by_inside + by_log_prob * np.where(inside > 0, 0, standard / std)
            by_log_std = by_inside * std * noise + by_log_prob * np.where(inside > 0, -1, standard**2 - 1)
            return np.concatenate([by_mean, by_log_std * by_raw], axis=-1)

        return Draw(action * units, log_prob, cut_back)

    scale = bound if choices.log_prob_units == "of the Box" else 1.0
    correction, by_u_of_correction = tanh_correction(u, choices.log_prob, scale)
    log_prob = (gaussian - noise**2 / 2 - correction).sum(axis=-1) * share
    units = bound if in_box else 1.0
    bent = np.exp(-2 * np.abs(u))
    slope = 4 * bent / (1 + bent) ** 2

    def back(by_action: Floats, by_log_prob: Floats) -> Floats:
        by_log_prob = by_log_prob[..., None] * share
        by_u = by_action * units * slope - by_log_prob * by_u_of_correction
        return np.concatenate([by_u, (by_u * std * noise - by_log_prob) * by_raw], axis=-1)

    return Draw(np.tanh(u) * units, log_prob, back)


def values(state: Named, observations: Floats, actions: Floats, prefix: str = "") -> Floats:
    """Compute all critics' values, `(critic, batch)`; with the prefix "target_", the target networks'."""
    seen = Seen(observations)
    return np.stack([forward(state, f"{prefix}critic_{i + 1}", seen, actions)[0][..., 0] for i in range(critics(state))])


def joined(next_q: Floats, kind: str) -> Floats:
    """Join the values of several critics to one, `(batch,)`."""
    value: Floats = next_q.min(axis=0) if kind == "min" else next_q.mean(axis=0) if kind == "mean" else next_q[0]
    return value


def target(batch: Batch[Floats], value: Floats, discount: float, choices: Choices) -> Floats:
    """Compute the critics' target y, `(batch,)`, from the next state's soft value."""
    if choices.discount == "rounded to bfloat16":
        discount = to_bfloat16(discount)
    ends = np.zeros_like(batch.terminated) if choices.termination == "ignored" else batch.terminated
    y: Floats = batch.rewards + np.where(ends, 0, discount * value)
    return y


def to_bfloat16(number: float) -> float:
    """Round to bfloat16's eight binary digits."""
    mantissa, exponent = math.frexp(number)
    return math.ldexp(round(mantissa * 256) / 256, exponent)


def paired(y: Floats, rows: str) -> Floats:
    """Give the target that each row's value is held against: its own, or the mean of all, which (batch, batch) errors amount to."""
    return y if rows == "paired" else np.broadcast_to(y.mean(axis=-1, keepdims=True), y.shape)


def critic_errors(q: Floats, y: Floats, kind: str, *, number: int, size: int) -> Floats:
    """Differentiate the loss of `number` critics by their values, for some or all rows of a batch of `size`."""
    error = q - y
    if kind.startswith("Huber"):
        return np.asarray(np.clip(error, -1, 1) / size)
    factor = {
        "(Q - y)^2, summed over critics": 2.0,
        "1/2 (Q - y)^2, mean over critics": 1 / number,
        "1/2 (Q - y)^2, summed over the batch": float(size),
    }.get(kind, 1.0)
    errors: Floats = error * factor / size
    return errors


def critic_gradients(state: Named, batch: Batch[Floats], actions: Floats, errors: Floats) -> Arrays:
    """Compute the gradients of all critics' parameters from the derivatives by their values."""
    found: Arrays = {}
    for i, error in enumerate(errors):
        _, tape = forward(state, f"critic_{i + 1}", Seen(batch.observations), actions)
        found |= backward(state, f"critic_{i + 1}", tape, error[:, None])[0]
    return found


def by_actions(state: Named, observations: Floats, actions: Floats, kind: str) -> Floats:
    """Differentiate the sum of the joined values by the actions, `(batch, action)`; critics that tie share it."""
    seen = Seen(observations)
    passes = [forward(state, f"critic_{i + 1}", seen, actions) for i in range(critics(state))]
    q = np.stack([output[..., 0] for output, _ in passes])
    if kind == "min":
        tied = (q == q.min(axis=0)).astype(q.dtype)
        share = tied / tied.sum(axis=0)
    else:
        share = np.zeros_like(q)
        share[: len(q) if kind == "mean" else 1] = 1 / len(q) if kind == "mean" else 1.0
    found = np.zeros_like(actions)
    for i, (_, tape) in enumerate(passes):
        found = found + backward(state, f"critic_{i + 1}", tape, share[i][:, None])[1][..., -actions.shape[-1] :]
    return found


def policy_gradients(drawn: Draw, gradient: Gradient, slopes: Floats, alpha: float, choices: Choices) -> Arrays:
    """Compute the gradient of the policy's loss; `slopes` are the joined value's derivatives by the drawn actions."""
    size = len(slopes)
    weight = 1.0 if choices.policy_loss == "sum" else 1 / size
    sign = {"there": 1.0, "left out": 0.0, "with the wrong sign": -1.0}[choices.policy_entropy]
    by_log_prob = np.full(size, sign * alpha * weight, slopes.dtype)
    return gradient(drawn.by_output(-weight * slopes, by_log_prob))


def entropy_goal(kind: str, dimensions: int) -> float:
    """Compute the target entropy of so many action dimensions, in nats."""
    of = {"-dim": -dimensions, "-dim / 2": -dimensions / 2, "0": 0.0, "-1": -1.0, "-dim^2": -(dimensions**2), "dim": dimensions}
    return float(of[kind])


def temperature_gradient(log_alpha: float, log_prob: Floats, goal: float, kind: str) -> float:
    """Differentiate the temperature's loss by log alpha."""
    gradient = -float((log_prob + goal).mean())
    if kind == "alpha (log pi + H)":
        return gradient * math.exp(log_alpha)
    return {"none: it never moves": 0.0, "with the wrong sign": -gradient}.get(kind, gradient)


class Adam(NamedTuple):
    """Settings of Adam, and its step."""

    epsilon: float
    place: str
    decays: tuple[float, float]
    weight_decay: float

    @classmethod
    def of(cls, choices: Choices) -> "Adam":
        """Read the settings off choices."""
        first, second = choices.adam_decays.split(", ")
        decay = 0.0 if choices.weight_decay == "none" else float(choices.weight_decay.removeprefix("decoupled, "))
        return cls(float(choices.adam_epsilon), choices.adam_epsilon_place, (float(first), float(second)), decay)

    def step(self, parameter: Floats, gradient: Floats, moments: "Moments", rate: float) -> tuple[Floats, "Moments"]:
        """Take a step: the new parameter, and the new moments."""
        count = moments.steps + 1
        # NumPy makes numbers of arrays of shape ().
        first = np.asarray(self.decays[0] * moments.first + (1 - self.decays[0]) * gradient)
        second = np.asarray(self.decays[1] * moments.second + (1 - self.decays[1]) * gradient**2)
        moved = parameter - rate * (self.direction(first, second, count) + self.weight_decay * parameter)
        return np.asarray(moved), Moments(first, second, count)

    def direction(self, first: Floats, second: Floats, count: int) -> Floats:
        """Compute the step in units of the learning rate."""
        unbiased, square = first / (1 - self.decays[0] ** count), second / (1 - self.decays[1] ** count)
        if self.place == "inside the root":
            return np.asarray(unbiased / np.sqrt(square + self.epsilon))
        return np.asarray(unbiased / (np.sqrt(square) + self.epsilon_at(count)))

    def epsilon_at(self, count: int) -> float:
        """Compute the epsilon that acts beside the unbiased moments at a step, which count from 1."""
        return self.epsilon / (math.sqrt(1 - self.decays[1] ** count) if self.place == "before the bias correction" else 1.0)

    def first_gradient(self, direction: Floats, error: Floats) -> tuple[Floats, Floats]:
        """Invert `direction` at the first step, where it is g / (|g| + epsilon), or g / sqrt(g^2 + epsilon).

        Returns:
            The gradient, and its error where `direction` has this `error`; an infinite one where the gradient is too large to be told.
        """
        size, epsilon = np.abs(direction), self.epsilon_at(1)
        if self.place == "inside the root":
            rest = np.maximum(1 - size**2, error)
            gradient, slope = direction * np.sqrt(epsilon / rest), math.sqrt(epsilon) / rest**1.5
        else:
            rest = np.maximum(1 - size, error)
            gradient, slope = direction * epsilon / rest, epsilon / rest**2
        return np.asarray(gradient), np.asarray(np.where(rest < 8 * error, np.inf, error * slope))


class Moments(NamedTuple):
    """Moments that Adam keeps of a parameter's gradients."""

    first: Floats
    second: Floats
    steps: int

    @classmethod
    def none(cls, like: Floats) -> "Moments":
        """Make those before the first step."""
        return cls(np.zeros_like(like), np.zeros_like(like), 0)


def clipped(gradients: Arrays, limit: float, kind: str) -> Arrays:
    """Clip the gradients of one optimizer as one of the values of `clipping` has it; a `limit` of 0 leaves them unchanged."""
    if limit <= 0 or kind == "accepted and ignored":
        return gradients
    if kind == "element by element":
        return {name: np.clip(gradient, -limit, limit) for name, gradient in gradients.items()}
    groups: dict[str, Arrays] = {}
    for name, gradient in gradients.items():
        groups.setdefault(name.split(".")[0] if kind == "norm of each network" else "all", {})[name] = gradient
    return {name: g * min(1.0, limit / max(float(norm(group)), 1e-300)) for group in groups.values() for name, g in group.items()}


def rate_at(problem: Problem, update: int, network: str, choices: Choices) -> float:
    """Compute the learning rate of a network at an update, which count from 0."""
    kind = choices.schedule
    if "accepted and ignored" in (kind, choices.temperature_schedule if network == "temperature" else ""):
        return problem.learning_rate
    if kind == "multiplied in again at each step":
        return problem.learning_rate * problem.decay ** (update * (update + 1) // 2)
    return problem.learning_rate * problem.decay**update


def steps_at(interval: str, update: int) -> int:
    """Count the steps that an interval, of `policy_steps` or `averaging_interval`, has at an update, which count from 0."""
    return 1 if interval == "every update" else update % 2 * (1 + interval.endswith("two"))


def averaged(old: Named, new: Named, tau: float, kind: str) -> Arrays:
    """Step the target networks; `old` is the state before the update, `new` that with the stepped critics."""
    online, share = (old if "before their step" in kind else new), (1 - tau if kind.startswith("1 - tau") else tau)
    return {name: share * online[name.removeprefix("target_")] + (1 - share) * old[name] for name in old if name.startswith("target_")}


def network_of(name: str) -> str:
    """Name the network, of `NETWORKS`, whose optimizer a parameter belongs to."""
    return "temperature" if name == "log_alpha" else "policy" if name.startswith("policy.") else "critics"


def group(arrays: Named, network: str) -> Arrays:
    """Select the parameters of one optimizer from a state or gradients."""
    return {name: array for name, array in arrays.items() if not name.startswith("target_") and network_of(name) == network}


def targets(arrays: Named) -> Arrays:
    """Select the target networks' parameters."""
    return {name: array for name, array in arrays.items() if name.startswith("target_")}


@dataclass
class Oracle:
    """NumPy agent that updates as the choices say; the examiner's reference, and the agent that its own tests examine.

    Args:
        problem: sizes and settings.
        weights: to start from, by their common names.
        choices: what it does where implementations differ.

    Raises:
        ValueError: if the choices contradict each other.
    """

    problem: Problem
    weights: Arrays
    choices: Choices = field(default_factory=Choices)
    gradients: list[Arrays] = field(default_factory=list)
    """Gradients that each optimizer step of the last update was taken with."""

    def __post_init__(self) -> None:
        for clash in contradictions(self.choices):
            raise ValueError(f"Oracle: {clash}, which no order of steps gives: change one of them")
        self.weights = {name: self.problem.cast(array) for name, array in self.weights.items()}
        self.updates: int = 0
        self.moments: dict[str, Moments] = {name: Moments.none(array) for name, array in self.weights.items()}
        self.first_noise: Floats | None = None
        self._steps = {
            "critics": self._step_critics,
            "policy": self._step_policy,
            "temperature": self._step_temperature,
        }

    def update(self, batch: Batch[Floats], draws: Floats) -> None:
        """Make one update with standard normal `draws`, `(draws, batch, action)`: the target's, the policy's, the temperature's own."""
        self.first_noise = draws if self.first_noise is None else self.first_noise
        self._before, self._batch, self._draws = dict(self.weights), batch, draws
        self.gradients = []
        moves = self._moves()
        new_targets: Arrays = {}
        averages = steps_at(self.choices.averaging_interval, self.updates)
        if averages:
            if self.choices.averaging == "tau of the critics before their step":
                new_targets = averaged(self._before, self._before, self.problem.tau, self.choices.averaging)
            if self.choices.target_networks == "after their average":
                self.weights |= new_targets
        for i, network in enumerate(moves):
            self._steps[network](moves[:i])
        if averages:
            self.weights |= new_targets or averaged(self._before, self.weights, self.problem.tau, self.choices.averaging)
        self.updates += 1

    def _moves(self) -> list[str]:
        """Order the networks' steps: a network that another one sees after its step comes before it."""
        chosen = self.choices
        earlier = {
            ("temperature", "critics"): chosen.target_alpha == AFTER,
            ("policy", "critics"): chosen.target_policy == AFTER,
            ("temperature", "policy"): chosen.policy_alpha == AFTER,
            ("policy", "temperature"): chosen.temperature_policy == AFTER,
        }
        order = ["critics", "policy", "temperature"]
        for _ in order:
            for (first, second), holds in earlier.items():
                if holds and order.index(first) > order.index(second):
                    order.remove(first)
                    order.insert(order.index(second), first)
        if chosen.policy_steps != "every update":
            slow = [network for network in order if network != "critics"] * steps_at(chosen.policy_steps, self.updates)
            order = ["critics", *slow] if order[0] == "critics" else [*slow, "critics"]
        return order

    @property
    def _arrays_in_a_turn(self) -> int:
        """Noise arrays of a step of the policy and of the temperature beside it."""
        return 1 if self.choices.temperature_noise == "the policy's" else 2

    def _noise(self, index: int, frozen: bool) -> Floats:
        source = self.first_noise if frozen else self._draws
        assert source is not None
        found: Floats = source[index]
        return found

    def _step_critics(self, before: Sequence[str]) -> None:
        chosen, problem, batch = self.choices, self.problem, self._batch
        policy = self.weights if chosen.target_policy == AFTER else self._before
        shared = chosen.target_noise == "the policy's of the same update"
        frozen = FROZEN in (chosen.target_noise, chosen.policy_noise if shared else FRESH)
        drawn, _ = draw(policy, batch.next_observations, self._noise(int(shared), frozen), chosen, problem.bound)
        prefix = "" if chosen.target_networks == "none: the critics" else "target_"
        next_q = values(self.weights, batch.next_observations, drawn.action, prefix)
        alpha = np.exp((self.weights if chosen.target_alpha == AFTER else self._before)["log_alpha"])
        value = joined(next_q, chosen.target_value) - (alpha * drawn.log_prob if chosen.target_entropy_term == "there" else 0)
        y = target(batch, value, problem.discount, chosen)
        actions = problem.box(batch.actions) if chosen.critic_actions == "in the Box's units" else batch.actions
        q = values(self.weights, batch.observations, actions)
        gradients = critic_gradients(
            self.weights,
            batch,
            actions,
            critic_errors(q, paired(y, chosen.target_rows), chosen.critic_loss, number=len(q), size=q.shape[-1]),
        )
        if chosen.critic_gradient != "its own":
            last = f"critic_{len(q)}"
            gradients = {name: gradients[".".join([last, *name.split(".")[1:]])] for name in gradients}
        self._take("critics", gradients)

    def _step_policy(self, before: Sequence[str]) -> None:
        chosen, batch = self.choices, self._batch
        noise = self._noise(1 + self._arrays_in_a_turn * before.count("policy"), chosen.policy_noise == FROZEN)
        drawn, gradient = draw(self.weights, batch.observations, noise, chosen, self.problem.bound)
        self._judged = dict(self.weights)
        judges = self.weights if chosen.policy_critics == AFTER else self._before
        slopes = by_actions(judges, batch.observations, drawn.action, chosen.policy_value)
        alpha = np.exp((self.weights if chosen.policy_alpha in (AFTER, NEWEST) else self._before)["log_alpha"])
        self._take("policy", policy_gradients(drawn, gradient, slopes, float(alpha), chosen))

    def _step_temperature(self, before: Sequence[str]) -> None:
        chosen, turn = self.choices, before.count("temperature")
        own = self._arrays_in_a_turn == 2
        policy = self._judged if before.count("policy") > turn and chosen.temperature_policy != AFTER else self.weights
        noise = self._noise(
            self._arrays_in_a_turn * (turn + 1), chosen.temperature_noise == OWN_FROZEN if own else chosen.policy_noise == FROZEN
        )
        drawn, _ = draw(policy, self._batch.observations, noise, chosen, self.problem.bound)
        goal = entropy_goal(chosen.target_entropy, self.problem.action)
        if chosen.temperature_loss != "none: it never moves":
            gradient = temperature_gradient(float(self.weights["log_alpha"]), drawn.log_prob, goal, chosen.temperature_loss)
            self._take("temperature", {"log_alpha": self.problem.cast(gradient)})

    def _take(self, network: str, gradients: Arrays) -> None:
        if network != "temperature":
            gradients = clipped(gradients, self.problem.clip, self.choices.clipping)
        self.gradients.append(gradients)
        rate, adam = rate_at(self.problem, self.updates, network, self.choices), Adam.of(self.choices)
        for name, gradient in gradients.items():
            moved, self.moments[name] = adam.step(self.weights[name], gradient, self.moments[name], rate)
            self.weights[name] = self.problem.cast(moved)
