"""Settings of an adapter that this version does not know: PEFT leaves them out, and says so where no one may look."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

from .. import files
from .._version import __version__


def warn_of_newer_fields(directory: Path) -> None:
    """Warn of the fields in an adapter's `adapter_config.json` that are left out when it is loaded here.

    A later version may write them: an adapter that was trained with one may compute something else without it. One
    that is null, false or empty there is passed over, as PEFT does with a field that came later.

    Args:
        directory: of the adapter; one without such a file, or of a type that PEFT does not have, is passed over.
    """
    from peft import __version__ as peft_version
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from ..tuner.peft_names import CONFIG_NAME

    path = directory / CONFIG_NAME
    try:
        saved = files.read_json(path)
        config = PEFT_TYPE_TO_CONFIG_MAPPING[saved["peft_type"]]
    except (OSError, ValueError, TypeError, KeyError):
        return  # whoever loads it says why it cannot be
    known = {one.name for one in dataclasses.fields(config)} | {"runtime_config"}  # PEFT says why it is left out
    if newer := {name: saved[name] for name in sorted(saved) if name not in known and saved[name]}:
        shown = ", ".join(f"{name} ({value!r:.60})" for name, value in newer.items())
        by = f", and was written with PEFT {saved['peft_version']}" if saved.get("peft_version") else ""
        warnings.warn(
            f"{path} has settings that this version does not know and leaves out: {shown}{by}; here are aurora-lora "
            f"{__version__} and PEFT {peft_version}: what the adapter computes may be something else than was trained",
            stacklevel=2,
        )
