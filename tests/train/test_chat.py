"""Runs on conversations: the same as TRL's, in every format, with every command after them."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chats
import pytest
import tiny
import torch
from peft import PeftModel
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    TrainerCallback,
)
from typer.testing import CliRunner

from aurora_lora import AuroraConfig, cli
from aurora_lora.data import SplitSizes
from aurora_lora.errors import UserError
from aurora_lora.train import load_run
from aurora_lora.train.data import notes
from aurora_lora.train.deploying import _stage
from aurora_lora.train.kinds import chat
from aurora_lora.train.kinds.chat import check_packing
from aurora_lora.train.measuring import evaluate
from aurora_lora.train.models import load_tokenizer
from aurora_lora.train.predicting import Talk, load_predictor
from aurora_lora.train.recipe import Recipe
from aurora_lora.train.run import load_data, load_trained_model, make_trainer, train

pytest.importorskip("trl")


class Losses(TrainerCallback):
    """What is logged at each step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "loss" in logs:
            self.values.append(logs["loss"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose tokenizer has a chat template."""
    return chats.save_model(tmp_path_factory.mktemp("chat-model"))


Read = Callable[..., Recipe]


@pytest.fixture
def read(model: Path, tmp_path: Path) -> Read:
    """`read(form, *overrides)`: the recipe on a file of that format."""

    def made(form: str = "messages", *overrides: str, base: Path = model) -> Recipe:
        return chats.read(tmp_path, base, form, *overrides)

    return made


@pytest.mark.parametrize(
    ("form", "loss_on", "options"),
    [
        ("messages", "answer", {"assistant_only_loss": True}),
        ("messages", "all", {}),
        ("prompt", "answer", {}),
        ("texts", "answer", {}),
        ("text", "all", {}),
        ("messages", "answer", {"assistant_only_loss": True, "packing": True}),
    ],
)
def test_the_losses_are_those_of_trl(
    read: Read, model: Path, tmp_path: Path, form: str, loss_on: str, options: dict[str, Any]
) -> None:
    from trl import SFTConfig, SFTTrainer

    packing = [f"task.packing={str(options.get('packing', False)).lower()}"]
    recipe = read(
        form, f"task.loss_on={loss_on}", *packing, "training.gradient_accumulation_steps=2", "training.warmup_steps=1"
    )
    ours = Losses()
    train(recipe, tmp_path / "run", make_callbacks=lambda: [ours])

    theirs = Losses()
    splits = recipe.task.definition.load_splits(SplitSizes(None, None, None), 0, ("test",), None)
    said = splits["train"]
    if form == "texts":  # which TRL trains as they stand, and we in the model's chat template
        said = said.map(
            lambda row: {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "completion": [{"role": "assistant", "content": row["completion"]}],
            }
        )
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        SFTConfig(
            output_dir=str(tmp_path / "trl"),
            num_train_epochs=2,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            learning_rate=2e-2,
            warmup_steps=1,
            max_length=64,
            seed=recipe.seed,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            **options,
        ),
        train_dataset=said,
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=AuroraConfig(target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM"),
        callbacks=[theirs],
    )
    trainer.train()
    assert ours.values == pytest.approx(theirs.values, abs=1e-5)
    assert len(ours.values) >= 4


def examples(recipe: Recipe, model: Path) -> Any:
    return load_data(recipe, load_tokenizer(str(model)))


def words(model: Path, ids: Any) -> str:
    return str(AutoTokenizer.from_pretrained(model).decode(ids))


def learned(model: Path, one: Any) -> str:
    return words(model, [token for token, label in zip(one["input_ids"], one["labels"], strict=True) if label >= 0])


@pytest.mark.parametrize("form", ["messages", "conversations", "prompt", "instruction"])
def test_only_answers_are_learned(read: Read, model: Path, form: str) -> None:
    recipe = read(form)
    data = examples(recipe, model)
    source = recipe.task.definition.load_splits(SplitSizes(None, None, None), 0, ("test",), None)["train"]
    for example, row in zip(data.splits["train"], source, strict=True):
        turns = row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]
        answers = [one["content"] for one in turns if one["role"] == "assistant"]
        wanted = answers if "messages" in row else answers[-1:]
        assert learned(model, example) == " ".join(f"{answer} [SEP]" for answer in wanted)
        assert words(model, example["input_ids"]).count("film :") == sum(one["role"] == "user" for one in turns)


@pytest.mark.parametrize(
    ("template", "marked"),
    [
        ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
         "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}", True),
        (chats.PLAIN, False),
    ],
)  # fmt: skip
def test_a_template_without_marks(read: Read, model: Path, tmp_path: Path, template: str, marked: bool) -> None:
    """That of ChatML gets them; another is refused, with the way out, where answers are to be told."""
    (tmp_path / "plain.jinja").write_text(template, encoding="utf-8")
    named = f"task.chat_template={tmp_path / 'plain.jinja'}"
    if not marked:
        with pytest.raises(UserError, match=r"chat template of .* does not say which .*generation %\} marks, .*=all"):
            examples(read("messages", named), model)
        assert len(examples(read("messages", named, "task.loss_on=all"), model).splits["train"]) == 48
        assert len(examples(read("prompt", named), model).splits["train"]) == 48
        return
    data = examples(read("messages", named), model)
    assert data.processor.chat_template == template  # as it is saved
    (tmp_path / "marks.jinja").write_text(chat.CHATML.replace("END", "<|im_end|>"), encoding="utf-8")
    other = examples(read("messages", f"task.chat_template={tmp_path / 'marks.jinja'}"), model)
    for one, expected in zip(data.splits["train"], other.splits["train"], strict=True):
        assert (one["input_ids"], one["labels"]) == (expected["input_ids"], expected["labels"])


def test_packed_conversations_do_not_see_each_other(read: Read, model: Path, tmp_path: Path) -> None:
    """The loss of a packed batch is that of its conversations one by one."""
    trainer, data = make_trainer(read("messages", "task.packing=true"), tmp_path / "checkpoints")
    rows = data.splits["train"]
    assert data.record is not None
    assert data.record["packed"] == len(rows) < 24 < len(data.fixed("train")) == 48
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for row in data.fixed("train"):  # type: ignore[attr-defined]
            labels = torch.tensor([row["labels"]])
            logits = network(input_ids=torch.tensor([row["input_ids"]])).logits
            total += functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum").item()
            count += int((labels[0, 1:] != -100).sum())
        packed = trainer.data_collator([rows[number] for number in range(len(rows))])
        assert packed["input_ids"].shape[0] == 1
        assert int((packed["labels"] != -100).sum()) == count
        with trainer.model.disable_adapter():  # type: ignore[operator, union-attr]
            found = trainer.model(**packed, fused_lm_head=True)  # type: ignore[misc]
    assert -found.log_probs.sum().item() == pytest.approx(total, rel=1e-5)


SIZES: dict[str, Any] = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_models_in_which_packed_conversations_would_see_each_other() -> None:
    """Where each begins is told by positions alone, of which not every model makes a mask."""
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=24, max_position_embeddings=64))
    check_packing(llama.train())
    assert llama.training
    bloom = BloomForCausalLM(BloomConfig(vocab_size=60, hidden_size=16, n_layer=2, n_head=2))
    with pytest.raises(UserError, match=r"task\.packing: true is not allowed: .* in a BloomForCausalLM: leave"):
        check_packing(bloom)


def by_hand(network: Any, data: Any) -> dict[str, float]:
    """The scores of the test split, token by token."""
    nll, right, count = 0.0, 0, 0
    with torch.no_grad():
        for one in data.splits["test"]:
            logits = network(input_ids=torch.tensor([one["input_ids"]])).logits[0].double()
            for at, label in enumerate(one["labels"][1:]):
                if label >= 0:
                    nll -= functional.log_softmax(logits[at], -1)[label].item()
                    right += int(logits[at].argmax()) == label
                    count += 1
    return {"nll": nll / count, "perplexity": math.exp(nll / count), "token_accuracy": right / count}


@pytest.mark.parametrize("packing", ["false", "true"])
def test_the_scores_are_those_of_the_answers_tokens(read: Read, model: Path, tmp_path: Path, packing: str) -> None:
    more = ("training.learning_rate=5e-2", "training.epochs=3", "training.eval_batch_size=4")
    run = load_run(train(read("messages", f"task.packing={packing}", *more), tmp_path / "run").folder)
    scores = evaluate(run, forms=["dynamic"])["dynamic"]
    network, _ = load_trained_model(run)
    data = examples(run.recipe, model)
    with run.recipe.method.using(network, "dynamic"):
        expected = by_hand(network, data)
    assert expected["token_accuracy"] > 0
    assert scores == pytest.approx(expected, rel=1e-5)
    assert run.result["metric"]["by_form"]["dynamic"] == pytest.approx(expected, rel=1e-5)
    epochs = [entry["validation"]["nll"] for entry in run.result["epochs"]]
    assert run.result["metric"]["selected_by"]["value"] == min(epochs)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    assert run.result["metric"]["before"] == pytest.approx(by_hand(base, data), rel=1e-5)


def test_what_is_cut_is_counted(read: Read, model: Path) -> None:
    whole = examples(read(), model)
    lengths = [len(one["input_ids"]) for one in whole.splits["train"]]
    limit = sorted(lengths)[len(lengths) // 2]
    cut = examples(read("messages", f"task.max_length={limit}"), model)
    assert cut.record["cut"]["texts"]["train"] == [sum(length > limit for length in lengths), len(lengths)]
    assert max(len(one["input_ids"]) for one in cut.splits["train"]) == limit
    assert len(cut.splits["train"]) == len(lengths) - cut.record.get("without_answer", {}).get("train", 0)
    with pytest.raises(UserError, match="no answer of the train split begins within 3 tokens"):
        examples(read("messages", "task.max_length=3"), model)


@pytest.mark.parametrize("packing", ["false", "true"])
def test_what_is_left_out_is_told_and_not_packed(read: Read, model: Path, packing: str) -> None:
    whole = examples(read(), model).splits["train"]
    starts = [next(at for at, label in enumerate(one["labels"]) if label >= 0) for one in whole]
    limit = max(starts)
    kept = [one for one, start in zip(whole, starts, strict=True) if start < limit]
    assert 0 < len(kept) < len(whole)
    data = examples(read("messages", f"task.max_length={limit}", f"task.packing={packing}"), model)
    lost = len(whole) - len(kept)
    assert data.record["without_answer"]["train"] == lost
    told = f"{lost} of 48 train conversations are left out: their answers begin behind {limit} tokens (task.max_length)"
    assert told in notes(data.record)
    texts = [one["input_ids"][:limit] for one in kept]
    if packing == "true":
        assert sum(len(one["seq_lengths"]) for one in data.splits["train"]) == len(kept)
        tokens = [token for one in data.splits["train"] for token in one["input_ids"]]
        assert sorted(tokens) == sorted(token for text in texts for token in text)
    else:
        assert sorted(one["input_ids"] for one in data.splits["train"]) == sorted(texts)


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["false", "true"])
def test_interrupted_and_gone_on_with(read: Read, tmp_path: Path, packing: str) -> None:
    changes = ["messages", f"task.packing={packing}", "training.checkpoint_every=2"]
    whole = train(read(*changes), tmp_path / "whole").folder
    with pytest.raises(KeyboardInterrupt):
        train(read(*changes), tmp_path / "run", make_callbacks=lambda: [tiny.Stop(3)])
    may_change = ["training.eval_batch_size=3", "training.checkpoint_every=3", "training.workers=1"]
    again = train(read(*changes, *may_change), tmp_path / "run").folder
    weights = [folder / "adapter" / "adapter_model.safetensors" for folder in (whole, again)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"messages": []}, "chats.jsonl, line 61: 'messages' is empty"),
        ({"messages": [{"role": "user", "content": "a"}]}, "line 61: there is no answer: none of its messages is the"),
        (
            {"messages": [{"role": "usr", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "line 61: message 1 of 'messages' has the role 'usr': the roles are system, developer, user, a",
        ),
    ],
)
def test_bad_conversations(read: Read, model: Path, tmp_path: Path, line: Any, message: str) -> None:
    recipe, file = read(), tmp_path / "chats.jsonl"
    before = "" if "a" in line else file.read_text()
    file.write_text(before + json.dumps(line) + "\n")
    with pytest.raises(UserError, match=message):
        examples(recipe, model)


@pytest.mark.slow
def test_a_template_that_has_changed_is_noticed_and_a_run_keeps_its_own(read: Read, tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_text(chats.GENERATION)
    run = train(read("messages", f"task.chat_template={path}"), tmp_path / "run").folder
    scored = evaluate(load_run(run), forms=["calibrated"])
    path.unlink()
    assert evaluate(load_run(run), forms=["calibrated"]) == scored
    path.write_text(chats.GENERATION.replace("' : '", "' - '"))
    assert evaluate(load_run(run), forms=["calibrated"]) == scored
    (run / "result.json").unlink()  # as if it had been interrupted
    with pytest.raises(UserError, match=r"own.jinja has changed since this run began"):
        train(read("messages", f"task.chat_template={path}"), run)


def test_without_a_chat_template(read: Read, tmp_path: Path) -> None:
    base = tiny.save_language_model(tmp_path / "base", tied=False)
    with pytest.raises(UserError, match=r"has no chat template: task.chat_template=FILE names one"):
        examples(read(base=base), base)
    data = examples(read("messages", "task.chat_template=chatml", base=base), base)
    assert "fine good [SEP]" in {learned(base, one) for one in data.splits["train"]}
    assert examples(read("text", base=base), base)  # needs none
    with pytest.raises(UserError, match=r"task.loss_on: 'answer' needs conversations"):
        examples(read("text", "task.loss_on=answer", base=base), base)


def aurora(*args: object, stdin: str = "") -> Any:
    done = CliRunner().invoke(cli.app, [str(arg) for arg in args], input=stdin)
    assert done.exit_code == 0, done.output
    return done


def test_every_command(read: Read, model: Path, tmp_path: Path) -> None:
    run = train(read(), tmp_path / "run").folder
    question = [{"role": "user", "content": "film : good plot , it was ?"}]
    (tmp_path / "asked.jsonl").write_text(json.dumps({"messages": question, "id": 7}) + "\n")
    aurora("merge", run, "-o", tmp_path / "merged")
    answers = {}
    for name in ("run", "merged"):
        assert load_predictor(tmp_path / name).columns == {"format": ("messages",)}  # asked first, in any row
        aurora("predict", tmp_path / name, tmp_path / "asked.jsonl", "-o", tmp_path / f"{name}.jsonl")
        (line,) = map(json.loads, (tmp_path / f"{name}.jsonl").read_text().splitlines())
        assert (line["id"], line["messages"]) == (7, question)
        answers[name] = line["answer"]
        (one,) = json.loads(aurora("predict", tmp_path / name, question[0]["content"], "--json").stdout)
        assert one["answer"] == line["answer"]
        said = aurora("chat", tmp_path / name, stdin=f"{question[0]['content']}\n/exit\n")
        assert said.stdout.split() == line["answer"].split()
    (tmp_path / "asked.csv").write_text(f'id,question\n1,"{question[0]["content"]}"\n')
    aurora("predict", run, tmp_path / "asked.csv", "--column", "question", "-o", tmp_path / "said.jsonl")
    assert json.loads((tmp_path / "said.jsonl").read_text())["answer"] == answers["run"]
    # the export and the merged model in plain PEFT and Transformers: the same greedy tokens
    tokenizer = AutoTokenizer.from_pretrained(run / "lora")
    assert tokenizer.chat_template == chats.GENERATION
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    exported = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), run / "lora")
    for plain in (exported, AutoModelForCausalLM.from_pretrained(tmp_path / "merged")):
        written = plain.eval().generate(**ids, max_new_tokens=64, do_sample=False)  # of 128 positions
        text = tokenizer.decode(written[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        assert text.split() == answers["run"].split() == answers["merged"].split()
    for row in ({"text": None}, {"prompt": ""}, {"messages": None}):
        (tmp_path / "empty.jsonl").write_text(json.dumps({"id": 1} | row) + "\n")
        done = CliRunner().invoke(cli.app, ["predict", str(run), str(tmp_path / "empty.jsonl"), "-o", "no.jsonl"])
        assert done.stderr == f"{tmp_path / 'empty.jsonl'}, line 1: '{next(iter(row))}' is empty\n"
    assert "static" in aurora("gap", run, "--examples", 4).output
    assert json.loads(aurora("evaluate", run, "--form", "static", "--json").stdout)["by_form"]["static"]["nll"] > 0
    aurora("predict", run, tmp_path / "asked.jsonl", "--form", "static", "-o", tmp_path / "static.jsonl")
    aurora("report", run, "--html", tmp_path / "page.html")
    assert (tmp_path / "page.html").is_file()


@pytest.mark.slow
def test_a_model_that_sees_images_too(read: Read, tmp_path: Path) -> None:
    """Its configuration names no padding token beside that of its texts, and no text reaches its image tower, whose
    layers have the names of those that are adapted."""
    base = chats.save_model(tmp_path / "gemma")
    vocabulary = len(AutoTokenizer.from_pretrained(base))
    size = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    texts = {**size, "vocab_size": vocabulary, "num_hidden_layers": 2, "num_key_value_heads": 1, "head_dim": 8}
    images = {**size, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Gemma3Config(text_config=texts, vision_config=images, mm_tokens_per_image=4)
        config.text_config.pad_token_id = None
        Gemma3ForConditionalGeneration(config).save_pretrained(base)
    for recipe, searches in ((read(base=base), True), (read(), False)):  # for what has no gradient, on several devices
        assert make_trainer(recipe, tmp_path / "checkpoints")[0].args.ddp_find_unused_parameters is searches
    run = train(read(base=base), tmp_path / "run").folder
    targets = json.loads((run / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert "q_proj" in targets
    aurora("merge", run, "-o", tmp_path / "merged")
    question = "film : good plot , it was ?"
    said = [json.loads(aurora("predict", tmp_path / name, question, "--json").stdout) for name in ("run", "merged")]
    assert said[0] == said[1]
    assert "static" in aurora("gap", run, "--examples", 4).output


@pytest.mark.slow
def test_a_merged_model_ends_its_answers_by_itself(read: Read, tmp_path: Path) -> None:
    """Where the template ends a turn with another token than the base ends a text with."""
    base = chats.save_model(tmp_path / "other", chats.GENERATION.replace("[SEP]", "[CLS]"))
    run = train(read(base=base), tmp_path / "run").folder
    aurora("merge", run, "-o", tmp_path / "merged")
    (answer,) = json.loads(aurora("predict", run, "film : good plot , it was ?", "--json").stdout)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert plain.generation_config.eos_token_id == sorted(tokenizer.convert_tokens_to_ids(["[SEP]", "[CLS]"]))
    question = [{"role": "user", "content": "film : good plot , it was ?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = plain.generate(**ids, max_new_tokens=64, do_sample=False)
    said = tokenizer.decode(written[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert said.split() == answer["answer"].split()


@pytest.mark.slow
def test_several_chat_templates(tmp_path: Path) -> None:
    named = {"default": chats.GENERATION, "tool_use": "tools : " + chats.GENERATION}
    base = chats.save_model(tmp_path / "base", named)
    run = train(chats.read(tmp_path, base, "messages", "training.epochs=1"), tmp_path / "run").folder
    nested = "additional_chat_templates/tool_use.jinja"
    digests = json.loads((run / "result.json").read_text())["adapter_sha256"]
    assert {nested, "adapter_config.json", "chat_template.jinja"} <= set(digests)
    assert "README.md" not in digests
    assert load_tokenizer(str(run / "adapter")).chat_template == named
    for what in ("adapter", "export"):
        (tmp_path / what).mkdir()
        _stage(load_run(run), tmp_path / what, what)  # type: ignore[arg-type]
        assert AutoTokenizer.from_pretrained(tmp_path / what).chat_template == named
        config = json.loads((tmp_path / what / "adapter_config.json").read_text())
        assert config["peft_type"] == ("AURORA" if what == "adapter" else "LORA")
    for _ in range(2):  # the second replaces the first
        aurora("export", run, "-o", tmp_path / "lora", "--overwrite")
    aurora("merge", run, "-o", tmp_path / "merged")
    aurora("merge", run, "-o", tmp_path / "merged", "--form", "static", "--overwrite")
    for written in ("lora", "merged"):
        assert AutoTokenizer.from_pretrained(tmp_path / written).chat_template == named


def test_a_conversation_has_a_memory(read: Read, tmp_path: Path) -> None:
    talk = Talk(load_predictor(train(read(), tmp_path / "run").folder), 4, system="the film")
    shown: list[str] = []
    first = talk.say("film : good ?", shown.append)
    assert "".join(shown).split() == first.split()
    talk.say("film : bad ?", lambda text: None)
    assert [one["role"] for one in talk.said] == ["system", "user", "assistant", "user", "assistant"]
    for _ in range(12):  # longer than the model's 128 positions
        talk.say("film : bad ?", lambda text: None)
    assert len(talk.said) < 20
    assert talk.said[0] == {"role": "system", "content": "the film"}
    talk.begin()
    assert talk.said == [{"role": "system", "content": "the film"}]


def test_packing_changes_no_count_of_conversations(read: Read, model: Path) -> None:
    """What is calibrated and probed with is a sample of the conversations, not of the packed rows."""
    data = examples(read("messages", "task.packing=true"), model)
    assert len(data.splits["train"]) < 24
    assert data.rows_of_share(1.0) == list(range(48))
    assert data.rows_of_share(0.5) == list(range(0, 48, 2))
    batches = data.calibration_batches(read("messages", "calibration.examples=40").calibration)
    assert sum(len(batch["input_ids"]) for batch in batches) == 40
