"""What a run keeps its weights in, on every kind of task, and what is made of it afterwards."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from aurora_lora.methods import METHODS
from aurora_lora.train import load_recipe, load_run, recipe_files, train
from aurora_lora.train.kinds import kind_of
from aurora_lora.train.measuring import evaluate
from aurora_lora.train.merging import merge
from aurora_lora.train.models import base_for, load_tokenizer, make_model
from aurora_lora.train.predicting import predict
from aurora_lora.train.run import make_trainer

SMALL: dict[str, dict[str, Any]] = {
    "adalora": {"init_r": 4, "target_r": 2},
    "fourierft": {"n_frequency": 60, "scaling": 10.0},
    "vera": {"r": 16},
    "adapter-d": {"r": 4, "drop_layers": 1},
}
OWN_TARGETS = ("adapter-h", "adapter-p", "adapter-d", "bitfit", "linear-probe", "full")
WHOLE = ("bitfit", "full")
"""Methods that train the body's own weights."""

WriteRecipe = Callable[..., Path]


@pytest.fixture(scope="session")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_language_model(tmp_path_factory.mktemp("language_model"))


def questions(model: Path, **changes: Any) -> dict[str, Any]:
    values = {
        "model": model,
        "task": {"name": "tiny-questions", "train_size": 32, "validation_size": 16, "test_size": 16},
        "method": {"name": "aurora", "target_modules": ["q_proj", "v_proj"]},
        "training": {
            "epochs": 1,
            "batch_size": 8,
            "eval_batch_size": 8,
            "learning_rate": 2e-2,
            "threads": 1,
            "precision": "bf16",
        },
    }
    return {**values, **changes}


def options(name: str, targets: list[str]) -> dict[str, Any]:
    return {"name": name, **SMALL.get(name, {}), **({} if name in OWN_TARGETS else {"target_modules": targets})}


@pytest.mark.parametrize("name", [name for name in METHODS if not name.startswith("aurora-")])
def test_frozen_weights_have_the_precision_and_trained_ones_float32(
    write_recipe: WriteRecipe, tmp_path: Path, name: str
) -> None:
    training = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "threads": 1, "precision": "bf16"}
    recipe = load_recipe(write_recipe(method=options(name, ["query", "value"]), training=training))
    trainer, data = make_trainer(recipe, tmp_path)
    trained, frozen = set(), set()
    for parameter_name, parameter in trainer.model.named_parameters():
        if ".original_module." not in parameter_name and parameter.is_floating_point():
            (trained if parameter.requires_grad else frozen).add(parameter.dtype)
    assert trained == {torch.float32}
    if name == "vera":
        frozen.discard(torch.float32)
    assert frozen == ({torch.float32} if name == "bitfit" else set() if name == "full" else {torch.bfloat16})
    loss = kind_of(data.task).loss(trainer.recipe, trainer.model, data.training_batches(1.0, 8)[0])
    loss.backward()
    gradients = {p.grad.dtype for p in trainer.model.parameters() if p.grad is not None}
    assert gradients == {torch.float32}


@pytest.mark.parametrize("name", ["aurora", "lora", "pissa", "milora", "moslora"])
def test_a_merge_rounds_no_weight(write_recipe: WriteRecipe, language_model: Path, tmp_path: Path, name: str) -> None:
    """The base is stored in float32: what the run did not adapt is written as it is stored."""
    method = options(name, ["q_proj", "v_proj"])
    run = train(load_recipe(write_recipe(**questions(language_model, method=method))), tmp_path / "run")
    merged = merge(load_run(run.folder), tmp_path / "merged")
    base = load_file(language_model / "model.safetensors")
    written = load_file(merged.folder / "model.safetensors")
    adapted = [key for key in base if "q_proj" in key or "v_proj" in key]
    for key, value in base.items():
        assert torch.equal(written[key], value) == (key not in adapted)
    # nor is it another function: the trained weights belong to the start that the run had
    texts = ["film : warm plot", "dull film"]
    assert predict(run.folder, texts) == predict(merged.folder, texts)
    scores = run.result["metric"]["by_form"][load_run(run.folder).deployed_form]
    again = evaluate(load_run(run.folder).in_float32, forms=[load_run(run.folder).deployed_form])
    assert again[load_run(run.folder).deployed_form]["nll"] == pytest.approx(scores["nll"], rel=2e-2)


