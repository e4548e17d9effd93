"""Commands on an adapter of no run: merges into copies of what is served or into a base in float, and their check."""

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_dataset
from peft import LoraConfig, PeftModel, PolyConfig
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from aurora_lora import input_statistics
from aurora_lora.cli import app
from aurora_lora.deploy.stored import not_quantised
from aurora_lora.files import file_digest
from aurora_lora.train.models import load_causal_model, load_tokenizer
from deploy.gguf_llama import PROJECTIONS, adapted, write

WORDS = """this plot was dull, that actor moved me: 7 of 10! an odd end? yes; no - maybe 3/5""".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with base.gguf, adapter/, texts.jsonl and merged.gguf."""
    folder = tmp_path_factory.mktemp("served")
    write(folder / "base.gguf", "Q4_1")
    adapted(folder / "base.gguf", LoraConfig(r=4, target_modules=PROJECTIONS)).save_pretrained(folder / "adapter")
    lines = [json.dumps({"text": " ".join(WORDS[(7 * i + j) % len(WORDS)] for j in range(9))}) for i in range(150)]
    (folder / "texts.jsonl").write_text("\n".join(lines))
    result = aurora(folder, "merge", "--output", str(folder / "merged.gguf"), "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    ends = {end["form"]: end["kl"] for end in said["rounding"]["end_to_end"]}
    assert 0 < ends["by inputs"] < ends["nearest"] < ends["without adapter"]
    return folder


def aurora(folder: Path, command: str, *more: str, base: str = "base.gguf") -> Any:
    given = [str(folder / "adapter"), "--model", str(folder / base), "--data", str(folder / "texts.jsonl")]
    return CliRunner().invoke(app, [command, *given, *more])


def test_a_merge_is_checked(served: Path) -> None:
    result = aurora(served, "gap", "--merged", str(served / "merged.gguf"), "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["wrong"]) == (0, [])
    assert 0 < found["merged"]["kl"] < 0.1 * found["without"]["kl"]
    assert found["merged"]["metric"]["perplexity"] > 0
    result = aurora(served, "gap", "--merged", str(served / "merged.gguf"), "--max-kl", str(found["merged"]["kl"] / 2))
    assert result.exit_code == 1
    assert "is above --max-kl" in result.output


def test_the_base_is_no_merge(served: Path) -> None:
    result = aurora(served, "gap", "--merged", str(served / "base.gguf"))
    assert result.exit_code == 1
    assert "is the base" in result.output


def test_weights_that_are_no_longer_quantised_are_told(served: Path, tmp_path: Path) -> None:
    write(file := tmp_path / "merged.gguf", "F16")
    result = aurora(served, "gap", "--merged", str(file))
    assert result.exit_code == 1
    assert "blk.0.attn_q.weight" in result.output.replace("\n", "")
    # without a base to compare with, by what a file is called
    file = file.rename(tmp_path / "merged-Q4_1.gguf")
    assert "blk.0.attn_q.weight" in not_quantised(file)
    assert not_quantised(file.rename(tmp_path / "Qwen2-F16.gguf")) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--data": None}, "--data FILE"),
        ({"--model": None}, "--model BASE"),
        ({"--model": "minilm-l6"}, "neither a GGUF file nor a folder"),
        ({"--output": "merged.gguf"}, "exists already"),
        ({"--column": "tweet"}, "no column 'tweet'"),
        ({"--dtype": "bfloat16"}, "go with a run"),
    ],
)
def test_refused_in_one_line(
    served: Path, change: dict[str, str | None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(served)
    there = sorted(served.iterdir())
    given = {"--model": "base.gguf", "--data": "texts.jsonl", "--output": "new.gguf", **change}
    options = [part for name, value in given.items() if value is not None for part in (name, value)]
    result = CliRunner().invoke(app, ["merge", "adapter", *options])
    assert result.exit_code == 2
    assert said in result.output.replace("\n", " ")
    assert sorted(served.iterdir()) == there


# ---------------------------------------------------------------- bases in float, and accidents with bases of each kind

KINDS = {"base.gguf": (), "packed": (), "float": ("--quantization", "w8a8")}


@pytest.fixture(scope="module")
def bases(served: Path) -> Path:
    """`served` with the base in float and its tokenizer in float/, and packed/ that a merge of it into W4A16 wrote."""
    load_causal_model(str(served / "base.gguf")).save_pretrained(served / "float")
    load_tokenizer(str(served / "base.gguf")).save_pretrained(served / "float")
    more = "--quantization", "w4a16", "--output", str(served / "packed"), "--json"
    result = aurora(served, "merge", *more, base="float")
    assert result.exit_code == 0, result.output
    ends = {end["form"]: end["kl"] for end in json.loads(result.stdout)["rounding"]["end_to_end"]}
    assert 0 < ends["by inputs"] < ends["nearest"] < ends["without adapter"]
    return served


def files(folder: Path) -> dict[str, str]:
    return {str(path): file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(folder: Path, adapter: Path, kind: str, output: Path, *more: str) -> str:
    """What a merge says that is refused in one line; it writes nothing, and changes nothing."""
    there = files(folder)
    given = ["--model", str(folder / kind), "--data", str(folder / "texts.jsonl"), "--output", str(output)]
    result = CliRunner().invoke(app, ["merge", str(adapter), *given, *KINDS[Path(kind).name], *more])
    assert result.exit_code == 2, result.output
    assert not list(output.parent.iterdir())
    assert files(folder) == there
    return str(result.stderr.splitlines()[-1])  # bars come before


def test_a_base_in_float_becomes_a_folder_that_is_served(bases: Path) -> None:
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= {
        path.name for path in (bases / "packed").iterdir()
    }
    result = aurora(bases, "gap", "--merged", str(bases / "packed"), "--json", base="float")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["wrong"]) == (0, [])
    assert 0 < found["merged"]["kl"] < 0.2 * found["without"]["kl"]
    result = aurora(bases, "gap", "--merged", str(bases / "float"), base="float")
    assert (result.exit_code, "is the base" in result.output) == (1, True)


@pytest.mark.parametrize(
    ("accident", "said"),
    [
        ({"target_modules": ["lm_head", "q_proj"]}, "tied"),
        ({"target_modules": ["embed_tokens"]}, "linear layers"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["norm"]}, "modules_to_save"),
        *(({"target_modules": ["q_proj"]}, said) for said in ("not finite", "I32", "pickles")),
    ],
    ids=["tied output", "embedding", "whole module", "nan", "integers", "pickle"],
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_adapters_that_are_not_merged(bases: Path, tmp_path: Path, kind: str, accident: Any, said: str) -> None:
    adapted(bases / "base.gguf", LoraConfig(r=2, **accident)).save_pretrained(adapter := tmp_path / "adapter")
    weights = load_file(file := adapter / "adapter_model.safetensors")
    if said == "not finite":
        next(iter(weights.values()))[0, 0] = torch.nan
        save_file(weights, file, {"format": "pt"})
    elif said == "I32":
        save_file({name: weight.int() for name, weight in weights.items()}, file, {"format": "pt"})
    elif said == "pickles":
        torch.save(weights, adapter / "adapter_model.bin")
        file.unlink()
    (out := tmp_path / "out").mkdir()
    assert said in refused(bases, adapter, kind, out / "merged")


def test_an_adapter_that_asks_for_more_than_texts(bases: Path, tmp_path: Path) -> None:
    """The error is PEFT's, of its forward pass."""
    poly = PolyConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted(bases / "base.gguf", poly).save_pretrained(tmp_path)
    options = ["--model", str(bases / "float"), "--data", str(bases / "texts.jsonl")]
    result = CliRunner().invoke(app, ["gap", str(tmp_path), *options])
    assert (result.exit_code, result.stderr) == (2, f"{tmp_path} cannot be used: task_ids should not be None.\n")


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_leaves_nothing(bases: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writers = {
        "base.gguf": "aurora_lora.deploy.gguf.shutil.copyfile",
        "packed": "aurora_lora.deploy.compressed.save_file",
        "float": "transformers.modeling_utils.safe_save_file",
    }
    monkeypatch.setattr(writers[kind], full)
    assert "No space left on device" in refused(bases, bases / "adapter", kind, tmp_path / "merged")


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_base_is_refused(bases: Path, tmp_path: Path, kind: str) -> None:
    whole, cut = bases / kind, tmp_path / "cut" / kind
    cut.parent.mkdir()
    if whole.is_file():
        shutil.copyfile(whole, file := cut)
    else:
        shutil.copytree(whole, cut)
        file = cut / "model.safetensors"
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 2)
    shutil.copyfile(bases / "texts.jsonl", cut.parent / "texts.jsonl")
    (out := tmp_path / "out").mkdir()
    refused(cut.parent, bases / "adapter", kind, out / "merged")


