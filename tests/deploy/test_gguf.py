"""Merges into GGUF files: against the `gguf` package, which reads and quantises them, and against Transformers."""

import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model

from aurora_lora import AuroraConfig, calibrate
from aurora_lora.deploy.gguf import GGUF_FORMATS
from aurora_lora.deploy.stored import merge_stored
from aurora_lora.errors import AuroraError
from aurora_lora.ops.rounding import input_moment
from deploy.gguf_llama import PROJECTIONS, WIDTH, adapted, inputs, loaded, random_blocks, tensors, write

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("name", GGUF_FORMATS)
def test_values_and_bytes_are_those_of_gguf(name: str) -> None:
    rows = random_blocks(name, 16, WIDTH)
    held = GGUF_FORMATS[name](SimpleNamespace(weight=torch.empty(16, WIDTH)), torch.tensor(rows))
    expected = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name])
    assert numpy.array_equal(held.dense().numpy(), expected)
    grid = held.grid()
    torch.testing.assert_close(grid.dequantised(held.codes()), held.dense(), rtol=1e-5, atol=1e-6)
    assert torch.equal(held.pack(held.codes(), grid), held.rows)
    S = torch.eye(WIDTH)
    _, kept = held.chosen(held.dense(), S, input_moment(S))  # on its own scales that costs nothing
    assert torch.equal(kept.scale, grid.scale)


@pytest.mark.parametrize("name", GGUF_FORMATS)
def test_fitted_scales_are_no_worse_than_those_of_gguf(name: str) -> None:
    """Its Python package has no quantiser for K-quants: there, as many levels without shared scales are the measure."""
    weight = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0)) * 0.05
    held = GGUF_FORMATS[name](SimpleNamespace(weight=weight), torch.tensor(random_blocks(name, 64, WIDTH)))
    grid = held.fitted(weight)
    error = (held.values(held.pack(grid.round(weight), grid)) - weight).square().mean()
    like = {"Q4_K": "Q4_1", "Q5_K": "Q5_1"}.get(name, name)
    if like == "Q6_K":
        assert error**0.5 < 0.05 * 2.5 / 64  # 64 levels over about five standard deviations
    else:
        kind = gguf.GGMLQuantizationType[like]
        theirs = torch.tensor(gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind))
        assert error <= 1.001 * (theirs - weight).square().mean()


CONFIGS = {
    "lora": LoraConfig(r=4, target_modules=PROJECTIONS),
    "dora": LoraConfig(r=4, target_modules=PROJECTIONS, use_dora=True),
    "aurora": AuroraConfig(r=4, target_modules=PROJECTIONS),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
}


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, "lora") for name in GGUF_FORMATS),
        ("F16", "lora"),
        ("Q4_0", "dora"),
        ("Q4_K", "aurora"),
        ("Q4_1", "ia3"),
    ],
)
def test_what_is_written_is_loaded_as_the_merged_model(name: str, method: str, tmp_path: Path) -> None:
    write(file := tmp_path / "base.gguf", name)
    model, data, base = adapted(file, CONFIGS[method]), inputs(), file.read_bytes()
    if method == "aurora":
        calibrate(model, data)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with nullcontext() if name == "F16" else pytest.warns(UserWarning, match=r"rounds it again: that costs"):
        report = merge_stored(model, file, out := tmp_path / "new" / "merged.gguf", data)
    assert file.read_bytes() == base
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    old, new = tensors(file), tensors(out)
    assert out.stat().st_size == len(base)
    start = min(tensor.data_offset for tensor in old.values())
    assert out.read_bytes()[:start] == base[:start]
    changed = {key for key in old if not numpy.array_equal(old[key].data, new[key].data)}
    everything = {key for key in old if "attn_" in key or "ffn_" in key} - {
        "blk.0.attn_norm.weight",
        "blk.0.ffn_norm.weight",
    }
    assert changed == ({"blk.0.attn_k.weight", "blk.0.ffn_down.weight"} if method == "ia3" else everything)
    ends = {end.form: end for end in report.end_to_end}
    merged, held_out = loaded(out), data[7]
    with torch.no_grad():
        expected, found = (torch.log_softmax(each(**held_out).logits.double(), -1) for each in (model, merged))
    kl = float((expected.exp() * (expected - found)).sum(-1).mean())
    if name == "F16":
        assert kl < 1e-4
        return
    assert ends["by inputs"].kl == pytest.approx(kl, rel=1e-2)
    assert kl < ends["nearest"].kl < ends["without adapter"].kl


def test_an_adapter_that_changes_nothing_gives_the_same_file(tmp_path: Path) -> None:
    write(file := tmp_path / "base.gguf", "Q4_K")
    model = get_peft_model(loaded(file), CONFIGS["lora"])
    with pytest.warns(UserWarning, match="costs"):
        merge_stored(model, file, out := tmp_path / "merged.gguf", inputs())
    assert out.read_bytes() == file.read_bytes()


def refused(what: str, folder: Path) -> tuple[Path, Any]:
    """A file and a model whose merge is refused."""
    file = folder / "base.gguf"
    write(file, "Q4_0")
    model = adapted(file, CONFIGS["lora"])
    if what == "no file":
        return folder / "none.gguf", model
    if what == "truncated":
        file.write_bytes(file.read_bytes()[:-1000])
    elif what == "split":
        write(file, "Q4_0", split__count=3)
    elif what == "type":
        write(file, "TQ1_0")
    elif what == "other weights":
        write(file, "Q4_1")
    elif what == "whole modules":
        model = adapted(file, LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    elif what == "biases":
        model = adapted(file, LoraConfig(target_modules=["q_proj"], bias="all"))
    elif what == "tied":
        model = adapted(file, LoraConfig(target_modules=["lm_head"]))
    elif what == "embedding":
        model = adapted(file, LoraConfig(target_modules=["embed_tokens"]))
    elif what == "NaN":
        model.base_model.model.model.layers[0].mlp.up_proj.lora_A["default"].weight.data[0, 0] = torch.nan
    elif what == "output":
        shutil.copy(file, folder / "merged.gguf")
    return file, model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("no file", "is no file"),
        ("truncated", "not whole"),
        ("split", "one part of a model in 3"),
        ("type", r"blk\.0\..* is TQ1_0"),
        ("other weights", "load the model from this very file"),
        ("whole modules", "lm_head.*as a whole"),
        ("biases", "trains biases"),
        ("tied", "lm_head: base.gguf has no tensor output.weight"),
        ("embedding", "not Embedding"),
        ("NaN", "not finite"),
        ("output", "exists already"),
    ],
)
def test_refused_in_one_line(what: str, said: str, tmp_path: Path) -> None:
    file, model = refused(what, tmp_path)
    there = sorted(tmp_path.iterdir())
    with pytest.raises(AuroraError, match=said) as error:
        merge_stored(model, file, tmp_path / "merged.gguf", inputs())
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == there
