"""Plans: parameters, memory and hours by formula, against what the shapes of whole steps give, and by hand."""

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from aurora_lora.data import get_task
from aurora_lora.errors import UserError
from aurora_lora.lab.experiments.dry_run import describe, plan_tables
from aurora_lora.lab.experiments.plan import (
    GPUS,
    Sizes,
    hours,
    longest,
    machine,
    needs,
    padded,
    peaks,
    shapes,
)
from aurora_lora.lab.experiments.recipes import load_any
from aurora_lora.lab.experiments.reproduce import prepare
from aurora_lora.train.recipe import Recipe


def recipe_of(name: str, *overrides: str) -> Recipe:
    recipe = load_any(name, overrides)
    assert isinstance(recipe, Recipe)
    return recipe


def known(name: str, *overrides: str) -> tuple[Recipe, Sizes]:
    recipe = recipe_of(name, *overrides)
    return recipe, Sizes.known(recipe)


@pytest.mark.parametrize(
    ("name", "adapter", "training", "evaluation", "calibration"),
    [
        ("table1/base-lora-rte", 294912, 5.161, 1.222, 0),
        ("table1/base-full-qnli", 124055040, 13.089, 2.704, 0),
        ("table1/base-dora-qnli", 313344, 10.81, 1.717, 0),
        ("table1/base-bitfit-mrpc", 102144, 3.698, 0.766, 0),
        ("table1/large-adapter-h-mrpc", 6343680, 6.490, 1.855, 0),
        ("table1/large-fourierft-qnli", 48000, 22.611, 3.045, 0),
        ("table1/base-aurora-paper-stsb", 74208, 4.546, 0.811, 0.521),
        ("table2/lora", 56623104, 18.83, 20.465, 0),
        ("table2/pissa", 83886080, 19.26, 20.792, 0),
        ("table2/aurora-paper", 3542144, 17.98, 19.826, 21.036),
        ("table3/base-lora-dtd", 589824, 5.520, 0.816, 0),
        ("table3/large-full-dtd", 303301632, 13.149, 4.26, 0),
        ("table3/large-aurora-dtd", 197568, 6.689, 1.836, 1.24),
        ("table2/pissa-siqa", 2442240, 0.795, 0.616, 0),
    ],
)
def test_the_formulas_give_what_whole_steps_without_numbers_do(
    name: str, adapter: int, training: float, evaluation: float, calibration: float
) -> None:
    """Gigabytes that autograd was counted to keep in a step of each model on fake tensors; parameters are exact."""
    recipe, sizes = known(name)
    found = peaks(recipe, sizes)
    assert shapes(recipe, sizes.labels).params.adapter == adapter
    assert found["training"] / 1e9 == pytest.approx(training, rel=0.1)
    assert found["evaluation"] / 1e9 == pytest.approx(evaluation, rel=0.1)
    assert found["calibration"] / 1e9 == pytest.approx(calibration, rel=0.1)


@pytest.mark.parametrize(
    ("name", "constant", "slope"),
    [
        ("table1/base-lora-rte", 0, 40064),
        ("table1/base-full-rte", 0, 58432),
        ("table1/base-dora-rte", 0, 52352),
        ("table1/base-fourierft-rte", 2 * 4 * 768**2, 40000),
        ("table2/lora", 0, 336328),
        ("table2/pissa-siqa", 0, 28572),
        ("table3/large-lora-dtd", 0, 57552),
    ],
)
def test_what_a_layer_keeps(name: str, constant: float, slope: float) -> None:
    """Bytes, and bytes a token, that were counted in the last layer of a step on fake tensors."""
    recipe, sizes = known(name)
    found = shapes(recipe, sizes.labels).layers[-1]
    assert found[0] == pytest.approx(constant)
    assert found[1] == pytest.approx(slope, rel=0.03)


