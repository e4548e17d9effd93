"""`AuroraConv1d`, `AuroraConv2d` and `AuroraConv3d`: AuroRA on a convolution."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .layer import AuroraLayer, of_base

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


class _AuroraConv(AuroraLayer):
    """AuroRA on a convolution: at each output position, `h = W0 x + s B sigma(A x)` for the patch x (docs/method.md).

    The weight is read as the matrix (d_out, d_in) with d_in = channels of a group * size of the kernel. With several
    groups, all share A, and each has its rows of B: the update of the weight is B A as ever.
    """

    dimensions: int
    in_channels, out_channels = of_base("in_channels"), of_base("out_channels")
    kernel_size, stride, padding = of_base("kernel_size"), of_base("stride"), of_base("padding")
    dilation, groups, padding_mode = of_base("dilation"), of_base("groups"), of_base("padding_mode")

    def weight_columns(self) -> int:
        """The length of a patch."""
        base: Any = self.get_base_layer()
        return int(base.in_channels // base.groups * math.prod(base.kernel_size))

    def project(self, x: Tensor, matrix: Tensor) -> Tensor:
        """x (N, C, *size) or (C, *size) -> (N, groups, *positions, r)."""
        base: Any = self.get_base_layer()
        x = x.unsqueeze(0) if x.dim() == self.dimensions + 1 else x
        padding = base.padding
        if base.padding_mode != "zeros":
            x, padding = functional.pad(x, base._reversed_padding_repeated_twice, mode=base.padding_mode), 0
        by_group = x.reshape(len(x) * base.groups, x.shape[1] // base.groups, *x.shape[2:])
        kernel, convolve = self.as_weight(matrix), _CONVOLUTIONS[self.dimensions]
        z: Tensor = convolve(by_group, kernel, stride=base.stride, padding=padding, dilation=base.dilation)
        return z.view(len(x), base.groups, *z.shape[1:]).movedim(2, -1)

    def lift(self, z: Tensor, B: Tensor, x: Tensor) -> Tensor:
        """z (N, groups, *positions, r) -> (N, d_out, *positions)."""
        base: Any = self.get_base_layer()
        by_group = B.view(base.groups, -1, B.shape[1])  # (groups, d_out / groups, r)
        output = by_group @ z.flatten(2, -2).transpose(-1, -2)  # (N, groups, d_out / groups, positions)
        output = output.reshape(len(z), len(B), *z.shape[2:-1])
        return output.squeeze(0) if x.dim() == self.dimensions + 1 else output

    def as_weight(self, matrix: Tensor) -> Tensor:
        """(d_out, channels of a group, *kernel)."""
        base: Any = self.get_base_layer()
        return matrix.view(len(matrix), -1, *base.kernel_size)

    def as_lora(self, lora_A: Tensor, lora_B: Tensor) -> dict[str, Tensor]:
        """LoRA's A is a convolution like the layer, its B one of size 1.

        Raises:
            ValueError: what PEFT's LoRA does not take over from the base layer: groups, dilation, a padding mode.
        """
        base: Any = self.get_base_layer()
        ones = (1,) * self.dimensions
        for name, plain in (("groups", 1), ("dilation", ones), ("padding_mode", "zeros")):
            value = getattr(base, name)
            if value != plain:
                raise ValueError(f"PEFT's LoRA of a convolution has no {name}={value!r}. Merge it instead.")
        B = lora_B.view(*lora_B.shape, *[1] * self.dimensions)
        return {"lora_A.weight": lora_A.view(len(lora_A), -1, *base.kernel_size), "lora_B.weight": B}

    def input_pieces(self, x: Tensor, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The patches of each group a few at a time, (n, d_in), padding included as the convolution sees it, with the
        group (n,) that each is of: `rows` of them, or those along the last axes where these are more.

        Laid out all at once, they are as many times the input as the kernel has places.
        """
        base: Any = self.get_base_layer()
        x = x.unsqueeze(0) if x.dim() == self.dimensions + 1 else x
        mode = "constant" if base.padding_mode == "zeros" else base.padding_mode
        x = functional.pad(x, base._reversed_padding_repeated_twice, mode=mode)
        x = x.reshape(len(x) * base.groups, x.shape[1] // base.groups, *x.shape[2:])
        for i in range(self.dimensions):  # each appends its window as a last dimension
            reach = base.dilation[i] * (base.kernel_size[i] - 1) + 1
            x = x.unfold(2 + i, reach, base.stride[i])[..., :: base.dilation[i]]
        patches = x.movedim(1, 1 + self.dimensions)  # (N * groups, *positions, channels of a group, *kernel), a view
        groups = torch.arange(len(patches), device=x.device) % base.groups
        lines = max(1, rows // math.prod(patches.shape[2 : 1 + self.dimensions]))
        images = max(1, lines // patches.shape[1])
        for some, of_some in zip(patches.split(images), groups.split(images), strict=True):
            for piece in some.split(lines, dim=1):
                vectors = piece.reshape(-1, self.d_in)
                yield vectors, of_some.repeat_interleave(len(vectors) // len(of_some))

    @property
    def input_geometry(self) -> tuple[Any, ...]:
        """What the patches depend on."""
        base: Any = self.get_base_layer()
        return (base.kernel_size, base.stride, base.padding, base.dilation, base.groups, base.padding_mode)


class AuroraConv1d(_AuroraConv):
    """AuroRA on `nn.Conv1d`: A (r, in_channels / groups * k) on each patch, B (out_channels, r)."""

    dimensions = 1


class AuroraConv2d(_AuroraConv):
    """AuroRA on `nn.Conv2d`: A (r, in_channels / groups * k1 * k2) on each patch, B (out_channels, r)."""

    dimensions = 2


class AuroraConv3d(_AuroraConv):
    """AuroRA on `nn.Conv3d`: A (r, in_channels / groups * k1 * k2 * k3) on each patch, B (out_channels, r)."""

    dimensions = 3
