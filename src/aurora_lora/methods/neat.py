"""NEAT (Zhong et al., "Neat: Nonlinear Parameter-Efficient Adaptation ...", 2025), which PEFT calls PEANuT."""

from transformers.activations import ACT2FN

from .options import TARGETS, choice, integer, peft_method, positive, rank

NEAT = peft_method(
    name="neat",
    description="dW = s B act(A W0), a network of W0 (PEFT's PEANuT)",
    config="PeanutConfig",
    table={
        "r": rank(8),
        "depth": integer(0, least=0),
        "act_fn": choice("relu", *(name for name in ACT2FN if name != "relu")),
        "scaling": positive(1.0),
        **TARGETS,
    },
    is_trained_quantised=False,  # PEFT takes the stored weight, codes or packed bytes, for W0
    quantised_merges=(),
)
