"""What a checkpoint of an adapter must have, and how it and the layers are made to fit each other."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Set

from torch import Tensor, nn

from ..errors import CheckpointError, abridged
from .adapters import aurora_layers
from .calibration import BUFFERS, Calibration
from .config import AS_GIVEN, AuroraConfig
from .layer import AuroraLayer
from .peft_names import PEFT_PREFIX
from .registration import PREFIX
from .stacked import name_alone, names_within, without_inner, without_wrappers


def fit_checkpoint(
    model: nn.Module, config: AuroraConfig, adapter_name: str, state_dict: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The state under the names that PEFT loads, with room in the layers for just the calibration that it has.

    Keys may have the prefix of a `PeftModel` or not, whatever the model is; with another method's adapter over AuroRA's
    layers, or under them, they are as without it (`stacked`). Weights of other shapes are PEFT's to refuse, or with
    `ignore_mismatched_sizes` to leave out: no matrix is taken from such a checkpoint, and none away before.

    Raises:
        CheckpointError: the checkpoint lacks weights of the adapter, has some that the model has no place for, or has
            none of the calibrated matrices that the adapter's config speaks of (a warning where it is trained on); PEFT
            would silently drop them. The adapter is left as it was, but for what its config speaks of: a folder that
            has been corrected since loads.
    """
    placed = _layers(model, adapter_name)
    layers = {path: layer for path, (_, layer) in placed.items()}
    present: dict[str, str] = {}
    for key in state_dict:
        if _is_of_layer(key) and present.setdefault(_as_saved(key, layers), key) != key:
            raise CheckpointError(f"The checkpoint has {key} twice: with the prefix {PEFT_PREFIX!r} and without.")
    calibrations = {
        path: layer.calibration[adapter_name] for path, layer in layers.items() if adapter_name in layer.calibration
    }
    # in all of them, or it is damaged
    is_calibrated = any(f"{path}.{BUFFERS[0]}" in present for path in calibrations)
    weights = {
        f"{path}.{name}": getattr(layer, name)[adapter_name]
        for path, layer in layers.items()
        for name in layer.adapter_layer_names
        if adapter_name in getattr(layer, name)
    }
    buffers = {f"{path}.{buffer}" for path in calibrations for buffer in BUFFERS} if is_calibrated else set()
    _check(adapter_name, present.keys(), weights.keys() | buffers)
    if not is_calibrated:
        _check_not_awaited(config, adapter_name, calibrations.values())
    # PEFT takes the prefix away again for a model that is no PeftModel
    within = names_within(model)
    named = {key: within[name] for key in state_dict if (name := key.removeprefix(PEFT_PREFIX)) in within}
    for name, key in present.items():
        path, _, leaf = name.rpartition(".")
        named[key] = f"{PEFT_PREFIX}{placed[path][0]}.{leaf}"
    if not all(_may_fit(weight, state_dict[present[path]]) for path, weight in weights.items()):
        left_out = {present[path] for path in buffers}
        return {named.get(key, key): value for key, value in state_dict.items() if key not in left_out}
    for calibration in calibrations.values():  # only now: a refused checkpoint leaves the calibration
        if is_calibrated:
            calibration.make_room()
        else:
            calibration.take()
    config.calibrated = is_calibrated
    return {named.get(key, key): value for key, value in state_dict.items()}


def _check_not_awaited(config: AuroraConfig, adapter_name: str, calibrations: Collection[Calibration]) -> None:
    """Refuse a checkpoint without the calibrated matrices that the config promises; the next may lack them, too.

    Training is resumed from checkpoints of before the calibration with the config of after it, and makes a matrix
    outdated anyway: there it is a warning.
    """
    awaited = [calibration for calibration in calibrations if calibration.is_awaited]
    for calibration in awaited:
        calibration.is_awaited = False
    lack = (
        f"The config of adapter {adapter_name!r} says calibrated=True, but the checkpoint has no calibrated matrix "
        "(aurora_A_cal)"
    )
    if awaited and config.inference_mode:
        raise CheckpointError(f"{lack}: save the calibrated adapter again, or set it to false and call calibrate.")
    if awaited:
        warnings.warn(f"{lack}: call calibrate after the training.", stacklevel=5)


