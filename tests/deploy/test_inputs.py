"""What a model is run on, and which vectors of a layer's input count."""

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
)

from aurora_lora import AuroraConfig, CalibrationError, calibrate, merge_gap
from aurora_lora.deploy.inputs import Passes, as_batches, evaluated
from aurora_lora.tuner import aurora_layers


def test_encoder_decoder_leaves_the_padding_of_both_sides_out():
    """Of one length, so that shapes cannot tell the two masks apart."""
    torch.manual_seed(0)
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
    assert not any(isinstance(shape, torch.Tensor) for shape in shapes)
    given, _ = calibrated([{**batch, "logits_to_keep": 0} for batch in batches])
    for path, matrix in given.items():
        torch.testing.assert_close(found[path], matrix)


def test_inputs_that_are_all_padding(make_bert, batches, config):
    model = get_peft_model(make_bert(), config())
    padding = [{**batch, "attention_mask": torch.zeros_like(batch["attention_mask"])} for batch in batches]
    with pytest.raises(CalibrationError, match=r"No input reached .* of calibrate .* no padding"):
        calibrate(model, padding)
    with pytest.raises(CalibrationError, match=r"No input reached .* of merge_gap .* no padding"):
        merge_gap(model, padding)
    assert calibrate(model, [*padding, *batches]).layers[0].vectors == sum(
        int(batch["attention_mask"].sum()) for batch in batches
    )


# -------------------------------------------------------------------- passes

NET = nn.Linear(2, 2)


class Noisy(Dataset[Tensor]):
    """Each example says which one it is, and is drawn by three kinds of random numbers."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, at: int) -> Tensor:
        return torch.tensor([at, random.random(), np.random.rand(), torch.rand(()).item()])


def own_generator() -> DataLoader[Tensor]:
    return DataLoader(Noisy(), 4, shuffle=True, drop_last=True, generator=torch.Generator())


LOADERS: dict[str, Callable[[], Iterable[Any]]] = {
    "shuffled": lambda: DataLoader(Noisy(), 4, shuffle=True, drop_last=True),
    "examples": lambda: as_batches(DataLoader(Noisy(), 4, shuffle=True), examples=6),
    "examples of an iterator": lambda: as_batches(iter(own_generator()), examples=6),
    "iterator": lambda: iter(own_generator()),
}


def passes_of(data: Passes) -> list[Tensor]:
    found: list[list[Tensor]] = []
    with evaluated(NET):
        data.hold()
        for _ in range(3):
            found.append([batch.clone() for batch in data.one_pass()])
            torch.rand(3)
    return [torch.cat(each) for each in found]


@pytest.mark.parametrize("loader", LOADERS)
def test_every_pass_has_the_same_batches(loader: str) -> None:
    before = random.getstate(), torch.get_rng_state()
    data = Passes(LOADERS[loader]())
    first, *others = passes_of(data)
    assert len(first) >= 8
    assert all(torch.equal(first, other) for other in others)
    assert data.passes == 3
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
