"""Ranks shared out by a probe, and an adapter that starts along it: AuroRA's, LoRA's, of every kind of layer."""

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from aurora_lora import AuroraConfig, CalibrationError, align, probe, ranked_config
from aurora_lora.deploy.probe import LayerProbe, Probe
from aurora_lora.deploy.ranks import rank_fields, share_out
from aurora_lora.tuner.targets import mistakable


def layer(name, d_out, d_in, values):
    directions = torch.linalg.qr(torch.randn(d_in, len(values)))[0].T
    return LayerProbe(name, d_out, d_in, torch.tensor(values), directions, torch.ones(len(values)))


def found(*layers):
    return Probe(tuple(layers), (), 1, 3, 0.0)


THREE = [layer("a", 4, 6, [3.0, 1.0, 0.1]), layer("b", 12, 8, [4.0, 3.5, 0.2]), layer("c", 3, 7, [2.0, 0.0])]


@pytest.mark.parametrize(
    ("budget", "ranks", "weights"),
    [
        (10, {"a": 1}, 10),  # 9 / 10 is the most by weight
        (30, {"a": 1, "b": 1}, 30),
        (49, {"a": 1, "b": 1, "c": 1}, 40),  # b's second does not fit, c's first does, a's second no more
        (50, {"a": 1, "b": 2}, 50),
        (60, {"a": 1, "b": 2, "c": 1}, 60),
        (10_000, {"a": 3, "b": 3, "c": 1}, 100),  # a direction without gradient is never bought
    ],
)
def test_ranks_go_to_the_most_worth_until_the_budget_is_used(budget, ranks, weights):
    assert share_out(THREE, budget) == ranks
    assert sum(ranks.get(one.layer, 0) * (one.d_in + one.d_out) for one in THREE) == weights <= budget


@pytest.mark.parametrize("config", [AuroraConfig, LoraConfig])
def test_an_ordinary_configuration(make_bert, labelled, config, tmp_path):
    model = make_bert()
    measured = probe(model, labelled, exclude_modules=["classifier"])
    given = ranked_config(measured, 2000, config, scaling=3.0, task_type="SEQ_CLS")
    assert type(given) is config
    given.save_pretrained(tmp_path)
    shared = share_out(measured.layers, 2000)
    peft_model = get_peft_model(model, config.from_pretrained(tmp_path))
    ranks, scalings = {}, set()
    for path, module in peft_model.get_base_model().named_modules():
        if hasattr(module, "base_layer"):
            ranks[path] = module.r["default"]
            scalings.add(module.scaling["default"])
    assert ranks == shared
    assert len(set(ranks.values())) > 1
    assert scalings == {3.0}
    sizes = [p.numel() for name, p in peft_model.named_parameters() if re.search(r"(lora|aurora)_[AB]\.", name)]
    assert sum(sizes) <= 2000


class Nested(nn.Module):
    """Layers whose paths end with those of others."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(4, 6)
        self.encoder = nn.ModuleDict({"proj": nn.Linear(6, 4), "head": nn.ModuleDict({"proj": nn.Linear(4, 4)})})
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        x = self.encoder["proj"](self.proj(x))
        return self.out(self.encoder["head"]["proj"](x))


@pytest.mark.parametrize("config", [AuroraConfig, LoraConfig])
@pytest.mark.parametrize(
    ("ranks", "plain"),
    [
        ({"proj": 2, "encoder.proj": 1}, False),
        ({"proj": 3, "encoder.proj": 1, "encoder.head.proj": 2}, True),
        ({"encoder.proj": 3, "out": 1}, True),
    ],
)
def test_a_path_that_ends_another(config, ranks, plain, tmp_path):
    """Exactly these modules, with these ranks, by PEFT's own matching."""
    model = Nested()
    modules = [path for path, _ in model.named_modules() if path]
    of_lora = config is LoraConfig
    fields = rank_fields(ranks, 2.0, "lora_alpha" if of_lora else "alpha", modules)
    assert isinstance(fields["target_modules"], list) == plain
    assert rank_fields(ranks, 2.0, modules=mistakable(ranks, modules)) == rank_fields(ranks, 2.0, modules=modules)
    config(**fields).save_pretrained(tmp_path)
    inner = get_peft_model(model, config.from_pretrained(tmp_path)).get_base_model()
    adapted = {path: module for path, module in inner.named_modules() if hasattr(module, "base_layer")}
    assert {path: module.r["default"] for path, module in adapted.items()} == ranks
    assert {module.scaling["default"] for module in adapted.values()} == {2.0}


