"""What every call that loads a model, a tokenizer or a data set has in common."""

from __future__ import annotations

import re
from typing import Any

NO_CODE: dict[str, Any] = {"trust_remote_code": False}
"""An argument of each such call. Without it Transformers asks whether to run the code of a folder, and takes a `yes`
from wherever stdin comes from."""

_WANTS_CODE = re.compile(r"trust_remote_code|custom code|Dataset scripts")


def wants_code(error: Exception) -> bool:
    """Whether something was not loaded because it brings code to be run."""
    return _WANTS_CODE.search(str(error)) is not None


def reason(error: Exception) -> str:
    """Why something could not be loaded, in one line."""
    text = str(error)
    if wants_code(error):
        return "it comes with code of its own, to be run when it is loaded, and aurora-lora never runs such code"
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("Error(s) in loading state_dict"):  # torch's heading
        lines = lines[1:]
    return lines[0][:200] if lines else type(error).__name__
