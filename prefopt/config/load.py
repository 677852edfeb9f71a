"""Settings as they are typed: a TOML file, options and ``--set``, laid over each other and validated."""

from __future__ import annotations

import math
import re
import tomllib
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from prefopt.config.schema import Config
from prefopt.config.unused import refuse_unused
from prefopt.contract.labels import split_labels
from prefopt.data.sources import SUFFIXES
from prefopt.errors import UsageError, did_you_mean
from prefopt.storage.results import MAX_NAME, is_name

_MAX_FILE_BYTES = 1_000_000
_MAX_DEPTH = 20
_MAX_VALUE_CHARS = 10_000
_MAX_SEEDS = 10_000
_SEEDS = re.compile(r"\s*(\d{1,10})(?:-(\d{1,10}))?\s*", re.ASCII)


def load_command(
    path: Path | None,
    overrides: Mapping[str, Any],
    *,
    losses: str | None = None,
    seeds: str | None = None,
    settings: list[str] | None = None,
    plugins: list[str] | None = None,
    column_map: str | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Config:
    """The configuration of a command: file, then options, then ``--set``; ``defaults`` where none of them says.

    Raises:
        UsageError: For anything that cannot be carried out.
    """
    from prefopt.losses import loss_names  # with torch, and so only when a command needs them

    load_plugins(plugins or [])
    values = {key: value for key, value in overrides.items() if value is not None}
    if losses is not None:
        labels = loss_names() if losses.strip() == "all" else split_labels(losses)
        if not labels:
            raise UsageError("--losses is empty; write names such as dpo,simpo, or all")
        values["variants"] = [{"loss": label} for label in labels]
    if column_map is not None:
        values["data.column_map"] = _pairs_of("--column-map", column_map)
    if seeds is not None:
        values["seeds"] = parse_seeds(seeds)
    for setting in settings or []:
        key, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: write section.key=value")
        values[key.strip()] = parse_value(value.strip())
    return load(path, values, defaults or {})


def load_plugins(plugins: Sequence[str]) -> None:
    """Load what registers losses; what loading it changes of the state of torch and others is put back.

    Args:
        plugins: Python files, or entry points of installed packages.

    Raises:
        UsageError: As ``load_plugin``.
    """
    from prefopt.losses import load_plugin
    from prefopt.runtime.kept_state import kept_state

    for plugin in plugins:
        with kept_state(importing=True):
            load_plugin(plugin)


def name_of(source: str) -> str:
    """A folder's name for the results of a source: its own, without the kinds of files and what no folder can have.

    Example:
        >>> name_of("data/my pairs (1).jsonl.gz"), name_of("org/set@main:test")
        ('my-pairs-1', 'set-main-test')
    """
    name = Path(source.rstrip("/")).name
    while Path(name).suffix.lower() in (*SUFFIXES, ".gz"):
        name = Path(name).stem
    words = re.sub(r"[^A-Za-z0-9._=+]+", "-", unicodedata.normalize("NFKD", name)).strip("-._=+")
    return words[:MAX_NAME] if is_name(words[:MAX_NAME]) else "pairs"


def load(path: Path | None, overrides: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})) -> Config:
    """Read a TOML file, lay ``overrides`` (dotted keys) over it and ``defaults`` under it, and validate.

    Raises:
        UsageError: With one line for each problem: where, what was wanted, what was given.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values = _read_toml(path)
    for dotted, value in overrides.items():
        _lay(values, dotted, value)
    for dotted, value in defaults.items():
        section, _, key = dotted.rpartition(".")
        given = values.get(section, {})
        if not (isinstance(given, dict) and key in given):
            _lay(values, dotted, value)
    _name_own_pairs(values)
    where = str(path) if path else "command line"
    if _depth(values) > _MAX_DEPTH:
        raise UsageError(f"{where}: values are nested more than {_MAX_DEPTH} deep; a setting is a value or a list")
    try:
        config = Config.model_validate(values)
    except ValidationError as problem:
        raise UsageError("\n".join(_explain(where, error) for error in problem.errors())) from None
    refuse_unused(config, where)
    return config


def _name_own_pairs(values: dict[str, Any]) -> None:
    """Where pairs of the user's own are given, the task is theirs and the results have their name, unless told else."""
    data, task = values.get("data"), values.get("task", {})
    source = data.get("source") if isinstance(data, dict) else None
    prompts = task.get("prompts") if isinstance(task, dict) else None
    for given, kind in ((source, "data"), (prompts, "prompts")):
        if isinstance(given, str) and given and isinstance(task, dict):
            values.setdefault("name", name_of(given))
            values["task"] = {"name": kind, **values.get("task", {})}


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise UsageError(f"{path} is over 1 MB; a configuration is a page of TOML")
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; give a TOML file such as benchmarks/imdb.toml") from None
    except RecursionError:
        raise UsageError(f"{path} cannot be read as TOML: it is nested too deeply") from None
    except OSError as problem:
        raise UsageError(f"{path} cannot be read: {problem.strerror}; check its path and rights") from None
    except ValueError as problem:  # TOMLDecodeError, UnicodeDecodeError, an integer of too many digits
        raise UsageError(f"{path} cannot be read as TOML: {problem}") from None


