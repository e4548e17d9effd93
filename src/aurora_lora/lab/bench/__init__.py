"""The benchmark: speed and memory against PEFT's LoRA, in one interleaved run, and in counts."""

from .run import WORKLOADS, Record, Settings, Unit, bench, read_record, units
from .variants import VARIANTS

__all__ = ["VARIANTS", "WORKLOADS", "Record", "Settings", "Unit", "bench", "read_record", "units"]
