"""Images: what transforms do to them, what is drawn at random by what, and whole runs on a tiny ViT."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from safetensors.torch import load_file

pytest.importorskip("torchvision")

import tiny
import transformers
from PIL import Image as Pillow
from transformers import AutoImageProcessor, AutoModelForImageClassification, TrainerCallback, pipeline
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.data import get_task
from aurora_lora.data.vision import read_image
from aurora_lora.errors import UserError
from aurora_lora.train import load_run, train
from aurora_lora.train.deploying import merge
from aurora_lora.train.kinds.images import Images, load_image_processor, plain_transform, training_transform
from aurora_lora.train.measuring import evaluate
from aurora_lora.train.predicting import predict
from aurora_lora.train.publish import SPLITS
from aurora_lora.train.recipe import Recipe, validate
from aurora_lora.train.run import load_data, load_trained_model, make_trainer

MEAN, STD = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.25, 0.3])


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def processor(vit: Path) -> Any:
    return load_image_processor(str(vit))


def recipe(vit: Path, **changes: Any) -> Recipe:
    return validate(tiny.image_recipe(vit, **changes), "test")


def noise(height: int, width: int, seed: int = 0) -> Pillow.Image:
    return Pillow.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


# ---------------------------------------------------------------- transforms


def test_scoring_sees_the_centre_normalised(processor: Any) -> None:
    image = noise(8, 12)
    pixels = plain_transform(processor)(image)
    expected = (np.asarray(image)[:, 2:10] / 255 - MEAN) / STD
    assert pixels.dtype == torch.float32
    np.testing.assert_allclose(pixels.permute(1, 2, 0).numpy(), expected, atol=1e-5)
    grey = plain_transform(processor)(Pillow.new("RGB", (40, 24), (128, 128, 128)))
    np.testing.assert_allclose(grey[:, 0, 0].numpy(), (128 / 255 - MEAN) / STD, atol=1e-5)
    assert grey.shape == (3, 8, 8)


def test_shift_moves_by_at_most_an_eighth(processor: Any) -> None:
    image = noise(8, 8)
    plain, shift = plain_transform(processor)(image), training_transform(processor, "shift")
    black = torch.tensor(-MEAN / STD, dtype=torch.float32)[:, None, None]
    padded = black.expand(3, 10, 10).clone()
    padded[:, 1:9, 1:9] = plain
    allowed = [padded[:, top : top + 8, left : left + 8] for top in range(3) for left in range(3)]
    seen = set()
    for _ in range(60):
        pixels = shift(image)
        seen |= {index for index, one in enumerate(allowed) if torch.allclose(one, pixels, atol=1e-5)}
        assert any(torch.allclose(one, pixels, atol=1e-5) for one in allowed)
    assert len(seen) == 9


def test_flips_mirror_half_of_the_images(processor: Any) -> None:
    image = Pillow.new("RGB", (64, 64))
    image.paste((255, 255, 255), (0, 0, 32, 64))
    for augment, flips in (("crop-flip", True), ("shift-flip", True), ("shift", False)):
        transform = training_transform(processor, augment)
        brighter_left = sum(bool((p := transform(image))[:, :, :4].mean() > p[:, :, 4:].mean()) for _ in range(100))
        assert (30 < brighter_left < 70) == flips
    assert torch.equal(training_transform(processor, "none")(image), plain_transform(processor)(image))


def test_crops_are_parts_of_the_image(processor: Any) -> None:
    ramp = np.tile(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None], (64, 1, 3))
    transform = training_transform(processor, "crop-flip")
    spans = []
    for _ in range(40):
        row = transform(Pillow.fromarray(ramp))[0].mean(0) * STD[0] + MEAN[0]
        spans.append(abs(float(row[-1] - row[0])))
    assert min(spans) < 0.4 < 0.6 < max(spans)


def split_of(count: int) -> Dataset:
    images = [noise(8, 8, row) for row in range(count)]
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    return Dataset.from_dict({"image": images, "label": [row % 2 for row in range(count)]}, features=features)


def test_what_is_drawn_depends_on_seed_epoch_and_place_alone(processor: Any) -> None:
    data, transform = split_of(6), training_transform(processor, "shift-flip")

    def pixels(seed: int, epoch: int, order: list[int]) -> dict[int, torch.Tensor]:
        images = Images(data, transform, seed)
        images.epoch = epoch
        return {index: images[index]["pixel_values"] for index in order}

    before = torch.random.get_rng_state()
    first = pixels(0, 0, list(range(6)))
    assert torch.equal(torch.random.get_rng_state(), before)  # dropout draws what it would have drawn
    torch.rand(5)
    again = pixels(0, 0, [5, 3, 1, 0, 2, 4])
    assert all(torch.equal(first[index], again[index]) for index in range(6))
    for other in (pixels(1, 0, list(range(6))), pixels(0, 1, list(range(6)))):
        assert any(not torch.equal(first[index], other[index]) for index in range(6))


def test_each_epoch_draws_anew_by_the_recipes_seed(vit: Path, tmp_path: Path) -> None:
    trainer, data = make_trainer(recipe(vit, seed=7), tmp_path / "checkpoints")
    images, seen = data.splits["train"], []

    class Look(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seen.append(images.epoch)

    trainer.add_callback(Look())
    trainer.train()
    assert seen == [0] * 6 + [1] * 6
    assert images.seed == 7


def test_calibration_and_scores_see_unchanged_images(vit: Path, processor: Any) -> None:
    wanted = recipe(vit)
    data = load_data(wanted, processor)
    rows = data.splits["train"].data
    (batch,) = data.calibration_batches(recipe(vit, calibration={"examples": 8, "batch_size": 8}).calibration)
    assert set(batch) == {"pixel_values"}
    plain = plain_transform(processor)
    for pixels, place in zip(batch["pixel_values"], range(0, 96, 12), strict=True):
        assert torch.equal(pixels, plain(Pillow.open(io.BytesIO(rows[place]["image"]["bytes"]))))
    assert data.labels == ("red", "green", "blue")
    assert data.fixed("validation") is data.splits["validation"]


# ---------------------------------------------------------------- the processors of models

SMALL = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
SQUARE = {"size": {"height": 16, "width": 16}}
PROCESSORS: dict[str, dict[str, Any]] = {
    "ConvNext": {"size": {"shortest_edge": 16}},
    "DeiT": {"size": {"height": 18, "width": 18}, "crop_size": {"height": 16, "width": 16}},
    "EfficientNet": SQUARE,
    "MobileViT": {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}},
    "Segformer": SQUARE,
    "ViT": SQUARE,
}


def loaded(folder: Path, kind: str, **changes: Any) -> tuple[Any, Any]:
    """A processor of stock Transformers, and what is loaded of it."""
    own = getattr(transformers, f"{kind}ImageProcessor")(**{**PROCESSORS[kind], **changes})
    own.save_pretrained(folder)
    return own, load_image_processor(str(folder))


@pytest.mark.parametrize("kind", PROCESSORS)
def test_any_processor_sees_the_centre_in_its_models_numbers(kind: str, tmp_path: Path) -> None:
    """EfficientNet's numbers and MobileViT's order of channels are beyond CLIP's: these are taken as they are."""
    own, found = loaded(tmp_path, kind)
    colour = Pillow.new("RGB", (40, 40), (200, 90, 30))
    torch.testing.assert_close(plain_transform(found)(colour), plain_transform(own)(colour))
    wide = Pillow.new("RGB", (64, 16), "black")
    wide.paste((255, 255, 255), (24, 0, 40, 16))
    white, seen = plain_transform(found)(Pillow.new("RGB", (16, 16), "white")), plain_transform(found)(wide)
    assert seen.shape == (3, 16, 16)
    assert torch.equal(seen, white) == (kind != "EfficientNet")  # which squashes images
    for augment in ("none", "crop-flip", "shift"):
        assert training_transform(found, augment)(wide).shape == (3, 16, 16)


