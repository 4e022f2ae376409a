"""The report's figure, read back from its file; its tables; and what is refused."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sacref.cli import main as cli
from sacref.config import paper_config
from sacref.training import report
from sacref.training.report import write_report
from sacref.training.run_directory import RunError

FIXTURES = Path(__file__).parents[1] / "fixtures"
with_plotly = pytest.mark.skipif(find_spec("plotly") is None, reason="plotly is not installed: pip install 'sacref[report]'")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


def write_run(root: Path, name: str, lines: list[dict[str, Any]], *, seed: int = 0, batch: int = 256, **changes: Any) -> Path:
    """A run whose evaluations at steps 100 and 200 return the seed and the seed plus 10."""
    directory = root / name
    directory.mkdir(parents=True)
    cfg = {**paper_config().to_dict(), "batch_size": batch, "seed": seed}
    config = {"env": "Hopper-v5", "backend": "jax", "seed": seed, "steps": 200, "num_envs": 1, "cfg": cfg, **changes}
    (directory / "config.json").write_text(json.dumps(config))
    returns = {100: [seed - 1.0, seed + 1.0], 200: [seed + 10.0]}
    evaluations = [{"step": step, "returns": r, "mean": float(np.mean(r)), "std": 0.0} for step, r in returns.items()]
    (directory / "evaluation.json").write_text(json.dumps(evaluations))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return directory


TAGS = {
    "loss": "Loss / Critic loss",
    "q1": "Q-network / Q1 (mean)",
    "q2": "Q-network / Q2 (mean)",
    "alpha": "Coefficient / Entropy coefficient",
}


def line(step: int, seconds: float, **values: float | None) -> dict[str, Any]:
    clock = {"timestep": step, "environment_steps": step, "wall_time": 1e9 + seconds}
    return {**clock, **{TAGS[name]: value for name, value in values.items()}}


LINES = [line(50, 0.0), line(100, 0.5, loss=3.0, q1=1.0, q2=2.0, alpha=0.5), line(200, 2.5, loss=None, q1=3.0, q2=5.0, alpha=0.1)]


class Panels:
    """The curves of a report by the panel's title."""

    def __init__(self, page: Path) -> None:
        self.text = page.read_text(encoding="utf-8")
        drawn = re.search(r'Plotly\.newPlot\(\s*"curves",\s*', self.text)
        assert drawn is not None
        traces, end = json.JSONDecoder().raw_decode(self.text, drawn.end())
        between = re.compile(r"\s*,\s*").match(self.text, end)
        assert between is not None
        layout, _ = json.JSONDecoder().raw_decode(self.text, between.end())
        self.titles = [each["text"] for each in layout["annotations"]]
        self.traces: list[dict[str, Any]] = traces
        self.layout: dict[str, Any] = layout

    def of(self, title: str) -> list[dict[str, Any]]:
        number = self.titles.index(title) + 1
        axis = "y" if number == 1 else f"y{number}"
        return [trace for trace in self.traces if trace["yaxis"] == axis and trace["x"] != [None]]

    def curves(self, title: str) -> list[tuple[list[Any], list[Any]]]:
        return [(trace["x"], trace["y"]) for trace in self.of(title)]


def tables(text: str) -> list[list[list[str]]]:
    """The cells of the page's tables."""
    found: list[list[list[str]]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attributes: Any) -> None:
            if tag == "table":
                found.append([])
            elif tag == "tr":
                found[-1].append([])
            elif tag in ("td", "th"):
                found[-1][-1].append("")

        def handle_data(self, data: str) -> None:
            if self.get_starttag_text() in ("<td>", "<th>"):
                found[-1][-1][-1] += data

    Reader().feed(re.sub(r"(?s)<script.*?</script>", "", text).replace("\n", ""))
    return found


