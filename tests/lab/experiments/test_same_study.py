"""What the runs of a study have to share beside their recipes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aurora_lora.data.models import VIT_FASHION
from aurora_lora.errors import UserError
from aurora_lora.files import file_digest
from aurora_lora.lab.experiments.same_study import SameInputs
from aurora_lora.train.recipe import TaskSection

ON_HUB, HERE = "owner/name", VIT_FASHION.name


@pytest.fixture
def pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The digest of the weights of a model that was pretrained on this machine."""
    monkeypatch.setenv("AURORA_LORA_CACHE", str(tmp_path / "cache"))
    folder = VIT_FASHION.folder
    folder.mkdir(parents=True)
    for name in ("config.json", "pretraining-result.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return f"sha256:{file_digest(folder / 'model.safetensors')}"


def job(model: str, result: Any = None) -> Any:
    return SimpleNamespace(recipe=SimpleNamespace(model=model, task=None), folder=Path("new"), finished=lambda: result)


def checked(*results: dict[str, Any]) -> SameInputs:
    same = SameInputs()
    for number, result in enumerate(results):
        same.check(result, Path(f"run{number}"))
    return same


def test_runs_on_one_model_are_a_study() -> None:
    checked({"model": ON_HUB, "model_commit": "a"}, {"model": ON_HUB, "model_commit": "a"}, {"model": ON_HUB})
    checked({"model": ON_HUB, "model_commit": "a"}, {"model": "owner/other", "model_commit": "b"})
    checked({"model": HERE}, {"model": HERE})
    steps = [{"model": {"name": ON_HUB, "revision": step}} for step in ("step1", "step2")]
    checked(*({"model": ON_HUB, "model_commit": step["model"]["revision"], "recipe": step} for step in steps))


@pytest.mark.parametrize("model", [ON_HUB, HERE])
def test_runs_on_other_weights_of_it_are_not(model: str) -> None:
    with pytest.raises(UserError, match=f"run1 is run on other weights of {model} than run0"):
        checked({"model": model, "model_commit": "a"}, {"model": model, "model_commit": "b"})


def test_a_run_on_another_pretrained_model_is_found_before_it_is_done(pretrained: str) -> None:
    checked({"model": HERE, "model_commit": pretrained}).check_before(job(HERE))
    for there in ({"model": HERE, "model_commit": "sha256:0"}, {"model": HERE}):
        same = checked(there)
        with pytest.raises(UserError, match="new is run on other weights of vit-fashion-mnist than run0"):
            same.check_before(job(HERE))
        same.check_before(job(HERE, result={}))  # is done
        same.check_before(job(ON_HUB))


def test_a_run_on_other_contents_of_a_file_is_found_before_it_is_done(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text("text,label\na,0\n")
    same = checked({"data": {"files": {str(file): file_digest(file)}}})
    task = TaskSection(name="classification", data=str(file))
    new = SimpleNamespace(recipe=SimpleNamespace(model=ON_HUB, task=task), folder=Path("new"), finished=lambda: None)
    same.check_before(new)
    file.write_text("text,label\nb,1\n")
    with pytest.raises(UserError, match=r"mine\.csv is not what it was when run0 was run: put it back"):
        same.check_before(new)
