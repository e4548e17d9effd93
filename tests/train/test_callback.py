"""`CalibrationCallback` in Transformers' own Trainer."""

import warnings

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import Trainer, TrainerControl, TrainingArguments

from aurora_lora import AuroraConfig, calibrate
from aurora_lora.train import CalibrationCallback
from aurora_lora.tuner import aurora_layers


@pytest.mark.parametrize("calibrating", [True, False])
def test_load_best_model_at_end(make_bert, batches, tmp_path, calibrating):
    rows = Dataset.from_dict({"input_ids": batches[0]["input_ids"].tolist(), "labels": [0, 1] * 4})
    config = AuroraConfig(target_modules=["query", "value"], task_type="SEQ_CLS", init_weights=False)
    model = get_peft_model(make_bert(), config)
    scores = iter([0.5, 0.9, 0.1])
    weights = []

    def metrics(prediction):
        weights.append({name: p.clone() for name, p in model.named_parameters() if "aurora_" in name})
        return {"score": next(scores)}

    arguments = TrainingArguments(
        str(tmp_path),
        num_train_epochs=3,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="score",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    callbacks = [CalibrationCallback(batches)] if calibrating else []
    trainer = Trainer(
        model, arguments, train_dataset=rows, eval_dataset=rows, compute_metrics=metrics, callbacks=callbacks
    )
    with warnings.catch_warnings():
        if calibrating:
            warnings.filterwarnings("error", message=".*scores the dynamic form")
        trainer.train()
    assert len(weights) == 3
    for name, parameter in model.named_parameters():
        if "aurora_" in name:
            assert torch.equal(parameter, weights[1][name])
    expected = "calibrated" if calibrating else "dynamic"
    assert {layer.form("default") for _, layer in aurora_layers(model.eval())} == {expected}
    if calibrating:
        model.merge_and_unload()


def test_inputs_are_those_of_calibrate():
    """Of a dataset, an even sample through the tokenizer; of a loader, the first batches, and nothing more is read."""

    asked = []

    def tokenizer(texts, **options):
        asked.append(options.get("max_length"))
        return {"input_ids": torch.tensor([[int(text)] for text in texts])}

    rows = Dataset.from_dict({"text": [str(i) for i in range(100)]})
    kept = CalibrationCallback(rows, tokenizer=tokenizer, examples=10, batch_size=4).batches
    assert [batch["input_ids"].flatten().tolist() for batch in kept] == [[0, 10, 20, 30], [40, 50, 60, 70], [80, 90]]
    CalibrationCallback(rows, tokenizer=tokenizer, examples=10, batch_size=10, max_length=7)
    assert asked == [None, None, None, 7]
    loader = iter([{"input_ids": torch.zeros(8, 3)}] * 20)
    assert len(CalibrationCallback(loader, examples=20).batches) == 3
    assert len(list(loader)) == 17
    with pytest.raises(ValueError, match="ridge=-1 is not allowed: it must be a finite number of at least 0"):
        CalibrationCallback(loader, ridge=-1)
    with pytest.raises(TypeError, match="needs tokenizer="):
        CalibrationCallback(rows)


def test_its_ridge_is_that_of_calibrate(make_bert, batches, config):
    found = []
    for ridge in (1e-4, 1e3):
        model = get_peft_model(make_bert(), config())
        control = TrainerControl(should_evaluate=True)
        CalibrationCallback(batches, ridge=ridge).on_step_end(None, None, control, model=model)
        found.append(
            {
                name: value.clone()
                for name, value in model.named_buffers()
                if name.endswith("aurora_A_cal.default.weight")
            }
        )
        calibrate(model, batches, ridge=ridge)
        again = dict(model.named_buffers())
        assert all(torch.equal(value, again[name]) for name, value in found[-1].items())
    assert not any(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_an_adapter_of_transformers_own(make_bert, batches, tmp_path):
    """`model.add_adapter(config)`: the active adapters are a method there, no attribute."""
    rows = Dataset.from_dict({"input_ids": batches[0]["input_ids"].tolist(), "labels": [0, 1] * 4})
    model = make_bert()
    model.add_adapter(AuroraConfig(target_modules=["query", "value"]))
    plain = {"report_to": "none", "disable_tqdm": True, "use_cpu": True}
    arguments = TrainingArguments(str(tmp_path), max_steps=2, eval_strategy="steps", eval_steps=2, **plain)
    callbacks = [CalibrationCallback(batches)]
    Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=callbacks).train()
    assert {layer.form("default") for _, layer in aurora_layers(model.eval())} == {"calibrated"}


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["word_embeddings"]},
        {"target_modules": ["query"], "fixed_activation": None, "spline": None, "skip": True},
    ],
)
def test_nothing_to_calibrate(make_bert, batches, fields):
    """Embeddings and plain LoRA merge as they are."""
    model = get_peft_model(make_bert(), AuroraConfig(**fields))
    CalibrationCallback(batches).on_epoch_end(None, None, TrainerControl(should_evaluate=True), model=model)
    model.merge_and_unload()


def test_without_evaluations_it_calibrates_at_the_end_and_says_which_come_too_early(make_bert, batches, tmp_path):
    rows = Dataset.from_dict({"input_ids": batches[0]["input_ids"].tolist(), "labels": [0, 1] * 4})
    config = AuroraConfig(target_modules=["query", "value"], task_type="SEQ_CLS", init_weights=False)
    model = get_peft_model(make_bert(), config)
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=True
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=[CalibrationCallback(batches)])
    for _ in range(2):  # a warning for each evaluation
        with pytest.warns(UserWarning, match="scores the dynamic form"):
            trainer.evaluate()
    trainer.train()
    matrices = {
        name: value.clone() for name, value in model.named_buffers() if name.endswith("aurora_A_cal.default.weight")
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*dynamic form")
        trainer.evaluate()
        trainer.predict(rows)
    assert {layer.form("default") for _, layer in aurora_layers(model.eval())} == {"calibrated"}
    CalibrationCallback(batches, ridge=1e3).on_train_end(
        None, None, None, model=model
    )  # it is calibrated, and stays so
    assert all(torch.equal(value, dict(model.named_buffers())[name]) for name, value in matrices.items())
