"""AuroraConfig: defaults, presets, what is refused, and its way through a file."""

import dataclasses
import json
import pickle
from collections import UserDict, UserList
from collections.abc import Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftConfig, get_peft_model
from torch import nn
from torch.testing import assert_close
from transformers import HfArgumentParser

from aurora_lora import AuroraConfig
from aurora_lora.ops.anl import ACTIVATIONS


def test_defaults_are_the_papers_sizes():
    config = AuroraConfig()
    assert (config.r, config.alpha, config.scaling(config.r, config.alpha)) == (2, 4, 2.0)
    assert (config.train_form, config.eval_form, config.resolved_eval_form) == ("dynamic", None, "calibrated")
    assert (config.spline_grid_size, config.spline_order, config.spline_range) == (5, 3, (-1.0, 1.0))
    assert config.init_weights == "identity"
    assert config.forms == ("dynamic", "static", "calibrated")


def test_the_default_starts_as_plain_lora():
    x, B = torch.randn(5, 8), torch.randn(6, 2)
    base = nn.Sequential(nn.Linear(8, 6))
    model = get_peft_model(base, AuroraConfig(target_modules=["0"])).train()
    layer = model.base_model.model[0]
    with torch.no_grad():
        layer.aurora_B["default"].copy_(B)
    expected = layer.get_base_layer()(x) + 2 * (x @ layer.aurora_A["default"].T) @ B.T
    assert_close(model(x), expected)


def test_an_adapter_without_the_skip_is_saved_and_loaded_without_it(tmp_path):
    AuroraConfig(skip=False).save_pretrained(tmp_path)
    assert AuroraConfig.from_pretrained(tmp_path).skip is False


@pytest.mark.parametrize(
    ("preset", "train_form", "eval_form"),
    [
        (AuroraConfig.paper, "dynamic", "static"),
        (AuroraConfig.paper_dynamic, "dynamic", "dynamic"),
        (AuroraConfig.paper_static, "static", "static"),
    ],
)
def test_presets_are_table_7(preset, train_form, eval_form):
    config = preset(r=4, target_modules=["query"])
    assert (config.train_form, config.resolved_eval_form, config.r) == (train_form, eval_form, 4)
    assert (config.spline, config.init_weights, config.skip) == ("summed", "paper", False)