@pytest.mark.parametrize("config", [AuroraConfig, LoraConfig])
@pytest.mark.parametrize(
    ("fields", "adapted"),
    [
        ({"exclude_modules": ["query", "dense", "classifier"]}, r"key|value"),
        ({"target_modules": r".*\.0\..*dense"}, r"layer\.0\..*dense"),
        ({"target_modules": "all-linear", "layers_to_transform": [1]}, r"layer\.1\."),
        ({"layers_to_transform": 0, "layers_pattern": "layer"}, r"layer\.0\."),
    ],
)
def test_a_budget_goes_to_the_layers_that_fields_leave(make_bert, labelled, config, fields, adapted):
    base = make_bert()
    measured = probe(base, labelled)
    budget = 700
    chosen = ranked_config(measured, budget, config, **fields)
    model = get_peft_model(base, chosen)
    layers = {path: one for path, one in model.named_modules() if hasattr(one, "base_layer")}
    assert layers
    assert all(re.search(adapted, path) for path in layers)
    weights = sum(one.r["default"] * (one.in_features + one.out_features) for one in layers.values())
    assert budget * 0.8 < weights <= budget


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_modules": r".*\.query", "layers_to_transform": [1]}, "layers_to_transform"),
        ({"target_modules": ["nothing"]}, "None of the probed layers is left"),
    ],
)
def test_what_is_refused(make_bert, labelled, fields, message):
    measured = probe(make_bert(), labelled, target_modules=["query", "classifier"], rank=2)
    with pytest.raises(ValueError, match=message):
        ranked_config(measured, 700, **{"config": LoraConfig, **fields})


@pytest.mark.parametrize(
    "config",
    [
        AuroraConfig(r=3, target_modules=["query", "dense"], rank_pattern={"value": 1}),
        AuroraConfig.paper(target_modules=["query"]),
        LoraConfig(r=3, target_modules=["query", "dense"]),
    ],
)
def test_an_aligned_start_changes_nothing_yet_and_has_the_deviation(make_bert, labelled, config, inputs_of):
    base = make_bert()
    plain = base(**labelled[0]).logits
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    measured = probe(base, labelled)
    model = get_peft_model(base, config)
    before = torch.get_rng_state()
    chosen = align(model, measured)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model(**labelled[0]).logits, plain)
    inner = model.get_base_model()
    for name, value in weights.items():
        path, _, end = name.rpartition(".")
        layer = inner.get_submodule(path)
        assert torch.equal(getattr(getattr(layer, "base_layer", layer), end), value)
    directions = {layer.layer: layer.directions for layer in measured.layers}
    inputs = inputs_of(model, {path: inner.get_submodule(path) for path in chosen}, labelled)
    for path in chosen:
        module = inner.get_submodule(path)
        A = module.aurora_A["default"].weight if hasattr(module, "aurora_A") else module.lora_A["default"].weight
        torch.testing.assert_close(nn.functional.normalize(A), directions[path][: len(A)])
        z = inputs[path] @ A.T
        torch.testing.assert_close(z.std(0, correction=0), torch.full((len(A),), 0.5), atol=1e-3, rtol=1e-3)


def test_what_cannot_be_aligned(make_bert, labelled):
    measured = probe(make_bert(), labelled, rank=2)
    model = get_peft_model(make_bert(), AuroraConfig(r=3, target_modules=["query"]))
    with pytest.raises(CalibrationError, match=r"query has r=3, and was probed for 2 directions: use rank=3"):
        align(model, measured)
    with pytest.raises(CalibrationError, match="No layer with the adapter 'other' was probed"):
        align(model, measured, adapter_name="other")
    trained = get_peft_model(make_bert(), AuroraConfig(r=2, target_modules=["query"], init_weights=False))
    with pytest.raises(CalibrationError, match="B is not 0"):
        align(trained, measured)
    with pytest.raises(ValueError, match="deviation=0 is not allowed: it must be a finite number above 0"):
        align(model, measured, deviation=0)
