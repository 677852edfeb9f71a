"""Names to losses: a decorator, entry points of other packages, files named on the command line."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from prefopt.contract import plugin_files
from prefopt.contract.labels import parse_label
from prefopt.contract.loss import Loss
from prefopt.contract.plugin_process import in_this_process, is_its_own, while_loading
from prefopt.contract.tasks import task_class, task_names
from prefopt.errors import UsageError, did_you_mean

ENTRY_POINT_GROUP = "prefopt.losses"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
REGISTRY: dict[str, type[Loss]] = {}  # by name, in order of registration; tests put a copy in its place
_ALIASES: dict[str, str] = {}

L = TypeVar("L", bound=type[Loss])


def register(name: str, *, aliases: tuple[str, ...] = ()) -> Callable[[L], L]:
    """Class decorator: make a loss known under ``name``.

    Args:
        name: Lower-case letters, digits and underscores, at most 40; the string of configs,
            folders and legends.
        aliases: Other names by which it is asked for; they build the loss called ``name``.

    Raises:
        UsageError: If the name is taken or malformed, or the class is not a frozen dataclass on ``Loss``.
    """
    for wanted in (name, *aliases):
        if not _NAME.fullmatch(wanted):
            raise UsageError(f"loss name {wanted!r} must match [a-z][a-z0-9_]*, at most 40 characters")

    def add(cls: L) -> L:
        if not (isinstance(cls, type) and issubclass(cls, Loss)):
            raise UsageError(f"{name}: @register needs a subclass of prefopt.Loss, got {cls!r}")
        if "__dataclass_fields__" not in cls.__dict__ or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise UsageError(f"{name}: put @dataclass(frozen=True) below @register({name!r})")
        for wanted in (name, *aliases):
            taken = REGISTRY.get(_ALIASES.get(wanted, wanted))
            if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
                known = f"{taken.__module__}.{taken.__qualname__}"
                both = f"{known} ({_file(taken)}), and {_file(cls)} wants it too"
                raise UsageError(f"loss name {wanted!r} is taken by {both}; register it under another name")
        for needed in ("source", "needs_reference", "length_normalized"):
            if not hasattr(cls, needed):
                raise UsageError(f"{name}: the class must set {needed}")
        cls.name = name
        REGISTRY[name] = cls
        _ALIASES.update(dict.fromkeys(aliases, name))
        return cls

    return add


def _file(cls: type) -> str:
    return str(getattr(sys.modules.get(cls.__module__), "__file__", None) or cls.__module__)


def loss_names() -> list[str]:
    """Every registered name, in order of registration."""
    return list(REGISTRY)


def loss_class(name: str) -> type[Loss]:
    """The class registered under ``name``, or that an alias stands for.

    Raises:
        UsageError: If nothing is; the message suggests the nearest name.
    """
    cls = REGISTRY.get(_ALIASES.get(name, name))
    if cls is None:
        raise UsageError(f"unknown loss {name!r}{did_you_mean(name, [*loss_names(), *_ALIASES])}")
    return cls


def loss_fields(name: str) -> tuple[str, ...]:
    """The names of a loss's hyperparameters.

    Raises:
        UsageError: If there is no such loss.
    """
    return tuple(field.name for field in dataclasses.fields(loss_class(name)))


def make_loss(spec: str | Mapping[str, Any], /, **hyperparameters: Any) -> Loss:
    """Build a loss from ``"simpo"``, ``"simpo[beta=2.5]"``, ``"mix[0.8*dpo+1.0*sft]"`` or a mapping.

    The mapping is what ``Loss.spec`` gives: ``{"loss": "simpo", "beta": 2.5}``.

    Raises:
        UsageError: For an unknown name, a foreign hyperparameter, a value of the wrong type or out of range.

    Example:
        >>> import prefopt.losses
        >>> make_loss("dpo[beta=0.2]")
        DPO(beta=0.2)
        >>> make_loss("dpo", beta=0.2).spec()
        {'loss': 'dpo', 'beta': 0.2}
    """
    if isinstance(spec, str):
        name, given = parse_label(spec)
    else:
        given = dict(spec)
        name = str(given.pop("loss", ""))
    cls = loss_class(name)
    given |= hyperparameters
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key, value in given.items():
        if key not in fields:
            has = ", ".join(fields) or "none"
            raise UsageError(f"{name} has no hyperparameter {key}; it has {has}")
        given[key] = _coerce(name, key, value, fields[key].default)
    try:
        with in_this_process():
            return cls(**given)
    except ValueError as problem:
        raise UsageError(str(problem)) from None
    except BaseException as problem:
        if not is_its_own(problem) or cls.__module__.startswith("prefopt."):
            raise
        raise UsageError(f"{name} cannot be made: {type(problem).__name__}: {problem}") from None


def _coerce(name: str, key: str, value: Any, default: Any) -> Any:
    """``value`` in the type of the field's default; integers pass for floats, nothing else is converted."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(default):
        wanted = type(default).__name__
        raise UsageError(f"{name}: {key} must be a {wanted}; got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{name}: {key} must be finite; got {value}")
    return value


def load_plugin(plugin: str) -> None:
    """Load what registers losses: a Python file, or the entry point of an installed package; nothing else ever is.

    What it prints meanwhile is dropped.

    Args:
        plugin: A path that ends in ``.py``, or a name under the entry-point group ``prefopt.losses``.

    Raises:
        UsageError: If there is no such plugin, it fails, registers nothing, or takes another one's name.
    """
    losses, modules, tasks = dict(REGISTRY), set(sys.modules), set(task_names())
    plugin_files.record_imports()
    try:
        with while_loading():
            of_file = plugin.endswith(".py")
            module = run_file(Path(plugin)) if of_file else load_entry_point(plugin, ENTRY_POINT_GROUP)[0]
        plugin_files.refuse_borrowed(module, modules)
    except UsageError as problem:
        raise UsageError(f"--plugin {plugin}: {problem}") from None
    except Exception as problem:
        raise UsageError(f"--plugin {plugin}: {type(problem).__name__}: {problem}") from problem
    brought = [cls for name, cls in REGISTRY.items() if losses.get(name) is not cls or cls.__module__ == module]
    if not brought and not set(task_names()) - tasks and not any(task_class(n).__module__ == module for n in tasks):
        raise UsageError(f'--plugin {plugin}: registers no loss; put @register("name") on a subclass of Loss')
    plugin_files.brought_by(brought, module)


def load_entry_point(name: str, group: str) -> tuple[str, Any]:
    """The module of an entry point, and what it stands for.

    Raises:
        UsageError: If no installed package offers that name in the group.
    """
    known = {point.name: point for point in importlib.metadata.entry_points(group=group)}
    if name not in known:
        installed = ", ".join(sorted(known)) or "none"
        raise UsageError(
            f"neither a .py file nor the entry point of an installed package in group {group}; installed: {installed}"
        )
    return known[name].module, known[name].load()


def run_file(path: Path) -> str:
    """The name of the module that the file became, which no file elsewhere shares.

    Raises:
        UsageError: If there is no such file.
    """
    if not path.is_file():
        raise UsageError("there is no such file")
    whole = path.resolve()
    name = f"prefopt_plugin_{path.stem}_{hashlib.sha256(os.fsencode(whole)).hexdigest()[:12]}"
    loader = plugin_files.RecordingLoader(name, str(whole))
    spec = importlib.util.spec_from_file_location(name, whole, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader.exec_module(module)
    return name
