"""Which tokens are the answers': those of the definition, with tokenizers and templates of all kinds."""

import itertools
from collections.abc import Sequence
from importlib import resources
from typing import Any

import chats
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordLevel, WordPiece
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from aurora_lora.deploy.inputs import IGNORED
from aurora_lora.train.chat_data import _Preparation
from aurora_lora.train.chat_format import CHATML
from aurora_lora.train.chat_labels import label_answers

pytest.importorskip("trl")

SPECIAL = (
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<start_of_turn>", "<end_of_turn>", "<|begin_of_text|>", "<|user|>", "<|assistant|>", "<|end|>"),
)
CORPUS = [
    "the film was good : very good .\n\nassistant\nuser\n  system the plot  was bad\n",
    "Assistant: the end .\n\n\n- the plot was naïve 日本語",
] * 20
CHATML_PLAIN = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "").replace("END", "<|im_end|>")
SPOKEN = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""Its generation prompt ends in a blank, which byte-level tokenizers join to the first word of an answer."""
ENDLESS = SPOKEN.replace("m.content + eos_token + '\n'", "m.content")
"""A token can have the end of an answer and the beginning of what follows."""
REWRITES = "{{ messages | length }}" + chats.PLAIN


def _given(tokens: Any, **options: Any) -> Any:
    return PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<s>", eos_token="</s>", **options)


def _bytes() -> Any:
    """As GPT-2's, with line breaks that are tokens of their own, as in Gemma's."""
    tokens: Any = Tokenizer(BPE())
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokens.train_from_iterator(CORPUS, BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    tokens.add_special_tokens(list(SPECIAL))
    tokens.add_tokens([AddedToken("\n\n\n", normalized=False), AddedToken("film", normalized=False, single_word=True)])
    return _given(tokens)


def _metaspace() -> Any:
    """As Llama 2's and Phi's: a space before the first word, and special tokens that take the blanks behind them."""
    tokens: Any = Tokenizer(Unigram())
    tokens.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokens.decoder = decoders.Metaspace(prepend_scheme="first")
    tokens.train_from_iterator(CORPUS, UnigramTrainer(vocab_size=80, unk_token="<unk>", show_progress=False))
    tokens.add_special_tokens([AddedToken(one, normalized=False, rstrip=True, special=True) for one in SPECIAL[:9]])
    tokens.add_special_tokens([AddedToken(one, normalized=True, special=True) for one in SPECIAL[9:]])
    return _given(tokens, unk_token="<unk>")


def _lower_case() -> Any:
    """As BERT's: blanks, case and accents are lost."""
    tokens: Any = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokens.normalizer, tokens.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokens.train_from_iterator(CORPUS, WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]"], show_progress=False))
    tokens.add_special_tokens(list(SPECIAL))
    return _given(tokens, unk_token="[UNK]")


def _words() -> Any:
    """Words and no special tokens."""
    words = [*dict.fromkeys(" ".join(CORPUS).split()), "<s>", "</s>", "?"]
    tokens: Any = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="?"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _given(tokens, unk_token="?")


def _unsplit() -> Any:
    """Special tokens are text like any other."""
    tokenizer = _bytes()
    tokenizer.split_special_tokens = True
    return tokenizer


MAKERS = {
    "bytes": _bytes,
    "metaspace": _metaspace,
    "lower case": _lower_case,
    "words": _words,
    "unsplit": _unsplit,
    "slow": ByT5Tokenizer,
}


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return MAKERS[request.param]()


