"""Videos of episodes under an agent's deterministic actions, as a GIF or an MP4 file."""

import importlib
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sacref import envs
from sacref.agent.protocol import Agent
from sacref.algorithm.tree import Tree
from sacref.config.callables import description
from sacref.config.train_config import Environment, EnvironmentFactory, Wrapper
from sacref.envs.interface import EnvWrapper, Infos, Space, Step
from sacref.envs.vector import closing
from sacref.spec.arrays import NumpyArray
from sacref.training.evaluation import AllDivergedError, Evaluation, evaluate

MOST_FPS = 30.0
"""Frames per second of a video, unless others are given: of environments that take more steps, every second, third, ... is shown."""
GIF_FPS = 50.0
"""A GIF counts in hundredths of a second, and what is shown for one of them, browsers show for ten."""
PALETTE_FRAMES = 32
"""Frames of the whole from which a GIF's colours are chosen."""

CAMERA = {"camera_id", "camera_name", "default_camera_config"}
"""Arguments of Gymnasium's MuJoCo tasks. Without any, some stay at the start while the robot runs out of the picture; their camera named
track follows it, and where there is none, the task's own view stays."""

GL_FIX = (
    "install EGL (a GPU's driver brings it, and so does the package libegl1) or OSMesa (libosmesa6), and set MUJOCO_GL=egl or "
    "MUJOCO_GL=osmesa; leave it unset to have the first one taken that draws"
)
# In a process of its own: what fails may abort it, and PyOpenGL keeps the first platform that it was loaded for.
GL_PROBE = """
import importlib, sys
import mujoco
context = importlib.import_module(f"mujoco.{sys.argv[1]}").GLContext(16, 16)
context.make_current()
mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), mujoco.mjtFontScale.mjFONTSCALE_150)
"""


class VideoError(RuntimeError):
    """An environment that cannot be drawn, or a file that cannot be written; the message says why, and the fix."""


@dataclass(frozen=True)
class Video:
    """A video that was drawn."""

    evaluation: Evaluation
    """The whole episodes, in order, whether all of their steps are shown or not."""
    frames: int
    fps: float
    """Frames per second of the file."""
    width: int
    """Pixels."""
    height: int


def render_episodes(
    agent: Agent,
    output: str | Path,
    *,
    env: str | EnvironmentFactory,
    env_kwargs: Mapping[str, object] | None = None,
    wrappers: Sequence[Wrapper] = (),
    state_space: Space | None = None,
    episodes: int = 1,
    seed: int = 0,
    max_episode_steps: int | None = None,
    fps: float | None = None,
    seconds: float | None = None,
    width: int | None = None,
    height: int | None = None,
    on_step: Callable[[], object] | None = None,
) -> Video:
    """Draw whole episodes with deterministic actions. The agent learns nothing: see `sacref.evaluate`, which runs them.

    The frame after the reset is shown, and then that of every k-th step, where k is as near to real time as whole steps come. MuJoCo's
    tasks draw by OpenGL. On Linux the environment variable MUJOCO_GL is set to the first of glfw (with a display), egl and osmesa that
    draws, where it is not set.

    Args:
        agent: what acts.
        output: the file; its suffix chooses the format, .gif, or .mp4 (which needs imageio-ffmpeg).
        env, env_kwargs, wrappers: of the environment that is made to be drawn; see `sacref.envs.make`. `render_mode` is "rgb_array".
        state_space: of the privileged states that the environment hands over; None for none.
        episodes: how many, one after the other, at least 1.
        seed: of the episodes' starts: seed, seed + 1, ... One that diverges is left out of the returns.
        max_episode_steps: steps after which an episode is cut, as `sacref.evaluate` takes it.
        fps: frames per second; None is real time, with at most 30. A GIF has at most 50.
        seconds: how much of each episode is shown, in seconds of the file, from its start on; None for all.
        width, height: pixels of a frame; None leaves it to the environment.
        on_step: called after every step.

    Raises:
        VideoError: if the environment cannot be drawn, or the file not be written. EnvError: if the environment cannot be made.
        EvaluationError: if all episodes diverge. ValueError: if an argument is out of range.
    """
    path = Path(output).expanduser()
    _require_positive(episodes=episodes, fps=fps, seconds=seconds, width=width, height=height)
    if path.suffix not in _WRITERS:
        raise ValueError(f"output is {path}, expected a name that ends in {' or '.join(_WRITERS)}")
    if path.suffix == ".gif" and fps is not None and fps > GIF_FPS:
        raise ValueError(f"fps is {fps:g}, expected at most {GIF_FPS:g} for a GIF: ask for less, or for an .mp4")
    if path.suffix == ".mp4" and find_spec("imageio_ffmpeg") is None:
        raise VideoError(f'{path} needs imageio-ffmpeg, which is not installed: pip install "sacref[video]", or write a .gif')
    problem = prepare_gl()
    arguments: dict[str, object] = {**(env_kwargs or {}), "render_mode": "rgb_array"}
    if _is_mujoco_id(env):
        if problem is not None:  # said here, since where MUJOCO_GL names what does not work, MuJoCo cannot even be imported
            raise VideoError(f"{env} cannot be drawn: {problem}")
        # Drawn in that size; what others draw is scaled.
        arguments |= {name: size for name, size in (("width", width), ("height", height)) if size is not None}
        if not arguments.keys() & CAMERA:
            arguments["camera_name"] = "track"
    show = _Show(path, fps, seconds, (width, height), on_step)
    around: list[Wrapper] = [*wrappers, partial(_Drawn, show=show, gl_problem=problem)]
    try:
        made = envs.make(env, 1, env_kwargs=arguments, wrappers=around)
    except TypeError as error:
        if isinstance(env, str):
            raise
        raise VideoError(
            f"{description(env)} cannot be made with render_mode='rgb_array' ({error}): to be drawn, it needs that argument, and a method "
            f"render() that returns an image"
        ) from error
    found: list[Evaluation] = []
    diverged: list[int] = []
    with closing(made):
        for start in range(seed, seed + episodes):
            try:
                one = evaluate(agent, made, episodes=1, seed=start, max_episode_steps=max_episode_steps, state_space=state_space)
                found.append(one)
            except AllDivergedError:
                diverged.append(start)
                if len(diverged) == episodes:
                    raise
    show.write()
    evaluation = Evaluation(
        tuple(one.returns[0] for one in found),
        tuple(one.lengths[0] for one in found),
        tuple(diverged),
        sum(one.truncated for one in found),
    )
    return Video(evaluation, len(show), show.fps, show.width, show.height)


