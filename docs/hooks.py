"""What the site needs beyond docs/: the README, the changelog and the examples as pages, and the pages of the commands.

Links are written as GitHub reads them. Those between pages are made to fit the site; those to other files of the
repository go to its address if pyproject.toml has one, and are plain text otherwise.
"""

from __future__ import annotations

import posixpath
import re
import subprocess
import sys
import tomllib
from html import unescape
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "examples.md",
}
"""Files outside docs/ that are pages of the site."""
COMMANDS = "command-line.md"

_FORMULA = re.compile(r"\$`([^`\n]+)`\$")
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]`]|`[^`]*`)*)\]\((?P<target>[^()\s]+)\)")


def on_config(config: MkDocsConfig) -> None:
    """Typeset blocks of the language `math`, formulas on GitHub too, as MathML, for which browsers need nothing."""
    fence = {"name": "math", "class": "math", "format": display}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]


def display(source: str, *_: object, **__: object) -> str:
    """A formula on lines of its own."""
    return f'<div class="formula">{convert(source.strip(), display="block")}</div>'


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that do not lie in docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, COMMANDS, content=command_line()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Typeset the formulas in the text of a page, and make its links fit the site."""
    return site_links(typeset(markdown), page.file.src_uri, repository())


def typeset(markdown: str) -> str:
    """The formulas within lines, which GitHub knows by their dollars, as MathML."""
    return _FORMULA.sub(lambda formula: f"<span>{convert(formula[1])}</span>", markdown)


def repository() -> str | None:
    """The address of the repository, if the project has one."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {})
    found = {name.casefold(): address for name, address in urls.items()}
    address = found.get("repository") or found.get("source")
    return None if address is None else address.rstrip("/")


def site_links(markdown: str, page: str, address: str | None) -> str:
    """The text of a page of the site, its relative links changed.

    Args:
        markdown: the text, with links as in the repository.
        page: its path in the site's sources, such as `method.md`.
        address: that of the repository.
    """
    source = next((file for file, other in PAGES.items() if other == page), f"docs/{page}")

    def change(link: re.Match[str]) -> str:
        path, mark, anchor = link["target"].partition("#")
        if not path or ":" in path:
            return link[0]
        file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if file in PAGES or file.startswith("docs/"):
            goal = PAGES.get(file, file.removeprefix("docs/"))
            relative = posixpath.relpath(goal, posixpath.dirname(page) or ".")
            return f"{link['image']}[{link['text']}]({relative}{mark}{anchor})"
        if not (ROOT / file).exists():
            return link[0]  # MkDocs says that it is missing
        text: str = link["text"]
        return text if address is None else f"[{text}]({address}/blob/main/{file}{mark}{anchor})"

    return _LINK.sub(change, markdown)


def command_line() -> str:
    """What `aurora COMMAND --help` says, of all commands, by Typer's own generator."""
    command = [sys.executable, "-m", "typer", "aurora_lora.cli", "utils", "docs", "--name", "aurora"]
    made = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if made.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} failed:\n{made.stderr}")
    text = unescape(made.stdout).replace("# `aurora`", "# Command line", 1)
    # the list of the commands is cut after a few words; the page's own menu has them
    return re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+\n", "", text).replace("```console", "```")
