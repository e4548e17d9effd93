"""The parts of a run against plain formulas: cuts, draws, the loss, the U-Net's inputs, fidelity."""

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import nn

from aurora_lora.data.dreambooth import subject_images
from aurora_lora.diffusion.fidelity import Scorers
from aurora_lora.diffusion.loop import prediction_scores, squared_errors
from aurora_lora.diffusion.pipeline import generator, load_diffusion
from aurora_lora.diffusion.recipe import SubjectRecipe
from aurora_lora.diffusion.run import needed_prompts
from aurora_lora.diffusion.subject import Noised, Subject, frame, resize, row_of, target
from aurora_lora.errors import UserError
from aurora_lora.train.recipe import validate_as


def test_each_epoch_takes_every_image_once_in_an_order_of_its_own() -> None:
    epochs = [[row_of(5 * epoch + place, 5, 0, "subject") for place in range(5)] for epoch in range(20)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 10
    assert epochs != [[row_of(5 * epoch + place, 5, 1, "subject") for place in range(5)] for epoch in range(20)]


def gradient(width: int, height: int) -> Image.Image:
    """Red tells the column, green the row."""
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([columns * 4, rows * 4, 0 * rows], -1).astype(np.uint8))


def test_frame_cuts_where_the_time_ids_say() -> None:
    seen = set()
    for number in range(30):
        framed = frame(resize(gradient(48, 32), 32), 32, "random", False, generator(number))
        height, width, top, left, *side = framed.time_ids.int().tolist()
        assert (height, width, side) == (32, 48, [32, 32])
        corner = ((framed.pixels[:, 0, 0] + 1) / 2 * 255).round().int().tolist()
        assert corner == [4 * left, 4 * top, 0]
        seen.add(left)
    assert min(seen) >= 0
    assert max(seen) <= 16
    assert len(seen) > 8
    centred = frame(resize(gradient(48, 32), 32), 32, "center", False, generator(0))
    assert centred.time_ids.int().tolist() == [32, 48, 0, 8, 32, 32]
    assert frame(resize(gradient(96, 64), 32), 32, "center", False, generator(0)).time_ids.int().tolist() == [
        64,
        96,
        0,
        8,
        32,
        32,
    ]


def test_frame_mirrors_half_of_the_images() -> None:
    plain = frame(resize(gradient(32, 32), 32), 32, "center", False, generator(0)).pixels
    flipped = [
        frame(resize(gradient(32, 32), 32), 32, "center", True, generator(number)).pixels for number in range(60)
    ]
    assert all(pixels.equal(plain) or pixels.equal(plain.flip(-1)) for pixels in flipped)
    assert 15 < sum(pixels.equal(plain) for pixels in flipped) < 45


def test_large_images_are_shrunk_with_a_filter() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    found = resize(Image.fromarray(noise), 16)
    plain = torch.from_numpy(noise).permute(2, 0, 1)[None].float() / 255
    expected = nn.functional.interpolate(plain, size=(16, 24), mode="bilinear", antialias=True)[0]
    assert found[1] == (40, 60)
    torch.testing.assert_close(found[0], expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_what_is_predicted_and_its_error(prediction: str) -> None:
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=prediction)
    latents, noise = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0)).unbind()
    timesteps = torch.tensor([10, 500, 990])
    a = scheduler.alphas_cumprod[timesteps]
    expected = noise
    if prediction == "v_prediction":
        expected = torch.stack([a[i].sqrt() * noise[i] - (1 - a[i]).sqrt() * latents[i] for i in range(3)])
    torch.testing.assert_close(target(scheduler, latents, noise, timesteps), expected)
    errors = squared_errors(latents.bfloat16(), noise)
    assert errors.dtype == torch.float32
    torch.testing.assert_close(errors[1], ((latents[1].bfloat16().float() - noise[1]) ** 2).mean())


@pytest.fixture(scope="module")
def subject(tiny: Any, model: Path, images: Path) -> Subject:
    """The data of a tiny run."""
    recipe = validate_as(SubjectRecipe, tiny.recipe(model, images), "tiny")
    diffusion = load_diffusion(recipe, needed_prompts(recipe), torch.device("cpu"))
    return Subject(recipe, diffusion, subject_images(str(images)))


