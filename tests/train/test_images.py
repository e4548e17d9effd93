"""Images: what transforms do to them, what is drawn at random by what, and whole runs on a tiny ViT."""

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from safetensors.torch import load_file

pytest.importorskip("torchvision")

import tiny
from PIL import Image as Pillow
from torchvision.transforms import v2
from transformers import AutoImageProcessor, AutoModelForImageClassification, TrainerCallback, ViTImageProcessor
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.data import get_task
from aurora_lora.data.packaged_images import png
from aurora_lora.data.task import Augment
from aurora_lora.data.vision import read_image
from aurora_lora.errors import UserError
from aurora_lora.train import load_run, recipe_files, train
from aurora_lora.train.build import load_data, load_trained_model, make_trainer
from aurora_lora.train.evaluating import evaluate
from aurora_lora.train.images import Images, StackCollator, plain_transform, training_transform
from aurora_lora.train.kinds.image_classification import load_image_processor
from aurora_lora.train.merging import merge
from aurora_lora.train.models import load_tokenizer
from aurora_lora.train.predicting import predict
from aurora_lora.train.probing import kept_start
from aurora_lora.train.publish import SPLITS
from aurora_lora.train.recipe import Recipe, validate

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


def test_the_shift_grows_with_the_side() -> None:
    given = ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False)
    transform, white = training_transform(given, "shift"), Pillow.new("RGB", (32, 32), (255, 255, 255))
    torch.manual_seed(0)
    black = [int((transform(white).amax((0, 1)) == 0).sum()) for _ in range(60)]  # columns
    assert (min(black), max(black)) == (0, 4)


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


def test_square_images_of_a_vit_are_transformed_as_ever(processor: Any) -> None:
    """To the bit: the results of earlier studies rest on it."""
    before = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN.tolist(), STD.tolist())]
    steps: dict[Augment, list[Any]] = {
        "none": [v2.Resize(8), v2.CenterCrop((8, 8))],
        "crop-flip": [v2.RandomResizedCrop((8, 8)), v2.RandomHorizontalFlip()],
        "shift": [v2.Resize(8), v2.CenterCrop((8, 8)), v2.RandomCrop((8, 8), padding=1)],
    }
    for augment, some in steps.items():
        for side in (5, 8, 23):
            pixels = []
            for transform in (v2.Compose([v2.ToImage(), *some, *before]), training_transform(processor, augment)):
                torch.manual_seed(0)
                pixels.append(transform(noise(side, side)))
            assert torch.equal(*pixels)


def split_of(count: int) -> Dataset:
    images = [{"bytes": png(np.asarray(noise(8, 8, row))), "path": None} for row in range(count)]
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


def test_batches(processor: Any) -> None:
    images = Images(split_of(3), plain_transform(processor))
    batch = StackCollator()([images[index] for index in range(3)])
    assert batch["pixel_values"].shape == (3, 3, 8, 8)
    assert (batch["labels"].dtype, batch["labels"].tolist()) == (torch.int64, [0, 1, 0])


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


# ---------------------------------------------------------------- runs


METHODS = ("full", "linear-probe", "lora", "fourierft", "aurora-paper", "aurora-no-l", "bitfit", "adapter-h", "moslora")


@pytest.mark.parametrize("method", METHODS)
def test_every_kind_of_method(vit: Path, tmp_path: Path, method: str) -> None:
    plain = method in ("full", "linear-probe", "bitfit", "adapter-h")
    options: dict[str, Any] = {} if plain else {"target_modules": tiny.QUERY_VALUE}
    options |= {"n_frequency": 20} if method == "fourierft" else {}
    run = train(recipe(vit, method={"name": method, **options}), tmp_path / "run")
    result, again = run.result, load_run(run.folder)
    counts = {"full": sum(p.numel() for p in body(vit)), "linear-probe": 0, "lora": 4 * 8 * 32, "fourierft": 4 * 20}
    if method in counts:
        assert result["params"]["adapter"] == counts[method]
    assert result["params"]["head"] == 16 * 3 + 3
    assert result["labels"] == ["red", "green", "blue"]
    assert result["metric"]["examples"] == {"train": 96, "validation": 30, "test": 30}
    assert evaluate(again, forms=again.forms[:1]) == {again.forms[0]: result["metric"]["by_form"][again.forms[0]]}


