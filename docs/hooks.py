"""Build steps of the site: figures, results, sources that pages link to, equations as MathML, and text that the code has already."""

import ast
import logging
import re
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import griffe
import gymnasium
from figures import life_cycle
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from sacref.config import presets

ROOT = Path(__file__).parents[1]
BESIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Page of the repository -> page of the site that has its content."""
AT_ROOT = ("contributing.md", "changelog.md")
LANGUAGES = {".py": "python", ".toml": "toml", ".cff": "yaml", ".json": "json"}
"""Suffix of a file that a page may link to -> how it is highlighted."""
PUBLIC = re.compile(r"^::: (\S+)(?:\n    options:\n      members: (.*))?", re.MULTILINE)
GYMNASIUM = set(dir(gymnasium.ObservationWrapper))
"""Methods that Gymnasium documents."""
logger = logging.getLogger("mkdocs.hooks.sacref")
"""Its warnings fail a strict build."""


def equation(source: str, *_: object, **__: object) -> str:
    """Return a `math` fence as MathML, which browsers draw without a script."""
    return f'<div class="equation">{convert(source, display="block")}</div>'


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Register the `math` fence."""
    _package.cache_clear()
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [{"name": "math", "class": "equation", "format": equation}]}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the figures, the results with their pictures, and a page for each file of the repository that a page links to."""
    for dark in (False, True):
        name = f"life-cycle{'-dark' if dark else ''}.svg"
        files.append(File.generated(config, name, content=life_cycle(dark=dark)))
    for path in sorted((ROOT / "results").rglob("*")):
        if path.suffix in (".png", ".gif", ".json") and (path.suffix != ".json" or path.name == "halfcheetah.json"):
            files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    for name in ("results/README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        files.append(File.generated(config, BESIDE.get(name, name), content=(ROOT / name).read_text()))
    linked = {
        target.removeprefix("./")
        for file in files.documentation_pages()
        for target in re.findall(r"\]\((?:\.\./)*([^)#:]+)", file.content_string)
    }
    for target in sorted(linked):
        path = ROOT / target
        if path.suffix in LANGUAGES and path.is_file() and files.get_file_from_path(target) is None:
            text = f'# {target}\n\n````{LANGUAGES[path.suffix]} linenums="1"\n{path.read_text().rstrip()}\n````\n'
            files.append(File.generated(config, f"source/{target}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links into the repository at what the site has of it, pair pictures with their dark ones, and fill in the markers."""
    here = page.file.src_uri
    up = "../" * here.count("/")
    markdown = re.sub(
        r'<picture>\s*<source [^>]*>\s*<img alt="([^"]*)" src="([^"]*)">\s*</picture>', r"![\1](\2)", markdown, flags=re.DOTALL
    )
    markdown = markdown.replace("<details>", "<details markdown>")
    markdown = re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", lambda link: _link(link, here, up, files), markdown)
    markdown = re.sub(r"<!-- spec: (.+) -->", lambda marker: _spec(marker[1]), markdown)
    markdown = re.sub(r"<!-- source: (\S+) (\S+) -->", lambda marker: _code(ROOT / marker[1], marker[2]), markdown)
    markdown = markdown.replace("<!-- presets -->", _presets())
    _require_docstrings([found.groups() for found in PUBLIC.finditer(markdown)], here)
    return markdown


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Keep each flag in a sentence on one line: browsers break lines behind hyphens."""
    flag = re.compile(r"(?<![\w-])--\w[\w-]*")
    return re.sub(r"<code>[^<]*</code>", lambda code: flag.sub(r'<span class="flag">\g<0></span>', code[0]), html)


def _link(link: re.Match[str], here: str, up: str, files: Files) -> str:
    image, text, target = link.groups()
    if ":" in target or target.startswith("#"):
        return link[0]
    target, _, anchor = target.partition("#")
    origin = ROOT / (here.upper().replace(".MD", ".md") if here in AT_ROOT else here if here.startswith("results/") else f"docs/{here}")
    path = (origin.parent / target).resolve()
    if not path.is_relative_to(ROOT):
        return link[0]
    name = path.relative_to(ROOT).as_posix()
    place = BESIDE.get(name, name.removeprefix("docs/"))
    if files.get_file_from_path(place) is None:
        place = f"source/{name}.md"
    if files.get_file_from_path(place) is None and path.is_dir():
        return text
    dark = str(Path(place).with_name(f"{Path(place).stem}-dark{Path(place).suffix}"))
    if image and files.get_file_from_path(dark) is not None:
        return f"![{text}]({up}{place}#only-light)![{text}]({up}{dark}#only-dark)"
    return f"{image}[{text}]({up}{place}{'#' + anchor if anchor else ''})"


def _spec(section: str) -> str:
    """Return a section of the spec's docstring, `Name: text` in each paragraph, as a definition list."""
    text = ast.get_docstring(ast.parse((ROOT / "sacref/spec/__init__.py").read_text())) or ""
    found = re.search(rf"^{re.escape(section)}\n-+\n(.*?)(?=\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        logger.warning("sacref.spec has no section %r", section)
        return ""
    entries = re.sub(r"\n\s+", " ", found[1]).splitlines()
    return "\n".join(f"{name}\n:   {meaning.strip()}\n" for name, _, meaning in (entry.partition(":") for entry in entries))


def _code(path: Path, name: str) -> str:
    """Return a function's source without its docstring, under its file's name; `name` may be `Class.method`."""
    source = path.read_text()
    node: ast.Module | ast.ClassDef | ast.FunctionDef = ast.parse(source)
    for part in name.split("."):
        found = [child for child in node.body if isinstance(child, ast.FunctionDef | ast.ClassDef) and child.name == part]
        if not found:
            logger.warning("%s has no %s", path, name)
            return ""
        node = found[0]
    lines = source.splitlines()[node.lineno - 1 : node.end_lineno]
    if ast.get_docstring(node) is not None:
        docstring = node.body[0]
        del lines[docstring.lineno - node.lineno : (docstring.end_lineno or 0) - node.lineno + 1]
    return f'```python title="{path.relative_to(ROOT)}"\n' + textwrap.dedent("\n".join(lines)) + "\n```"


def _presets() -> str:
    rows = ["| preset | source | beside the paper's settings | not reproduced |", "|---|---|---|---|"]
    for preset in presets.PRESETS.values():
        changes = "<br>".join(f"`{name} = {value}`" for name, value in preset.differences.items()) or "nothing"
        rows.append(f"| `{preset.name}` | {preset.title}: {preset.source} | {changes} | {'; '.join(preset.not_reproduced) or 'nothing'} |")
    return "\n".join(rows)


@cache
def _package() -> griffe.Module | griffe.Alias | griffe.Object:
    return griffe.load("sacref", search_paths=[ROOT], allow_inspection=False, resolve_aliases=True)


def _require_docstrings(shown: list[tuple[str | Any, ...]], page: str) -> None:
    """Warn of objects on a page of the API reference that have no docstring.

    Args:
        shown: dotted name, and the page's option `members`; None is all public methods.
        page: name of the page, for the message.
    """
    for name, chosen in shown:
        item = _package()[name.removeprefix("sacref.")]
        item = item.final_target if item.is_alias else item
        members = list(item.all_members.values()) if item.is_class else []
        public = [member.name for member in members if member.is_function and not member.name.startswith("_")]
        names = public if chosen is None else chosen.strip("[]").split(", ")
        for each in [item, *(member for member in members if member.name in names)]:
            if each.docstring is None and each.name not in GYMNASIUM:
                logger.warning("%s: %s has no docstring", page, each.path)
