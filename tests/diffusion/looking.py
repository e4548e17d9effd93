"""What tests look at in the folder of a run, and the settings of the runs that they share."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load_file

PROMPTS = ["a photo of a sks dog", "a sks dog on the beach"]
WHOLE: dict[str, Any] = {
    "method": {"name": "aurora", "dropout": 0.1},
    "training": {"checkpoint_every": 1, "threads": 1},
}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def contents(folder: Path) -> dict[str, bytes]:
    """Every weight and image of a run, as bytes."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}
    for path in sorted(folder.rglob("*.safetensors")):
        found |= {f"{path.relative_to(folder)}:{k}": v.numpy().tobytes() for k, v in load_file(path).items()}
    return found
