"""Which of the processes that were launched together prints and writes, before any of them has joined the others."""

import os


def launched_as_main() -> bool:
    """Whether this is that process, by the rank that a launcher gave it; one that was started alone is.

    `training.distributed.is_main` says it of processes that have joined.
    """
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK"))
