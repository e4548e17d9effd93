"""The settings that people use PEFT with: each as it is with `LoraConfig`."""

import copy
import gc
import pickle
import warnings
from contextlib import nullcontext
from functools import cache

import psutil
import pytest
import torch
import transformers
from packaging.version import Version
from peft import (
    LoraConfig,
    PeftModel,
    convert_to_lora,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.helpers import disable_input_dtype_casting
from peft.utils import PeftType
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
    Wav2Vec2Config,
    Wav2Vec2ForXVector,
)

from aurora_lora import AuroraConfig, MergeError, NotCalibratedError, calibrate, export_lora, merge_gap, set_form
from aurora_lora.tuner import aurora_layers
from tiny_llama import ATTENTION, IDS, adapt, llama, logits


def adapted(model):
    return sorted(name.removeprefix("base_model.model.model.") for name, _ in aurora_layers(model))


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ---------------------------------------------------------------- which modules


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": "all-linear"},
        {"target_modules": r".*layers\.1\.self_attn\.(q|k)_proj"},
        {"target_modules": "all-linear", "exclude_modules": ["up_proj", "k_proj"]},
        {"target_modules": ATTENTION, "exclude_modules": r".*\.0\..*"},
        {"target_modules": ATTENTION, "layers_to_transform": [1]},
        {"target_modules": ATTENTION, "layers_to_transform": 0, "layers_pattern": "layers"},
        {"target_modules": None},
    ],
)
def test_modules_are_chosen_as_by_lora(fields):
    model = get_peft_model(llama(), AuroraConfig(**fields))
    lora = get_peft_model(llama(), LoraConfig(**fields))
    theirs = {name for name, module in lora.named_modules() if hasattr(module, "lora_A")}
    assert {name for name, _ in aurora_layers(model)} == theirs


def test_a_linear_that_is_never_called_is_refused():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2)

    with pytest.raises(ValueError, match=r"'attn.out_proj' belongs to a torch.nn.MultiheadAttention.*exclude_modules"):
        get_peft_model(Attention(), AuroraConfig(target_modules=["out_proj"]))


def on_mesh(names, layer):
    mesh = init_device_mesh("cpu", (1,) * len(names or "1"), mesh_dim_names=names)
    layer.weight = nn.Parameter(distribute_tensor(layer.weight.data, mesh, [Shard(0)] * mesh.ndim))
    return nn.Sequential(layer)


@pytest.mark.parametrize("layer", [nn.Linear(6, 4), nn.Embedding(6, 4)], ids=["linear", "embedding"])
@pytest.mark.parametrize("names", [("tp",), ("fsdp", "tp")])
def test_a_tensor_parallel_base_is_refused(process_group, names, layer):
    with pytest.raises(
        ValueError, match=r"'0' is split .*tensor parallelism is not supported: load the base without tp_plan"
    ):
        get_peft_model(on_mesh(names, copy.deepcopy(layer)), AuroraConfig(target_modules=["0"]))


def test_a_module_that_older_transformers_has_sharded_is_refused():
    base = nn.Sequential(nn.Linear(6, 4))
    base[0]._hf_tp_plan = "colwise"
    with pytest.raises(ValueError, match=r"'0' is split .*tensor parallelism is not supported"):
        get_peft_model(base, AuroraConfig(target_modules=["0"]))


@pytest.mark.parametrize("names", [None, ("fsdp",)])
def test_a_base_that_fsdp_has_sharded_is_adapted(process_group, names):
    model = get_peft_model(on_mesh(names, nn.Linear(6, 4)), AuroraConfig(target_modules=["0"]))
    ((_, layer),) = aurora_layers(model)
    assert (layer.aurora_A["default"].shape, layer.aurora_B["default"].shape) == ((2, 6), (4, 2))