@pytest.mark.parametrize("resample", [0, 2, 3])
def test_images_are_resized_by_the_filter(resample: int, tmp_path: Path) -> None:
    image = noise(15, 15).resize((60, 60), Pillow.Resampling.BICUBIC)
    _, found = loaded(tmp_path, "ViT", resample=resample, do_normalize=False)
    pixels = plain_transform(found)(image).permute(1, 2, 0).numpy() * 255
    for filter_ in (0, 2, 3):
        expected = np.asarray(image.resize((16, 16), filter_))  # Pillow's own
        assert (np.abs(pixels - expected).max() <= 2) == (filter_ == resample)


@pytest.mark.slow
def test_a_pipeline_of_stock_transformers_answers_as_predict_does(vit: Path, tmp_path: Path) -> None:
    run = train(recipe(vit), tmp_path / "run")
    merged = merge(load_run(run.folder), tmp_path / "merged").folder
    for folder in (merged, run.folder / "adapter", run.folder / "lora"):
        saved = json.loads((folder / "preprocessor_config.json").read_text())
        assert (saved["size"], saved["crop_size"]) == ({"shortest_edge": 8}, {"height": 8, "width": 8})
    noise(8, 40).save(tmp_path / "wide.png")
    (answer,) = pipeline("image-classification", model=str(merged))(str(tmp_path / "wide.png"), top_k=1)
    for folder in (merged, run.folder):
        (ours,) = predict(folder, [str(tmp_path / "wide.png")])
        assert (ours["label"], ours["probability"]) == (answer["label"], pytest.approx(answer["score"], abs=1e-4))


