"""A run's folder: what is damage and what is not, and what a run may write and remove."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aurora_lora.errors import UserError
from aurora_lora.train import load_recipe, storage, train

WriteRecipe = Callable[..., Path]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A whole checkpoint, in a folder of checkpoints."""
    folder = tmp_path / "checkpoints" / "checkpoint-3"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"weights")
    storage.write_manifest(folder)
    return folder


@pytest.mark.parametrize("name", ["weights", storage.MANIFEST])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_what_cannot_be_read_is_no_damage_and_stays(
    checkpoint: Path, name: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's file, or a file system that fails for a moment."""
    opened = Path.open

    def fail(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name == name:
            raise OSError(code, os.strerror(code), str(self))
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(UserError, match=rf"{name} cannot be read: {os.strerror(code)}$"):
        storage.last_intact(checkpoint.parent)
    monkeypatch.undo()
    assert storage.last_intact(checkpoint.parent) == checkpoint


@pytest.mark.parametrize("damage", ["changed", "gone", "folder", "list", "none", "deep"])
def test_what_is_damaged_is_removed(checkpoint: Path, damage: str) -> None:
    weights, manifest = checkpoint / "weights", checkpoint / storage.MANIFEST
    if damage == "changed":
        weights.write_bytes(b"others")
    elif damage in ("gone", "folder"):
        weights.unlink()
        if damage == "folder":
            weights.mkdir()
    else:
        manifest.write_text({"list": "[]", "none": "", "deep": "[" * 200_000}[damage])
    with pytest.warns(UserWarning, match="damaged, or not of this version: checkpoint-3; the run begins anew"):
        assert storage.last_intact(checkpoint.parent) is None
    assert not checkpoint.exists()


def test_an_adapter_of_somebody_else_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {"adapter_model.safetensors": "0"}
    monkeypatch.setattr(storage, "file_digest", _refuse)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors cannot be read: Permission denied"):
        storage.check_adapter(tmp_path, digests)


def _refuse(path: Path) -> str:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


@pytest.mark.parametrize("name", ["adapter", "lora", "checkpoints", "result.json", "checkpoints/checkpoint-1"])
def test_a_link_out_of_the_folder_is_not_followed(name: str, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    recipe, folder, theirs = load_recipe(write_recipe()), tmp_path / "run", tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "precious").touch()
    storage.check_recipe(folder, recipe)
    (folder / name).parent.mkdir(parents=True)
    storage.write_recipe(folder, recipe)
    (folder / name).symlink_to(theirs / "precious" if name == "result.json" else theirs)
    with pytest.raises(UserError, match=rf"{name} (is a link that leads out of|is not a result)|cannot be read"):
        train(recipe, folder)
    assert [path.name for path in theirs.iterdir()] == ["precious"]


def test_links_within_a_run_and_to_it_stay(tmp_path: Path) -> None:
    (tmp_path / "run" / "images").mkdir(parents=True)
    (tmp_path / "run" / "last").symlink_to("images")
    (tmp_path / "link").symlink_to("run")
    storage.check_links(tmp_path / "link")


def test_loggers_and_updates_do_not_keep_a_folder_in_which_nothing_was_trained(
    write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    """As when memory was too small for the first step, and half the batch size is advised."""
    recipe = load_recipe(write_recipe())
    training = recipe.training.model_copy(update={"batch_size": 4})
    smaller = recipe.model_copy(update={"training": training})
    tmp_path /= "run"
    storage.write_recipe(tmp_path, recipe)
    written = {"logs": "events.out.tfevents.17", "updates": "epoch-000.safetensors"}
    for name, file in written.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / file).touch()
    storage.check_recipe(tmp_path, smaller)
    assert (tmp_path / "logs" / written["logs"]).exists()
    storage.write_recipe(tmp_path, smaller)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml"]


def test_a_start_does_not_keep_a_folder_in_which_nothing_was_trained(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """What was probed or decomposed for one recipe is not what another begins with."""
    recipe, folder = load_recipe(write_recipe()), tmp_path / "run"
    smaller = recipe.model_copy(update={"training": recipe.training.model_copy(update={"batch_size": 4})})
    storage.write_recipe(folder, recipe)
    start = folder / "checkpoints" / "start.safetensors"
    start.parent.mkdir()
    for file in (folder / "probe.safetensors", start):
        file.touch()
    storage.check_recipe(folder, recipe)
    storage.write_recipe(folder, recipe)
    assert start.exists()
    storage.check_recipe(folder, smaller)
    storage.write_recipe(folder, smaller)
    assert [file.name for file in sorted(folder.rglob("*")) if file.is_file()] == ["recipe.yaml"]
    (start.parent / "checkpoint-1").mkdir()
    with pytest.raises(UserError, match="holds the run of another recipe"):
        storage.check_recipe(folder, recipe)


def test_folders_of_the_users_own_stay(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """As where a run is put into a project, or a job's output is in it already."""
    recipe = load_recipe(write_recipe())
    for name in ("logs", "updates"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "precious").touch()
    storage.check_recipe(tmp_path / "run", recipe)
    storage.write_recipe(tmp_path / "run", recipe)
    assert all((tmp_path / "run" / name / "precious").exists() for name in ("logs", "updates"))


def test_the_users_logs_stay_at_the_second_attempt(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    folder, recipe = tmp_path / "run", load_recipe(write_recipe())
    storage.write_recipe(folder, recipe)  # the first attempt, which made nothing
    (folder / "logs").mkdir()
    (folder / "logs" / "17.out").touch()
    storage.write_recipe(folder, recipe.model_copy(update={"seed": 1}))
    assert (folder / "logs" / "17.out").exists()


@pytest.mark.parametrize("name", ["config.json", "adapter_config.json", "model_index.json"])
def test_no_run_is_written_into_a_model(name: str, write_recipe: WriteRecipe, tmp_path: Path) -> None:
    recipe, folder = load_recipe(write_recipe()), tmp_path / "run"
    folder.mkdir()
    (folder / name).write_text("{}")
    with pytest.raises(UserError, match=rf"holds {name} but no recipe\.yaml: choose another output folder"):
        storage.check_recipe(folder, recipe)
    (folder / name).rename(folder / "slurm-1.out")
    storage.check_recipe(folder, recipe)


def test_a_finished_run_that_cannot_be_written_is_shown(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(write_recipe(reference={"method": "linear-probe"}))
    made = train(recipe, tmp_path / "run")

    def nothing(self: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    monkeypatch.setattr(Path, "mkdir", nothing)
    again = train(recipe, tmp_path / "run")
    assert again.was_finished
    assert again.result == made.result
    assert again.reference is not None
