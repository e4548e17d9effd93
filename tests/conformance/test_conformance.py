"""The parts of the conformance run that need no tests of PEFT's."""

import pytest
from peft import IA3Config

from aurora_lora import AuroraConfig
from conformance.rows import CUSTOM, CUSTOM_DYNAMIC, Rows
from conformance.stand_in import LoraConfig, UntranslatableError, translate


def test_lora_arguments_make_an_aurora_config() -> None:
    config = LoraConfig(lora_alpha=32, lora_dropout=0.1, init_lora_weights=False, bias="lora_only", target_modules="a")
    assert type(config) is AuroraConfig
    assert isinstance(config, LoraConfig)
    assert (config.r, config.alpha, config.dropout, config.init_weights) == (8, 32, 0.1, False)
    assert (config.bias, config.train_form, config.target_modules) == ("aurora_only", "static", "a")


def test_options_of_lora_alone_are_named() -> None:
    assert translate(use_dora=False, init_lora_weights=True) == {
        "r": 8,
        "alpha": 8,
        "skip": False,
        "train_form": "static",
        "init_weights": True,
    }
    for kwargs in ({"use_dora": True}, {"init_lora_weights": "pissa"}, {"target_parameters": ["a"]}):
        with pytest.raises(UntranslatableError, match=next(iter(kwargs))):
            translate(**kwargs)
    with pytest.raises(TypeError, match="'typo'"):
        translate(typo=1)


def test_rows_are_those_of_lora_in_each_form() -> None:
    rows = Rows()
    peft = [
        ("1", "MLP", LoraConfig, {"lora_alpha": 4}),
        ("2", "MLP", LoraConfig, {"use_dora": True}),
        ("3", "MLP", IA3Config, {}),
    ]
    made = rows.custom(peft)
    assert [name for name, *_ in made[:3]] == ["1 static", "1 calibrated", f"{CUSTOM[0][0]} static"]
    assert len(made) == 2 + 2 * len(CUSTOM) + len(CUSTOM_DYNAMIC)
    assert rows.left_out == {"use_dora": 1}
    assert [LoraConfig(**kwargs).resolved_eval_form for *_, kwargs in made[:2]] == ["static", "calibrated"]
    assert "alpha" not in peft[0][3]