def body(vit: Path) -> list[torch.nn.Parameter]:
    from transformers import ViTModel

    return list(ViTModel.from_pretrained(vit, add_pooling_layer=False).parameters())


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


def test_the_card(vit: Path, tmp_path: Path) -> None:
    run = train(recipe(vit), tmp_path / "run")
    for name in ("adapter", "lora"):
        card = (run.folder / name / "README.md").read_text()
        assert "pipeline_tag: image-classification" in card
        assert (
            "AutoModelForImageClassification.from_pretrained(base, num_labels=3, ignore_mismatched_sizes=True)" in card
        )
        assert "labels = ('red', 'green', 'blue')" in card
        code = card.split("```python\n")[1].split("```")[0].replace('"."', repr(str(run.folder / name)))
        found: dict[str, Any] = {}
        exec(code, found)
        model = found["model"].eval()
        data = load_data(recipe(vit), load_image_processor(str(vit)))
        batch = data.collate([data.splits["test"][index] for index in range(30)])
        with torch.no_grad():
            right = (model(pixel_values=batch["pixel_values"]).logits.argmax(-1) == batch["labels"]).float().mean()
        assert float(right) == pytest.approx(run.result["metric"]["by_form"]["calibrated"]["accuracy"])
    weights = train(recipe(vit, method="linear-probe"), tmp_path / "probe")
    assert "aurora predict RUN IMAGE..." in (weights.folder / "adapter" / "README.md").read_text()


def test_the_head_has_its_own_rate(vit: Path, tmp_path: Path) -> None:
    values = tiny.image_recipe(vit)
    training = {**values["training"], "epochs": 1, "head_learning_rate": 1e-12}  # type: ignore[dict-item]
    run = train(recipe(vit, method="full", training=training), tmp_path / "run")
    still = train(recipe(vit, method="full", training={**training, "learning_rate": 1e-12}), tmp_path / "still")
    trained, start = (load_file(str(one.folder / "adapter" / "trained.safetensors")) for one in (run, still))
    for name, value in trained.items():
        assert torch.allclose(value, start[name], atol=1e-6) == name.startswith("classifier."), name


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


