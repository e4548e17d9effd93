"""What comes of a run: stock diffusers loads it, images and scores, other methods."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from looking import PROMPTS, pixels
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.diffusion.finished_run import generate, load_subject_run
from aurora_lora.diffusion.pipeline import Diffusion, seed_of
from aurora_lora.errors import UserError
from aurora_lora.train.finished_run import read_result

Train = Callable[..., list[dict[str, Any]]]
PROMPTS_OF_SCORES = ["a [V] dog", "a [V] dog on the beach"]


@pytest.mark.slow
def test_stock_diffusers_loads_the_lora_with_equal_output(
    runs: dict[str, Any], model: Path, tiny: Any, tmp_path: Path
) -> None:
    from aurora_lora.diffusion.pipeline import generator

    forms = {"aurora": "calibrated", "lora": "merged"}
    seed = generator("image", seed_of("generated", 0, 1, 0)).initial_seed()
    command = [sys.executable, str(Path(__file__).with_name("stock.py")), str(model), str(tmp_path), PROMPTS[1]]
    command += [str(seed), "2", "5.0", str(tiny.SIDE), *(str(runs[name] / "lora") for name in forms)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for index, (name, form) in enumerate(forms.items()):
        stock = np.load(tmp_path / f"{index}.npy") * 255
        ours = pixels(runs[name] / "images" / f"form-{form}" / "01-0.png")
        assert np.abs(stock - ours).max() < 1
        # and not because the adapter does nothing
        assert np.abs(ours - pixels(runs[name] / "images" / "step-000000" / "01-0.png")).max() > 2


def test_the_cards_say_how_to_load(runs: dict[str, Any]) -> None:
    for name in ("aurora", "lora"):
        text = (runs[name] / "lora" / "README.md").read_text()
        assert "library_name: diffusers" in text
        assert "pipe.load_lora_weights" in text
        assert ("trained as AuroRA" in text) == (name == "aurora")
    text = (runs["aurora"] / "adapter" / "README.md").read_text()
    assert "| calibrated merge, deployed |" in text
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert "PeftModel.from_pretrained(pipe.unet" in code


def test_generate_and_export(aurora: Train, runs: dict[str, Any], tmp_path: Path) -> None:
    """The saved adapter generates the images of the run's end, in every form; other forms can be exported."""
    folder = str(runs["aurora"])
    prompts = ["a photo of a [V] dog", "a [V] dog on the beach"]

    def order(*args: str) -> dict[str, Any]:
        return {"args": list(args), "folder": str(tmp_path)}

    def generate(form: str) -> dict[str, Any]:
        return order("generate", folder, *prompts, "--output", str(tmp_path / form), "--form", form)

    def export(form: str, *more: str) -> dict[str, Any]:
        written = str(tmp_path / f"lora-{form}")
        return order("export", folder, "--output", written, "--form", form, "--overwrite", *more)

    shutil.copytree(runs["aurora"] / "lora", tmp_path / "lora-static")  # replaced, and its card with it
    orders = (generate("calibrated"), generate("dynamic"), export("static"), export("calibrated"), export("dynamic"))
    answers = aurora(*orders, export("static", "--dtype", "bf16"))
    assert [answer["status"] for answer in answers] == [0, 0, 0, 0, 2, 2], [answer["stderr"] for answer in answers]
    for form in ("calibrated", "dynamic"):
        for name in ("00-0.png", "01-0.png"):
            ours = pixels(tmp_path / form / name)
            np.testing.assert_array_equal(ours, pixels(runs["aurora"] / "images" / f"form-{form}" / name))
    assert (tmp_path / "dynamic" / "grid.png").exists()
    assert "the dynamic form is no linear map" in answers[4]["stderr"]
    assert "--dtype: 'bf16' is not allowed: it must be one of float32, bfloat16, float16\n" in answers[5]["stderr"]
    assert "computes exactly the static form" in (tmp_path / "lora-static" / "README.md").read_text()
    assert "computes exactly the calibrated form" in (tmp_path / "lora-calibrated" / "README.md").read_text()
    static, calibrated, own = (
        load_file(path / "pytorch_lora_weights.safetensors")
        for path in (tmp_path / "lora-static", tmp_path / "lora-calibrated", runs["aurora"] / "lora")
    )
    assert all(own[key].equal(calibrated[key]) for key in own)
    assert not all(static[key].equal(calibrated[key]) for key in own)