@pytest.mark.parametrize("kind", KINDS)
def test_one_short_text_is_rounded_by(bases: Path, tmp_path: Path, kind: str) -> None:
    """E[x x^T] of four tokens has rank 4; nothing is held out, which is said."""
    (few := tmp_path / "few.jsonl").write_text(json.dumps({"text": " ".join(WORDS[:4])}))
    given = ["--model", str(bases / kind), "--data", str(few), "--output", str(tmp_path / "merged"), "--json"]
    result = CliRunner().invoke(app, ["merge", str(bases / "adapter"), *given, *KINDS[kind]])
    assert result.exit_code == 0, result.output
    rounding = json.loads(result.stdout)["rounding"]
    assert not rounding["held_out"]
    assert all(layer["by_inputs"] <= 0.2 * layer["nearest"] for layer in rounding["layers"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"--quantization": "w3a16"}, "is not one of w4a16, w4a16_asym, w8a16, w8a8, fp8, nvfp4, mxfp4"),
        ({"--quantization": "nf4"}, "'nf4' is not one of w4a16"),
        ({"--model": "base.gguf"}, "is stored quantised"),
        ({"--output": "packed"}, "exists already"),
    ],
)
def test_quantising_is_refused_in_one_line(
    bases: Path, change: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bases)
    there = files(bases)
    given = {"--model": "float", "--data": "texts.jsonl", "--output": "new", "--quantization": "w4a16", **change}
    result = CliRunner().invoke(app, ["merge", "adapter", *(part for pair in given.items() for part in pair)])
    assert (result.exit_code, said in result.stderr.replace("\n", " ")) == (2, True), result.output
    assert files(bases) == there


def test_kept_statistics_stand_in_for_texts(served: Path, tmp_path: Path) -> None:
    shutil.copytree(served / "adapter", tmp_path / "adapter")
    given = [str(tmp_path / "adapter"), "--model", str(served / "base.gguf"), "--output", str(tmp_path / "out.gguf")]
    refused = CliRunner().invoke(app, ["merge", *given])
    assert (refused.exit_code, "--data FILE" in refused.output) == (2, True)
    model = PeftModel.from_pretrained(load_causal_model(str(served / "base.gguf")), str(tmp_path / "adapter"))
    tokenizer, texts = (
        load_tokenizer(str(served / "base.gguf")),
        load_dataset("json", data_files=str(served / "texts.jsonl")),
    )
    input_statistics(model, texts["train"], tokenizer=tokenizer, text_columns="text").save(tmp_path / "adapter")
    result = CliRunner().invoke(app, ["merge", *given])
    assert result.exit_code == 0, result.output
    found = json.loads(aurora(served, "gap", "--merged", str(tmp_path / "out.gguf"), "--json").stdout)
    assert 0 < found["merged"]["kl"] < 0.1 * found["without"]["kl"]
