"""Configurations of models that a plan has no shapes of."""

import json
from pathlib import Path
from typing import Any

import pytest

from aurora_lora.data import get_task
from aurora_lora.errors import UserError
from aurora_lora.lab.experiments.architectures import architecture, is_stored_quantised
from aurora_lora.train.models import load_base_model, stored_quantization
from aurora_lora.train.recipe import ModelSection


@pytest.mark.parametrize("config", [None, "{", '{"model_type": "new"}', '{"hidden_act": 3}'])
def test_what_cannot_be_loaded_is_told_as_in_training(config: str | None, tmp_path: Path) -> None:
    model, where = ModelSection(name="no/where", revision="v9"), ", which is no folder here, at revision 'v9'"
    if config is not None:
        (tmp_path / "config.json").write_text(config)
        model, where = ModelSection(name=str(tmp_path)), ""
    said = []
    for load in (architecture, stored_quantization, lambda model: load_base_model(model, get_task("rte"), None)):
        with pytest.raises(UserError) as error:
            load(model)
        said.append(str(error.value))
    assert said[0].startswith(f"model: '{model.name}'{where} cannot be loaded: ")
    assert said == said[:1] * 3


@pytest.mark.parametrize(
    ("stored", "method"),
    [
        (None, None),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"load_in_8bit": True}, "bitsandbytes"),  # as of 2023
    ],
)
def test_whether_it_is_stored_quantised(stored: dict[str, Any] | None, method: str | None, tmp_path: Path) -> None:
    more = {} if stored is None else {"quantization_config": stored}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **more}))
    assert stored_quantization(str(tmp_path)) == method
    assert is_stored_quantised(str(tmp_path)) == (method is not None)