@pytest.mark.parametrize("excluded", [None, ["linear2"], ".*linear2"])
def test_all_linear_leaves_out_what_is_never_called(excluded, tmp_path):
    def encoder():
        torch.manual_seed(0)
        return nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)).eval()

    config = AuroraConfig(target_modules="all-linear", exclude_modules=excluded, eval_form="static")
    with pytest.warns(UserWarning, match=r"Left out of 'all-linear': 0.self_attn.out_proj. .*MultiheadAttention"):
        model = get_peft_model(encoder(), config).eval()
    adapted_layers = {name.removeprefix("base_model.model.") for name, _ in aurora_layers(model)}
    assert adapted_layers == {"0.linear1", "0.linear2"} - ({"0.linear2"} if excluded else set())
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        for _, layer in aurora_layers(model):
            layer.aurora_B["default"].normal_()
        expected = model(x)
        model.save_pretrained(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = PeftModel.from_pretrained(encoder(), tmp_path)
        assert torch.equal(loaded.eval()(x), expected)


@pytest.mark.parametrize("excluded", [None, ["second"]])
def test_a_path_that_ends_that_of_what_is_never_called_is_adapted(excluded):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.ModuleDict({"out_proj": nn.Linear(8, 8), "second": nn.Linear(8, 8)})

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn, self.block = nn.MultiheadAttention(8, 2), Block()

    with pytest.warns(UserWarning, match=r"Left out of 'all-linear': attn.out_proj. "):
        model = get_peft_model(Model(), AuroraConfig(target_modules="all-linear", exclude_modules=excluded))
    adapted_layers = {name.removeprefix("base_model.model.") for name, _ in aurora_layers(model)}
    assert adapted_layers == {"block.attn.out_proj", *(() if excluded else ("block.attn.second",))}


def test_a_fused_encoder_layer_calls_its_adapters():
    """In eval mode without gradients, the layer reads the weights of linear1 and linear2 itself."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
    net, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(3, 5, 16)
    attributes = [sorted(vars(one)) for one in net.layers]
    with torch.no_grad():
        expected = net(x)
    model = adapt(net, target_modules=["linear1", "linear2"], task_type=None, alpha=8)
    calibrate(model, [x])
    with torch.no_grad():
        fused = model(x)
    assert (fused - expected).abs().max() > 0.1
    torch.testing.assert_close(fused, model(x.requires_grad_()).detach(), rtol=1e-4, atol=1e-5)
    merged = model.merge_and_unload()
    assert [one.activation_relu_or_gelu for one in merged.layers] == [2, 2]  # may be fused again
    assert [sorted(vars(one)) for one in merged.layers] == attributes
    with torch.no_grad():
        torch.testing.assert_close(merged(x), fused, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("targets", [["linear1", "linear2"], ["layers.1.linear1"]])
def test_an_encoder_keeps_its_padding_for_its_adapters(targets):
    """Of a batch with a padding mask it would make nested tensors, for the fused kernel."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
    net, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(3, 5, 16)
    mask = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]).bool()
    attributes, real = sorted(vars(net)), ~mask
    model = adapt(net, target_modules=targets, task_type=None, alpha=8)
    calibrate(model, [{"src": x, "src_key_padding_mask": mask}])
    with torch.no_grad():
        padded = model(x, src_key_padding_mask=mask)
        assert padded.shape == x.shape
        torch.testing.assert_close(padded[1, :3], model(x[1:2, :3])[0], rtol=1e-4, atol=1e-5)
        merged = model.merge_and_unload()
        assert merged.use_nested_tensor
        assert sorted(vars(merged)) == attributes
        fused = merged(x, src_key_padding_mask=mask)[:, :5]
    torch.testing.assert_close(fused[real], padded[real], rtol=1e-4, atol=1e-5)


def test_over_another_methods_adapter_all_are_taken_out_again():
    torch.manual_seed(0)
    lora = get_peft_model(llama(), LoraConfig(r=2, target_modules=ATTENTION, init_lora_weights=False)).eval()
    with pytest.warns(UserWarning, match="second time|multiple"):
        model = adapt(lora, target_modules=ATTENTION, eval_form="static").eval()
    with torch.no_grad():
        before = model(IDS).logits
        model.merge_adapter()
        torch.testing.assert_close(model(IDS).logits, before, rtol=1e-4, atol=1e-5)
        model.unmerge_adapter()
        torch.testing.assert_close(model(IDS).logits, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["aurora_v1", "default"])
def test_names_that_begin_as_those_of_the_weights_do(name, tmp_path):
    fields = {"modules_to_save": ["lm_head"], "trainable_token_indices": [2, 4], "eval_form": "static"}
    config = AuroraConfig(target_modules=ATTENTION, init_weights=False, **fields)
    model = get_peft_model(llama(), config, adapter_name=name)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01 * weight.requires_grad)
    model.save_pretrained(tmp_path)
    folder = tmp_path if name == "default" else tmp_path / name
    loaded = PeftModel.from_pretrained(llama(), folder, adapter_name=name).eval()
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, model.eval()(IDS).logits)


@pytest.mark.parametrize(
    "name", ["v1.0", "copy", "get", "setdefault", "popitem", "fromkeys", "persistent", "keys", "training"]
)
def test_names_that_a_layer_cannot_hold_a_weight_by(name):
    """Said before any layer has changed: the adapters that are there work as before."""
    model = get_peft_model(llama(), AuroraConfig(target_modules=ATTENTION, init_weights=False)).eval()
    with torch.no_grad():
        before = model(IDS).logits
    config = AuroraConfig(target_modules=ATTENTION, init_weights=False)
    for add in (model.add_adapter, lambda name, config: inject_adapter_in_model(config, model.base_model.model, name)):
        with pytest.raises(ValueError, match=f"An AuroRA adapter cannot have the name '{name}'"):
            add(name, config)
        assert list(model.peft_config) == ["default"]
        assert all(list(layer.r) == list(layer.aurora_dropout) == ["default"] for _, layer in aurora_layers(model))
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, before)
    with pytest.raises(ValueError, match="cannot have the name"):
        get_peft_model(llama(), config, adapter_name=name)