def test_figure_4() -> None:
    """Against a pass of the U-Net without numbers: operations, numbers that are kept, and the paper's parameters."""
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    found = needs(load_any("figure4/dog-lora"), GPUS["L20"])
    assert found["params"] == {"adapter": 5806080, "head": 0, "total": 2573269764}
    assert found["memory_gb"] == pytest.approx(6.01, rel=0.05)
    assert found["hours"] == pytest.approx(0.5067, rel=0.05)
    half = needs(load_any("figure4/dog-lora", ["task.resolution=512"]), GPUS["L20"])
    assert found["hours_of"]["training"] == pytest.approx(4 * half["hours_of"]["training"], rel=0.01)


def test_quantised_weights_are_counted_as_they_are_kept() -> None:
    """Half a byte each, and a scale for 64 of them; one layer at a time is there in full."""
    options = ("training.precision=bf16", "method.target_modules=[q_proj]")
    plain, quantised = (known("table2/lora", *options, *more)[0] for more in ((), ("model.quantization=nf4",)))
    llama, linear = 8_030_261_248, 32 * (2 * 4096**2 + 2 * 1024 * 4096 + 3 * 4096 * 14336)
    held = [shapes(recipe, 1).held for recipe in (plain, quantised)]
    assert shapes(plain, 1).params.total - shapes(plain, 1).params.adapter == llama
    assert held[0] - held[1] == pytest.approx((2 - 0.5 - 4 / 64) * linear - 2 * 4096 * 14336)


def test_the_calibration_of_the_widest_layer() -> None:
    """`down_proj`: its moment has 14,336^2 numbers of 8 bytes, and two factors of that size while it is solved."""
    recipe, sizes = known("table2/aurora-paper")
    found, params = peaks(recipe, sizes), shapes(recipe, sizes.labels).params
    beside = 2 * (params.total - params.adapter) + 12 * params.adapter  # bf16 and float32, AdamW's moments
    assert found["calibration"] - beside == pytest.approx(3 * 8 * 14336**2, rel=0.01)
    assert machine("RTX 4090").fits(max(found.values()) / 1e9)


def test_what_an_evaluation_holds_at_once() -> None:
    """No more questions than there are; all of them, with four beams each, where answers are written."""
    recipe, sizes = known("table2/lora", "training.eval_batch_size=64")
    lengths = {split: [1000.0] for split in sizes.lengths}
    few, many = (replace(sizes, examples=dict.fromkeys(sizes.examples, n), lengths=lengths) for n in (2, 1000))
    params = shapes(recipe, sizes.labels).params
    weights = 2 * (params.total - params.adapter) + 12 * params.adapter
    cache = 2 * 4 * 64 * (1000 + 32) * 32 * 2 * 1024  # keys and values of 8 heads of 128 in 32 layers
    at_work, logits = 3 * 2 * 4 * 64 * 1000 * 14336, 12 * 2**28  # as many logits as are scored at once
    assert peaks(recipe, many)["evaluation"] == pytest.approx(weights + at_work + cache + logits, rel=2e-4)
    assert peaks(recipe, few)["evaluation"] < weights + (at_work + cache) / 16 + logits


# ---------------------------------------------------------------- hours, lengths, machines


def test_the_hours_of_the_paper_and_of_the_studies() -> None:
    """Table 7: 15.05 hours of training and inference. The study of digits: 13.3 s of training on one thread."""
    assert 0.5 < needs(recipe_of("table2/lora"), GPUS["L20"])["hours"] / 15.05 < 2
    on = replace(GPUS["L20"], cores=2, fp32=0.06, half=0.112)
    found = hours(*known("table3/lora-digits", "training.threads=1"), on)
    assert found is not None
    assert 3600 * found["training"] == pytest.approx(13.3, rel=0.5)


