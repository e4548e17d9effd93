"""The LoRA export: loaded by stock PEFT, where `aurora_lora` cannot be imported, it computes the same."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import aurora_lora
from aurora_lora import (
    AlreadyMergedError,
    AuroraConfig,
    FormError,
    NotCalibratedError,
    StaleCalibrationError,
    export_lora,
    set_form,
)
from aurora_lora.errors import NotFiniteError


@pytest.fixture
def model(make_bert, config, batches, train_step):
    made = get_peft_model(make_bert(), config(rank_pattern={"key": 5}, alpha_pattern={"value": 7}))
    train_step(made, n=3)
    aurora_lora.calibrate(made, batches)
    return made


@pytest.mark.parametrize("form", ["static", "calibrated", None])
def test_stock_peft_gives_the_same_logits(model, make_bert, logits, tmp_path, form):
    export_lora(model, tmp_path / "lora", form)
    with set_form(model, form or "calibrated"):
        expected = logits(model)
    loaded = PeftModel.from_pretrained(make_bert(), tmp_path / "lora")
    torch.testing.assert_close(logits(loaded), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), expected, atol=1e-5, rtol=0)


def test_the_config_is_a_plain_lora_of_one_rank_and_scale_1(model, tmp_path):
    model.peft_config["default"].base_model_name_or_path, model.peft_config["default"].revision = "owner/base", "v2"
    export_lora(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (5, 5, False)
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({}, {})
    assert sorted(config["target_modules"]) == ["key", "query", "value"]
    assert (config["task_type"], config["base_model_name_or_path"], config["revision"]) == (
        "SEQ_CLS",
        "owner/base",
        "v2",
    )
    assert sorted(config["modules_to_save"]) == ["classifier", "score"]
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert {w.shape[0] for k, w in weights.items() if "lora_A" in k} == {5}
    assert {w.shape[1] for k, w in weights.items() if "lora_B" in k} == {5}
    assert not any("aurora" in key for key in weights)
    assert any(key.endswith("classifier.weight") for key in weights)


@pytest.mark.slow
def test_where_the_package_cannot_be_imported(model, make_bert, batches, logits, tmp_path):
    make_bert().save_pretrained(tmp_path / "base")
    export_lora(model, tmp_path / "lora")
    save_file(batches[0], tmp_path / "inputs.safetensors")
    code = f"""
        import sys
        sys.modules["aurora_lora"] = None
        import torch
        from peft import PeftModel
        from safetensors.torch import load_file, save_file
        from transformers import AutoModelForSequenceClassification
        folder = {str(tmp_path)!r}
        base = AutoModelForSequenceClassification.from_pretrained(folder + "/base")
        model = PeftModel.from_pretrained(base, folder + "/lora").eval()
        with torch.no_grad():
            logits = model(**load_file(folder + "/inputs.safetensors")).logits
            save_file({{"logits": logits}}, folder + "/out.safetensors")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True)
    got = load_file(tmp_path / "out.safetensors")["logits"]
    torch.testing.assert_close(got, logits(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 0.02), ("float16", 0.003), ("float32", 1e-5)])
def test_dtypes(model, make_bert, logits, tmp_path, dtype, atol):
    export_lora(model, tmp_path, dtype=dtype)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    kinds = {w.dtype for key, w in weights.items() if "lora_" in key}
    assert kinds == {dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)}
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(make_bert(), tmp_path)), logits(model), atol=atol, rtol=0
    )


def test_conv1d(make_gpt2, tmp_path):
    ids = torch.randint(0, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    config = AuroraConfig(
        target_modules=["c_attn"], init_weights=False, eval_form="static", fan_in_fan_out=True, task_type="CAUSAL_LM"
    )
    model = get_peft_model(make_gpt2(), config).eval()
    export_lora(model, tmp_path)
    loaded = PeftModel.from_pretrained(make_gpt2(), tmp_path)
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)


def test_some_layers_only(make_bert, config, logits, tmp_path):
    """Modules that share a name with ones that are not adapted are named in full."""
    model = get_peft_model(make_bert(), config(layers_to_transform=[1], eval_form="static")).eval()
    export_lora(model, tmp_path)
    targets = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert all(".layer.1." in target for target in targets)
    torch.testing.assert_close(logits(PeftModel.from_pretrained(make_bert(), tmp_path)), logits(model))


