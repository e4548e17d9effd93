"""AuroraConfig: defaults, presets, what is refused, and its way through a file."""

import pickle

import pytest
import torch
from peft import PeftConfig, get_peft_model
from torch import nn
from torch.testing import assert_close

from aurora_lora import AuroraConfig


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
        layer.aurora_B["default"].weight.copy_(B)
    expected = layer.get_base_layer()(x) + 2 * (x @ layer.aurora_A["default"].weight.T) @ B.T
    assert_close(model(x), expected)


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


BAD = [  # what sigma is made of is in tests/ops
    ({"r": 0}, r"r=0 .*1 to 16384"),
    ({"r": 2.0}, r"r=2\.0"),
    ({"alpha": float("nan")}, r"alpha=nan .*at most 1e\+09"),
    ({"dropout": 1.0}, r"dropout=1\.0 .*\[0, 1\)"),
    ({"train_form": "calibrated"}, r"train_form='calibrated' .*'dynamic', 'static'"),
    ({"eval_form": "merged"}, r"eval_form='merged' .*'calibrated'"),
    ({"init_weights": "gaussian"}, r"init_weights='gaussian' .*'identity', 'paper'"),
    ({"bias": "lora_only"}, r"bias='lora_only' .*'aurora_only'"),
    ({"rank_pattern": {"query": 0}}, r"rank_pattern\['query'\]=0"),
    ({"rank_pattern": ["query"]}, "rank_pattern="),
    ({"alpha_pattern": {"(": 1}}, "alpha_pattern="),
    ({"train_form": "static", "eval_form": "calibrated"}, r"eval_form='calibrated' .*train_form='static'"),
    ({"layers_to_transform": [0], "target_modules": "query"}, r"layers_to_transform"),
]


@pytest.mark.parametrize(("fields", "message"), BAD, ids=[str(fields) for fields, _ in BAD])
def test_bad_values_name_the_field_the_value_and_what_is_allowed(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        AuroraConfig(**fields)
    assert "\n" not in str(caught.value)


def test_plain_lora_has_one_form():
    config = AuroraConfig(fixed_activation=None, spline=None, skip=True)
    assert config.anl.is_identity
    assert (config.forms, config.resolved_eval_form) == (("static",), "static")
    for form in ("dynamic", "calibrated"):  # whatever it is called, it is the same
        named = AuroraConfig(fixed_activation=None, spline=None, skip=True, eval_form=form)
        assert named.resolved_eval_form == "static"


@pytest.mark.parametrize(
    "fields", [{}, {"spline": None, "spline_range": (-2.5, 3.0), "eval_form": "static", "rank_pattern": {"query": 3}}]
)
def test_a_file_gives_the_config_back(tmp_path, fields):
    config = AuroraConfig(r=7, alpha=0.3, target_modules=["query", "value"], calibrated=True, **fields)
    config.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path) == config
    assert pickle.loads(pickle.dumps(config)) == config