BAD = [
    ({"r": 0}, r"r=0 .*at least 1"),
    ({"r": 2.0}, r"r=2\.0"),
    ({"r": True}, r"r=True"),
    ({"alpha": "4"}, r"alpha='4'"),
    ({"alpha": float("nan")}, r"alpha=nan"),
    ({"dropout": 1.0}, r"dropout=1\.0 .*\[0, 1\)"),
    ({"train_form": "calibrated"}, r"train_form='calibrated' .*'dynamic', 'static'"),
    ({"eval_form": "merged"}, r"eval_form='merged' .*'calibrated'"),
    ({"fixed_activation": "gelu"}, r"fixed_activation='gelu' .*'leaky_relu'"),
    ({"spline": "cubic"}, r"spline='cubic' .*'channelwise', 'summed', None"),
    ({"spline_grid_size": 0}, r"spline_grid_size=0"),
    ({"spline_order": -1}, r"spline_order=-1"),
    ({"spline_range": (1, -1)}, r"spline_range=\(1, -1\) .*low < high"),
    ({"spline_range": (1,)}, r"spline_range"),
    ({"spline_range": (0, float("inf"))}, r"spline_range"),
    ({"skip": 1}, r"skip=1"),
    ({"init_weights": "gaussian"}, r"init_weights='gaussian' .*'identity', 'paper'"),
    ({"bias": "lora_only"}, r"bias='lora_only' .*'aurora_only'"),
    ({"rank_pattern": {"query": 0}}, r"rank_pattern\['query'\]=0"),
    ({"alpha_pattern": {"query": None}}, r"alpha_pattern\['query'\]=None"),
    ({"train_form": "static", "eval_form": "calibrated"}, r"eval_form='calibrated' .*train_form='static'"),
    ({"train_form": "static", "eval_form": "dynamic"}, r"eval_form='dynamic' .*train_form='static'"),
    ({"fixed_activation": None, "spline": None, "skip": False}, r"skip=True"),
    ({"layers_pattern": "layer"}, r"layers_to_transform"),
    ({"layers_to_transform": [0], "target_modules": "query"}, r"layers_to_transform"),
    ({"task_type": "NOPE"}, r"NOPE"),
    ({"r": 10**9}, r"r=1000000000 .*at most 16384"),
    ({"alpha": 10**400}, r"alpha=.* is not allowed"),
    ({"alpha": 1e300}, r"alpha=1e\+300 .*at most 1e\+09"),
    ({"spline_grid_size": 10**6}, r"spline_grid_size=1000000 .*at most 1024"),
    ({"spline_order": 99}, r"spline_order=99 .*at most 16"),
    ({"spline_range": (0, 5e-324)}, r"spline_range=.*tell apart"),
    ({"rank_pattern": ["query"]}, r"rank_pattern=\['query'\] .*a dictionary"),
    ({"rank_pattern": None}, r"rank_pattern=None .*a dictionary"),
    ({"rank_pattern": {"(": 2}}, r"rank_pattern=.*regular expressions"),
    ({"rank_pattern": {3: 2}}, r"rank_pattern=.*regular expressions"),
    ({"rank_pattern": {"query": 10**9}}, r"rank_pattern\['query'\]=1000000000"),
    ({"alpha_pattern": "query"}, r"alpha_pattern='query' .*a dictionary"),
    ({"layers_to_transform": "0"}, r"layers_to_transform='0' .*a layer's number"),
    ({"layers_to_transform": [True]}, r"layers_to_transform=\[True\]"),
    ({"layers_to_transform": -1}, r"layers_to_transform=-1"),
    ({"layers_to_transform": 1, "layers_pattern": "("}, r"layers_pattern='\('"),
    ({"trainable_token_indices": "1"}, r"trainable_token_indices='1' .*a list of numbers of tokens"),
    ({"trainable_token_indices": {"embed": 3}}, r"trainable_token_indices="),
    ({"trainable_token_indices": []}, r"trainable_token_indices=\[\]"),
    ({"inference_mode": [float("nan")]}, r"inference_mode=\[nan\]"),
    ({"trainable_token_indices": [-1]}, r"trainable_token_indices=\[-1\]"),
    ({"modules_to_save": "classifier"}, r"modules_to_save='classifier' .*a list of names"),
    ({"modules_to_save": [3]}, r"modules_to_save=\[3\]"),
    ({"target_modules": "("}, r"target_modules='\(' .*a regular expression"),
    ({"target_modules": [None]}, r"target_modules=\[None\]"),
    ({"target_modules": 3}, r"target_modules=3"),
    ({"exclude_modules": "["}, r"exclude_modules='\['"),
]


@pytest.mark.parametrize(("fields", "message"), BAD, ids=[str(fields) for fields, _ in BAD])
def test_bad_values_name_the_field_the_value_and_what_is_allowed(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        AuroraConfig(**fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("r", 0), ("eval_form", "static_"), ("train_form", "static_"), ("spline_range", None), ("rank_pattern", {"0": 0})],
)
def test_fields_that_were_set_since_are_checked_when_an_adapter_is_made(field, value):
    config = AuroraConfig(target_modules=["0"])
    setattr(config, field, value)
    base = nn.Sequential(nn.Linear(8, 6))
    with pytest.raises(ValueError, match=f"{field}.* is not allowed"):
        get_peft_model(base, config)
    model = get_peft_model(base, AuroraConfig(target_modules=["0"]))  # nothing is left of the refused one
    with pytest.raises(ValueError, match=f"{field}.* is not allowed"):
        model.add_adapter("other", config)
    assert list(model.peft_config) == ["default"]
    assert list(model.base_model.model[0].aurora_A) == ["default"]


