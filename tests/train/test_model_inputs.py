"""What a model says of its texts: how many positions it has, asked of the model itself, and its padding token."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers

from aurora_lora.data import get_task
from aurora_lora.errors import UserError
from aurora_lora.train import load_recipe, train
from aurora_lora.train.models import (
    fill_padding,
    load_base_model,
    load_tokenizer,
    most_tokens,
    padding_of,
)

SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "Bert": {"max_position_embeddings": 40},
    "DistilBert": {"max_position_embeddings": 40, "hidden_dim": 16},
    "Roberta": {"max_position_embeddings": 42},  # two less for texts
    "MPNet": {"max_position_embeddings": 42},
    "GPT2": {"n_positions": 40, "bos_token_id": 0, "eos_token_id": 0},
    "OPT": {"max_position_embeddings": 40, "word_embed_proj_dim": 16, "ffn_dim": 16},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_positions_are_those_that_the_model_takes(name: str) -> None:
    config = getattr(transformers, f"{name}Config")(**SMALL, **CONFIGS[name])
    model = transformers.AutoModel.from_config(config).eval()
    with torch.no_grad():
        model(input_ids=torch.full((1, 40), 5))
        assert most_tokens(model) == 40
        with pytest.raises((IndexError, RuntimeError)):  # its own, of tensors
            model(input_ids=torch.full((1, 41), 5))


def test_a_run_says_so_where_the_tokenizer_states_no_limit(
    model: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    base = shutil.copytree(model, tmp_path / "base")
    settings = json.loads((base / "tokenizer_config.json").read_text())
    assert settings.pop("model_max_length") == 32
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    recipe = load_recipe(write_recipe(model=str(base)))
    with pytest.raises(UserError, match="33 tokens are more than the 32 positions of"):
        train(recipe.model_copy(update={"task": recipe.task.model_copy(update={"max_length": 33})}), tmp_path / "run")


@pytest.mark.parametrize("config", [transformers.Gemma3Config, transformers.CodeGenConfig, transformers.LlamaConfig])
def test_the_padding_token_is_told_where_the_model_looks(config: Any, tmp_path: Path) -> None:
    """Some configurations have no field for it, and some have it in that of the texts alone."""
    tokenizer = load_tokenizer(str(tiny.save_language_model(tmp_path / "model")))
    made = config()
    for one in (made, made.get_text_config()):
        if hasattr(one, "pad_token_id"):
            one.pad_token_id = None
    assert padding_of(made) is None
    fill_padding(made, tokenizer)
    assert padding_of(made) == made.get_text_config().pad_token_id == tokenizer.pad_token_id is not None
    made.get_text_config().pad_token_id = 7
    fill_padding(made, tokenizer)
    assert made.get_text_config().pad_token_id == 7


def test_a_decoder_classifies_by_the_last_token_of_a_text_however_its_config_pads(tmp_path: Path) -> None:
    """It finds that by the config's padding token, which need not be the tokenizer's."""
    folder = tiny.save_language_model(tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text())
    tokenizer = load_tokenizer(str(folder))
    (folder / "config.json").write_text(json.dumps({**settings, "pad_token_id": tokenizer.pad_token_id + 1}))
    model = load_base_model(str(folder), get_task("movie-sentiment"), tokenizer).eval()
    short, long = "the film was good", "the film was good and the plot of the film was very bad"
    with torch.no_grad():
        alone, padded = (
            model(**tokenizer(texts, padding=True, return_tensors="pt")).logits[0] for texts in ([short], [short, long])
        )
    torch.testing.assert_close(alone, padded)