def _depth(value: Any) -> int:
    """How many tables and lists lie inside each other, counted up to just above the limit."""
    depth, level = 0, [value]
    while level and depth <= _MAX_DEPTH:
        insides = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        depth, level = depth + bool(insides), [one for inside in insides for one in inside]
    return depth


def _lay(values: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    if not all((*sections, key)):
        raise UsageError(f"--set {dotted}: write section.key=value")
    top = Config.model_fields.get(sections[0]) if sections else None
    if top is not None and not _is_section(top.annotation):
        raise UsageError(f"--set {dotted}: {sections[0]} is not a section")
    at = values
    for section in sections:
        at = at.setdefault(section, {})
        if not isinstance(at, dict):
            raise UsageError(f"--set {dotted}: {section} is not a section")
    at[key] = value


def parse_value(text: str) -> Any:
    """A value of ``--set``: TOML where it is valid (``1e-5``, ``true``, ``["a"]``), else the text itself.

    Raises:
        UsageError: If it is longer than any setting.
    """
    if len(text) > _MAX_VALUE_CHARS:
        raise UsageError(f"--set: a value of {len(text)} characters; the limit is {_MAX_VALUE_CHARS}")
    try:
        parsed = tomllib.loads(f"value = {text}")
    except RecursionError:
        raise UsageError("--set: the value is nested too deeply") from None
    except ValueError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def _pairs_of(option: str, text: str) -> dict[str, str]:
    """``ours=theirs,...`` as a dictionary."""
    names = dict(part.partition("=")[::2] for part in text.split(","))
    if not all(key.strip() and value.strip() for key, value in names.items()):
        raise UsageError(f"{option} {text}: write ours=theirs,ours=theirs, such as prompt=question,chosen=best")
    return {key.strip(): value.strip() for key, value in names.items()}


def parse_seeds(text: str) -> list[int]:
    """``0-2`` or ``0,3,7-9`` as a list.

    Raises:
        UsageError: If it is neither, or more than 10,000 seeds.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = _SEEDS.fullmatch(part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise UsageError(f"--seeds {text[:100]}: write 0-2 or 0,1,5")
        first, last = int(match[1]), int(match[2] or match[1])
        if len(seeds) + last - first >= _MAX_SEEDS:
            raise UsageError(f"--seeds {text[:100]}: more than {_MAX_SEEDS:,} seeds")
        seeds.extend(range(first, last + 1))
    return seeds


def _explain(where: str, error: Any) -> str:
    """One line for one of pydantic's problems."""
    parts = [str(part) for part in error["loc"] if not str(part).startswith(("literal", "constrained-", "function-"))]
    dotted = ".".join(parts) or "configuration"
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown key {dotted}{did_you_mean(parts[-1], _keys(parts[:-1]))}"
    given = error.get("input")
    shown = f"; got {repr(given)[:200]}" if isinstance(given, str | int | float | bool) and not _is_nan(given) else ""
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return f"{where}: {message}" if error["type"] == "value_error" else f"{where}: {dotted}: {message}{shown}"


def _keys(path: list[str]) -> list[str]:
    """Known keys of the section at ``path``; items of a list are of the type that the list holds."""
    section: Any = Config
    for part in path:
        if part.isdecimal():
            continue
        annotation = section.model_fields[part].annotation
        section = next((one for one in (annotation, *get_args(annotation)) if _is_section(one)), section)
    return list(section.model_fields)


def _is_section(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)
