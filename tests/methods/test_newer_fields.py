"""An adapter of a later version, whose settings have fields that PEFT leaves out here."""

import json
import re
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
from torch import nn

from aurora_lora import AuroraConfig, __version__
from aurora_lora.methods.newer_fields import warn_of_newer_fields


@pytest.fixture(params=[AuroraConfig, peft.LoraConfig])
def adapter(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    config = request.param(r=2, target_modules=["0"])
    peft.get_peft_model(nn.Sequential(nn.Linear(3, 3)), config).save_pretrained(tmp_path)
    return tmp_path


def change(adapter: Path, **fields: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_what_is_left_out_is_told(adapter: Path) -> None:
    change(adapter, sigma_gate="x", depth=3, peft_version="9.9")
    said = (
        f"{adapter / 'adapter_config.json'} has settings that this version does not know and leaves out: depth (3), "
        f"sigma_gate ('x'), and was written with PEFT 9.9; here are aurora-lora {__version__} and PEFT "
        f"{peft.__version__}: "
    )
    with pytest.warns(UserWarning, match="^" + re.escape(said)):
        warn_of_newer_fields(adapter)


def test_what_changes_nothing_is_passed_over(adapter: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_newer_fields(adapter)
        change(adapter, sigma_gate=None, use_gate=False, gates=[])
        warn_of_newer_fields(adapter)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"peft_type": "NEWER"}', None])
def test_what_cannot_be_loaded_is_not_its_matter(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "adapter_config.json").write_text(text)
    warn_of_newer_fields(tmp_path)