def test_a_module_whose_name_begins_so(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.body, self.aurora_head = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.aurora_head(self.body(x))

    model = get_peft_model(Net(), AuroraConfig(target_modules=["body"], modules_to_save=["aurora_head"]))
    with torch.no_grad():
        model.base_model.model.aurora_head.modules_to_save["default"].weight.add_(1)
    model.save_pretrained(tmp_path)
    x = torch.randn(3, 4)
    assert torch.equal(PeftModel.from_pretrained(Net(), tmp_path)(x), model(x))


@pytest.mark.parametrize(
    ("kind", "name", "models"),
    [
        ("mamba", "out_proj", "Mamba-based"),
        ("mamba", "dt_proj", "Mamba-based"),
        ("granitemoehybrid", "out_proj", "Mamba-based"),
        ("wavlm", "q_proj", "wavlm"),
        ("bailing_hybrid", "conv1d", "bailing_hybrid"),
        ("inkling_text", "conv1d", "inkling_text"),
        ("recurrent_gemma", "conv_1d", "recurrent_gemma"),
        ("reformer", "query_key", "reformer"),
        ("mbart", "shared", "mbart"),
    ],
)
def test_a_layer_that_a_model_reads_without_calling_is_refused(kind, name, models):
    model = nn.Module()
    model.config = type("Config", (), {"model_type": kind, "to_dict": lambda self: {"model_type": kind}})()
    setattr(model, name, nn.Linear(4, 4))
    with pytest.raises(ValueError, match=rf"'{name}' is incompatible with {models} models: a {kind} model reads"):
        get_peft_model(model, AuroraConfig(target_modules=[name]))


def of_kind(kind, **layers):
    model = nn.ModuleDict(layers)
    model.config = type("Config", (), {"model_type": kind, "to_dict": lambda self: {"model_type": kind}})()
    return model


def test_what_one_attention_of_a_model_calls_and_another_does_not():
    attention = {"query_key": nn.Linear(4, 4), "value": nn.Linear(4, 4)}
    model = of_kind("reformer", lsh=nn.ModuleDict(attention), local=nn.ModuleDict({"value": nn.Linear(4, 4)}))
    with pytest.warns(UserWarning, match=r"Left out of 'all-linear': lsh\.query_key, lsh\.value"):
        model = get_peft_model(model, AuroraConfig(target_modules="all-linear"))
    assert [name for name, _ in aurora_layers(model.base_model.model)] == ["local.value"]


def test_what_an_inner_model_reads_without_calling_is_known():
    """The outer module may be the user's own, or another model of Transformers."""

    def whole():
        speech = of_kind("wavlm", q_proj=nn.Linear(4, 4), fc=nn.Linear(4, 4))
        text = of_kind("bert", q_proj=nn.Linear(4, 4))
        return nn.ModuleDict({"speech": speech, "text": text})

    with pytest.raises(ValueError, match=r"'speech.q_proj' is incompatible with wavlm models"):
        get_peft_model(whole(), AuroraConfig(target_modules=["q_proj"]))
    with pytest.warns(UserWarning, match=r"Left out of 'all-linear': speech\.q_proj"):
        model = get_peft_model(whole(), AuroraConfig(target_modules="all-linear"))
    assert [name for name, _ in aurora_layers(model.base_model.model)] == ["speech.fc", "text.q_proj"]


def test_all_linear_leaves_out_layers_by_the_end_of_their_path():
    """The keys of another attention are called."""
    boxes, attention = nn.ModuleDict({"k_proj": nn.Linear(4, 4)}), nn.ModuleDict({"k_proj": nn.Linear(4, 4)})
    with pytest.warns(UserWarning, match=r"Left out of 'all-linear': bbox_attention\.k_proj"):
        model = get_peft_model(
            of_kind("detr", bbox_attention=boxes, attention=attention), AuroraConfig(target_modules="all-linear")
        )
    assert [name for name, _ in aurora_layers(model.base_model.model)] == ["attention.k_proj"]


def test_the_tdnn_of_x_vectors_is_refused():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    convolutions = {"conv_dim": (8,), "conv_stride": (5,), "conv_kernel": (10,), "num_conv_pos_embeddings": 4}
    tdnn = {"tdnn_dim": (8, 8), "tdnn_kernel": (3, 1), "tdnn_dilation": (1, 1), "xvector_output_dim": 8}
    config = Wav2Vec2Config(**sizes, **convolutions, **tdnn, num_conv_pos_embedding_groups=2)
    with pytest.raises(ValueError, match=r"'tdnn\.0\.kernel' is incompatible with wav2vec2 models"):
        get_peft_model(Wav2Vec2ForXVector(config), AuroraConfig(target_modules=["q_proj", "kernel"]))


def test_rwkv_is_adapted_where_it_divides_no_weights():
    """In eval mode it divides some of its weights, and not what an adapter adds."""
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "context_length": 8}
    with pytest.raises(ValueError, match=r"attention.output'.* RWKV divides its weight.*rescale_every = 0"):
        get_peft_model(RwkvForCausalLM(RwkvConfig(**sizes, rescale_every=1)), AuroraConfig())
    base = RwkvForCausalLM(RwkvConfig(**sizes, rescale_every=0))
    model = get_peft_model(base, AuroraConfig(train_form="static", init_weights=False))
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        trained, deployed = model.train()(ids).logits, model.eval()(ids).logits
    torch.testing.assert_close(trained, deployed)


