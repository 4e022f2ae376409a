"""A whole examination: what is planted is in it, sacref's own agents are clean, and the command says so."""

import importlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sacref.cli import main as cli
from sacref.examine import Examination, Problem, examination, examine, markdown, probes, record, report
from sacref.examine.adapter import record as observe
from sacref.examine.adapters import load
from sacref.examine.adapters.oracle import OracleAdapter
from sacref.examine.choices import MISTAKES, VALUES, Choices
from sacref.examine.identify import identify
from sacref.examine.problem import ordinary, scenes
from sacref.parity.networks import Arrays
from sacref.storage.checkpoint import read_json
from tests.examine import planted as planted_oracle

PLANTS = planted_oracle.plants()


class Planted(OracleAdapter):
    """What the command line below examines."""

    def __init__(self) -> None:
        super().__init__("planted", log_prob="log(1 - a^2 + 1e-6)", policy_noise="that of the first update, for ever")


@pytest.fixture(scope="module")
def planted() -> Examination:
    return examine(
        OracleAdapter(
            "planted",
            target_alpha="after its step",
            clipping="element by element",
            schedule="multiplied in again at each step",
            temperature_schedule="accepted and ignored",
            target_entropy="-1",
        )
    )


@pytest.mark.parametrize("name", ["clipping", "schedule", "temperature_schedule"])
def test_each_option_is_named(name: str) -> None:
    for value in VALUES[name]:
        adapter = OracleAdapter(**{name: value})
        found, unseen = examination.options(adapter, Problem(), adapter.choices, (0, 1))
        assert found == {each: [getattr(adapter.choices, each)] for each in ("clipping", "schedule", "temperature_schedule")}
        assert unseen == {}


def test_clipping_is_named_where_the_policy_is_stepped_twice() -> None:
    adapter = OracleAdapter(policy_steps="every second update, two", policy_alpha="newest, the policy being stepped twice")
    found, unseen = examination.options(adapter, Problem(), adapter.choices, (0, 1))
    assert (found["clipping"], unseen) == (["norm of all critics, norm of the policy"], {})


def test_choices_and_mistakes_are_kept_apart(planted: Examination) -> None:
    assert planted.identified
    assert {name: values for name, values in planted.choices.items() if list(values) != [VALUES[name][0]]} == {
        "target_alpha": ["after its step"],
        "clipping": ["element by element"],
        "schedule": ["multiplied in again at each step"],
        "temperature_schedule": ["accepted and ignored"],
        "target_entropy": ["-1"],
    }
    assert [finding.mistake for finding in planted.mistakes] == [
        "target entropy of -1 for every task",
        "clipping by norm that clips element by element",
        "learning-rate factor compounded",
        "the temperature's schedule accepted and ignored",
    ]
    assert [(finding.got, finding.expected) for finding in planted.mistakes[:2]] == [
        ("-1", "-dim"),
        ("element by element", "norm of all critics, norm of the policy"),
    ]
    assert max(planted.differences.values()) == 0.0


def test_a_record_holds_all_of_it(planted: Examination) -> None:
    value = json.loads(json.dumps(record(planted)))
    assert (value["suite"], value["identified"], value["left"], value["updates"]) == ("examined", True, None, 6)
    assert value["choices"]["target_alpha"] == ["after its step"]
    assert len(value["findings"]) == len(MISTAKES) + 17
    assert [finding["mistake"] for finding in value["findings"] if finding["status"] == "present"] == [
        each.mistake for each in planted.mistakes
    ]


def test_each_finding_has_a_plant(planted: Examination) -> None:
    assert [finding.mistake for finding in planted.findings] == list(PLANTS)


@pytest.mark.full
@pytest.mark.parametrize("title", PLANTS)
def test_each_plant_is_found(title: str) -> None:
    found = examine(PLANTS[title])
    follows = {planted_oracle.SATURATES} if title.startswith("no Jacobian") else set()
    assert {finding.mistake for finding in found.mistakes} == {title} | follows


def test_the_page_says_what_differs_from_sacref(planted: Examination) -> None:
    page = markdown(planted)
    assert "planted (numpy" in page
    assert "One combination of choices reproduces 6 updates in float64 to 0.0e+00 relative. 4 known mistakes." in page
    assert "| alpha in the target | after its step | before its step |" in page
    assert "| target entropy of -1 for every task | present | -1 | -dim | many dimensions explore too much |" in page


