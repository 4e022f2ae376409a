"""Named choices of a SAC update, and named mistakes: each field of `Choices` is one, and its values say what implementations do.

The first value of a field is what sacref does. A value that no SAC should have is a mistake and stands in `MISTAKES`; others are choices
that papers leave open. "before" and "after" speak of the step of the gradient update that the used quantity takes itself.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple

BEFORE, AFTER = "before its step", "after its step"
NEWEST = "newest, the policy being stepped twice"
FRESH, FROZEN = "fresh", "that of the first update, for ever"
OWN, OWN_FROZEN = "its own", f"its own, {FROZEN}"


def one_of(about: str, *values: str) -> str:
    """Declare a field whose default is the first value."""
    declared: str = field(default=values[0], metadata={"about": about, "values": values})
    return declared


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Behaviour of an update where implementations of SAC differ; without arguments, sacref's.

    Raises:
        ValueError: if a field holds none of its values.
    """

    # The density of an action.
    squash: str = one_of("action from the Gaussian's sample", "tanh", "cut at the Box's bounds, not squashed")
    std: str = one_of(
        "standard deviation from the network's output",
        "exp, cut to [-20, 2]",
        "exp, cut to [-5, 2]",
        "exp, cut to [-10, 2]",
        "exp, bounded to [-5, 2] by a tanh",
        "exp, bounded to [-20, 2] by a tanh",
        "exp, not bounded",
        "softplus + 0.001",
        "biased softplus, at least 0.01",
    )
    log_prob: str = one_of(
        "log |da/du| of the tanh",
        "exact, from u",
        "log(1 - a^2 + 1e-6)",
        "log(1 - a^2 + 1.2e-7)",
        "log(max(1 - a^2, 1e-6))",
        "left out",
    )
    log_prob_units: str = one_of("units of the log-density", "of (-1, 1)", "of the Box")
    log_prob_dimensions: str = one_of("log-density over the action's dimensions", "sum", "mean")
    critic_actions: str = one_of("actions that the critics see", "in (-1, 1)", "in the Box's units")
    # The critics' target.
    target_value: str = one_of("target critics in the target", "min", "mean", "the first")
    target_entropy_term: str = one_of("- alpha log pi' in the target", "there", "left out")
    target_alpha: str = one_of("alpha in the target", BEFORE, AFTER)
    target_policy: str = one_of("policy in the target", BEFORE, AFTER)
    target_networks: str = one_of("target networks in the target", "before their average", "after their average", "none: the critics")
    target_noise: str = one_of("noise of the target", FRESH, "the policy's of the same update", FROZEN)
    termination: str = one_of("termination in the target", "cuts the target", "ignored")
    discount: str = one_of("discount factor", "as it was set", "rounded to bfloat16")
    target_rows: str = one_of("rows of values and targets", "paired", "each with each, (batch, batch)")
    # The critics' step.
    critic_loss: str = one_of(
        "critics' loss, by its gradient",
        "1/2 (Q - y)^2, summed over critics",
        "(Q - y)^2, summed over critics",
        "1/2 (Q - y)^2, mean over critics",
        "Huber, summed over critics",
        "1/2 (Q - y)^2, summed over the batch",
    )
    critic_gradient: str = one_of("gradient that a critic is stepped with", "its own", "the last critic's, for all")
    # The policy's step.
    policy_value: str = one_of("critics in the policy's loss", "min", "mean", "the first")
    policy_critics: str = one_of("critics that the policy sees", AFTER, BEFORE)
    policy_alpha: str = one_of("alpha in the policy's loss", BEFORE, AFTER, NEWEST)
    policy_entropy: str = one_of("alpha log pi in the policy's loss", "there", "left out", "with the wrong sign")
    policy_loss: str = one_of("policy's loss over the batch", "mean", "sum")
    policy_noise: str = one_of("noise of the policy's loss", FRESH, FROZEN)
    policy_steps: str = one_of("steps of the policy", "every update", "every second update", "every second update, two")
    # The temperature's step.
    temperature_loss: str = one_of(
        "temperature's loss", "log_alpha (log pi + H)", "alpha (log pi + H)", "none: it never moves", "with the wrong sign"
    )
    target_entropy: str = one_of("target entropy H by itself", "-dim", "-dim / 2", "0", "-1", "-dim^2", "dim")
    temperature_policy: str = one_of("policy in the temperature's loss", BEFORE, AFTER)
    temperature_noise: str = one_of("noise of the temperature's loss", "the policy's", OWN, OWN_FROZEN)
    # The optimizer and the target networks.
    adam_epsilon: str = one_of("Adam's epsilon", "1e-8", "1e-7", "1e-5", "1.5e-4")
    adam_epsilon_place: str = one_of("place of Adam's epsilon", "outside the root", "inside the root", "before the bias correction")
    adam_decays: str = one_of("Adam's decays", "0.9, 0.999", "0.5, 0.999", "0.9, 0.9")
    weight_decay: str = one_of("weight decay", "none", "decoupled, 0.01", "decoupled, 0.0001")
    averaging: str = one_of(
        "step of the target networks", "tau of the new critics", "tau of the critics before their step", "1 - tau of the new critics"
    )
    averaging_interval: str = one_of("target networks step at", "every update", "every second update")
    # Seen where the implementation has the option, or a loop of its own.
    clipping: str = one_of(
        "gradient clipping, where it is asked for",
        "norm of all critics, norm of the policy",
        "norm of each network",
        "element by element",
        "accepted and ignored",
    )
    schedule: str = one_of(
        "learning-rate factor, where it is asked for", "of the base rate", "multiplied in again at each step", "accepted and ignored"
    )
    temperature_schedule: str = one_of("the temperature's learning-rate factor", "of the base rate", "accepted and ignored")
    update_ratio: str = one_of("gradient steps, with several environments", "for each step of all of them", "for each transition")
    batches: str = one_of("batch of a gradient step", "its own", "one for all of an update")

    def __post_init__(self) -> None:
        for name, value in self.__dict__.items():
            if value not in VALUES[name]:
                raise ValueError(f"Choices: {name} is {value!r}, expected one of {', '.join(map(repr, VALUES[name]))}")

    def items(self) -> Iterator[tuple[str, str]]:
        """Iterate over the names and values of the fields."""
        return iter(self.__dict__.items())

    def mistakes(self) -> list["Mistake"]:
        """List those of `MISTAKES` that are in it."""
        return [mistake for mistake in MISTAKES if getattr(self, mistake.field) == mistake.value]

    def differences(self) -> dict[str, str]:
        """Return the fields that are not as sacref has them."""
        return {name: value for name, value in self.items() if value != VALUES[name][0]}


