"""Pictures of the report: each is drawn for a light and for a dark page, and carries the digest of its data.

The digest tells a stale picture from a fresh one without drawing it, so it does not matter which machine or which Matplotlib drew it.
"""

import io
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

STYLE_VERSION = 5
"""Raised when pictures should be drawn again from the same data."""
DPI = 110
COLOURS = 128
"""Size of a picture's palette; a file with every shade is four times as large."""


class Theme(NamedTuple):
    """Colours of a page."""

    paper: str
    ink: str


LIGHT = Theme(paper="#ffffff", ink="#1f2328")
DARK = Theme(paper="#0d1117", ink="#e6edf3")


class Picture(NamedTuple):
    """A picture that the report needs."""

    digest: str
    """Hash of its data."""
    draw: Callable[[], Figure]
    """Draws it, in the colours of the current theme."""


def dark(path: Path) -> Path:
    """Return the path of the picture for a dark page, given that for a light one."""
    return path.with_stem(f"{path.stem}-dark")


def files(pictures: Mapping[Path, Picture]) -> dict[Path, tuple[Picture, Theme]]:
    """Return every file of the pictures."""
    return {file: (picture, theme) for path, picture in pictures.items() for file, theme in ((path, LIGHT), (dark(path), DARK))}


def digest_of(path: Path) -> str | None:
    """Return the digest that a picture carries; None if there is no such picture, or it carries none."""
    if not path.exists():
        return None
    with Image.open(path) as image:
        return image.info.get("Description")


def write(path: Path, picture: Picture, theme: Theme) -> None:
    """Draw a picture, and write it with its digest."""
    drawn = io.BytesIO()
    with _chosen(theme):
        picture.draw().savefig(drawn, format="png", dpi=DPI, metadata={"Software": None})
    said = PngInfo()
    said.add_text("Description", picture.digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(drawn) as image:
        few = image.convert("RGB").quantize(COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(path, optimize=True, pnginfo=said)


def ink() -> str:
    """Return the colour of text in the current theme."""
    return str(mpl.rcParams["text.color"])


def paper() -> str:
    """Return the colour of the page in the current theme."""
    return str(mpl.rcParams["figure.facecolor"])


def _chosen(theme: Theme) -> AbstractContextManager[None]:
    """Draw in the colours of a theme."""
    return mpl.rc_context(
        {
            "figure.facecolor": theme.paper,
            "axes.facecolor": theme.paper,
            "savefig.facecolor": theme.paper,
            "legend.facecolor": theme.paper,
            "text.color": theme.ink,
            "axes.labelcolor": theme.ink,
            "axes.titlecolor": theme.ink,
            "axes.edgecolor": theme.ink,
            "xtick.color": theme.ink,
            "ytick.color": theme.ink,
            "grid.color": "#808080",
        }
    )