def test_all_linear_leaves_out_what_a_model_reads_without_calling():
    model = nn.ModuleDict({"in_proj": nn.Linear(4, 4), "out_proj": nn.Linear(4, 4)})
    model.config = type("Config", (), {"model_type": "mamba2", "to_dict": lambda self: {"model_type": "mamba2"}})()
    with pytest.warns(UserWarning, match="Left out of 'all-linear': out_proj"):
        adapted_model = get_peft_model(model, AuroraConfig(target_modules="all-linear"))
    assert [name for name, _ in aurora_layers(adapted_model.base_model.model)] == ["in_proj"]


def test_an_embedding_that_looks_up_positions_of_its_own_is_refused():
    sizes = {"vocab_size": 20, "hidden_size": 16, "word_embed_proj_dim": 16, "ffn_dim": 16}
    base = OPTForCausalLM(OPTConfig(**sizes, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=8))
    with pytest.raises(ValueError, match="OPTLearnedPositionalEmbedding, whose forward pass"):
        get_peft_model(base, AuroraConfig(target_modules=["embed_positions"]))


@pytest.mark.parametrize("kind", ["Llama4Router", "FP8GroupedLinear", "IdeficsDecoupledLinear"])
def test_what_is_linear_with_other_outputs_is_left_out(kind):
    router = type(kind, (nn.Linear,), {})

    def base():
        return nn.ModuleDict({"a": nn.Linear(4, 4), "router": router(4, 2)})

    with pytest.warns(UserWarning, match="Left out of 'all-linear': router"):
        model = get_peft_model(base(), AuroraConfig(target_modules="all-linear"))
    assert [name for name, _ in aurora_layers(model.base_model.model)] == ["a"]
    with pytest.raises(ValueError, match=f"'router' is a {kind}, whose forward pass"):
        get_peft_model(base(), AuroraConfig(target_modules=["router"]))


def test_names_to_merge_are_checked_and_count_once():
    model = adapt(train_form="static")
    with pytest.raises(ValueError, match="no AuroRA adapter named 'defualt'"):
        model.merge_and_unload(adapter_names=["defualt"])
    expected = logits(model)
    model.merge_adapter(adapter_names=["default", "default"])
    torch.testing.assert_close(logits(model), expected)


def test_a_refused_adapter_leaves_modules_that_it_would_have_trained():
    base = llama()
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    with pytest.raises(ValueError, match="embed_tok"):
        get_peft_model(base, AuroraConfig(**settings, trainable_token_indices={"embed_tok": [1]}))
    assert type(base.lm_head) is nn.Linear
    model = get_peft_model(base, AuroraConfig(**settings))
    with pytest.raises(ValueError, match="embed_tok"):
        model.add_adapter("other", AuroraConfig(**settings, trainable_token_indices={"embed_tok": [1]}))
    assert list(model.base_model.model.lm_head.modules_to_save) == ["default"]
    assert model.base_model.model.lm_head.modules_to_save["default"].weight.requires_grad


@pytest.mark.parametrize("names", [("0", "1"), ("default", "model"), ("layers", "default"), ("a", "aurora_A")])
def test_adapters_whose_names_are_parts_of_paths_are_told(names):
    """PEFT's files of the other adapters lack what has such a part in its name."""
    config = {"target_modules": ["q_proj"]}
    model = get_peft_model(llama(), AuroraConfig(**config), adapter_name=names[0])
    with pytest.warns(UserWarning, match="is a part of the names of this model's weights"):
        model.add_adapter(names[1], AuroraConfig(**config))
    with warnings.catch_warnings():
        # "lm_head" is the name of a module, of which no adapter has weights
        warnings.filterwarnings("error", ".*is a part of the names")
        get_peft_model(llama(), AuroraConfig(**config)).add_adapter("lm_head", AuroraConfig(**config))


