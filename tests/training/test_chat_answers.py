"""What a model answers: within its positions, by the settings that are said, in the format it was trained in."""

from pathlib import Path
from typing import Any

import chats
import pytest
import torch
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.errors import UserError
from aurora_lora.training.chat_answers import Talk, write_answers
from aurora_lora.training.merge_and_predict import Predictor, load_predictor
from aurora_lora.training.run import train

pytest.importorskip("trl")
SHORT, LONG = "film ?", "film : " * 20 + "good ?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 128 positions whose tokenizer has a chat template."""
    return chats.save_model(tmp_path_factory.mktemp("chat-model"))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 of 32 positions, which has none beyond them."""
    return chats.save_model(tmp_path_factory.mktemp("gpt2"), positions=32)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def by_hand(predictor: Predictor, ids: list[int], count: int) -> str:
    """The likeliest token each time, by whole forward passes."""
    tokenizer: Any = predictor.processor
    made = list(ids)
    while len(made) < len(ids) + count and made[-1] != tokenizer.eos_token_id:
        with torch.no_grad():
            made.append(int(predictor.model(input_ids=torch.tensor([made])).logits[0, -1].argmax()))
    return str(tokenizer.decode(made[len(ids) :], skip_special_tokens=True)).strip()


def test_of_a_prompt_that_is_too_long_the_end_is_read(few: Path) -> None:
    predictor = load_predictor(few)
    tokenizer: Any = predictor.processor
    ids = tokenizer.apply_chat_template(user(LONG), add_generation_prompt=True, return_dict=True)["input_ids"]
    assert len(ids) > 40
    both = write_answers(predictor.model, tokenizer, [user(LONG), user(SHORT)])
    assert both[0] == by_hand(predictor, ids[-16:], 16)
    assert write_answers(predictor.model, tokenizer, [user(LONG)], 4)[0] == by_hand(predictor, ids[-28:], 4)
    assert both[1] == write_answers(predictor.model, tokenizer, [user(SHORT)])[0]
    assert [one["answer"] for one in predictor.answers([LONG])] == both[:1]


def test_samples_of_long_conversations(few: Path, tmp_path: Path) -> None:
    method = "method={name: aurora, target_modules: [c_attn]}"
    recipe = chats.read(tmp_path, few, "messages", method, "task.max_length=32", "training.epochs=1")
    assert len(train(recipe, tmp_path / "run").result["samples"]) == 3


def test_a_message_that_is_too_long_ends_no_talk(few: Path) -> None:
    def said(lines: str) -> Any:
        return CliRunner().invoke(cli.app, ["chat", str(few)], input=lines)

    done = said(f"{LONG}\n{SHORT}\n")
    assert (done.exit_code, done.stdout) == (2, said(f"{SHORT}\n").stdout)
    assert done.stderr == ("the message is too long: 46 tokens, where the model takes 16 and an answer of 16\n")
    talk = Talk(load_predictor(few))
    talk.say(SHORT, lambda text: None)
    before = list(talk.said)
    with pytest.raises(UserError, match="the message is too long"):
        talk.say(LONG, lambda text: None)
    assert talk.said == before


@pytest.mark.parametrize("max_new_tokens", [64, 128, 1000])
def test_long_answers_leave_a_memory(model: Path, max_new_tokens: int) -> None:
    talk = Talk(load_predictor(model), max_new_tokens)
    talk.said = [*user(SHORT), {"role": "assistant", "content": "fine"}]
    talk.say(SHORT, lambda text: None)
    assert [one["content"] for one in talk.said[:3]] == [SHORT, "fine", SHORT]


def test_the_models_own_settings_of_generation_change_nothing(model: Path) -> None:
    """They are taken for whatever is not said."""
    plain, other = load_predictor(model), load_predictor(model)
    settings: Any = other.model.generation_config
    own = {"repetition_penalty": 50.0, "num_beams": 3, "no_repeat_ngram_size": 1}
    settings.update(**own, do_sample=True, top_k=1, top_p=0.01, min_p=0.9, temperature=0.1)
    assert other.answers([SHORT, LONG]) == plain.answers([SHORT, LONG])
    drawn = [Talk(one, 32, temperature=20.0, seed=3).say(SHORT, lambda text: None) for one in (plain, other)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0].split())) > 5  # at such a temperature, almost any token: not the likeliest alone
