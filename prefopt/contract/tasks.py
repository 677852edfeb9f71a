"""Names to tasks: a decorator for sources of prompts of somebody else's."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from prefopt.errors import UsageError

ENTRY_POINT_GROUP = "prefopt.tasks"
RESERVED = ("imdb", "data", "prompts")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_MEMBERS = ("prompts", "sft_texts", "reward", "reward_report", "fingerprint", "has_reward")
_TASKS: dict[str, type[Any]] = {}

T = TypeVar("T", bound=type[Any])


def register_task(name: str) -> Callable[[T], T]:
    """Class decorator: make a task known under ``name``; ``prefopt.tasks.base.Task`` says what it must have.

    The class is called without arguments.

    Args:
        name: Lower-case letters, digits and underscores, at most 40; the string of configs.

    Raises:
        UsageError: If the name is taken or malformed, or the class lacks what a task must have.
    """

    def add(cls: T) -> T:
        if not _NAME.fullmatch(name) or name in RESERVED:
            raise UsageError(
                f"task name {name!r} must match [a-z][a-z0-9_]*, at most 40 characters, and be none of ours"
            )
        taken = _TASKS.get(name)
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UsageError(f"task name {name!r} is taken by {taken.__module__}.{taken.__qualname__}; choose another")
        lacking = [member for member in _MEMBERS if not hasattr(cls, member)]
        if lacking:
            raise UsageError(
                f"task {name}: the class lacks {', '.join(lacking)}; derive it from prefopt.tasks.base.DataTask"
            )
        cls.name = name
        _TASKS[name] = cls
        return cls

    return add


def task_names() -> list[str]:
    """Every registered name, in order of registration."""
    return list(_TASKS)


def task_class(name: str) -> type[Any]:
    """The class registered under ``name``.

    Raises:
        KeyError: If nothing is.
    """
    return _TASKS[name]