def test_a_refused_adapter_leaves_the_model_as_it_was():
    """PEFT freezes the base of a first adapter alone, and takes what is left of a refused one for another."""
    base = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.BatchNorm1d(4)})
    with pytest.raises(ValueError, match="BatchNorm1d"):
        get_peft_model(base, AuroraConfig(target_modules=["a", "b"]))
    assert type(base["a"]) is nn.Linear
    model = get_peft_model(base, AuroraConfig(target_modules=["a"]))
    assert all("aurora_" in name for name, p in model.named_parameters() if p.requires_grad)
    with pytest.raises(ValueError, match="BatchNorm1d"):
        model.add_adapter("other", AuroraConfig(target_modules=["a", "b"]))
    assert list(model.base_model.model["a"].r) == list(model.peft_config) == ["default"]


def test_what_models_read_of_a_layer_is_there():
    base = nn.ModuleDict({"conv": nn.Conv1d(2, 3, 3, stride=2), "emb": nn.Embedding(5, 4, padding_idx=1)})
    model = get_peft_model(base, AuroraConfig(target_modules=["conv", "emb"])).base_model.model
    assert (model["conv"].stride, model["conv"].kernel_size, model["conv"].in_channels) == ((2,), (3,), 2)
    assert (model["emb"].num_embeddings, model["emb"].padding_idx) == (5, 1)


def test_bare_parameters_are_refused():
    with pytest.raises(ValueError, match=r"target_parameters=.*not supported"):
        AuroraConfig(target_parameters=["experts.gate_up_proj"])


# ---------------------------------------------------------------- how it is run


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("train_form", ["dynamic", "static"])
def test_gradient_checkpointing(train_form, reentrant):
    def run(checkpointing):
        model = adapt(train_form=train_form, modules_to_save=["lm_head"]).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model(input_ids=IDS, labels=IDS).loss.backward()
        return gradients(model)

    plain, checkpointed = run(False), run(True)
    assert plain.keys() == checkpointed.keys()
    assert len(plain) == 4 * 4 + 1
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["dynamic", "static", "calibrated"])
def test_autocast(form, dtype):
    model = adapt(eval_form=form)
    if form == "calibrated":
        calibrate(model, [IDS])
    exact = logits(model)
    with torch.autocast("cpu", dtype=dtype):
        found = logits(model)
        model.train()(input_ids=IDS, labels=IDS).loss.backward()
    torch.testing.assert_close(found.float(), exact, atol=0.05, rtol=0.05)
    grads = {name: p.grad for name, p in model.named_parameters() if "aurora_" in name}
    assert all(g is not None and g.dtype == torch.float32 and torch.isfinite(g).all() for g in grads.values())
    buffers = [b for layer in model.modules() if hasattr(layer, "aurora_A_cal") for b in layer.aurora_A_cal.values()]
    assert all(b.dtype == torch.float32 for b in buffers)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_of_low_precision_has_a_float32_adapter_that_merges(dtype):
    model = adapt(llama().to(dtype), eval_form="static")
    assert {p.dtype for name, p in model.named_parameters() if "aurora_" in name} == {torch.float32}
    found = logits(model)
    assert found.dtype == dtype
    assert {p.dtype for p in model.merge_and_unload().parameters()} == {dtype}


