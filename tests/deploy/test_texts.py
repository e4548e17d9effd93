"""Texts and conversations as the model is given them."""

import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from aurora_lora.deploy.batches import as_batches
from peft import get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from aurora_lora import AuroraConfig, calibrate, merge_gap, merge_quantized

sys.path.insert(0, str(Path(__file__).parent))

import quantised

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


def test_tools_as_json_and_what_is_none() -> None:
    rows = datasets.Dataset.from_dict({"messages": [MESSAGES] * 3, "tools": ['[{"name": "time"}]', None, "time"]})
    assert texts_of(rows.select([0, 1]), characters())[0].startswith('{"name": "time"}<user>')
    with pytest.raises(ValueError, match=r"In row 2 of those read, 'tools' is no JSON: .*\.$"):
        texts_of(rows, characters(), batch_size=2)


def test_the_chosen_answers_of_preferences() -> None:
    """As texts, and as whole conversations, which have their prompt in them."""
    rows = datasets.Dataset.from_dict({"chosen": ["mild", "warm"], "rejected": ["no", "no"]})
    assert texts_of(rows, characters()) == ["mild", "warm"]
    assert texts_of(rows.add_column("prompt", ["a ", "b "]), characters()) == ["a mild", "b warm"]
    mixed = datasets.Dataset.from_dict({"prompt": ["a"], "chosen": [MESSAGES]})
    with pytest.raises(ValueError, match="Row 0 of those read has a text beside a list of messages"):
        texts_of(mixed, characters())
    rows = datasets.Dataset.from_dict({"chosen": [MESSAGES], "rejected": [MESSAGES[:1]]})
    assert texts_of(rows, characters()) == ["<user>how warm is it?<assistant>mild"]


def test_prompts_alone() -> None:
    """As GRPO's data sets have them, texts or messages."""
    rows = datasets.Dataset.from_dict({"prompt": ["how warm?"], "solution": ["mild"]})
    assert texts_of(rows, characters(), text_columns="prompt") == ["how warm?"]
    with pytest.raises(ValueError, match="no column 'text'"):  # their answers may be under any name
        texts_of(rows, characters())
    rows = datasets.Dataset.from_dict({"prompt": [MESSAGES[:1]], "solution": ["mild"]})
    assert texts_of(rows, characters(), text_columns=["prompt"]) == ["<user>how warm is it?"]


@pytest.mark.parametrize("columns", ["text", "pair", "texts", "messages", "template"])
def test_longer_texts_are_cut_at_max_length(columns: str) -> None:
    """Of texts, pairs, prompts that are texts and conversations alike; without it, at the tokenizer's own length."""
    rows: dict[str, list[Any]] = {
        "text": {"text": ["a" * 9, "ab"]},
        "pair": {"one": ["a" * 9, "a"], "two": ["b" * 9, "b"]},
        "texts": {"prompt": ["a" * 9, "a"], "completion": ["b" * 9, "b"]},
        "messages": {"messages": [MESSAGES, MESSAGES]},
        "template": {"messages": [MESSAGES, MESSAGES], "tools": TOOLS[:2]},
    }[columns]
    options: dict[str, Any] = {"text_columns": ("one", "two")} if columns == "pair" else {}
    dataset, tokenizer = datasets.Dataset.from_dict(rows), characters()
    whole, cut = texts_of(dataset, tokenizer, **options), texts_of(dataset, tokenizer, max_length=6, **options)
    assert max(map(len, whole)) > 6
    assert max(map(len, cut)) == 6
    if columns != "pair":  # of two texts the longer one is cut
        assert cut == [one[:6] for one in whole]
    tokenizer.model_max_length = 4
    assert max(map(len, texts_of(dataset, tokenizer, **options))) == 4
    assert max(map(len, texts_of(dataset, tokenizer, max_length=6, **options))) == 6


@pytest.mark.filterwarnings("ignore:Merging into quantised weights")
def test_each_function_that_reads_a_dataset_cuts_its_texts(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = quantised.load(quantised.save_base(tmp_path), "nf4")
    model = get_peft_model(base, AuroraConfig(target_modules=quantised.TARGETS, init_weights=False))
    widths: list[int] = []
    embedding = next(module for module in model.modules() if isinstance(module, nn.Embedding))
    embedding.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[1]))
    dataset = datasets.Dataset.from_dict({"text": ["!" * 40, "!!"]})
    for function in (calibrate, merge_gap, merge_quantized):
        widths.clear()
        function(model, dataset, tokenizer=characters(), max_length=6)
        assert set(widths) == {6}, function.__name__


def test_what_cannot_be_cut() -> None:
    rows = datasets.Dataset.from_dict({"text": ["a"]})
    with pytest.raises(ValueError, match="max_length=0 is not allowed: it must be a whole number of at least 1"):
        as_batches(rows, characters(), max_length=0)
    with pytest.raises(TypeError, match=r"max_length goes with a datasets\.Dataset and its tokenizer"):
        as_batches([{"input_ids": torch.ones(2, 5)}], max_length=4)


@pytest.mark.parametrize("column", ["text", "messages", "tools", "pair"])
def test_a_tokenizer_without_a_padding_token_pads_with_its_end_of_text(column: str) -> None:
    """As those of GPT-2 and Llama; it is as it was afterwards, also after an error."""
    tokenizer = characters(pad_token=None, eos_token="\x02")
    texts = {"text": ["warm", "a warm day"], "pair": ["yes", "no"]}
    chats = {"messages": [MESSAGES, MESSAGES[:1]]}
    dataset = datasets.Dataset.from_dict(
        chats | ({"tools": TOOLS[::2]} if column == "tools" else {}) if column in ("messages", "tools") else texts
    )
    columns: Any = ("text", "pair") if column == "pair" else "messages" if column == "tools" else column
    for batch in as_batches(dataset, tokenizer, text_columns=columns):
        mask = batch["attention_mask"].bool()
        assert not mask.all()
        assert set(batch["input_ids"][~mask].tolist()) == {2}
        assert tokenizer.pad_token_id is None
    assert texts_of(dataset, tokenizer, text_columns=columns) == texts_of(dataset, characters(), text_columns=columns)
    with pytest.raises((TypeError, ValueError)):  # as Transformers has it
        list(as_batches(datasets.Dataset.from_dict({"text": [1, 2]}), tokenizer))
    assert tokenizer.pad_token_id is None
    with pytest.raises(ValueError, match="neither a padding token nor one for the end of a text"):
        list(as_batches(dataset, characters(pad_token=None), text_columns=columns))


def test_it_calibrates_as_one_with_a_padding_token() -> None:
    dataset = datasets.Dataset.from_dict({"text": ["warm", "a warm day", "x"]})
    found = []
    for options in ({}, {"pad_token": None, "eos_token": "\x02"}):
        torch.manual_seed(0)
        net = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=128, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
            )
        )
        model = get_peft_model(net, AuroraConfig(target_modules=["q_proj"], init_weights=False))
        calibrate(model, dataset, tokenizer=characters(**options))
        found.append(model.base_model.model.model.layers[0].self_attn.q_proj.aurora_A_cal["default"])
    torch.testing.assert_close(found[1], found[0])