@with_plotly
def test_seeds_are_lines_that_say_which_and_their_mean_has_its_interval(tmp_path: Path) -> None:
    """The mean of 0, 1 and 2 is 1, standard error 1/sqrt(3), 97.5% point of Student's t with 2 degrees of freedom 4.302653."""
    runs = [write_run(tmp_path, f"run{seed}", LINES, seed=seed) for seed in range(3)]
    write_report(runs, output=tmp_path / "deep" / "report.html")
    panels = Panels(tmp_path / "deep" / "report.html")
    band, mean, *seeds = panels.of("Hopper-v5: return of the evaluations")
    assert (mean["x"], mean["y"]) == ([100, 200], [1.0, 11.0])
    assert mean["customdata"][0] == pytest.approx([1 - 4.302653 / 3**0.5, 1 + 4.302653 / 3**0.5], abs=1e-5)
    assert (band["x"], band["fill"]) == ([100, 200, 200, 100], "toself")
    assert [seed["y"] for seed in seeds] == [[0.0, 10.0], [1.0, 11.0], [2.0, 12.0]]
    assert f"seed 2, {runs[2]}" in seeds[2]["hovertemplate"]
    assert [trace["name"] for trace in panels.traces if trace["showlegend"]] == ["Hopper-v5, jax"]
    assert "3 runs" in panels.text and "None but the seeds." in panels.text


@with_plotly
def test_metrics_are_drawn_as_they_were_written(tmp_path: Path) -> None:
    run = write_run(tmp_path, "run", LINES)
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"timestep": 300, "environ')  # the process was killed, or still writes
    write_report([run], output=tmp_path / "report.html")
    panels = Panels(tmp_path / "report.html")
    assert panels.curves("Critic loss") == [([100, 200], [3.0, None])], "a gap where it was not finite"
    assert panels.curves("Q-values, mean over the critics") == [([100, 200], [1.5, 4.0])]
    assert panels.curves("Steps per second, evaluations included") == [([100, 200], [100.0, 50.0])]
    assert panels.layout[f"yaxis{panels.titles.index('Temperature alpha') + 1}"]["type"] == "log"
    assert "Policy loss" not in panels.titles, "what no run has is left out"
    (runs,) = tables(panels.text)
    assert runs[1] == [str(run), "Hopper-v5, jax", "0", "200", "10.0 after 200", "10.0 after 200", "60"]


@with_plotly
def test_runs_are_told_apart_by_the_settings_that_differ(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path, "a", LINES),
        write_run(tmp_path, "b", LINES, batch=64, steps=300),
        write_run(tmp_path, "c", LINES, backend="torch"),
        write_run(tmp_path, "d", [], env="Ant-v5"),
    ]
    assert cli.main(["report", *map(str, runs), "--output", str(tmp_path / "report.html")]) == 0
    whole = (tmp_path / "report.html").read_text()
    write_report([tmp_path], output=tmp_path / "report.html")  # the folder of them
    assert tables((tmp_path / "report.html").read_text()) == tables(whole)
    panels = Panels(tmp_path / "report.html")
    names = [
        "Hopper-v5, jax, batch_size 256",
        "Hopper-v5, jax, batch_size 64",
        "Hopper-v5, torch, batch_size 256",
        "Ant-v5, jax, batch_size 256",
    ]
    legend = [trace for trace in panels.traces if trace["showlegend"]]
    assert [trace["name"] for trace in legend] == names
    assert len({trace["line"]["color"] for trace in legend}) == 4
    assert panels.titles[:2] == ["Ant-v5: return of the evaluations", "Hopper-v5: return of the evaluations"]
    assert [len(panels.of(title)) for title in panels.titles[:3]] == [1, 3, 3]
    _, differences = tables(panels.text)
    assert differences == [
        ["setting", *names],
        ["env", "'Hopper-v5'", "'Hopper-v5'", "'Hopper-v5'", "'Ant-v5'"],
        ["backend", "'jax'", "'jax'", "'torch'", "'jax'"],
        ["steps", "200", "300", "200", "200"],
        ["cfg.batch_size", "256", "64", "256", "256"],
    ]


@with_plotly
def test_a_long_file_is_thinned(tmp_path: Path) -> None:
    run = write_run(tmp_path, "run", [line(step, step, loss=float(step)) for step in range(1, 2 * report.POINTS + 2)])
    write_report([run], output=tmp_path / "report.html")
    ((x, y),) = Panels(tmp_path / "report.html").curves("Critic loss")
    assert 500 < len(x) <= report.POINTS
    assert x == y
    assert (x[0], x[-1]) == (1, 2 * report.POINTS + 1)


