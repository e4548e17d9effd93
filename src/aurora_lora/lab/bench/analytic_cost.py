"""What adapters cost on models that are too large for a benchmark: on paper, from shapes; sigma is one operator.

Counted for a training step: the linear layers of the base forward, and backward towards its inputs; of an adapter its
products, forward (A x, B u) and backward (dB, du, dA, dx). Attention scores, norms and the embedding are left out of
the base, which makes the adapter's share larger than it is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ...ops import ANL

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


@dataclass(frozen=True)
class CostedMethod:
    """LoRA, or AuroRA in its dynamic form, of a rank."""

    name: str
    r: int
    nonlinear: bool

    def parameters(self, d_in: int, d_out: int) -> int:
        """Adapter parameters of one layer."""
        anl = sum(SIGMA.weight_sizes(self.r)) if self.nonlinear else 0
        return self.r * (d_in + d_out) + anl

    def flops(self, d_in: int, d_out: int) -> int:
        """Floating-point operations of the adapter of one layer for one token, forward and backward."""
        return 6 * self.r * (d_in + d_out) + (self._anl_flops() if self.nonlinear else 0)

    def _anl_flops(self) -> int:
        """Floating-point operations of sigma and its derivative for one token; a tanh counts as one.

        Forward, each channel: two tanh, H (2r), Horner's scheme (2 K p), the product with W_s (2 K), sum and place (2).
        Backward: the two derivatives of tanh (3 each), dH and H^T dp (4r), both Horner schemes (4 K p), dW_s and the
        slope (4 K), and what joins them (3).
        """
        K, p, r = SIGMA.n_basis, SIGMA.spline_order, self.r
        forward = 2 + 2 * r + 2 * K * p + 2 * K + 2
        backward = 6 + 4 * r + 4 * K * p + 4 * K + 3
        return r * (forward + backward)

    def saved_bytes(self, width: int, *, operator: bool = True) -> int:
        """Kept in the rank space of one layer for one token, beside x.

        LoRA keeps A x, in the numbers of the computation; so does AuroRA where sigma is one operator, as on CUDA.
        Elsewhere it keeps u in those, and two values of the activation, the interval and the place in it in float32
        (`ops/anl_aten.py`).

        Args:
            width: bytes of a number of the computation.
            operator: whether sigma is one operator.
        """
        return self.r * (width + 16) if self.nonlinear and not operator else self.r * width


BFLOAT16 = 2
"""Bytes of a number of the computation."""
METHODS = (
    CostedMethod("LoRA r=8", 8, False),
    CostedMethod("LoRA r=32", 32, False),
    CostedMethod("AuroRA r=2", 2, True),
)


def inputs_bytes(shapes: Shapes, width: int) -> int:
    """x of the adapted layers of the model for one token: q, k and v have the same."""
    return shapes.blocks * width * (2 * shapes.hidden + shapes.intermediate)


def cost(shapes: Shapes, method: CostedMethod, calls: int | None = None) -> dict[str, Any]:
    """What one method costs on one model, q, k, v, up and down adapted.

    Args:
        calls: of one adapted layer, forward and backward, as measured.

    Returns:
        parameters; share of the model's; bytes of weights, gradients and AdamW's two moments, all float32; flops of
        a training step in the base's; bytes kept for the backward pass for 1,000 tokens, without and with x; calls of a
        step.
    """
    layers = [shapes.layers()[name] for name in TARGETS]
    parameters = shapes.blocks * sum(method.parameters(*d) for d in layers)
    flops = shapes.blocks * sum(method.flops(*d) for d in layers)
    rank_space = shapes.blocks * len(layers) * method.saved_bytes(BFLOAT16)
    return {
        "model": asdict(shapes) | {"parameters": shapes.parameters()},
        "method": method.name,
        "parameters": parameters,
        "share": parameters / shapes.parameters(),
        "state_bytes": 16 * parameters,
        "flops_of_base": flops / (4 * shapes.matmul_parameters()),
        "saved_bytes_1k": 1000 * rank_space,
        "saved_bytes_1k_with_x": 1000 * (rank_space + inputs_bytes(shapes, BFLOAT16)),
        "calls": None if calls is None else calls * shapes.blocks * len(layers),
    }


def costs(calls: dict[str, int]) -> list[dict[str, Any]]:
    """Every method on every model.

    Args:
        calls: of one adapted layer, forward and backward, for `"lora"` and `"aurora"` (sigma as one operator).
    """
    return [
        cost(shapes, method, calls["aurora" if method.nonlinear else "lora"])
        for shapes in (LLAMA3_8B, LLAMA3_70B)
        for method in METHODS
    ]