# ---------------------------------------------------------------- runs


def test_training_learns_and_the_merge_predicts(vit: Path, tmp_path: Path) -> None:
    training = {**tiny.image_recipe(vit)["training"], "epochs": 4}  # type: ignore[dict-item]
    run = train(recipe(vit, training=training, task={"name": "tiny-images"}), tmp_path / "run")
    form = run.result["metric"]["selected_by"]["form"]
    assert run.result["metric"]["by_form"][form]["accuracy"] > 0.8
    merged = merge(load_run(run.folder), tmp_path / "merged", form=form).folder
    model = AutoModelForImageClassification.from_pretrained(merged)
    assert model.config.id2label == {0: "red", 1: "green", 2: "blue"}
    assert AutoImageProcessor.from_pretrained(merged).image_mean == pytest.approx(tuple(MEAN))
    paths, labels = [], []
    for number, example in enumerate(get_task("tiny-images").load_splits(get_task("tiny-images").sizes, 0)["test"]):
        paths.append(str(tmp_path / f"{number}.png"))
        example["image"].save(paths[-1])
        labels.append(("red", "green", "blue")[example["label"]])
    for folder in (merged, run.folder):
        answers = predict(folder, paths)
        right = sum(answer["label"] == label for answer, label in zip(answers, labels, strict=True))
        assert right / 30 == pytest.approx(run.result["metric"]["by_form"][form]["accuracy"])
    shown = CliRunner().invoke(cli.app, ["predict", str(merged), paths[0], "--json"])
    assert json.loads(shown.stdout)[0]["text"] == paths[0]
    (tmp_path / "x.png").write_text("no image")
    with pytest.raises(UserError, match=r"x\.png is no image that can be read"):
        predict(merged, [str(tmp_path / "x.png")])


# ---------------------------------------------------------------- splits, interruptions, workers


def test_splits_are_written_down_and_kept(vit: Path, tmp_path: Path) -> None:
    run = train(recipe(vit), tmp_path / "run")
    stored = json.loads((run.folder / SPLITS).read_text())
    splits = get_task("tiny-images").load_splits(get_task("tiny-images").sizes, 0)
    assert {name: part["of"] for name, part in stored.items()} == dict.fromkeys(
        ("train", "validation", "test"), "train"
    )
    assert stored["validation"]["rows"] == splits["validation"]["row"][:]
    assert stored["train"]["rows"] == splits["train"]["row"][:96]
    other = train(recipe(vit, task={"name": "tiny-images", "train_size": 96, "split_seed": 1}), tmp_path / "other")
    assert json.loads((other.folder / SPLITS).read_text())["test"] != stored["test"]
    stored["test"]["rows"][0] += 1
    (run.folder / SPLITS).write_text(json.dumps(stored))
    with pytest.raises(UserError, match="the test split is no longer the one that this run began with"):
        evaluate(load_run(run.folder), forms=["static"])


