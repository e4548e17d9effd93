"""Tables of the options of methods, from the methods themselves."""

from __future__ import annotations

import json
from typing import Any

from aurora_lora.methods import METHODS, get_method
from aurora_lora.text_table import TextTable

OF_PEFT = ("lora", "dora", "pissa", "lora-ga")
"""They take every field of `LoraConfig` that they do not fix."""
COMMON = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
"""What means the same for every method."""
AURORA = {
    "r": "",
    "alpha": "the update is multiplied by alpha / r",
    "dropout": "on x, before A; not on embeddings",
    "train_form": "`dynamic`: `B sigma(A x)`; `static`: `B sigma(A) x`",
    "eval_form": "`calibrated`, `static` or `dynamic`; null: `calibrated` for dynamic training, `static` for static",
    "skip": "sigma has z as a term of its own",
    "fixed_activation": "of F: `tanh`, `leaky_relu`, `sigmoid`, `relu`; null leaves F out",
    "spline": "L: `channelwise`, `summed` (one spline of all channels); null leaves L out",
    "spline_grid_size": "intervals of the grid",
    "spline_order": "",
    "spline_range": "of the grid",
    "init_weights": "`identity` (or true): sigma is the identity, or near it; `paper`: H, W_s random; false: B too",
    "use_rslora": "alpha / sqrt(r) in place of alpha / r",
}


def aurora_fields() -> str:
    """AuroRA's own fields with their defaults."""
    defaults = get_method("aurora").bind({}).options
    table = TextTable("", ["field", "default", ""], align="lll")
    table.rows += [[f"`{name}`", _shown(defaults[name]), words] for name, words in AURORA.items()]
    return table.markdown()


def method_options() -> str:
    """The options of the methods beside AuroRA, but for `COMMON`, with their defaults."""
    table = TextTable("", ["name", "options, and their defaults"], align="ll")
    for name in METHODS:
        if name.startswith("aurora"):
            continue
        options = {key: value for key, value in get_method(name).bind({}).options.items() if key not in COMMON}
        shown = [f"`{key}` {_shown(value)}" for key, value in options.items()]
        if name in OF_PEFT:
            shown.append("other fields of PEFT's `LoraConfig`")
        table.rows.append([f"`{name}`", ", ".join(shown) or "none"])
    return table.markdown()


def _shown(value: Any) -> str:
    """As in a recipe."""
    return value if isinstance(value, str) else json.dumps(value)
