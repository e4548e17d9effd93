"""What a checkpoint of an adapter must have, and how it and the layers are made to fit each other."""

from __future__ import annotations

from collections.abc import Set

from torch import Tensor, nn

from ..errors import CheckpointError
from .adapters import aurora_layers
from .calibration import BUFFERS
from .config import AuroraConfig
from .peft_names import PEFT_PREFIX
from .registration import PREFIX


def fit_checkpoint(
    model: nn.Module, config: AuroraConfig, adapter_name: str, state_dict: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The state under the names that PEFT loads, with room in the layers for just the calibration that it has.

    Keys may have the prefix of a `PeftModel` or not, whatever the model is.

    Raises:
        CheckpointError: the checkpoint lacks weights of the adapter, has some that the model has no place for, or has
            none of the calibrated matrices that the adapter's config speaks of; PEFT would silently drop them.
            The adapter is left as it was.
    """
    present: dict[str, str] = {}
    for key in state_dict:
        if _is_of_layer(key) and present.setdefault(key.removeprefix(PEFT_PREFIX), key) != key:
            raise CheckpointError(f"The checkpoint has {key} twice: with the prefix {PEFT_PREFIX!r} and without.")
    layers = {
        path.removeprefix("_fsdp_wrapped_module.").removeprefix(PEFT_PREFIX): layer
        for path, layer in aurora_layers(model)
        if adapter_name in layer.aurora_A
    }
    calibrations = {
        path: layer.calibration[adapter_name] for path, layer in layers.items() if adapter_name in layer.calibration
    }
    # in all of them, or it is damaged
    is_calibrated = any(f"{path}.{BUFFERS[0]}" in present for path in calibrations)
    expected = {
        f"{path}.{name}"
        for path, layer in layers.items()
        for name in layer.adapter_layer_names
        if adapter_name in getattr(layer, name)
    }
    if is_calibrated:
        expected |= {f"{path}.{buffer}" for path in calibrations for buffer in BUFFERS}
    _check(adapter_name, present.keys(), expected)
    if not is_calibrated and any(calibration.is_awaited for calibration in calibrations.values()):
        raise CheckpointError(
            f"The config of adapter {adapter_name!r} says calibrated=True, but the checkpoint has no calibrated "
            "matrix (aurora_A_cal): save the calibrated adapter again, or set it to false and call calibrate."
        )
    for calibration in calibrations.values():  # only now: a refused checkpoint leaves the calibration
        if is_calibrated:
            calibration.make_room()
        else:
            calibration.take()
    config.calibrated = is_calibrated
    # PEFT takes the prefix away again for a model that is no PeftModel
    named = {key: f"{PEFT_PREFIX}{path}" for path, key in present.items()}
    return {named.get(key, key): value for key, value in state_dict.items()}


def _is_of_layer(key: str) -> bool:
    """Whether a key is an AuroRA layer's, and not that of a module or of another adapter whose name begins alike."""
    names = key.split(".")
    return names[-1].startswith(PREFIX) and not {"modules_to_save", "token_adapter"} & set(names)


def _check(adapter_name: str, present: Set[str], expected: Set[str]) -> None:
    for problem, keys in (("lacks", sorted(expected - present)), ("has unknown", sorted(present - expected))):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise CheckpointError(
                f"The checkpoint does not fit adapter {adapter_name!r}: it {problem} {', '.join(keys[:3])}{more}. "
                "Was it saved with other settings (target_modules, fixed_activation, spline)?"
            )
