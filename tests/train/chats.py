"""Conversations in a tiny language, in every format that `aurora train chat` reads."""

import json
import random
from pathlib import Path
from typing import Any

import tiny
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from aurora_lora.train import load_recipe, recipe_files
from aurora_lora.train.recipe import Recipe

GENERATION = """{% for message in messages %}{{ message['role'] + ' : ' }}{% if message['role'] == 'assistant' %}
{%- generation %}{{ message['content'] + ' [SEP]' }}{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}
{{- ' ' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"""
"""A template that marks the answers."""
PLAIN = GENERATION.replace("{%- generation %}", "{{- '' }}").replace("{% endgeneration %}", "")
"""The same without marks."""
WITH_TOOLS = """{% if tools %}{{ tools[0]['name'] + ' ' }}{% endif %}{% if aside %}{{ aside + ' ' }}{% endif %}"""
"""What a template has before the messages that says what else it was given."""
RAW = {"human": "user", "gpt": "assistant"}


def conversations(count: int, seed: int = 0) -> list[list[dict[str, str]]]:
    """Is a film good? In one turn or two."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        turns = []
        for text, rating in tiny._examples(rng.choice((1, 2)), rng):
            turns.append({"role": "user", "content": f"film : {text} , it was ?"})
            turns.append({"role": "assistant", "content": "fine good" if rating > 0 else "bad"})
        made.append(turns)
    return made


def row(turns: list[dict[str, str]], form: str) -> dict[str, Any]:
    """A conversation in a format; of those of one answer, its last turn."""
    asked, answer = turns[-2]["content"], turns[-1]["content"]
    if form == "messages":
        return {"messages": turns}
    if form == "conversations":
        names = {new: old for old, new in RAW.items()}
        return {"conversations": [{"from": names[one["role"]], "value": one["content"]} for one in turns]}
    if form == "prompt":
        return {"prompt": turns[:-1], "completion": turns[-1:]}
    if form == "texts":
        return {"prompt": asked + " ", "completion": answer}
    if form == "instruction":
        return {"instruction": "film :", "input": asked.removeprefix("film : "), "output": answer}
    return {"text": f"{asked} {answer}"}


def write(path: Path, form: str = "messages", count: int = 60) -> Path:
    """A file of them."""
    path.write_text("".join(json.dumps(row(one, form)) + "\n" for one in conversations(count)), encoding="utf-8")
    return path


def recipe(model: Path, data: Path, **task: Any) -> dict[str, Any]:
    """The values of a recipe that trains in about a second."""
    return {
        "name": "tiny-chat",
        "model": str(model),
        "task": {"name": "chat", "data": str(data), "max_length": 64, **task},
        "method": {"name": "aurora", "target_modules": ["q_proj", "v_proj", "down_proj"]},
        "training": {"epochs": 2, "batch_size": 8, "eval_batch_size": 8, "learning_rate": 2e-2, "threads": 1},
        "calibration": {"examples": 16, "batch_size": 8},
    }


def save_model(folder: Path, template: Any = GENERATION, positions: int | None = None) -> Path:
    """A random Llama whose tokenizer has a chat template, or several; or a GPT-2 of so many positions."""
    tiny.save_language_model(folder, "llama" if positions is None else "gpt2", tied=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    if positions is not None:
        config = GPT2Config.from_pretrained(folder, n_positions=positions)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def read(folder: Path, base: Path, form: str = "messages", *overrides: str) -> Recipe:
    """The recipe on a file of that format, both written into the folder."""
    path, data = folder / "recipe.yaml", write(folder / "chats.jsonl", form)
    path.write_text(recipe_files.dump(recipe(base, data)), encoding="utf-8")
    return load_recipe(path, overrides)
