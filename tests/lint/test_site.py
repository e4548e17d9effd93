"""The documentation's site: every page is in it, reads as on GitHub, and needs nothing from elsewhere."""

import importlib.util
import posixpath
import subprocess
import sys
import zlib
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mkdocstrings", reason="the site needs the extra [docs]")

import markdown
from markdown_it import MarkdownIt
from mkdocs.config import load_config

import aurora_lora

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md"]
PAGES += sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md"))


def load_hooks() -> Any:
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = load_hooks()


def leaves(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [leaf for entry in (nav.values() if isinstance(nav, dict) else nav) for leaf in leaves(entry)]


class Elements(HTMLParser):
    """Counts the elements of a page, and collects what it links to and what it loads."""

    counted = ("h1", "h2", "h3", "h4", "ol", "ul", "li", "table", "tr", "th", "td", "pre", "em", "strong", "img")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.counts[tag] += tag in self.counted
        if tag == "a":
            self.links.append(values.get("href") or "")
        elif tag in ("script", "img", "iframe", "source"):
            self.loaded.append(values.get("src") or "")
        elif tag == "link" and values.get("rel") in ("stylesheet", "preconnect", "preload", "icon"):
            self.loaded.append(values.get("href") or "")


def test_every_page_is_in_the_navigation() -> None:
    nav = leaves(load_config(str(ROOT / "mkdocs.yml")).nav)
    expected = {hooks.PAGES.get(page, page.removeprefix("docs/")) for page in PAGES} | {hooks.COMMANDS}
    assert set(nav) == expected
    assert len(nav) == len(set(nav))


@pytest.mark.parametrize("page", PAGES)
def test_reads_as_on_github(page: str) -> None:
    """Python-Markdown wants blank lines before lists, and 4 spaces in them, where GitHub does not."""
    config = load_config(str(ROOT / "mkdocs.yml"))
    text = (ROOT / page).read_text()
    site = markdown.Markdown(extensions=config.markdown_extensions, extension_configs=config.mdx_configs)
    github = MarkdownIt("gfm-like", {"linkify": False})
    assert Elements(site.convert(text)).counts == Elements(github.render(text)).counts


@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        ("index.md", "[a](docs/deploy.md#gap)", "[a](deploy.md#gap)"),
        ("index.md", "[the `log`](CHANGELOG.md)", "[the `log`](changelog.md)"),
        ("examples.md", "[a](../docs/trainers.md#fsdp2), [b](ddp.py)", "[a](trainers.md#fsdp2), b"),
        ("api/config.md", "[a](../methods.md), [b](../../README.md)", "[a](../methods.md), [b](../index.md)"),
        ("method.md", "[a](absent.md), [b](../absent.py)", "[a](absent.md), [b](../absent.py)"),
    ],
)
def test_links(page: str, text: str, expected: str) -> None:
    assert hooks.site_links(text, page, None) == expected


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make site` does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return folder


@pytest.mark.slow
def test_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]
    assert len(pages) > len(PAGES)
    for page in pages:
        elements = Elements(page.read_text())
        assert elements.loaded
        here = [link.partition("#")[0] for link in elements.links if ":" not in link]
        for address in (*elements.loaded, *here):
            assert not address.startswith(("http:", "https:", "//", "/")), f"{page.name} loads {address}"
            target = site / posixpath.normpath(posixpath.join(page.parent.relative_to(site).as_posix(), address))
            assert not address or target.exists(), f"{page.name}: {address} does not exist"


@pytest.mark.slow
def test_documents_every_public_name(site: Path) -> None:
    inventory = (site / "objects.inv").read_bytes().split(b"zlib.\n", 1)[1]
    documented = {line.split(" ")[0] for line in zlib.decompress(inventory).decode().splitlines()}
    documented |= {f"aurora_lora.{name.rpartition('.')[2]}" for name in documented if ".deploy." in name}
    public = {f"aurora_lora.{name}" for name in aurora_lora.__all__ if not name.startswith("__")}
    assert not public - documented
