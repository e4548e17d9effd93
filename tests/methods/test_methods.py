"""The registry of methods, and what each of them does to a model."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from aurora_lora import AuroraConfig
from aurora_lora.errors import CheckpointError, FormError
from aurora_lora.methods import DESCRIPTIONS, METHODS
from aurora_lora.methods.injection import adapted_modules
from aurora_lora.methods.parameters import load_trained, save_trained

OPTIONS = {"aurora": {"target_modules": ["query"]}, "lora": {"target_modules": ["query"], "r": 2}}
MakeBert = Callable[..., nn.Module]


def test_every_method_is_listed() -> None:
    assert list(DESCRIPTIONS) == list(METHODS)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("aurora", {"splin": 1}, "splin: unknown option; did you mean 'spline'"),
        ("lora", {"lora_alfa": 1}, "lora_alfa: unknown option; did you mean 'lora_alpha'"),
        ("lora", {"r": 0}, "r=0 is not allowed"),
        ("lora", {"target_modules": []}, "target_modules=[] is not allowed: it must be of at least 1 item"),
        ("pissa", {"init_lora_weights": "pissa_niter_4"}, "init_lora_weights: unknown option"),
        ("lora", {"init_lora_weights": "pissa_niter_4"}, "is not allowed: PEFT draws this start anew"),
        ("moslora", {"layers_pattern": "layer"}, "layers_pattern needs layers_to_transform"),
        ("dylora", {"eval_rank": 9}, "eval_rank=9 is not allowed: it must be at most r, which is 8"),
        ("dylora", {"r": 4, "min_rank": 5}, "min_rank=5 is not allowed: it must be at most r, which is 4"),
        ("adalora", {"target_r": 12}, "target_r=12 is not allowed: it must be below init_r = 12"),
        ("vera", {"d_initial": 0}, "d_initial=0 is not allowed: it must be greater than 0"),
        ("bitfit", {"r": 1}, "r: unknown option; there are none here"),
    ],
)
def test_bad_options(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        METHODS[name].bind(options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("moslora", {"target_modules": ["qury"]}, "target_modules=['qury'] names nothing in BertForSequenceClass"),
        ("moslora", {"target_modules": ["word_embeddings"]}, "word_embeddings is a Embedding; moslora adapts"),
        ("milora", {"target_modules": ["word_embeddings"]}, "word_embeddings is a Embedding; milora adapts"),
        ("milora", {"r": 40}, "r=40 is not allowed: "),
        ("adapter-d", {"drop_layers": 2}, "drop_layers=2 leaves no adapter"),
        ("adapter-h", {"target_modules": ["word_embeddings"]}, "word_embeddings is a Embedding; an adapter goes"),
    ],
)
def test_options_that_do_not_fit_the_model(
    make_bert: MakeBert, name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        METHODS[name].bind(options).apply(make_bert(), "SEQ_CLS")


def test_presets_are_the_papers_settings() -> None:
    for name, preset in {
        "aurora": AuroraConfig,
        "aurora-paper": AuroraConfig.paper,
        "aurora-paper-d": AuroraConfig.paper_dynamic,
        "aurora-paper-s": AuroraConfig.paper_static,
    }.items():
        method, expected = METHODS[name], preset()
        assert method.bind({}).config.to_dict() == expected.to_dict()
        recorded = method.bind({}).options
        assert AuroraConfig(**recorded).to_dict() == expected.to_dict()


def test_targets(make_bert: MakeBert) -> None:
    """The names mean what they mean in PEFT."""

    def adapted(**options: object) -> set[str]:
        method = METHODS["moslora"]
        model = method.bind(options).apply(make_bert(), "SEQ_CLS")
        return {path.removeprefix("bert.encoder.") for path, _ in adapted_modules(model)}

    queries = {f"layer.{i}.attention.self.query" for i in range(2)}
    values = {f"layer.{i}.attention.self.value" for i in range(2)}
    assert adapted() == queries | values  # LoRA's default for BERT
    assert adapted(target_modules=["query"]) == queries
    assert adapted(target_modules=r".*\.1\..*query") == {"layer.1.attention.self.query"}
    assert adapted(target_modules=["query", "value"], exclude_modules=["value"]) == queries
    assert adapted(target_modules=["query"], layers_to_transform=[1]) == {"layer.1.attention.self.query"}
    everything = adapted(target_modules="all-linear")
    assert len(everything) == 2 * 6 + 1  # the pooler is of the body, the classifier is the head
    assert "classifier" not in everything


def test_trained_weights_that_do_not_fit(make_bert: MakeBert, tmp_path: Path) -> None:
    model = make_bert()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("classifier"))
    save_trained(model, tmp_path)
    load_trained(model, tmp_path)
    model.requires_grad_(True)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_trained(model, tmp_path)


def test_a_variant_that_peft_cannot_merge(make_model: Callable[[str], nn.Module]) -> None:
    method = METHODS["lora"].bind({"alora_invocation_tokens": [3]})
    model = method.apply(make_model("llama-lm"), "CAUSAL_LM")
    with pytest.raises(FormError, match="This adapter cannot be merged: aLoRA does not support merging"):
        method.merge(model, "merged")