class _Counter:
    """A compiler that runs the graphs as they are, and counts them."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        from torch._dynamo.backends.debugging import aot_eager

        self.graphs += 1
        return aot_eager(graph, inputs)


@cache
def base_compiles():
    try:
        torch.compile(llama(layers=1), fullgraph=True, backend="eager")(input_ids=IDS)
    except torch._dynamo.exc.Unsupported:
        return False
    finally:
        torch._dynamo.reset()
    return True


@pytest.mark.compiles_peft
@pytest.mark.parametrize(
    "fields",
    [
        {"eval_form": "dynamic"},
        {"train_form": "static"},
        {"target_modules": ["embed_tokens", "q_proj"], "spline": "summed", "skip": True, "eval_form": "dynamic"},
        {"eval_form": "calibrated", "dropout": 0.1},
    ],
)
def test_compile_is_one_graph_without_recompiles(fields):
    if not base_compiles():
        pytest.skip("this torch cannot trace this Transformers' Llama as one graph, without an adapter either")
    torch._dynamo.reset()
    model = adapt(llama(layers=1), **fields)
    if model.peft_config["default"].resolved_eval_form == "calibrated":
        calibrate(model, [IDS])
    counter = _Counter()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(logits(compiled), logits(model))
        torch.testing.assert_close(logits(compiled, IDS + 1), logits(model, IDS + 1))
        assert counter.graphs == 1
        model.train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        for step in range(3):
            loss = compiled(input_ids=IDS, labels=IDS).loss
            if step == 0 and not fields.get("dropout"):
                torch.testing.assert_close(loss, model(input_ids=IDS, labels=IDS).loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert counter.graphs == 2
    torch._dynamo.reset()


# ---------------------------------------------------------------- where the weights are


def assert_same_weights(one, other):
    """Bit for bit. Outputs may differ in the last bit: products depend on where in memory a loaded weight lies."""
    weights, others = one.state_dict(), other.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_low_cpu_mem_usage(tmp_path):
    model = adapt()
    calibrate(model, [IDS])
    expected = logits(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama(), tmp_path, low_cpu_mem_usage=True)
    assert_same_weights(loaded, model)
    torch.testing.assert_close(logits(loaded), expected)
    empty = get_peft_model(llama(), AuroraConfig(target_modules=ATTENTION), low_cpu_mem_usage=True)
    assert {p.device.type for name, p in empty.named_parameters() if "aurora_" in name} == {"meta"}


def test_meta_device():
    with torch.device("meta"):
        model = get_peft_model(llama(), AuroraConfig(target_modules="all-linear"))
    assert {p.device.type for p in model.parameters()} == {"meta"}
    try:
        llama().to("meta")(input_ids=IDS.to("meta"))
    except RuntimeError as error:  # Transformers 5.0 asks torch 2.6 for the autocast of meta tensors
        pytest.skip(f"the model without an adapter does not run on the meta device either: {error}")
    assert model(input_ids=IDS.to("meta")).logits.shape == (3, 4, 20)


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_a_calibrated_adapter_over_a_model_on_meta(tmp_path, low_cpu_mem_usage):
    """There, nothing tells whether the matrix belongs to the weights: nothing is said of it."""
    model = adapt()
    calibrate(model, [IDS])
    model.save_pretrained(tmp_path)
    with torch.device("meta"):
        empty = llama()
        if not low_cpu_mem_usage and load_file(tmp_path / "adapter_model.safetensors").popitem()[1].is_meta:
            pytest.skip("this safetensors loads nothing where meta is the default device")
    with warnings.catch_warnings(), nullcontext() if low_cpu_mem_usage else torch.device("meta"):
        warnings.simplefilter("ignore")  # of torch, which copies into no tensor on meta
        warnings.filterwarnings("error", message=".*aurora_lora.calibrate")
        loaded = PeftModel.from_pretrained(empty, tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
        layers = [layer for _, layer in aurora_layers(loaded)]
        assert all(layer.aurora_A["default"].is_meta for layer in layers)
        for layer in layers:
            layer.form("default")
    state = {name: value for name, value in model.state_dict().items() if "aurora_" in name}
    loaded.load_state_dict(state, strict=False, assign=True)
    assert [layer.form("default") for layer in layers] == ["calibrated"] * len(layers)


def test_the_config_is_pickled():
    config = AuroraConfig(target_modules=["q_proj"], r=3, spline_range=(-2, 2))
    copy = pickle.loads(pickle.dumps(config))
    assert copy == config
    assert copy.peft_type is PeftType.AURORA
    assert copy.anl == config.anl


def test_state_dict_functions():
    model = adapt()
    calibrate(model, [IDS])
    state = get_peft_model_state_dict(model)
    assert all("aurora_" in key and ".default" not in key for key in state)
    other = adapt(seed=5, calibrated=True)
    result = set_peft_model_state_dict(other, state)
    assert not result.unexpected_keys
    assert torch.equal(logits(other), logits(model))
    state = {key: value.clone() for key, value in state.items()}
    injected = inject_adapter_in_model(AuroraConfig(target_modules=ATTENTION, calibrated=True), llama())
    set_peft_model_state_dict(injected, {k.removeprefix("base_model.model."): v for k, v in state.items()})
    torch.testing.assert_close(logits(injected.eval()), logits(model))


# ---------------------------------------------------------------- Transformers' own adapter interface


def test_add_adapter_and_load_adapter_of_transformers(tmp_path):
    torch.manual_seed(1)
    model = llama()
    model.add_adapter(AuroraConfig(target_modules=ATTENTION, init_weights=False), adapter_name="mine")
    calibrate(model, [IDS])
    expected = logits(model)
    assert not torch.equal(expected, logits(llama()))
    assert merge_gap(model, [IDS]).end_to_end[-1].form == "calibrated"
    model.save_pretrained(tmp_path / "adapter")
    export_lora(model, tmp_path / "lora")

    loaded = llama()
    loaded.load_adapter(tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), expected)
    assert {layer.form("default") for _, layer in aurora_layers(loaded)} == {"calibrated"}
    torch.testing.assert_close(logits(PeftModel.from_pretrained(llama(), tmp_path / "adapter")), expected)
    plain = llama()
    plain.load_adapter(tmp_path / "lora")
    torch.testing.assert_close(logits(plain), expected)

    loaded.disable_adapters()
    assert torch.equal(logits(loaded), logits(llama()))
    loaded.enable_adapters()
    torch.testing.assert_close(logits(loaded), expected)


def test_from_pretrained_of_an_adapter_folder(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    model = adapt(LlamaForCausalLM.from_pretrained(tmp_path / "base"), eval_form="static")
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")), logits(model))


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize("tied", [False, True])
def test_trainable_tokens(tied, tmp_path):
    model = adapt(llama(tie_word_embeddings=tied), trainable_token_indices=[2, 4], eval_form="static").train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0)
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    model.eval()
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    export_lora(model, tmp_path / "lora")
    for folder in ("adapter", "lora"):
        loaded = PeftModel.from_pretrained(llama(tie_word_embeddings=tied), tmp_path / folder)
        torch.testing.assert_close(logits(loaded), expected)
    torch.testing.assert_close(logits(model.merge_and_unload()), expected)


@pytest.mark.parametrize("targets", [["lm_head"], ["lm_head", "q_proj"]])
def test_a_head_tied_to_embeddings_with_trained_tokens_is_not_merged(targets, tmp_path):
    """PEFT computes its weight at each access, so that a merge would be lost; the export is exact."""
    base = llama(tie_word_embeddings=True)
    model = adapt(base, target_modules=targets, trainable_token_indices=[2, 4], eval_form="static")
    expected = logits(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(MergeError, match=r"trainable_token_indices.*export_lora"):
            merge()
    assert torch.equal(logits(model), expected)
    export_lora(model, tmp_path)
    loaded = PeftModel.from_pretrained(llama(tie_word_embeddings=True), tmp_path)
    torch.testing.assert_close(logits(loaded), expected)


# ---------------------------------------------------------------- many adapters


def test_twenty_adapters_switched_a_thousand_times():
    model = adapt(llama(layers=1))
    for i in range(1, 20):
        torch.manual_seed(i + 1)
        model.add_adapter(f"a{i}", AuroraConfig(target_modules=ATTENTION, init_weights=False, eval_form="dynamic"))
    names = list(model.peft_config)
    model.eval()
    expected = {}
    for name in names:
        model.set_adapter(name)
        expected[name] = logits(model)

    def switch(times):
        for i in range(times):
            name = names[i * 7 % len(names)]
            model.set_adapter(name)
            if i % 10 == 0:
                assert torch.equal(logits(model), expected[name])
        gc.collect()

    switch(200)
    objects, memory = len(gc.get_objects()), psutil.Process().memory_info().rss
    switch(1000)
    assert len(gc.get_objects()) - objects < 200
    assert psutil.Process().memory_info().rss - memory < 4 * 2**20
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable
    assert all(model.active_adapter in name.split(".") for name in trainable)
    for name in names[1:]:
        model.delete_adapter(name)
    model.set_adapter("default")
    assert torch.equal(logits(model), expected["default"])
    assert not any(f"a{i}" in key.split(".") for i in range(1, 20) for key in model.state_dict())


def test_the_calibrated_form_refuses_to_merge_by_default():
    model = adapt()
    with pytest.raises(NotCalibratedError):
        model.merge_and_unload()
    with set_form(model, "static"):
        model.merge_and_unload()


def test_a_reference_adapter_begins_as_a_copy_over_a_base_in_bfloat16():
    """Where the adapter that is copied is in float32."""
    model = adapt(llama().bfloat16())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "aurora_" in name:  # as training leaves it: it began with values that bfloat16 has
                weight.add_(1e-4 * torch.randn_like(weight))
    model.add_adapter("ref", model.peft_config["default"])
    weights = dict(model.named_parameters())
    pairs = [(name, name.replace(".default", ".ref")) for name in weights if "aurora_" in name and ".default" in name]
    assert pairs
    for one, other in pairs:
        assert weights[one].dtype == torch.float32
        assert torch.equal(weights[one], weights[other])
        assert (weights[one].requires_grad, weights[other].requires_grad) == (True, False)


@pytest.mark.parametrize("more", [{"trainable_token_indices": [2, 4]}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_a_reference_adapter_has_what_was_trained_whole(more):
    model = adapt(llama(), **more)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight))
    expected = logits(model.eval())
    model.add_adapter("ref", model.peft_config["default"])
    assert torch.equal(logits(model), expected)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained
    assert not any(".ref" in name for name in trained)
    model.set_adapter("ref")
    model.eval()
    with set_form(model, "dynamic"):
        assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("state", ["trained", "scaled", "calibrated", "stale"])
def test_a_reference_adapter_begins_as_a_copy(state):
    """As TRL makes it of a trained adapter; it copies by names that LoRA's weights have."""
    model = adapt()
    if state == "scaled":
        for _, layer in aurora_layers(model):
            layer.set_scale("default", 0.5)
    if state in ("calibrated", "stale"):
        calibrate(model, [{"input_ids": IDS}])
    if state == "stale":
        with torch.no_grad():
            next(p for name, p in model.named_parameters() if "aurora_A" in name).add_(1)
        model.train().eval()
    trained = logits(model)
    with set_form(model, "dynamic"):
        expected = logits(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.add_adapter("ref", model.peft_config["default"])
    for name, parameter in model.named_parameters():  # TRL's own lines
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)
    assert torch.equal(logits(model), trained)
    model.set_adapter("ref")
    assert torch.equal(logits(model), expected)  # the trained form, in any mode: the policy's calibration may go stale
    assert torch.equal(logits(model.train()), expected)
    model.eval()
    assert not model.peft_config["ref"].calibrated
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".default"):
                parameter.add_(1)
    assert torch.equal(logits(model), expected)  # a copy, not the same weights
    model.add_adapter("other", model.peft_config["default"])
    model.set_adapter("other")
    assert not torch.equal(logits(model), expected)  # any other name begins anew


