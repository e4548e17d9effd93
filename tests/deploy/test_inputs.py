"""Which vectors of a layer's input count, and where the mask that says so is."""

import gc
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from aurora_lora.deploy.wrappers import without_parallel
from peft import get_peft_model, inject_adapter_in_model
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartForSequenceClassification,
    BertConfig,
    BertForMultipleChoice,
    BioGptConfig,
    BioGptForSequenceClassification,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    FSMTConfig,
    FSMTModel,
    LongformerConfig,
    LongformerForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    XLNetConfig,
    XLNetModel,
)

from aurora_lora import AuroraConfig, CalibrationError, align, calibrate, lora_factors, merge_gap, probe
from aurora_lora.deploy.inputs import Runner, watched_inputs
from aurora_lora.deploy.predictions import _positions
from aurora_lora.tuner import aurora_layers


class MaskElsewhere:
    """A mask on another device: it can be used only after it was moved."""

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask, self.shape, self.moved_to = mask, mask.shape, []

    def dim(self) -> int:
        return self.mask.dim()

    def to(self, device: torch.device) -> torch.Tensor:
        self.moved_to.append(device)
        return self.mask


@pytest.mark.parametrize("flat", [False, True])
def test_the_mask_follows_the_input_of_each_layer(flat: bool) -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(3, 2)), AuroraConfig(target_modules=["0"]))
    _, layer = next(aurora_layers(model))
    x = torch.arange(18.0).view(2, 3, 3)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    runner = Runner(model, "calibrate")
    elsewhere = MaskElsewhere(mask)
    runner.masks = {"attention_mask": elsewhere}  # type: ignore[dict-item]
    found = runner.vectors(layer, x.flatten(0, 1) if flat else x)
    assert torch.equal(found, x[mask])
    assert elsewhere.moved_to == [x.device]
    assert _positions(runner, x) is mask
    assert elsewhere.moved_to == [x.device, x.device]


def test_the_masks_of_an_encoder_decoder_inside_ddp() -> None:
    """The wrapper has neither the config nor the encoder of the model."""

    def counts(wrap: Any) -> list[int]:
        torch.manual_seed(0)
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
        base = T5ForConditionalGeneration(T5Config(vocab_size=40, decoder_start_token_id=0, pad_token_id=0, **sizes))
        model = get_peft_model(base, AuroraConfig(target_modules=["q"], init_weights=False))
        return [layer.vectors for layer in calibrate(wrap(model), [batch]).layers]

    ids, mask, labels = torch.randint(2, 40, (8, 10)), torch.ones(8, 10).long(), torch.randint(2, 40, (8, 10))
    mask[4:, 5:], labels[:4, 3:] = 0, -100
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    assert counts(lambda model: model) == [60, 52, 52]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert counts(DistributedDataParallel) == [60, 52, 52]
    finally:
        gc.collect()
        dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_encoder_decoder_leaves_the_padding_of_both_sides_out(kind):
    """Of one length, so that shapes cannot tell the two masks apart."""
    torch.manual_seed(0)
    if kind == "t5":
        base = T5ForConditionalGeneration(
            T5Config(vocab_size=50, d_model=16, d_ff=20, d_kv=4, num_layers=2, num_heads=4, decoder_start_token_id=0)
        )
        names = {
            "encoder": "encoder.block.1.layer.0.SelfAttention.q",
            "decoder": "decoder.block.1.layer.0.SelfAttention.q",
        }
        names |= {
            "cross_k": "decoder.block.1.layer.1.EncDecAttention.k",
            "cross_q": "decoder.block.1.layer.1.EncDecAttention.q",
        }
        targets = ["q", "k"]
    else:
        sizes = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
        base = BartForConditionalGeneration(
            BartConfig(vocab_size=50, d_model=16, encoder_ffn_dim=8, decoder_ffn_dim=8, **sizes)
        )
        names = {"encoder": "encoder.layers.1.self_attn.q_proj", "decoder": "decoder.layers.1.self_attn.q_proj"}
        names |= {"cross_k": "decoder.layers.1.encoder_attn.k_proj", "cross_q": "decoder.layers.1.encoder_attn.q_proj"}
        targets = ["q_proj", "k_proj"]
    model = get_peft_model(base, AuroraConfig(target_modules=targets, init_weights=False, task_type="SEQ_2_SEQ_LM"))
    ids = torch.randint(3, 50, (4, 9))
    mask = torch.ones_like(ids)
    mask[:2, 5:] = 0  # 28 real tokens
    labels = torch.randint(3, 50, (4, 9))
    labels[1:, 3:] = -100  # 18 real tokens
    report = calibrate(model, [{"input_ids": ids, "attention_mask": mask, "labels": labels}])
    vectors = {entry.layer: entry.vectors for entry in report.layers}
    found = {part: next(n for name, n in vectors.items() if name.endswith(end)) for part, end in names.items()}
    assert found == {"encoder": 28, "decoder": 18, "cross_k": 28, "cross_q": 18}


