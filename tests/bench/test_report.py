"""The report says what the records hold, repeats itself, and notices when it is out of date."""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bench import report
from bench.core import pictures, record
from bench.core.record import Hardware, Record
from bench.core.samples import Timing
from bench.suites.amp import plots
from bench.suites.amp import section as amp
from bench.suites.amp.samples import AmpCell, AmpSamples
from bench.suites.learning import runs
from bench.suites.learning import section as learning
from bench.suites.learning.presets import Comparison, Preset
from bench.suites.learning.published import published
from bench.suites.learning.samples import Evaluation, LearningSamples, Session
from bench.suites.population import section as population
from bench.suites.population.samples import PopulationCell, PopulationSamples
from bench.suites.recurrent import section as recurrent
from bench.suites.recurrent.samples import ProductCell, RecurrentCell, RecurrentSamples
from bench.suites.rollout.samples import ActCell, EnvironmentCell, LoopCell, PartCell, RolloutSamples
from bench.suites.throughput import section as throughput
from bench.suites.throughput.samples import Contender, Round, ThroughputSamples
from bench.suites.update.samples import MatmulCell, UpdateCell, UpdateSamples

HARDWARE = Hardware(cpu_model="A CPU", cores=4, threads=1, memory_bytes=2**30, accelerator=None)
SESSIONS = [
    Session(started="", resumed=False, wall_seconds=600.0, cpu_seconds=600.0, members=1, energy_joules=None),
    Session(started="", resumed=True, wall_seconds=400.0, cpu_seconds=400.0, members=1, energy_joules=None),
]


RENDER = pictures.write


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made and not rendered, which takes most of the time."""

    def write(path: Path, picture: pictures.Picture, theme: pictures.Theme) -> None:
        assert picture.draw().get_axes()
        said = PngInfo()
        said.add_text("Description", picture.digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (1, 1), theme.paper).save(path, pnginfo=said)

    monkeypatch.setattr(pictures, "write", write)


def run(backend: str, seed: int, last: float, **changes: Any) -> Record[Any]:
    """A run of 100,000 steps that ends at return `last`."""
    written = Record(
        schema_version=record.SCHEMA_VERSION,
        suite="learning",
        run=f"headline-{backend}-seed{seed}",
        date="2026-01-02T03:04:05+00:00",
        sacref_version="0.1.0",
        commit="0123456789abcdef",
        dirty=False,
        configuration={"preset": "headline", "env": "HalfCheetah-v5", "backend": backend, "steps": 100_000},
        hardware=HARDWARE,
        libraries={"numpy": "2"},
        seed=seed,
        compile_seconds=None,
        samples=LearningSamples(
            evaluations=[
                Evaluation(step=50_000, returns=[last / 2], seconds=None),
                Evaluation(step=100_000, returns=[last - 100, last + 100], seconds=None),
            ],
            sessions=SESSIONS,
        ),
    )
    return replace(written, **changes)


def rounds(*seconds: float) -> list[Round]:
    return [Round(steps=100, seconds=each, waited_seconds=None, waited_cpu_seconds=None) for each in seconds]


def contender(name: str, library: str, *seconds: float, **changes: Any) -> Contender:
    """One of 100 steps a round, strict."""
    known: dict[str, Any] = {
        "compile_seconds": 1.25,
        "missing": None,
        "strictness": "strict",
        "execution": "eager",
        "libraries": {library: "1"},
        "env": None,
        "accelerator": None,
        "settings": {},
        "note": None,
        **changes,
    }
    return Contender(name=name, library=library, rounds=rounds(*seconds), **known)


PEERS = (
    contender("Stable-Baselines3", "torch", 4.0, 4.0, 4.0),
    contender("CleanRL", "torch", 2.0, 2.0, 2.0, env="HalfCheetah-v4", note="Half of it.", libraries={"torch": "0"}),
    contender("SBX strict", "jax", 1.25, 1.25, 1.25),
    contender("SBX scan", "jax", 0.5, 0.5, 0.5, strictness="chunked (up to 64 steps old)"),
)


def speeds(peers: Sequence[Contender] = PEERS) -> Record[Any]:
    contenders = [
        contender("sacref torch strict", "torch", 1.0, 0.5, 2.0, compile_seconds=0.0),
        contender("sacref jax chunked", "jax", 0.25, 0.5, 0.2, strictness="chunked (up to 64 steps old)", execution="scan"),
        *peers,
    ]
    return replace(
        run("torch", 0, 0.0),
        suite="throughput",
        run="speed",
        configuration={"env": "HalfCheetah-v5"},
        samples=ThroughputSamples(contenders=contenders),
    )


ABSENT = replace(PEERS[0], rounds=[], compile_seconds=None, execution=None, missing="absent")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Three seeds of each backend, and a throughput run."""
    for backend, finals in {"torch": (5000.0, 5500.0, 6000.0), "jax": (5400.0, 5600.0, 6100.0)}.items():
        for seed, last in enumerate(finals):
            record.write(tmp_path / "learning" / "2026-01-02-a" / f"{backend}{seed}.json", run(backend, seed, last))
    record.write(tmp_path / "throughput" / "2026-01-02-a" / "speed.json", speeds())
    return tmp_path


def names(written: Sequence[Path]) -> set[str]:
    """Of the files; each picture once, which there is for a dark page too."""
    assert {path.stem.removesuffix("-dark") for path in written if path.stem.endswith("-dark")} == {
        path.stem for path in written if path.suffix == ".png" and not path.stem.endswith("-dark")
    }
    return {path.name for path in written if not path.stem.endswith("-dark")}


