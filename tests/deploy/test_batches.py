"""The batches that are made of what a user gives: loaders, iterators, tensors, data sets of texts and conversations."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aurora_lora.deploy.batches import as_batches
from aurora_lora.deploy.passes import Passes
from datasets import Dataset
from peft import get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import PreTrainedTokenizerFast

from aurora_lora import AuroraConfig, calibrate, merge_gap, probe

sys.path.insert(0, str(Path(__file__).parent))

from calibrated import assert_same, matrices


def test_any_source_of_batches_gives_the_same(bert, batches):
    calibrate(bert, batches)
    expected = matrices(bert)
    for source in (
        iter(batches),
        (batch for batch in batches),
        tuple(batches),
        DataLoader(batches, batch_size=None),
    ):
        calibrate(bert, source)
        assert_same(matrices(bert), expected)


def test_tensors_and_tuples_that_start_with_one():
    torch.manual_seed(0)
    model = get_peft_model(nn.Sequential(nn.Linear(6, 4)), AuroraConfig(target_modules=["0"], init_weights=False))
    x, y = torch.randn(40, 6), torch.randn(40)
    calibrate(model, [x])
    expected = matrices(model)
    for source in (x.split(8), DataLoader(TensorDataset(x, y), batch_size=16), [(x, y)], [[x, y]]):
        calibrate(model, source)
        assert_same(matrices(model), expected)


class Words:
    """As much of a tokenizer as a dataset needs."""

    def __call__(self, *texts, padding, truncation, return_tensors):
        rows = [[ord(c) % 90 + 1 for c in " ".join(parts)] for parts in zip(*texts, strict=True)]
        longest = max(map(len, rows))
        ids = [row + [0] * (longest - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def test_a_dataset_with_its_tokenizer(bert):
    texts = ["a film", "a good film", "no", "not a good one", "why"]
    dataset = Dataset.from_dict({"text": texts, "other": texts})
    report = calibrate(bert, dataset, tokenizer=Words(), batch_size=2)
    assert report.layers[0].vectors == sum(map(len, texts))
    pairs = calibrate(bert, dataset, tokenizer=Words(), text_columns=("text", "other"))
    assert pairs.layers[0].vectors == sum(2 * len(text) + 1 for text in texts)
    one = calibrate(bert, dataset, tokenizer=Words(), text_columns="other")
    assert one.layers[0].vectors == report.layers[0].vectors
    first = calibrate(bert, dataset.to_iterable_dataset(), tokenizer=Words(), examples=2)
    assert first.layers[0].vectors == sum(map(len, texts[:2]))
    with pytest.raises(TypeError, match=r"may have no end: .*stream\.take"):
        calibrate(bert, dataset.to_iterable_dataset(), tokenizer=Words())
    with pytest.raises(TypeError, match="needs tokenizer="):
        calibrate(bert, dataset)
    with pytest.raises(ValueError, match=r"no column 'sentence' \(it has text, other\)"):
        calibrate(bert, dataset, tokenizer=Words(), text_columns=("sentence",))
    with pytest.raises(TypeError, match=r"datasets\.Dataset"):
        calibrate(bert, [], tokenizer=Words())


TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}"


def letters(template=TEMPLATE):
    vocabulary = {letter: n for n, letter in enumerate(["[PAD]", "[UNK]", *" abcdefghijklmnopqrstuvwxyz:;?"])}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokens.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "model_max_length": 64}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, **names)
    tokenizer.chat_template = template
    return tokenizer


def test_a_dataset_of_conversations(bert):
    """By the tokenizer's chat template, padding left out; prompts and completions that are texts are joined."""
    pairs = [("why?", "so"), ("a film", "a good one"), ("no", "yes")]
    chats = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]
    messages = Dataset.from_dict({"messages": chats})
    report = calibrate(bert, messages, tokenizer=letters())
    assert report.layers[0].vectors == sum(len(f"u:{q};a:{a};") for q, a in pairs)
    expected = matrices(bert)
    columns = {"prompt": [chat[:1] for chat in chats], "completion": [chat[1:] for chat in chats]}
    calibrate(bert, Dataset.from_dict(columns), tokenizer=letters())
    assert_same(matrices(bert), expected)
    texts = Dataset.from_dict({"prompt": [q for q, _ in pairs], "completion": [a for _, a in pairs]})
    report = calibrate(bert, texts, tokenizer=letters(None))
    assert report.layers[0].vectors == sum(len(q + a) for q, a in pairs)
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        calibrate(bert, messages, tokenizer=letters(None))


