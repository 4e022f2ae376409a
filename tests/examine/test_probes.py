"""The checks beyond the update: each finds the mistake that was put in, and none where there is none."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from sacref.algorithm.data import Batch
from sacref.examine import probes
from sacref.examine.adapter import AdapterError
from sacref.examine.adapters.oracle import OracleAdapter
from sacref.examine.choices import VALUES, Choices
from sacref.examine.oracle import Moments
from sacref.examine.probes import COLLECTED, STORED, WINDOWS, Finding, played, windowed
from sacref.examine.problem import Problem, ordinary
from sacref.parity.networks import Floats, Seen, forward
from tests.examine import planted

PROBLEM = Problem()
SCENE = ordinary(PROBLEM)
TANH, CUT = VALUES["squash"]


def present(findings: Any) -> dict[str, tuple[str, str]]:
    """Mistakes that are there: what was got, and what was expected."""
    return {finding.mistake: (finding.got, finding.expected) for finding in findings if finding.status == "present"}


def statuses(findings: Any) -> set[str]:
    return {finding.status for finding in findings}


def test_the_log_density_of_a_form_is_judged_where_the_tanh_saturates() -> None:
    assert probes.log_density([Choices()]).status == "absent"
    found = probes.log_density([Choices(log_prob="log(1 - a^2 + 1e-6)")])
    assert found.status == "present"
    assert found.got == "-13.8 nats at u = 20; -13.8 nats at u = 50"
    assert found.expected == "-38.6 nats at u = 20; -98.6 nats at u = 50"
    assert probes.log_density([]).status == "not checkable"


def test_twins_that_start_equal_and_targets_that_are_no_copies_are_found() -> None:
    agent = OracleAdapter()
    agent.make(PROBLEM)
    weights = agent.weights()
    assert statuses(probes.start(weights)) == {"absent"}
    alike = {name: weights[name.replace("critic_2", "critic_1")] for name in weights}
    assert present(probes.start(alike)) == {"twin critics that start equal": ("critic_1 and critic_2 are equal", "other weights")}
    found = present(probes.start(weights | {"target_critic_2.head.bias": weights["target_critic_2.head.bias"] + 1}))
    assert list(found) == ["target networks that do not start as copies"]


class Acts(OracleAdapter):
    """An oracle whose actions are changed on the way."""

    def __init__(self, changed: Callable[..., Floats]) -> None:
        super().__init__()
        self._changed = changed

    def act(self, observations: Floats, *, deterministic: bool) -> Floats:
        return self._changed(super().act, observations, deterministic)


@pytest.mark.parametrize(
    ("changed", "mistakes"),
    [
        (
            lambda act, o, d: act(o, deterministic=not d),
            {"deterministic actions that are not the policy's mean", "exploration without fresh noise"},
        ),
        (lambda act, o, d: act(o, deterministic=d) / PROBLEM.bound, {"actions that do not fill the Box", "actions outside the Box"}),
        (lambda act, o, d: act(o, deterministic=d) / 2, {"actions that do not fill the Box"}),
        (lambda act, o, d: act(o, deterministic=True), {"exploration without fresh noise"}),
        (lambda act, o, d: act(o, deterministic=d), set()),
    ],
    ids=["flag inverted", "in (-1, 1)", "halved", "no noise", "none"],
)
def test_how_an_agent_acts_is_checked(changed: Callable[..., Floats], mistakes: set[str]) -> None:
    assert set(present(probes.acting(Acts(changed), SCENE, [TANH]))) == mistakes


def test_means_beyond_the_box_that_are_not_cut_are_found() -> None:
    generator = np.random.default_rng(0)

    def act(_: Callable[..., Floats], observations: Floats, deterministic: bool) -> Floats:
        mean = np.split(forward(SCENE.weights, "policy", Seen(observations))[0], 2, axis=-1)[0]
        return mean if deterministic else generator.uniform(-PROBLEM.bound, PROBLEM.bound, mean.shape)

    assert set(present(probes.acting(Acts(act), SCENE, [CUT]))) == {"actions outside the Box"}


@pytest.mark.parametrize("squash", [TANH, CUT])
def test_an_update_that_is_not_identified_may_act_by_each_form(squash: str) -> None:
    assert statuses(probes.acting(OracleAdapter(squash=squash), SCENE, [])) == {"absent"}


def test_actions_of_no_form_are_a_mistake_only_where_the_form_is_known() -> None:
    agent = Acts(lambda act, o, d: act(o, deterministic=d) * (1 - 0.1 * d * act(o, deterministic=True)))
    title = "deterministic actions that are not the policy's mean"
    for squash, status in (([TANH], "present"), ([], "not checkable")):
        first = next(probes.acting(agent, SCENE, squash))
        assert first[:2] == (title, status)


def test_an_agent_that_learns_when_it_acts_is_refused() -> None:
    def learn(act: Callable[..., Floats], observations: Floats, deterministic: bool) -> Floats:
        agent.agent.weights["policy.head.bias"] = agent.agent.weights["policy.head.bias"] + 1
        return act(observations, deterministic=deterministic)

    agent = Acts(learn)
    with pytest.raises(AdapterError, match=r"NumPy oracle: act\(\) changes policy.head.bias, expected weights as they were: act without"):
        list(probes.acting(agent, SCENE, [TANH]))


class Forgets(OracleAdapter):
    """An oracle that leaves something of a checkpoint behind."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def load(self, path: Path) -> None:
        made = self.weights()
        super().load(path)
        if self.what == "moments":
            self.agent.moments = {name: Moments.none(array) for name, array in self.agent.weights.items()}
        for name in made:
            if name.startswith(self.what):
                self.agent.weights[name] = made[name]


