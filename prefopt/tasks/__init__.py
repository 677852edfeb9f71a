"""Tasks: where prompts come from and, where there is one, the gold reward that is to be optimised.

A task is chosen by name. ``data`` stands for the user's own pairs, which bring no reward of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from prefopt.contract import registry
from prefopt.contract.tasks import ENTRY_POINT_GROUP, task_class, task_names
from prefopt.errors import PrefoptError, UsageError, did_you_mean
from prefopt.tasks.base import DataTask, Task


def _imdb(cache: Path | None) -> Task:
    from prefopt.tasks.imdb import ImdbTask  # reads 34 MB on construction, so only when asked for

    return ImdbTask(cache=cache)


TASKS: Mapping[str, Callable[[Path | None], Task]] = {"imdb": _imdb, "data": lambda cache: DataTask()}


def load_task(name: str, *, cache: Path | None = None) -> Task:
    """The task of that name: ours, one that a plug-in has registered, or that of an installed package.

    Args:
        name: A key of ``TASKS``, or the name of a plug-in.
        cache: Folder for what is slow to make again; nothing is kept if None.

    Raises:
        UsageError: If there is no such task, or a plug-in's cannot be made.
        MachineError: If what the task reads is not installed.
    """
    if name in TASKS:
        return TASKS[name](cache)
    cls = find_task(name)
    try:
        task: Task = cls()
    except PrefoptError:
        raise
    except Exception as problem:
        raise UsageError(f"task {name}: cannot be made: {type(problem).__name__}: {problem}") from None
    return task


def find_task(name: str) -> type[Any]:
    """The class of a plug-in's task; the entry point of an installed package is loaded when it is named here.

    Raises:
        UsageError: If nothing has that name.
    """
    if name not in task_names() and any(point.name == name for point in entry_points(group=ENTRY_POINT_GROUP)):
        registry.load_entry_point(name, ENTRY_POINT_GROUP)
    if name not in task_names():
        known = [*TASKS, *task_names(), *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))]
        raise UsageError(f"unknown task {name!r}{did_you_mean(name, known)}")
    return task_class(name)
