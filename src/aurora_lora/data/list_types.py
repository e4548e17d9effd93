"""Types of columns that are lists, as versions of `datasets` have them."""

from __future__ import annotations

from typing import Any


def item_type(feature: Any) -> Any:
    """What a list is of; None for what is no list.

    Args:
        feature: a type of `datasets`; before its version 4 a list may be a Python list with one type in it.
    """
    return feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