VALUES: Mapping[str, tuple[str, ...]] = {each.name: each.metadata["values"] for each in fields(Choices)}
"""Values by field, sacref's first."""
ABOUT: Mapping[str, str] = {each.name: each.metadata["about"] for each in fields(Choices)}
"""Title by field."""


class Mistake(NamedTuple):
    """A value of a field that no SAC should have."""

    field: str
    value: str
    title: str
    consequence: str


MISTAKES = (
    Mistake("log_prob", "left out", "no Jacobian of the tanh in the log-density", "the entropy is that of u, not of the action"),
    Mistake("log_prob_dimensions", "mean", "log-density averaged over the action's dimensions", "the entropy is too small by a factor"),
    Mistake("target_networks", "none: the critics", "targets without target networks", "the critics chase themselves"),
    Mistake("target_noise", FROZEN, "noise of the target frozen", "every update sees the same noise"),
    Mistake("policy_noise", FROZEN, "noise of the policy's loss frozen", "every update sees the same noise"),
    Mistake("temperature_noise", OWN_FROZEN, "noise of the temperature's loss frozen", "every update sees the same noise"),
    Mistake("termination", "ignored", "terminated transitions bootstrap", "a state after the end has a value"),
    Mistake("discount", "rounded to bfloat16", "discount factor in low precision", "0.99 becomes 0.988"),
    Mistake(
        "target_rows", "each with each, (batch, batch)", "values and targets broadcast", "the critics learn the mean target of the batch"
    ),
    Mistake("critic_gradient", "the last critic's, for all", "critics stepped with another critic's gradient", "the others learn nothing"),
    Mistake("policy_entropy", "left out", "no entropy in the policy's loss", "the policy collapses"),
    Mistake("policy_entropy", "with the wrong sign", "entropy minimised by the policy", "the policy collapses"),
    Mistake("temperature_loss", "none: it never moves", "a temperature that is asked to learn and does not", "alpha stays where it began"),
    Mistake("temperature_loss", "with the wrong sign", "temperature stepped away from its target", "alpha vanishes or explodes"),
    Mistake("target_entropy", "-1", "target entropy of -1 for every task", "many dimensions explore too much"),
    Mistake("target_entropy", "-dim^2", "target entropy of -dim^2", "exploration dies out"),
    Mistake("target_entropy", "dim", "target entropy with the wrong sign", "no policy inside the bounds can reach it"),
    Mistake("averaging", "1 - tau of the new critics", "tau and 1 - tau swapped", "target networks are the critics, but for one step"),
    Mistake("clipping", "element by element", "clipping by norm that clips element by element", "the gradient's direction changes"),
    Mistake("clipping", "accepted and ignored", "gradient clipping accepted and ignored", "nothing is clipped"),
    Mistake("schedule", "multiplied in again at each step", "learning-rate factor compounded", "the rate falls much faster than it should"),
    Mistake("schedule", "accepted and ignored", "learning-rate schedule accepted and ignored", "the rate stays"),
    Mistake("temperature_schedule", "accepted and ignored", "the temperature's schedule accepted and ignored", "its rate stays"),
    Mistake(
        "batches", "one for all of an update", "one batch for all gradient steps of an update", "the same rows are fitted again and again"
    ),
)


