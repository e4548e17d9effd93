"""The models that are compared: what they share, and what of them is trained."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from aurora_lora.errors import UserError
from aurora_lora.lab.bench.measure import Inference, Plan, TrainingStep, count_step, measure
from aurora_lora.lab.bench.variants import VARIANTS, build, choose, share
from aurora_lora.lab.bench.workloads import Case, check_device, linear_case, model_case


@pytest.fixture
def bert(make_bert: Callable[..., Any]) -> Case:
    return model_case(make_bert(), "encoder", ("query", "value"), batch=2, length=6)


@pytest.fixture
def gpt2(make_gpt2: Callable[[], Any]) -> Case:
    return model_case(make_gpt2(), "causal", ("c_attn",), batch=2, length=6)


def addresses(model: torch.nn.Module) -> set[int]:
    return {parameter.data_ptr() for parameter in model.parameters()}


def logits(model: torch.nn.Module, case: Case) -> torch.Tensor:
    with torch.no_grad():
        return case.run(model, case.batch(0)).logits


@pytest.mark.parametrize(
    ("variant", "training"),
    [(v, training) for v in VARIANTS.values() for training in (True, False) if v.trains or not training],
    ids=lambda value: getattr(value, "name", value),
)
def test_frozen_weights_are_shared_and_stay(variant: Any, training: bool, bert: Case) -> None:
    before = {name: value.clone() for name, value in bert.base.state_dict().items()}
    model = build(variant, bert, training=training)
    assert model.training == training
    own = {layer.weight.data_ptr() for layer in bert.adapted_layers()} if variant.merged else set()
    frozen = {p.data_ptr() for p in bert.base.bert.encoder.parameters() if p.ndim == 2}
    assert frozen - own <= addresses(model)
    if training:
        step = TrainingStep(model, bert)
        for number in range(3):
            step(number)
        assert all(p.grad is None for p in model.parameters())
    for name, value in bert.base.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, msg=name)


def test_variants_differ_from_the_base_in_inference(bert: Case) -> None:
    base = logits(build(VARIANTS["frozen"], bert, training=False), bert)
    torch.testing.assert_close(base, logits(bert.base, bert))
    for name in ("lora-r8", "dora-r8", "aurora-dynamic", "aurora-static", "aurora-calibrated", "aurora-merged"):
        assert not torch.allclose(logits(build(VARIANTS[name], bert, training=False), bert), base, atol=1e-6), name


def test_merged_is_the_calibrated_form(bert: Case) -> None:
    found = []
    for name in ("aurora-calibrated", "aurora-merged"):
        torch.manual_seed(0)
        found.append(logits(build(VARIANTS[name], bert, training=False), bert))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_the_frozen_base_goes_back_as_deep_as_adapters(bert: Case) -> None:
    model = build(VARIANTS["frozen"], bert, training=True)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    first = "bert.encoder.layer.0.attention.self"
    assert trained == {f"{first}.query.bias", f"{first}.value.bias", "classifier.weight", "classifier.bias"}
    bert.loss(model, bert.batch(0)).backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name in trained)
    adapted = build(VARIANTS["lora-r8"], bert, training=True)
    heads = {name for name, p in adapted.named_parameters() if p.requires_grad and "classifier" in name}
    assert len(heads) == 2


def test_layers_without_a_bias_get_one() -> None:
    base = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
    case = linear_case(3, 4)
    case = Case({}, base, ["0"], case.batches, case.loss)
    model = build(VARIANTS["frozen"], case, training=True)
    assert base[0].bias is None
    assert model[0].bias.requires_grad
    assert model[0].bias.count_nonzero() == 0


def test_causal_models_have_no_head_to_train(gpt2: Case) -> None:
    assert gpt2.layers == 2
    assert gpt2.heads == ()
    step = TrainingStep(build(VARIANTS["aurora-dynamic"], gpt2, training=True), gpt2)
    step()
    trained = [name for name, p in step.model.named_parameters() if p.requires_grad]
    assert trained
    assert all("aurora_" in name for name in trained)


def test_share_shares_ties_too(make_gpt2: Callable[[], Any]) -> None:
    base = make_gpt2()
    copy = share(base)
    assert copy.lm_head.weight is base.lm_head.weight is base.transformer.wte.weight
    assert copy.transformer is not base.transformer


def test_choose() -> None:
    assert [v.name for v in choose(["aurora-static"])] == ["frozen", "lora-r8", "aurora-static"]
    with pytest.raises(UserError, match="unknown variant; did you mean 'aurora-dynamic'"):
        choose(["aurora-dynamc"])


@pytest.mark.parametrize(
    ("device", "message"),
    [("tpu", "must be cpu, cuda or cuda:N"), ("cuda", "no GPU that PyTorch can use"), ("cpux", "must be cpu")],
)
def test_devices(device: str, message: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(UserError, match=message):
        check_device(device)


def test_measure_a_model(bert: Case) -> None:
    rounds = []
    plan = Plan(choose(["aurora-dynamic", "aurora-calibrated", "aurora-merged"]), 2)
    found = {entry["variant"]: entry for entry in measure(bert, plan, lambda: rounds.append(1))}
    assert len(rounds) == 2 * 2
    assert "training" not in found["aurora-merged"]
    assert found["aurora-merged"]["inference"]["same_calls_as_base"]
    assert not found["aurora-calibrated"]["inference"]["same_calls_as_base"]
    assert found["lora-r8"]["training"]["ratio"] == {"median": 1, "low": 1, "high": 1}
    assert found["lora-r8"]["inference"]["per_layer"]["forward"] == 4  # two products, the scale, the sum
    dynamic = found["aurora-dynamic"]["training"]
    assert dynamic["seconds"] > 0
    assert dynamic["ratio"]["low"] <= dynamic["ratio"]["median"] <= dynamic["ratio"]["high"]
    assert 0 < dynamic["saved_bytes_but_weights"] < dynamic["saved_bytes"]


def test_compiled_variants_have_eager_ones_beside_them() -> None:
    entries = [(v.name, compiled) for v, compiled in Plan(choose(VARIANTS), 2, compiled=True).entries()]
    assert [name for name, compiled in entries if not compiled] == ["frozen", "lora-r8", "aurora-dynamic"]
    assert [name for name, compiled in entries if compiled] == list(VARIANTS)


@pytest.mark.slow
def test_the_calls_of_compiled_code() -> None:
    import torch._inductor.config as inductor

    case, variant = linear_case(32, 16), VARIANTS["aurora-dynamic"]
    calls = {}
    with inductor.patch({"cpp.enable_kernel_profile": True}):
        for compiled in (False, True):
            step = TrainingStep(build(variant, case, training=True), case, compiled)
            step()
            calls[compiled] = count_step(step)["calls"]
    assert 0 < calls[True]["forward"] < calls[True]["both"] < calls[False]["both"]


def test_inference_keeps_no_graph(bert: Case) -> None:
    run = Inference(build(VARIANTS["lora-r8"], bert, training=False), bert)
    run(0)
    assert all(p.grad is None for p in run.model.parameters())


@pytest.mark.slow
def test_compiled_code_keeps_no_more_than_eager_code() -> None:
    case, kept = linear_case(32, 16), []
    for compiled in (False, True):
        step = TrainingStep(build(VARIANTS["lora-r8"], case, training=True), case, compiled)
        step()
        kept.append(count_step(step)["saved_bytes"])
    assert kept[0] == kept[1]
