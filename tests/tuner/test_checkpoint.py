"""States of a part of an adapter, and of a calibrated one as `torch.distributed.checkpoint` loads them."""

import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict
from peft.utils import set_peft_model_state_dict
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

import aurora_lora
from aurora_lora import CheckpointError
from aurora_lora.tuner import aurora_layers
from aurora_lora.tuner.checkpoint import fit_checkpoint


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


def test_a_part_of_an_adapter(calibrated, make_bert, config, logits):
    """As federated learning exchanges B alone: what is missing is returned, and A's calibration stays."""
    part = {name: value + 0.1 for name, value in calibrated.state_dict().items() if "aurora_B" in name}
    before = logits(calibrated)
    found = calibrated.load_state_dict({**part, "surplus": torch.ones(1)}, strict=False)
    assert found.unexpected_keys == ["surplus"]
    assert set(found.missing_keys) == calibrated.state_dict().keys() - part.keys()
    assert all(torch.equal(calibrated.state_dict()[name], value) for name, value in part.items())
    assert forms(calibrated.eval()) == {"calibrated"}
    assert not torch.equal(logits(calibrated), before)


def test_of_weights_that_are_shared_out_the_shape_tells_nothing(calibrated, make_bert, config):
    """ZeRO-3 leaves a flat part of each, or nothing, and fills it from what is loaded, with its matrix."""
    state = get_peft_model_state_dict(calibrated)
    model = get_peft_model(make_bert(), config(task_type=None))
    for name, parameter in model.named_parameters():
        if "aurora_" in name:
            parameter.data = torch.empty(0)
    fitted = fit_checkpoint(model, model.peft_config["default"], "default", state)
    matrices = [name for name in state if "A_cal" in name]
    assert matrices
    assert all(torch.equal(fitted[name], state[name]) for name in matrices)


def test_the_error_names_the_way_for_a_part(calibrated):
    part = {key: value for key, value in get_peft_model_state_dict(calibrated).items() if "aurora_B" in key}
    with pytest.raises(CheckpointError, match=r"A part of an adapter: model\.load_state_dict\(state, strict=False\)"):
        set_peft_model_state_dict(calibrated, part)
