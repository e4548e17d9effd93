"""Weights that more than two modules share, and a merge into one of them."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    T5Config,
    T5ForConditionalGeneration,
)

from aurora_lora import AuroraConfig, export_lora
from aurora_lora.errors import MergeError
from aurora_lora.tuner.ties import untie_all

pytestmark = [
    pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied"),
]

SIZES = {"vocab_size": 20, "d_model": 16, "max_position_embeddings": 8, "pad_token_id": 0, "decoder_start_token_id": 0}
for part in ("encoder", "decoder"):
    SIZES |= {f"{part}_layers": 1, f"{part}_attention_heads": 2, f"{part}_ffn_dim": 24}
T5 = {"vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
MODELS = {
    "bart": lambda: BartForConditionalGeneration(BartConfig(**SIZES)),
    "marian": lambda: MarianMTModel(MarianConfig(**SIZES)),
    "t5": lambda: T5ForConditionalGeneration(T5Config(**T5, decoder_start_token_id=0)),
}
INPUTS = {"input_ids": torch.tensor([[1, 2, 3, 4]]), "decoder_input_ids": torch.tensor([[5, 6, 7]])}


def made(family):
    torch.manual_seed(0)
    return MODELS[family]().eval()


def adapted(base, targets, **fields):
    config = AuroraConfig(target_modules=targets, init_weights=False, train_form="static", **fields)
    return get_peft_model(base, config).eval()


def logits(model):
    with torch.no_grad():
        return model(**INPUTS).logits


def is_saved_as_it_is(merged, expected, folder):
    torch.testing.assert_close(logits(merged), expected)
    merged.save_pretrained(folder)
    loaded, info = type(merged).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    torch.testing.assert_close(logits(loaded.eval()), expected)


@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]], ids=str)
@pytest.mark.parametrize("family", MODELS)
def test_all_of_them_come_apart(family, targets, tmp_path):
    model = adapted(made(family), targets)
    is_saved_as_it_is(model.merge_and_unload(), logits(model), tmp_path)


@pytest.mark.parametrize("whole", ["lm_head", "shared"])
@pytest.mark.parametrize("family", MODELS)
def test_so_they_do_from_a_module_that_is_trained_whole(family, whole, tmp_path):
    model = adapted(made(family), ["q", "q_proj"], modules_to_save=[whole])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter))
    is_saved_as_it_is(model.merge_and_unload(), logits(model), tmp_path)


def test_a_multimodal_config_takes_the_tie_from_no_part(tmp_path):
    """Some configs, when they are read, take `tie_word_embeddings` again from that of their language model."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = LlamaConfig(vocab_size=20, tie_word_embeddings=True, **sizes)
    vision = CLIPVisionConfig(image_size=8, patch_size=4, projection_dim=16, **sizes)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=19, tie_word_embeddings=True)
    base = LlavaForConditionalGeneration(config).eval()
    if base.lm_head.weight is not base.get_input_embeddings().weight:
        pytest.skip("this version of Transformers does not tie them")
    merged = adapted(base, ["lm_head"]).merge_and_unload()
    merged.save_pretrained(tmp_path)
    again = LlavaConfig.from_pretrained(tmp_path)
    assert not again.tie_word_embeddings
    assert not again.text_config.tie_word_embeddings


def test_resized_embeddings_are_one_module_in_several_places(tmp_path):
    base = made("bart")
    base.resize_token_embeddings(23, mean_resizing=False)
    assert base.model.encoder.embed_tokens is base.model.shared
    if base.lm_head.out_features != 23:
        pytest.skip("Transformers 5.0 leaves the size of a tied output layer as it was, which LoRA cannot adapt either")
    model = adapted(base, ["lm_head"])
    is_saved_as_it_is(model.merge_and_unload(), logits(model), tmp_path)


@pytest.mark.parametrize("family", MODELS)
def test_they_stay_tied_while_none_of_them_is_adapted(family, tmp_path):
    model = adapted(made(family), ["q", "q_proj"])
    expected = logits(model)
    merged = model.merge_and_unload()
    assert merged.config.tie_word_embeddings
    assert merged.lm_head.weight is merged.get_input_embeddings().weight
    is_saved_as_it_is(merged, expected, tmp_path)


def test_what_is_offloaded_is_taken_to_be_tied():
    """There each module has a parameter of its own on meta, of one tensor in main memory."""
    base = made("bart")
    for place in ("model.shared", "model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head"):
        module = base.get_submodule(place)
        module.weight = torch.nn.Parameter(module.weight.to("meta"))
    untie_all(base)
    assert base.config.tie_word_embeddings
    assert base.all_tied_weights_keys


def test_the_copies_are_trainable_if_the_weight_was(tmp_path):
    model = adapted(made("bart"), ["lm_head"])
    for place in ("encoder", "decoder"):
        model.get_submodule(f"base_model.model.model.{place}.embed_tokens").weight.requires_grad_(True)
    merged = model.merge_and_unload().model
    weights = [part.weight for part in (merged.shared, merged.encoder.embed_tokens, merged.decoder.embed_tokens)]
    assert all(weight.requires_grad for weight in weights)
    assert len({id(weight) for weight in weights}) == 3


def test_a_module_with_two_places_is_not_merged(tmp_path):
    """PEFT puts the adapter in the first place alone; a merge would be in both."""
    torch.manual_seed(0)
    first = torch.nn.Linear(6, 6)
    base = torch.nn.Sequential(first, torch.nn.Tanh(), first, torch.nn.Linear(6, 6))
    model = adapted(base, ["0", "3"])
    x = torch.randn(4, 6)
    expected = model(x)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(MergeError, match=r"0: The adapted layer has another place in the model"):
            merge()
        assert torch.equal(model(x), expected)
    export_lora(model, tmp_path)
    plain = PeftModel.from_pretrained(model.unload(), tmp_path).eval()
    torch.testing.assert_close(plain(x), expected)


def test_a_parent_with_two_places_is_merged():
    torch.manual_seed(0)
    shared = torch.nn.ModuleDict({"lin": torch.nn.Linear(6, 6)})
    base = torch.nn.ModuleDict({"one": shared, "other": shared})
    base.forward = lambda x: base["other"]["lin"](base["one"]["lin"](x).tanh())
    model = adapted(base, ["lin"])
    x = torch.randn(4, 6)
    expected = model(x)
    torch.testing.assert_close(model.merge_and_unload()(x), expected)