def test_the_command_ends_with_1_where_a_mistake_is_present(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{Planted.__module__}:Planted"
    assert cli.main(["examine", name, "--json", str(tmp_path / "a.json"), "--markdown", str(tmp_path / "new" / "a.md")]) == 1
    value = json.loads((tmp_path / "a.json").read_text())
    mistakes = [(finding["mistake"], finding["got"]) for finding in value["findings"] if finding["status"] == "present"]
    assert mistakes == [
        ("noise of the policy's loss frozen", "that of the first update, for ever"),
        ("log-density wrong where the tanh saturates", "-13.8 nats at u = 20; -13.8 nats at u = 50"),
    ]
    assert (tmp_path / "new" / "a.md").read_text().startswith("# planted\n")
    assert "2 known mistakes" in " ".join(capsys.readouterr().out.split())


class Broken(OracleAdapter):
    """An adapter with a mistake of its own."""

    def weights(self) -> Arrays:
        raise KeyError("actor")


def test_an_adapter_that_crashes_is_no_known_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    name = f"{Broken.__module__}:Broken"
    assert cli.main(["examine", name]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"sacref: examine: {name} raised KeyError: 'actor': mend the adapter, or what it calls\n(RuntimeError; ")
    assert said.count("\n") == 2


class Absent(OracleAdapter):
    """An adapter whose library is not installed."""

    def make(self, problem: Problem) -> None:
        importlib.import_module("nowhere")


def test_a_library_that_is_not_installed_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["examine", f"{Absent.__module__}:Absent"]) == 2
    assert "imports nowhere, expected it to be installed beside sacref: install it, or" in " ".join(capsys.readouterr().err.split())


def test_a_policy_that_never_learns_is_said_in_strict_json(tmp_path: Path) -> None:
    found = examine(planted_oracle.Delayed(planted_oracle.NEVER, "policy", "log_alpha"))
    assert found.left is not None
    assert (found.left.quantity, found.left.update) == ("new policy: it never moves in 4 updates", 3)
    assert (found.choices["policy_steps"], found.choices["policy_loss"]) == ([], [])
    assert [(each.mistake, each.got) for each in found.mistakes] == [("a policy that never learns", "no step in 32 updates")]
    assert "update 4 of the ordinary data leaves them at the new policy: it never moves in 4 updates. 1 known" in markdown(found)
    report.write(record(found), tmp_path / "a.json")
    assert read_json(tmp_path / "a.json")["left"]["difference"] is None


def test_a_policy_with_a_long_delay_learns() -> None:
    agent = planted_oracle.Delayed(5, "policy", "log_alpha")
    assert probes.learning(agent, [observe(agent, ordinary(Problem()))]).status == "absent"


@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.full)])
def test_sacrefs_own_agents_are_clean(backend: str) -> None:
    pytest.importorskip(backend)
    found = examine(load(f"sacref-{backend}"), problem=Problem(seed=3))
    assert found.identified
    assert [dict(each.differences()) for each in found.combinations] == [{}]
    assert max(found.differences.values()) < 1e-9
    assert {finding.status for finding in found.findings} == {"absent"}


@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.full)])
@pytest.mark.parametrize("examples", [1, pytest.param(50, marks=pytest.mark.full)])
def test_there_is_no_false_alarm_on_sacrefs_own_agents(backend: str, examples: int) -> None:
    pytest.importorskip(backend)
    adapter = load(f"sacref-{backend}")

    @settings(max_examples=examples, database=None, deadline=None)
    @given(st.integers(0, 2**32))
    def clean(seed: int) -> None:
        trajectories = [observe(adapter, scene) for scene in scenes(Problem(seed=seed))]
        found = list(identify(trajectories).combinations)
        assert found[0] == Choices()
        # One critic may be the least in all rows; a whole examination then draws other data.
        assert [each.mistakes() for each in found] == [[]] * len(found)

    clean()


class Narrow(OracleAdapter):
    """An oracle that cannot compute in float64."""

    dtype = "float32"


def test_an_update_in_float32_is_identified() -> None:
    planted = {"target_value": "mean", "target_entropy": "-dim / 2"}
    found = examine(Narrow("narrow", **planted))
    assert (found.identified, found.dtype) == (True, "float32")
    assert {name: found.choices[name] for name in planted} == {name: [value] for name, value in planted.items()}
    assert found.choices["std"] == ["exp, cut to [-20, 2]", "exp, cut to [-10, 2]"]
    assert len(found.combinations) == 2
    assert max(found.differences.values()) <= 1e-5


def test_float32_says_what_it_cannot_tell_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "MORE", 0)
    found = examine(Narrow("narrow", log_prob="log(1 - a^2 + 1e-6)"))
    assert found.identified
    assert {name: values for name, values in found.choices.items() if len(values) > 1} == {
        "std": ["exp, cut to [-20, 2]", "exp, cut to [-10, 2]"],
        "log_prob": ["log(1 - a^2 + 1e-6)", "log(max(1 - a^2, 1e-6))"],
    }
    assert [finding.mistake for finding in found.mistakes] == [planted_oracle.SATURATES]


def test_other_data_are_drawn_where_several_combinations_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without saturated actions and wide deviations, nothing tells the bounds of the standard deviation apart.
    monkeypatch.setattr(examination, "scenes", lambda problem: [ordinary(problem)] if problem.seed == 0 else scenes(problem))
    assert len(identify([observe(OracleAdapter(), ordinary(Problem()))]).combinations) > 1
    found = examine(OracleAdapter())
    assert (len(found.combinations), found.updates) == (1, 10)
