"""What is said of a model that cannot be loaded."""

from pathlib import Path

import huggingface_hub
import pytest

from aurora_lora.data.loading import OnlyPicklesError, cause_of, only_pickles, reason


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
