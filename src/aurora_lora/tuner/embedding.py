"""`AuroraEmbedding`: AuroRA on an embedding table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .layer import AuroraLayer, of_base


class AuroraEmbedding(AuroraLayer):
    """AuroRA on `nn.Embedding`: `h = W0[id] + s B sigma(A[:, id])`, with A (r, vocabulary) (docs/method.md).

    The input is one-hot, so sigma(A x) = sigma(A) x: dynamic and static are one form, which merges exactly and is never
    calibrated. The vector of `padding_idx` stays what it is, as in training the table itself. There is no dropout, as
    in PEFT's LoRA.
    """

    has_forms = False
    num_embeddings, embedding_dim = of_base("num_embeddings"), of_base("embedding_dim")
    padding_idx = of_base("padding_idx")

    @staticmethod
    def reset_A(A: Tensor) -> None:  # noqa: N802 - A is the paper's name
        """Uniform on (-1, 1): z = A[:, id] then has the variance 1/3, that of a linear layer's z."""
        nn.init.uniform_(A, -1.0, 1.0)

    def static_matrix(self, adapter_name: str) -> Tensor:
        """sigma(A), (r, vocabulary), zero where the table is not trained."""
        matrix = super().static_matrix(adapter_name)
        padding = self.padding_idx
        if padding is None:
            return matrix
        trained = torch.ones(self.d_in, device=matrix.device, dtype=matrix.dtype)
        trained[padding] = 0
        return matrix * trained

    def adapter_output(self, adapter_name: str, x: Tensor) -> Tensor:
        """s B sigma(A[:, x]) for token ids x (...): (..., d_out). Only the columns that are looked up are computed."""
        B = self.aurora_B[adapter_name]()
        z = self.sigma(adapter_name, self.project(x, self.aurora_A[adapter_name]()))
        padding = self.padding_idx
        if padding is not None:
            z = z * (x != padding).to(z.dtype).unsqueeze(-1)
        output = self.lift(z * self.scaling[adapter_name], B, x)
        scale = self._get_embed_scale()
        return output if scale is None else output * scale.to(output.dtype)

    def project(self, x: Tensor, matrix: Tensor) -> Tensor:
        """Ids (...) -> the columns of the matrix, (..., r)."""
        base: Any = self.get_base_layer()
        return functional.embedding(x, matrix.T, scale_grad_by_freq=base.scale_grad_by_freq)

    def as_weight(self, matrix: Tensor) -> Tensor:
        """The table is (vocabulary, d_out)."""
        return matrix.T

    def as_lora(self, lora_A: Tensor, lora_B: Tensor) -> dict[str, Tensor]:
        """LoRA keeps those of an embedding as bare parameters."""
        return {"lora_embedding_A": lora_A, "lora_embedding_B": lora_B}