@pytest.mark.parametrize("step", [6, 10])  # of 6 an epoch; the last checkpoint is then that of step 4, or of step 8
def test_an_interrupted_run_ends_with_the_same_weights(vit: Path, tmp_path: Path, step: int) -> None:
    training = {**tiny.image_recipe(vit)["training"], "checkpoint_every": 4}  # type: ignore[dict-item]
    wanted = recipe(vit, training=training, task={"name": "tiny-images", "train_size": 96, "augment": "crop-flip"})
    whole = train(wanted, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(wanted, tmp_path / "run", make_callbacks=lambda: [tiny.Stop(step)])
    assert (tmp_path / "run" / "checkpoints" / f"checkpoint-{4 if step == 6 else 8}").is_dir()
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


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            {"name": "tiny-images", "max_length": 5},
            "task.max_length: only tasks of multi-label, regression, classification, multiple-choice, chat have it",
        ),
        (
            {"name": "tiny-sentiment", "augment": "shift"},
            "task.augment: only tasks of image-classification have it, tiny-sentiment",
        ),
        ({"name": "tiny-images", "augment": "crop"}, "task.augment: 'crop' is not allowed"),
        ({"name": "tiny-images", "scorer": "choices"}, "task.scorer: only tasks of multiple-choice have it"),
    ],
)
def test_fields_of_the_task(vit: Path, task: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        recipe(vit, task=task)
    assert message in str(error.value)


def test_the_resolved_recipe(vit: Path) -> None:
    task = recipe(vit, task="tiny-images").resolved()["task"]
    assert (task["augment"], task["max_length"], task["validation_size"]) == ("shift", None, 30)
    assert (
        validate(recipe_files.parse(recipe_files.dump(recipe(vit).resolved()), ""), "").resolved()
        == recipe(vit).resolved()
    )


def test_a_text_model_is_no_image_model(tmp_path: Path) -> None:
    model = tiny.save_model(tmp_path / "bert")
    with pytest.raises(UserError, match=r"model: '.*bert' is a model of texts, and the task has images$"):
        train(recipe(model), tmp_path / "run")


def test_an_image_model_is_no_text_model(vit: Path) -> None:
    with pytest.raises(UserError, match=r"model: '.*' is a model of images, and the task has texts$"):
        load_tokenizer(str(vit))


def test_the_other_commands(vit: Path, tmp_path: Path) -> None:
    run = train(recipe(vit), tmp_path / "run")
    scores = run.result["metric"]["by_form"]

    def aurora(*args: object) -> Any:
        done = CliRunner().invoke(cli.app, [*map(str, args), "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    gap = aurora("gap", run.folder, "-o", tmp_path / "gap")
    assert {one["form"] for one in gap["end_to_end"]} == set(scores)
    for one in gap["end_to_end"]:
        assert one["metric"] == pytest.approx(scores[one["form"]], abs=1e-6)
    assert aurora("evaluate", run.folder, "--form", "static")["by_form"] == {"static": scores["static"]}
    validation = run.result["metric"]["validation_by_form"]
    assert aurora("evaluate", run.folder, "--split", "validation")["by_form"] == validation
    assert aurora("export", run.folder, "-o", tmp_path / "lora")["form"] == "calibrated"
    assert load_file(str(tmp_path / "lora" / "adapter_model.safetensors"))


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


def test_eva_starts_along_the_inputs_of_images(vit: Path, tmp_path: Path) -> None:
    """A is the principal directions of a layer's inputs over all patches of the probed images."""
    method = {"name": "lora", "r": 2, "start": "eva", "target_modules": ["q_proj"], "probe_examples": 16}
    trainer, data = make_trainer(recipe(vit, method=method), tmp_path / "checkpoints")
    (batch,) = data.training_batches(16 / len(data.splits["train"]), trainer.recipe.training.batch_size)
    start = kept_start(tmp_path)
    assert start is not None
    assert start.ranks is not None
    base = AutoModelForImageClassification.from_pretrained(vit).eval()
    inputs: dict[str, torch.Tensor] = {}
    for path in start.ranks:
        base.get_submodule(path).register_forward_pre_hook(
            lambda _, args, path=path: inputs.update({path: args[0].detach().flatten(0, -2)})
        )
    base(pixel_values=batch["pixel_values"])
    for path, rank in start.ranks.items():
        _, _, Vh = torch.linalg.svd(inputs[path] - inputs[path].mean(0), full_matrices=False)
        cosines = (start.rows[path] @ Vh[:rank].T).abs()
        torch.testing.assert_close(cosines, torch.eye(rank), rtol=0, atol=1e-3)


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


@pytest.mark.parametrize("header", [b"Exif\0\0no EXIF", b"Exif\0\0II*\0"], ids=["no header", "cut off"])
def test_a_broken_orientation_is_none(header: bytes, tmp_path: Path) -> None:
    """In training as in predictions; `datasets` raises what Pillow does."""
    image = Pillow.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "broken.png", exif=header)
    rows = {"image": [str(tmp_path / f"{name}.png") for name in ("plain", "broken")], "label": [0, 1]}
    data = Dataset.from_dict(rows).cast_column("image", Image())
    with pytest.raises((SyntaxError, struct.error)):
        data[1]
    images = Images(data, lambda image: torch.from_numpy(np.array(image)))
    first, second = (images[index]["pixel_values"] for index in range(2))
    assert torch.equal(first, second)
    assert np.array_equal(read_image(tmp_path / "broken.png"), first)


def test_what_is_no_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a PNG that was cut or damaged, Pillow raises an OSError or a SyntaxError; of a huge one neither."""
    path = tmp_path / "photo.png"
    Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    whole = path.read_bytes()
    for damaged in (whole[:200], whole.replace(b"IHDR", b"IHDX"), b"no image"):
        with pytest.raises(UserError, match="a row's image cannot be read: "):
            read_image(damaged)
    monkeypatch.setattr(Pillow, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"photo\.png is no image that can be read: .* decompression bomb"):
        read_image(path)


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


@pytest.mark.parametrize(
    "values", [np.array([[-1, 5]], np.int32), np.array([[0, 65_536]], np.int32), np.zeros((1, 2), np.float32)]
)
def test_what_is_no_pixel_is_refused(values: Any, tmp_path: Path) -> None:
    Pillow.fromarray(values).save(tmp_path / "grey.tiff")
    with pytest.raises(UserError, match=r"grey\.tiff is no image that can be read: its pixels are numbers \("):
        read_image(tmp_path / "grey.tiff")
