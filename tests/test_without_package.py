"""Where `aurora_lora` cannot be imported: a merged model and the plain LoRA load, and an AuroRA adapter is refused."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent / "train"))

import tiny

import aurora_lora
from aurora_lora.train import load_recipe, load_run, recipe_files, train
from aurora_lora.train.predicting import predict

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


@pytest.mark.slow
def test_merged_model_gives_the_same_logits(make_bert, config, batches, train_step, logits, tmp_path):
    model = get_peft_model(make_bert(), config())
    train_step(model, n=4)
    aurora_lora.calibrate(model, batches)
    expected = logits(model)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    save_file(batches[0], tmp_path / "inputs.safetensors")
    outputs = tmp_path / "outputs.safetensors"
    folder, inputs = str(tmp_path / "merged"), str(tmp_path / "inputs.safetensors")
    code = textwrap.dedent(SCRIPT).format(folder=folder, inputs=inputs, outputs=str(outputs))
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    torch.testing.assert_close(load_file(outputs)["logits"], expected, atol=1e-4, rtol=0)


RUN_SCRIPT = """
    import os, re, sys
    sys.modules["aurora_lora"] = None
    from peft import PeftModel
    from safetensors.torch import save_file
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    base = AutoModelForSequenceClassification.from_pretrained({base!r}, num_labels=2)
    try:
        PeftModel.from_pretrained(base, {run!r} + "/adapter")
    except KeyError as error:
        print(repr(error))
    os.chdir({run!r} + "/lora")
    names = {{}}
    exec(re.search("```python(.*?)```", open("README.md").read(), re.DOTALL)[1], names)
    batch = AutoTokenizer.from_pretrained({run!r} + "/adapter")([{text!r}], return_tensors="pt")
    save_file({{"logits": names["model"](**batch).logits.detach()}}, {run!r} + "/logits.safetensors")
    assert not [name for name in sys.modules if name.startswith("aurora_lora.")]
"""


def test_a_run_leaves_a_lora_that_loads(tmp_path):
    """PEFT refuses the adapter by its name; the LoRA beside it, loaded as its card says, computes the same."""
    tiny.register()
    (tmp_path / "recipe.yaml").write_text(recipe_files.dump(tiny.recipe(tiny.save_model(tmp_path / "base"))))
    run = train(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run")
    text = "a warm and funny film"
    code = textwrap.dedent(RUN_SCRIPT).format(base=str(tmp_path / "base"), run=str(run.folder), text=text)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == """KeyError('AURORA')"""
    probabilities = load_file(run.folder / "logits.safetensors")["logits"].softmax(-1)
    (expected,) = predict(load_run(run.folder).folder, [text])
    assert probabilities.max().item() == pytest.approx(expected["probability"], abs=1e-5)
