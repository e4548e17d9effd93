"""Multiple choice: tokens, scores against a plain computation, and whole runs of a tiny language model."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Lfm2Config,
    Lfm2ForCausalLM,
)

sys.path.insert(0, str(Path(__file__).parent))

import tiny

from aurora_lora.data.prompts import target
from aurora_lora.errors import UserError
from aurora_lora.train import load_recipe, load_run, train
from aurora_lora.train.deploying import merge
from aurora_lora.train.kind_facts import TrainedWith
from aurora_lora.train.kinds.choices import (
    NEW_TOKENS,
    ChoiceQuestion,
    MultipleChoice,
    Questions,
    TrainingText,
    choice_scores,
    cut_left,
    encode_questions,
    generated_choices,
)
from aurora_lora.train.measuring import evaluate, gap
from aurora_lora.train.models import most_tokens
from aurora_lora.train.predicting import predict
from aurora_lora.train.run import make_trainer

WriteRecipe = Callable[..., Path]
Refused = Callable[..., None]
TASK = {"name": "tiny-questions", "train_size": 64, "validation_size": 32, "test_size": 32}
METHOD = {"name": "aurora", "target_modules": ["q_proj", "v_proj", "down_proj"]}
QUESTIONS = "aurora_lora.train.choices"
PROMPTS = ["the film was very", "film", "the plot of the scene was dull and slow , it was"]
CHOICES = [["good", "very bad and slow"], ["fine", "bad", "dull film"], ["warm", "cold"]]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def language_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny.save_language_model(tmp_path_factory.mktemp(request.param), request.param)
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_language_model(tmp_path_factory.mktemp("lm"))


def test_scores_against_one_text_at_a_time(language_model: Any) -> None:
    """No padding, no cache: the sum of log-probabilities of a choice's tokens."""
    model, tokenizer = language_model
    questions = encode_questions(tokenizer, PROMPTS, CHOICES, [0, 2, 1])
    batch = Questions(tokenizer, max_choices=4)(questions)
    with torch.no_grad():
        scores = choice_scores(model, batch, 4)
        assert scores.shape == (3, 4, 2)
        for row, (prompt, choices) in enumerate(zip(PROMPTS, CHOICES, strict=True)):
            for column, choice in enumerate(choices):
                before = tokenizer(prompt)["input_ids"]
                ids = torch.tensor([before + tokenizer(choice, add_special_tokens=False)["input_ids"]])
                logp = model(input_ids=ids).logits[0].log_softmax(-1)
                total = sum(logp[at - 1, ids[0, at]] for at in range(len(before), ids.shape[1]))
                assert scores[row, column, 0] == pytest.approx(total.item(), abs=1e-4)
                assert scores[row, column, 1] == pytest.approx(total.item() / len(choice), abs=1e-5)
            assert torch.isneginf(scores[row, len(choices) :]).all()


def test_training_text(language_model: Any) -> None:
    _, tokenizer = language_model
    questions = encode_questions(tokenizer, PROMPTS, CHOICES, [1, 0, 1])
    batch = TrainingText(tokenizer, 64, "all")(questions)
    triples = zip(PROMPTS, CHOICES, [1, 0, 1], strict=True)
    whole = [f"[CLS] {prompt} {choices[label]} [SEP]" for prompt, choices, label in triples]
    for row, text in enumerate(whole):
        length = int(batch["attention_mask"][row].sum())
        assert tokenizer.decode(batch["input_ids"][row, :length]) == text
        assert batch["labels"][row, 0] == -100
        assert batch["labels"][row, 1:length].tolist() == batch["input_ids"][row, 1:length].tolist()
        assert (batch["labels"][row, length:] == -100).all()
    answers = TrainingText(tokenizer, 64, "answer")(questions)
    kept = [row[row != -100] for row in answers["labels"]]
    assert [tokenizer.decode(row) for row in kept] == ["very bad and slow [SEP]", "fine [SEP]", "cold [SEP]"]


