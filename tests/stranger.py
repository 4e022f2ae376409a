"""The blocks of pages as someone pastes them, in order, in the folder that it is called in: `python stranger.py PAGE...`.

`nox -s stranger` calls it in a fresh environment. Python runs as it is written; so do the commands `sacref` and `pip install`, if what
they name is there. `sacref[extra]` is installed from CHECKOUT, since no index has it. Needs only the standard library and sacref.
"""

import glob
import os
import re
import shlex
import subprocess
import sys
import textwrap
from itertools import pairwise
from pathlib import Path

FENCE = re.compile(r"^(?P<indent> *)```(?P<language>python|console)[^\n]*\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
MOST_STEPS = 10_000
"""Steps of a command that trains; those that take longer are left out."""
LEFT_BEHIND = {
    "start": ("runs/pendulum/seed=0/curve.png", "runs/pendulum/seed=1/checkpoints", "curves.png", "report.html"),
    "using": ("runs/answers/curve.png", "policy.onnx"),
    "callbacks": ("runs/stopped/curve.png", "backup/measured"),
    "logging": ("runs/printed/metrics.jsonl",),
}
"""Page -> files that its blocks leave behind."""


def refusal(words: list[str]) -> str | None:
    """Why a command is left out; None where it is run."""
    if words[:2] == ["pip", "install"]:
        return None
    if words[0] != "sacref":
        return "a program of others"
    if words[1] == "train" and int(dict(pairwise(words)).get("--steps", MOST_STEPS + 1)) > MOST_STEPS:
        return "takes long"
    absent = [word for word in words[2:] if word.startswith("runs/") and words[1] != "train" and not glob.glob(word.removesuffix("/best"))]
    return f"{absent[0]} is not there" if absent else None


def run_command(line: str) -> None:
    """Run a line of a shell with the environment's own programs."""
    words = shlex.split(line, comments=True)
    if not words:
        return
    if (why := refusal(words)) is not None:
        print(f"  left out, {why}: {line}", flush=True)
        return
    print(f"  $ {line}", flush=True)
    if words[0] == "pip":
        checkout = os.environ["CHECKOUT"]
        line = shlex.join(re.sub(r"^sacref\[", f"{checkout}[", word) for word in words)
        line += f" --quiet --constraint {checkout}/constraints.txt"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(line, shell=True, check=True, env={**os.environ, "PATH": path})


def paste(page: Path) -> None:
    """Run the blocks of a page, its Python in one session."""
    text = page.read_text(encoding="utf-8")
    session = {"__name__": "__main__"}
    for block in FENCE.finditer(text):
        line = text.count("\n", 0, block.start()) + 1
        content = textwrap.dedent(block["text"])
        if block["language"] == "console":
            for command in content.splitlines():
                run_command(command)
        else:
            print(f"  {page.name}:{line}: {content.count(chr(10))} lines of Python", flush=True)
            exec(compile("\n" * line + content, str(page), "exec", dont_inherit=True), session)
    missing = [name for name in LEFT_BEHIND.get(page.stem, ()) if not Path(name).exists()]
    assert not missing, f"{page.name} left no {', '.join(missing)} behind"


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(argument, flush=True)
        paste(Path(argument))
