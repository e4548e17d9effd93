"""The paper's tables and figures: the settings of every cell, each with its source, at two scales."""

from __future__ import annotations

from ..suite import Suite
from .commonsense import FIGURE5, FIGURE5_PACKAGED, TABLE2, TABLE2_PACKAGED, TABLE7, TABLE7_PACKAGED
from .glue import TABLE1, TABLE1_PACKAGED
from .images import TABLE3, TABLE3_PACKAGED, TABLE4, TABLE4_PACKAGED, TABLE5, TABLE5_PACKAGED
from .subjects import FIGURE4

SUITES: dict[str, dict[str, Suite]] = {
    "figure4": {"hub": FIGURE4},
    "figure5": {"hub": FIGURE5, "packaged": FIGURE5_PACKAGED},
    "table1": {"hub": TABLE1, "packaged": TABLE1_PACKAGED},
    "table2": {"hub": TABLE2, "packaged": TABLE2_PACKAGED},
    "table3": {"hub": TABLE3, "packaged": TABLE3_PACKAGED},
    "table4": {"hub": TABLE4, "packaged": TABLE4_PACKAGED},
    "table5": {"hub": TABLE5, "packaged": TABLE5_PACKAGED},
    "table7": {"hub": TABLE7, "packaged": TABLE7_PACKAGED},
}
"""Each suite, by name and scale."""

__all__ = ["SUITES"]
