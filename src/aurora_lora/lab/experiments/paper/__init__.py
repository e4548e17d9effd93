"""The paper's tables and figures: the settings of every cell, each with its source, at two scales."""

from __future__ import annotations

from collections.abc import Callable

from ..suite import Suite
from .commonsense import figure5, table2, table7
from .glue import table1
from .images import table3, table4, table5
from .small_images import table3_packaged, table4_packaged, table5_packaged
from .small_texts import figure5_packaged, table1_packaged, table2_packaged, table7_packaged
from .subjects import figure4

SUITES: dict[str, dict[str, Callable[[], Suite]]] = {
    "figure4": {"hub": figure4},
    "figure5": {"hub": figure5, "packaged": figure5_packaged},
    "table1": {"hub": table1, "packaged": table1_packaged},
    "table2": {"hub": table2, "packaged": table2_packaged},
    "table3": {"hub": table3, "packaged": table3_packaged},
    "table4": {"hub": table4, "packaged": table4_packaged},
    "table5": {"hub": table5, "packaged": table5_packaged},
    "table7": {"hub": table7, "packaged": table7_packaged},
}
"""What makes each suite, by name and scale. Each is made once."""

__all__ = ["SUITES"]