def test_fields_that_were_set_since_become_what_a_file_holds(tmp_path):
    config = AuroraConfig()
    config.target_modules, config.r, config.init_weights = ["0"], np.int64(3), True
    get_peft_model(nn.Sequential(nn.Linear(8, 6)), config).save_pretrained(tmp_path)
    assert (config.target_modules, type(config.r), config.init_weights) == ({"0"}, int, "identity")
    assert AuroraConfig.from_pretrained(tmp_path).r == 3


CHOICES = {
    "train_form": ("dynamic", "static"),
    "eval_form": ("dynamic", "static", "calibrated", None),
    "fixed_activation": (*ACTIVATIONS, None),
    "spline": ("channelwise", "summed", None),
    "init_weights": ("identity", "paper", True, False),
    "bias": ("none", "all", "aurora_only"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_types_of_choices_are_what_is_allowed(name):
    """A type checker and an editor know them; what is said of a value that is none has all of them."""
    hint = get_type_hints(AuroraConfig)[name]
    members = [one for one in get_args(hint) if get_origin(one) is Literal] or [hint]
    optional = (None,) if type(None) in get_args(hint) else ()
    assert (*get_args(members[0]), *optional) == CHOICES[name]
    for value in CHOICES[name]:
        assert AuroraConfig(**{name: value}).to_dict()[name] in (value, "identity")
    with pytest.raises(ValueError, match=f"{name}='nope'") as caught:
        AuroraConfig(**{name: "nope"})
    assert all(repr(value) in str(caught.value) for value in CHOICES[name])


def test_a_script_takes_the_choices_as_its_options():
    """Transformers' parser takes no whole config, of LoRA neither: it cannot read some unions of PEFT's fields."""
    hints, fields = get_type_hints(AuroraConfig), {one.name: one for one in dataclasses.fields(AuroraConfig)}
    script = dataclasses.make_dataclass(
        "Script", [(name, hints[name], dataclasses.field(default=fields[name].default)) for name in CHOICES]
    )
    assert HfArgumentParser(script).parse_args_into_dataclasses([])[0] == script()
    options = ["--train_form", "static", "--eval_form", "static", "--spline", "summed", "--init_weights", "False"]
    (given,) = HfArgumentParser(script).parse_args_into_dataclasses([*options, "--bias", "all"])
    config = AuroraConfig(**dataclasses.asdict(given))
    assert (config.resolved_eval_form, config.spline, config.init_weights, config.bias) == (
        "static",
        "summed",
        False,
        "all",
    )
    with pytest.raises(SystemExit):
        HfArgumentParser(script).parse_args_into_dataclasses(["--spline", "cubic"])


def test_numbers_and_names_become_what_a_file_holds():
    config = AuroraConfig(
        alpha=Fraction(1, 2),
        alpha_pattern={"query": np.float32(2)},
        target_modules=("query",),
        modules_to_save=("head",),
        layers_to_transform=range(2),
        r=np.int64(4),
        rank_pattern={"query": np.int32(3)},
        trainable_token_indices=(1, np.int64(2)),
    )
    assert (type(config.r), config.r, type(config.rank_pattern["query"])) == (int, 4, int)
    assert config.trainable_token_indices == [1, 2]
    json.dumps(config.to_dict(), default=None)
    with pytest.raises(ValueError, match=r"trainable_token_indices=array.* is not allowed"):
        AuroraConfig(trainable_token_indices=np.array([1, 2]))
    assert (type(config.alpha), config.alpha, type(config.alpha_pattern["query"])) == (float, 0.5, float)
    assert (config.target_modules, config.modules_to_save, config.layers_to_transform) == ({"query"}, ["head"], [0, 1])


class ListConfig(Sequence):
    """Like OmegaConf's, which is no list."""

    def __init__(self, *values):
        self._values = values

    def __len__(self):
        return len(self._values)

    def __getitem__(self, at):
        return self._values[at]


@pytest.mark.parametrize("names", [ListConfig("query"), {"query": 1}.keys(), UserList(["query"])])
def test_what_is_like_a_list_or_a_dictionary_is_taken(names, tmp_path):
    """As LoraConfig does, and read back from a file."""
    config = AuroraConfig(
        target_modules=names,
        exclude_modules=names,
        modules_to_save=names,
        layers_pattern=names,
        layers_to_transform=ListConfig(0, 1),
        rank_pattern=MappingProxyType({"query": 3}),
        alpha_pattern=UserDict({"query": 2.0}),
        trainable_token_indices=MappingProxyType({"embed": ListConfig(1, 2)}),
        spline_range=ListConfig(-2, 2),
    )
    assert (config.target_modules, config.exclude_modules) == ({"query"}, {"query"})
    assert (config.modules_to_save, config.layers_pattern, config.layers_to_transform) == (["query"], ["query"], [0, 1])
    assert (config.rank_pattern, config.alpha_pattern) == ({"query": 3}, {"query": 2.0})
    assert (config.trainable_token_indices, config.spline_range) == ({"embed": [1, 2]}, (-2.0, 2.0))
    assert type(config.rank_pattern) is dict
    config.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target_modules", ListConfig(3)),
        ("modules_to_save", {"head": 1}),
        ("layers_to_transform", b"\x01"),
        ("layers_to_transform", ListConfig("0")),
        ("rank_pattern", UserDict({"query": "3"})),
        ("trainable_token_indices", UserDict({"embed": UserDict({"a": [1]})})),
        ("spline_range", "01"),
    ],
)
def test_its_elements_are_checked_as_those_of_a_list(field, value):
    with pytest.raises(ValueError, match=rf"{field}.* is not allowed"):
        AuroraConfig(**{field: value})


