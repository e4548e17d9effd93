"""AuroRA on embedding tables: one-hot inputs, so that dynamic and static are one form."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from aurora_lora import AuroraConfig, AuroraEmbedding, FormError, calibrate, export_lora, merge_gap, set_form
from aurora_lora.ops import adaptive_nonlinear

IDS = torch.tensor([[0, 3, 3], [9, 1, 7]])


class Net(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.emb = nn.Embedding(10, 6, **kwargs)
        self.lin = nn.Linear(6, 4)

    def forward(self, ids):
        return self.lin(self.emb(ids))


def adapt(targets=("emb",), make=Net, **fields):
    torch.manual_seed(0)
    config = AuroraConfig(target_modules=list(targets), r=3, alpha=6, **{"init_weights": False, **fields})
    return get_peft_model(make(), config).eval()


def test_each_id_adds_its_column_of_sigma_of_a():
    model = adapt()
    layer = model.base_model.model.emb
    assert isinstance(layer, AuroraEmbedding)
    A, B = layer.aurora_A["default"].weight, layer.aurora_B["default"].weight
    assert A.shape == (3, 10)
    sigma = adaptive_nonlinear(
        A.T, layer.aurora_H["default"].weight, layer.aurora_spline_weight["default"].weight, AuroraConfig().anl
    ).T
    one_hot = nn.functional.one_hot(IDS, 10).float()
    torch.testing.assert_close(layer(IDS), layer.base_layer(IDS) + 2 * one_hot @ sigma.T @ B.T)


def test_every_form_is_the_same_and_merges():
    model = adapt()
    expected = model(IDS)
    for form in ("dynamic", "static", "calibrated"):
        with set_form(model, form):
            assert torch.equal(model(IDS), expected)
    torch.testing.assert_close(model.train()(IDS), expected)
    model.eval()
    before = model.base_model.model.emb.base_layer.weight.clone()
    model.merge_adapter()  # never calibrated, and nothing is lost
    torch.testing.assert_close(model(IDS), expected)
    model.unmerge_adapter()
    assert torch.equal(model.base_model.model.emb.base_layer.weight, before)
    torch.testing.assert_close(model.merge_and_unload()(IDS), expected)


def test_calibrate_leaves_embeddings_out():
    with pytest.raises(FormError, match="embeddings merge exactly"):
        calibrate(adapt(), [IDS])
    model = adapt(["emb", "lin"])
    assert [entry.layer for entry in calibrate(model, [IDS]).layers] == ["lin"]
    assert not model.base_model.model.emb.aurora_A_cal
    assert {entry.layer for entry in merge_gap(model, [IDS]).layers} == {"lin"}


def test_the_padding_vector_stays():
    model = adapt(make=lambda: Net(padding_idx=3))
    layer = model.base_model.model.emb
    assert torch.equal(layer(torch.tensor([3])), layer.base_layer(torch.tensor([3])))
    expected = layer(IDS)
    model.merge_adapter()
    torch.testing.assert_close(layer(IDS), expected)
    assert torch.equal(layer(torch.tensor([3])), torch.zeros(1, 6))


def test_the_scale_of_a_scaled_embedding_holds_for_the_update():
    class Scaled(nn.Embedding):
        embed_scale = 3.0

        def forward(self, ids):
            return super().forward(ids) * self.embed_scale

    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb = Scaled(10, 6)

        def forward(self, ids):
            return self.emb(ids)

    model = adapt(make=Holder)
    expected = model(IDS)
    torch.testing.assert_close(model.merge_and_unload()(IDS), expected)


def test_export_loads_in_stock_peft(tmp_path):
    model = adapt(["emb", "lin"], eval_form="static")
    expected = model(IDS)
    export_lora(model, tmp_path / "lora")
    base = Net()
    base.load_state_dict(model.unload().state_dict())
    torch.testing.assert_close(PeftModel.from_pretrained(base, tmp_path / "lora")(IDS), expected)


# ---------------------------------------------------------------- tied embeddings


def llama(**kwargs):
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True, pad_token_id=None, **kwargs)
    return LlamaForCausalLM(config)


@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`")
@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head", "q_proj"]])
def test_tied_embeddings_come_apart_when_they_are_merged(targets, tmp_path):
    model = adapt(targets, make=llama, eval_form="static")
    ids = torch.tensor([[1, 2, 3, 4]])
    before = {name: p.clone() for name, p in model.named_parameters()}
    expected = model(ids).logits
    for _ in range(2):
        model.merge_adapter()
        torch.testing.assert_close(model(ids).logits, expected)
        model.unmerge_adapter()
        inner = model.get_base_model()
        assert inner.get_input_embeddings().weight is inner.get_output_embeddings().weight
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    with pytest.warns(UserWarning, match="no longer tied"):
        merged = model.merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, expected)
    assert merged.config.tie_word_embeddings is False
    merged.save_pretrained(tmp_path)
    torch.testing.assert_close(LlamaForCausalLM.from_pretrained(tmp_path)(ids).logits, expected)
