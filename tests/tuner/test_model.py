"""An adapter's life in PEFT: several adapters, switching, deleting, saving and loading."""

import json

import pytest
import torch
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load, load_file, save_file

import aurora_lora
from aurora_lora import CheckpointError, StaleCalibrationError, calibrate, set_form
from aurora_lora.tuner import aurora_layers


@pytest.fixture
def model(make_bert, config):
    return get_peft_model(make_bert(), config()).eval()


@pytest.fixture
def calibrated(model, batches):
    aurora_lora.calibrate(model, batches)
    return model


def forms(model, adapter="default"):
    return {layer.form(adapter) for _, layer in aurora_layers(model)}


def test_from_pretrained_hands_over_the_same_model_in_eval_mode(calibrated, make_bert, logits, tmp_path):
    calibrated.save_pretrained(tmp_path)
    keys = {
        key.split(".query.")[1]
        for key in load_file(tmp_path / "adapter_model.safetensors")
        if ".0.attention.self.query" in key
    }
    weights = ("aurora_A", "aurora_B", "aurora_H", "aurora_spline_weight", "aurora_A_cal")
    assert keys == {*(f"{name}.weight" for name in weights), "aurora_A_cal.fingerprint"}
    loaded = PeftModel.from_pretrained(make_bert(), tmp_path)
    assert forms(loaded) == {"calibrated"}
    assert torch.equal(logits(loaded), logits(calibrated))
    torch.testing.assert_close(logits(loaded.merge_and_unload()), logits(calibrated), atol=1e-6, rtol=0)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast_adapter_dtype", [False, True])
def test_calibration_survives_every_way_of_loading(
    calibrated, make_bert, tmp_path, dtype, low_cpu_mem_usage, autocast_adapter_dtype
):
    """A cast rounds A; that is not training, so the matrix must not be taken for stale."""
    calibrated.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(
        make_bert().to(dtype),
        tmp_path,
        low_cpu_mem_usage=low_cpu_mem_usage,
        autocast_adapter_dtype=autocast_adapter_dtype,
    )
    assert forms(loaded.eval()) == {"calibrated"}
    loaded.merge_and_unload()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_calibration_survives_a_cast_of_the_model(calibrated, dtype):
    calibrated.to(dtype).eval()
    assert forms(calibrated) == {"calibrated"}
    calibrated.to(torch.float32).eval()
    assert forms(calibrated) == {"calibrated"}


def test_training_on_makes_the_calibration_stale(calibrated, train_step, logits, tmp_path, make_bert):
    for lr in (1e-2, 1e-6):  # also the smallest step
        with pytest.warns(UserWarning, match="does not belong to its present weights"):
            train_step(calibrated, lr=lr)
        assert forms(calibrated) == {"dynamic"}
        with set_form(calibrated, "dynamic"):
            dynamic = logits(calibrated)
        assert torch.equal(logits(calibrated), dynamic)
        for action in (calibrated.merge_adapter, calibrated.merge_and_unload):
            with pytest.raises(StaleCalibrationError, match="does not belong to its present weights"):
                action()
    calibrated.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_bert(), tmp_path)
    assert forms(loaded) == {"dynamic"}
    with pytest.raises(StaleCalibrationError):
        loaded.merge_and_unload()


def test_a_calibrated_checkpoint_loads_over_an_uncalibrated_adapter(calibrated, make_bert, config, logits, tmp_path):
    """What load_best_model_at_end does; PEFT would drop the keys that the model lacks."""
    calibrated.save_pretrained(tmp_path)
    fresh = get_peft_model(make_bert(), config())
    fresh.load_adapter(tmp_path, "default")
    assert fresh.peft_config["default"].calibrated
    assert forms(fresh.eval()) == {"calibrated"}
    assert torch.equal(logits(fresh), logits(calibrated))


def test_an_uncalibrated_checkpoint_drops_the_old_matrix(model, batches, logits, tmp_path):
    model.save_pretrained(tmp_path)
    dynamic = logits(model)
    aurora_lora.calibrate(model, batches)
    assert not torch.equal(logits(model), dynamic)
    model.load_adapter(tmp_path, "default")
    assert not model.peft_config["default"].calibrated
    assert torch.equal(logits(model.eval()), dynamic)
    assert not any("A_cal" in key for key in get_peft_model_state_dict(model))


def test_a_checkpoint_with_missing_or_unknown_keys_is_refused(calibrated, make_bert, config, tmp_path):
    calibrated.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    state = load(path.read_bytes())
    gone = next(key for key in state if key.endswith("aurora_H.weight"))
    save_file({key: value for key, value in state.items() if key != gone}, path)
    with pytest.raises(CheckpointError, match=r"lacks .*aurora_H"):
        PeftModel.from_pretrained(make_bert(), tmp_path)
    save_file({**state, gone.replace("aurora_H", "aurora_Q"): state[gone].clone()}, path)
    with pytest.raises(CheckpointError, match=r"unknown .*aurora_Q"):
        PeftModel.from_pretrained(make_bert(), tmp_path)
    save_file({**state, gone: state[gone].int()}, path)
    with pytest.raises(CheckpointError, match=r"has integers for .*aurora_H"):
        PeftModel.from_pretrained(make_bert(), tmp_path)
    other = get_peft_model(make_bert(), config(target_modules=["query"]))
    with pytest.raises(CheckpointError, match=r"unknown .*key.aurora_A.weight.* and "):
        set_peft_model_state_dict(other, state)