def test_generate_takes_its_options_before_the_recipes(
    runs: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, own = [], Diffusion.generate

    def generate(diffusion: Diffusion, prompt: str, wanted: Any, seed: int) -> Image.Image:
        seen.append((prompt, wanted.inference_steps, wanted.guidance_scale, seed))
        return own(diffusion, prompt, wanted, seed)

    monkeypatch.setattr(Diffusion, "generate", generate)
    options = ["--seed", "7", "--steps", "1", "--guidance", "1", "--images", "2"]
    done = CliRunner().invoke(
        cli.app, ["generate", str(runs["aurora"]), "a [V] dog", "--output", str(tmp_path), *options]
    )
    assert done.exit_code == 0, done.output
    assert seen == [("a sks dog", 1, 1.0, seed_of("generated", 7, 0, number)) for number in range(2)]
    assert not np.array_equal(pixels(tmp_path / "00-0.png"), pixels(tmp_path / "00-1.png"))


def test_the_images_of_a_run_are_not_replaced(runs: dict[str, Any]) -> None:
    run = load_subject_run(runs["aurora"])
    kept = (run.folder / "grid.png").read_bytes()
    with pytest.raises(UserError, match="is the folder of a run, which has images of its own"):
        generate(run, ["a [V] dog"], run.folder, inference_steps=1)
    assert (run.folder / "grid.png").read_bytes() == kept


@pytest.mark.slow
def test_other_methods(train: Train, aurora: Train, tmp_path: Path) -> None:
    """In half precision; with why there is no LoRA of diffusers, and the images of the run's end by `generate`."""
    training = {"steps": 1, "precision": "bf16", "threads": 1}
    quick = {"training": training, "validation": {"prompts": [], "inference_steps": 1}}
    whole = {"modules_to_save": ["conv_out"]}
    no_place = "a LoRA file of diffusers has no place for"
    methods = {
        "aurora-paper": ({"name": "aurora-paper"}, None),
        "bitfit": ({"name": "bitfit"}, "diffusers loads LoRA, and bitfit is none"),
        "moslora": ({"name": "moslora"}, "diffusers loads LoRA, and moslora is none"),
        "milora": ({"name": "milora"}, "diffusers loads LoRA, and milora is none"),
        "vera": ({"name": "vera", "r": 8}, "diffusers loads LoRA, and vera is none"),
        "lora-bias": ({"name": "lora", "bias": "all"}, f"{no_place} the biases that bias='all' trains"),
        "lora-whole": ({"name": "lora", **whole}, f"{no_place} what modules_to_save trains"),
        "aurora-whole": ({"name": "aurora", **whole}, f"{no_place} what modules_to_save trains"),
        "lora-dora": ({"name": "lora", "use_dora": True}, "a LoRA file of diffusers holds LoRA's A and B only"),
    }
    answers = train(*((tmp_path / name, {**quick, "method": method}, {}) for name, (method, _) in methods.items()))
    for (name, (method, why)), answer in zip(methods.items(), answers, strict=True):
        assert answer["status"] == 0, answer["stderr"]
        assert (tmp_path / name / "lora").exists() == (why is None)
        assert ("no lora/ is written" in answer["stderr"]) == (why is not None)
        assert f"{method['name']}: no lora/ is written: {why}" in answer["stderr"] or why is None
        assert read_result(tmp_path / name)["params"]["adapter"] > 0
    for name, loads in (("vera", "PeftModel.from_pretrained(pipe.unet"), ("milora", "aurora generate RUN ")):
        assert loads in (tmp_path / name / "adapter" / "README.md").read_text()
    orders = (["generate", str(tmp_path / "vera"), "a [V] dog", "--output", str(tmp_path / "again")],)
    orders += (["export", str(tmp_path / "aurora-whole"), "--output", str(tmp_path / "export")],)
    made, refused = aurora(*({"args": order, "folder": str(tmp_path)} for order in orders))
    assert (made["status"], refused["status"]) == (0, 2)
    assert no_place in refused["stderr"]


def test_scores_are_those_of_the_images(
    train: Train, clip_folder: Path, dino_folder: Path, images: Path, tmp_path: Path
) -> None:
    from transformers import CLIPModel, CLIPProcessor, ViTImageProcessor, ViTModel

    scores = {"prompts": PROMPTS_OF_SCORES, "images_per_prompt": 2, "clip": str(clip_folder), "dino": str(dino_folder)}
    quick = {"training": {"steps": 1, "threads": 1}, "validation": {"prompts": [], "inference_steps": 1}}
    (answer,) = train((tmp_path / "run", {**quick, "scores": scores}, {}))
    assert answer["status"] == 0, answer["stderr"]
    metric = read_result(tmp_path / "run")["metric"]
    assert (metric["name"], metric["split"]) == ("clip_i", "generated")
    assert metric["examples"] == {"train": 3, "generated": 4}
    assert set(metric["by_form"]["static"]) == {"clip_i", "clip_t", "dino", "explained", "noise_error"}
    assert "CLIP-I" in answer["stdout"]
    model, processor = CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder)
    generated = [
        Image.open(tmp_path / "run" / "images" / "scores-calibrated" / name)
        for name in ("00-0.png", "00-1.png", "01-0.png", "01-1.png")
    ]
    assert len({image.tobytes() for image in generated}) == 4
    real = [Image.open(path).convert("RGB") for path in sorted(images.iterdir())]
    inputs = processor(
        text=["a dog", "a dog on the beach"], images=[*generated, *real], return_tensors="pt", padding=True
    )
    with torch.no_grad():
        outputs = model(**inputs)
    embedded, asked = outputs.image_embeds, outputs.text_embeds
    alike = torch.nn.functional.cosine_similarity(embedded[:4, None], embedded[None, 4:], dim=-1).mean()
    right = torch.nn.functional.cosine_similarity(embedded[:4], asked.repeat_interleave(2, 0)).mean()
    assert metric["by_form"]["calibrated"]["clip_i"] == pytest.approx(alike.item(), abs=1e-5)
    assert metric["by_form"]["calibrated"]["clip_t"] == pytest.approx(right.item(), abs=1e-5)
    dino, processor = ViTModel.from_pretrained(dino_folder), ViTImageProcessor.from_pretrained(dino_folder)
    with torch.no_grad():
        tokens = dino(**processor([*generated, *real], return_tensors="pt")).last_hidden_state[:, 0]
    alike = torch.nn.functional.cosine_similarity(tokens[:4, None], tokens[None, 4:], dim=-1).mean()
    assert metric["by_form"]["calibrated"]["dino"] == pytest.approx(alike.item(), abs=1e-5)
