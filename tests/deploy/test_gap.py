"""`merge_gap` against the same figures computed by hand."""

import math

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    CLIPConfig,
    CLIPModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    T5Config,
    T5ForConditionalGeneration,
)

import aurora_lora
from aurora_lora import AuroraConfig, CalibrationError, FormError, merge_gap, set_form
from aurora_lora.deploy import inputs, predictions
from aurora_lora.deploy.gap import LayerGap, MergeGap
from aurora_lora.deploy.merges import LayerLoss, MergeLoss
from aurora_lora.deploy.predictions import EndToEndGap
from aurora_lora.deploy.report import as_text
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


def test_an_adapter_trained_static_beside(make_bert, config, batches):
    """It is the same in all forms of the other, and has no forms to compare."""
    model = get_peft_model(make_bert(), config(task_type=None, init_weights=False))
    model.add_adapter("static", config(task_type=None, train_form="static", init_weights=False))
    model.base_model.set_adapter(["default", "static"])
    aurora_lora.calibrate(model, batches, adapter_name="default")
    forms = ["dynamic", "static", "calibrated"]
    gap = merge_gap(model, batches)
    assert {layer.adapter for layer in gap.layers} == {"default"}
    assert [entry.form for entry in gap.end_to_end] == forms
    logits = {}
    for form in forms:
        with torch.no_grad(), set_form(model, form, adapter_name="default"):
            logits[form] = torch.cat([model.eval()(**batch).logits for batch in batches]).double()
    for entry in gap.end_to_end:
        off = float((logits[entry.form] - logits["dynamic"]).abs().max())
        assert entry.largest_logit_difference == pytest.approx(off, abs=1e-6)
    assert merge_gap(model, batches, merges=True).end_to_end == gap.end_to_end


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


@pytest.mark.parametrize(
    ("mine", "expected"),
    [(-math.inf, (math.inf, math.inf)), (math.nan, (math.nan, math.nan)), (1.0, (0, 0))],
)
def test_a_class_that_the_form_alone_masks_or_breaks(mine, expected):
    found = predictions._Sums()
    reference = torch.tensor([[1.0, 2.0, -math.inf]])
    logits = torch.tensor([[mine, 2.0, -math.inf]])
    found.compare(logits, reference, "classes")
    entry = found.result("static")
    assert (entry.kl, entry.largest_logit_difference) == pytest.approx(expected, nan_ok=True)


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


@pytest.mark.parametrize("way", ["method", "forward"])
def test_a_compiled_model_is_measured_as_any_other(way):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
    fields = {"target_modules": ["0", "2"], "init_weights": False, "eval_form": "dynamic"}
    model = get_peft_model(net, AuroraConfig(**fields)).eval()
    x = torch.randn(40, 6)
    expected = merge_gap(model, [x])
    if way == "method":
        model.compile(backend="eager")
    else:
        net.forward = torch.compile(net.forward, backend="eager")
    with torch.no_grad():
        model(x)
    found = [entry.relative_error for entry in merge_gap(model, [x]).layers]
    assert found == [entry.relative_error for entry in expected.layers]
    assert all(layer.vectors == 40 for layer in aurora_lora.calibrate(model, [x]).layers)


@pytest.mark.parametrize("linear", [False, True])
def test_the_variance_of_what_does_not_vary_is_not_explained(linear):
    """A form that is exact loses nothing all the same."""
    torch.manual_seed(0)
    sigma = {"fixed_activation": None, "spline": None, "skip": True} if linear else {}
    model = get_peft_model(
        nn.Sequential(nn.Linear(6, 4)), AuroraConfig(target_modules=["0"], init_weights=False, **sigma)
    )
    gap = merge_gap(model, [torch.randn(1, 6).expand(7, 6)] * 3)
    for entry in gap.layers:
        assert (entry.relative_error < 1e-6) == linear
        assert entry.explained_variance == 1 if linear else math.isnan(entry.explained_variance)
    shown = str(gap)
    assert ("100.0%" in shown, "not finite" in shown, "nan" in shown) == (linear, False, False)


def test_pieces_add_up_to_the_same(model, labelled, monkeypatch):
    whole = merge_gap(model, labelled)
    monkeypatch.setattr(inputs, "CHUNK_BYTES", 3 * 8 * 32)
    pieces = merge_gap(model, labelled)
    for one, other in zip(whole.layers, pieces.layers, strict=True):
        assert one.relative_error == pytest.approx(other.relative_error, rel=1e-9)
    for one, other in zip(whole.end_to_end, pieces.end_to_end, strict=True):
        assert one.kl == pytest.approx(other.kl, rel=1e-9)
        assert one.largest_logit_difference == other.largest_logit_difference
        assert one.agreement == other.agreement
        assert one.metric == pytest.approx(other.metric, rel=1e-9)


