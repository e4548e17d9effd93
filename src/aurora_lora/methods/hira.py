"""HiRA (Huang et al., "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for LLMs", ICLR 2025), through PEFT."""

from .options import TARGETS, dropout, peft_method, rank

HIRA = peft_method(
    name="hira",
    description="dW = W0 * (B A), entry by entry (PEFT)",
    config="HiraConfig",
    table={"r": rank(32), "hira_dropout": dropout(), **TARGETS},
)
