"""What surrounds the source: licence, packages, citation, workflow and templates say what is so."""

import ast
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

import aurora_lora
import versions

ROOT = Path(__file__).parents[2]
APACHE_2_0 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
"""sha256 of the licence's text as its authors publish it."""


def build(what: str, source: Path, folder: Path) -> Path:
    """A package, built as pip builds it."""
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", what, "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (made,) = folder.glob("*.whl" if what == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"aurora_lora-{aurora_lora.__version__}"


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def sources() -> set[str]:
    return {name for name in files(ROOT / "src" / "aurora_lora") if "__pycache__" not in name}


def test_the_source_distribution_is_small_and_has_what_a_reader_needs(sdist: Path, unpacked: Path) -> None:
    assert sdist.stat().st_size < 2_000_000
    names = files(unpacked)
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md"} <= names
    assert {f"src/aurora_lora/{name}" for name in sources()} <= names
    figures = {name for name in names if name.startswith("docs/figures/")}
    assert figures == {name for name in (f"docs/{one}" for one in files(ROOT / "docs")) if name.endswith(".svg")}
    for page in (unpacked / name for name in names if name.endswith(".md")):
        for shown in re.findall(r"!\[[^\]]*\]\(([^)]+\.svg)\)", page.read_text()):
            assert (page.parent / shown).is_file(), (page, shown)
    assert {name for name in names if name.startswith("docs/")} - figures == {
        f"docs/{name}" for name in files(ROOT / "docs") if name.endswith(".md")
    }
    for pattern in ("results/*", "tests/*", "runs/*", "tmp/*", ".git*/*", "*.pyc", "*.safetensors"):
        assert not [name for name in names if fnmatch(name, pattern)]


def test_the_wheel_has_the_package_its_recipes_and_the_licence(unpacked: Path, tmp_path: Path) -> None:
    """Built from the source distribution, as installers do."""
    wheel = build("wheel", unpacked, tmp_path)
    assert f"dist/{wheel.name}[train]" in (ROOT / "README.md").read_text()
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        about = f"aurora_lora-{aurora_lora.__version__}.dist-info"
        licence = archive.read(f"{about}/licenses/LICENSE")
        metadata = HeaderParser().parsestr(archive.read(f"{about}/METADATA").decode())
    assert {f"aurora_lora/{name}" for name in sources()} <= names
    own = {f"aurora_lora/recipes/{name}" for name in files(ROOT / "recipes") if name.endswith(".yaml")}
    assert {name for name in names if "/recipes/" in name} == own
    assert {name.partition("/")[0] for name in names} == {"aurora_lora", about}
    assert hashlib.sha256(licence).hexdigest() == APACHE_2_0
    assert metadata["License-Expression"] == "Apache-2.0"


def test_the_map_of_the_source_is_the_source() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    package = ROOT / "src" / "aurora_lora"
    packages = {path.parent.relative_to(package).as_posix() for path in package.glob("**/__init__.py")}
    there = {one for one in packages if one.count("/") == one.startswith("lab/")} - {"."}
    rows = [line.partition("|")[2].partition("|")[0] for line in text.splitlines() if line.startswith("| `")]
    assert {one for row in rows for one in re.findall(r"`([\w/]+)/`", row)} == there - {"lab"}
    layers = text.partition("```text\nops <-")[2].partition("```")[0]
    assert {"ops", *re.findall(r"\w+", layers)} == {one.removeprefix("lab/") for one in there}
    for name in re.findall(r"`([\w/.]+/[\w.]+|\w+\.py)`", text):
        places = (ROOT, ROOT / "src" / "aurora_lora", ROOT / "tests" / "methods", ROOT / "tests" / "train")
        assert any((place / name).exists() for place in places), name


NO_BEGINNING = re.compile(r"(Of|Those|That of|The same|As)\b")
QUOTED = "train/recipe.py"
"""The file that docs/recipe.md is made from."""


def test_a_docstring_is_understood_without_the_name_above_it() -> None:
    """Editors, `help()` and the API pages show it alone."""
    package = ROOT / "src" / "aurora_lora"
    for path in package.rglob("*.py"):
        if path.relative_to(package).as_posix() == QUOTED:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                begins = NO_BEGINNING.match(ast.get_docstring(node) or "")
                assert begins is None, f"{path}, {getattr(node, 'name', 'the module')}: {begins[0]} ..."


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_workflow_runs_ci_and_every_cell_of_the_versions() -> None:
    jobs = load(".github/workflows/ci.yml")["jobs"]
    assert ".ci/run" in [step.get("run") for step in jobs["all"]["steps"]]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    cells = jobs["versions"]["strategy"]["matrix"]["cell"]
    assert cells == [cell.name for cell in versions.CELLS]
    for cell in cells:  # tests/versions.py runs each cell whose name holds the word
        assert [other for other in cells if cell in other] == [cell]
    (pythons,) = (step["with"] for step in jobs["versions"]["steps"] if "setup-python" in step.get("uses", ""))
    assert {cell.python for cell in versions.CELLS} == set(pythons["python-version"].split())


def test_no_commit_has_scratch_or_large_files() -> None:
    hooks = {
        hook["id"]: hook for repository in load(".pre-commit-config.yaml")["repos"] for hook in repository["hooks"]
    }
    assert re.search(hooks["scratch"]["files"], "tmp/notes.txt")
    limit = 1000 * int(re.search(r"--maxkb=(\d+)", hooks["file-size"]["entry"])[1])  # type: ignore[index]
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z"], capture_output=True, text=True, check=False)
    for name in filter(None, listed.stdout.split("\0")):
        assert not re.search(hooks["scratch"]["files"], name)
        assert not (ROOT / name).is_file() or (ROOT / name).stat().st_size < limit, name


@pytest.mark.parametrize("line", ["", "from ..train import train"], ids=["as it is", "an import upwards"])
def test_an_import_from_a_lower_floor_to_a_higher_one_fails_the_lint(tmp_path: Path, line: str) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "src/aurora_lora/deploy/gap.py").open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=tmp_path, env={"PYTHONPATH": "src"}, capture_output=True, text=True)
    assert done.returncode == bool(line)
    assert ("aurora_lora.deploy is not allowed to import aurora_lora.train" in done.stdout) == bool(line)
