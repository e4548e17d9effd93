"""What a model answers: within its positions, by the settings that are said, in the format it was trained in."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import chats
import pytest
import torch
from transformers import AddedToken
from typer.testing import CliRunner

from aurora_lora import cli
from aurora_lora.errors import ArgumentError
from aurora_lora.train import predicting
from aurora_lora.train.data import notes
from aurora_lora.train.kinds.chat import KEY, answers_greedily
from aurora_lora.train.predicting import Predictor, Talk, load_predictor
from aurora_lora.train.run import train

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
    both, cut = answers_greedily(predictor.model, tokenizer, [user(LONG), user(SHORT)])
    assert cut == [16, None]
    assert both[0] == by_hand(predictor, ids[-16:], 16)
    assert answers_greedily(predictor.model, tokenizer, [user(LONG)], 4) == ([by_hand(predictor, ids[-28:], 4)], [28])
    assert answers_greedily(predictor.model, tokenizer, [user(SHORT)]) == (both[1:], [None])
    assert [one["answer"] for one in predictor.answers([LONG])] == both[:1]


def test_a_chat_template_that_writes_nothing(few: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(few, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("")
    done = CliRunner().invoke(cli.app, ["chat", str(folder)], input=f"{SHORT}\n")
    assert (done.exit_code, done.stderr) == (2, "the chat template refuses it: it writes nothing\n")


def test_prompts_that_are_cut_are_told(model: Path, few: Path, tmp_path: Path) -> None:
    """One that just fits is not cut."""
    told = "aurora: 1 of 2 texts are longer than {} tokens and are cut\n"
    tokenizer: Any = load_predictor(few).processor
    fits = next(
        text
        for text in ("film " * count for count in range(16, 0, -1))
        if len(tokenizer.apply_chat_template(user(text), add_generation_prompt=True, return_dict=True)["input_ids"])
        == 16
    )
    for folder, long, short, most in ((few, LONG, fits, 16), (model, "film " * 300, SHORT, 64)):
        done = ask("predict", folder, long, short, "--json")
        assert [one.get("cut_at") for one in json.loads(done.stdout)] == [most, None]
        assert done.stderr == told.format(most)
        rows = [{"messages": [{"role": "system", "content": "good"}, *user(text)]} for text in (long, "?")]
        (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        done = ask("predict", folder, tmp_path / "asked.jsonl", "-o", tmp_path / "said.jsonl", "--overwrite")
        assert [row.get("cut_at") for row in lines(tmp_path / "said.jsonl")] == [most, None]
        assert told.format(most) in done.stderr


def test_an_end_of_the_turn_that_is_no_special_token_is_no_part_of_the_answer(model: Path) -> None:
    predictor = load_predictor(model)
    tokenizer: Any = predictor.processor
    inner: Any = predictor.model
    tokenizer.add_tokens([AddedToken("<|im_end|>", special=False)])
    inner.resize_token_embeddings(len(tokenizer))
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    written = torch.tensor([tokenizer("fine", add_special_tokens=False)["input_ids"] + [end]])

    def generate(input_ids: Any, streamer: Any = None, **_: Any) -> Any:
        for tokens in (input_ids, *written[0].split(1)) if streamer is not None else ():
            streamer.put(tokens)
        if streamer is not None:
            streamer.end()
        return torch.cat((input_ids, written.expand(len(input_ids), -1)), dim=1)

    inner.generate = generate
    shown: list[str] = []
    talk = Talk(predictor, max_new_tokens=4)
    assert talk.say("a film", shown.append) == "fine"
    assert "".join(shown).strip() == "fine"
    (answer, *_), _ = answers_greedily(inner, tokenizer, [user("a film")], 4)
    assert answer == "fine"


def test_a_message_that_is_too_long_ends_no_talk(few: Path) -> None:
    def said(lines: str) -> Any:
        return CliRunner().invoke(cli.app, ["chat", str(few)], input=lines)

    done = said(f"{LONG}\n{SHORT}\n")
    assert (done.exit_code, done.stdout) == (2, said(f"{SHORT}\n").stdout)
    assert done.stderr == ("the message is too long: 46 tokens, where the model takes 16 and an answer of 16\n")


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


def test_a_seed_and_a_temperature_decide_what_is_drawn(model: Path) -> None:
    predictor = load_predictor(model)

    def say(**options: Any) -> str:
        return Talk(predictor, 32, **options).say(SHORT, lambda text: None)

    first, other, again = (say(temperature=20.0, seed=seed) for seed in (0, 1, 0))
    assert first == again != other
    assert say(temperature=1e-3) == say() != first


def test_a_talk_has_the_options_of_the_command(few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, talk = Mock(), Mock(return_value=SimpleNamespace(is_plain=False))
    monkeypatch.setattr(predicting, "load_predictor", load)
    monkeypatch.setattr("aurora_lora.train.predicting.Talk", talk)
    options = ("--form", "static", "--dtype", "bfloat16", "--max-new-tokens", 5, "--system", "the film")
    ask("chat", few, *options, "--seed", 3, "--temperature", 1)
    load.assert_called_once_with(few, form="static", dtype="bfloat16")
    talk.assert_called_once_with(load.return_value, 5, system="the film", temperature=1.0, seed=3)


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def ask(*args: object, stdin: str = "", code: int = 0) -> Any:
    done = CliRunner().invoke(cli.app, [str(arg) for arg in args], input=stdin)
    assert done.exit_code == code, done.output
    return done


@pytest.mark.slow
@pytest.mark.parametrize("form", ["texts", "text"])
def test_trained_on_texts_it_goes_on_with_texts(model: Path, tmp_path: Path, form: str) -> None:
    """A prompt where its tokenizer has no chat template; a text also where it has one."""
    base = chats.save_model(tmp_path / "plain", template=None) if form == "texts" else model
    run = train(chats.read(tmp_path, base, form), tmp_path / "run")
    ask("merge", run.folder, "-o", tmp_path / "merged")
    shutil.copytree(tmp_path / "merged", tmp_path / "copied")
    (tmp_path / "copied" / "aurora_merge.json").unlink()  # as on the hub, say
    text = chats.row(chats.conversations(1)[0], "texts")["prompt"]
    name = "prompt" if form == "texts" else "text"
    (tmp_path / "asked.jsonl").write_text(json.dumps({name: text}) + "\n")
    for folder in (run.folder, tmp_path / "merged", tmp_path / "copied"):
        predictor = load_predictor(folder)
        tokenizer: Any = predictor.processor
        ids = tokenizer(text)["input_ids"]
        expected = by_hand(predictor, ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids, 64)
        assert predictor.answers([text])[0]["answer"] == expected
        ask("predict", folder, tmp_path / "asked.jsonl", "-o", tmp_path / "said.jsonl", "--overwrite")
        assert lines(tmp_path / "said.jsonl")[0]["answer"] == expected
        said = ask("chat", folder, stdin=f"{text}\n{text}\n")  # of which nothing is remembered
        assert said.stdout.split() == expected.split() * 2
        assert said.stderr == "the model was trained on plain text: what is typed is continued as it stands\n"
        with pytest.raises(ArgumentError, match="`system` goes with conversations"):
            Talk(predictor, system="the film")
        if form == "text":
            messages = predictor.answers_to([user(SHORT)], 1)  # through the template, as asked
            assert messages[0]["answer"] == answers_greedily(predictor.model, tokenizer, [user(SHORT)])[0][0]
    for folder in ("adapter", "lora"):
        assert json.loads((run.folder / folder / "tokenizer_config.json").read_text())[KEY] == name


def test_a_prompt_is_trained_and_asked_in_the_chat_template(model: Path, tmp_path: Path) -> None:
    """As messages are: a prompt of a file is answered as what a user says."""
    runs = {form: train(chats.read(tmp_path, model, form), tmp_path / form) for form in ("texts", "prompt")}
    texts, messages = runs["texts"].result, runs["prompt"].result
    (tmp_path / "asked.jsonl").write_text(json.dumps({"prompt": SHORT}) + "\n")
    ask("predict", runs["texts"].folder, tmp_path / "asked.jsonl", "-o", tmp_path / "said.jsonl")
    predictor = load_predictor(runs["texts"].folder)
    assert lines(tmp_path / "said.jsonl")[0]["answer"] == predictor.answers_to([user(SHORT)], 1)[0]["answer"]
    assert "plain text" not in ask("chat", runs["texts"].folder, stdin=f"{SHORT}\n").stderr
    assert sum("chat template" in line for line in notes(texts["data"])) == 1
    assert not any("chat template" in line for line in notes(messages["data"]))


@pytest.mark.slow
def test_a_conversation_after_plain_texts_is_one_again(model: Path, tmp_path: Path) -> None:
    plain = train(chats.read(tmp_path, model, "text", "training.epochs=1"), tmp_path / "plain").folder
    ask("merge", plain, "-o", tmp_path / "base")
    run = train(chats.read(tmp_path, tmp_path / "base", "messages", "training.epochs=1"), tmp_path / "run").folder
    predictor = load_predictor(run)
    assert predictor.answers([SHORT])[0]["answer"] == predictor.answers_to([user(SHORT)], 1)[0]["answer"]
    assert "plain text" not in ask("chat", run, stdin=f"{SHORT}\n").stderr


@pytest.mark.parametrize(
    ("row", "message"),
    [({"prompt": None}, "'prompt' is empty"), ({"text": 7}, "'text' is 7, which is no text")],
)
def test_a_row_without_a_question(model: Path, tmp_path: Path, row: Any, message: str) -> None:
    (tmp_path / "asked.jsonl").write_text(json.dumps(row) + "\n")
    done = ask("predict", model, tmp_path / "asked.jsonl", "-o", tmp_path / "said.jsonl", code=2)
    assert done.stderr == f"{tmp_path / 'asked.jsonl'}, line 1: {message}\n"
    assert not (tmp_path / "said.jsonl").exists()
