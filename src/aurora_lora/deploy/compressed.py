"""Folders of compressed-tensors: models as llm-compressor writes them and vLLM serves them, or quantised afresh."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import ArgumentError, MergeError, UserError, one_line
from ..extras import extra
from ..files import new_folder
from ..ops.rounding import Grid, InputMoment, better_grid, round_to_moment
from ..tuner.peft_names import AuxiliaryTrainingWrapper, BaseTunerLayer
from .formats import Change, Format, StoredModel
from .inputs import output_embeddings, plain_model
from .merges import AdaptedLayer, layers_with_adapters

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""The values of a float of 4 bits, but for their signs."""
PRESETS = {name: name.upper() for name in ("w4a16", "w4a16_asym", "w8a16", "w8a8")}
PRESETS |= {"fp8": "FP8_DYNAMIC", "nvfp4": "NVFP4A16", "mxfp4": "MXFP4A16"}
"""The formats that a model in float can be quantised to, and compressed-tensors' names for them."""
GROUPS = (128, 64, 32)
"""Sizes of groups of integers that engines know: the first is taken that divides the inputs of every layer."""
SHRUNK = (0.95, 0.9, 0.85, 0.8)
"""Scales are tried that leave out the largest weights of a block: those for this part of its range."""


class CompressedFormat(Format):
    """A weight of compressed-tensors, whose own compressor reads and writes it.

    Args:
        layer: the base layer, which holds the dequantised weight.
        held: what is stored, by the names in the layer: `weight_packed`, `weight_scale`, ...
        scheme: how it is quantised.
        compressor: of the scheme's format.
    """

    def __init__(self, layer: Any, held: dict[str, Tensor], scheme: Any, compressor: Any) -> None:
        super().__init__(layer)
        self.stored, self.scheme, self.compressor, self.args = held, scheme, compressor, scheme.weights
        self.name = f"{self.args.type}{self.args.num_bits}"
        self.open = self._opened(held)
        bits = self.args.num_bits
        if self.args.type == "int":
            levels = torch.arange(-(1 << (bits - 1)), 1 << (bits - 1), dtype=torch.float32)
        elif bits == 8:
            every = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(torch.float8_e4m3fn).float()
            levels = torch.unique(every[every.isfinite()])
        else:
            levels = torch.unique(torch.tensor([sign * value for value in E2M1 for sign in (-1, 1)]))
        self.levels = levels.to(layer.weight.device)

    def _opened(self, held: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weight in float32, with its scales and zero points unpacked, if it is packed."""
        if (scale := held.get("weight_scale")) is None:
            return held
        exact = {**held, "weight_scale": scale.float() if scale.dtype in (torch.bfloat16, torch.float16) else scale}
        found: dict[str, Tensor] = self.compressor.decompress(exact, self.scheme)
        return found

    @property
    def dtype(self) -> Any:
        return self.layer.weight.dtype

    def dense(self) -> Tensor:
        return self.open["weight"].float()

    def grid(self) -> Grid:
        return self._grid(self.open["weight_scale"], self.open.get("weight_zero_point"))

    def _grid(self, scale: Tensor, zero: Tensor | None) -> Grid:
        d_out, d_in = self.layer.weight.shape
        scale = scale.float().reshape(-1)
        if "weight_global_scale" in self.stored:
            scale = scale / self.stored["weight_global_scale"].float()
        zero = None if zero is None or self.args.symmetric else zero.float().reshape(-1)
        return Grid(self.levels, scale, d_out * d_in // len(scale), zero)

    def codes(self) -> Tensor:
        return self.grid().round(self.dense())

    def fitted(self, weight: Tensor) -> Grid:
        from compressed_tensors.quantization.utils import calculate_qparams

        blocks = self.grid().blocks(weight)
        scale, zero = calculate_qparams(
            blocks.amin(1), blocks.amax(1), self.args, global_scale=self.stored.get("weight_global_scale")
        )
        return self._grid(scale.to(self._scale.dtype), zero)

    @property
    def _scale(self) -> Tensor:
        """Stored scales, or where these are bits of exponents, their values."""
        scale = self.stored["weight_scale"]
        return self.open["weight_scale"] if scale.dtype == torch.uint8 else scale

    def pack(self, codes: Tensor, grid: Grid) -> dict[str, Tensor]:
        scale = grid.scale
        if "weight_global_scale" in self.stored:
            scale = scale * self.stored["weight_global_scale"].float()
        held = {**self.open, "weight": grid.dequantised(codes)}
        held["weight_scale"] = scale.reshape(self.open["weight_scale"].shape)
        if grid.zero is not None:
            zero = self.open["weight_zero_point"]
            held["weight_zero_point"] = grid.zero.to(zero.dtype).reshape(zero.shape)
        found = self.compressor.compress(held, self.scheme)
        return {name: found[name].to(value.dtype).contiguous() for name, value in self.stored.items()}

    def held(self) -> dict[str, Tensor]:
        return self.stored

    def put(self, packed: dict[str, Tensor]) -> None:
        self.layer.weight.data = self._opened(packed)["weight"].to(self.layer.weight)


class CompressedFolder(StoredModel):
    """A model's folder in a format of compressed-tensors.

    Raises:
        UserError: it is none, or compressed-tensors is missing.
    """

    def __init__(self, path: Path) -> None:
        with extra("quantized"):
            from compressed_tensors.quantization import QuantizationConfig
        self.path = path
        try:
            described = json.loads((path / "config.json").read_text(encoding="utf-8"))["quantization_config"]
            if described["quant_method"] != "compressed-tensors":
                raise ValueError(f"its quant_method is {described['quant_method']}")
            self.config = QuantizationConfig.model_validate(described)
            self.files: dict[str, Path] = {}
            for file in sorted(path.glob("*.safetensors")):
                with safe_open(file, "pt") as reader:
                    self.files |= dict.fromkeys(reader.keys(), file)
        except Exception as error:  # pydantic and safetensors raise of many kinds
            raise UserError(f"{path} is no whole model of compressed-tensors: {one_line(error)}") from error
        if not self.files:
            raise UserError(f"{path} holds no *.safetensors")

    def _held(self, path: str) -> dict[str, Tensor]:
        """What is stored of a layer, by the names in it."""
        found = {}
        for name, file in self.files.items():
            layer, _, own = name.rpartition(".")
            if layer == path and own != "bias":
                with safe_open(file, "pt") as reader:
                    found[own] = reader.get_tensor(name)
        return found

    def format_of(self, model: Any, path: str, layer: nn.Module) -> Any:
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.compressors.format import infer_module_format
        from compressed_tensors.utils.match import is_match

        held = self._held(path)
        if not isinstance(layer, nn.Linear):
            raise MergeError(f"{path}: merge_stored merges linear layers, not {type(layer).__name__}")
        if not held:
            raise MergeError(f"{path}: {self.path} holds no weight of it: is it tied to another one?")
        groups = self.config.config_groups.values()
        ignored = self.config.ignore or ()
        scheme = next((group for group in groups if is_match(path, layer, group.targets, ignored)), None)
        if scheme is None or "weight_scale" not in held:
            self._check(path, layer, held["weight"])
            return None
        kind = scheme.format or infer_module_format(nn.Linear, scheme)
        compressor = BaseCompressor.get_value_from_registry(getattr(kind, "value", kind))
        if scheme.weights.strategy == "block" or "weight_g_idx" in held:
            what = "blocks of rows and columns" if scheme.weights.strategy == "block" else "reordered columns"
            raise MergeError(f"{path}: merge_stored does not write scales of {what}")
        held = {name: value.to(layer.weight.device) for name, value in held.items()}
        found = CompressedFormat(layer, held, scheme, compressor)
        self._check(path, layer, found.dense())
        return found

    def _check(self, path: str, layer: nn.Module, weight: Tensor) -> None:
        """Raise a MergeError unless the layer holds this weight, up to rounding."""
        base: Any = layer.weight
        if weight.shape != base.shape or not torch.allclose(weight.to(base), base, rtol=0.02, atol=1e-6):
            raise MergeError(
                f"{path}: the model's weight is not that of {self.path}: load the model from this very folder, "
                "with CompressedTensorsConfig(dequantize=True)"
            )

    def write(self, output: Path, changes: Mapping[str, Change]) -> None:
        changed: dict[str, Tensor] = {}
        for path, (weight, bias) in changes.items():
            if isinstance(weight, dict):
                changed |= {f"{path}.{name}": value.cpu() for name, value in weight.items()}
            elif weight is not None:
                changed[f"{path}.weight"] = weight.cpu()
            if bias is not None:
                changed[f"{path}.bias"] = bias.cpu()
        if missing := next((name for name in changed if name not in self.files), None):
            raise MergeError(f"{self.path} holds no {missing}, which the adapter changes")
        with new_folder(output) as folder:
            for file in sorted(self.path.iterdir()):
                if not any(self.files[name] == file for name in changed):
                    (shutil.copytree if file.is_dir() else shutil.copyfile)(file, folder / file.name)
                    continue
                with safe_open(file, "pt") as reader:
                    tensors = {name: reader.get_tensor(name) for name in reader.keys()}  # noqa: SIM118
                    metadata = reader.metadata()
                tensors |= {name: changed[name].to(old.dtype) for name, old in tensors.items() if name in changed}
                save_file(tensors, folder / file.name, metadata)


# -------------------------------------------------------------------- models in float, quantised afresh


class FreshFormat(CompressedFormat):
    """A weight in float that is to be quantised, with scales for the merged one: in `dtype`, if the scheme has none of
    its own, and with one for the whole tensor that fits `largest`, where it has such a scale."""

    is_fresh = True

    def __init__(self, layer: AdaptedLayer, scheme: Any, compressor: Any, dtype: Any, largest: Tensor | None) -> None:
        from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

        args, merged = scheme.weights, layer.weights()[1]
        whole = None if largest is None else generate_gparam(-largest, largest).reshape(1)
        held = {"weight": merged} | ({} if whole is None else {"weight_global_scale": whole})
        blocks = merged.reshape(len(merged), -1, args.group_size or merged.shape[1])
        scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, global_scale=whole)
        held["weight_scale"] = scale.to(dtype if args.scale_dtype is None else torch.float32)
        if not args.symmetric:
            held["weight_zero_point"] = zero.to(args.zp_dtype)
        super().__init__(layer.base, compressor.compress(held, scheme), scheme, compressor)
        del self.open["weight"]

    def dense(self) -> Tensor:
        return self.layer.weight.data.float()  # type: ignore[no-any-return]

    def chosen(self, weight: Tensor, S: Tensor, inputs: InputMoment) -> tuple[Tensor, Grid]:
        grid = self.fitted(weight)
        for part in SHRUNK:
            grid = better_grid(weight, grid, self.fitted(part * weight), S.diagonal())
        return round_to_moment(weight, inputs, grid), grid

    def held(self) -> dict[str, Tensor]:
        return {"weight": self.layer.weight.data}


def fresh_layers(model: nn.Module, name: str, dtype: torch.dtype) -> tuple[list[AdaptedLayer], Any]:
    """All linear layers of a model in float, with the formats that they get, and the `QuantizationConfig`. The output
    layer stays in float, and comes without a format if it is adapted; so does what is trained as a whole.

    Raises:
        ArgumentError: the inputs of a layer are no whole groups.
        MergeError: an adapted layer is not linear, or is tied to the embeddings; see `layers_with_adapters`.
    """
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme

    plain: Any = plain_model(model)
    adapted, output = layers_with_adapters(model, f"a merge into {name}"), output_embeddings(plain)
    for layer in adapted:
        if not isinstance(layer.base, nn.Linear):
            raise MergeError(f"{layer.path}: linear layers alone are merged, not {type(layer.base).__name__}")
        if layer.base.weight is getattr(plain.get_input_embeddings(), "weight", None):
            raise MergeError(f"{layer.path}: its weight is tied to the embeddings, which a merge would change, too")
    layers = [layer for layer in adapted if layer.module is not output]
    wrapped: Any = BaseTunerLayer, AuxiliaryTrainingWrapper
    stay = {output, *(part for one in plain.modules() if isinstance(one, wrapped) for part in one.modules())}
    for path, module in plain.named_modules():
        if isinstance(module, nn.Linear) and module not in stay:
            layers.append(AdaptedLayer(path, module, None))
    scheme = preset_name_to_scheme(PRESETS[name], ["Linear"])
    args: Any = scheme.weights
    if args.group_size:
        sizes = GROUPS if args.type == "int" else (args.group_size,)
        fits = (size for size in sizes if not any(layer.base.in_features % size for layer in layers))
        args = scheme.weights = args.model_copy(update={"group_size": next(fits, None)})
        if args.group_size is None:
            odd = next(layer.path for layer in layers if layer.base.in_features % sizes[-1])
            raise ArgumentError(f"the inputs of {odd} are no whole groups of {sizes[-1]}: w8a8 and fp8 need none")
    largest: dict[str, Tensor] = {}  # by module, whose layers engines join
    for layer in layers if args.strategy == "tensor_group" else ():
        block, own = layer.path.rpartition(".")[0], layer.weights()[1].abs().max()
        largest[block] = torch.maximum(largest.get(block, own), own)
    scheme.format = infer_module_format(nn.Linear, scheme)
    common = scheme, BaseCompressor.get_value_from_registry(scheme.format.value), dtype
    for i, layer in enumerate(layers):
        layers[i] = replace(layer, format=FreshFormat(layer, *common, largest.get(layer.path.rpartition(".")[0])))
    how: Any = {"format": scheme.format.value, "quantization_status": "compressed"}
    config = QuantizationConfig(config_groups={"group_0": scheme}, **how)
    return [*layers, *(layer for layer in adapted if layer.module is output)], config
