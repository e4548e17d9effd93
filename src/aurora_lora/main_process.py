"""Which of the processes that were launched together prints and writes, before any of them has joined the others."""

import os

_OF_ALL = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")
_ON_ITS_MACHINE = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK")
"""The variables by which torchrun, Intel MPI (and MPICH) and Open MPI tell a process its rank."""


def launched_as_main() -> bool:
    """Whether this is that process, by the rank that a launcher gave it; one that was started alone is.

    `training.distributed.is_main` says it of processes that have joined.
    """
    return _launched_as() == "0"


def place_of_launch() -> str | None:
    """How an error is headed in this process: "" in the main one, its rank in the first of another machine.

    Another machine may lack what the main one has (a model, a file, space), which the main process cannot tell. None in
    the other processes of a machine, where the first has the same to say.
    """
    rank = _launched_as()
    if rank == "0":
        return ""
    return f"process {rank}: " if _launched_as(on_its_machine=True) == "0" else None


def _launched_as(on_its_machine: bool = False) -> str | None:
    names = _ON_ITS_MACHINE if on_its_machine else _OF_ALL
    ranks = [os.environ[name] for name in names if name in os.environ]
    return next((rank for rank in ranks if rank != "0"), "0" if ranks or not on_its_machine else None)