def test_a_broken_form_does_not_look_perfect(model, batches, labelled):
    layer = next(layer for _, layer in aurora_layers(model))
    layer.aurora_A_cal["default"].weight[0, 0] = float("nan")
    gap = merge_gap(model, batches)
    end = gap.end_to_end[2]
    assert all(map(math.isnan, (end.largest_logit_difference, end.kl, end.agreement)))
    (broken,) = [entry for entry in gap.layers if math.isnan(entry.relative_error)]
    assert (broken.form, math.isnan(broken.explained_variance)) == ("calibrated", True)
    assert gap.worst("calibrated", n=1) == (broken,)
    scored = merge_gap(model, labelled)
    assert all(map(math.isnan, scored.end_to_end[2].metric.values()))
    assert "nan" not in str(scored).casefold()
    assert str(scored).count("not finite") == 2 + 5  # the layer's two, and the form's five


def test_a_broken_adapter_has_no_gap(model, batches):
    layer = list(aurora_layers(model))[-1][1]
    with torch.no_grad():
        layer.aurora_H["default"].weight[0, 0] = math.nan
    with pytest.raises(CalibrationError, match=r"gives no finite numbers"):
        merge_gap(model, batches)


def test_tables_of_all_linear_layers_in_80_columns():
    """Nothing is cut, and no name is broken: three forms, five merges, as many metrics as a run has."""
    kinds = ["attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"]
    shown = [*(f"{n}.{kind}" for n in (0, 11) for kind in kinds), "bert.pooler.dense"]
    paths = [*(f"bert.encoder.layer.{name}" for name in shown[:-1]), shown[-1]]
    metric = {"accuracy": 0.9167, "nll": 0.6798, "macro_f1": 0.8737}
    forms = tuple(EndToEndGap(form, 0.0, 0.001, 1.0, metric) for form in ("dynamic", "static", "calibrated"))
    names = ["float32", "bfloat16", *(f"{q} {how}" for q in ("nf4", "int8") for how in ("nearest", "by inputs"))]
    merges = tuple(
        MergeLoss(name, tuple(LayerLoss(path, 67.8650) for path in paths), EndToEndGap(name, 0.0, 0.001, 1.0, metric))
        for name in names
    )
    layers = tuple(LayerGap(path, "default", form.form, 0.306, -15.663) for path in paths for form in forms[1:])
    end, by_layer, by_merge = (as_text([table]) for table in MergeGap(layers, forms, 12, merges).tables())
    assert max(len(line) for text in (end, by_layer, by_merge) for line in text.splitlines()) <= 80
    assert "…" not in end + by_layer + by_merge
    assert [line[:15].strip() for line in end.splitlines()[-9:]] == ["dynamic", "static", "calibrated", *names]
    assert "layers of bert.encoder.layer: " in by_layer
    for text in (by_layer, by_merge):
        rows = [line.split() for line in text.splitlines() if "%" in line]
        assert [row[0] for row in rows] == shown


def adapted_net(net, **fields):
    torch.manual_seed(1)
    return get_peft_model(net.eval(), AuroraConfig(init_weights=False, **fields)).eval()


@pytest.mark.parametrize("left_out", [255, -100])
def test_pixels_of_the_labels_resolution_are_scored(left_out):
    """But those that the model's own loss leaves out."""
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [8, 8, 8, 8], "depths": [1] * 4, "decoder_hidden_size": 8}
    net = SegformerForSemanticSegmentation(SegformerConfig(num_labels=3, num_attention_heads=[1] * 4, **sizes))
    segformer = adapted_net(net, target_modules=r".*attention.*(query|q_proj)")
    segformer.config.semantic_loss_ignore_index = left_out
    labels = torch.randint(3, (2, 16, 16))
    labels[0, :5] = left_out
    batch = {"pixel_values": torch.randn(2, 3, 64, 64), "labels": labels}
    gap = merge_gap(segformer, [batch])
    for entry in gap.end_to_end:
        with torch.no_grad(), set_form(segformer, entry.form):
            output = segformer(**batch)
        right = (output.logits.argmax(1) == labels)[labels != left_out].double().mean()
        assert entry.metric == pytest.approx({"nll": float(output.loss), "accuracy": float(right)}, abs=1e-6)