def test_what_an_encoders_output_is_projected_to_has_its_mask() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    wide, narrow = (BertConfig(hidden_size=width, **sizes) for width in (16, 8))
    config = EncoderDecoderConfig.from_encoder_decoder_configs(wide, narrow)
    config.decoder_start_token_id = config.pad_token_id = 0
    names = ["enc_to_dec_proj", "crossattention.self.key", "crossattention.self.query"]
    model = get_peft_model(EncoderDecoderModel(config), AuroraConfig(target_modules=names, init_weights=False))
    ids, mask, labels = torch.randint(3, 30, (4, 9)), torch.ones(4, 9).long(), torch.randint(3, 30, (4, 9))
    mask[:2, 5:], labels[1:, 3:] = 0, -100
    report = calibrate(model, [{"input_ids": ids, "attention_mask": mask, "labels": labels}])
    found = {layer.layer.rpartition(".")[2]: layer.vectors for layer in report.layers}
    assert found == {"key": 28, "enc_to_dec_proj": 28, "query": 18}


def recorded(model: nn.Module, layers: dict[str, Any], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a runner takes for the vectors of each layer."""
    seen: dict[str, Tensor] = {}
    with Runner(model, "calibrate") as runner, torch.no_grad():
        for name, layer in layers.items():
            hook = lambda module, args, name=name: seen.update({name: runner.vectors(module, args[0])})  # noqa: E731
            layer.register_forward_pre_hook(hook)
        runner.run(batch)
    return seen


@pytest.mark.parametrize("texts", [5, 4])
def test_models_that_put_tokens_first(texts: int) -> None:
    """Also of as many tokens as texts, so that shapes cannot tell the two."""
    torch.manual_seed(0)
    ids, mask = torch.randint(3, 30, (texts, 5)), torch.ones(texts, 5).long()
    mask[1:, 2:] = 0
    xlnet = XLNetModel(XLNetConfig(vocab_size=30, d_model=16, n_layer=2, n_head=2, d_inner=24)).eval()
    batch = {"input_ids": ids, "attention_mask": mask}
    seen = recorded(xlnet, {"second": xlnet.layer[1].ff.layer_1}, batch)["second"]
    ends: list[Tensor] = []
    xlnet.layer[1].ff.register_forward_pre_hook(lambda _, args: ends.append(args[0].transpose(0, 1)))
    with torch.no_grad():
        xlnet(**batch)
    assert torch.equal(seen, ends[0][mask.bool()])


@pytest.mark.parametrize("texts", [5, 4])
def test_a_translator_that_puts_tokens_first(texts: int) -> None:
    torch.manual_seed(0)
    ids, mask = torch.randint(3, 30, (texts, 5)), torch.ones(texts, 5).long()
    mask[1:, 2:] = 0
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = FSMTConfig(langs=["en", "de"], src_vocab_size=30, tgt_vocab_size=30, **sizes, **heads)
    model = FSMTModel(config).eval()
    encoder, decoder = model.encoder.layers[0], model.decoder.layers[0]
    layers = {"encoder": encoder.fc2, "cross": decoder.encoder_attn.k_proj, "query": decoder.encoder_attn.q_proj}
    of_decoder = torch.ones(texts, 5).long()
    of_decoder[:2, 3:] = 0
    given = {"decoder_input_ids": ids.flip(0), "decoder_attention_mask": of_decoder}
    seen = recorded(model, layers, {"input_ids": ids, "attention_mask": mask, **given})
    with torch.no_grad():
        hidden = model.encoder(ids, attention_mask=mask).last_hidden_state
    assert torch.equal(seen["cross"], hidden[mask.bool()])
    assert {name: len(one) for name, one in seen.items()} == {
        "encoder": int(mask.sum()),
        "cross": int(mask.sum()),
        "query": int(of_decoder.sum()),
    }


def test_masks_of_flattened_inputs():
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), AuroraConfig(target_modules=["0"])).base_model.model[0]
    runner = Runner(model, "calibrate")
    runner.masks = {"attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()}
    x = torch.arange(24.0).reshape(2, 3, 4)
    expected = x[[0, 0, 1], [0, 1, 0]]
    assert torch.equal(runner.vectors(model, x), expected)
    assert torch.equal(runner.vectors(model, x.reshape(6, 4)), expected)
    assert runner.vectors(model, torch.zeros(2, 5, 4)).shape == (10, 4)


@pytest.mark.parametrize("classes", [(), (2,)], ids=["one label", "a label for each class"])
def test_the_decoder_of_a_classifier_has_the_tokens_of_the_encoder(classes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    net = BartForSequenceClassification(BartConfig(vocab_size=20, num_labels=2, **sizes, **heads))
    model = get_peft_model(net, AuroraConfig(target_modules=["fc1"], init_weights=False))
    ids = torch.tensor([[0, 5, 6, 7, 2], [0, 5, 2, 1, 1]])
    mask = (ids != 1).long()
    labels = torch.ones(2, *classes, dtype=torch.float if classes else torch.long)
    for given in ({}, {"labels": labels}):
        report = calibrate(model, [{"input_ids": ids, "attention_mask": mask, **given}])
        assert [layer.vectors for layer in report.layers] == [8, 8]
    report = calibrate(model, [{"input_ids": ids, "attention_mask": mask, "decoder_input_ids": ids}])
    assert [layer.vectors for layer in report.layers] == [8, 10]


def test_the_padding_of_several_texts_an_example_is_left_out() -> None:
    """A model for multiple choice is given (batch, choices, tokens), and makes one batch of all of them."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    net = BertForMultipleChoice(BertConfig(vocab_size=20, **sizes))
    model = get_peft_model(net, AuroraConfig(target_modules=["query"], init_weights=False))
    mask = torch.ones(2, 3, 5, dtype=torch.long)
    mask[0, 1, 3:] = mask[1, 2, 1:] = 0
    batch = {"input_ids": torch.randint(1, 20, (2, 3, 5)), "attention_mask": mask}
    assert calibrate(model, [batch]).layers[0].vectors == int(mask.sum())


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


def test_a_named_tuple_is_a_batch() -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), AuroraConfig(target_modules=["0"], init_weights=False))
    assert calibrate(model, [Pair(torch.randn(8, 4), torch.randn(8))]).layers[0].vectors == 8


