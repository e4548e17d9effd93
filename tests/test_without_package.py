"""A merged model needs nothing of ours: it loads with plain Transformers where `aurora_lora` cannot be imported."""

import subprocess
import sys
import textwrap

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

import aurora_lora
from aurora_lora import set_form

SCRIPT = """
    import sys
    sys.modules["aurora_lora"] = None  # importing it now raises ImportError
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForSequenceClassification
    model = AutoModelForSequenceClassification.from_pretrained({folder!r}).eval()
    with torch.no_grad():
        save_file({{"logits": model(**load_file({inputs!r})).logits}}, {outputs!r})
    assert not [name for name in sys.modules if name.startswith("aurora_lora.")]
"""


@pytest.mark.parametrize("form", ["calibrated", "static"])
def test_merged_model_gives_the_same_logits(form, make_bert, config, batches, train_step, logits, tmp_path):
    model = get_peft_model(make_bert(), config())
    train_step(model, n=4)
    aurora_lora.calibrate(model, batches)
    set_form(model, form)
    expected = logits(model)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    save_file(batches[0], tmp_path / "inputs.safetensors")
    outputs = tmp_path / "outputs.safetensors"
    folder, inputs = str(tmp_path / "merged"), str(tmp_path / "inputs.safetensors")
    code = textwrap.dedent(SCRIPT).format(folder=folder, inputs=inputs, outputs=str(outputs))
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    torch.testing.assert_close(load_file(outputs)["logits"], expected, atol=1e-4, rtol=0)
