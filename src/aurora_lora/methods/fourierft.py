"""FourierFT (Gao et al., ICML 2024), PEFT's own: a few spectral coefficients of dW are trained."""

from .base import BY_INPUTS
from .options import TARGETS, integer, peft_method, positive

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