def test_as_many_examples_as_are_asked_for(bert):
    texts = ["a film", "a good film", "no", "not a good one", "why", "so"]
    dataset = Dataset.from_dict({"text": texts})
    report = calibrate(bert, dataset, tokenizer=Words(), examples=3)
    assert report.layers[0].vectors == sum(map(len, texts[::2]))  # evenly from all of it
    batches = [{"input_ids": torch.ones(2, 5, dtype=torch.long)}] * 4
    assert calibrate(bert, iter(batches), examples=3).layers[0].vectors == 20  # to whole batches
    widths = [torch.full((2, n), n) for n in range(3, 9)]  # groups of little memory take several passes over the same
    whole = calibrate(bert, iter([{"input_ids": ids} for ids in widths]), examples=4)
    assert whole.layers[0].vectors == 2 * 3 + 2 * 4
    expected = matrices(bert)
    given = ({"input_ids": ids} for ids in widths)
    assert calibrate(bert, given, examples=4, max_memory=64 * 2**20 + 66_000).passes > 1
    assert_same(matrices(bert), expected)
    assert calibrate(bert, batches, examples=99).layers[0].vectors == 40
    assert calibrate(bert, batches, examples=np.int8(3)).layers[0].vectors == 20
    for count in (0, True, 2.0):
        with pytest.raises(ValueError, match=f"examples={count} is not allowed: it must be a whole number of at least"):
            calibrate(bert, batches, examples=count)


def test_the_texts_of_a_dataset_are_cut_where_the_model_ends() -> None:
    asked: dict[str, Any] = {}

    def tokenizer(texts: list[str], **options: Any) -> dict[str, torch.Tensor]:
        asked.update(options)
        return {"input_ids": torch.zeros(len(texts), 3, dtype=torch.long)}

    assert len(list(as_batches(Dataset.from_dict({"text": ["a"]}), tokenizer))) == 1
    assert asked["truncation"] is True


def test_a_row_without_a_text_is_named() -> None:
    rows = Dataset.from_dict({"text": ["a", "b", "c", None]})
    batches = as_batches(rows, lambda texts, **_: {"input_ids": torch.zeros(len(texts), 1)}, batch_size=2)
    with pytest.raises(ValueError, match=r"a row without 'text' \(row 3 of those read\)"):
        list(batches)


def test_the_first_batches_of_an_iterator_are_the_same_in_each_pass() -> None:
    data = Passes(as_batches(iter([torch.full((2, 3), float(n)) for n in range(6)]), examples=4))
    data.hold()
    assert [[float(batch[0, 0]) for batch in data.one_pass()] for _ in range(2)] == [[0.0, 1.0]] * 2


def test_what_goes_with_a_dataset_is_refused_without_one(bert, batches):
    """It would not be used."""
    for name, value in {"text_columns": "text", "batch_size": 32, "max_length": 7}.items():
        with pytest.raises(TypeError, match=rf"{name} goes with a datasets\.Dataset and its tokenizer"):
            calibrate(bert, batches, **{name: value})
    for wrong in (5, (), ("a", "b", "c"), [1]):
        with pytest.raises(ValueError, match=r"text_columns=.* is not allowed: it must be the name of a column"):
            as_batches(Dataset.from_dict({"text": ["a"]}), Words(), text_columns=wrong)
    conversations = Dataset.from_dict({"messages": [[{"role": "user", "content": "a"}]]})
    with pytest.raises(ValueError, match=r"no column 'text' \(it has messages\)"):
        as_batches(conversations, letters(), text_columns="text")


def test_a_batch_of_one_number(bert):
    with pytest.raises(TypeError, match="a tensor of several examples, not a tensor of one number"):
        calibrate(bert, [torch.tensor(3)])


ON_TEXTS = {
    "calibrate": calibrate,
    "merge_gap": merge_gap,
    "probe": lambda *given, **options: probe(*given, rank=2, **options),
}


@pytest.mark.parametrize("name", ON_TEXTS)
def test_every_pass_takes_texts_and_shows_its_progress(make_gpt2, name, capsys):
    texts = ["a film", "a good film", "no", "not a good one", "why"]
    dataset = Dataset.from_dict({"said": texts})
    fields = {"target_modules": ["c_attn"], "init_weights": False, "fan_in_fan_out": True, "task_type": "CAUSAL_LM"}
    model = get_peft_model(make_gpt2(), AuroraConfig(**fields))
    options = {"text_columns": "said", "batch_size": 2, "examples": 4, "progress": True}
    found = ON_TEXTS[name](model, dataset, tokenizer=Words(), **options)
    assert "pass 1" in capsys.readouterr().err
    sizes = {"merge_gap": lambda: found.predictions, "calibrate": lambda: found.layers[0].vectors}
    if name in sizes:
        assert sizes[name]() == sum(map(len, texts[:4]))
    else:
        assert found.batches == 2


def test_texts_are_probed_by_the_next_token(make_gpt2, make_bert):
    """Padding left out; without labels, only where that is what the model is for, or with a loss."""
    texts = ["a film", "a good film", "no", "not a good one"]
    dataset = Dataset.from_dict({"text": texts})
    found = probe(make_gpt2(), dataset, tokenizer=Words(), batch_size=2, rank=2)
    batches = list(as_batches(dataset, Words(), batch_size=2))
    labelled = [
        {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)} for batch in batches
    ]
    expected = probe(make_gpt2(), labelled, rank=2)
    for one, other in zip(found.layers, expected.layers, strict=True):
        torch.testing.assert_close(one.singular_values, other.singular_values)
    with pytest.raises(TypeError, match=r"have no labels, .*: give loss="):
        probe(make_bert(), dataset, tokenizer=Words())
    own = probe(
        make_bert(), dataset, tokenizer=Words(), loss=lambda model, batch: model(**batch).logits.square().mean()
    )
    assert own.layers
