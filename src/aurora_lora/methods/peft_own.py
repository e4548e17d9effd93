"""Methods that are PEFT's own, with their options: FourierFT, VeRA, HiRA and NEAT."""

from transformers.activations import ACT2FN

from ..values import is_number
from .base import BY_INPUTS
from .options import TARGETS, choice, dropout, integer, peft_method, positive, rank, that

FOURIERFT = peft_method(
    name="fourierft",
    description="dW from n trained Fourier coefficients (PEFT)",
    config="FourierFTConfig",
    table={
        "n_frequency": integer(1000),
        "scaling": positive(150.0),
        "random_loc_seed": integer(777, least=0),
        **TARGETS,
    },
    quantised_merges=(BY_INPUTS,),  # PEFT adds to the stored weight, codes or packed bytes
)
"""FourierFT (Gao et al., ICML 2024), PEFT's own: a few spectral coefficients of dW are trained."""

VERA = peft_method(
    name="vera",
    description="Frozen random B and A, trained scales (PEFT)",
    config="VeraConfig",
    table={
        "r": rank(256),
        "d_initial": (that(lambda value: is_number(value) and value != 0, "a number other than 0"), 0.1),
        "vera_dropout": dropout(),
        "projection_prng_key": integer(0, least=0),
        **TARGETS,
    },
)
"""VeRA (Kopiczko et al., ICLR 2024), PEFT's own: two vectors scale one frozen random pair of matrices."""

HIRA = peft_method(
    name="hira",
    description="dW = W0 * (B A), entry by entry (PEFT)",
    config="HiraConfig",
    table={"r": rank(32), "hira_dropout": dropout(), **TARGETS},
)
"""HiRA (Huang et al., "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for LLMs", ICLR 2025), through PEFT."""

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
"""NEAT (Zhong et al., "Neat: Nonlinear Parameter-Efficient Adaptation ...", 2025), which PEFT calls PEANuT."""
