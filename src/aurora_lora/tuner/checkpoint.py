"""What a checkpoint of an adapter must have, and what is saved of one."""

from __future__ import annotations

from torch import Tensor, nn

from ..errors import CheckpointError, abridged
from .adapters import aurora_layers, without_wrappers
from .calibration import MATRIX, fingerprint
from .config import AuroraConfig
from .peft_names import PEFT_PREFIX
from .registration import PREFIX


def fit_checkpoint(
    model: nn.Module, config: AuroraConfig, adapter_name: str, state_dict: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The state, with room in the layers for just the calibrated matrices that it has.

    Where the model holds an adapter in a lower precision than the file, the matrix belongs to the rounded weights.

    Raises:
        CheckpointError: the checkpoint lacks weights of the adapter, has some that the model has no place for, or has
            none of the calibrated matrices that the config of an adapter for inference speaks of; PEFT would silently
            drop them.
    """
    layers = {
        without_wrappers(path).removeprefix(PEFT_PREFIX): layer
        for path, layer in aurora_layers(model)
        if adapter_name in layer.aurora_A
    }
    present = {key.removeprefix(PEFT_PREFIX): key for key in state_dict if _is_of_layer(key)}
    calibrations = {
        path: layer.calibration[adapter_name] for path, layer in layers.items() if adapter_name in layer.calibration
    }
    is_calibrated = any(f"{path}.{MATRIX}.weight" in present for path in calibrations)
    weights = {
        path: {
            f"{path}.{name}.weight": getattr(layer, name)[adapter_name].weight
            for name in layer.adapter_layer_names
            if adapter_name in getattr(layer, name)
        }
        for path, layer in layers.items()
    }
    expected = {name for of_layer in weights.values() for name in of_layer}
    if is_calibrated:  # in all of them, or it is damaged
        expected |= {f"{path}.{MATRIX}.{name}" for path in calibrations for name in ("weight", "fingerprint")}
    for problem, keys in (("lacks", expected - present.keys()), ("has unknown", present.keys() - expected)):
        if keys:
            raise CheckpointError(
                f"The checkpoint does not fit adapter {adapter_name!r}: it {problem} {abridged(sorted(keys), 3)}. "
                "Was it saved with other settings (target_modules, fixed_activation, spline)?"
            )
    if calibrations and not is_calibrated and config.calibrated and config.inference_mode:
        raise CheckpointError(
            f"The config of adapter {adapter_name!r} says calibrated=True, but the checkpoint has no calibrated matrix "
            f"({MATRIX}): save the calibrated adapter again, or set it to false and call calibrate."
        )
    fitted = dict(state_dict)
    for path, calibration in calibrations.items():
        if not is_calibrated:
            calibration.take_away()
            continue
        calibration.make_room()
        A, _, *rest = weights[path].items()
        given = [state_dict[present[name]] for name, _ in (A, *rest)]
        # on meta, a model takes the file's tensors as they are
        rounded = [
            value if held.is_meta else value.to(held.dtype) for value, (_, held) in zip(given, (A, *rest), strict=True)
        ]
        key = present[f"{path}.{MATRIX}.fingerprint"]
        if state_dict[key].tolist() == fingerprint(given).tolist():
            fitted[key] = fingerprint(rounded)
    config.calibrated = is_calibrated
    return fitted


def without_empty_matrices(
    model: nn.Module, config: AuroraConfig, adapter_name: str, state_dict: dict[str, Tensor]
) -> dict[str, Tensor]:
    """What is saved of an adapter: a calibrated matrix for all of its layers, or for none, as the config then says.

    A config that was read from a calibrated adapter's folder makes room for matrices, which nobody may ever load.
    """
    held = [layer.calibration[adapter_name] for _, layer in aurora_layers(model) if adapter_name in layer.calibration]
    config.calibrated = bool(held) and all(calibration.exists for calibration in held)
    if state_dict and not any(f".{MATRIX}.{adapter_name}." in key for key in state_dict):
        config.calibrated = False  # the state may be the caller's, of the trained weights alone
    if config.calibrated:
        return state_dict
    return {key: value for key, value in state_dict.items() if f".{MATRIX}.{adapter_name}." not in key}


def _is_of_layer(key: str) -> bool:
    """Whether a key is an AuroRA layer's, and not that of a module that is trained whole."""
    parts = key.split(".")
    return parts[-2:-1] != [] and parts[-2].startswith(PREFIX) and "modules_to_save" not in parts
