"""A model that is packaged as a GGUF file, as an ordinary folder of Transformers: converted once, kept beside the file.

Transformers reads the vocabulary of a GGUF file in pure Python, three times for a model with its tokenizer: about 15
seconds at each start, which a folder does not take.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ..extras import extra
from ..files import plain_write_errors
from ..folders import new_folder
from ..locks import held
from .loading import NO_CODE

FOLDER = "float32"
"""The folder beside the file with its dequantised weights as safetensors, the configuration and the tokenizer."""


def converted(folder: Path, file: str) -> Path:
    """The model of a GGUF file as a folder that `from_pretrained` takes like any other.

    Several processes may ask at once: one converts, the others wait. A kill leaves no half folder.

    Args:
        folder: with the file; the result goes there, too.
        file: its name.

    Raises:
        UserError: a package is missing, or the folder cannot be written.
    """
    target = folder / FOLDER
    if not target.is_dir():
        with plain_write_errors(target), held(folder / f".{FOLDER}.lock"):
            if not target.is_dir():
                _convert(folder, file, target)
    return target


def _convert(folder: Path, file: str, target: Path) -> None:
    with extra("train"):
        import gguf  # noqa: F401 (Transformers' own error does not name our extra)
        import torch
        import transformers
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    print(f"aurora: converting {file} into a folder of Transformers, once", file=sys.stderr, flush=True)
    config = AutoConfig.from_pretrained(folder, gguf_file=file, **NO_CODE)
    # newer Transformers mark a model from a GGUF file as quantised, and its Trainer refuses that, unless told so
    as_plain = getattr(transformers, "GgufConfig", None)
    more: dict[str, Any] = {} if as_plain is None else {"quantization_config": as_plain(dequantize=True)}
    more |= {"config": config, "dtype": torch.float32}
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, **more, **NO_CODE)
    model.config.__dict__.pop("quantization_config", None)
    with new_folder(target) as partial:
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(folder, gguf_file=file, **NO_CODE).save_pretrained(partial)