class Scaled(nn.Linear):
    def forward(self, x: torch.Tensor, scale: Any = None) -> torch.Tensor:
        return super().forward(x)


class OfOneDict(nn.Module):
    """A model that takes its whole batch as one argument, and gives a plain dict."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, features: dict[str, torch.Tensor], scale: float = 1.0) -> dict[str, torch.Tensor]:
        return {"hidden": features["x"], "logits": self.linear(features["x"]) * scale}


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_model_that_takes_a_batch_as_one_argument(wrapped: bool) -> None:
    """As it is, and inside PEFT's wrapper; padding is left out, and what it gives by name is found."""
    torch.manual_seed(0)
    config = AuroraConfig(target_modules=["linear"], init_weights=False)
    model: Any = get_peft_model(OfOneDict(), config) if wrapped else inject_adapter_in_model(config, OfOneDict())
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    batches = [
        {"x": torch.randn(2, 3, 3), "attention_mask": mask, "labels": torch.tensor([[0, 1, -100], [1, -100, -100]])}
    ]
    assert calibrate(model, batches).layers[0].vectors == 3
    gap = merge_gap(model, batches)
    assert gap.predictions == 3
    assert set(gap.end_to_end[0].metric) == {"nll", "accuracy"}
    with pytest.raises(TypeError, match="unexpected keyword argument 'attention_mask'"):  # by name where one is known
        calibrate(model, [{"features": batches[0], "attention_mask": mask}])