def test_images_beside_texts_predict_which_text():
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    texts = {**size, "vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 2}
    images = {**size, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    base = CLIPModel(CLIPConfig(text_config=texts, vision_config=images, projection_dim=8))
    model = get_peft_model(base, AuroraConfig(target_modules=["q_proj", "v_proj"], init_weights=False))
    ids = torch.randint(3, 20, (5, 8))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(5, 3, 8, 8)}
    gap = merge_gap(model, [batch])
    static = next(entry for entry in gap.end_to_end if entry.form == "static")
    with set_form(model, "dynamic"), torch.no_grad():
        first = model.eval()(**batch).logits_per_image
    with set_form(model, "static"), torch.no_grad():
        second = model(**batch).logits_per_image
    assert static.largest_logit_difference == pytest.approx(float((first - second).abs().max()), rel=1e-4)
    assert static.kl is not None


def test_an_answers_two_ends_are_predictions():
    names = ("start_logits", "end_logits")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    base = BertForQuestionAnswering(BertConfig(vocab_size=20, initializer_range=0.5, **sizes))
    model = adapted_net(base, target_modules=["query", "value"], alpha=64)
    batch = {"input_ids": torch.randint(1, 20, (16, 6))}
    gap = merge_gap(model, [batch])
    assert gap.predictions == 32
    found = {}
    for form in ("dynamic", "static"):
        with set_form(model, form), torch.no_grad():
            output = model.eval()(**batch)
        found[form] = torch.cat([output[name] for name in names])
    first, second = found["dynamic"], found["static"]
    static = next(entry for entry in gap.end_to_end if entry.form == "static")
    assert static.kl > 0
    assert static.largest_logit_difference == pytest.approx(float((first - second).abs().max()), rel=1e-4)
    assert static.agreement == float((first.argmax(-1) == second.argmax(-1)).double().mean()) < 1


def test_examples_without_a_class_are_not_scored(model, labelled):
    """-100, which the loss of classifiers leaves out."""
    for batch in labelled:
        batch["labels"] = batch["labels"].clone()
        batch["labels"][::2] = -100
    gap = merge_gap(model, labelled)
    kept = [{name: value[1::2] for name, value in batch.items()} for batch in labelled]
    alone = merge_gap(model, kept)
    assert gap.predictions == sum(len(batch["labels"]) for batch in labelled) > alone.predictions
    for entry, other in zip(gap.end_to_end, alone.end_to_end, strict=True):
        assert entry.metric == pytest.approx(other.metric, abs=1e-6)


def test_rows_of_embeddings_that_are_trained_are_no_layers_to_round(make_gpt2, batches):
    config = LoraConfig(target_modules=["c_attn"], trainable_token_indices=[3], init_lora_weights=False)
    gap = merge_gap(get_peft_model(make_gpt2(), config), batches)
    assert {layer.layer.rsplit(".", 1)[-1] for merge in gap.merges for layer in merge.layers} == {"c_attn"}


def test_which_merges_are_measured(model, make_bert, batches):
    """By the method; what would not be used is refused."""
    assert merge_gap(model, batches).merges == merge_gap(model, batches, merges=False).merges == ()
    assert [merge.merge for merge in merge_gap(model, batches, merges=True).merges] == ["float32", "bfloat16"]
    lora = get_peft_model(make_bert(), LoraConfig(target_modules=["query"], init_lora_weights=False))
    assert [merge.merge for merge in merge_gap(lora, batches).merges] == ["float32", "bfloat16"]
    for other, merges in ((model, None), (model, True), (lora, None)):
        with pytest.raises(ValueError, match="rounding_batches are not used"):
            merge_gap(other, batches, merges=merges, rounding_batches=batches)


def test_little_memory_gives_the_same_merges(model, batches):
    """Layers in groups, and one merge after the other."""
    pytest.importorskip("bitsandbytes")
    expected = merge_gap(model, batches, quantizations="nf4")
    found = merge_gap(model, iter(batches), quantizations="nf4", max_memory=1)
    for one, other in zip(found.merges, expected.merges, strict=True):
        assert one.end_to_end.kl == pytest.approx(other.end_to_end.kl, rel=1e-6, abs=1e-12)
        losses = [{loss.layer: loss.relative_error for loss in merge.layers} for merge in (one, other)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-7)


def test_a_metric_of_ones_own(model, labelled):
    gap = merge_gap(model, labelled, metric=lambda logits, labels: {"positives": float((logits.argmax(-1) == 1).sum())})
    assert all(set(entry.metric) == {"positives"} for entry in gap.end_to_end)
    with pytest.raises(TypeError, match=r"metric='f1' is not allowed: it must be a function of"):
        merge_gap(model, iter(()), metric="f1")  # noticed before any pass
    with pytest.raises(TypeError, match="metric must return numbers by their names"):
        merge_gap(model, labelled, metric=lambda *_: 0.5)


def test_adalora_that_was_loaded_for_inference(make_bert, labelled, tmp_path):
    """With labels, PEFT's own forward pass fails then."""
    config = AdaLoraConfig(total_step=10, init_lora_weights=False, target_modules=["query"], task_type="SEQ_CLS")
    get_peft_model(make_bert(), config).save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(make_bert(), tmp_path)
    with pytest.raises(AttributeError, match="trainable_adapter_name"):
        model(**labelled[0])
    assert all(set(merge.end_to_end.metric) == {"nll", "accuracy"} for merge in merge_gap(model, labelled).merges)