def row(results: Path, start: str) -> list[str]:
    """The cells of the page's row that starts with `start`."""
    line = next(line for line in (results / "README.md").read_text().splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_holds_the_final_evaluations(results: Path) -> None:
    report.build(results)
    cells = row(results, "torch")
    # Mean 5,500, std 500; half width of the t interval 4.302653 * 500 / sqrt(3) = 1,242; 100,000 steps in 1,000 seconds.
    assert cells[:5] == ["torch", "0, 1, 2", "5,500", "500", "[4,258, 6,742]"]
    assert cells[6:] == ["5,000, 5,500, 6,000", "5,500", "5,500 at 100,000", "100"]
    text = (results / "README.md").read_text()
    assert "final evaluation of 10 deterministic episodes" in text.replace("\n", " ")
    assert "The backends' intervals of the mean overlap." in text
    assert "environment steps and over wall-clock, PyTorch and JAX" in text, "the libraries of the runs that there are"
    assert "sacref 0.1.0, commit 0123456789, on A CPU, 4 cores; each run on 1 core; 2026-01-02." in text


def test_the_page_begins_with_its_findings(results: Path) -> None:
    report.build(results)
    text = (results / "README.md").read_text()
    summary = text[text.index("## In short") : text.index("## Learning")]
    (found,) = re.findall(
        r"^\| Return, HalfCheetah-v5, evaluation after 100,000 steps \| (.*) \| \[Learning\]\(#learning\) \|$", summary, re.MULTILINE
    )
    assert found.startswith("torch **5,500** (3 seeds; ")
    assert "; jax **5,700** (3 seeds; " in found
    # The runs have 5,000 random steps and the paper's target entropy, as none of the sources.
    assert found.count("other settings: SimbaV2's SAC, SB3's zoo, jaxrl, nnabla-rl, Tianshou)") == 2
    assert "below" not in found
    assert "Published: SimbaV2's SAC 6,156 (HalfCheetah-v4), SB3's zoo 4,961 (HalfCheetah-v3), jaxrl 5,794 (HalfCheetah-v2), " in found
    speed = "strict: sacref torch strict 100, **1.25 times** the fastest peer (SBX strict, 80); any policy: sacref jax chunked 400,"
    assert f"| Environment steps per second, HalfCheetah-v5, A CPU, 4 cores, 1 of them used | {speed} **2.00 times**" in summary
    # Deviations 500 and 361 over three: an error of 6.355% of the mean, 3.637 degrees of freedom, t(0.95) = 2.194.
    equivalent = "HalfCheetah-v5 equivalent, -3.6% [-17.5%, +10.4%] of the mean, a 90% interval (3 and 3 runs)"
    assert f"| Equivalence of PyTorch and JAX, within 20% of the return | {equivalent} |" in summary
    assert "\nBrackets are 95% intervals unless said: a difference whose interval holds 0 is not shown to be one." in summary


def test_intervals_apart_are_said_to_be(tmp_path: Path) -> None:
    for backend, finals in {"torch": (1000.0, 1001.0), "jax": (9000.0, 9001.0)}.items():
        for seed, last in enumerate(finals):
            record.write(tmp_path / "learning" / "2026-01-02-a" / f"{backend}{seed}.json", run(backend, seed, last))
    report.build(tmp_path)
    assert "intervals of the mean do **not** overlap" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(("finals", "verdict"), [((5000.0, 6000.0, 7000.0), "overlap"), ((20.0, 21.0, 22.0), "do **not** overlap")])
def test_a_chunked_preset_stands_beside_the_strict_one(results: Path, finals: tuple[float, ...], verdict: str) -> None:
    configuration = {"preset": "headline-chunked", "env": "HalfCheetah-v5", "backend": "jax", "steps": 100_000, "settings": {"chunk": 64}}
    for seed, last in enumerate(finals):
        written = run("jax", seed, last, configuration=configuration, run=f"headline-chunked-jax-seed{seed}")
        record.write(results / "learning" / "2026-01-02-a" / f"chunked{seed}.json", written)
    report.build(results)
    text = (results / "README.md").read_text()
    strict, chunked = (
        text.index("### HalfCheetah-v5, 100,000 steps\n"),
        text.index("### HalfCheetah-v5 (headline-chunked), 100,000 steps\n"),
    )
    assert strict < text.index("| published | task |") < chunked
    mean = sum(finals) / 3
    (sentence,) = re.findall(r"A policy up to 64 steps old beside the strict one. (.*)", text)
    assert re.fullmatch(
        rf"jax, chunked {mean:,.0f} \[.*\], strict 5,700 \[.*\]: the intervals of the mean {re.escape(verdict)}\.", sentence
    )


GRU = Preset(
    name="some-gru",
    title="A task, hidden, GRU",
    env="Task-v0",
    steps=100_000,
    evaluation_interval=50_000,
    seeds=(0, 1, 2),
    settings={"learning_rate": 1e-3, "random_timesteps": 1_500, "batch_size": 32},
    arguments={"wrappers": ("sacref.envs.partial:HideVelocities",), "hidden": (64, 64), "recurrent": "gru"},
)
BESIDE = dataclasses.replace(GRU, name="some", title="A task, hidden", arguments={"hidden": (64, 64)})
COMPARED = Comparison(name="memory", question="Does it matter?", preset="some-gru", label="GRU", beside="some", beside_label="feed-forward")


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two presets that are compared, and no others."""
    monkeypatch.setattr(runs, "PRESETS", {preset.name: preset for preset in (GRU, BESIDE)})
    monkeypatch.setattr(learning, "COMPARISONS", (COMPARED,))


def write_runs(results: Path, preset: Preset, finals: dict[str, tuple[float, ...]], **changes: Any) -> None:
    """Records of a preset: backend -> return of each seed."""
    chosen = {"preset": preset.name, "env": preset.env, "steps": preset.steps, "settings": preset.settings, "arguments": preset.arguments}
    for backend, values in finals.items():
        for seed, last in enumerate(values):
            name = f"{preset.name}-{backend}-seed{seed}"
            configuration = {**chosen, "backend": backend, **changes}
            record.write(
                results / "learning" / "2026-01-02-a" / f"{name}.json", run(backend, seed, last, run=name, configuration=configuration)
            )


@pytest.mark.usefixtures("compared")
def test_a_group_is_titled_by_its_preset_and_says_what_it_ran(tmp_path: Path) -> None:
    write_runs(tmp_path, GRU, {"jax": (-200.0,)})
    report.build(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "\n### A task, hidden, GRU, 100,000 steps\n" in text
    assert (
        "Settings that differ: learning_rate 0.001; random_timesteps 1,500; batch_size 32; wrappers HideVelocities; hidden 64, 64;"
        " recurrent gru.\n"
    ) in text
    assert "Settings, where a group names no others: batch 256," in text


@pytest.mark.usefixtures("compared")
def test_a_title_that_the_records_do_not_bear_out_is_not_used(tmp_path: Path) -> None:
    write_runs(tmp_path, GRU, {"jax": (-200.0,)}, settings={"batch_size": 16})
    report.build(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "### Task-v0 (some-gru), 100,000 steps\n" in text
    assert GRU.title not in text
    assert "Settings that differ: batch_size 16; wrappers HideVelocities;" in text


def test_what_was_published_of_the_task_is_not_held_against_another(tmp_path: Path) -> None:
    configuration = {"preset": "some", "env": "HalfCheetah-v5", "backend": "jax", "steps": 100_000, "arguments": {"hidden": [64, 64]}}
    record.write(tmp_path / "learning" / "2026-01-02-a" / "jax0.json", run("jax", 0, 1.0, configuration=configuration))
    report.build(tmp_path)
    assert "Published" not in (tmp_path / "README.md").read_text()


@pytest.mark.usefixtures("compared")
def test_two_agents_are_compared_by_the_difference_of_their_means(tmp_path: Path) -> None:
    write_runs(tmp_path, GRU, {"torch": (-300.0, -200.0, -100.0), "jax": (-1_150.0, -1_000.0, -150.0)})
    assert "difference" not in "".join(learning.section(tmp_path).paragraphs)
    write_runs(tmp_path, BESIDE, {"torch": (-1_300.0, -1_200.0, -1_100.0), "jax": (-1_200.0, -1_000.0)})
    written = report.build(tmp_path)
    assert names(written) == {"some-gru.png", "some.png", "memory.png", "curves.csv", "curves.npz", "README.md"}
    text = (tmp_path / "README.md").read_text()
    assert "\n### Does it matter? Task-v0, 100,000 steps\n" in text
    assert "GRU: A task, hidden, GRU; feed-forward: A task, hidden. A difference" in text
    table = text[text.index("| backend | GRU: mean, 95% |") :].splitlines()
    # Standard error 100 sqrt(2 / 3) with four degrees of freedom: 2.776 * 81.65 = 227. Half widths of the means: 4.303 * 100 / sqrt(3).
    assert table[2] == "| torch | -200 [-448, 48] | -1,200 [-1,448, -952] | 1,000 | [773, 1,227] | 1.00 | 3 |"
    assert re.match(r"\| jax \| -767 \[.*\] \| -1,100 \[.*\] \| 333 \| \[-.*\] \| 0.75 \| 3 and 2 \|", table[3])
    assert ("Overlap of the means' intervals: torch **no**; jax yes. Interval of the difference: torch clear of 0; jax holds 0.") in text
    assert report.build(tmp_path, check=True) == []


@pytest.mark.usefixtures("compared")
def test_agents_of_two_lengths_are_compared_after_the_last_step_that_both_have(tmp_path: Path) -> None:
    write_runs(tmp_path, BESIDE, {"torch": (2_000.0, 2_200.0, 2_400.0)})  # After half of it: 1,000, 1,100 and 1,200.
    short = dataclasses.replace(GRU, steps=50_000)
    write_runs(tmp_path, short, {"torch": (0.0, 0.0, 0.0)})
    for path, last in zip(sorted((tmp_path / "learning" / "2026-01-02-a").glob("some-gru-*")), (1_100.0, 1_200.0, 1_300.0), strict=True):
        samples = LearningSamples(
            evaluations=[Evaluation(step=step, returns=[last], seconds=None) for step in (25_000, 50_000)], sessions=SESSIONS
        )
        record.write(path, replace(record.read(path, LearningSamples), samples=samples))
    report.build(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "\n### Does it matter? Task-v0, 50,000 steps\n" in text
    assert "A task, hidden. The runs of feed-forward go on to 100,000 steps: they are compared after 50,000. A difference" in text
    assert "| torch | 1,200 [952, 1,448] | 1,100 [852, 1,348] | 100 | [-127, 327] | 0.78 | 3 |" in text
    assert "Overlap of the means' intervals: torch yes. Interval of the difference: torch holds 0." in text
    (picture,) = (found for path, found in learning.section(tmp_path).pictures.items() if path.name == "memory.png")
    drawn = picture.draw.keywords["curves"]  # type: ignore[attr-defined]  # It is a partial.
    assert [[point.step for point in one.points] for one in drawn] == [[25_000, 50_000], [50_000]]


@pytest.mark.usefixtures("compared")
def test_agents_of_two_versions_or_without_a_step_in_common_are_not_compared(tmp_path: Path) -> None:
    write_runs(tmp_path, GRU, {"jax": (-200.0,)})
    write_runs(tmp_path, BESIDE, {"jax": (-1_200.0,)})
    path = tmp_path / "learning" / "2026-01-02-a" / "some-jax-seed0.json"
    assert "Does it matter" in "".join(learning.section(tmp_path).paragraphs)
    written = record.read(path, LearningSamples)
    for changed in (
        replace(written, sacref_version="0.2.0"),
        replace(written, samples=LearningSamples(evaluations=[Evaluation(step=99_000, returns=[0.0], seconds=None)], sessions=SESSIONS)),
    ):
        record.write(path, changed)
        assert "Does it matter" not in "".join(learning.section(tmp_path).paragraphs)


def test_published_points_stand_with_their_metric_and_citation(results: Path) -> None:
    report.build(results)
    cells = row(results, "jaxrl")
    # The sample's standard deviation: the population's 436.9 times the root of 10 / 9.
    assert cells[1:4] == ["HalfCheetah-v2", "100,000", "10 deterministic eval episodes per point per seed"]
    assert cells[4] == "5,794 ± 461 (10)"
    (cited,) = re.findall(r"^- jaxrl, HalfCheetah-v2: (.*)$", (results / "README.md").read_text(), re.MULTILINE)
    assert cited == "`ikostrikov/jaxrl@7745b27:learning_curves/logs/HalfCheetah-v2/*.txt`"


def test_published_points_are_those_of_the_task_within_its_steps() -> None:
    found = published("HalfCheetah-v5", 100_000)
    at_the_end = {point.source.split("@")[0]: (point.mean, point.std) for point in found if point.steps > 99_000}
    assert at_the_end["ikostrikov/jaxrl"] == pytest.approx((5794.09, 436.90659), abs=1e-5)
    assert at_the_end["thu-ml/tianshou"] == (6514.6, 514.2)
    assert {point.env for point in found} == {"HalfCheetah"}
    assert max(point.steps for point in published("HalfCheetah-v5", 60_000)) == 50_000
    assert [point.env_version for point in published("Hopper-v5", 50_000)] == ["v4", "v3", "v2", "v3", "v2"]
    assert published("Pusher-v5", 100_000) == []


def test_a_speed_is_a_ratio_to_each_peer_of_the_same_run(results: Path) -> None:
    report.build(results)
    header = ["/ best torch peer (CleanRL)", "/ SB3", "/ SBX strict", "/ SBX scan", "policy", "execution", "compiling"]
    assert row(results, "")[3:] == header
    # Medians: 100 steps in 1 s, in 0.25 s; the peers' in 4, 2, 1.25 and 0.5 s.
    own, fast = row(results, "sacref torch strict"), row(results, "sacref jax chunked")
    assert own == ["sacref torch strict", "100", "50 to 200", "2.00", "4.00", "1.25", "0.50", "strict", "eager", "0.0 s"]
    assert fast[1:7] == ["400", "200 to 500", "8.00", "16.00", "5.00", "2.00"]
    assert fast[7:] == ["chunked (up to 64 steps old)", "scan", "1.2 s"]
    assert row(results, "CleanRL")[3] == "1.00"


def test_what_sets_a_peer_apart_and_the_libraries_are_said(results: Path) -> None:
    report.build(results)
    text = (results / "README.md").read_text()
    assert "- CleanRL: Half of it. Its Gymnasium has HalfCheetah-v4 in place of HalfCheetah-v5.\n" in text
    assert "- sacref torch strict, Stable-Baselines3: torch 1\n" in text
    assert "- CleanRL: torch 0\n" in text


def test_a_missing_peer_is_reported_and_no_ratio_given(tmp_path: Path) -> None:
    record.write(tmp_path / "throughput" / "2026-01-02-a" / "speed.json", speeds([ABSENT]))
    report.build(tmp_path)
    assert row(tmp_path, "Stable-Baselines3") == ["Stable-Baselines3", "missing: absent", "", "strict", "", ""]
    assert row(tmp_path, "sacref jax chunked")[3] == "chunked (up to 64 steps old)"
    assert "No peer ran, so no ratio is given." in (tmp_path / "README.md").read_text()


def test_the_chart_tells_sacrefs_backends_and_stale_policies(results: Path) -> None:
    bars = throughput.bars(speeds())
    assert {name: (bar.backend, bar.strict) for name, bar in bars.items()} == {
        "sacref torch strict": ("torch", True),
        "sacref jax chunked": ("jax", False),
        "Stable-Baselines3": (None, True),
        "CleanRL": (None, True),
        "SBX strict": (None, True),
        "SBX scan": (None, False),
    }
    assert bars["sacref torch strict"].speeds == [100.0, 200.0, 50.0]


def test_the_curve_has_the_steps_that_every_seed_has() -> None:
    short = run("torch", 1, 7000.0)
    short = replace(
        short, samples=LearningSamples(evaluations=[Evaluation(step=100_000, returns=[7000.0], seconds=None)], sessions=SESSIONS)
    )
    (point,) = runs.curve([run("torch", 0, 5000.0), short])
    assert (point.step, point.mean, point.seeds) == (100_000, 6000.0, 2)


def test_the_newer_record_of_one_run_counts_and_versions_stay_apart() -> None:
    old, new = run("torch", 0, 1.0), run("torch", 0, 2.0, date="2026-02-01T00:00:00+00:00")
    other = run("torch", 0, 3.0, sacref_version="0.2.0", date="2026-03-01T00:00:00+00:00")
    groups = runs.group([new, old, other])
    assert [(found.version, [runs.final(one) for one in found.runs["torch"]]) for found in groups] == [
        ("0.2.0", [3.0]),
        ("0.1.0", [2.0]),
    ]


def test_one_name_for_two_configurations_is_refused() -> None:
    configuration = run("torch", 0, 1.0).configuration
    for kind in ("settings", "arguments"):
        with pytest.raises(record.RecordError, match="preset headline stands for"):
            runs.group([run("torch", 0, 1.0), run("torch", 1, 1.0, configuration={**configuration, kind: {"hidden": [8]}})])


def test_one_name_for_two_tasks_is_refused() -> None:
    longer = run("torch", 1, 1.0, configuration={"preset": "headline", "env": "HalfCheetah-v5", "backend": "torch", "steps": 7})
    with pytest.raises(record.RecordError, match="preset headline stands for"):
        runs.group([run("torch", 0, 1.0), longer])


def test_the_report_repeats_itself(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "write", RENDER)
    written = report.build(results)
    assert names(written) == {"headline.png", "tasks.png", "throughput.png", "curves.csv", "curves.npz", "README.md"}
    before = {path: path.read_bytes() for path in written}
    assert report.build(results) == []
    for path in written:
        path.unlink()
    report.build(results)
    assert {path: path.read_bytes() for path in written} == before


@pytest.mark.parametrize("name", ["README.md", "learning/headline.png", "throughput/throughput-dark.png"])
def test_check_fails_where_a_file_is_missing_and_writes_nothing(results: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    report.build(results)
    assert report.main(results=results, check=True) == 0
    (results / name).unlink()
    assert report.main(results=results, check=True) == 1
    assert re.search(rf"{name}: .*run `python -m bench.report`", capsys.readouterr().err)
    assert not (results / name).exists()


def test_check_fails_after_a_record_changed_or_the_page_was_edited(results: Path) -> None:
    report.build(results)
    record.write(results / "learning" / "2026-01-02-a" / "torch0.json", run("torch", 0, 5001.0))
    with pytest.raises(report.StaleError, match=r"headline\.png.*README\.md"):
        report.build(results, check=True)
    report.build(results)
    page = results / "README.md"
    page.write_text(page.read_text().replace("5,500", "9,500"))
    with pytest.raises(report.StaleError, match=r"README\.md"):
        report.build(results, check=True)


def test_a_record_that_lacks_a_field_stops_the_report(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = results / "learning" / "2026-01-02-a" / "torch0.json"
    broken = json.loads(path.read_text())
    del broken["samples"]["evaluations"][1]["returns"]
    path.write_text(json.dumps(broken))
    assert report.main(results=results) == 1
    assert "torch0.json: Object missing required field `returns` - at `$.samples.evaluations[1]`" in capsys.readouterr().err
    assert not (results / "README.md").exists()


def test_a_picture_carries_the_digest_of_its_data(results: Path) -> None:
    report.build(results)
    first = pictures.digest_of(results / "learning" / "headline.png")
    assert first is not None
    assert len(first) == 64
    assert pictures.digest_of(results / "learning" / "none.png") is None


def test_the_newest_throughput_run_of_a_machine_counts(results: Path) -> None:
    newer = replace(speeds([ABSENT]), date="2027-01-01T00:00:00+00:00")
    record.write(results / "throughput" / "2027-01-01-a" / "speed.json", newer)
    assert len([part for part in throughput.section(results).paragraphs if part.startswith("###")]) == 1
    report.build(results)
    assert row(results, "Stable-Baselines3")[1] == "missing: absent"


def test_the_largest_relative_difference_of_each_pair_is_shown_beside_the_plot(tmp_path: Path) -> None:
    largest = {"absolute": {"value": 1.0, "update": 1, "where": "x"}, "relative": {"value": 2.5e-12, "update": 7, "where": "y"}}
    value = {
        "suite": "parity",
        "date": "2026-01-02T00:00:00+00:00",
        "sacref_version": "0.1.0",
        "commit": None,
        "dirty": True,
        "configuration": {"updates": 1000, "dtype": "float64"},
        "hardware": {"cpu_model": "A CPU", "cores": 4},
        "largest": {"torch - jax": {"parameters": largest}, "jax - numpy": {"parameters": largest, "alpha": largest}},
        "samples": {"differences": {"torch - jax": {"parameters": {"relative": [1e-15, 2.5e-12]}}}},
    }
    path = tmp_path / "parity" / "a" / "float64.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(value))
    report.build(tmp_path)
    assert row(tmp_path, "torch - jax") == ["torch - jax", "2.5e-12", ""]
    assert row(tmp_path, "jax - numpy") == ["jax - numpy", "2.5e-12", "2.5e-12"]
    text = (tmp_path / "README.md").read_text()
    assert 'src="parity/a/float64.png"' in text
    assert 'media="(prefers-color-scheme: dark)" srcset="parity/a/float64-dark.png"' in text
    found = "largest relative difference of the parameters 2.5e-12"
    assert f"| PyTorch beside JAX, 1,000 updates in float64 | {found} | [Parity](#parity) |" in text
    assert pictures.digest_of(path.with_suffix(".png")) is not None
    path.write_text(json.dumps({**value, "largest": {"torch - jax": {"parameters": {}}}}))
    with pytest.raises(record.RecordError, match=r"float64\.json: Object missing required field `relative` - at"):
        report.build(tmp_path)


def timed(*speeds: float) -> list[Timing]:
    return [Timing(count=100, seconds=100 / speed) for speed in speeds]


def updates(**changes: Any) -> Record[Any]:
    """Torch in two ways, JAX missing; products of 256 at 1,000 a second, which is 33.6 GFLOP/s."""
    size: dict[str, Any] = {"batch": 256, "width": 256, "flops": 10**8}
    found: dict[str, Any] = {"stored": 10, "gradient_steps": 16, "compile_seconds": 1.5, "missing": None}
    cells = [
        UpdateCell(backend="torch", execution="auto", chosen="traced", timings=timed(100.0, 168.0, 200.0), **size, **found),
        UpdateCell(backend="torch", execution="plain", chosen="plain", timings=timed(84.0), **size, **found),
        UpdateCell(
            backend="jax", execution="auto", chosen=None, timings=[], **size, **{**found, "missing": "no jax", "compile_seconds": None}
        ),
    ]
    stored = [
        UpdateCell(backend="torch", execution="auto", chosen="traced", timings=timed(speed), **size, **{**found, "stored": number})
        for number, speed in ((1_000, 100.0), (10_000, 80.0))
    ]
    matmuls = [
        MatmulCell(backend=backend, size=256, batch=256, width=256, timings=timed(speed))
        for backend, speed in (("torch", 1000.0), ("jax", 9e9))
    ]
    configuration = {"preset": "cpu", "left_out": [[16_384, 2_048]]}
    samples = UpdateSamples(cells=cells, matmuls=matmuls, stored=stored)
    written = replace(run("torch", 0, 0.0), suite="update", run="update-cpu-1core", configuration=configuration, samples=samples)
    return replace(written, **changes)


def test_updates_stand_beside_the_products_of_their_backend(tmp_path: Path) -> None:
    record.write(tmp_path / "update" / "2026-01-02-a" / "u.json", updates())
    written = report.build(tmp_path)
    assert names(written) == {"update-cpu-1core-a-4core.png", "README.md"}
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in (tmp_path / "README.md").read_text().splitlines() if "256" in line
    ]
    assert ["256", "256", "torch", "auto: traced", "168", "17", "50%", "", "1.5 s"] in rows
    assert ["256", "256", "torch", "plain", "84", "8", "25%", "", "1.5 s"] in rows
    assert ["256", "256", "jax", "auto", "missing: no jax", "", "", "", ""] in rows
    # 10 ms and 12.5 ms.
    assert row(tmp_path, "torch") == ["torch", "10.000", "12.500", "25%, more than the 10% that it should"]
    assert "Left out, as it would take too long here: batch 16,384, width 2,048." in (tmp_path / "README.md").read_text()
    assert report.build(tmp_path, check=True) == []


def recurrent_cell(backend: str, execution: str, length: int, *speeds: float, **changes: Any) -> RecurrentCell:
    """Feed-forward if `length` is 1; of 10^8 operations, else of 4 * 10^8, a quarter of them in the recurrence."""
    cell = RecurrentCell(
        backend=backend,
        execution=execution,
        chosen="fast" if execution == "auto" else "plain",
        recurrent=None if length == 1 else "gru",
        sequence_length=length,
        batch=1_024 // length,
        gradient_steps=2,
        flops=10**8 if length == 1 else 4 * 10**8,
        recurrence_flops=0 if length == 1 else 10**8,
        cell_steps=0 if length == 1 else 10 * length,
        timings=timed(*speeds),
        compile_seconds=1.5,
        missing=None,
    )
    return replace(cell, **changes)


def recurrent_record() -> Record[Any]:
    """Square products of torch at 33.6 GFLOP/s; the recurrence's at a tenth of that, of sequences of 8 at the same speed."""
    square = ProductCell(backend="torch", rows=256, inner=256, columns=256, timings=timed(1_000.0))
    small = ProductCell(backend="torch", rows=32, inner=128, columns=384, timings=timed(1e2 * 256**3 / (32 * 128 * 384)))
    large = ProductCell(backend="torch", rows=128, inner=128, columns=384, timings=timed(1e3 * 256**3 / (128 * 128 * 384)))
    other = replace(square, backend="jax", timings=timed(9e9))
    cells = [
        recurrent_cell("torch", "auto", 1, 100.0, 200.0, 400.0),
        recurrent_cell("torch", "auto", 32, 10.0),
        recurrent_cell("torch", "plain", 32, 8.0),
        recurrent_cell("torch", "auto", 8, 100.0),
        recurrent_cell("jax", "auto", 32, missing="no jax", compile_seconds=None, chosen=None),
    ]
    configuration = {"preset": "cpu", "recurrent": "gru", "recurrent_size": 128, "hidden": [128, 128], "rows": 1_024}
    samples = RecurrentSamples(cells=cells, products=[small, square, large, other])
    return replace(run("torch", 0, 0.0), suite="recurrent", run="recurrent-cpu-1core", configuration=configuration, samples=samples)


def test_a_recurrent_step_stands_beside_a_feed_forward_one_and_its_time_has_parts(tmp_path: Path) -> None:
    record.write(tmp_path / "recurrent" / "2026-01-02-a" / "r.json", recurrent_record())
    written = report.build(tmp_path)
    assert names(written) == {"recurrent-cpu-1core-a-4core.png", "README.md"}
    text = (tmp_path / "README.md").read_text()
    assert "GRU of 128; hidden layers of 128 and 128; 1,024 rows." in text
    assert "| feed-forward | 1,024 x 1 | torch | auto: fast | 200 | 0.10 |  | 20 | 60% of 34 |  |  | 1.5 s |" in text
    # 4 GFLOP/s of 33.6 and of 3.36.
    assert "| GRU | 32 x 32 | torch | auto: fast | 10 | 0.40 | 25% | 4 | 12% of 34 | 119% of 3 | 320 | 1.5 s |" in text
    assert "| GRU | 32 x 32 | jax | auto | missing: no jax |" in text
    # 4e8 operations at 33.55e9 a second: 11.9 ms. 1e8 of them at a tenth of it: 29.8 ms in place of 3.0.
    assert (
        "- sacref, PyTorch: GRU, 32 x 32: 100.0 ms = products 11.9 + small products 26.8 + rest 61.3;"
        " 20.0 times as long as feed-forward, for 4.0 times the operations; plain takes 1.25 times as long; most of it is rest.\n"
    ) in text
    assert "- sacref, PyTorch: feed-forward: 5.0 ms = products 3.0 + rest 2.0.\n" in text
    assert "sequences of 32 in place of 8, as many rows: +90.0 ms for 240 cell steps more, 375 µs each." in text
    assert report.build(tmp_path, check=True) == []


def test_the_bars_of_a_recurrent_step_add_up_to_it() -> None:
    samples = recurrent_record().samples
    assert isinstance(samples, RecurrentSamples)
    slow, fast = samples.cells[1], replace(samples.cells[3], timings=timed(1_000.0))
    assert sum(recurrent.parts(slow, samples.products)) == pytest.approx(100.0)
    assert recurrent.parts(fast, samples.products).rest < 0
    # Faster than the products beside it: no bar is longer than the step.
    assert recurrent.drawn(recurrent.parts(fast, samples.products)) == {"products": pytest.approx(1.0), "small products": 0.0, "rest": 0.0}


def test_populations_stand_beside_one_agent_alone(tmp_path: Path) -> None:
    def cell(backend: str, members: int, *speeds: float, **changes: Any) -> PopulationCell:
        made = PopulationCell(
            backend=backend,
            members=members,
            width=64,
            batch=256,
            chosen="scan" if backend == "jax" else "traced",
            gradient_steps=2,
            timings=timed(*speeds),
            compile_seconds=1.5,
            missing=None,
        )
        return replace(made, **changes)

    cells = [
        cell("torch", 1, 90.0, 100.0, 300.0),
        cell("jax", 1, 200.0),
        cell("torch", 10, missing="does not fit the memory", compile_seconds=None, chosen=None),
        cell("jax", 10, 50.0),
    ]
    configuration = {"preset": "cpu", "batch": 256}
    samples = PopulationSamples(cells=cells)
    found = replace(run("torch", 0, 0.0), suite="population", run="population-cpu-1core", configuration=configuration, samples=samples)
    record.write(tmp_path / "population" / "2026-01-02-a" / "p.json", found)
    written = report.build(tmp_path)
    assert names(written) == {"population-cpu-1core-a-4core.png", "README.md"}
    text = (tmp_path / "README.md").read_text()
    assert "| 64 | torch | alone | traced | 100 | 100 | 1.00 | 1.5 s |" in text
    assert "| 64 | torch | 10 | missing: does not fit the memory |" in text
    assert "| 64 | jax | 10 | scan | 500 | 50 | 2.50 | 1.5 s |" in text
    assert (
        "| Gradient steps per second of 10 agents together over one alone, A CPU, 4 cores, 1 of them used; preset cpu"
        " | width 64, jax 2.50 times | [Populations](#populations) |"
    ) in text
    assert population.curves(cells) == {64: [("torch", [1], [100.0]), ("jax", [1, 10], [200.0, 500.0])]}
    assert report.build(tmp_path, check=True) == []


def test_of_two_runs_alike_the_newer_is_shown_and_another_preset_beside_it(tmp_path: Path) -> None:
    record.write(tmp_path / "update" / "2026-01-02-a" / "u.json", updates())
    record.write(tmp_path / "update" / "2027-01-02-a" / "u.json", updates(date="2027-01-02T00:00:00+00:00", commit="fedcba9876543210"))
    other = updates(configuration={"preset": "gpu"}, run="update-gpu-1core")
    record.write(tmp_path / "update" / "2026-01-02-a" / "v.json", other)
    report.build(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert re.findall(r"^### (.*)$", text, re.MULTILINE) == [
        f"A CPU, 4 cores, 1 of them used; preset {preset}" for preset in ("cpu", "gpu")
    ]
    assert text.count("commit fedcba9876") == 1


def test_the_parts_of_a_step_are_medians_in_milliseconds(tmp_path: Path) -> None:
    parts = {"act": 1.0, "environment": 0.5, "record": 0.25, "update": 8.0, "rest": 0.25}
    samples = RolloutSamples(
        environments=[stepped("Ant-v5", num, "sync", 1, 100.0 * num) for num in (1, 4)],
        acts=[ActCell(backend="jax", num_envs=1, timings=timed(4_000.0, 5_000.0, 9_000.0), compile_seconds=0.5, missing=None)],
        loops=[
            LoopCell(backend="jax", num_envs=1, execution="scan", timings=timed(90.0, 100.0, 130.0), compile_seconds=2.0, missing=None),
            LoopCell(backend="torch", num_envs=1, execution=None, timings=[], compile_seconds=None, missing="no torch"),
        ],
        parts=[PartCell(backend="jax", part=part, timings=timed(1.0, 1e3 / value, 1e9)) for part, value in parts.items()],  # type: ignore[arg-type]  # Each is a part.
    )
    configuration = {"preset": "cpu"}
    found = replace(run("torch", 0, 0.0), suite="rollout", run="rollout-cpu", configuration=configuration, samples=samples)
    record.write(tmp_path / "rollout" / "2026-01-02-a" / "r.json", found)
    report.build(tmp_path)
    assert row(tmp_path, "Ant-v5") == ["Ant-v5", "sync", "100", "400"]
    assert row(tmp_path, "jax (scan)") == ["jax (scan)", "100", "2.0 s"]
    assert row(tmp_path, "torch") == ["torch", "missing: no torch", ""]
    text = (tmp_path / "README.md").read_text()
    assert "| jax | 0.200 | 0.5 s |" in text
    assert "| jax | 1.000 | 0.500 | 0.250 | 8.000 | 0.250 | 10.000 |" in text
    assert (tmp_path / "rollout" / "rollout-cpu-a-4core.png").exists()


def stepped(env: str, num_envs: int, by: Any, threads: int, speed: float | None) -> EnvironmentCell:
    timings = [] if speed is None else timed(speed)
    missing = "it is not there" if speed is None else None
    return EnvironmentCell(env=env, num_envs=num_envs, stepped_by=by, threads=threads, timings=timings, missing=missing)


def test_one_task_is_shown_in_every_way_that_it_was_stepped(tmp_path: Path) -> None:
    speeds: dict[tuple[Any, int], tuple[float | None, float | None]] = {
        ("sync", 1): (5_000.0, 20_000.0),
        ("async", 1): (None, 4_000.0),
        ("batched", 1): (4_000.0, 32_000.0),
        ("batched", 2): (4_100.0, 50_000.0),
        ("rollout, closed loop", 1): (9_000.0, 35_000.0),
        ("rollout, closed loop", 2): (9_100.0, 52_000.0),
        ("rollout, open loop", 1): (11_000.0, 39_000.0),
    }
    cells = [
        stepped("Pusher-v5", num, by, threads, speed)
        for (by, threads), each in speeds.items()
        for num, speed in zip((1, 16), each, strict=True)
    ]
    cells += [stepped("Ant-v5", num, by, 2, 10.0 * num) for by in ("sync", "batched") for num in (1, 16)]

    def write(cells: list[EnvironmentCell]) -> str:
        samples = RolloutSamples(environments=cells, acts=[], loops=[], parts=[])
        found = replace(run("torch", 0, 0.0), suite="rollout", run="r", configuration={"preset": "cpu"}, samples=samples)
        record.write(tmp_path / "rollout" / "2026-01-02-a" / "r.json", found)
        report.build(tmp_path)
        return (tmp_path / "README.md").read_text()

    text = write(cells)
    for line in (
        "| task | stepped by | 1 | 16 |",
        "| Pusher-v5 | sync | 5,000 | 20,000 |",
        "| Pusher-v5 | batched | 4,100 | 50,000 |",
        "| Ant-v5 | batched | 10 | 160 |",
        "| stepped by | threads | 1 | 16 |",
        "| sync | 1 | 5,000 | 20,000 |",
        "| async | a process each | missing: it is not there | 4,000 |",
        "| batched | 1 | 4,000 | 32,000 |",
        "| mujoco.rollout, closed loop | 2 | 9,100 | 52,000 |",
        "| mujoco.rollout, open loop | 1 | 11,000 | 39,000 |",
    ):
        assert text.count(f"\n{line}\n") == 1, line
    assert "Ant-v5 stepped in every way" not in text
    assert "Pusher-v5 stepped in every way, environment steps per second:" in text
    assert "With 16 environments on 2 threads, batched is 2.5 times sync, and 96% of the closed loop alone.\n" in text
    assert "times sync" not in write([cell for cell in cells if cell.stepped_by != "sync"])


def amp_cell(precision: str, width: int, *speeds: float, **changes: Any) -> AmpCell:
    cell = AmpCell(
        backend="torch",
        precision=precision,
        recurrent=None,
        sequence_length=1,
        batch=64,
        width=width,
        chosen="cuda_graph",
        gradient_steps=16,
        timings=timed(*speeds),
        compile_seconds=1.0,
        memory_bytes=3 * 2**20,
        memory_of="device",
        loss_error=1e-7,
        gradient_error=2e-5,
        missing=None if speeds else "does not fit the memory",
    )
    return replace(cell, **changes)


def write_amp(results: Path, cells: list[AmpCell], **configuration: Any) -> str:
    """The page of a record with these cells."""
    chosen = {"preset": "gpu", **configuration}
    found = replace(run("torch", 0, 0.0), suite="amp", run="amp-gpu", configuration=chosen, samples=AmpSamples(cells=cells))
    record.write(results / "amp" / "2026-01-02-a" / "a.json", found)
    report.build(results)
    return (results / "README.md").read_text()


def test_trap_24_a_slow_down_is_reported_as_it_is(tmp_path: Path) -> None:
    gru: dict[str, Any] = {"recurrent": "gru", "sequence_length": 32}
    cells = [
        amp_cell("float32", 256, 100.0),
        amp_cell("float32", 512, 40.0),
        amp_cell("tf32", 256, 80.0),
        amp_cell("tf32", 512),
        amp_cell("float32", 256, 10.0, **gru),
        amp_cell("tf32", 256, 0.125, **gru),
    ]
    text = write_amp(tmp_path, cells, left_out=["GRU, batch 4,096, width 512", [64, 1_024]])
    assert "| feed-forward | 256 | 64 | torch | tf32 | cuda_graph | 80 | 0.80 | 3 MiB of the device | 1.0e-07 | 2.0e-05 |" in text
    assert "| feed-forward | 512 | 64 | torch | float32 | cuda_graph | 40 | 1.00 |" in text
    assert "| feed-forward | 512 | 64 | torch | tf32 | missing: does not fit the memory |" in text
    assert "| GRU | 256 | 2 x 32 | torch | tf32 | cuda_graph | 0.12 | 0.013 |" in text
    assert "Left out, as it would take too long here: GRU, batch 4,096, width 512; batch 64, width 1,024." in text
    assert amp.speed_up(cells[2], cells[::-1]) == 0.8  # In any order.
    maps = amp.heat_maps(cells)
    values = [[panel.values for panel in of_precision] for of_precision in maps]
    assert values == [[[[100.0], [40.0]]], [[[0.8], [None]]], [[[10.0]]], [[[0.0125]]]]
    assert [panel.ratio for of_precision in maps for panel in of_precision] == [False, True, False, True]
    assert [panel.title.split("\n")[0] for of_precision in maps for panel in of_precision] == [
        *["sacref, PyTorch, feed-forward:"] * 2,
        *["sacref, PyTorch, GRU:"] * 2,
    ]


@pytest.mark.parametrize(
    ("speeds", "paid"),
    [
        ((110.0, 111.0, 112.0, 113.0, 114.0), True),
        # One round in five is behind the one that was timed beside it, though the median is ahead and none is behind float32's median.
        ((110.0, 111.0, 112.0, 101.5, 114.0), False),
        # Four rounds do not tell.
        ((110.0, 111.0, 112.0, 113.0), False),
        ((90.0, 91.0, 92.0, 93.0, 94.0), False),
        ((), None),
    ],
)
def test_trap_24_a_precision_pays_if_it_is_ahead_in_every_round(speeds: tuple[float, ...], paid: bool | None) -> None:
    exact = amp_cell("float32", 256, 99.0, 100.0, 101.0, 102.0, 100.0)
    assert amp.pays(amp_cell("bfloat16", 256, *speeds), [exact]) is paid


def test_trap_24_where_a_precision_starts_to_pay_is_told_by_batch_and_drawn(tmp_path: Path) -> None:
    fast, slow = [20.0] * 5, [5.0] * 5

    def of(width: int, batch: int, precision: str, *speeds: float, backend: str = "torch") -> AmpCell:
        return amp_cell(precision, width, *speeds, batch=batch, backend=backend)

    exact = [
        of(width, batch, "float32", *[10.0] * 5, backend=backend)
        for width in (256, 512, 1_024)
        for batch in (64, 128)
        for backend in ("torch", "jax")
    ]
    mixed = [
        *(of(256, 64, "bfloat16", *slow), of(512, 64, "bfloat16", *fast), of(1_024, 64, "bfloat16", *fast)),
        *(of(256, 128, "bfloat16", *fast), of(512, 128, "bfloat16", *slow), of(1_024, 128, "bfloat16", *slow)),
        *(of(256, 64, "bfloat16", *slow, backend="jax"), of(512, 64, "bfloat16", *slow, backend="jax")),
        of(256, 128, "bfloat16", backend="jax"),
    ]
    text = write_amp(tmp_path, exact + mixed)
    assert "| networks | backend | precision | batch 64 | batch 128 |" in text
    assert "| feed-forward | torch | bfloat16 | from 512 | from 256, but not 512 and 1,024 |" in text
    assert "| feed-forward | jax | bfloat16 | never, up to 512 | not measured |" in text
    _, (torch, jax) = amp.heat_maps(exact + mixed)
    assert torch.outlined == [[False, True], [True, False], [True, False]]
    assert jax.outlined == [[False, False]] * 3


def test_the_line_goes_around_what_pays() -> None:
    assert plots.outline([[False, False]]) == []
    around = {((0.5, -0.5), (1.5, -0.5)), ((0.5, 0.5), (1.5, 0.5)), ((0.5, -0.5), (0.5, 0.5)), ((1.5, -0.5), (1.5, 0.5))}
    assert set(plots.outline([[False, True]])) == around
    # Two cells that touch have no line between them; six sides are left.
    assert len(plots.outline([[False, True], [False, True]])) == 6
    assert ((0.5, 0.5), (1.5, 0.5)) not in plots.outline([[False, True], [False, True]])


def test_the_report_in_the_tree_is_up_to_date() -> None:
    if not report.RESULTS.exists():
        pytest.skip("nothing is recorded yet")
    assert report.build(report.RESULTS, check=True) == []