def image_of(noised: Noised, scheduler: Any) -> torch.Tensor:
    """The latents that were noised, from what the U-Net is given and what it is to predict."""
    a = scheduler.alphas_cumprod[noised.timesteps].view(-1, 1, 1, 1)
    return (noised.inputs["sample"] - (1 - a).sqrt() * noised.wanted) / a.sqrt()


def test_a_batch_is_noised_latents_with_their_prompt_and_their_cut(subject: Subject, model: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    noised = subject.batch(range(4))
    assert noised.inputs["sample"].shape == (4, 4, 8, 8)
    stock = StableDiffusionXLPipeline.from_pretrained(model)
    for row, latents in enumerate(image_of(noised, subject.diffusion.noise)):
        height, width, top, left, *side = noised.inputs["added_cond_kwargs"]["time_ids"][row].int().tolist()
        assert (height, width, side) == (20, 28, [16, 16])
        cuts = [image[0][None, :, top : top + 16, left : left + 16] * 2 - 1 for image in subject.images]
        with torch.no_grad():
            found = [stock.vae.encode(cut).latent_dist for cut in cuts]
        distances = [
            ((latents / stock.vae.config.scaling_factor - one.mean) / one.std).square().mean() for one in found
        ]
        assert min(distances) < 2  # a draw from the distribution: 1 on average
        hidden, _, pooled, _ = stock.encode_prompt("a photo of a sks dog")
        torch.testing.assert_close(noised.inputs["encoder_hidden_states"][row], hidden[0])
        torch.testing.assert_close(noised.inputs["added_cond_kwargs"]["text_embeds"][row], pooled[0])
    again = subject.batch([2])
    torch.testing.assert_close(again.inputs["sample"][0], noised.inputs["sample"][2])
    assert len({tuple(one.flatten().tolist()) for one in noised.wanted}) == 4


def test_latents_are_normalised_as_the_pipeline_undoes_it(subject: Subject) -> None:
    """Where the autoencoder tells a mean and a deviation of each channel."""
    vae = subject.diffusion.pipe.vae
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain, scale = subject.diffusion.latents(pixels), vae.config.scaling_factor
    mean, std = [0.5, -1.0, 0.0, 2.0], [2.0, 0.5, 1.0, 3.0]
    before = {name: getattr(vae.config, name) for name in ("latents_mean", "latents_std")}
    vae.register_to_config(latents_mean=mean, latents_std=std)
    try:
        found = subject.diffusion.latents(pixels)
    finally:
        vae.register_to_config(**before)
    shift, width = (torch.tensor(values).view(1, 4, 1, 1) for values in (mean, std))
    torch.testing.assert_close(found * width / scale + shift, plain / scale)  # StableDiffusionXLPipeline's own line


def test_fixed_samples_spread_timesteps_and_take_turns_with_prompts(subject: Subject) -> None:
    diffusion = subject.diffusion
    first, second = (subject.fixed(10, ["a photo of a sks dog", None], "calibration", batch_size=4) for _ in range(2))
    assert [len(batch.timesteps) for batch in first] == [4, 4, 2]
    assert all(a.inputs["sample"].equal(b.inputs["sample"]) for a, b in zip(first, second, strict=True))
    timesteps = torch.cat([batch.timesteps for batch in first]).tolist()
    assert timesteps == list(range(50, 1000, 100))
    hidden = torch.cat([batch.inputs["encoder_hidden_states"] for batch in first])
    known, none = diffusion.prompts["a photo of a sks dog"].hidden[0], diffusion.unprompted.hidden[0]
    turns = [0, 1, 0, 1, 0, 1, 1, 0, 1, 0]  # of three images and two prompts, six pairs
    expected = [none if turn else known for turn in turns]
    assert all(one.equal(other) for one, other in zip(hidden, expected, strict=True))
    other = subject.fixed(10, [None], "noise error", batch_size=4)
    assert not other[0].wanted.equal(first[0].wanted)


class Doubles(nn.Module):
    """Predicts twice its sample; in train mode, nothing."""

    def forward(self, sample: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        return (0 * sample if self.training else 2 * sample,)


def test_prediction_scores_are_means_over_all_numbers() -> None:
    draw, model = torch.Generator().manual_seed(0), Doubles()
    samples, wanted = (torch.randn(5, 4, 2, 2, generator=draw) * scale for scale in (1, 3))
    batches = [Noised({"sample": samples[rows]}, torch.zeros(0), wanted[rows]) for rows in (slice(0, 3), slice(3, 5))]
    scores = prediction_scores(model, batches)
    error, whole = ((2 * samples - wanted) ** 2).mean().item(), (wanted**2).mean().item()
    assert scores["noise_error"] == pytest.approx(error)
    assert scores["explained"] == pytest.approx(1 - error / whole)
    assert model.training


# ---------------------------------------------------------------- images of a subject


def _turned(path: Path) -> Path:
    """Write an image of 8 by 4 pixels that a camera says to turn."""
    image = Image.new("RGB", (8, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    return path


def test_subject_images(images: Path, tmp_path: Path) -> None:
    found = subject_images(str(images))
    assert [image.size for image in found] == [(28, 20)] * 3
    assert {image.mode for image in found} == {"RGB"}
    _turned(tmp_path / "turned.jpg")
    (tmp_path / "notes.txt").write_text("no image")
    assert [image.size for image in subject_images(str(tmp_path))] == [(4, 8)]


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("empty", "has no images"),
        ("broken", "broken.png is no image that can be read"),
        ("unread", r"task\.images: .*IMG_1.HEIC is of a kind that is not read: convert it to .*\.webp"),
    ],
)
def test_what_is_wrong_with_images_is_said(tmp_path: Path, source: str, why: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "unread").mkdir()
    (tmp_path / "unread" / "IMG_1.HEIC").write_bytes(b"an image")
    (tmp_path / "broken" / "broken.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(UserError, match=why):
        subject_images(str(tmp_path / source))


def test_images_of_a_data_set(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like `google/dreambooth`, from a copy: a configuration for each subject, the column `image`."""
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    copy = tmp_path / "someone" / "subjects"
    (copy / "dog").mkdir(parents=True)
    paths = [*sorted(images.iterdir()), _turned(tmp_path / "turned.jpg")]
    pictures = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    rows = Dataset.from_dict({"image": pictures}, features=Features({"image": ImageFeature()}))
    rows.to_parquet(str(copy / "dog" / "train-00000.parquet"))
    (copy / "README.md").write_text(
        "---\nconfigs:\n- config_name: dog\n  data_files:\n  - {split: train, path: dog/train-*}\n---\n"
    )
    monkeypatch.setenv("AURORA_LORA_DATA", str(tmp_path))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    *found, turned = subject_images("someone/subjects", "dog")
    assert turned.size == (4, 8)
    assert [np.asarray(image).tobytes() for image in found] == [
        np.asarray(image).tobytes() for image in subject_images(str(images))
    ]


# ---------------------------------------------------------------- fidelity


def test_code_of_a_folders_own_never_runs(
    model: Path, images: Path, clip_folder: Path, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n" * 100))
    ran, code = tmp_path / "ran", "from pathlib import Path\nPath({!r}).touch()\nclass Own: pass\n"
    pipeline, clip = (Path(shutil.copytree(each, tmp_path / name)) for each, name in ((model, "p"), (clip_folder, "c")))
    for path in (pipeline / "unet" / "own.py", clip / "own.py"):
        path.write_text(code.format(str(ran)), encoding="utf-8")
    for path, changes in (
        (pipeline / "model_index.json", {"unet": ["own", "Own"]}),
        (clip / "processor_config.json", {"processor_class": "Own", "auto_map": {"AutoProcessor": "own.Own"}}),
        (clip / "config.json", {"model_type": "own"}),
    ):
        values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps({**values, **changes}), encoding="utf-8")
    recipe = validate_as(SubjectRecipe, tiny.recipe(pipeline, images), "tiny")
    with pytest.raises(UserError, match=r"model: .* code of its own"):
        load_diffusion(recipe, needed_prompts(recipe), torch.device("cpu"))
    with pytest.raises(UserError, match=r"scores\.clip: .* code of its own"):
        Scorers(str(clip), None)
    assert not ran.exists()
