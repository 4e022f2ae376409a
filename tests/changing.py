"""Worked examples of docs/changing.md: each a diff and a check."""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "changing.md"


class Example(NamedTuple):
    """A change of the code."""

    title: str
    diff: str
    check: str
    """A program that fails without the change."""

    @property
    def files(self) -> set[str]:
        """The files that are changed or added."""
        return set(re.findall(r"^\+\+\+ (\S+)", self.diff, re.MULTILINE))

    def apply(self, folder: Path) -> None:
        """Change the code in `folder`."""
        subprocess.run(["git", "apply", "-p0", "-"], input=self.diff, text=True, cwd=folder, check=True)


def examples() -> dict[str, Example]:
    """Return the examples by the headings of their sections."""
    sections = re.findall(r"^## (.+?)\n(.+?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    blocks = {title: dict(re.findall(r"```(diff|python)\n(.*?)```", text, re.DOTALL)) for title, text in sections}
    return {title: Example(title, of["diff"], of["python"]) for title, of in blocks.items()}
