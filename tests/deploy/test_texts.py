"""The batches that are made of what a user gives: loaders, iterators, tensors, data sets of texts and conversations."""

import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import PreTrainedTokenizerFast

from aurora_lora import AuroraConfig, calibrate, probe
from aurora_lora.deploy.inputs import as_batches

sys.path.insert(0, str(Path(__file__).parent))

from calibrated import assert_same, matrices


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
    with pytest.raises(TypeError, match=r"Of a streamed one give the first rows: .*stream\.take"):
        calibrate(bert, dataset.to_iterable_dataset(), tokenizer=Words())
    with pytest.raises(TypeError, match="needs tokenizer="):
        calibrate(bert, dataset)
    with pytest.raises(ValueError, match=r"no column 'sentence' \(it has text, other\)"):
        calibrate(bert, dataset, tokenizer=Words(), text_columns=("sentence",))
    with pytest.raises(TypeError, match=r"datasets\.Dataset"):
        calibrate(bert, [], tokenizer=Words())


def test_as_many_examples_as_are_asked_for(bert):
    texts = ["a film", "a good film", "no", "not a good one", "why", "so"]
    dataset = Dataset.from_dict({"text": texts})
    report = calibrate(bert, dataset, tokenizer=Words(), examples=3)
    assert report.layers[0].vectors == sum(map(len, texts[::2]))  # evenly from all of it
    batches = [{"input_ids": torch.ones(2, 5, dtype=torch.long)}] * 4
    assert calibrate(bert, iter(batches), examples=3).layers[0].vectors == 20  # to whole batches
    assert calibrate(bert, batches, examples=99).layers[0].vectors == 40
    with pytest.raises(ValueError, match="examples=0 is not allowed: it must be a whole number of at least 1"):
        calibrate(bert, batches, examples=0)
    with pytest.raises(TypeError, match=r"batch_size goes with a datasets\.Dataset and its tokenizer"):
        calibrate(bert, batches, batch_size=32)
    with pytest.raises(TypeError, match="a tensor of several examples"):
        calibrate(bert, [torch.tensor(3)])


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


TEMPLATE = (
    "{% if tools %}{% for one in tools %}{{ one | tojson }}{% endfor %}{% endif %}{% if mild %}mild{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)


def characters(**options: Any) -> PreTrainedTokenizerFast:
    """A token for each character."""
    vocabulary = {chr(n): n for n in range(128)}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="\x01"))
    tokens.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    options = {"pad_token": "\x00", "unk_token": "\x01", **options}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, **options)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def texts_of(dataset: Any, tokenizer: Any, **options: Any) -> list[str]:
    batches: Any = as_batches(dataset, tokenizer, **options)
    return [
        "".join(map(chr, ids[mask.bool()]))
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


MESSAGES = [{"role": "user", "content": "how warm is it?"}, {"role": "assistant", "content": "mild"}]
TOOLS = [[{"name": "weather", "place": "Rome"}], None, [{"name": "time"}]]


@pytest.mark.parametrize("column", ["messages", "prompt", "chosen"])
def test_the_template_of_each_row_gets_its_tools(column: str) -> None:
    """Each with the fields that it was given alone, as in training."""
    tokenizer = characters()
    rows: list[dict[str, Any]] = [{"tools": tools, "chat_template_kwargs": {"mild": tools is None}} for tools in TOOLS]
    for row in rows:
        row |= {
            "messages": {"messages": MESSAGES},
            "prompt": {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
            "chosen": {"prompt": MESSAGES[:1], "chosen": MESSAGES[1:], "rejected": MESSAGES[:1]},
        }[column]
    found = texts_of(datasets.Dataset.from_list(rows), tokenizer, batch_size=2)
    expected = [
        tokenizer.apply_chat_template(MESSAGES, tools=tools, mild=tools is None, tokenize=False) for tools in TOOLS
    ]
    assert found == expected
    assert '"weather"' in found[0]
    assert found[1].startswith("mild<user>")
    assert '{"name": "time"}' in found[2]  # without "place": null


def test_the_chosen_answers_of_preferences() -> None:
    """As texts, and as whole conversations, which have their prompt in them."""
    rows = datasets.Dataset.from_dict({"chosen": ["mild", "warm"], "rejected": ["no", "no"]})
    assert texts_of(rows, characters()) == ["mild", "warm"]
    assert texts_of(rows.add_column("prompt", ["a ", "b "]), characters()) == ["a mild", "b warm"]
    rows = datasets.Dataset.from_dict({"chosen": [MESSAGES], "rejected": [MESSAGES[:1]]})
    assert texts_of(rows, characters()) == ["<user>how warm is it?<assistant>mild"]


@pytest.mark.parametrize(
    "rows",
    [
        {"text": ["a" * 9, "ab"]},
        {"prompt": ["a" * 9, "a"], "completion": ["b" * 9, "b"]},
        {"messages": [MESSAGES, MESSAGES]},
        {"messages": [MESSAGES, MESSAGES], "tools": TOOLS[:2]},
    ],
)
def test_longer_texts_are_cut_at_max_length(rows: dict[str, Any]) -> None:
    """Without it, at the tokenizer's own length."""
    dataset, tokenizer = datasets.Dataset.from_dict(rows), characters()
    whole = texts_of(dataset, tokenizer)
    assert max(map(len, whole)) > 6
    assert texts_of(dataset, tokenizer, max_length=6) == [one[:6] for one in whole]
    tokenizer.model_max_length = 4
    assert texts_of(dataset, tokenizer) == [one[:4] for one in whole]
    assert texts_of(dataset, tokenizer, max_length=6) == [one[:6] for one in whole]