def without_empty_matrices(
    model: nn.Module, config: AuroraConfig, adapter_name: str, state_dict: dict[str, Tensor]
) -> dict[str, Tensor]:
    """What is saved of an adapter: a calibrated matrix for all of its layers, or for none, as the config says.

    A config that was read from a calibrated adapter's folder makes room for matrices, which nobody may ever load. The
    state may be the caller's: one of trained weights alone has no matrix, whatever the layers have.
    """
    layers = {
        without_wrappers(path): layer
        for path, layer in aurora_layers(model)
        if adapter_name in layer.aurora_A and adapter_name in layer.calibration
    }
    if any(f"{path}.{PREFIX}A.{adapter_name}" in state_dict for path in layers):
        is_calibrated = all(_is_filled(state_dict, path, adapter_name) for path in layers)
        config.calibrated = is_calibrated
    else:  # one of several processes, that saves nothing; or there is no matrix to have
        is_calibrated = bool(layers) and all(_has_matrix(layer, adapter_name) for layer in layers.values())
    if is_calibrated:
        return state_dict
    config.calibrated = vars(config)[AS_GIVEN] = False  # also where it makes another model
    for layer in layers.values():
        layer.calibration[adapter_name].is_awaited = False
    empty = tuple(f".{buffer}.{adapter_name}" for buffer in BUFFERS)
    return {key: value for key, value in state_dict.items() if not key.endswith(empty)}


def _is_filled(state_dict: dict[str, Tensor], path: str, adapter_name: str) -> bool:
    """Whether a state has the matrix of the layer at `path`, and not only room for it; on meta nothing tells."""
    matrix, fingerprint = (state_dict.get(f"{path}.{buffer}.{adapter_name}") for buffer in BUFFERS)
    return matrix is not None and fingerprint is not None and (fingerprint.is_meta or bool(fingerprint.any()))


def _layers(model: nn.Module, adapter_name: str) -> dict[str, tuple[str, AuroraLayer]]:
    """The layers that have the adapter, each with its path in the adapted model, by the paths they are saved under."""
    return {
        _in_model(name_alone(model, path)): (_in_model(path), layer)
        for path, layer in aurora_layers(model)
        if adapter_name in layer.aurora_A
    }


def _in_model(path: str) -> str:
    return without_wrappers(path).removeprefix(PEFT_PREFIX)


def _as_saved(key: str, layers: Collection[str]) -> str:
    """A key without PEFT's prefix, and without what was saved of another method's layer around AuroRA's."""
    path, _, leaf = key.removeprefix(PEFT_PREFIX).rpartition(".")
    return f"{path if path in layers else without_inner(path)}.{leaf}"


def _has_matrix(layer: AuroraLayer, adapter_name: str) -> bool:
    """Whether the layer's room for a matrix is filled, or on meta, where nothing tells."""
    fingerprints = layer.aurora_A_cal_fingerprint
    return adapter_name in fingerprints and (
        fingerprints[adapter_name].is_meta or layer.calibration[adapter_name].exists
    )


def _may_fit(weight: Tensor, value: Tensor) -> bool:
    """Whether shapes are the same; those of an FSDP or DeepSpeed shard, which is flat, tell nothing."""
    return weight.ndim != value.ndim or weight.shape == value.shape


def _is_of_layer(key: str) -> bool:
    """Whether a key is an AuroRA layer's, and not that of a module or of another adapter whose name begins alike."""
    names = key.split(".")
    return names[-1].startswith(PREFIX) and not {"modules_to_save", "token_adapter"} & set(names)


def _check(adapter_name: str, present: Set[str], expected: Set[str]) -> None:
    for problem, keys in (("lacks", sorted(expected - present)), ("has unknown", sorted(present - expected))):
        if keys:
            raise CheckpointError(
                f"The checkpoint does not fit adapter {adapter_name!r}: it {problem} {abridged(keys, 3)}. "
                "Was it saved with other settings (target_modules, fixed_activation, spline)? A part of an adapter: "
                "model.load_state_dict(state, strict=False), by the keys of model.state_dict()."
            )
