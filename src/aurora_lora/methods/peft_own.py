"""Methods that are PEFT's own, with their options: FourierFT, VeRA, HiRA and NEAT."""

from __future__ import annotations

from typing import Literal

from peft import FourierFTConfig, HiraConfig, PeanutConfig, VeraConfig
from transformers.activations import ACT2FN

from .base import BY_INPUTS, PeftMethod
from .options import Count, Dropout, Natural, Positive, Rank, Targets


class FourierFTFields(Targets):
    n_frequency: Count = 1000
    scaling: Positive = 150.0
    random_loc_seed: Natural = 777


FOURIERFT = PeftMethod(
    name="fourierft",
    config_class=FourierFTConfig,
    fields=FourierFTFields,
    quantised_merges=(BY_INPUTS,),  # PEFT adds to the stored weight, codes or packed bytes
)
"""FourierFT (Gao et al., ICML 2024): a few spectral coefficients of dW are trained."""


class VeRAFields(Targets):
    r: Rank = 256
    d_initial: Positive = 0.1
    vera_dropout: Dropout = 0.0
    projection_prng_key: Natural = 0


VERA = PeftMethod(
    name="vera",
    config_class=VeraConfig,
    fields=VeRAFields,
)
"""VeRA (Kopiczko et al., ICLR 2024): two vectors scale one frozen random pair of matrices."""


class HiRAFields(Targets):
    r: Rank = 32
    hira_dropout: Dropout = 0.0


HIRA = PeftMethod(
    name="hira",
    config_class=HiraConfig,
    fields=HiRAFields,
)
"""HiRA (Huang et al., "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for LLMs", ICLR 2025)."""


class NeatFields(Targets):
    r: Rank = 8
    depth: Natural = 0
    act_fn: Literal[tuple(ACT2FN)] = "relu"  # type: ignore[valid-type]
    scaling: Positive = 1.0


NEAT = PeftMethod(
    name="neat",
    config_class=PeanutConfig,
    fields=NeatFields,
    is_trained_quantised=False,  # PEFT takes the stored weight, codes or packed bytes, for W0
    quantised_merges=(),
)
"""NEAT (Zhong et al., "Neat: Nonlinear Parameter-Efficient Adaptation ...", 2025), which PEFT calls PEANuT."""
