"""The numbers that are drawn, read back from the axes; and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes

from sacref.training.plots import PlotError, plot_runs


def write_run(
    root: Path, name: str, returns: dict[int, list[float]], *, env: str = "HalfCheetah-v5", backend: str = "jax", seed: int = 0
) -> Path:
    directory = root / name
    directory.mkdir()
    evaluations = [{"step": step, "returns": r, "mean": float(np.mean(r)), "std": float(np.std(r))} for step, r in returns.items()]
    (directory / "config.json").write_text(json.dumps({"env": env, "backend": backend, "seed": seed}))
    (directory / "evaluation.json").write_text(json.dumps(evaluations))
    return directory


def line(axes: Axes, index: int = 0) -> tuple[list[float], list[float]]:
    drawn = axes.get_lines()[index]
    return list(np.asarray(drawn.get_xdata())), list(np.asarray(drawn.get_ydata()))


def band(axes: Axes, step: float, index: int = 0) -> tuple[float, float]:
    """The lowest and the highest y of the band at a step."""
    vertices = np.asarray(axes.collections[index].get_paths()[0].vertices)
    at_step = vertices[vertices[:, 0] == step, 1]
    return float(at_step.min()), float(at_step.max())


def legend(axes: Axes) -> list[str]:
    drawn = axes.get_legend()
    assert drawn is not None
    return [text.get_text() for text in drawn.get_texts()]


def test_single_run_shows_the_mean_and_the_std_of_its_episodes(tmp_path: Path) -> None:
    run = write_run(tmp_path, "run", {0: [-10.0, 10.0], 1000: [100.0, 300.0]}, seed=7)
    output = tmp_path / "deep" / "curve.png"
    (axes,) = plot_runs([run], output=output).axes
    assert line(axes) == ([0, 1000], [0.0, 200.0])
    assert band(axes, 1000) == (100.0, 300.0)
    assert legend(axes) == ["jax: seed 7; band: std of 2 episodes"]
    assert axes.get_title() == "HalfCheetah-v5"
    assert axes.get_xlabel() == "Environment steps"
    assert axes.get_ylabel() == "Evaluation return (sum of rewards per episode)"
    assert output.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("panels", [1, 2])
def test_the_legend_covers_nothing_that_is_drawn(tmp_path: Path, panels: int) -> None:
    """A band from corner to corner leaves it no place inside."""
    returns = {step: [-100.0, 100.0] for step in range(0, 1_000, 50)}
    runs = [
        write_run(tmp_path, f"{env}-{backend}", returns, env=f"Env{env}-v0", backend=backend)
        for env in range(panels)
        for backend in ("torch", "jax")
    ]
    figure = plot_runs(runs, output=tmp_path / "curve.png")
    figure.draw_without_rendering()
    for axes in figure.axes:
        drawn = axes.get_legend()
        assert drawn is not None
        place = drawn.get_window_extent()
        assert place.y1 <= axes.xaxis.label.get_window_extent().y0
        assert figure.bbox.x0 <= place.x0 and place.x1 <= figure.bbox.x1 and figure.bbox.y0 <= place.y0


def test_single_run_with_an_episode_each_has_no_band(tmp_path: Path) -> None:
    run = write_run(tmp_path, "run", {0: [-10.0], 1000: [100.0]}, seed=7)
    (axes,) = plot_runs([run], output=tmp_path / "curve.png").axes
    assert legend(axes) == ["jax: seed 7"]


def test_seeds_show_their_mean_and_its_t_interval(tmp_path: Path) -> None:
    """Of 1, 2 and 3: mean 2, standard error 1/sqrt(3), 97.5% point of Student's t with 2 degrees of freedom 4.302653."""
    runs = [write_run(tmp_path, f"run{seed}", {500: [seed, seed + 2.0]}, seed=seed) for seed in range(3)]
    (axes,) = plot_runs(runs, output=tmp_path / "curve.png").axes
    assert line(axes) == ([500], [2.0])
    assert band(axes, 500) == pytest.approx((2.0 - 4.302653 / 3**0.5, 2.0 + 4.302653 / 3**0.5), abs=1e-5)
    assert legend(axes) == ["jax: mean of 3 seeds; band: its 95% interval"]


def test_every_seed_counts_once_whatever_its_number_of_episodes(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "a", {0: [0.0]}, seed=0), write_run(tmp_path, "b", {0: [10.0] * 9}, seed=1)]
    (axes,) = plot_runs(runs, output=tmp_path / "curve.png").axes
    assert line(axes) == ([0], [5.0])


