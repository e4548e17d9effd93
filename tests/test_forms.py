from typing import get_args

import pytest
import torch
from peft import get_peft_model
from torch import nn

from aurora_lora import AuroraConfig, FormError, calibrate, set_form
from aurora_lora.forms import FORMS, MERGED, FormName, TrainForm, form_named
from aurora_lora.lab.report.figures import FORM_STYLES
from aurora_lora.train.finished_run import score_table

TRAINED = ("dynamic", "static")


@pytest.mark.parametrize("name", FORMS)
def test_what_the_table_says_of_a_form_is_what_the_adapter_does(name: str) -> None:
    form = FORMS[name]
    model = get_peft_model(nn.Sequential(nn.Linear(6, 5)), AuroraConfig(target_modules=["0"]))
    calibrate(model, [torch.randn(8, 6)])
    set_form(model, name)
    if form.mergeable:
        model.merge_and_unload()
    else:
        with pytest.raises(FormError):
            model.merge_and_unload()
    if name in TRAINED:
        assert AuroraConfig(train_form=name).train_form == name
    else:
        with pytest.raises(ValueError, match="train_form"):
            AuroraConfig(train_form=name)


def test_the_types_have_the_forms_of_the_table() -> None:
    assert get_args(FormName) == tuple(FORMS)
    assert get_args(TrainForm) == TRAINED


def test_the_order_is_that_of_the_table() -> None:
    assert AuroraConfig().forms == tuple(FORMS)
    with pytest.raises(ValueError, match="'dynamic', 'static', 'calibrated'"):
        AuroraConfig(eval_form="merged")


def test_forms_look_and_are_called_differently() -> None:
    for key in ("color", "marker", "linestyle"):
        assert len({FORM_STYLES[form][key] for form in FORMS}) == len(FORMS)
    for key in ("title", "label", "description"):
        assert len({getattr(form, key) for form in FORMS.values()}) == len(FORMS)


def test_a_form_that_is_not_in_the_table_is_shown_by_its_name() -> None:
    assert form_named("frozen").label == "frozen"
    assert form_named(MERGED).mergeable
    assert score_table("aurora", {"frozen": {"nll": 1.0}}, None).rows == [["frozen", "1.000"]]
