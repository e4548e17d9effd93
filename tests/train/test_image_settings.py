"""What image processors say: our transforms do it, and what is saved beside a model makes stock Transformers do it."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision")

import tiny
import transformers
from PIL import Image
from transformers import AutoImageProcessor, ViTImageProcessor, pipeline

from aurora_lora.data.task import Augment
from aurora_lora.errors import UserError
from aurora_lora.train import load_run, train
from aurora_lora.train.image_settings import ImageSettings
from aurora_lora.train.images import as_scored, plain_transform, training_transform
from aurora_lora.train.kinds.image_classification import load_image_processor
from aurora_lora.train.merging import merge
from aurora_lora.train.predicting import predict
from aurora_lora.train.recipe import validate

SHAPES = [(12, 40), (41, 16), (24, 24), (19, 26)]
"""The third and the last are cut by an odd number of pixels."""
SMALL = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
SQUARE = {"size": {"height": 16, "width": 16}}
PROCESSORS: dict[str, dict[str, Any]] = {
    "Beit": SQUARE,
    "Bit": SMALL,
    "CLIP": SMALL,
    "ConvNext": {"size": {"shortest_edge": 16}},
    "DeiT": {"size": {"height": 18, "width": 18}, "crop_size": {"height": 16, "width": 16}},
    "EfficientNet": SQUARE,
    "MobileViT": {"size": {"shortest_edge": 14}, "crop_size": {"height": 16, "width": 16}},
    "PoolFormer": SMALL,
    "Segformer": SQUARE,
    "ViT": SQUARE,
}


def smooth(height: int, width: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def processor(kind: str, **changes: Any) -> Any:
    return getattr(transformers, f"{kind}ImageProcessor")(**{**PROCESSORS[kind], **changes})


def colour_of(made: Any, colour: tuple[int, int, int] = (200, 90, 30)) -> torch.Tensor:
    """What a processor or a transform makes of an image of one colour, in its middle."""
    image = Image.new("RGB", (16, 16), colour)
    pixels = made(image, return_tensors="pt")["pixel_values"][0] if hasattr(made, "size") else made(image)
    return torch.as_tensor(pixels)[:, 8, 8].float()


# ---------------------------------------------------------------- what is saved


@pytest.mark.parametrize("kind", PROCESSORS)
def test_stock_transformers_sees_what_is_scored(kind: str, tmp_path: Path) -> None:
    given = processor(kind)
    as_scored(given).save_pretrained(tmp_path)
    stock: Any = AutoImageProcessor.from_pretrained(tmp_path)
    for shape in SHAPES:
        image = smooth(*shape)
        ours = plain_transform(given)(image)
        torch.testing.assert_close(stock(image, return_tensors="pt")["pixel_values"][0], ours, rtol=1e-5, atol=1e-5)
        assert torch.equal(plain_transform(stock)(image), ours) or kind == "EfficientNet"  # whose std is squared
    torch.testing.assert_close(colour_of(stock), colour_of(given))


LAYERS: Any = {name: size for name, size in tiny.VIT.items() if name not in ("image_size", "patch_size")}
MODELS: dict[str, Callable[[], Any]] = {
    "Beit": lambda: transformers.BeitForImageClassification(
        transformers.BeitConfig(image_size=16, patch_size=8, **LAYERS)
    ),
    "CLIP": lambda: transformers.CLIPForImageClassification(
        transformers.CLIPConfig(vision_config={"image_size": 16, "patch_size": 8, **LAYERS})
    ),
    "ConvNext": lambda: transformers.ConvNextForImageClassification(
        transformers.ConvNextConfig(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2, image_size=16)
    ),
    "DeiT": lambda: transformers.DeiTForImageClassification(
        transformers.DeiTConfig(image_size=16, patch_size=8, **LAYERS)
    ),
    "ViT": lambda: transformers.SwinForImageClassification(  # Swin's processor is ViT's
        transformers.SwinConfig(image_size=16, patch_size=4, embed_dim=8, depths=[1], num_heads=[2], window_size=2)
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_pipeline_answers_as_predict_does(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(tmp_path)
    processor(kind).save_pretrained(tmp_path)
    load_image_processor(str(tmp_path)).save_pretrained(tmp_path)
    files = []
    for number, shape in enumerate(SHAPES):
        smooth(*shape, number).save(tmp_path / f"{number}.png")
        files.append(str(tmp_path / f"{number}.png"))
    found = pipeline("image-classification", model=str(tmp_path))(files, top_k=1)
    for answer, ours in zip(found, predict(tmp_path, files), strict=True):
        assert answer[0]["label"] == ours["label"]
        assert answer[0]["score"] == pytest.approx(ours["probability"], abs=1e-4)


def test_a_run_is_saved_with_what_it_was_scored_on(tmp_path: Path) -> None:
    vit = tiny.save_vit(tmp_path / "vit")
    run = train(validate(tiny.image_recipe(vit), "test"), tmp_path / "run")
    merged = merge(load_run(run.folder), tmp_path / "merged").folder
    for folder in (merged, run.folder / "adapter", run.folder / "lora"):
        saved = json.loads((folder / "preprocessor_config.json").read_text())
        assert (saved["size"], saved["do_center_crop"]) == ({"shortest_edge": 8}, True)
        assert (saved["crop_size"], saved["resample"]) == ({"height": 8, "width": 8}, 2)
    smooth(8, 40).save(tmp_path / "wide.png")
    (answer,) = pipeline("image-classification", model=str(merged))(str(tmp_path / "wide.png"), top_k=1)
    for folder in (merged, run.folder):
        (ours,) = predict(folder, [str(tmp_path / "wide.png")])
        assert (ours["label"], ours["probability"]) == (answer["label"], pytest.approx(answer["score"], abs=1e-4))


# ---------------------------------------------------------------- what is honoured


def test_sizes_of_processors() -> None:
    def size(given: Any) -> tuple[int, int]:
        return (found := ImageSettings.of(given)).height, found.width

    assert size(processor("ViT")) == (16, 16)
    assert size(ViTImageProcessor(size={"shortest_edge": 12})) == (12, 12)
    cropped = ViTImageProcessor(size={"shortest_edge": 12}, do_center_crop=True, crop_size={"height": 10, "width": 9})
    assert size(cropped) == (10, 9)


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        ("ViT", {"do_normalize": False}, [200 / 255, 90 / 255, 30 / 255]),
        ("ViT", {"do_normalize": False, "do_rescale": False}, [200, 90, 30]),
        ("ViT", {"do_rescale": False, "image_mean": [10, 20, 30], "image_std": [2, 2, 5]}, [95, 35, 0]),
        (
            "ViT",
            {"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": [1.0]},
            [value / 127.5 - 1 for value in (200, 90, 30)],
        ),
        ("MobileViT", {}, [30 / 255, 90 / 255, 200 / 255]),
        ("EfficientNet", {}, [4 * (value / 255 - 0.5) for value in (200, 90, 30)]),
        (
            "EfficientNet",
            {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False, "include_top": False},
            [value / 127.5 - 1 for value in (200, 90, 30)],
        ),
    ],
)
def test_numbers_of_a_colour(kind: str, changes: dict[str, Any], expected: list[float]) -> None:
    given = processor(kind, **changes)
    wanted = torch.tensor(expected, dtype=torch.float32)
    for made in (given, plain_transform(given), training_transform(given, "crop-flip"), as_scored(given)):
        torch.testing.assert_close(colour_of(made), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("resample", [0, 1, 2, 3])
def test_images_are_resized_by_the_filter(resample: int) -> None:
    image = smooth(60, 60)
    expected = np.asarray(image.resize((16, 16), resample))  # Pillow's own
    given = processor("ViT", resample=resample, do_normalize=False)
    for pixels in (plain_transform(given)(image), as_scored(given)(image, return_tensors="pt")["pixel_values"][0]):
        assert np.abs(pixels.permute(1, 2, 0).numpy() * 255 - expected).max() <= 2
    other = plain_transform(processor("ViT", resample=2 if resample != 2 else 0, do_normalize=False))(image)
    assert np.abs(other.permute(1, 2, 0).numpy() * 255 - expected).max() > 2
    assert training_transform(given, "shift-flip")(image).shape == (3, 16, 16)


def test_crops_are_resized_by_the_filter() -> None:
    crops = []
    for resample in (0, 2, 3):
        torch.manual_seed(0)
        given = processor("ViT", resample=resample, do_normalize=False)
        crops.append(training_transform(given, "crop-flip")(smooth(60, 60)))
    assert all((one - other).abs().max() > 1 / 255 for one, other in itertools.combinations(crops, 2))


@pytest.mark.parametrize("augment", ["none", "crop-flip", "shift"])
def test_images_that_are_wider_than_high(augment: Augment) -> None:
    given = processor("CLIP", size={"shortest_edge": 12}, crop_size={"height": 12, "width": 16})
    image = smooth(20, 60)
    assert training_transform(given, augment)(image).shape == (3, 12, 16)
    stock = as_scored(given)(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(stock, plain_transform(given)(image), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_mean": None}, "image_mean: None is not allowed: three numbers, one for each channel, or one for all"),
        ({"image_std": [0.5, 0, 0.5]}, r"image_std: \(0.5, 0, 0.5\) is not allowed: three numbers.* none of them 0"),
        ({"image_mean": [0.5, 0.5]}, r"image_mean: \(0.5, 0.5\) is not allowed: three numbers"),
        (
            {"size": {"longest_edge": 9}},
            r"size: \{'longest_edge': 9\} is not allowed: height and width, or shortest_edge",
        ),
        ({"size": {"max_height": 9, "max_width": 8}}, r"size: \{'max_height': 9, 'max_width': 8\} is not allowed"),
        ({"size": {"height": 0, "width": 8}}, r"size: \{'height': 0, 'width': 8\} is not allowed"),
        ({"size": None}, "size: None is not allowed: height and width"),
        (
            {"do_center_crop": True, "crop_size": {"longest_edge": 9}},
            r"crop_size: \{'longest_edge': 9\} is not allowed",
        ),
        ({"resample": 5}, r"resample: 5 is not allowed: one of 0 \(nearest\), 1 \(lanczos\), 2 \(bilinear\)"),
        ({"resample": "bicubic"}, "resample: 'bicubic' is not allowed: one of 0"),
        ({"rescale_factor": 0}, "rescale_factor: 0 is not allowed: a number above 0"),
        ({"rescale_factor": float("inf")}, "rescale_factor: inf is not allowed: a number above 0"),
        ({"image_std": float("nan")}, "image_std: nan is not allowed: three numbers"),
        ({"do_resize": False}, "do_resize: False is not allowed: true"),
        ({"size": {"height": True, "width": True}}, r"size: \{'height': True, 'width': True\} is not allowed"),
        ({"resample": True}, "resample: True is not allowed: one of 0"),
        (
            {"image_processor_type": "MobileViTImageProcessor", "do_normalize": True},
            "do_normalize: True is not allowed: false where do_flip_channel_order is true",
        ),
    ],
)
def test_what_cannot_be_honoured_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    processor("ViT").save_pretrained(tmp_path)
    stored = tmp_path / "preprocessor_config.json"
    stored.write_text(json.dumps(json.loads(stored.read_text()) | changes))
    with pytest.raises(UserError, match=f"^model: '{tmp_path}': preprocessor_config.json: {message}"):
        load_image_processor(str(tmp_path))


def test_a_class_that_makes_other_numbers_than_it_says(tmp_path: Path) -> None:
    class Inverted(ViTImageProcessor):
        def _preprocess(self, *args: Any, **kwargs: Any) -> Any:
            found = super()._preprocess(*args, **kwargs)
            found["pixel_values"] = -found["pixel_values"]
            return found

    with pytest.raises(UserError, match="image_processor_type: 'Inverted' is not allowed: one that only resizes"):
        as_scored(Inverted(size={"height": 8, "width": 8}))
