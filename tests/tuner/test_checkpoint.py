"""States of a part of an adapter, and of a calibrated one as `torch.distributed.checkpoint` loads them."""

import json

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load, load_file, save_file
from torch import nn
from torch.distributed import checkpoint as dcp
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from transformers import AutoModelForSeq2SeqLM, T5Config, T5ForConditionalGeneration

import aurora_lora
from aurora_lora import AuroraConfig, CheckpointError, NotCalibratedError
from aurora_lora.tuner import aurora_layers
from aurora_lora.tuner.checkpoint import fit_checkpoint, without_empty_matrices


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("from_file", [False, True])
def test_a_cast_of_the_whole_state_keeps_the_calibration(calibrated, make_bert, config, tmp_path, dtype, from_file):
    """The fingerprints are cast with the weights, and told from them still; the merge is that of the cast weights."""
    state = {key: value.to(dtype) for key, value in get_peft_model_state_dict(calibrated).items()}
    if from_file:
        calibrated.save_pretrained(tmp_path)
        save_file(state, tmp_path / "adapter_model.safetensors")
        other = PeftModel.from_pretrained(make_bert(), tmp_path, low_cpu_mem_usage=True)
    else:
        other = get_peft_model(make_bert(), config(task_type=None))
        set_peft_model_state_dict(other, state)
    assert forms(other.eval()) == {"calibrated"}
    cast = calibrated.to(dtype)
    for (_, one), (_, expected) in zip(aurora_layers(other), aurora_layers(cast), strict=True):
        assert torch.equal(one.get_delta_weight("default"), expected.get_delta_weight("default"))
    other.merge_and_unload()


@pytest.mark.seq2seq
def test_a_model_some_of_whose_weights_stay_in_float32(batches, tmp_path):
    """As `wo` of T5 does where Transformers loads it in float16; what it casts includes what is no weight."""
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 100}
    T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).save_pretrained(tmp_path / "base")
    base = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, AuroraConfig(target_modules=["q", "wo"], init_weights=False))
    aurora_lora.calibrate(model, [{**batch, "labels": batch["input_ids"]} for batch in batches])
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "adapter", dtype=torch.float16)
    assert forms(loaded) == {"calibrated"}
    aurora_lora.export_lora(loaded, tmp_path / "lora")
    loaded.half()
    aurora_lora.export_lora(loaded, tmp_path / "half")


