"""Figure 4: recipes of subject-driven generation, planned, estimated and run by `aurora reproduce`."""

import sys
from pathlib import Path
from typing import Any

import pytest

from aurora_lora.diffusion.recipe import SubjectRecipe
from aurora_lora.lab.experiments.estimate import describe, estimate
from aurora_lora.lab.experiments.estimate_diffusion import images, memory, trained_parameters
from aurora_lora.lab.experiments.jobs import run_job
from aurora_lora.lab.experiments.machines import GPUS
from aurora_lora.lab.experiments.paper import SUITES
from aurora_lora.lab.experiments.recipe_kinds import load_any
from aurora_lora.lab.experiments.reproduce import prepare
from aurora_lora.lab.experiments.suite import Suite
from aurora_lora.lab.report.paper_comparison import compare
from aurora_lora.methods import METHODS

pytest.importorskip("diffusers", reason="diffusers is not installed")


def test_figure_4_has_the_papers_settings(tmp_path: Path) -> None:
    todo = prepare("figure4", "hub", tmp_path)
    assert {cell.group for cell in todo.cells} == {"dog", "bear plushie"}
    methods = {}
    for job in todo.jobs.values():
        recipe = job.recipe
        assert isinstance(recipe, SubjectRecipe)
        training = recipe.training
        assert (recipe.model, recipe.vae) == (
            "stabilityai/stable-diffusion-xl-base-1.0",
            "madebyollin/sdxl-vae-fp16-fix",
        )
        assert (training.steps, training.learning_rate, training.scheduler, training.precision) == (
            *(500, 1e-4, "constant", "fp16"),
        )
        assert (training.batch_size, training.gradient_accumulation_steps, recipe.task.resolution) == (1, 4, 1024)
        assert (training.weight_decay, training.max_grad_norm) == (
            1e-4,
            1,
        )  # those of MoSLoRA's script, as of diffusers'
        assert recipe.task.images == "google/dreambooth"
        assert recipe.scores is not None
        assert len(set(recipe.scores.prompts)) == 25
        assert all("[V]" in prompt for prompt in recipe.scores.prompts)
        methods[recipe.method.name] = recipe.method.options
    assert (methods["aurora-paper"]["r"], methods["aurora-paper"]["alpha"]) == (2, 4)
    assert methods["lora"]["init_lora_weights"] == "gaussian"
    assert methods["lora"]["lora_alpha"] == methods["lora"]["r"]
    assert {tuple(options["target_modules"]) for options in methods.values()} == {
        ("to_q", "to_k", "to_v", "to_out.0"),
    }
    smoke = load_any("figure4/smoke")
    assert smoke.task.images == "diffusers/dog-example"


def test_weights_that_are_loaded_in_float32_are_planned_so(tmp_path: Path) -> None:
    """Where biases of the model are trained, whatever the precision of the training."""
    lora = next(job.recipe for job in prepare("figure4", "hub", tmp_path).jobs.values())
    assert isinstance(lora, SubjectRecipe)
    bias = lora.model_copy(update={"method": METHODS["lora"].bind({**lora.method.options, "bias": "lora_only"})})
    assert (lora.weights_precision, bias.weights_precision) == ("fp16", "fp32")
    frozen = trained_parameters(lora).total
    assert memory(bias) - memory(lora) > 1.99 * frozen


def test_the_plan_counts_without_weights(tmp_path: Path) -> None:
    """LoRA on to_q, to_k, to_v and to_out.0 of SDXL: r (d_in + d_out), summed over 70 blocks with two attentions."""
    rows = {row["recipe"]: row for row in describe(prepare("figure4", "hub", tmp_path, only=["dog-*"]))}

    def attention(width: int, context: int) -> int:
        return 2 * (width + width) + 2 * (context + width)  # to_q and to_out.0, to_k and to_v

    blocks = {640: 2 * 2 + 2 * 3, 1280: 10 * 2 + 10 * 3 + 10}  # down, up (and mid) blocks times their depth
    expected = sum(count * (attention(width, width) + attention(width, 2048)) for width, count in blocks.items())
    assert rows["dog-lora"]["params"]["adapter"] == 4 * expected
    layers = 8 * sum(blocks.values())
    assert rows["dog-aurora"]["params"]["adapter"] == 2 * expected + layers * (4 + 2 * 8)
    assert rows["dog-lora"]["params"]["total"] - 4 * expected == 2_567_463_684  # the published U-Net
    assert 5.2 < rows["dog-lora"]["memory_gb"] < 24
    assert rows["dog-lora"]["hours"] > 0