@pytest.mark.parametrize(
    ("what", "lost"),
    [
        ("log_alpha", "temperature"),
        ("target_", "target networks"),
        ("moments", "the optimizer of the critics, the optimizer of the policy, the optimizer of the temperature"),
    ],
)
def test_what_a_loaded_agent_forgets_is_found(what: str, lost: str) -> None:
    assert probes.saving(Forgets(what), SCENE)[:3] == ("a loaded agent that forgets", "present", f"lost: {lost}")


def test_a_loaded_agent_that_forgets_nothing_is_fine() -> None:
    assert probes.saving(OracleAdapter(), SCENE).status == "absent"
    assert probes.saving(OracleAdapter(temperature_loss="none: it never moves"), SCENE).status == "absent"


class Halfway(OracleAdapter):
    """An oracle that steps its policy at every second update, and loads without its counter, without the moments of what waits, or both."""

    def __init__(self, forgotten: str) -> None:
        super().__init__(policy_steps="every second update")
        self._forgotten = forgotten

    def load(self, path: Path) -> None:
        super().load(path)
        if self._forgotten != "moments":
            self.agent.updates = 0
        if self._forgotten != "counter":
            waiting = {name: array for name, array in self.agent.weights.items() if name.startswith(("policy", "log_alpha"))}
            self.agent.moments |= {name: Moments.none(array) for name, array in waiting.items()}


@pytest.mark.parametrize("forgotten", ["all", "counter", "moments"])
def test_what_steps_at_every_second_update_is_not_forgotten_unseen(forgotten: str) -> None:
    found = probes.saving(Halfway(forgotten), SCENE)
    assert found[:3] == (
        "a loaded agent that forgets",
        "present",
        "lost: the optimizer of the policy, the optimizer of the temperature",
    )


def test_a_delay_that_outlasts_the_updates_leaves_a_loaded_agent_unchecked() -> None:
    found = probes.saving(planted.Delayed(planted.NEVER, "policy", "log_alpha"), SCENE)
    assert (found.status, found.why) == ("not checkable", "no step in the 2 updates after loading: policy")


def rows(**wrong: bool) -> list[Finding]:
    """Findings about what a loop stores of two episodes, with a mistake in it."""
    return list(probes.stored(planted.collected(PROBLEM, **wrong)))