def _template(name: str) -> str:
    own = {"plain": chats.PLAIN, "chatml": CHATML_PLAIN, "rewrites": REWRITES, "spoken": SPOKEN, "endless": ENDLESS}
    return own.get(name) or (resources.files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def _by_definition(messages: Sequence[dict[str, str]], tokenizer: Any) -> dict[str, list[int]] | None:
    """What each answer adds to the conversation before it, without blanks at its end; None where that is not told."""

    def rendered(some: Sequence[dict[str, str]], **options: Any) -> str:
        return str(tokenizer.apply_chat_template(list(some), tokenize=False, **options))

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    text = rendered(messages)
    whole = ids(text)
    places: list[tuple[int, int]] = []
    if tokenizer.is_fast:
        places = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]

    def length(part: str, since: int) -> int | None:
        own = ids(part)
        if whole[: len(own)] == own:
            return len(own)
        if not text.startswith(part):
            return None
        if not places:
            return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(own, whole, strict=False))))
        first = len(list(itertools.takewhile(lambda place: place[1] <= len(part), places)))
        return first + (first < len(places) and bool(text[max(since, places[first][0]) : len(part)].strip()))

    labels = [IGNORED] * len(whole)
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            before = rendered(messages[:number], add_generation_prompt=True)
            start, end = length(before, len(text)), length(rendered(messages[: number + 1]), len(before))
            if start is None or end is None:
                return None
            while end > start and not tokenizer.decode([whole[end - 1]]).strip():
                end -= 1
            labels[start:end] = whole[start:end]
    return {"input_ids": whole, "labels": labels}


def _labelled(messages: Sequence[dict[str, str]], tokenizer: Any) -> dict[str, list[int]] | None:
    try:
        made = label_answers({"messages": [messages]}, tokenizer)
    except ValueError as error:
        if "it writes earlier messages anew" not in str(error):
            raise
        return None
    return {name: one.tolist() for name, (one,) in made.items()}


PARTS = st.sampled_from(
    (*" \n\tAé日🙂.:", "\n\n", "\n\n\n", "  ", "film", "good", " plot", "</think>", "<|im_end|>", "<s>", "日本語")
)
TEXTS = st.lists(PARTS, max_size=6).map("".join) | st.text(max_size=4)
TURNS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3)


@pytest.mark.parametrize(
    "template",
    [
        *("plain", "chatml", "rewrites", "spoken", "endless"),
        *("llama3", "qwen2_5", "qwen3", "gemma", "phi3", "deepseekv3"),
    ],
)
def test_answers_are_those_of_the_definition(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = _template(template)

    @settings(max_examples=25, deadline=None, derandomize=True, database=None)
    @given(system=st.none() | TEXTS, turns=TURNS, last=st.none() | TEXTS)
    def check(system: str | None, turns: list[tuple[str, str]], last: str | None) -> None:
        said = [] if system is None else [{"role": "system", "content": system}]
        for asked, answer in turns:
            said += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        said += [] if last is None else [{"role": "user", "content": last}]
        try:
            expected = _by_definition(said, tokenizer)
        except Exception as refused:  # Jinja's, of the template
            with pytest.raises(type(refused)):
                label_answers({"messages": [said]}, tokenizer)
        else:
            assert _labelled(said, tokenizer) == expected

    check()


def test_every_conversation_is_tokenised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = _bytes()
    tokenizer.chat_template = CHATML_PLAIN
    turns = [{"role": "user", "content": "the film ?"}, {"role": "assistant", "content": "good"}]
    rows = [[*turns * 3, {"role": "user", "content": f"plot {number}"}] for number in range(50)]
    seen: list[str] = []
    own = PreTrainedTokenizerFast.__call__

    def called(self: Any, text: Any, **options: Any) -> Any:
        seen.extend(text)
        return own(self, text, **options)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", called)
    made = label_answers({"messages": rows}, tokenizer)
    for ids, labels in zip(made["input_ids"], made["labels"], strict=True):
        assert tokenizer.decode(ids[labels != IGNORED]) == "good<|im_end|>" * 3
    whole, tails = seen[:50], seen[50:]
    assert whole == [tokenizer.apply_chat_template(row, tokenize=False) for row in rows]
    assert sorted(tails) == ["<|im_end|>\n", "<|im_start|>assistant\n"]


OWN_SYSTEM = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}"
    "{{ '<|im_start|>system\nyou are a film critic<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _learned(tokenizer: Any, messages: Sequence[Any]) -> str:
    made = label_answers({"messages": [messages]}, tokenizer)
    (ids,), (labels,) = made["input_ids"], made["labels"]
    return str(tokenizer.decode(ids[labels != IGNORED]))


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (OWN_SYSTEM, "<|im_end|>"),
        (OWN_SYSTEM.replace("m.content", "(' ' + m.content) | trim"), "<|im_end|>"),
        (_template("qwen2_5"), "<|im_end|>"),  # refuses a prompt without messages
        (_template("llama3"), "<|eot_id|>"),
    ],
    ids=["own system", "trim", "qwen2_5", "llama3"],
)
@pytest.mark.parametrize("first", ["good", "a film critic", "e"])
def test_of_an_answer_that_comes_first_what_precedes_it_is_not_learned(template: str, end: str, first: str) -> None:
    """A system message that the template has by itself, and the header."""
    tokenizer = _bytes()
    tokenizer.chat_template = template
    said = [{"role": "assistant", "content": first}, {"role": "user", "content": "film 28"}]
    assert _learned(tokenizer, [*said, {"role": "assistant", "content": "bad"}]) == f"{first}{end}bad{end}"
    assert _learned(tokenizer, said) == f"{first}{end}"


