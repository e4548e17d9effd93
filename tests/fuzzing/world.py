"""What the inputs are tried on: a model of a few thousand weights, a finished and a begun run, a recipe, a study."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

import tiny
from safetensors.torch import load_file
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.files import parse_json
from aurora_lora.train import recipe_files
from aurora_lora.train.deploying import merge
from aurora_lora.train.finished_run import load_run
from aurora_lora.train.recipe import load_recipe
from aurora_lora.train.run import train
from aurora_lora.train.trainer import quiet_libraries

from .runner import SilentError

TEXTS = ("a warm film", "the plot was dull and cold")


class World:
    """The folders, and what the undamaged ones give."""

    def __init__(self, folder: Path) -> None:
        os.environ.update({"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
        quiet_libraries()
        tiny.register()
        self.folder = folder
        self.model = tiny.save_model(folder / "model")
        self.recipe, self.run, self.begun = folder / "recipe.yaml", folder / "run", folder / "begun"
        self.study_path, self.scratch = folder / "study.yaml", folder / "scratch"
        values = tiny.recipe(self.model)
        values["task"] = {"name": "tiny-sentiment", "train_size": 24, "validation_size": 8, "test_size": 8}
        values["training"] = {"epochs": 3, "batch_size": 8, "learning_rate": 2e-2, "threads": 1}
        self.recipe.write_text(recipe_files.dump(values), encoding="utf-8")
        self.study = {
            "name": "study",
            "base": {name: values[name] for name in ("model", "task", "training")},
            "tuning": {"budget": 2, "space": {"training.learning_rate": [1e-3, 1e-2]}},
            "seeds": [0, 1],
            "settings": [
                {"name": "LoRA", "method": {"name": "lora", "target_modules": ["query"]}},
                {"name": "AuroRA", "method": {"name": "aurora", "target_modules": ["query"]}},
            ],
        }
        self.study_path.write_text(recipe_files.dump(self.study), encoding="utf-8")
        recipe = load_recipe(self.recipe)
        train(recipe, self.run)
        with contextlib.suppress(KeyboardInterrupt):
            train(recipe, self.begun, make_callbacks=lambda: [tiny.Stop(7)])
        self.merged = folder / "merged"
        merge(load_run(self.run), self.merged)
        self.said = strict_json(self.command("predict", str(self.merged), *TEXTS, "--json")[1])
        self._expected: dict[str, Any] = {}

    def copy(self, run: Path) -> Path:
        """A copy of a run, to be damaged; the one before goes."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir()
        return Path(shutil.copytree(run, self.scratch / "run"))

    def command(self, *args: str) -> tuple[int, str]:
        """Run `aurora` in this process; its exit code and stdout.

        Raises:
            Exception: whatever the command raised that it should not have.
            SilentError: a mistake without a word, or JSON that is none.
        """
        done = CliRunner().invoke(cli.app, list(args))
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        if done.exit_code not in (0, 1, 2, 130):
            raise SilentError(f"exit code {done.exit_code}")
        if done.exit_code != 0 and not done.stderr.strip():
            raise SilentError(f"exit code {done.exit_code} without a word")
        if "Traceback (most recent call last)" in done.stderr:
            raise SilentError("a traceback was printed")
        if done.exit_code == 0 and "--json" in args and "-h" not in args and "--help" not in args:
            strict_json(done.stdout)
        return done.exit_code, done.stdout

    def outcome(self, action: str, run: Path) -> Any:
        """What a command makes of a run, without the names of folders; None where it refused."""
        out = self.scratch / "out"
        args = ["-o", str(out), "--json"]
        args = {"predict": [*TEXTS, "--json"], "evaluate": ["--json"], "report": []}.get(action, args)
        args = [str(self.recipe), "-o", str(run), "--json"] if action == "train" else [str(run), *args]
        code, shown = self.command(action, *args)
        if code != 0:
            return None
        if action in ("merge", "export"):
            files = sorted(out.glob("*.safetensors"))
            return {path.name: {k: v.numpy().tobytes() for k, v in load_file(path).items()} for path in files}
        told = shown if action == "report" else strict_json(shown)
        if action == "train":
            return {name: told["result"][name] for name in ("metric", "epochs")}
        return (
            {k: v for k, v in told.items() if k not in ("folder", "run", "written")} if isinstance(told, dict) else told
        )

    def expected(self, action: str) -> Any:
        """The outcome on the undamaged run."""
        if action not in self._expected:
            self._expected[action] = self.outcome(action, self.copy(self.run))
            assert self._expected[action] is not None
        return self._expected[action]


def strict_json(text: str) -> Any:
    """JSON, in which no figure is anything but a finite number."""
    try:
        return parse_json(text, finite=True)
    except ValueError as error:
        raise SilentError(f"this is no JSON of finite figures: {text[:100]!r}") from error
