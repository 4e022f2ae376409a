"""Videos: the right steps at the right pace, of the episodes that an evaluation runs; and what is said where nothing can be drawn."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import sacref
from sacref import envs
from sacref.agent.protocol import Agent
from sacref.training import video
from sacref.training.evaluation import evaluate
from sacref.training.video import VideoError, render_episodes
from tests.envs.painted import HEIGHT, WIDTH, PaintedEnv
from tests.fake_agent import FakeAgent

needs_mujoco = pytest.mark.skipif(find_spec("mujoco") is None, reason="mujoco, of the extra of that name, is not installed")


@pytest.fixture(autouse=True)
def gl() -> Iterator[None]:
    """MUJOCO_GL is after each test as it was."""
    before = os.environ.get("MUJOCO_GL")
    yield
    os.environ.pop("MUJOCO_GL", None)
    if before is not None:
        os.environ["MUJOCO_GL"] = before


@pytest.fixture
def no_gl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "prepare_gl", lambda: "nothing draws here")


def frames(path: Path) -> tuple[list[NDArray[Any]], list[int]]:
    """Pictures of a GIF, and milliseconds of each."""
    pictures, durations = [], []
    with Image.open(path) as file:
        for index in range(getattr(file, "n_frames", 1)):
            file.seek(index)
            pictures.append(np.asarray(file.convert("RGB")))
            durations.append(file.info["duration"])
    return pictures, durations


@pytest.mark.usefixtures("no_gl")
@pytest.mark.parametrize(
    ("arguments", "steps", "fps"),
    [
        ({}, range(0, 61, 4), 25.0),  # of 100 steps a second, at most 30 are shown
        ({"fps": 50}, range(0, 61, 2), 50.0),
        ({"fps": 12}, range(0, 61, 8), 12.0),
        ({"fps": 12, "seconds": 0.25}, (0, 8, 16), 12.0),
        ({"seconds": 0.001}, (0,), 25.0),
        ({"fps": 20, "seconds": 0.1, "episodes": 2}, (0, 5, 0, 5), 20.0),
    ],
)
def test_the_file_shows_the_right_steps_at_the_right_pace(arguments: dict[str, Any], steps: Any, fps: float, tmp_path: Path) -> None:
    path, counted = tmp_path / "new" / "video.gif", []
    made = render_episodes(FakeAgent(), path, env=PaintedEnv, on_step=lambda: counted.append(1), **arguments)
    pictures, durations = frames(path)
    assert [int(picture[0, 0, 0]) for picture in pictures] == pytest.approx([3 * step for step in steps], abs=2)
    assert (made.frames, made.fps, made.width, made.height) == (len(steps), fps, WIDTH, HEIGHT)
    assert sum(durations) == pytest.approx(1000 * len(steps) / fps, abs=5)
    assert max(durations) - min(durations) in (0, 10)
    assert {picture.shape for picture in pictures} == {(HEIGHT, WIDTH, 3)}
    assert len(counted) == sum(made.evaluation.lengths) == 60 * arguments.get("episodes", 1)
    assert [file.name for file in path.parent.iterdir()] == ["video.gif"]


@pytest.mark.usefixtures("no_gl")
def test_an_environment_that_names_no_pace_is_shown_step_by_step(tmp_path: Path) -> None:
    path = tmp_path / "video.gif"
    made = render_episodes(FakeAgent(), path, env=PaintedEnv, env_kwargs={"render_fps": None, "length": 9}, fps=10)
    assert (made.frames, sum(frames(path)[1])) == (10, 1000)


@pytest.mark.usefixtures("no_gl")
def test_the_episodes_are_those_of_evaluations_with_the_seeds(tmp_path: Path) -> None:
    agent: Agent = FakeAgent()
    made = render_episodes(agent, tmp_path / "video.gif", env=PaintedEnv, episodes=3, seed=7)
    alone = [evaluate(agent, envs.make(PaintedEnv, 1), episodes=1, seed=seed).returns[0] for seed in (7, 8, 9)]
    assert list(made.evaluation.returns) == alone
    assert len(set(alone)) == 3


class Breaking(PaintedEnv):
    """Diverges in the episode of seed 8, and cannot be closed."""

    diverges = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.diverges = seed == 8
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, np.nan if self.diverges else reward, *rest

    def close(self) -> None:
        raise OSError("no answer")


@pytest.mark.usefixtures("no_gl")
def test_an_episode_that_diverges_or_does_not_end_costs_no_video(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = render_episodes(FakeAgent(), tmp_path / "video.gif", env=Breaking, episodes=3, seed=7, max_episode_steps=5)
    assert (made.evaluation.lengths, made.evaluation.diverged, made.evaluation.truncated) == ((5, 5), (8,), 2)
    assert (tmp_path / "video.gif").is_file() and "could not be closed (OSError: no answer)" in caplog.text


@pytest.mark.usefixtures("no_gl")
def test_one_seed_gives_one_file(tmp_path: Path) -> None:
    first, again, other = (tmp_path / f"{name}.gif" for name in ("first", "again", "other"))
    for path, seed in ((first, 1), (again, 1), (other, 2)):
        render_episodes(FakeAgent(), path, env=PaintedEnv, seed=seed)
    assert first.read_bytes() == again.read_bytes()
    assert not np.array_equal(frames(first)[0][0], frames(other)[0][0])


@pytest.mark.usefixtures("no_gl")
def test_what_was_drawn_in_another_size_is_scaled(tmp_path: Path) -> None:
    path = tmp_path / "video.gif"
    made = render_episodes(FakeAgent(), path, env=PaintedEnv, width=20, seconds=0.2)
    pictures, _ = frames(path)
    assert {picture.shape for picture in pictures} == {(HEIGHT, 20, 3)}
    assert (made.width, made.height) == (20, HEIGHT)
    assert [int(picture[3, 10, 0]) for picture in pictures] == pytest.approx([0, 12, 24, 36, 48], abs=3)


@pytest.mark.usefixtures("no_gl")
def test_wrappers_stand_between_the_agent_and_the_environment_as_in_training(tmp_path: Path) -> None:
    def doubled(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
        return gymnasium.wrappers.TransformReward(env, lambda reward: 2.0 * float(reward))

    plain, twice = (
        render_episodes(FakeAgent(), tmp_path / "video.gif", env=PaintedEnv, wrappers=wrappers) for wrappers in ((), (doubled,))
    )
    assert twice.evaluation.mean == pytest.approx(2 * plain.evaluation.mean)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output": "video.avi"}, r"output is video.avi, expected a name that ends in .gif or .mp4"),
        ({"fps": 60}, "fps is 60, expected at most 50 for a GIF"),
        ({"fps": 0}, "fps is 0, expected more than 0"),
        ({"seconds": -1.0}, "seconds is -1.0, expected more than 0"),
        ({"width": 0}, "width is 0, expected more than 0"),
        ({"episodes": 0}, "episodes is 0, expected at least 1"),
    ],
)
def test_what_cannot_be_asked_for(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render_episodes(FakeAgent(), **{"output": "video.gif", "env": PaintedEnv, **arguments})


def test_an_mp4_needs_its_library_and_even_sizes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(video, "find_spec", lambda name: None)
    with pytest.raises(VideoError, match=r'needs imageio-ffmpeg, which is not installed: pip install "sacref\[video\]", or write a .gif'):
        render_episodes(FakeAgent(), tmp_path / "video.mp4", env=PaintedEnv)
    monkeypatch.setattr(video, "find_spec", lambda name: name == "imageio_ffmpeg" or None)
    with pytest.raises(ValueError, match=r"a frame has 7 x 6 pixels, expected even numbers for an .mp4"):
        render_episodes(FakeAgent(), tmp_path / "video.mp4", env=PaintedEnv, width=7)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_gl")
@pytest.mark.skipif(find_spec("imageio_ffmpeg") is None, reason="imageio-ffmpeg is not installed")
def test_an_mp4_has_the_frames_and_the_pace(tmp_path: Path) -> None:
    imageio: Any = importlib.import_module("imageio")

    path = tmp_path / "video.mp4"
    made = render_episodes(FakeAgent(), path, env=PaintedEnv, fps=20, width=64, height=48)
    with imageio.get_reader(path) as reader:
        found = reader.get_meta_data()
        assert (found["fps"], found["size"], reader.count_frames()) == (20.0, (64, 48), made.frames)


class Broken(PaintedEnv):
    """What it draws is `picture`, or raises it."""

    def __init__(self, picture: Any, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.picture = picture

    def render(self) -> Any:
        if isinstance(self.picture, Exception):
            raise self.picture
        return self.picture


@pytest.mark.usefixtures("no_gl")
@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (None, r"Broken drew a NoneType, expected uint8 \(height, width, 3\): give the environment a render_mode of rgb_array"),
        (np.zeros((4, 4), np.uint8), r"Broken drew uint8 \(4, 4\), expected uint8"),
        (np.zeros((4, 4, 3)), r"Broken drew float64 \(4, 4, 3\), expected uint8"),
        (
            gymnasium.error.DependencyNotInstalled("pygame is not installed"),
            r"Broken cannot be drawn \(DependencyNotInstalled: pygame is not installed\): install what that names",
        ),
    ],
)
def test_an_environment_that_draws_nothing_is_named(picture: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=message):
        render_episodes(FakeAgent(), tmp_path / "video.gif", env=partial(Broken, picture))
    assert list(tmp_path.iterdir()) == []


class Blind(PaintedEnv):
    def __init__(self) -> None:
        super().__init__()


def test_an_environment_that_cannot_be_asked_to_draw_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"Blind cannot be made with render_mode='rgb_array' \(.*\): to be drawn, it needs that argument"):
        render_episodes(FakeAgent(), tmp_path / "video.gif", env=Blind)


def trying(working: str, tried: list[str]) -> Callable[[str], str | None]:
    def try_gl(name: str) -> str | None:
        tried.append(name)
        return None if name == working else f"no lib{name}"

    return try_gl


@needs_mujoco
@pytest.mark.parametrize(
    ("given", "display", "working", "tried", "message"),
    [
        (None, "", "egl", ["egl"], None),
        (None, "", "osmesa", ["egl", "osmesa"], None),
        (None, ":0", "egl", ["glfw", "egl"], None),
        ("osmesa", ":0", "osmesa", ["osmesa"], None),
        (None, "", "", ["egl", "osmesa"], r"MUJOCO_GL is not set, and nothing draws here: egl \(no libegl\); osmesa \(no libosmesa\)\. "),
        ("osmesa", "", "egl", ["osmesa"], r"MUJOCO_GL is osmesa, which does not draw here: osmesa \(no libosmesa\)\. "),
    ],
)
def test_the_first_platform_that_draws_is_taken(
    given: str | None, display: str, working: str, tried: list[str], message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    os.environ.pop("MUJOCO_GL", None)
    if given is not None:
        os.environ["MUJOCO_GL"] = given
    names: list[str] = []
    monkeypatch.setattr(video, "_try_gl", trying(working, names))
    problem = video.prepare_gl()
    assert names == tried
    if message is None:
        assert problem is None
        assert os.environ["MUJOCO_GL"] == working
    else:
        assert problem is not None
        assert problem.startswith(message.replace("\\", ""))
        assert problem.endswith(f"Expected a platform of OpenGL that works: {video.GL_FIX}")
        assert os.environ.get("MUJOCO_GL") == given


@needs_mujoco
def test_a_platform_that_there_is_none_of_says_why() -> None:
    reason = video._try_gl("nogl")
    assert reason is not None
    assert reason.startswith("ModuleNotFoundError: No module named 'mujoco.nogl'") or "MUJOCO_GL" in reason


@pytest.mark.usefixtures("no_gl")
@needs_mujoco
def test_a_simulation_is_refused_where_no_opengl_draws(tmp_path: Path) -> None:
    def make(**arguments: Any) -> gymnasium.Env[Any, Any]:
        return gymnasium.make("InvertedPendulum-v5", **arguments)

    for env in ("InvertedPendulum-v5", make):
        with pytest.raises(VideoError, match=r"^InvertedPendulum-v5 cannot be drawn: nothing draws here$"):
            render_episodes(FakeAgent(), tmp_path / "video.gif", env=env)


@needs_mujoco
def test_a_platform_that_is_named_and_does_not_draw_is_one_message() -> None:
    program = "from sacref.training.video import render_episodes; render_episodes(None, 'video.gif', env='InvertedPendulum-v5')"
    env = {**os.environ, "MUJOCO_GL": "nogl"}
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    assert finished.stderr.splitlines()[-1].startswith(
        "sacref.training.video.VideoError: InvertedPendulum-v5 cannot be drawn: MUJOCO_GL is nogl, which does not draw here: nogl ("
    )


@needs_mujoco
def test_a_simulation_is_drawn_in_the_size_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if problem := video.prepare_gl():
        pytest.skip(problem)
    monkeypatch.setattr(video, "prepare_gl", lambda: None)  # which it takes seconds to find out again
    first, again = tmp_path / "first.gif", tmp_path / "again.gif"
    made = render_episodes(FakeAgent(), first, env="InvertedPendulum-v5", width=64, height=48, seed=3)
    assert sacref.render_episodes(FakeAgent(), again, env="InvertedPendulum-v5", width=64, height=48, seed=3) == made
    assert made.evaluation == evaluate(FakeAgent(), envs.make("InvertedPendulum-v5", 1), episodes=1, seed=3)
    (steps,) = made.evaluation.lengths
    pictures, durations = frames(first)
    assert made.frames == len(pictures) == steps + 1
    assert (made.fps, durations) == (25.0, [40] * len(pictures))
    assert {picture.shape for picture in pictures} == {(48, 64, 3)}
    assert float(np.std(pictures[0])) > 5, "a picture of one colour shows nothing"
    assert any(not np.array_equal(pictures[0], picture) for picture in pictures[1:])
    assert first.read_bytes() == again.read_bytes()


@needs_mujoco
@pytest.mark.parametrize(("given", "camera"), [({}, "track"), ({"camera_name": "other"}, "other"), ({"camera_id": 0}, None)])
def test_the_camera_follows_the_robot_unless_the_run_names_another(
    given: dict[str, Any], camera: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(video, "prepare_gl", lambda: None)
    asked: list[dict[str, Any]] = []

    def make(env: str, num_envs: int, *, env_kwargs: dict[str, Any], wrappers: Any) -> Any:
        asked.append(env_kwargs)
        raise VideoError("far enough")

    monkeypatch.setattr(envs, "make", make)
    with pytest.raises(VideoError, match="far enough"):
        render_episodes(FakeAgent(), tmp_path / "video.gif", env="HalfCheetah-v5", env_kwargs=given, height=60)
    assert [arguments.get("camera_name") for arguments in asked] == [camera]
    assert (asked[0]["render_mode"], asked[0]["height"], "width" in asked[0]) == ("rgb_array", 60, False)