def test_the_input_of_a_layer_that_is_called_by_keywords() -> None:
    """It is `x`, wherever it stands."""
    layer, seen, x = Scaled(2, 2), list[torch.Tensor](), torch.zeros(3, 2)
    with watched_inputs([(layer, seen.append)]):
        layer(scale=torch.ones(()), x=x)
    assert seen[0] is x


@pytest.mark.parametrize("with_output_layer", [False, True])
def test_a_language_model_computes_no_logits_that_nobody_reads(make_gpt2, batches, with_output_layer) -> None:
    """Nor a loss; but where its output layer is adapted, that sees every position."""

    def calibrated(given: list[Any]) -> tuple[dict[str, torch.Tensor], list[Any]]:
        targets = ["c_attn", *(["lm_head"] if with_output_layer else [])]
        torch.manual_seed(0)
        model = get_peft_model(make_gpt2(), AuroraConfig(target_modules=targets, init_weights=False))
        shapes: list[Any] = []

        def see(_: nn.Module, args: Any, output: torch.Tensor) -> None:
            shapes.append(output.shape[:-1])

        model.get_base_model().lm_head.register_forward_hook(see)
        model.get_base_model().register_forward_hook(lambda _, args, output: shapes.append(output.loss))
        calibrate(model, given)
        found = {path: layer.calibration["default"].fresh_matrix() for path, layer in aurora_layers(model)}
        return found, shapes

    labelled = [{**batch, "labels": batch["input_ids"]} for batch in batches]
    found, shapes = calibrated(labelled)
    positions = [tuple(batch["input_ids"].shape) if with_output_layer else (8, 1) for batch in batches]
    assert {shape for shape in shapes if isinstance(shape, torch.Size)} == set(positions)
    assert any(isinstance(shape, torch.Tensor) for shape in shapes) == with_output_layer
    given, _ = calibrated([{**batch, "logits_to_keep": 0} for batch in batches])
    for path, matrix in given.items():
        torch.testing.assert_close(found[path], matrix)


def test_layers_that_share_keys_and_values_see_every_position(batches) -> None:
    """Gemma 4 cuts what goes into them where it is told how many logits to keep."""
    gemma = pytest.importorskip("transformers.models.gemma4", reason="Transformers has no Gemma 4")
    sizes = {"vocab_size": 100, "vocab_size_per_layer_input": 100, "hidden_size": 32, "intermediate_size": 40}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 8}
    shared: dict[str, Any] = {"num_hidden_layers": 4, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8}
    shared["layer_types"] = ["sliding_attention", "full_attention"] * 2
    torch.manual_seed(0)
    model = gemma.Gemma4ForCausalLM(gemma.Gemma4TextConfig(**sizes, **heads, **shared)).eval()
    model = get_peft_model(model, AuroraConfig(target_modules=["up_proj"], init_weights=False))
    report = calibrate(model, batches)
    assert {layer.vectors for layer in report.layers} == {sum(int(batch["attention_mask"].sum()) for batch in batches)}


def test_a_classifier_that_reads_logits_of_other_positions(batches) -> None:
    """BioGPT's takes `logits_to_keep`, and then looks for the last token of each text."""
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    made = BioGptConfig(**sizes, intermediate_size=40, max_position_embeddings=32, pad_token_id=0)
    torch.manual_seed(0)
    model = BioGptForSequenceClassification(made).eval()
    model = get_peft_model(model, AuroraConfig(target_modules=["q_proj"], init_weights=False))
    report = calibrate(model, batches)
    assert {layer.vectors for layer in report.layers} == {sum(int(batch["attention_mask"].sum()) for batch in batches)}