def test_one_panel_per_environment_and_one_line_per_backend(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path, "a", {0: [1.0]}, env="Hopper-v5", backend="torch"),
        write_run(tmp_path, "b", {0: [2.0]}, env="Hopper-v5", backend="jax"),
        write_run(tmp_path, "c", {0: [3.0]}, env="Ant-v5", backend="torch"),
    ]
    ant, hopper = plot_runs(runs, output=tmp_path / "curve.png").axes
    assert (ant.get_title(), hopper.get_title()) == ("Ant-v5", "Hopper-v5")
    assert [line(ant), line(hopper, 0), line(hopper, 1)] == [([0], [3.0]), ([0], [2.0]), ([0], [1.0])]
    assert [text.split(":")[0] for text in legend(hopper)] == ["jax", "torch"]
    assert hopper.get_lines()[0].get_linestyle() != hopper.get_lines()[1].get_linestyle(), "told apart in grey"
    assert ant.get_lines()[0].get_color() == hopper.get_lines()[1].get_color(), "a backend keeps its colour"


def test_a_table_is_drawn_as_its_runs_would_be_with_a_panel_for_each_preset(tmp_path: Path) -> None:
    rows = ["preset,env,backend,seed,step,return,std"]
    rows += [f"{preset},Ant-v5,jax,{seed},{step},{seed + step},9" for preset in "abcd" for seed in (0, 2) for step in (10, 20)]
    table = tmp_path / "curves.csv"
    table.write_text("\n".join([*rows, "a,Ant-v5,torch,0,10,7.5,9"]))
    panels = plot_runs([table], output=tmp_path / "curve.png").axes
    assert [axes.get_title() for axes in panels] == [f"Ant-v5 ({preset})" for preset in "abcd"]
    assert line(panels[0]) == ([10, 20], [11.0, 21.0]) and line(panels[0], 1) == ([10], [7.5])
    assert panels[3].get_position().y1 < panels[0].get_position().y0, "a row of panels holds three"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("env,backend,seed,step\nAnt-v5,jax,0,10\n", r"curves.csv: KeyError 'return', expected a table with the columns env, backend"),
        ("env,backend,seed,step,return\nAnt-v5,jax,0,10\n", "curves.csv: TypeError"),
        ("env,backend,seed,step,return\nAnt-v5,jax,0,10,nan\n", r"curves.csv has returns \[nan\] at step 10"),
        ("env,backend,seed,step,return\n", "curves.csv has no row"),
        (
            "env,preset,backend,seed,step,return\n" + 2 * "Ant-v5,a,jax,0,1000,3\n",
            r"curves.csv has two rows of Ant-v5 \(a\) on jax with seed 0 at step 1,000, expected one for each evaluation, .*: name",
        ),
    ],
)
def test_refuses_a_table_that_holds_no_curve(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "curves.csv").write_text(text)
    with pytest.raises(PlotError, match=message):
        plot_runs([tmp_path / "curves.csv"], output=tmp_path / "curve.png")


def test_runs_that_differ_in_a_setting_are_no_seeds_of_each_other(tmp_path: Path) -> None:
    def run(name: str, seed: int, rate: float, **changed: object) -> Path:
        directory = write_run(tmp_path, name, {0: [rate * 1_000.0 + seed]}, seed=seed)
        config = json.loads((directory / "config.json").read_text()) | {"cfg": {"learning_rate": rate, "seed": seed}, **changed}
        (directory / "config.json").write_text(json.dumps(config))
        return directory

    # Other steps, versions and numbers that follow from others are no settings: a resumed run may have them.
    slow = [run("a", 0, 0.001, steps=100, versions={"numpy": "1"}), run("b", 2, 0.001, steps=200, versions={"numpy": "2"})]
    fast = run("c", 0, 0.003, steps=100, update_to_data={"a": 1})
    (axes,) = plot_runs([*slow, fast], output=tmp_path / "curve.png").axes
    assert [line(axes, index) for index in range(2)] == [([0], [2.0]), ([0], [3.0])]
    assert legend(axes) == ["jax, learning_rate 0.001: mean of 2 seeds; band: its 95% interval", "jax, learning_rate 0.003: seed 0"]
    assert len({drawn.get_color() for drawn in axes.get_lines()}) == 2
    long = [run(f"e{last}", 3 + last, 0.001, env_kwargs={"goal": [0] * 6 + [last]}) for last in (1, 2)]
    (axes,) = plot_runs(long, output=tmp_path / "curve.png").axes
    assert len(axes.get_lines()) == 2, "lists that differ where a label does not reach"
    twin = run("d", 2, 0.001)
    with pytest.raises(PlotError, match=f"{slow[1]} and {twin} are both HalfCheetah-v5 on jax with the same settings and seed 2"):
        plot_runs([*slow, twin], output=tmp_path / "curve.png")


