"""A folder that brings code of its own is refused: nothing of it runs, whatever stdin would answer."""

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from aurora_lora.data import get_task
from aurora_lora.data.hub import COPIES, HubData
from aurora_lora.errors import UserError
from aurora_lora.lab.experiments.plan import architecture, shapes
from aurora_lora.train.models import load_base_model, load_causal_model, load_tokenizer
from aurora_lora.train.predicting import predict
from aurora_lora.train.recipe import ModelSection, validate

CODE = "from pathlib import Path\nPath({ran!r}).touch()\n"
KINDS = {
    "config": "from transformers import BertConfig\nclass Own(BertConfig):\n    model_type = 'own'\n",
    "model": "from transformers import BertForSequenceClassification\nclass Own(BertForSequenceClassification): pass\n",
    "tokenizer": "from transformers import PreTrainedTokenizerFast\nclass Own(PreTrainedTokenizerFast): pass\n",
}


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the code would write. Whoever asks whether to run it is told yes."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n" * 100))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "ran"


@pytest.fixture
def hostile(tmp_path: Path, ran: Path, model: Path) -> Callable[[str], Path]:
    """Makes a folder of a model with code of its own for its configuration, its model or its tokenizer."""

    def make(kind: str) -> Path:
        folder = tmp_path / kind
        shutil.copytree(model, folder)
        (folder / "own.py").write_text(CODE.format(ran=str(ran)) + KINDS[kind], encoding="utf-8")
        names = {
            "config": ("config.json", {"AutoConfig": "own.Own"}, {"model_type": "own"}),
            "model": ("config.json", {"AutoModelForSequenceClassification": "own.Own"}, {"model_type": "marian"}),
            "tokenizer": (
                "tokenizer_config.json",
                {"AutoTokenizer": [None, "own.Own"]},
                {"tokenizer_class": "OwnTokenizer"},
            ),
        }
        file, auto_map, more = names[kind]
        path = folder / file
        values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps({**values, **more, "auto_map": auto_map}), encoding="utf-8")
        if kind == "tokenizer":  # of a kind that Transformers has no tokenizer for
            (folder / "config.json").write_text(json.dumps({"model_type": "vit"}), encoding="utf-8")
        return folder

    return make


def refused(call: Callable[[], object], ran: Path) -> None:
    with pytest.raises(UserError, match=r"code of its own.*aurora-lora never runs such code$") as caught:
        call()
    assert "\n" not in str(caught.value)
    assert not ran.exists()


def test_models_and_tokenizers(hostile: Callable[[str], Path], ran: Path, model: Path) -> None:
    folder = hostile("config")
    task, processor = get_task("tiny-sentiment"), load_tokenizer(str(model))
    for call in (
        lambda: load_base_model(str(folder), task, processor),
        lambda: architecture(str(folder)),
        lambda: predict(folder, ["good"]),
    ):
        refused(call, ran)
    folder = hostile("model")
    for call in (
        lambda: load_base_model(str(folder), task, processor),
        lambda: predict(folder, ["good"]),
        lambda: shapes(validate(tiny.recipe(folder), "recipe"), 2),  # of a plan
    ):
        refused(call, ran)
    refused(lambda: load_tokenizer(str(hostile("tokenizer"))), ran)


def test_data_set(tmp_path: Path, ran: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "copies" / "owner" / "data"
    folder.mkdir(parents=True)
    (folder / "data.py").write_text(CODE.format(ran=str(ran)), encoding="utf-8")
    monkeypatch.setenv(COPIES, str(tmp_path / "copies"))
    refused(lambda: HubData("owner/data").load("train", ["text"]), ran)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_attention(ran: Path, tmp_path: Path, model: Path, key: str) -> None:
    """A config.json may name a kernel of the hub, for Transformers to fetch and run; what a recipe names counts."""
    folder = shutil.copytree(model, tmp_path / "kernel")
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**values, key: "someone/kernel"}), encoding="utf-8")
    task, processor = get_task("tiny-sentiment"), load_tokenizer(str(folder))
    for call in (
        lambda: load_base_model(str(folder), task, processor),
        lambda: load_base_model(ModelSection(name=str(folder), quantization="nf4"), task, processor),
        lambda: shapes(validate(tiny.recipe(folder), "recipe"), 2),
        lambda: load_causal_model(str(folder)),
        lambda: predict(folder, ["good"]),
    ):
        with pytest.raises(UserError, match="names 'someone/kernel', code of the hub, and aurora-lora never runs such"):
            call()
    named = ModelSection(name=str(folder), attention="eager")
    assert load_base_model(named, task, processor).config._attn_implementation == "eager"
    values["_attn_implementation_internal"] = "someone/kernel"  # Transformers' own name for it, which it never reads
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    assert "/" not in load_base_model(str(folder), task, processor).config._attn_implementation