def test_a_first_answer_that_calls_a_tool_or_thinks() -> None:
    tokenizer = _bytes()
    call = {"type": "function", "function": {"name": "find", "arguments": {"film": "a"}}}
    asked = {"role": "user", "content": "film"}
    tokenizer.chat_template = _template("qwen2_5")
    for content in ("", "good"):
        learned = _learned(tokenizer, [{"role": "assistant", "content": content, "tool_calls": [call]}, asked])
        assert learned.strip().startswith(content or "<tool_call>")
        assert learned.endswith("</tool_call><|im_end|>")
    thinks = "{{ '<think>' + m.reasoning_content + '</think>' if m.reasoning_content else '' }}"
    tokenizer.chat_template = OWN_SYSTEM.replace("+ m.content", f"}}}}{thinks}{{{{ m.content")
    learned = _learned(tokenizer, [{"role": "assistant", "content": "good", "reasoning_content": "the plot"}, asked])
    assert learned == "the plot</think>good<|im_end|>"


def test_a_first_answer_is_left_out_where_its_place_is_not_told() -> None:
    tokenizer = _bytes()
    only = "{% if messages[0].content != 'good' %}{{ raise_exception('not so') }}{% endif %}"
    tokenizer.chat_template = only + OWN_SYSTEM
    said = [{"role": role, "content": "good"} for role in ("assistant", "user", "assistant")]
    assert _learned(tokenizer, said) == "good<|im_end|>"


FILM = [
    {"role": "user", "content": "the film ?"},
    {"role": "assistant", "content": "good film"},
    {"role": "user", "content": "the plot ?"},
    {"role": "assistant", "content": "bad"},
]


def test_a_token_that_is_partly_of_the_answer_is_learned() -> None:
    """As where a blank at the end of the prompt and the first word of the answer are one token."""
    tokenizer = _bytes()
    tokenizer.chat_template = SPOKEN
    assert tokenizer.tokenize(": good") == [":", "Ġgood"]
    assert _learned(tokenizer, FILM) == " good film</s> bad</s>"
    assert _learned(tokenizer, FILM[1:]) == " good film</s> bad</s>"
    tokenizer.chat_template = _template("llama3")  # its two line breaks are one token, or two before a text
    assert _learned(tokenizer, FILM) == "good film<|eot_id|>bad<|eot_id|>"


def test_such_a_token_is_learned_of_a_completion_too() -> None:
    """Of the format of which TRL finds the place."""
    tokenizer = _bytes()
    tokenizer.chat_template = SPOKEN
    learned = []
    for row in ({"messages": FILM[:2]}, {"prompt": FILM[:1], "completion": FILM[1:2]}):
        (made,) = _Preparation(tokenizer, True, 0).tokens(Dataset.from_list([row]))
        learned.append([token for token in made["labels"] if token != IGNORED])
    assert tokenizer.decode(learned[0]) == " good film</s>"
    assert learned[1] == [*learned[0], *tokenizer("\n")["input_ids"]]


def test_a_token_that_is_partly_of_the_next_message_is_learned() -> None:
    tokenizer = _bytes()
    tokenizer.add_tokens([AddedToken("film user", normalized=False)])
    tokenizer.chat_template = SPOKEN.replace("eos_token + '\n'", "' '")
    assert _learned(tokenizer, FILM) == " good film user bad"
    tokenizer.chat_template = SPOKEN.replace("eos_token + '\n'", "'!\n'")
    tokenizer.add_tokens([AddedToken("\nuser", normalized=False)])
    assert _learned(tokenizer, FILM) == " good film! bad!"
