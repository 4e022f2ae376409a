"""Pictures for light and dark pages, which know what they were drawn from."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from bench.core import pictures
from bench.core.page import digest, image
from bench.core.pictures import DARK, LIGHT, Picture


def draw() -> Figure:
    """A line of JAX's blue, and text."""
    figure = Figure(figsize=(2, 1))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#0072B2", linewidth=20)
    axes.set_title("ink")
    return figure


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The picture for a light page, that for a dark one beside it."""
    path = tmp_path / "a" / "b.png"
    for file, (picture, theme) in pictures.files({path: Picture("0f", draw)}).items():
        pictures.write(file, picture, theme)
    return path


def test_each_picture_is_drawn_for_both_pages(written: Path) -> None:
    assert sorted(path.name for path in written.parent.iterdir()) == ["b-dark.png", "b.png"]
    for path, theme in ((written, LIGHT), (pictures.dark(written), DARK)):
        with Image.open(path) as drawn:
            pixels = np.asarray(drawn.convert("RGB")).astype(int)
        paper, ink = (np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) for colour in theme)
        assert np.abs(pixels[0, 0] - paper).max() <= 2
        # The frame is in the colour of the text, the line in its own on both pages.
        for colour in (ink, np.array([0x00, 0x72, 0xB2])):
            assert np.abs(pixels - colour).max(axis=2).min() <= 4


def test_a_picture_carries_its_digest_and_repeats_itself(written: Path) -> None:
    assert pictures.digest_of(written) == pictures.digest_of(pictures.dark(written)) == "0f"
    before = written.read_bytes()
    pictures.write(written, Picture("0f", draw), LIGHT)
    assert written.read_bytes() == before
    assert pictures.digest_of(written.with_name("none.png")) is None


def test_a_theme_begins_and_ends_with_its_picture(tmp_path: Path) -> None:
    chosen = []

    def asked() -> Figure:
        chosen.append((pictures.paper(), pictures.ink()))
        return draw()

    pictures.write(tmp_path / "a.png", Picture("0f", asked), DARK)
    assert chosen == [DARK]
    assert (pictures.paper(), pictures.ink()) == ("white", "black")
    with Image.open(tmp_path / "a.png") as drawn:
        assert drawn.size == (2 * pictures.DPI, pictures.DPI)


def test_the_page_chooses_by_the_readers_colours(tmp_path: Path) -> None:
    assert image('A "curve"', tmp_path / "learning" / "a.png", tmp_path) == (
        '<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="learning/a-dark.png">\n'
        '  <img alt="A &quot;curve&quot;" src="learning/a.png">\n</picture>\n'
    )


def test_a_digest_does_not_see_the_last_digits() -> None:
    assert digest({"a": [1.0, (2.0, None)]}) == digest({"a": [1.0 + 1e-12, (2.0, None)]})
    assert digest({"a": [1.0, (2.0, None)]}) != digest({"a": [1.001, (2.0, None)]})
    assert digest(100_000_000) != digest(100_000_001)
