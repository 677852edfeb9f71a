"""Tasks: where prompts come from and, where there is one, the gold reward that is to be optimised.

A task is chosen by name. ``data`` stands for the user's own pairs, which bring no reward of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from prefopt.errors import UsageError, did_you_mean
from prefopt.tasks.base import DataTask, Task


def _imdb(cache: Path | None) -> Task:
    from prefopt.tasks.imdb import ImdbTask  # reads 34 MB on construction, so only when asked for

    return ImdbTask(cache=cache)


TASKS: Mapping[str, Callable[[Path | None], Task]] = {"imdb": _imdb, "data": lambda cache: DataTask()}


def load_task(name: str, *, cache: Path | None = None) -> Task:
    """The task of that name.

    Args:
        name: A key of ``TASKS``.
        cache: Folder for what is slow to make again; nothing is kept if None.

    Raises:
        UsageError: If there is no such task.
        MachineError: If what the task reads is not installed.
    """
    if name not in TASKS:
        raise UsageError(f"unknown task {name!r}{did_you_mean(name, list(TASKS))}")
    return TASKS[name](cache)