def test_a_start_is_taken_from_the_exact_weights(
    write_recipe: WriteRecipe, language_model: Path, tmp_path: Path
) -> None:
    """MiLoRA's, from the smallest singular values, which rounding would change altogether."""
    stored = tmp_path / "bf16"
    AutoModelForCausalLM.from_pretrained(language_model, dtype=torch.bfloat16).save_pretrained(stored)
    for file in language_model.glob("*token*"):
        (stored / file.name).write_bytes(file.read_bytes())
    method = {"name": "milora", "r": 4, "target_modules": ["q_proj"]}
    for model in (language_model, stored):
        trainer, _ = make_trainer(load_recipe(write_recipe(**questions(model, method=method))), tmp_path / model.name)
        layer: Any = trainer.model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
        W0 = load_file(model / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"].float()
        start = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        torch.testing.assert_close(torch.linalg.svdvals(start)[:4], torch.linalg.svdvals(W0)[-4:])
        torch.testing.assert_close(layer.base_layer.weight, (W0 - start).bfloat16())


@pytest.mark.parametrize("name", ["aurora", "lora", "moslora", "adapter-h", "linear-probe"])
def test_a_base_in_fp16_trains_under_a_gradient_scaler(write_recipe: WriteRecipe, model: Path, name: str) -> None:
    """The scaler refuses gradients in fp16; what is trained has none."""
    recipe = load_recipe(write_recipe(method=options(name, ["query", "value"])), ["training.precision=fp16"])
    module = make_model(recipe, base_for(recipe, load_tokenizer(str(model)), ())).train()
    trained = {n: p.detach().clone() for n, p in module.named_parameters() if p.requires_grad}
    frozen = [p for n, p in module.named_parameters() if not p.requires_grad and ".original_module." not in n]
    assert {p.dtype for p in frozen} == {torch.float16}
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    with torch.autocast("cpu", torch.float16):
        logits = module(input_ids=torch.tensor([[2, 4, 5, 3], [2, 6, 7, 3]])).logits
    scaler.scale(torch.nn.functional.cross_entropy(logits.float(), torch.tensor([0, 1]))).backward()
    scaler.step(optimizer)
    scaler.update()
    changed = [n for n, p in module.named_parameters() if n in trained and not torch.equal(p, trained[n])]
    assert changed
    assert all(p.dtype is torch.float32 and p.isfinite().all() for p in module.parameters() if p.requires_grad)


# ---------------------------------------------------------------- gradient checkpointing


def gradients(recipe_path: Path, tmp_path: Path, checkpointing: bool) -> tuple[dict[str, torch.Tensor], int]:
    """The gradients of a batch, and how many bytes are kept for its backward pass."""
    recipe = load_recipe(recipe_path, [f"training.gradient_checkpointing={str(checkpointing).lower()}"])
    trainer, data = make_trainer(recipe, tmp_path)
    model, kept = trainer.model.train(), 0
    known = {parameter.data_ptr() for parameter in model.parameters()}

    def pack(value: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += 0 if value.data_ptr() in known else value.nbytes
        return value

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        loss = kind_of(data.task).loss(trainer.recipe, model, data.training_batches(1.0, 8)[0])
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, kept


@pytest.mark.parametrize("kind", ["classification", "choices", "images"])
@pytest.mark.parametrize("name", ["aurora", "lora", "dylora", "adapter-h", "full"])
def test_checkpointing_changes_memory_and_no_gradient(
    write_recipe: WriteRecipe,
    model: Path,
    language_model: Path,
    tmp_path: Path,
    kind: str,
    name: str,
) -> None:
    targets = {"classification": ["query", "value"], "choices": ["q_proj", "v_proj"], "images": tiny.QUERY_VALUE}
    changes: dict[str, Any] = {"method": options(name, targets[kind])}
    if kind == "choices":
        path = write_recipe(**questions(language_model, **changes))
    elif kind == "images":
        vit = tiny.save_vit(tmp_path / "vit")
        path = write_recipe(**tiny.image_recipe(vit, **changes))
    else:
        path = write_recipe(model=model, **changes)
    (plain, much), (checkpointed, little) = (gradients(path, tmp_path / "none", wanted) for wanted in (False, True))
    assert plain.keys() == checkpointed.keys()
    for parameter, gradient in plain.items():
        torch.testing.assert_close(checkpointed[parameter], gradient, msg=lambda text, p=parameter: f"{p}: {text}")
    assert little < 0.6 * much


# ---------------------------------------------------------------- evaluation and generation


@pytest.mark.parametrize("name", ["aurora", "lora", "full"])
def test_answers_are_written_in_the_precision_of_the_run(
    write_recipe: WriteRecipe, language_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The cache of beam search, which is most of its memory, and the logits, straight from a fresh evaluation."""
    task = {"name": "tiny-questions", "train_size": 16, "validation_size": 8, "test_size": 8, "prompt": "instruction"}
    task["scorer"], task["max_length"] = "generated", 96
    method = options(name, ["q_proj", "v_proj"])
    run = load_run(
        train(load_recipe(write_recipe(**questions(language_model, method=method, task=task))), tmp_path / "run").folder
    )
    seen: dict[str, set[torch.dtype]] = {"cache": set(), "logits": set()}
    head = torch.nn.Linear.forward

    def watch(self: torch.nn.Linear, x: torch.Tensor) -> torch.Tensor:
        y = head(self, x)
        if self.out_features == self_vocabulary:
            seen["logits"].add(y.dtype)
        return y

    from transformers import DynamicLayer

    update = DynamicLayer.update

    def kept(self: Any, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen["cache"] |= {value.dtype} if name == "full" else {key.dtype, value.dtype}
        return update(self, key, value, *args, **kwargs)

    self_vocabulary = json.loads((language_model / "config.json").read_text())["vocab_size"]
    monkeypatch.setattr(torch.nn.Linear, "forward", watch)
    monkeypatch.setattr(DynamicLayer, "update", kept)
    evaluate(run, forms=[run.deployed_form])
    assert seen == {"cache": {torch.bfloat16}, "logits": {torch.bfloat16}}


# ---------------------------------------------------------------- loading

LOADING = """
import json, sys, threading
import tiny
from aurora_lora.train import load_recipe
from aurora_lora.train.models import base_for, load_tokenizer, make_model

def anonymous():  # without the pages of files, which processes share and the system can drop
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

tiny.register()
answers = []
for path in sys.argv[1:]:
    recipe = load_recipe(path)
    processor = load_tokenizer(recipe.model)
    before, peak, done = anonymous(), 0, threading.Event()

    def watch():
        global peak
        while not done.wait(0.001):
            peak = max(peak, anonymous())

    watching = threading.Thread(target=watch)
    watching.start()
    model = make_model(recipe, base_for(recipe, processor, ()))
    done.set()
    watching.join()
    answers.append(max(peak, anonymous()) - before)
    del model
print(json.dumps(answers))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is Linux's")
def test_loading_makes_no_copy_in_float32(language_model: Path, tmp_path: Path) -> None:
    """Weights in the precision that they are stored in are read where they are; others are rounded one by one."""
    config = LlamaConfig(
        vocab_size=4096, hidden_size=512, num_hidden_layers=12, num_attention_heads=8, intermediate_size=2048
    )
    big, paths = LlamaForCausalLM(config), []
    size = 2 * sum(parameter.numel() for parameter in big.parameters())  # in bf16
    for dtype in (torch.float32, torch.bfloat16):
        folder = tmp_path / str(dtype)
        big.to(dtype).save_pretrained(folder)
        for file in language_model.glob("*token*"):
            shutil.copy(file, folder)
        paths.append(tmp_path / f"{dtype}.yaml")
        paths[-1].write_text(recipe_files.dump({**tiny.recipe(folder), **questions(folder), "model": str(folder)}))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(tiny.__file__).parent), *sys.path])}
    command = [sys.executable, "-c", LOADING, *map(str, paths)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    rounded, as_stored = json.loads(done.stdout.splitlines()[-1])
    assert size > 8e7
    assert 0.9 * size < rounded < 1.4 * size
    assert as_stored < 0.4 * size