def test_estimates_follow_the_settings() -> None:
    recipe = load_any("figure4/dog-lora")
    gpu = GPUS["L20"]
    plain = estimate(recipe, gpu)

    def changed(**training: Any) -> Any:
        return recipe.model_copy(update={"training": recipe.training.model_copy(update=training)})  # type: ignore[attr-defined]

    def training(**changes: Any) -> float:
        parts = estimate(changed(**changes), gpu).parts
        assert parts is not None
        return parts.training

    assert training(steps=1000) == pytest.approx(2 * training())
    assert training(gradient_checkpointing=False) == pytest.approx(training() * 2 / 3)
    assert estimate(changed(gradient_checkpointing=False), gpu).memory_gb > plain.memory_gb + 4
    assert estimate(changed(precision="fp32"), gpu).memory_gb > 1.9 * plain.memory_gb


def test_images_are_counted_and_take_time() -> None:
    """Four prompts before the training, at five validations and in three forms; a hundred to score in each form."""
    recipe, lora = (load_any(f"figure4/dog-{name}") for name in ("aurora-paper", "lora"))
    assert isinstance(recipe, SubjectRecipe)
    assert isinstance(lora, SubjectRecipe)
    assert (images(recipe), images(lora)) == (4 * 6 + 4 * 3 + 100 * 3, 4 * 6 + 4 + 100)
    generation = estimate(recipe, GPUS["L20"]).parts.generation  # type: ignore[union-attr]
    assert generation == pytest.approx(estimate(lora, GPUS["L20"]).parts.generation * 336 / 128)  # type: ignore[union-attr]


def test_a_suite_runs_and_compares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "diffusion"))
    import tiny_pipeline as tiny

    clip, dino = tiny.save_clip(tmp_path / "clip"), tiny.save_dino(tmp_path / "dino")
    model, images = tiny.save_pipeline(tmp_path / "model"), tiny.save_images(tmp_path / "subject")
    values = tiny.recipe(
        model,
        images,
        training={"steps": 1},
        validation={"prompts": [], "inference_steps": 1},
        scores={"prompts": ["a [V] dog"], "images_per_prompt": 1, "clip": str(clip), "dino": str(dino)},
    )
    values.pop("name")
    rows = [{"name": form, "recipe": "aurora", "form": form} for form in ("static", "calibrated")]
    columns = [{"name": metric, "label": metric, "metric": metric} for metric in ("clip_i", "clip_t", "dino")]
    suite = {"name": "tiny", "scale": "packaged", "title": "Tiny", "seeds": [0], "columns": columns}
    suite |= {"groups": [{"name": "dog", "rows": rows}], "recipes": {"aurora": {"values": values, "words": ("Tiny.",)}}}
    monkeypatch.setitem(SUITES, "tiny", {"packaged": lambda: Suite.model_validate(suite)})
    todo = prepare("tiny", "packaged", tmp_path / "runs")
    (job,) = todo.jobs.values()
    outcome = run_job(job)
    assert outcome.error is None
    compared = compare(todo.suite, todo.cells, todo.seeds, todo.results())
    assert [one.ours for one in compared] == [
        pytest.approx(100 * outcome.result["metric"]["by_form"][form][metric])  # type: ignore[index]
        for form in ("static", "calibrated")
        for metric in ("clip_i", "clip_t", "dino")
    ]
    assert [row["status"] for row in describe(todo)] == ["finished"]