def test_a_reference_policy_of_the_papers_settings():
    """Whose `eval()` computes the static form: the reference computes the trained one all the same."""
    config = AuroraConfig.paper(target_modules=ATTENTION, init_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(llama(), config).eval()
    with set_form(model, "dynamic"):
        trained = logits(model)
    model.add_adapter("ref", model.peft_config["default"])
    policy = logits(model)
    model.set_adapter("ref")
    assert torch.equal(logits(model), trained)
    assert torch.equal(logits(model.train()), trained)
    model.eval().set_adapter("default")
    assert torch.equal(logits(model), policy)  # which is as it was
    assert not torch.equal(policy, trained)


def moe(targets):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 8, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2}
    base = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(vocab_size=20, num_hidden_layers=2, mlp_only_layers=[0], **sizes, **heads)
    )
    return adapt(base.eval(), target_modules=targets, eval_form="static")


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "gate_proj", "up_proj", "down_proj"]])
def test_fused_experts_are_told_and_not_exported_into(targets, tmp_path):
    with pytest.warns(UserWarning, match=r"adapts the fused weights of the experts \(.*\).*leaves them as they are"):
        model = moe(targets)
    with pytest.raises(ValueError, match="PEFT would load this export into the fused weights of the experts"):
        export_lora(model, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


def mixtral():
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_local_experts": 2, "num_hidden_layers": 1}
    return MixtralForCausalLM(MixtralConfig(vocab_size=20, num_attention_heads=2, num_key_value_heads=2, **sizes))


def test_a_router_is_no_expert():
    base = mixtral()
    if isinstance(base.model.layers[0].mlp.gate, nn.Linear):
        pytest.skip("the router is a linear layer in this version of Transformers")
    with pytest.warns(UserWarning, match=r"the fused weights of the experts \(down_proj, gate_up_proj\)"):
        adapt(base, target_modules="all-linear")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*experts")
        with pytest.raises(ValueError, match=r"'model.layers.0.mlp.gate' is a .*Router, which AuroRA does not"):
            adapt(mixtral(), target_modules=["q_proj", "gate"])


def test_a_part_of_the_layers_that_are_fused_is_told():
    """PEFT's LoRA raises, and AuroRA would adapt none of the experts in silence."""
    with pytest.warns(UserWarning, match=r"LoRA refuses .*gate_proj.*experts are no modules: AuroRA leaves them"):
        moe(["q_proj", "gate_proj"])


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.1"),
    reason="PEFT cannot load a LoRA of a mixture of experts with Transformers 5.0",
)
def test_the_attention_of_a_mixture_of_experts_is_exported(tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*experts")
        model = moe(ATTENTION)
    expected = logits(model)
    export_lora(model, tmp_path / "lora")
    loaded = PeftModel.from_pretrained(model.unload(), tmp_path / "lora").eval()
    torch.testing.assert_close(logits(loaded), expected)
    with pytest.warns(UserWarning, match="experts"):
        other = moe(["q_proj", "down_proj"])
    with pytest.raises(ValueError, match="PEFT would"):
        export_lora(other, tmp_path / "other")


def test_inputs_are_cast_whatever_helpers_say():
    """Hooks that cast weights see modules that are called, and the adapter's weights are none."""
    model = adapt(llama().bfloat16())
    expected = logits(model)
    with disable_input_dtype_casting(model):
        assert torch.equal(logits(model), expected)


def test_conversion_to_lora_takes_linear_layers_alone():
    with pytest.raises(TypeError, match="Embedding"):
        convert_to_lora(adapt(target_modules=["embed_tokens", "q_proj"], eval_form="static"), rank=2)
