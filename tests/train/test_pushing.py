"""`aurora push` to a stand-in of the hub."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import own_files
import own_runs
import pytest
from huggingface_hub import ModelCard, constants
from peft import PeftConfig
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.train import load_run
from aurora_lora.train.deploying import _stage
from aurora_lora.train.recipe import load_recipe
from aurora_lora.train.run import train

sys.path.insert(0, str(Path(__file__).parents[1] / "hub"))

from hub_server import TOKEN, serving

CHILD = """import sys
from aurora_lora.cli import main
sys.path.insert(0, sys.argv.pop(1))
import tiny
tiny.register()
main()"""
Push = Callable[..., Any]


@pytest.fixture
def run(finished: Path) -> Path:
    return finished


@pytest.fixture
def push(run: Path, monkeypatch: pytest.MonkeyPatch) -> Push:
    """`push(endpoint, *args)` in this process, whose client has read its settings already."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def invoke(endpoint: str, *args: str, token: str = TOKEN) -> Any:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setenv("HF_TOKEN", token)
        return CliRunner().invoke(cli.app, ["push", str(run), *args])

    return invoke


@pytest.mark.slow
def test_both_forms(run: Path, tmp_path: Path, push: Push) -> None:
    with serving(tmp_path / "hub") as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
        command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), "push", str(run)]
        command += ["someone/reviews", "--private"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith(f"pushed the export of {run}: {hub.url}/someone/reviews/commit/")
        other = push(hub.url, "someone/adapter", "--form", "adapter", "--json")
        assert json.loads(other.stdout)["form"] == "adapter"
        assert hub.private == {"someone/reviews": True, "someone/adapter": False}
        there = (tmp_path / "hub" / "models" / "someone" / "adapter" / "adapter_config.json").stat()
        refused = push(hub.url, "someone/adapter", "--private")
        assert refused.exit_code == 2
        assert "--private: someone/adapter is there already, and public: nothing was uploaded" in refused.output
        assert (tmp_path / "hub" / "models" / "someone" / "adapter" / "adapter_config.json").stat() == there
        assert not [one for one in hub.unanswered if "agent-harnesses" not in one]  # the client introduces itself
    export, adapter = (tmp_path / "hub" / "models" / "someone" / name for name in ("reviews", "adapter"))
    for folder, kind, weights in ((export, "LORA", run / "lora"), (adapter, "AURORA", run / "adapter")):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert (config["peft_type"], config["base_model_name_or_path"]) == (kind, None)  # a folder of this machine
        name = "adapter_model.safetensors"
        assert (folder / name).read_bytes() == (weights / name).read_bytes()
        assert (folder / "tokenizer.json").exists()
        assert "## Scores" in (folder / "README.md").read_text()
    assert PeftConfig.from_pretrained(str(export)).peft_type == "LORA"


@pytest.mark.parametrize("what", ["export", "adapter"])
def test_no_path_of_this_machine_is_pushed(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: Literal["export", "adapter"]
) -> None:
    """Neither of the base nor of the data, however they were named."""
    given = {"model": f"{here}/./bert", "data": str(here / "reviews.csv")}
    overrides = [f"model={given['model']}", *own_files.OVERRIDES["classification"], *own_runs.SETTINGS]
    done = own_runs.aurora("train", "classification", *overrides, f"task.data={given['data']}", "-o", "run")
    assert done.exit_code == 0, done.output
    (tmp_path / "staged").mkdir()
    _stage(load_run("run"), tmp_path / "staged", what)
    for path in (tmp_path / "staged").rglob("*"):
        assert str(here).encode() not in path.read_bytes(), path
    card = (tmp_path / "staged" / "README.md").read_text()
    assert "\n    model: bert\n" in card
    assert "\n      data: reviews.csv\n" in card
    assert "base = 'bert'\n" in card
    assert "classification: aurora on bert for " in card
    ModelCard.load(tmp_path / "staged" / "README.md")  # is one still


def test_a_base_that_is_no_longer_there_is_a_path_of_this_machine_all_the_same(
    write_recipe: Callable[..., Path], model: Path, tmp_path: Path
) -> None:
    """A run needs its base no more to be pushed, as where its folder was copied to another machine."""
    base = tmp_path / "clients" / "acme"
    shutil.copytree(model, base)
    run = train(load_recipe(write_recipe(model=str(base))), tmp_path / "run").folder
    shutil.rmtree(base)
    _stage(load_run(run), tmp_path / "staged", "adapter")
    files = [path for path in (tmp_path / "staged").rglob("*") if path.suffix in (".md", ".json")]
    pushed = "".join(path.read_text("utf-8") for path in files)
    assert "clients" not in pushed
    assert json.loads((tmp_path / "staged" / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    assert "base_model" not in (tmp_path / "staged" / "README.md").read_text("utf-8").split("---")[1]


def test_what_cannot_be_pushed(run: Path, tmp_path: Path, push: Push, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path / "hub") as hub:
        stranger = push(hub.url, "someone/reviews", token="hf_other")
        odd = push(hub.url, "a/b/c")
        form = push(hub.url, "someone/reviews", "--form", "merged")
        with monkeypatch.context() as patch:
            patch.setattr("aurora_lora.train.deploying.get_token", lambda: None)
            nobody = push(hub.url, "someone/reviews")
        url = hub.url
    closed = push("http://127.0.0.1:9", "someone/reviews")
    for done, message in (
        (nobody, "nobody is logged in to the hub: `hf auth login`, or HF_TOKEN, says who pushes"),
        (stranger, f"someone/reviews at {url}: "),
        (odd, f"a/b/c at {url}: "),
        (form, "--form 'merged' is not one of export, adapter"),
        (closed, "someone/reviews at http://127.0.0.1:9: "),
    ):
        assert done.exit_code == 2, done.output
        assert done.stderr.startswith(message), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr


def test_only_what_the_run_wrote_is_pushed(run: Path, tmp_path: Path) -> None:
    """`--dry-run` lists it, and needs no hub."""
    copy = shutil.copytree(run, tmp_path / "run")
    for stray in ("adapter/.env", "lora/.env", "lora/notes.md", "lora/more/secret.json"):
        (copy / stray).parent.mkdir(exist_ok=True)
        (copy / stray).write_text("{}")
    for form in ("export", "adapter"):
        done = own_runs.aurora("push", copy, "someone/reviews", "--dry-run", "--form", form)
        assert done.exit_code == 0, done.output
        first, *names = done.stdout.splitlines()
        assert first == f"would push the {form} of {copy} to someone/reviews:"
        assert [name.strip() for name in names] == [
            *("README.md", "adapter_config.json", "adapter_model.safetensors"),
            *("tokenizer.json", "tokenizer_config.json"),
        ]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("lora/adapter_model.safetensors", b"cut", "{path} is damaged: it is not what the run wrote"),
        ("lora/adapter_model.safetensors", None, "{path} cannot be read: No such file or directory"),
        ("lora/README.md", b"---\n[\n---\n", "{path.parent} cannot be pushed: "),
        ("lora/README.md", b"---\ntags: [1]\nlicense: {a: 2}\n---\n", "{path.parent} cannot be pushed: "),
        ("lora/README.md", Path("../../secret.txt"), "{path} is a link that leads out of {run}, or nowhere: "),
        ("adapter/more.json", Path("more.json"), "{path} is a link that leads out of {run}, or nowhere: "),
        ("result.json", Path("result.json"), "{path} is a link that leads out of {run}, or nowhere: "),
    ],
)
def test_a_run_that_is_not_as_it_was_written(
    run: Path, tmp_path: Path, name: str, change: bytes | Path | None, message: str
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    (tmp_path / "secret.txt").write_text("secret")
    path = copy / name
    path.unlink(missing_ok=True)
    if isinstance(change, Path):
        path.symlink_to(change)
    elif change is not None:
        path.write_bytes(change)
    done = own_runs.aurora("push", copy, "someone/reviews", "--dry-run")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1), done.output
    assert done.stderr.startswith(message.format(path=path, run=copy)), done.stderr


def test_a_run_in_the_hubs_cache(run: Path, tmp_path: Path) -> None:
    """The files of a snapshot are links to blobs beside it."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0", tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in run.rglob("*") if path.is_file())):
        shutil.copy(path, blobs / str(number))
        link = snapshot / path.relative_to(run)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(os.path.relpath(blobs, link.parent), str(number)))
    done = own_runs.aurora("push", snapshot, "someone/reviews", "--dry-run")
    assert done.exit_code == 0, done.output