@pytest.mark.parametrize(("wrong", "title"), list(zip(("truncated", "unterminated", "resets", "leaks", "repeats"), COLLECTED, strict=True)))
def test_what_a_loop_stores_of_episodes_that_end_is_checked(wrong: str, title: str) -> None:
    assert list(present(rows(**{wrong: True}))) == [title]


def test_a_mistake_under_one_autoreset_mode_names_it() -> None:
    class Leaks(planted.Complete):
        def collect(self, make_env: Any, num_envs: int, steps: int, autoreset_mode: AutoresetMode) -> Batch[Floats]:
            return planted.collected(PROBLEM, leaks=autoreset_mode == AutoresetMode.SAME_STEP)

    assert present(probes.collecting(Leaks(), PROBLEM)) == {COLLECTED[3]: ("1 rows of 1 ends under SAME_STEP", "none")}


def test_the_successor_of_a_terminated_row_may_be_any() -> None:
    assert statuses(rows(leaks_terminated=True)) == {"absent"}


def test_a_loop_that_stores_what_happened_is_fine() -> None:
    assert statuses(rows()) == {"absent"}


def windows(**wrong: bool) -> list[Finding]:
    """Findings about a ring of rows whose windows have a mistake."""
    rows, truncated = played(PROBLEM, STORED)
    return list(windowed(planted.windows(rows, truncated, **wrong), rows.observations[-1]))


@pytest.mark.parametrize(
    ("wrong", "titles", "follows"),
    [
        ("exponent", WINDOWS[:1], "values of other steps are discounted as if they were n steps away"),
        ("round", WINDOWS[1:2], "the newest rows are followed by the oldest ones"),
        ("on", WINDOWS[2:], "rewards leak from one episode into the next"),
        ("first_end", WINDOWS[2:], "a state after the end has a value"),
        ("cut", WINDOWS[2:], "a task that only truncates learns that its end is worth nothing"),
    ],
)
def test_windows_of_several_steps_are_checked(wrong: str, titles: tuple[str, ...], follows: str) -> None:
    found = windows(**{wrong: True})
    assert tuple(present(found)) == titles
    assert {each.why for each in found if each.status == "present"} == {follows}


def test_the_successor_of_a_terminated_window_may_be_any() -> None:
    assert statuses(windows(gathers=True)) == {"absent"}


def test_windows_that_end_where_they_should_are_fine() -> None:
    assert statuses(windows()) == {"absent"}


@pytest.mark.parametrize("name", ["update_ratio", "batches"])
@pytest.mark.parametrize("place", [0, 1])
def test_gradient_steps_of_a_loop_and_their_batches_are_named(name: str, place: int) -> None:
    found, unseen = probes.training(OracleAdapter(**{name: VALUES[name][place]}), PROBLEM)
    assert found == {"update_ratio": [VALUES["update_ratio"][0]], "batches": [VALUES["batches"][0]]} | {name: [VALUES[name][place]]}
    assert unseen == {}


def test_other_numbers_of_gradient_steps_are_said() -> None:
    class Skips(OracleAdapter):
        def train(self, *arguments: Any) -> Sequence[Floats]:
            drawn = list(super().train(*arguments))
            return [*drawn[::2], drawn[-1]]

    found, unseen = probes.training(Skips(), PROBLEM)
    assert found["update_ratio"] == []
    assert unseen["update_ratio"] == "0.5 gradient steps for each step of 4 environments"


def test_what_an_adapter_does_not_offer_is_not_checkable() -> None:
    bare = type("Bare", (), {"name": "bare"})()
    findings = [
        *probes.acting(bare, SCENE, []),
        probes.saving(bare, SCENE),
        *probes.collecting(bare, PROBLEM),
        *probes.windows(bare, PROBLEM),
    ]
    assert statuses(findings) == {"not checkable"}
    assert {finding.why for finding in findings} == {
        "the adapter has no act()",
        "the adapter has no save() and load()",
        "the adapter has no collect()",
        "the adapter has no windows()",
    }
