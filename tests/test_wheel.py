"""What a wheel installs, in an empty folder without this repository: own data, from a file to a merged model."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "train"))

import chats
import own_files
import tiny
from transformers import AutoTokenizer

SCRIPT = """
import re
import sys
from pathlib import Path
import aurora_lora
from aurora_lora import cli
from typer.testing import CliRunner

assert Path(aurora_lora.__file__).is_relative_to(sys.argv[1]), aurora_lora.__file__

def aurora(*args):
    done = CliRunner().invoke(cli.app, list(args))
    assert done.exit_code == 0, (args, done.output)
    return done.stdout

for kind, model, text in (line.split("|") for line in sys.argv[2:]):
    data, *changes = sys.stdin.readline().split("|")
    recipe = aurora("init", kind)
    filled = re.sub("^  data:", f"  data: {data.strip()}", recipe, flags=re.M)
    assert filled != recipe
    Path(f"{kind}.yaml").write_text(filled)
    few = ["training.epochs=1", "training.threads=1", *map(str.strip, changes)]
    aurora("train", f"{kind}.yaml", f"model={model}", *few, "--output", f"runs/{kind}")
    aurora("train", kind, f"task.data={data}", f"model={model}", *few, "--output", f"runs/{kind}")  # the same run
    for command in ("export", "merge"):
        aurora(command, f"runs/{kind}", "--output", f"{kind}-{command}")
    for folder in (f"runs/{kind}", f"{kind}-merge"):
        assert text in aurora("predict", folder, text), folder
print("done")
"""
KINDS = {
    "classification": ("bert", "the film was good"),
    "regression": ("bert", "the film was good"),
    "multi-label": ("bert", "the film was good"),
    "choices": ("causal", "the film was good"),
    "images": ("vit", "pictures/red/0.png"),
    "chat": ("talkative", "the film was good"),
}
"""Of each kind, the model and what is predicted."""


@pytest.mark.slow
def test_own_data_from_a_wheel_in_an_empty_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=Path(__file__).parents[1], check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "installed")
    here = tmp_path / "here"
    here.mkdir()
    own_files.write_images(own_files.write_texts(here))
    tiny.save_model(here / "bert")
    tiny.save_language_model(here / "causal")
    tiny.save_vit(here / "vit")
    tiny.save_language_model(here / "talkative")
    tokenizer = AutoTokenizer.from_pretrained(here / "talkative")
    tokenizer.chat_template = chats.GENERATION
    tokenizer.save_pretrained(here / "talkative")
    chats.write(here / "chats.jsonl", count=own_files.ROWS)
    kinds = [f"{kind}|{model}|{text}" for kind, (model, text) in KINDS.items()]
    changes = {**own_files.OVERRIDES, "chat": ["task.data=chats.jsonl"]}
    data = "".join("|".join(changes[kind]).removeprefix("task.data=") + "\n" for kind in KINDS)
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path / "installed"),
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "installed"), *kinds],
        cwd=here,
        env=environment,
        input=data,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "done"
