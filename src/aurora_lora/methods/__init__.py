"""The methods that recipes can name. What is not listed here is imported when it is first used: it needs PyTorch."""

from importlib import import_module
from typing import TYPE_CHECKING

from ..extras import extra

if TYPE_CHECKING:
    from .base import Method, Sample
    from .parameters import ParameterCounts, count_parameters
    from .registry import METHODS, get_method

__all__ = [
    "DESCRIPTIONS",
    "METHODS",
    "Method",
    "ParameterCounts",
    "Sample",
    "count_parameters",
    "get_method",
]

_ABLATIONS = {
    "no-f": "without the fixed part F",
    "no-l": "without the learnable part L",
    "leaky-relu": "with LeakyReLU for tanh",
    "sigmoid": "with the sigmoid for tanh",
}
DESCRIPTIONS = {
    "aurora": "W0 x + s B sigma(Ax), merged as calibrated (ours)",
    "aurora-paper": "The paper's AuroRA: trained dynamic, merged static",
    "aurora-paper-d": "The paper's AuroRA-D: dynamic; cannot be merged",
    "aurora-paper-s": "The paper's AuroRA-S: static throughout",
    **{f"aurora-{end}": f"AuroRA {words}" for end, words in _ABLATIONS.items()},
    **{f"aurora-paper-{end}": f"The paper's AuroRA {words}" for end, words in _ABLATIONS.items()},
    "lora": "W0 x + s B A x (PEFT)",
    "dora": "The rows of W0 + s B A at trained lengths (PEFT)",
    "adalora": "LoRA, ranks shared out while training (PEFT)",
    "dylora": "LoRA at a random rank each step, to be cut to any",
    "lora-drop": "LoRA, shared by the layers where it does little",
    "pissa": "LoRA from the largest singular vectors of W0",
    "milora": "LoRA from the smallest singular vectors of W0",
    "lora-ga": "LoRA that starts along the gradient of the loss",
    "moslora": "LoRA with an r x r mixer, W0 x + s B W A x",
    "fourierft": "dW from n trained Fourier coefficients (PEFT)",
    "vera": "Frozen random B and A, trained scales (PEFT)",
    "hira": "dW = W0 * (B A), entry by entry (PEFT)",
    "sine-lora": "dW = s sin(w B A) / sqrt(d_in)",
    "loran": "dW = s sinter(B A), sinter(u) = u + a u sin(w u)",
    "loda": "W0 x + s B f(A x); cannot be merged",
    "neat": "dW = s B act(A W0), a network of W0 (PEFT's PEANuT)",
    "adapter-h": "Houlsby's adapters, two a layer; cannot be merged",
    "adapter-p": "Pfeiffer's adapters, one a layer; cannot be merged",
    "adapter-d": "Pfeiffer's, not in the first layers; not mergeable",
    "bitfit": "The biases alone",
    "linear-probe": "The head alone, on the frozen pretrained model",
    "full": "Every weight of the model",
}
"""Every method with its line in `aurora list methods`."""

_MODULES = {"METHODS": "registry", "get_method": "registry", "Method": "base", "Sample": "base"}

if not TYPE_CHECKING:  # to a type checker, a name that is not above is a mistake

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        with extra("train"):
            return getattr(import_module(f".{_MODULES.get(name, 'parameters')}", __name__), name)