def prepare_gl() -> str | None:
    """Set MUJOCO_GL to what draws here, where it is not set; try out what it says, where it is.

    Returns:
        Why nothing draws, and the fix; None if something does, and where MuJoCo is not installed.
    """
    if find_spec("mujoco") is None:
        return None
    given = os.environ.get("MUJOCO_GL")
    display = sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    reasons = []
    for name in (given,) if given else (*(("glfw",) if display else ()), "egl", "osmesa"):
        reason = _try_gl(name)
        if reason is None:
            os.environ["MUJOCO_GL"] = name
            return None
        reasons.append(f"{name} ({reason})")
    said = f"MUJOCO_GL is {given}, which does not draw here" if given else "MUJOCO_GL is not set, and nothing draws here"
    return f"{said}: {'; '.join(reasons)}. Expected a platform of OpenGL that works: {GL_FIX}"


def _try_gl(name: str) -> str | None:
    """Return why MuJoCo cannot draw by this platform of OpenGL; None if it can."""
    try:
        tried = subprocess.run(
            [sys.executable, "-c", GL_PROBE, name], capture_output=True, text=True, timeout=120, env={**os.environ, "MUJOCO_GL": name}
        )
    except subprocess.TimeoutExpired as error:
        return f"no answer within {error.timeout:g} s"
    if tried.returncode == 0:
        return None
    lines = [line for line in tried.stderr.splitlines() if line and not line.startswith(" ")]
    # The error itself; what stands after it comes from objects that are taken apart.
    errors = [line for line in lines if "Error" in line.partition(":")[0]]
    return (errors or lines or [f"it ended with status {tried.returncode}"])[0][:200]


class _Drawn(EnvWrapper):
    """Wrapper that hands each picture of its environment to `show`."""

    def __init__(self, env: Environment, show: "_Show", gl_problem: str | None) -> None:
        super().__init__(env)
        self.show = show
        self.name = type(env.unwrapped).__name__ if env.unwrapped.spec is None else env.unwrapped.spec.id
        if gl_problem is not None and _is_simulation(env.unwrapped):
            raise VideoError(f"{self.name} cannot be drawn: {gl_problem}")

    def reset(self, **arguments: Any) -> tuple[Tree, Infos]:
        returned = super().reset(**arguments)
        self.show.begin(self.metadata.get("render_fps"), self._draw)
        return returned

    def step(self, action: NumpyArray) -> Step:
        returned = super().step(action)
        self.show.step(self._draw)
        return returned

    def _draw(self) -> NDArray[np.uint8]:
        try:
            picture: object = self.env.render()
        except Exception as error:  # of a library that draws, which may raise anything
            raise VideoError(
                f"{self.name} cannot be drawn ({type(error).__name__}: {error}): install what that names, or mend the environment's render"
            ) from error
        if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
            got = f"{picture.dtype} {picture.shape}" if isinstance(picture, np.ndarray) else f"a {type(picture).__name__}"
            raise VideoError(f"{self.name} drew {got}, expected uint8 (height, width, 3): give the environment a render_mode of rgb_array")
        return np.ascontiguousarray(picture)


