"""States of a part of an adapter, and of a calibrated one as `torch.distributed.checkpoint` loads them."""

import json

import pytest
import torch
from peft import PeftConfig, get_peft_model
from safetensors.torch import load_file
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

import aurora_lora
from aurora_lora import NotCalibratedError
from aurora_lora.tuner import aurora_layers


@pytest.fixture
def calibrated(make_bert, config, batches):
    model = get_peft_model(make_bert(), config(task_type=None)).eval()
    aurora_lora.calibrate(model, batches)
    return model


def forms(model):
    return {layer.form("default") for _, layer in aurora_layers(model)}


@pytest.mark.parametrize("has_room", [True, False])
def test_a_distributed_checkpoint(calibrated, make_bert, config, batches, logits, tmp_path, has_room):
    """It fills what the model has: a config with calibrated=True makes room, or the matrix is found anew."""
    dcp.save({"model": get_model_state_dict(calibrated)}, checkpoint_id=tmp_path)
    torch.manual_seed(9)
    model = get_peft_model(make_bert(), config(task_type=None, init_weights="identity", calibrated=has_room))
    state = {"model": get_model_state_dict(model)}
    dcp.load(state, checkpoint_id=tmp_path)
    set_model_state_dict(model, state["model"])
    if not has_room:
        assert not model.peft_config["default"].calibrated
        aurora_lora.calibrate(model, batches)
    assert model.peft_config["default"].calibrated
    assert forms(model.eval()) == {"calibrated"}
    torch.testing.assert_close(logits(model), logits(calibrated))


def saved(folder):
    """What the config of a saved adapter says, and whether there are matrices."""
    says = json.loads((folder / "adapter_config.json").read_text())["calibrated"]
    return says, any("A_cal" in key for key in load_file(folder / "adapter_model.safetensors"))


def test_a_training_is_resumed_with_the_config_of_a_calibrated_adapter(make_bert, config, batches, logits, tmp_path):
    """Its checkpoints are of before the calibration, and their own config, which nobody reads, says so."""
    model = get_peft_model(make_bert(), config(task_type=None)).eval()
    expected = logits(model)
    model.save_pretrained(tmp_path / "checkpoint")
    aurora_lora.calibrate(model, batches)
    model.save_pretrained(tmp_path / "adapter")
    found = PeftConfig.from_pretrained(tmp_path / "adapter")
    found.inference_mode = False
    resumed = get_peft_model(make_bert(), found)
    resumed.load_adapter(tmp_path / "checkpoint", "default", is_trainable=True)  # as Trainer does
    assert torch.equal(logits(resumed.eval()), expected)
    assert all(layer.aurora_A["default"].weight.requires_grad for _, layer in aurora_layers(resumed))
    with pytest.raises(NotCalibratedError):
        resumed.merge_adapter()
    resumed.save_pretrained(tmp_path / "resumed")
    assert saved(tmp_path / "resumed") == (False, False)
