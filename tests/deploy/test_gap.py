"""`merge_gap` against the same figures computed by hand."""

import math

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from torch import nn
from transformers import (
    T5Config,
    T5ForConditionalGeneration,
)

import aurora_lora
from aurora_lora import AuroraConfig, CalibrationError, FormError, merge_gap, set_form
from aurora_lora.tuner import aurora_layers


@pytest.fixture
def model(make_bert, config, batches, train_step):
    made = get_peft_model(make_bert(), config())
    train_step(made, n=8)
    aurora_lora.calibrate(made, batches)
    return made


def test_end_to_end_figures(model, labelled):
    gap = merge_gap(model, labelled)
    assert [entry.form for entry in gap.end_to_end] == ["dynamic", "static", "calibrated"]
    logits = {}
    for form in ("dynamic", "static", "calibrated"):
        with torch.no_grad(), set_form(model, form):
            logits[form] = torch.cat([model.eval()(**batch).logits for batch in labelled]).double()
    labels = torch.cat([batch["labels"] for batch in labelled])
    assert gap.predictions == len(labels)
    for entry in gap.end_to_end:
        mine, trained = logits[entry.form], logits["dynamic"]
        kl = nn.functional.kl_div(mine.log_softmax(-1), trained.log_softmax(-1), log_target=True, reduction="sum")
        assert entry.kl == pytest.approx(float(kl) / len(labels), abs=1e-7)
        assert entry.largest_logit_difference == pytest.approx(float((mine - trained).abs().max()), abs=1e-6)
        assert entry.agreement == pytest.approx(float((mine.argmax(-1) == trained.argmax(-1)).double().mean()))
        assert entry.metric["nll"] == pytest.approx(float(nn.functional.cross_entropy(mine, labels)), abs=1e-6)
        assert entry.metric["accuracy"] == pytest.approx(float((mine.argmax(-1) == labels).double().mean()))
    trained, static, calibrated = gap.end_to_end
    assert (trained.kl, trained.largest_logit_difference, trained.agreement) == (0, 0, 1)
    assert calibrated.kl < static.kl


def test_layer_figures(model, batches, inputs_of):
    gap = merge_gap(model, batches)
    layers = dict(aurora_layers(model.get_base_model()))
    with set_form(model.eval(), "dynamic"):
        inputs = inputs_of(model, layers, batches)
    entries = {(entry.layer, entry.form): entry for entry in gap.layers}
    assert len(entries) == 2 * 6
    for name, layer in layers.items():
        x = inputs[name]
        B = layer.aurora_B["default"].weight.detach().double()
        trained = layer.sigma("default", x @ layer.aurora_A["default"].weight.T).detach().double() @ B.T
        for form in ("static", "calibrated"):
            M = layer.get_factors("default", form)[0].double()
            error = trained - x.double() @ M.T @ B.T
            entry = entries[name, form]
            assert entry.relative_error == pytest.approx(float(error.norm() / trained.norm()), rel=1e-5)
            variance = (trained - trained.mean(0)).square().sum()
            assert entry.explained_variance == pytest.approx(1 - float(error.square().sum() / variance), rel=1e-4)


def test_without_calibration_or_labels(make_bert, config, batches):
    gap = merge_gap(get_peft_model(make_bert(), config()), batches)
    assert [entry.form for entry in gap.end_to_end] == ["dynamic", "static"]
    assert all(entry.metric == {} for entry in gap.end_to_end)
    assert {entry.form for entry in gap.layers} == {"static"}


