"""VeRA (Kopiczko et al., ICLR 2024), PEFT's own: two vectors scale one frozen random pair of matrices."""

from ..values import is_number
from .options import TARGETS, dropout, integer, peft_method, rank, that

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