def test_long_texts_lose_the_beginning_of_their_prompt(language_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, tokenizer = language_model
    (question,) = encode_questions(tokenizer, PROMPTS[2:], CHOICES[2:], [1])
    batch = TrainingText(tokenizer, 6, "all")([question])
    assert tokenizer.decode(batch["input_ids"][0]) == "[CLS] , it was cold [SEP]"
    assert cut_left([1, 2, 3, 4], 3, None, "task.max_length") == [2, 3, 4]
    with pytest.raises(UserError, match=r"task\.max_length leaves no room"):
        TrainingText(tokenizer, 3, "all")([question])
    length = max(map(len, question["choices"])) + 1
    monkeypatch.setattr(tokenizer, "model_max_length", length)
    with pytest.raises(UserError, match=f"the model's length of {length} tokens leaves no room"):
        Questions(tokenizer, 2)([question])


def test_the_longest_choice_fits_the_model(lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(lm)
    asked = encode_questions(tokenizer, PROMPTS[2:], CHOICES[:1], [0])
    monkeypatch.setattr(tokenizer, "model_max_length", 8)
    batch = Questions(tokenizer, 2)(asked)
    assert batch["prompt_ids"].shape[1] + batch["choice_ids"].shape[1] == 8


def test_run(write_recipe: WriteRecipe, lm: Path, tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(model=lm, task=TASK, method=METHOD))
    run = train(recipe, tmp_path / "run")
    result = json.loads((run.folder / "result.json").read_text())
    assert list(result["metric"]["by_form"]) == ["dynamic", "static", "calibrated"]
    for scores in result["metric"]["by_form"].values():
        assert set(scores) == {"accuracy", "accuracy_norm", "nll", "nll_norm"}
    assert result["metric"]["chance"]["test"]["accuracy"] == 0.5
    assert result["metric"]["chance"]["test"]["nll"] == pytest.approx(math.log(2))
    assert result["epochs"][-1]["train_loss"] < 0.9 * result["epochs"][0]["train_loss"]
    assert result["params"]["head"] == 0  # the output layer is as pretrained as the body
    assert result["metric"]["selected_by"]["value"] == pytest.approx(
        result["metric"]["validation_by_form"]["calibrated"]["accuracy"]
    )
    again = load_run(run.folder)
    assert evaluate(again, forms=again.forms) == result["metric"]["by_form"]

    merged = merge(again, tmp_path / "merged", form="calibrated").folder
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(merged).eval(), AutoTokenizer.from_pretrained(merged)
    lora = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(lm), run.folder / "lora").eval()
    trainer, data = make_trainer(recipe, tmp_path / "none", (), run.folder / "adapter")
    assert data.scored is not None
    batch = data.scored(data.splits["test"][:8])
    with torch.no_grad(), recipe.method.using(trainer.model, "calibrated"):
        expected = choice_scores(trainer.model.eval(), batch, 2)
        for model in (plain, lora):
            torch.testing.assert_close(choice_scores(model, batch, 2), expected, rtol=0, atol=1e-4)
    assert tokenizer.eos_token == "[SEP]"
    texts = ["film : a dull plot , it was", "film"]
    assert predict(merged, texts) == predict(run.folder, texts)
    assert set(predict(merged, texts)[0]) == {"text", "answer"}

    measured = gap(again, examples=8)
    assert [entry.form for entry in measured.end_to_end] == ["dynamic", "static", "calibrated"]
    assert all({"nll", "accuracy"} <= entry.metric.keys() for entry in measured.end_to_end)


@pytest.mark.slow
def test_an_interrupted_run_goes_on(write_recipe: WriteRecipe, lm: Path, tmp_path: Path) -> None:
    task = {**TASK, "train_size": 60}
    recipe = load_recipe(write_recipe(model=lm, task=task, method={"name": "lora", "r": 2, "lora_dropout": 0.2}))
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "stopped", make_callbacks=lambda: [tiny.Stop(11)])
    assert (tmp_path / "stopped" / "checkpoints" / "checkpoint-8").is_dir()
    one, other = train(recipe, tmp_path / "stopped"), train(recipe, tmp_path / "whole")
    weights = [(run.folder / "adapter/adapter_model.safetensors").read_bytes() for run in (one, other)]
    assert weights[0] == weights[1]
    assert one.result["metric"] == other.result["metric"]


def test_written_answers(write_recipe: WriteRecipe, lm: Path, tmp_path: Path) -> None:
    task = {**TASK, "prompt": "instruction", "scorer": "generated", "loss_on": "answer", "max_length": 100}
    run = train(load_recipe(write_recipe(model=lm, task=task, method="full")), tmp_path / "run")
    metric = run.result["metric"]
    assert metric["name"] == "accuracy_generated"
    assert metric["selected_by"]["name"] == "accuracy"
    scored = {"accuracy", "accuracy_norm", "accuracy_generated", "unanswered", "nll", "nll_norm"}
    assert set(metric["by_form"]["merged"]) == scored
    assert metric["by_form"]["merged"]["unanswered"] < 0.5  # it has learned the form
    assert set(metric["validation_by_form"]["merged"]) == {"accuracy", "accuracy_norm", "nll", "nll_norm"}
    assert predict(run.folder, ["the film was good ?"])[0]["answer"].startswith("the correct")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("head", ["language model", "classifier"])