def test_several_adapters(make_bert, config, batches, logits):
    model = get_peft_model(make_bert(), config(task_type=None)).eval()
    first = logits(model)
    model.add_adapter("other", config(task_type=None, r=3, skip=True, spline="summed"))
    assert torch.equal(logits(model), first)
    model.set_adapter("other")
    second = logits(model)
    assert not torch.equal(first, second)
    aurora_lora.calibrate(model, batches)
    assert (model.peft_config["other"].calibrated, model.peft_config["default"].calibrated) == (True, False)
    calibrated = logits(model)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    with model.disable_adapter():
        plain = logits(model)
    torch.testing.assert_close(plain, logits(make_bert()))
    model.base_model.set_adapter(["default", "other"])
    both = logits(model)
    assert not torch.equal(both, first)
    model.set_adapter("other")
    model.delete_adapter("default")
    assert torch.equal(logits(model), calibrated)
    assert not any(key.endswith(".default") for key in model.state_dict() if "aurora_" in key)
    model.delete_adapter("other")
    assert not any("aurora_" in key for key in model.state_dict())


def test_two_active_adapters_merge_as_they_compute(make_bert, config, batches, logits):
    model = get_peft_model(make_bert(), config(task_type=None)).eval()
    model.add_adapter("other", config(task_type=None, r=3))
    model.base_model.set_adapter(["default", "other"])
    aurora_lora.calibrate(model, batches)
    expected = logits(model)
    torch.testing.assert_close(logits(model.merge_and_unload()), expected, atol=1e-6, rtol=0)


def test_merge_is_all_layers_or_none(calibrated):
    """One stale layer, the last: no layer is merged."""
    layers = [layer for _, layer in aurora_layers(calibrated)]
    layers[-1].aurora_H["default"].weight.data.add_(1)
    before = [layer.base_layer.weight.detach().clone() for layer in layers]
    for merge in (calibrated.merge_adapter, calibrated.merge_and_unload):
        with pytest.raises(StaleCalibrationError):
            merge()
        assert all(torch.equal(layer.base_layer.weight, w) for layer, w in zip(layers, before, strict=True))
        assert not any(layer.merged for layer in layers)


def test_a_config_object_can_be_used_for_two_models(make_bert, config, batches, logits, tmp_path):
    """Calibrating one says nothing of the other: seeds and folds are often made from one config."""
    shared = config()
    models = [get_peft_model(make_bert(), shared) for _ in range(2)]
    calibrate(models[0], batches)
    assert all(model.peft_config["default"] is shared for model in models)  # as in PEFT
    for place, form in ((0, "calibrated"), (1, "dynamic"), (0, "calibrated")):
        models[place].save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "adapter_config.json").read_text())
        assert saved["calibrated"] is (form == "calibrated")
        loaded = PeftModel.from_pretrained(make_bert(), tmp_path).eval()
        assert forms(loaded) == forms(models[place].eval()) == {form}
        assert torch.equal(logits(loaded), logits(models[place]))


def trained(model):
    """By adapter, whether its weights are trained."""
    found = {}
    for name, parameter in model.named_parameters():
        if "aurora_" in name:
            found.setdefault("other" if ".other" in name else "default", set()).add(parameter.requires_grad)
    return found


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_are_frozen_over_a_base_of_any_precision(make_bert, config, tmp_path, dtype, low_cpu_mem_usage):
    """PEFT casts their weights to float32 when it is done with all else."""
    first, second = config(), config()
    model = get_peft_model(make_bert().to(dtype), first)
    model.add_adapter("other", second)
    assert trained(model) == {"default": {True}, "other": {False}}
    model.set_adapter("other")
    assert trained(model) == {"default": {False}, "other": {True}}
    model.save_pretrained(tmp_path)
    options = {"low_cpu_mem_usage": low_cpu_mem_usage}
    loaded = PeftModel.from_pretrained(make_bert().to(dtype), tmp_path, **options)
    assert trained(loaded) == {"default": {False}}
    loaded.load_adapter(tmp_path / "other", "other", **options)
    assert trained(loaded) == {"default": {False}, "other": {False}}
    loaded.load_adapter(tmp_path / "other", "third", is_trainable=True, **options)
    assert trained(loaded)["default"] == {False, True}  # of "default" and "third", which is active to be trained
    assert {p.dtype for name, p in loaded.named_parameters() if "aurora_" in name} == {torch.float32}


def test_a_config_that_promises_a_matrix_which_is_not_there(make_bert, config, batches, tmp_path):
    model = get_peft_model(make_bert(), config())
    aurora_lora.calibrate(model, batches)
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    whole = load(path.read_bytes())  # not mapped: the file is written again below
    state = {key: value for key, value in whole.items() if "A_cal" not in key}
    save_file(state, path)
    with pytest.raises(CheckpointError, match="says calibrated=True, but the checkpoint has no calibrated matrix"):
        PeftModel.from_pretrained(make_bert(), tmp_path)
    set_peft_model_state_dict(model, state)  # no promise: the model goes back to weights of before its calibration
    assert not model.peft_config["default"].calibrated
    partial = {key: value for key, value in whole.items() if "A_cal" not in key or "layer.0" in key}
    save_file(partial, path)
    with pytest.raises(CheckpointError, match=r"lacks .*layer\.1.*aurora_A_cal"):
        PeftModel.from_pretrained(make_bert(), tmp_path)