def test_a_group_is_drawn_where_all_its_seeds_were_evaluated(tmp_path: Path) -> None:
    """An interrupted seed must not let the mean jump where it ends."""
    runs = [write_run(tmp_path, "a", {0: [0.0], 10: [4.0], 20: [9.0]}, seed=0), write_run(tmp_path, "b", {0: [2.0], 10: [0.0]}, seed=1)]
    (axes,) = plot_runs(runs, output=tmp_path / "curve.png").axes
    assert line(axes) == ([0, 10], [1.0, 2.0])


def test_a_folder_of_runs_is_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for seed in range(2):
        write_run(tmp_path / "runs", f"seed={seed}", {0: [2.0 * seed], 10: [4.0 * seed]}, seed=seed)
    (tmp_path / "runs" / "notes").mkdir()
    (axes,) = plot_runs([tmp_path / "runs"], output=tmp_path / "curve.png").axes
    assert line(axes) == ([0, 10], [1.0, 2.0])
    assert legend(axes) == ["jax: mean of 2 seeds; band: its 95% interval"]


def test_steps_are_drawn_in_order(tmp_path: Path) -> None:
    run = write_run(tmp_path, "run", {100_000: [2.0], 9: [1.0]})
    (axes,) = plot_runs([run], output=tmp_path / "curve.svg").axes
    assert line(axes) == ([9, 100_000], [1.0, 2.0])


def test_refuses_what_is_no_run(tmp_path: Path) -> None:
    output = tmp_path / "curve.png"
    with pytest.raises(PlotError, match="no run directory: name at least one"):
        plot_runs([], output=output)
    with pytest.raises(PlotError, match="absent is no directory, expected a run directory"):
        plot_runs([tmp_path / "absent"], output=output)
    with pytest.raises(PlotError, match=r"config.json is missing"):
        plot_runs([tmp_path], output=output)
    run = write_run(tmp_path, "unevaluated", {0: [0.0]})
    (run / "evaluation.json").unlink()
    with pytest.raises(PlotError, match=r"evaluation.json is missing: .* not been evaluated yet"):
        plot_runs([run], output=output)
    assert not output.exists()


@pytest.mark.parametrize(
    ("evaluations", "message"),
    [
        ("[]", "holds no evaluation yet: train longer"),
        ('[{"step": 5, "returns": []}]', r"returns \[\] at step 5, expected at least one finite number"),
        ('[{"step": 5, "returns": [NaN]}]', "expected at least one finite number|not JSON|NaN"),
        ('[{"steps": 5, "returns": [1.0]}]', "KeyError 'step'"),
        ("[3]", "TypeError"),
    ],
)
def test_refuses_evaluations_that_hold_no_curve(tmp_path: Path, evaluations: str, message: str) -> None:
    run = write_run(tmp_path, "run", {})
    (run / "evaluation.json").write_text(evaluations)
    with pytest.raises(ValueError, match=message):
        plot_runs([run], output=tmp_path / "curve.png")


def test_refuses_one_seed_twice_and_seeds_without_a_common_step(tmp_path: Path) -> None:
    first = write_run(tmp_path, "first", {0: [0.0]})
    second = write_run(tmp_path, "second", {0: [1.0]})
    with pytest.raises(PlotError, match=r"first and .*second are both HalfCheetah-v5 on jax with the same settings and seed 0"):
        plot_runs([first, second], output=tmp_path / "curve.png")
    third = write_run(tmp_path, "third", {1: [1.0]}, seed=1)
    with pytest.raises(PlotError, match="no evaluation at a common step"):
        plot_runs([first, third], output=tmp_path / "curve.png")


def test_refuses_a_suffix_that_is_no_picture(tmp_path: Path) -> None:
    run = write_run(tmp_path, "run", {0: [0.0]})
    with pytest.raises(PlotError, match=r"suffix '.docx', expected one of .*\.png"):
        plot_runs([run], output=tmp_path / "curve.docx")