def test_only_the_wrapper_that_sends_buffers_is_taken_off() -> None:
    """Also where Accelerate has compiled what was wrapped."""
    inner = nn.Linear(2, 2)
    wrapped = DistributedDataParallel.__new__(DistributedDataParallel)  # without processes
    nn.Module.__init__(wrapped)
    wrapped.module = inner
    assert without_parallel(wrapped) is inner
    assert without_parallel(torch.compile(wrapped)) is inner
    compiled = torch.compile(inner)
    assert without_parallel(compiled) is compiled
    assert without_parallel(nn.DataParallel(inner)) is inner


def test_a_model_in_data_parallel_is_that_within(make_gpt2, batches):
    """Its layers have the same paths, and its output layer is known."""
    labelled = [{**batch, "labels": batch["input_ids"]} for batch in batches]
    plain = probe(make_gpt2(), labelled, rank=2)
    found = probe(nn.DataParallel(make_gpt2()), labelled, rank=2)
    assert [layer.layer for layer in found.layers] == [layer.layer for layer in plain.layers]
    fields = {"target_modules": ["c_attn"], "fan_in_fan_out": True, "task_type": "CAUSAL_LM"}
    model = get_peft_model(make_gpt2(), AuroraConfig(**fields))
    wrapped = nn.DataParallel(model)
    assert align(wrapped, found) == ("transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "aurora_B" in name:
                parameter.normal_()
    assert [layer.layer for layer in calibrate(wrapped, batches).layers] == list(align_names(found))
    assert {layer.layer for layer in merge_gap(wrapped, batches).layers} == set(align_names(found))
    assert set(lora_factors(wrapped)) == set(align_names(found))


def align_names(found):
    return [layer.layer for layer in found.layers if layer.layer.endswith("c_attn")]


def test_inputs_that_are_all_padding(make_bert, batches, config):
    model = get_peft_model(make_bert(), config())
    padding = [{**batch, "attention_mask": torch.zeros_like(batch["attention_mask"])} for batch in batches]
    with pytest.raises(CalibrationError, match="All positions of the inputs of calibrate are padding"):
        calibrate(model, padding)
    with pytest.raises(CalibrationError, match="All positions of the inputs of merge_gap are padding"):
        merge_gap(model, padding)
    assert calibrate(model, [*padding, *batches]).layers[0].vectors == sum(
        int(batch["attention_mask"].sum()) for batch in batches
    )


def test_a_model_without_values():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(6, 4))
    model = get_peft_model(net, AuroraConfig(target_modules=["0"]))
    x = torch.randn(5, 6)
    with pytest.raises(CalibrationError, match="is on the meta device, without values: load the model's weights first"):
        calibrate(model, [x])
    with pytest.raises(CalibrationError, match="is on the meta device"):
        probe(net, [x], loss=lambda model, batch: model(batch).sum())


@pytest.mark.parametrize(("texts", "length"), [(3, 5), (4, 6), (8, 7)])
def test_padding_that_a_model_adds_is_left_out(texts: int, length: int) -> None:
    """Longformer pads to whole windows of its attention, in which the tokens come first."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LongformerConfig(**sizes, intermediate_size=24, attention_window=4, max_position_embeddings=40)
    model = LongformerForSequenceClassification(config).eval()
    ids = torch.randint(3, 50, (texts, length))
    mask = torch.ones_like(ids)
    mask[0, 2:] = 0
    layer = model.longformer.encoder.layer[1]
    seen: dict[str, Tensor] = {}
    with Runner(model, "calibrate") as runner, torch.no_grad():
        parts = {"query": layer.attention.self.query, "dense": layer.intermediate.dense}
        for name, part in parts.items():
            hook = lambda module, args, name=name: seen.update({name: runner.vectors(module, args[0])})  # noqa: E731
            part.register_forward_pre_hook(hook)
        runner.run({"input_ids": ids, "attention_mask": mask})
        hidden = model.longformer(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    assert len(seen["dense"]) == mask.sum()
    torch.testing.assert_close(seen["query"], hidden[1][:, :length][mask.bool()])
