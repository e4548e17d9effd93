"""The digest of a local model's weights: cheap, and of the tensors alone."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from aurora_lora.train.weights_digest import BLOCK, BLOCKS, SAMPLED, sampled_digest

LARGE = 3 * BLOCK * BLOCKS  # numbers of one byte


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    large = torch.randint(0, 255, (LARGE,), generator=generator).to(torch.uint8)
    return {"large": large, "b.bias": torch.randn(7, generator=generator), "a.weight": torch.ones(3, 5)}


def written(folder: Path, tensors: dict[str, Tensor], name: str = "model.safetensors") -> str | None:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / name, {"format": "pt"})
    return sampled_digest(folder)


def test_the_same_weights_have_the_same_digest(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    """However they are divided among files, and whatever else is in the folder."""
    expected = written(tmp_path / "one", tensors)
    assert expected is not None
    assert expected.startswith(SAMPLED)
    (tmp_path / "one" / "config.json").write_text("{}")
    save_file({"x": torch.ones(2)}, tmp_path / "one" / "adapter_model.safetensors")
    assert sampled_digest(tmp_path / "one") == expected

    shards = {"large": "model-1.safetensors", "b.bias": "model-2.safetensors", "a.weight": "model-1.safetensors"}
    for file in set(shards.values()):
        written(tmp_path / "two", {name: tensors[name] for name, one in shards.items() if one == file}, file)
    (tmp_path / "two" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert sampled_digest(tmp_path / "two") == expected


@pytest.mark.parametrize("name", ["large", "b.bias", "a.weight"])
@pytest.mark.parametrize("at", [0, -1])
def test_other_weights_have_another(tensors: dict[str, Tensor], tmp_path: Path, name: str, at: int) -> None:
    before = written(tmp_path, tensors)
    tensors[name].view(-1)[at] += 1
    assert written(tmp_path, tensors) != before


def test_names_shapes_and_types_count(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    weight = tensors["a.weight"]
    changes = (
        {**tensors, "a.weight": weight.view(5, 3)},
        {**tensors, "a.weight": weight.view(torch.int32)},
        {"large": tensors["large"], "b.bias": tensors["b.bias"], "a.kernel": weight},
    )
    assert len({written(tmp_path, one) for one in (tensors, *changes)}) == 4


def test_a_large_tensor_is_sampled(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    before = written(tmp_path, tensors)
    every = [tensors["large"].clone() for _ in range(24)]
    changed = 0
    for part, one in enumerate(every):  # each a 24th of it: half a block apart at most
        size = LARGE // 24
        one[part * size : (part + 1) * size] += 1
        changed += written(tmp_path, {**tensors, "large": one}) != before
    assert changed == 24
    tensors["large"][BLOCK] += 1  # just behind the first block
    assert written(tmp_path, tensors) == before


def test_a_pipeline_has_the_weights_of_its_parts(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    digests = set()
    for unet, vae in ((1.0, 2.0), (2.0, 1.0)):
        for part, value in (("unet", unet), ("vae", vae)):
            (tmp_path / part).mkdir(exist_ok=True)
            save_file({"w": torch.full((2,), value)}, tmp_path / part / "diffusion_pytorch_model.safetensors")
        digests.add(sampled_digest(tmp_path))
    assert len(digests) == 2


def test_a_pipeline_has_those_of_the_variant_that_is_loaded(tmp_path: Path) -> None:
    """Files of others, which a copy may lack, do not count; parts without the variant have their plain ones."""
    (tmp_path / "model_index.json").write_text("{}")
    unet, vae = tmp_path / "unet", tmp_path / "vae"
    names = ("unet/model.safetensors", "unet/model.fp16-00001-of-00002.safetensors", "unet/model.fp16-2.safetensors")
    for value, name in enumerate((*names, "vae/model.safetensors")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_file({f"w{value}": torch.full((2,), float(value))}, tmp_path / name)
    plain, half = sampled_digest(tmp_path), sampled_digest(tmp_path, "fp16")
    assert len({plain, half, sampled_digest(tmp_path, "other")}) == 2

    save_file({"w0": torch.zeros(2) + 9}, unet / "model.safetensors")
    assert sampled_digest(tmp_path, "fp16") == half
    assert sampled_digest(tmp_path) != plain
    save_file({"w2": torch.zeros(2) + 9}, unet / "model.fp16-2.safetensors")
    changed = sampled_digest(tmp_path, "fp16")
    assert changed != half
    save_file({"w3": torch.zeros(2) + 9}, vae / "model.safetensors")
    assert sampled_digest(tmp_path, "fp16") != changed


def test_no_weights_have_none(tmp_path: Path) -> None:
    assert sampled_digest(tmp_path) is None