def test_what_is_refused(make_bert, config, batches, train_step, tmp_path):
    model = get_peft_model(make_bert(), config())
    with pytest.raises(NotCalibratedError, match="calibrate"):
        export_lora(model, tmp_path / "x")
    with pytest.raises(FormError, match="dynamic"):
        export_lora(model, tmp_path / "x", "dynamic")
    with pytest.raises(ValueError, match=r"dtype=torch\.int8 .*float32, bfloat16, float16"):
        export_lora(model, tmp_path / "x", "static", dtype=torch.int8)
    with pytest.raises(ValueError, match="no AuroRA adapter named 'other'"):
        export_lora(model, tmp_path / "x", "static", adapter_name="other")
    with pytest.raises(ValueError, match="modules_to_save"):
        export_lora(model, tmp_path / "x", "static", format="diffusers")
    aurora_lora.calibrate(model, batches)
    with pytest.warns(UserWarning, match="does not belong to its present weights"):
        train_step(model)
    with pytest.raises(StaleCalibrationError, match="does not belong to its present weights"):
        export_lora(model, tmp_path / "x")
    with set_form(model, "static"):
        model.merge_adapter()
        with pytest.raises(AlreadyMergedError, match="unmerge_adapter"):
            export_lora(model, tmp_path / "x", "static")
    assert not (tmp_path / "x").exists()


def test_stock_diffusers_loads_it(tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    make = lambda: diffusers.UNet2DConditionModel(  # noqa: E731
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()
    torch.manual_seed(0)
    base = make()
    state = {key: value.clone() for key, value in base.state_dict().items()}
    model = get_peft_model(base, AuroraConfig(target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_weights=False))
    model.eval()
    inputs = {"sample": torch.randn(2, 4, 8, 8), "timestep": torch.tensor(3)}
    inputs["encoder_hidden_states"] = torch.randn(2, 5, 12)
    aurora_lora.calibrate(model, [inputs])
    with torch.no_grad():
        expected = model(**inputs).sample
    export_lora(model, tmp_path, format="diffusers")
    plain = make()
    plain.load_state_dict(state)
    plain.load_lora_adapter(tmp_path, prefix="unet", weight_name="pytorch_lora_weights.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(plain(**inputs).sample, expected, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- what is not finite


@pytest.mark.parametrize(
    ("weight", "value"), [("aurora_A", float("nan")), ("classifier", float("nan")), ("aurora_B", float("-inf"))]
)
def test_what_is_not_finite_is_not_exported(model, tmp_path, weight, value):
    with torch.no_grad():
        parameters = [p for name, p in model.named_parameters() if weight in name and "original" not in name]
        parameters[-1].view(-1)[-1] = value
    with pytest.raises(NotFiniteError, match=r"cannot be exported: .* not finite \(NaN or infinity\)"):
        export_lora(model, tmp_path / "lora", "static")
    assert not (tmp_path / "lora").exists()


def test_what_float16_cannot_hold_is_said(model, tmp_path):
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "aurora_B" in name)[0, 0] = 1e5
    with pytest.raises(NotFiniteError, match=r"dtype='float16' cannot hold .*lora_B.*: choose 'float32'"):
        export_lora(model, tmp_path / "lora", "static", dtype="float16")
    assert not (tmp_path / "lora").exists()
    for dtype in ("bfloat16", "float32"):
        export_lora(model, tmp_path / "lora", "static", dtype=dtype)


# ---------------------------------------------------------------- what must not be lost


def test_a_folder_that_is_no_earlier_export_is_left_alone(model, tmp_path):
    model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    for folder, named in (("adapter", "adapter_model.safetensors"), ("notes", "notes.txt")):
        before = sorted((path.name, path.read_bytes()) for path in (tmp_path / folder).iterdir())
        with pytest.raises(
            ValueError,
            match=rf"{folder} holds {named}, which no LoRA export wrote: move it away",
        ):
            export_lora(model, tmp_path / folder)
        assert sorted((path.name, path.read_bytes()) for path in (tmp_path / folder).iterdir()) == before
    for form in ("static", "calibrated"):  # an earlier export is replaced
        export_lora(model, tmp_path / "lora", form)
    (tmp_path / "lora" / "README.md").write_text("mine")
    with pytest.raises(ValueError, match=r"lora holds README\.md, which no LoRA export wrote"):
        export_lora(model, tmp_path / "lora")
    assert (tmp_path / "lora" / "README.md").read_text() == "mine"


@pytest.mark.parametrize("compiled", ["whole", "layers"])
def test_a_compiled_model_is_exported_under_plain_names(compiled, make_bert, config, logits, tmp_path):
    base = make_bert()
    if compiled == "layers":
        for layer in base.bert.encoder.layer:
            layer.attention = torch.compile(layer.attention, backend="eager")
    fields = config(eval_form="static", modules_to_save=["pooler"], init_weights=False)
    model = get_peft_model(base, fields).eval()
    export_lora(torch.compile(model, backend="eager") if compiled == "whole" else model, tmp_path)
    assert not any("_orig_mod" in key for key in load_file(tmp_path / "adapter_model.safetensors"))
    loaded = PeftModel.from_pretrained(make_bert(), tmp_path).eval()
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=0)