def test_fingerprints_of_earlier_adapters(calibrated, make_bert, config, logits, tmp_path):
    """They were three whole numbers of 64 bits."""
    calibrated.save_pretrained(tmp_path)
    state = {
        key: value.view(torch.int64).flatten() if "fingerprint" in key else value
        for key, value in load((tmp_path / "adapter_model.safetensors").read_bytes()).items()
    }
    assert {value.shape for key, value in state.items() if "fingerprint" in key} == {(3,)}
    save_file(state, tmp_path / "adapter_model.safetensors")
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(make_bert(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert forms(loaded) == {"calibrated"}
        # on some CPUs a product rounds otherwise where its factors lie elsewhere in memory
        torch.testing.assert_close(logits(loaded), logits(calibrated), atol=1e-6, rtol=0)
    other = get_peft_model(make_bert(), config(task_type=None))
    set_peft_model_state_dict(other, state)
    assert forms(other.eval()) == {"calibrated"}
    assert get_peft_model_state_dict(other).keys() == state.keys()


class TwoNames(nn.Module):
    """Its layers are there under two names each, and are called by the second."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
        self.alias = self.trunk

    def forward(self, x):
        return self.alias(x)


def saved(folder):
    """What the config of a saved adapter says, and whether there are matrices."""
    says = json.loads((folder / "adapter_config.json").read_text())["calibrated"]
    return says, any("A_cal" in key for key in load_file(folder / "adapter_model.safetensors"))


def test_a_module_of_two_names_is_saved_calibrated(tmp_path):
    model = get_peft_model(TwoNames(), AuroraConfig(target_modules=["0"], init_weights=False)).eval()
    x = torch.randn(16, 8)
    aurora_lora.calibrate(model, [x])
    model.save_pretrained(tmp_path)
    assert saved(tmp_path) == (True, True)
    with pytest.warns(UserWarning, match="Found missing adapter keys"):  # as with LoRA
        loaded = PeftModel.from_pretrained(TwoNames(), tmp_path)
    assert forms(loaded) == {"calibrated"}
    assert torch.equal(loaded(x), model(x))


def test_a_state_of_the_callers_is_saved_as_it_is(calibrated, make_bert, config, logits, tmp_path):
    """The trained weights alone have no matrix, and the config says none; that of another model may have one."""
    trained = {name: weight for name, weight in calibrated.named_parameters() if weight.requires_grad}
    calibrated.save_pretrained(tmp_path / "trained", state_dict=trained)
    assert saved(tmp_path / "trained") == (False, False)
    assert forms(PeftModel.from_pretrained(make_bert(), tmp_path / "trained")) == {"dynamic"}
    half = {key: value for key, value in calibrated.state_dict().items() if not key.endswith("A_cal.default")}
    calibrated.save_pretrained(tmp_path / "half", state_dict=half)
    assert saved(tmp_path / "half") == (False, False)
    uncalibrated = get_peft_model(make_bert(), config(task_type=None))
    uncalibrated.save_pretrained(tmp_path / "other", state_dict=calibrated.state_dict())
    assert saved(tmp_path / "other") == (True, True)
    calibrated.save_pretrained(tmp_path / "whole")
    assert saved(tmp_path / "whole") == (True, True)
    for name in ("other", "whole"):
        assert torch.equal(logits(PeftModel.from_pretrained(make_bert(), tmp_path / name)), logits(calibrated))


def test_a_process_that_saves_nothing_keeps_its_config(calibrated):
    """Under FSDP the state is gathered on the first process alone."""
    assert get_peft_model_state_dict(calibrated, state_dict={}) == {}
    assert calibrated.peft_config["default"].calibrated


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
    with pytest.warns(UserWarning, match="says calibrated=True, but the checkpoint has no calibrated matrix"):
        resumed.load_adapter(tmp_path / "checkpoint", "default", is_trainable=True)  # as Trainer does
    assert torch.equal(logits(resumed.eval()), expected)
    assert all(layer.aurora_A["default"].requires_grad for _, layer in aurora_layers(resumed))
    with pytest.raises(NotCalibratedError):
        resumed.merge_adapter()
    resumed.save_pretrained(tmp_path / "resumed")
    assert saved(tmp_path / "resumed") == (False, False)


def test_a_folder_that_has_been_corrected_is_loaded_by_the_same_name(calibrated, make_bert, config, tmp_path):
    get_peft_model(make_bert(), config(task_type=None)).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    right = file.read_text()
    file.write_text(json.dumps({**json.loads(right), "calibrated": True}))
    with pytest.raises(CheckpointError, match="says calibrated=True, but the checkpoint has no calibrated matrix"):
        calibrated.load_adapter(tmp_path, "other")
    file.write_text(right)
    calibrated.load_adapter(tmp_path, "other")
    assert not calibrated.peft_config["other"].calibrated
    assert {layer.form("other") for _, layer in aurora_layers(calibrated.eval())} == {"dynamic"}


def test_matrices_are_saved_of_layers_within_wrappers_as_of_the_others(calibrated):
    """The names in a state are without what FSDP and its checkpointing put around a layer, those of modules with it."""
    expected = calibrated.state_dict()
    encoder = calibrated.get_base_model().bert.encoder
    encoder.layer[0] = checkpoint_wrapper(encoder.layer[0])
    assert any("_checkpoint_wrapped_module" in path for path, _ in aurora_layers(calibrated))
    config = calibrated.peft_config["default"]
    assert without_empty_matrices(calibrated, config, "default", expected) == expected
    assert config.calibrated
