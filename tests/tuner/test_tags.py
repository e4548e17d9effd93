"""The tags of a model with an adapter, which PEFT, Trainer and TRL write into its card."""

import copy

import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from torch import nn

from aurora_lora import AuroraConfig


def tags_of_card(model, folder):
    model.save_pretrained(folder)
    return set(ModelCard.load(folder / "README.md").data.tags)


def test_the_card_of_an_adapter_names_the_method_and_the_package(make_bert, config, tmp_path):
    base = make_bert()
    base.add_model_tags("mine")
    model = get_peft_model(base, config(task_type=None))
    model.add_adapter("other", config(task_type=None))
    model.add_model_tags("trl")  # as TRL does
    assert {"aurora", "aurora-lora", "mine", "trl", "transformers"} <= tags_of_card(model, tmp_path)
    assert base.model_tags == ["mine", "aurora", "aurora-lora", "trl"]


def test_a_model_that_is_none_of_transformers(tmp_path):
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), AuroraConfig(target_modules=["0"]))
    assert tags_of_card(model, tmp_path) == {"aurora", "aurora-lora"}


@pytest.mark.parametrize("own", [[], ["mine"]])
@pytest.mark.parametrize("end", ["unload", "merge_and_unload"])
def test_they_go_with_the_adapter(make_bert, config, own, end):
    base = make_bert()
    base.add_model_tags(own)
    before = copy.copy(vars(base).get("model_tags"))
    model = getattr(get_peft_model(base, config(train_form="static")), end)()
    assert (model.model_tags or []) == before
    assert make_bert().model_tags is None  # the class is as it was
    plain = get_peft_model(nn.Sequential(nn.Linear(4, 4)), AuroraConfig(target_modules=["0"])).unload()
    assert not hasattr(plain, "model_tags")


def test_they_go_with_the_last_adapter_that_is_deleted(make_bert, config):
    base = make_bert()
    model = get_peft_model(base, config(task_type=None))
    model.add_adapter("other", config(task_type=None))
    model.delete_adapter("default")
    assert base.model_tags == ["aurora", "aurora-lora"]
    model.delete_adapter("other")
    assert base.model_tags is None


def test_the_card_of_a_lora_is_as_it_was(make_bert, tmp_path):
    model = get_peft_model(make_bert(), LoraConfig(target_modules=["query"]))
    assert not {"aurora", "aurora-lora"} & tags_of_card(model, tmp_path)