def test_the_hours_of_a_step_and_of_four_beams_by_hand() -> None:
    """2 operations a weight and token in a pass, at 40% of 119.5 TFLOP/s; an embedding is looked up."""
    recipe, sizes = known("table2/lora", "training.gradient_checkpointing=true", "task.test_sets=[boolq]")
    found, params = hours(recipe, sizes, GPUS["L20"]), shapes(recipe, sizes.labels).params
    a_token = 2 * (params.total - 128256 * 4096) / (0.4 * 119.5e12) / 3600
    trained = recipe.training.epochs * 170_300 * padded(recipe, sizes, recipe.training.batch_size)
    written = 3270 * (padded(recipe, sizes, 1, "boolq") + 32)
    assert found is not None
    assert found["training"] == pytest.approx(3 * trained * a_token)  # forward, again, and backward
    assert found["generation"] == pytest.approx(4 * written * a_token)


def test_evaluation_counts() -> None:
    """Each form, each test set, each beam; the calibrations; each epoch."""

    def parts(name: str, *overrides: str) -> dict[str, float]:
        found = hours(*known(name, *overrides), GPUS["L20"])
        assert found is not None
        return found

    lora, aurora = parts("table2/lora"), parts("table2/aurora")
    assert aurora["generation"] == pytest.approx(3 * lora["generation"], rel=0.01)
    assert (lora["calibration"], aurora["calibration"] > 0) == (0, True)
    two = parts("table2/lora", "task.test_sets=[boolq,piqa]")
    assert two["generation"] == pytest.approx(lora["generation"] * (3270 + 1838) / 22_419, rel=0.01)
    one, four = (parts("table1/base-lora-sst2", f"training.epochs={n}")["evaluation"] for n in (1, 4))
    assert four == pytest.approx(one * 5 / 2)  # and once in the end
    assert parts("table2/lora", "task.scorer=choices")["generation"] == 0


def test_lengths() -> None:
    recipe, sizes = known("table2/lora")
    assert 218 <= padded(recipe, sizes, 16) <= 238
    assert padded(recipe, sizes, 1) < padded(recipe, sizes, 4) < padded(recipe, sizes, 16) < 256
    assert (longest(recipe, sizes), longest(recipe, sizes, ("boolq",))) == (256, 1000)
    similarity, sizes = known("table1/base-lora-stsb")
    assert (similarity.task.max_length, longest(similarity, sizes)) == (512, 129)


@pytest.mark.parametrize("name", ["digits", "siqa", "wikihow-goal", "winowhy"])
def test_sizes_of_packaged_data_are_its_own(name: str) -> None:
    task = get_task(name)
    assert task.train_examples == len(task.load_splits(task.sizes, 0)["train"])


@pytest.mark.parametrize(
    ("cuda", "gb", "like"),
    [
        ("NVIDIA L4", 23.7, "L4"),
        ("NVIDIA GeForce RTX 4090", 25.3, "RTX 4090"),
        ("NVIDIA A100-SXM4-40GB", 42.4, "A100"),
        ("Some GPU of tomorrow", 47, "L20"),
    ],
)
def test_the_gpu_that_is_there(cuda: str, gb: float, like: str, monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name=cuda, total_memory=gb * 1e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    found = machine("here")
    assert (found.half, found.fp32, found.memory_gb) == (GPUS[like].half, GPUS[like].fp32, gb)
    assert (found.fits(0.9 * gb), found.fits(0.91 * gb)) == (True, False)
    with pytest.raises(UserError, match=r"`gpu`: 'L21' is an unknown GPU; did you mean 'L20'\?"):
        machine("L21")


# ---------------------------------------------------------------- suites


@pytest.mark.slow
@pytest.mark.parametrize(("suite", "scale"), [("table1", "hub"), ("table2", "packaged")])
def test_a_whole_table_is_planned_in_seconds(suite: str, scale: str, tmp_path: Path) -> None:
    """In 80 columns. Of all that is in each suite the sizes are known."""
    todo, start = prepare(suite, scale, tmp_path), time.process_time()
    rows: list[Any] = describe(todo, "L20")
    assert time.process_time() - start < 30
    assert all(row["hours"] for row in rows)
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in plan_tables(todo.suite, rows):
        console.print(table)
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    for name in {row["recipe"] for row in rows}:
        (line,) = (line for line in lines if line.split()[:1] == [name])
        assert line.split()[-1] == f"0/{len(todo.seeds)}"