@pytest.mark.parametrize("alpha", [0, -1])
def test_an_alpha_of_any_sign_is_as_in_lora(alpha):
    """An alpha of 0 switches an adapter off, a negative one takes an update away."""
    for fields in ({"alpha": alpha}, {"alpha_pattern": {"0": alpha}}):
        base = nn.Sequential(nn.Linear(8, 6))
        names = {"target_modules": ["0"], "init_weights": False, "fixed_activation": None, "spline": None}
        model = get_peft_model(base, AuroraConfig(**names, **fields))
        layer = model.base_model.model[0]
        expected = alpha / 2 * layer.aurora_B["default"] @ layer.aurora_A["default"]
        assert_close(layer.get_delta_weight("default"), expected)


def test_an_unknown_field_is_named():
    with pytest.raises(TypeError, match="rnak"):
        AuroraConfig(rnak=3)


def test_plain_lora_has_one_form():
    config = AuroraConfig(fixed_activation=None, spline=None, skip=True)
    assert config.anl.is_identity
    assert (config.forms, config.resolved_eval_form) == (("static",), "static")
    for form in ("dynamic", "calibrated"):  # whatever it is called, it is the same
        named = AuroraConfig(fixed_activation=None, spline=None, skip=True, eval_form=form)
        assert named.resolved_eval_form == "static"


def test_true_is_the_default_initialisation():
    assert AuroraConfig(init_weights=True).init_weights == "identity"


def test_rslora():
    assert AuroraConfig(use_rslora=True).scaling(4, 8) == 4.0


@given(
    r=st.integers(1, 64),
    alpha=st.floats(0.1, 100),
    spline=st.sampled_from(["channelwise", "summed", None]),
    low=st.floats(-5, -0.1),
    high=st.floats(0.1, 5),
    eval_form=st.sampled_from([None, "calibrated", "static", "dynamic"]),
    skip=st.booleans(),
)
def test_a_file_gives_the_config_back(tmp_path_factory, r, alpha, spline, low, high, eval_form, skip):
    config = AuroraConfig(
        r=r,
        alpha=alpha,
        spline=spline,
        spline_range=(low, high),
        eval_form=eval_form,
        skip=skip,
        target_modules=["query", "value"],
        rank_pattern={"query": 3},
        calibrated=True,
    )
    folder = tmp_path_factory.mktemp("config")
    config.save_pretrained(folder)
    assert PeftConfig.from_pretrained(folder) == config
    assert pickle.loads(pickle.dumps(config)) == config
