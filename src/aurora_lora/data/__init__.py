"""Tasks and models: what to train on and from. A new task is one dataclass and one `TASKS` line."""

from ..errors import UserError, unknown
from .commonsense import COMMONSENSE
from .glue import GLUE
from .packaged import BIG_BENCH, MOVIES
from .task import SplitSizes, Task
from .vision import PACKAGED_IMAGES, VISION

__all__ = ["TASKS", "SplitSizes", "Task", "get_task"]

TASKS: dict[str, Task] = {
    task.name: task for task in (*MOVIES, *BIG_BENCH, *GLUE, COMMONSENSE, *VISION, *PACKAGED_IMAGES)
}


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        UserError: there is none; suggests the nearest name.
    """
    if task := TASKS.get(name):
        return task
    raise UserError(f"{name!r}: {unknown('task', TASKS, name)}")