def test_predict_with_a_model_without_a_token_for_padding(tmp_path: Path, kind: str, head: str) -> None:
    """As GPT-2 and Llama are published."""
    folder = tiny.save_language_model(tmp_path / "model", kind)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    load = AutoModelForCausalLM if head == "language model" else AutoModelForSequenceClassification
    model = load.from_pretrained(folder)
    model.config.pad_token_id = None
    if head == "language model":
        model.generation_config.pad_token_id = None
    model.save_pretrained(folder)
    texts = ["the film was very good", "film"]
    together, alone = predict(folder, texts), [predict(folder, [text])[0] for text in texts]
    assert [one["text"] for one in together] == texts
    if head == "classifier":
        assert [one["probability"] for one in together] == pytest.approx(
            [one["probability"] for one in alone], abs=1e-6
        )


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            {"name": "siqa", "prompt": "chat"},
            "task.prompt: 'chat' is not a form of the prompts of siqa (allow",
        ),
        (
            {"name": "cola", "loss_on": "answer"},
            "task.loss_on: task.name '",
        ),
        (
            {"name": "commonsense", "test_sets": ["siqa", "x"]},
            "task.test_sets: 'x' is not one of commonsense: ",
        ),
    ],
)
def test_recipes_that_do_not_fit(
    write_recipe: WriteRecipe, refused: Refused, task: dict[str, Any], message: str
) -> None:
    refused(write_recipe(task=task), message)


@pytest.mark.parametrize(
    ("before", "after"),
    [("siqa", "commonsense"), ("cifar10-10k", "cifar10"), ("sst2", "movie-rating")],
)
def test_the_papers_test_data_are_never_mixed(
    write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    """A model that was merged from a run on packaged SIQA has learned the questions that the hub's SIQA tests with; and
    so for CIFAR-10's images, and SST's sentences."""
    merged = tmp_path / "merged"
    merged.mkdir()
    note = {"files": [], "trained_on": ["digits", before]}
    (merged / "aurora_merge.json").write_text(json.dumps(note))
    with pytest.raises(UserError, match=f"was trained on {before}, which holds examples that {after} trains on or"):
        train(load_recipe(write_recipe(model=merged, task=after)), tmp_path / "run")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=f"~/merged was trained on {before}"):
        train(load_recipe(write_recipe(model="~/merged", task=after)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_written_has_positions_of_the_model(language_model: Any) -> None:
    """Of a question that is too long, the end is read, with what the model writes left free behind it."""
    model, tokenizer = language_model
    long = " ".join(["film"] * 200)
    (question,) = encode_questions(tokenizer, [long], [[target("true"), target("false")]], [0])
    positions = most_tokens(model)
    assert positions in (128, None)  # Llama's are rotary
    batch = Questions(tokenizer, 2, positions, room=NEW_TOKENS)([question])
    assert batch["prompt_ids"].shape[1] <= (128 if positions is None else 128 - NEW_TOKENS)
    assert generated_choices(model, batch, 2, tokenizer).shape == (1, 2, 1)


def test_new_questions_are_asked_as_those_that_a_packaged_task_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def stops(tokenizer: Any, prompts: list[str], choices: Any, labels: Any) -> None:
        asked.extend(prompts)
        raise KeyboardInterrupt

    monkeypatch.setattr("aurora_lora.train.kinds.choices.encode_questions", stops)
    question = ChoiceQuestion("Why?", ["a", "b", "c"], [0, 1, 2])
    for form, task in (("cloze", "winowhy"), ("cloze", "choices"), ("instruction", "strategyqa")):
        with pytest.raises(KeyboardInterrupt):
            MultipleChoice()._chosen(None, Mock(), [question], "it", TrainedWith(prompt=form, task=task))
    assert asked[0].endswith(" The above reasoning is")
    assert asked[1].endswith("Answer:")
    assert "answer3" in asked[2]  # strategyqa has yes and no alone


def test_scores_of_a_model_that_keeps_states(lm: Path) -> None:
    """As those with convolutions or linear attention do, which keep more of a prompt than keys and values."""
    tokenizer = AutoTokenizer.from_pretrained(lm)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    layers = {"num_key_value_heads": 2, "layer_types": ["conv", "full_attention"], "max_position_embeddings": 128}
    model = Lfm2ForCausalLM(Lfm2Config(vocab_size=len(tokenizer), **layers, **sizes)).eval()
    batch = Questions(tokenizer, 4)(encode_questions(tokenizer, PROMPTS, CHOICES, [0, 2, 1]))
    with torch.no_grad():
        scores = choice_scores(model, batch, 4)
        for row, (prompt, choices) in enumerate(zip(PROMPTS, CHOICES, strict=True)):
            before = tokenizer(prompt)["input_ids"]
            for column, choice in enumerate(choices):
                ids = torch.tensor([before + tokenizer(choice, add_special_tokens=False)["input_ids"]])
                likelihood = model(input_ids=ids).logits[0].log_softmax(-1)
                total = sum(likelihood[at - 1, ids[0, at]] for at in range(len(before), ids.shape[1]))
                assert scores[row, column, 0].item() == pytest.approx(float(total), abs=1e-4)