def is_mistake(name: str, value: str) -> bool:
    """Say whether no SAC should have this value."""
    return any((mistake.field, mistake.value) == (name, value) for mistake in MISTAKES)


def contradictions(choices: Choices) -> list[str]:
    """List values that cannot stand together, since each needs a step of the update before the other's."""
    found = []
    if choices.target_policy == AFTER and choices.policy_critics == AFTER:
        found.append("target_policy and policy_critics are both after their step")
    if choices.temperature_policy == AFTER and choices.policy_alpha == AFTER:
        found.append("temperature_policy and policy_alpha are both after their step")
    if choices.temperature_policy == AFTER and choices.target_alpha == AFTER and choices.policy_critics == AFTER:
        found.append("target_alpha, temperature_policy and policy_critics are all after their step")
    if choices.target_networks == "after their average" and choices.averaging != "tau of the critics before their step":
        found.append("target_networks are those after an average of critics that wait for them")
    if choices.policy_alpha == NEWEST and choices.policy_steps != "every second update, two":
        found.append("policy_alpha changes between two steps of a policy that takes one")
    return found


def canonical(choices: Choices) -> Choices:
    """Replace values that another one leaves without effect by sacref's, so that equal updates are equal choices."""
    changed: Mapping[str, tuple[str, ...]] = {}
    if choices.squash != "tanh":
        changed = {"log_prob": (), "log_prob_units": ()}
    if choices.target_entropy_term == "left out":
        changed = {**changed, "target_alpha": ()}
    if choices.policy_entropy == "left out":
        changed = {**changed, "policy_alpha": ()}
    if choices.temperature_loss == "none: it never moves":
        names = ("target_alpha", "policy_alpha", "target_entropy", "temperature_policy", "temperature_noise", "temperature_schedule")
        changed = {**changed, **dict.fromkeys(names, ())}
    if choices.schedule == "accepted and ignored":
        changed = {**changed, "temperature_schedule": ()}
    return replace(choices, **{name: VALUES[name][0] for name in changed})