@pytest.mark.slow
def test_an_interrupted_run_ends_with_the_same_weights(vit: Path, tmp_path: Path) -> None:
    training = {**tiny.image_recipe(vit)["training"], "checkpoint_every": 4}  # type: ignore[dict-item]
    wanted = recipe(vit, training=training, task={"name": "tiny-images", "train_size": 96, "augment": "crop-flip"})
    whole = train(wanted, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(wanted, tmp_path / "run", make_callbacks=lambda: [tiny.Stop(10)])
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-8").is_dir()
    run = train(wanted, tmp_path / "run")
    one, other = (load_file(str(each.folder / "adapter" / "adapter_model.safetensors")) for each in (whole, run))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert run.result["epochs"] == whole.result["epochs"]


@pytest.mark.slow
def test_workers_read_the_same_images(vit: Path, tmp_path: Path) -> None:
    values = tiny.image_recipe(vit)["training"]
    runs = [
        train(recipe(vit, training={**values, "workers": workers}), tmp_path / f"run{workers}")  # type: ignore[dict-item]
        for workers in (0, 2)
    ]
    one, other = (load_file(str(run.folder / "adapter" / "adapter_model.safetensors")) for run in runs)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_text_model_is_no_image_model(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "bert")
    with pytest.raises(UserError, match=r"model: '.*bert' cannot be loaded: "):
        train(recipe(model), tmp_path / "run")


@pytest.mark.slow
def test_the_images_of_training_are_scored_unchanged(vit: Path, processor: Any, tmp_path: Path) -> None:
    run = train(recipe(vit), tmp_path / "run")
    found = evaluate(run.folder, split="train", forms=["static"])["static"]
    network, _ = load_trained_model(load_run(run.folder))
    rows = load_data(run.recipe, processor).splits["train"].data
    pixels = torch.stack([plain_transform(processor)(read_image(row["image"], "vision")) for row in rows])
    with run.recipe.method.using(network, "static"), torch.no_grad():
        logits = network(pixel_values=pixels).logits
    nll = torch.nn.functional.cross_entropy(logits, torch.tensor(rows["label"]))
    assert found["nll"] == pytest.approx(nll.item(), rel=1e-4)


def test_photos_are_read_upright(tmp_path: Path) -> None:
    """As `datasets` reads those that are trained on."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = 255
    exif = Pillow.Exif()
    exif[0x0112] = 6  # the camera was turned
    Pillow.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif)
    rows = Dataset.from_dict({"image": [str(tmp_path / "photo.jpg")]}).cast_column("image", Image())
    read = read_image(tmp_path / "photo.jpg")
    assert read.size == rows[0]["image"].size == (20, 40)
    assert np.array_equal(read, rows[0]["image"])


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    """Of a PNG that was cut or damaged, Pillow raises an OSError or a SyntaxError."""
    path = tmp_path / "photo.png"
    Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    whole = path.read_bytes()
    for damaged in (whole[:200], whole.replace(b"IHDR", b"IHDX"), b"no image"):
        with pytest.raises(UserError, match="a row's image cannot be read: "):
            read_image(damaged)


@pytest.mark.parametrize("dtype", ["<u2", ">u2", "<i4"])
def test_grey_values_of_16_bits_are_scaled(dtype: str, tmp_path: Path) -> None:
    """In training as in predictions; Pillow would make them white."""
    values = np.array([[0, 100, 257, 32_768, 65_000, 65_535]])
    mode = {"<u2": "I;16", ">u2": "I;16B", "<i4": "I"}[dtype]
    grey = Pillow.frombytes(mode, (6, 1), values.astype(dtype).tobytes())
    grey.save(tmp_path / "grey.tiff")
    expected = np.rint(values[..., None] / 257).repeat(3, -1)
    assert np.array_equal(read_image(tmp_path / "grey.tiff"), expected)
    seen: list[Any] = []
    rows = {"image": [str(tmp_path / "grey.tiff")], "label": [0]}
    images = Images(Dataset.from_dict(rows).cast_column("image", Image()), lambda image: seen.append(np.asarray(image)))
    assert images[0]["labels"] == 0
    assert np.array_equal(seen[0], expected)
