"""The parts of the conformance run that need no tests of PEFT's."""

import io
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from peft import IA3Config

from aurora_lora import AuroraConfig
from conformance import suite
from conformance.expected import Rule, form
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


def test_rules_choose_tests_by_name_and_form() -> None:
    def item(name: str, **settings: Any) -> Any:
        return SimpleNamespace(nodeid=name, callspec=SimpleNamespace(params={"config_kwargs": settings}))

    rule = Rule(r"test_merge\[", "why", form="calibrated")
    calibrated = {"train_form": "dynamic", "eval_form": "calibrated"}
    assert rule.holds(item("f::test_merge[a]", **calibrated))
    assert not rule.holds(item("f::test_merge_more[a]", **calibrated))
    assert not rule.holds(item("f::test_merge[a]"))
    assert form(item("")) == "static"
    assert (
        form(SimpleNamespace(callspec=SimpleNamespace(params={"config": AuroraConfig(eval_form="dynamic")})))
        == "dynamic"
    )


def test_only_tests_are_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "peft-1.tar.gz"
    names = ("peft-1/tests/test_a.py", "peft-1/tests/testing_common.py", "peft-1/setup.py", "peft-1/tests/../../x.py")
    with tarfile.open(archive, "w:gz") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    suite.unpack(archive, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "__init__.py",
        "test_a.py",
        "testing_common.py",
    ]
    assert not (tmp_path / "x.py").exists()
