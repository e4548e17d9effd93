"""sentence-transformers: a model that takes a batch as one dict, with the adapter in a part of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, TrainerCallback

from aurora_lora import AuroraConfig, align, calibrate, export_lora, merge_gap, probe, ranked_config
from aurora_lora.train import CalibrationCallback
from aurora_lora.tuner import aurora_layers

pytest.importorskip("sentence_transformers")

from sentence_transformers import (
    CrossEncoder,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.losses import MultipleNegativesRankingLoss

WORDS = ["a", "dull", "film", "warm", "plot", "and", "fine", "slow", "cast"]
PAIRS = Dataset.from_dict(
    {
        "anchor": [f"{one} {two}" for one in WORDS for two in WORDS[:4]],
        "positive": [f"a {two} film {one}" for one in WORDS for two in WORDS[:4]],
    }
)
TEXTS = ["a warm film", "slow and dull"]


@pytest.fixture
def base(tmp_path: Path) -> str:
    """A tiny BERT with a token for each word."""
    torch.manual_seed(0)
    words = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokens = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "model_max_length": 32}
    PreTrainedTokenizerFast(tokenizer_object=tokens, **names).save_pretrained(tmp_path / "base")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    BertModel(BertConfig(vocab_size=len(words), initializer_range=0.3, **sizes)).save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def trainer_of(model: Any, folder: Path, *callbacks: TrainerCallback) -> SentenceTransformerTrainer:
    arguments = SentenceTransformerTrainingArguments(
        str(folder),
        max_steps=8,
        per_device_train_batch_size=8,
        learning_rate=5e-2,
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    return SentenceTransformerTrainer(
        model,
        arguments,
        train_dataset=PAIRS,
        eval_dataset=PAIRS,
        loss=MultipleNegativesRankingLoss(model),
        callbacks=list(callbacks),
    )


def opened(folder: Any) -> Any:
    return SentenceTransformer(str(folder), device="cpu")


def test_train_calibrate_save_export_and_merge(base: str, tmp_path: Path) -> None:
    model = opened(base)
    model.add_adapter(AuroraConfig(target_modules=["query", "value"], task_type="FEATURE_EXTRACTION"))
    inputs = {"tokenizer": model.tokenizer, "text_columns": "anchor"}
    trainer = trainer_of(model, tmp_path / "out", CalibrationCallback(PAIRS, **inputs))
    before = model.encode(TEXTS)
    trainer.train()
    model.eval()
    deployed = model.encode(TEXTS)
    assert np.abs(deployed - before).max() > 1e-2

    by_callback = [layer.aurora_A_cal["default"].weight.clone() for _, layer in aurora_layers(model)]
    report = calibrate(model, PAIRS, **inputs)
    tokens = sum(len(row["anchor"].split()) for row in PAIRS)  # padding left out
    assert {each.vectors for each in report.layers} == {tokens}
    for one, (_, layer) in zip(by_callback, aurora_layers(model), strict=True):
        torch.testing.assert_close(layer.aurora_A_cal["default"].weight, one)

    gap = merge_gap(model, PAIRS, **inputs)
    assert gap.predictions == len(PAIRS)  # the embeddings of texts
    assert gap.end_to_end[0].form == "dynamic"
    assert all(each.largest_logit_difference > 0 for each in gap.end_to_end[1:])

    model.save_pretrained(str(tmp_path / "adapter"))
    np.testing.assert_allclose(opened(tmp_path / "adapter").encode(TEXTS), deployed, atol=1e-6)

    export_lora(model.transformers_model, tmp_path / "lora")
    with_lora = opened(base)
    with_lora.load_adapter(str(tmp_path / "lora"))
    np.testing.assert_allclose(with_lora.encode(TEXTS), deployed, atol=1e-5)
    assert next(aurora_layers(with_lora), None) is None

    merged = opened(base)
    PeftModel.from_pretrained(merged.transformers_model, tmp_path / "adapter").merge_and_unload()
    merged.save_pretrained(str(tmp_path / "merged"))
    np.testing.assert_allclose(opened(tmp_path / "merged").encode(TEXTS), deployed, atol=1e-5)


def test_ranks_and_start_by_the_loss_of_the_trainer(base: str, tmp_path: Path) -> None:
    model = opened(base)
    trainer = trainer_of(model, tmp_path / "out")
    before = model.encode(TEXTS)
    inner = model.transformers_model
    found = probe(inner, trainer.get_train_dataloader(), loss=lambda _, batch: trainer.compute_loss(model, batch))
    budget = 2 * 4 * (32 + 32)  # as of r=2 on query and value
    model.add_adapter(ranked_config(found, budget, target_modules=["query", "value"], task_type="FEATURE_EXTRACTION"))
    aligned = align(inner, found)
    np.testing.assert_array_equal(model.encode(TEXTS), before)  # B is zero
    directions = {each.layer: each.directions for each in found.layers}
    for path, layer in aurora_layers(inner):
        assert path in aligned
        A = torch.nn.functional.normalize(layer.aurora_A["default"].weight.detach())
        torch.testing.assert_close((A * directions[path][: len(A)]).sum(1).abs(), torch.ones(len(A)))


def test_a_cross_encoder(base: str) -> None:
    """The scores of pairs are what it predicts."""
    model = CrossEncoder(base, num_labels=1, device="cpu")
    model.add_adapter(AuroraConfig(target_modules=["query", "value"], task_type="SEQ_CLS", init_weights=False))
    inputs = {"tokenizer": model.tokenizer, "text_columns": ("anchor", "positive")}
    calibrate(model, PAIRS, **inputs)
    gap = merge_gap(model, PAIRS, **inputs)
    assert gap.predictions == len(PAIRS)
    assert {each.form for each in gap.end_to_end} == {"dynamic", "static", "calibrated"}
