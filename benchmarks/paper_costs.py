"""What adapters cost on models that are too large for a benchmark: on paper, from shapes; sigma is one operator.

Counted for a training step: the linear layers of the base forward, and backward towards its inputs; of an adapter its
products, forward (A x, B u) and backward (dB, du, dA, dx). Attention scores, norms and the embedding are left out of
the base, which makes the adapter's share larger than it is.
"""

from dataclasses import asdict, dataclass
from typing import Any

from aurora_lora.ops import ANL

TARGETS = ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")
"""The layers of a block that the paper adapts in LLaMA3-8B."""
SIGMA = ANL(skip=False)
"""The default spline and activation."""


@dataclass(frozen=True)
class Shapes:
    """A Llama-architecture model: widths of the hidden state, of keys and values, of the MLP; blocks; vocabulary."""

    name: str
    hidden: int
    kv: int
    intermediate: int
    blocks: int
    vocabulary: int

    def layers(self) -> dict[str, tuple[int, int]]:
        """(d_in, d_out) of the linear layers of a block."""
        h, kv, m = self.hidden, self.kv, self.intermediate
        return {
            "q_proj": (h, h),
            "k_proj": (h, kv),
            "v_proj": (h, kv),
            "o_proj": (h, h),
            "gate_proj": (h, m),
            "up_proj": (h, m),
            "down_proj": (m, h),
        }

    def parameters(self) -> int:
        """All parameters of the model, with input and output embeddings and the norms."""
        per_block = sum(a * b for a, b in self.layers().values()) + 2 * self.hidden
        return self.blocks * per_block + 2 * self.vocabulary * self.hidden + self.hidden

    def matmul_parameters(self) -> int:
        """Parameters of the linear layers and of the output embedding."""
        return self.blocks * sum(a * b for a, b in self.layers().values()) + self.vocabulary * self.hidden


LLAMA3_8B = Shapes("LLaMA3-8B", 4096, 1024, 14336, 32, 128256)
LLAMA3_70B = Shapes("LLaMA3-70B", 8192, 1024, 28672, 80, 128256)


BFLOAT16 = 2
"""Bytes of a number of the computation."""
METHODS = {"LoRA r=8": (8, False), "LoRA r=32": (32, False), "AuroRA r=2": (2, True)}
"""Ranks, and whether sigma is between A and B."""


def anl_flops(r: int) -> int:
    """Floating-point operations of sigma and its derivative for one token; a tanh counts as one.

    Forward, each channel: two tanh, H (2r), Horner's scheme (2 K p), the product with W_s (2 K), sum and place (2).
    Backward: the two derivatives of tanh (3 each), dH and H^T dp (4r), both Horner schemes (4 K p), dW_s and the
    slope (4 K), and what joins them (3).
    """
    K, p = SIGMA.n_basis, SIGMA.spline_order
    return r * (2 + 2 * r + 2 * K * p + 2 * K + 2 + 6 + 4 * r + 4 * K * p + 4 * K + 3)


def cost(shapes: Shapes, method: str, calls: int) -> dict[str, Any]:
    """What one method costs on one model, q, k, v, up and down adapted, sigma as one operator.

    Args:
        shapes: of the model.
        method: of `METHODS`.
        calls: of one adapted layer, forward and backward, as measured.

    Returns:
        parameters; share of the model's; bytes of weights, gradients and AdamW's two moments, all float32; flops of
        a training step in the base's; bytes kept for the backward pass for 1,000 tokens (A x of each layer), without
        and with x; calls of a step.
    """
    r, nonlinear = METHODS[method]
    layers = [shapes.layers()[name] for name in TARGETS]
    parameters = sum(r * (a + b) + (sum(SIGMA.weight_sizes(r)) if nonlinear else 0) for a, b in layers)
    flops = sum(6 * r * (a + b) + (anl_flops(r) if nonlinear else 0) for a, b in layers)
    rank_space = len(layers) * r * BFLOAT16
    x = BFLOAT16 * (2 * shapes.hidden + shapes.intermediate)  # q, k and v have the same
    return {
        "model": asdict(shapes) | {"parameters": shapes.parameters()},
        "method": method,
        "parameters": shapes.blocks * parameters,
        "share": shapes.blocks * parameters / shapes.parameters(),
        "state_bytes": 16 * shapes.blocks * parameters,
        "flops_of_base": shapes.blocks * flops / (4 * shapes.matmul_parameters()),
        "saved_bytes_1k": 1000 * shapes.blocks * rank_space,
        "saved_bytes_1k_with_x": 1000 * shapes.blocks * (rank_space + x),
        "calls": calls * shapes.blocks * len(layers),
    }


def costs(lora_calls: int, aurora_calls: int) -> list[dict[str, Any]]:
    """Every method on every model, by the calls of one adapted layer, forward and backward."""
    return [
        cost(shapes, method, aurora_calls if nonlinear else lora_calls)
        for shapes in (LLAMA3_8B, LLAMA3_70B)
        for method, (_, nonlinear) in METHODS.items()
    ]