class _Show:
    """Frames that are shown, and the writer of their file.

    Args:
        size: (width, height) that a frame is scaled to; None leaves it as it was drawn.
    """

    def __init__(
        self,
        path: Path,
        fps: float | None,
        seconds: float | None,
        size: tuple[int | None, int | None],
        on_step: Callable[[], object] | None,
    ) -> None:
        self._path, self._asked, self._seconds, self._size, self._on_step = path, fps, seconds, size, on_step
        # Compressed: a GIF's colours are chosen from the whole, and the frames of a long episode are a gigabyte.
        self._frames: list[bytes] = []
        self._every, self._steps, self._shown = 1, 0, 0
        self.fps, self.width, self.height = 0.0, 0, 0

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return np.frombuffer(zlib.decompress(self._frames[index]), np.uint8).reshape(self.height, self.width, 3)

    def begin(self, render_fps: float | None, draw: Callable[[], NDArray[np.uint8]]) -> None:
        """Begin an episode of an environment that takes so many steps in a second; None if it does not say."""
        rate = float(render_fps or self._asked or MOST_FPS)
        self._every = max(1, round(rate / self._asked) if self._asked else int(np.ceil(rate / MOST_FPS)))
        self.fps = self._asked or rate / self._every
        self._steps = self._shown = 0
        self._take(draw)

    def step(self, draw: Callable[[], NDArray[np.uint8]]) -> None:
        """Take a step of the environment."""
        self._steps += 1
        if self._steps % self._every == 0:
            self._take(draw)
        if self._on_step is not None:
            self._on_step()

    def write(self) -> None:
        """Write the file in one move, so that one that exists is whole."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_name(f".{self._path.stem}.{os.getpid()}{self._path.suffix}")
        try:
            _WRITERS[self._path.suffix](part, self)
            part.replace(self._path)
        finally:
            part.unlink(missing_ok=True)

    def _take(self, draw: Callable[[], NDArray[np.uint8]]) -> None:
        if self._seconds is not None and self._shown >= max(1, round(self._seconds * self.fps)):
            return
        frame = draw()
        if not self._frames:
            self.width, self.height = self._size[0] or frame.shape[1], self._size[1] or frame.shape[0]
            if self._path.suffix == ".mp4" and (self.width % 2 or self.height % 2):
                raise ValueError(f"a frame has {self.width} x {self.height} pixels, expected even numbers for an .mp4: ask for others")
        if frame.shape[:2] != (self.height, self.width):
            frame = np.asarray(Image.fromarray(frame).resize((self.width, self.height), Image.Resampling.LANCZOS))
        self._frames.append(zlib.compress(frame.tobytes(), 1))
        self._shown += 1


def _write_gif(path: Path, show: _Show) -> None:
    """Write a GIF with one palette, undithered: what stands still is then stored once."""
    count = len(show)
    chosen = np.linspace(0, count - 1, min(PALETTE_FRAMES, count)).astype(int).tolist()
    palette = Image.fromarray(np.concatenate([show[index] for index in chosen])).quantize(256)
    pictures = [Image.fromarray(show[index]).quantize(palette=palette, dither=Image.Dither.NONE) for index in range(count)]
    # Hundredths of a second, rounded so that the whole keeps its time.
    ends = [round(100 * index / show.fps) for index in range(count + 1)]
    durations = [10 * (end - begin) for begin, end in pairwise(ends)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=False)


def _write_mp4(path: Path, show: _Show) -> None:
    imageio = importlib.import_module("imageio")
    with imageio.get_writer(path, fps=show.fps, macro_block_size=2) as writer:
        for index in range(len(show)):
            writer.append_data(show[index])


_WRITERS: Mapping[str, Callable[[Path, _Show], None]] = {".gif": _write_gif, ".mp4": _write_mp4}


def _is_mujoco_id(env: str | EnvironmentFactory) -> bool:
    """Return whether a Gymnasium id is one of its MuJoCo tasks, which take a width and a height."""
    spec = gymnasium.registry.get(env) if isinstance(env, str) else None
    return spec is not None and str(spec.entry_point).startswith("gymnasium.envs.mujoco")


def _is_simulation(task: object) -> bool:
    mujoco = sys.modules.get("mujoco")
    return mujoco is not None and isinstance(getattr(task, "model", None), mujoco.MjModel)


def _require_positive(*, episodes: int, **values: float | None) -> None:
    if episodes < 1:
        raise ValueError(f"episodes is {episodes}, expected at least 1")
    for name, value in values.items():
        if value is not None and not 0 < value < np.inf:
            raise ValueError(f"{name} is {value}, expected more than 0")