@with_plotly
def test_what_few_lines_hold_is_drawn_whole_and_a_pause_is_no_time_of_the_run(tmp_path: Path) -> None:
    """Episodes end in every tenth line, and none of those is one that a stride of ten would take."""
    count = 10 * report.POINTS
    lines = [line(step, step / 10 + 36_000 * (step > 2_000), **({"alpha": 1.0} if step % 10 == 5 else {})) for step in range(1, count)]
    run = write_run(tmp_path, "run", lines)
    write_report([run], output=tmp_path / "report.html")
    panels = Panels(tmp_path / "report.html")
    ((x, _),) = panels.curves("Temperature alpha")
    assert x == list(range(5, count, 10))
    runs, _ = tables(panels.text) if len(tables(panels.text)) > 1 else (tables(panels.text)[0], None)
    assert runs[1][3] == f"{count - 1:,}"
    assert runs[1][-1] == "10"


@with_plotly
@pytest.mark.parametrize("run", ["torch/feed_forward", "jax/gru", "torch/ranks"])
def test_runs_of_older_versions_are_read(run: str, tmp_path: Path) -> None:
    write_report([FIXTURES / run], output=tmp_path / "report.html")
    titles = Panels(tmp_path / "report.html").titles
    assert {"Critic loss", "Policy loss", "Entropy of the policy (nats)", "Steps per second, evaluations included"} <= set(titles)


@with_plotly
def test_names_are_text_and_nothing_is_loaded(tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script><b>"
    run = write_run(tmp_path / "<img src=x>", "run", LINES, env=hostile)
    write_report([run], output=tmp_path / "report.html")
    text = Panels(tmp_path / "report.html").text
    assert hostile not in text and "<img src=x>" not in text
    page = re.sub(r"(?s)<script[^>]*>.*?</script>", "", text)
    assert "<b>" not in page
    assert re.findall(r"(?i)<[^>]*\b(?:src|href|action)\s*=|@import|url\(", page) == []
    assert re.findall(r"(?i)<script[^>]*\bsrc", text) == []


@with_plotly
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_draws_it_without_a_network(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, f"run{seed}", LINES, seed=seed) for seed in range(2)]
    write_report(runs, output=tmp_path / "report.html")
    options = "--headless --no-sandbox --disable-gpu --virtual-time-budget=5000 --dump-dom".split()
    command = [str(BROWSER), *options, "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={tmp_path / 'profile'}"]
    drawn = subprocess.run([*command, (tmp_path / "report.html").as_uri()], capture_output=True, text=True, timeout=120)
    # Returns: band, mean and two seeds. Loss, values, temperature and speed: two seeds each. The entry of the legend is none.
    assert len(re.findall(r'<g class="trace scatter trace[^"]*"', drawn.stdout)) in (12, 13), drawn.stderr[-2000:]
    assert "Temperature alpha</text>" in drawn.stdout


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "report.html"
    with pytest.raises(RunError, match="a report got no run directory: name at least one"):
        write_report([], output=output)
    assert cli.main(["report", str(tmp_path / "absent"), "--output", str(output)]) == 2
    assert (
        f"{tmp_path / 'absent'} holds no run: expected config.json in it, as `sacref train --run-dir` writes it" in capsys.readouterr().err
    )
    young = write_run(tmp_path, "young", [])
    (young / "evaluation.json").write_text("[]")
    with pytest.raises(RunError, match=r"has neither evaluations nor metrics yet, expected evaluation.json or metrics.jsonl with an entry"):
        write_report([young], output=output)
    (young / "metrics.jsonl").write_text('{"timestep": 1}\n')
    with pytest.raises(RunError, match=r"metrics.jsonl is damaged \(KeyError: .*environment_steps.*\): restore it, or move it away"):
        write_report([young], output=output)
    twins = [write_run(tmp_path, name, LINES) for name in ("a", "b")]
    with pytest.raises(RunError, match=f"{twins[0]} and {twins[1]} have the same settings and seed 0, and would be counted as two seeds"):
        write_report(twins, output=output)
    (young / "config.json").write_text("{}")
    with pytest.raises(RunError, match="has no backend, expected a run directory"):
        write_report([young], output=output)
    assert not output.exists()


def test_without_plotly_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    assert cli.main(["report", str(write_run(tmp_path, "run", LINES)), "--output", str(tmp_path / "report.html")]) == 2
    assert "a report needs plotly, which is not installed: pip install 'sacref[report]', or take sacref plot" in capsys.readouterr().err
