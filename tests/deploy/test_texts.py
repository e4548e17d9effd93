"""Texts and conversations as the model is given them."""

from typing import Any

import datasets
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from aurora_lora.deploy.inputs import as_batches

TEMPLATE = (
    "{% if tools %}{% for one in tools %}{{ one | tojson }}{% endfor %}{% endif %}{% if mild %}mild{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)


def characters(**options: Any) -> PreTrainedTokenizerFast:
    """A token for each character."""
    vocabulary = {chr(n): n for n in range(128)}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="\x01"))
    tokens.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="\x00", unk_token="\x01", **options)
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


@pytest.mark.parametrize("column", ["messages", "prompt"])
def test_the_template_of_each_row_gets_its_tools(column: str) -> None:
    """Each with the fields that it was given alone, as in training."""
    tokenizer = characters()
    rows: list[dict[str, Any]] = [{"tools": tools, "chat_template_kwargs": {"mild": tools is None}} for tools in TOOLS]
    for row in rows:
        row |= {"messages": MESSAGES} if column == "messages" else {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}
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
