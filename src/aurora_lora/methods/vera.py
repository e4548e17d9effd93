"""VeRA (Kopiczko et al., ICLR 2024), PEFT's own: two vectors scale one frozen random pair of matrices."""

from .options import TARGETS, dropout, integer, number, peft_method, rank

VERA = peft_method(
    name="vera",
    description="Frozen random B and A, trained scales (PEFT)",
    config="VeraConfig",
    table={
        "r": rank(256),
        "d_initial": number(0.1, "other than 0", lambda value: value != 0),
        "vera_dropout": dropout(),
        "projection_prng_key": integer(0, least=0),
        **TARGETS,
    },
)