def test_causal_language_model_is_scored_on_the_next_token(make_gpt2):
    gpt2 = make_gpt2()
    model = get_peft_model(
        gpt2,
        AuroraConfig(target_modules=["c_attn"], init_weights=False, fan_in_fan_out=True, task_type="CAUSAL_LM"),
    )
    ids = torch.randint(0, 100, (4, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[:2, 6:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    gap = merge_gap(model, [batch])
    assert gap.predictions == int(mask.sum())
    with torch.no_grad(), set_form(model, "dynamic"):
        loss = model.eval()(**batch).loss
    assert gap.end_to_end[0].metric["nll"] == pytest.approx(float(loss), abs=1e-5)


@pytest.fixture
def t5():
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    net = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, dropout_rate=0.0))
    return get_peft_model(net, AuroraConfig(target_modules=["q"], init_weights=False, task_type="SEQ_2_SEQ_LM"))


@pytest.mark.seq2seq
def test_the_decoders_padding_is_no_prediction(t5):
    """Nor is the encoder's mask that of the decoder, where both have as many tokens."""
    ids, labels = torch.randint(1, 50, (2, 4, 6))
    mask = torch.ones_like(ids)
    mask[:, 5:] = 0
    labels[:2, 3:] = -100
    gap = merge_gap(t5, [{"input_ids": ids, "attention_mask": mask, "labels": labels}])
    assert gap.predictions == int((labels != -100).sum())


@pytest.mark.seq2seq
def test_an_encoder_decoder_model_is_scored_on_the_token_at_its_position(t5):
    batch = {"input_ids": torch.randint(1, 50, (4, 7)), "labels": torch.randint(1, 50, (4, 5))}
    gap = merge_gap(t5, [batch])
    with torch.no_grad(), set_form(t5, "dynamic"):
        loss = t5.eval()(**batch).loss
    assert gap.end_to_end[0].metric["nll"] == pytest.approx(float(loss), abs=1e-5)


def test_regression_has_no_distribution():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 1))
    model = get_peft_model(net, AuroraConfig(target_modules=["0"], init_weights=False))
    gap = merge_gap(model, [torch.randn(5, 6)])
    assert (gap.end_to_end[1].kl, gap.end_to_end[1].agreement) == (None, None)
    assert gap.end_to_end[1].largest_logit_difference > 0


def test_several_labels_have_no_single_class(model, batches):
    model.config.problem_type = "multi_label_classification"
    given = [{**batch, "labels": (batch["input_ids"][:, :2] % 2).float()} for batch in batches]
    gap = merge_gap(model, given)
    with torch.no_grad(), set_form(model, "static"):
        logits = torch.cat([model.eval()(**batch).logits for batch in batches]).double()
    labels = torch.cat([batch["labels"] for batch in given]).double()
    static = gap.end_to_end[1]
    assert (static.kl, static.agreement) == (None, None)
    expected = nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert static.metric == {"nll": pytest.approx(float(expected), abs=1e-6)}


def test_what_is_refused(make_bert, config, batches):
    with pytest.raises(FormError, match="static"):
        merge_gap(get_peft_model(make_bert(), config(train_form="static")), batches)
    inactive = get_peft_model(make_bert(), config(task_type=None))
    inactive.base_model.set_adapter([])
    prompts = get_peft_model(make_bert(), PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2))
    for other in (make_bert(), inactive, prompts):
        for merges in (None, True):
            with pytest.raises(ValueError, match="no active adapter that changes a weight"):
                merge_gap(other, batches, merges=merges)
    with pytest.raises(CalibrationError, match="at least one batch"):
        merge_gap(get_peft_model(make_bert(), config()), [])


def test_a_broken_form_does_not_look_perfect(model, batches, labelled):
    layer = next(layer for _, layer in aurora_layers(model))
    layer.aurora_A_cal["default"].weight[0, 0] = float("nan")
    gap = merge_gap(model, batches)
    end = gap.end_to_end[2]
    assert all(map(math.isnan, (end.largest_logit_difference, end.kl, end.agreement)))
    (broken,) = [entry for entry in gap.layers if math.isnan(entry.relative_error)]
    assert (broken.form, math.isnan(broken.explained_variance)) == ("calibrated", True)
    scored = merge_gap(model, labelled)
    assert all(map(math.isnan, scored.end_to_end[2].metric.values()))
    assert "nan" not in str(scored).casefold()
    assert str(scored).count("not finite") == 2 + 5  # the layer's two, and the form's five


def test_a_metric_of_ones_own(model, labelled):
    gap = merge_gap(model, labelled, metric=lambda logits, labels: {"positives": float((logits.argmax(-1) == 1).sum())})
    assert all(set(entry.metric) == {"positives"} for entry in gap.end_to_end)
