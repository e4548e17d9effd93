"""What the documents show to be typed or copied, checked against the code: commands, Python and YAML."""

import ast
import importlib
import inspect
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from aurora_lora.cli import app
from aurora_lora.diffusion.recipe import as_recipe
from aurora_lora.lab.experiments.recipes import find, load_any, suites
from aurora_lora.lab.experiments.study import load_study

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md"))
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]
LOADERS: dict[str, Callable[..., Any]] = {"train": load_any, "rank": load_any, "sweep": load_study}


def _read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def _blocks(page: str, *languages: str) -> Iterator[str]:
    for language, text in BLOCK.findall(_read(page)):
        if language in languages:
            yield text


def _commands(page: str) -> Iterator[list[str]]:
    """The arguments of each `aurora ...` that can be typed, in blocks and in the running text."""
    blocks = "\n".join(_blocks(page, "bash", "sh", "console")).replace("\\\n", " ")
    lines = [line.removeprefix("$ ") for line in blocks.splitlines()]
    lines += [" ".join(code.split()) for code in re.findall(r"`(aurora [^`]+)`", BLOCK.sub("", _read(page)))]
    for line in lines:
        if not re.search(r"(^|[&|;] *|\w=\S+ )(aurora |accelerate launch)", line):
            continue  # it may be what a command prints
        words = shlex.shlex(
            re.sub(r"accelerate launch .*-m aurora_lora.cli", "aurora", line), posix=True, punctuation_chars="|&;<>"
        )
        words.whitespace_split = True
        for is_operator, part in groupby(words, lambda word: set(word) <= set("|&;<>")):
            command = [word.strip("[]") for word in part if not re.match(r"[A-Z_]+=", word)]
            if not is_operator and command[0] == "aurora" and command[1:] and command[1].isalpha():
                yield command[1:]


def test_there_are_commands_and_calls_to_check() -> None:
    assert sum(len(list(_commands(page))) for page in PAGES) > 110
    assert sum(len(list(_called(ast.parse(block)))) for page in PAGES for block in _blocks(page, "python")) > 15


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_options_exist(page: str) -> None:
    for name, *arguments in _commands(page):
        assert name in COMMANDS, name
        options = {
            option for parameter in COMMANDS[name].params for option in (*parameter.opts, *parameter.secondary_opts)
        }
        assert {re.split(r"[=|]", word)[0] for word in arguments if word.startswith("-")} <= options, (name, arguments)


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_recipes_studies_and_suites_exist(page: str) -> None:
    for name, *arguments in _commands(page):
        given = next(iter(arguments), "-")
        if given.startswith("-") or given.isupper() or given.endswith(".yaml"):
            continue
        if name in LOADERS:
            changes = [word for word in arguments if re.match(r"[\w.]+=(?![A-Z]+$)", word)]
            if changes or "--output" in arguments:  # else the name alone is meant
                LOADERS[name](given, changes)
            else:
                find(given, "study" if name == "sweep" else "recipe")
        elif name == "reproduce":
            assert given in suites()


def _called(tree: ast.Module) -> Iterator[tuple[Any, ast.Call]]:
    """Each call of something of this package, and what it calls."""
    names: dict[str, Any] = {"aurora_lora": importlib.import_module("aurora_lora")}
    names |= {name: getattr(names["aurora_lora"], name) for name in names["aurora_lora"].__all__}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("aurora_lora"):
            module = importlib.import_module(node.module or "")
            names |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            path = ast.unparse(node.func).split(".")
            found = names.get(path[0])
            for name in path[1:]:
                found = getattr(found, name) if found is not None else None
            if found is not None:
                yield found, node


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in _read(page)])
def test_python_compiles_and_calls_what_there_is(page: str) -> None:
    for block in _blocks(page, "python"):
        tree = ast.parse(block)
        for called, call in _called(tree):
            keywords = {word.arg: None for word in call.keywords if word.arg}
            some_left_out = any(isinstance(word, ast.Starred) for word in call.args)
            signature = inspect.signature(called)
            (signature.bind_partial if some_left_out else signature.bind)(*call.args, **keywords)


@pytest.mark.parametrize(("code", "requeued"), [(143, True), (2, False), (0, False)])
def test_a_job_whose_time_is_up_is_queued_again(code: int, requeued: bool) -> None:
    (script,) = (block for block in _blocks("docs/reproduce.md", "bash") if "#SBATCH" in block)
    assert {"--mem=", "--cpus-per-task=", "--time="} <= set(re.findall(r"--[a-z-]+=", script))
    stand_ins = f"srun() {{ return {code}; }}\nscontrol() {{ echo $*; }}\n"
    environment = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "77"}
    run = subprocess.run(["bash", "-c", stand_ins + script], env=environment, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("requeue 77\n" * requeued, "")


def test_the_image_recipe_is_one(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("".join(_blocks("docs/diffusion.md", "yaml")), encoding="utf-8")
    assert load_any(file).method.name == "aurora"


def test_the_users_study_is_one(tmp_path: Path) -> None:
    (block,) = _blocks("docs/your-data.md", "yaml")
    file = tmp_path / "study.yaml"
    file.write_text(block, encoding="utf-8")
    assert load_study(file).name == "reviews"


@pytest.mark.parametrize("page", ["docs/methods.md", "docs/ranks.md"])
def test_methods_are_ones_of_recipes(page: str) -> None:
    (block,) = _blocks(page, "yaml")
    for line in block.splitlines():
        assert as_recipe({**load_any("demo").resolved(), **yaml.safe_load(line)}, line).method.options
