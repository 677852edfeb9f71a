"""What was typed, also where nobody typed it: the words of a command, and keyword arguments turned into them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from prefopt.errors import UsageError, did_you_mean

_WORDS: ContextVar[tuple[str, ...] | None] = ContextVar("words", default=None)
# What a list becomes, by the option's name; anything else may be given more than once, or is refused.
_COMMA = ("losses", "seeds", "tasks", "track", "variants")


def command_line() -> list[str]:
    """The command under way as it can be typed in a shell, whether it was typed or called from Python."""
    words = _WORDS.get()
    return ["prefopt", *(sys.argv[1:] if words is None else words)]


@contextmanager
def called_with(words: Sequence[str]) -> Iterator[None]:
    """Inside, ``command_line`` gives these words."""
    token = _WORDS.set(tuple(words))
    try:
        yield
    finally:
        _WORDS.reset(token)


def to_words(name: str, command: Any, sections: Iterable[str], options: Mapping[str, Any]) -> list[str]:
    """The words that give a command these options.

    Args:
        name: The command.
        command: It, as click knows it; its parameters say which options there are.
        sections: Sections of a comparison's settings, which ``--set`` changes; a mapping of that name is one.
        options: By the option's name with underscores (``dry_run``), a section's (``train={"steps": 10}``), or a
            setting's with a dot (``**{"train.steps": 10}``). None stands for what is not given.

    Raises:
        UsageError: For a name that the command does not have, or a value that cannot be typed.
    """
    known = {alias: parameter for parameter in command.params for alias in _names_of(parameter)}
    takes_settings = "set" in known
    words, places = [name], []
    for key, value in _flat(options, set(sections) if takes_settings else set(), known):
        if value is None:
            continue
        parameter = known.get(key)
        if parameter is None and takes_settings and "." in key:
            words += ["--set", f"{key}={as_toml(key, value)}"]
        elif parameter is None:
            names = [*known, *(sections if takes_settings else ())]
            raise UsageError(f"prefopt.{name}: has no option {key}{did_you_mean(key, sorted(set(names)))}")
        elif parameter.param_type_name == "argument":
            places += [typed(key, one) for one in (value if parameter.nargs == -1 else [value])]
        else:
            words += _option(key, parameter, value)
    return [*words, *(["--"] if any(place.startswith("-") for place in places) else []), *places]


def _names_of(parameter: Any) -> list[str]:
    """What an option may be called: as it is typed, and as the command's own code calls it."""
    typed_names = [word.lstrip("-").replace("-", "_") for word in parameter.opts]
    return [parameter.name, *typed_names]


def _flat(options: Mapping[str, Any], sections: set[str], known: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Options as they are, and each setting of a section with its dotted name."""
    for key, value in options.items():
        if key in sections and isinstance(value, Mapping):
            # The pairs' own option also says that the task is the user's pairs.
            yield from (
                ("data" if (key, name) == ("data", "source") else f"{key}.{name}", one) for name, one in value.items()
            )
        elif key in sections and key not in known:
            yield from [("set", [f"{key}={as_toml(key, value)}"])] if value is not None else []
        else:
            yield key, value


def _option(key: str, parameter: Any, value: Any) -> list[str]:
    word = parameter.opts[0]
    if parameter.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{key}: write True or False; got {value!r}")
        return [word] if value else []
    if isinstance(value, Mapping):
        return [word, ",".join(f"{typed(key, name)}={typed(key, one)}" for name, one in value.items())]
    if isinstance(value, list | tuple | range | set):
        each = [typed(key, one) for one in value]
        if not each:
            return []
        if key not in _COMMA and not parameter.multiple:
            raise UsageError(f"{key}: takes one value; got {len(each)}")
        return [word, ",".join(each)] if key in _COMMA else [part for one in each for part in (word, one)]
    return [word, typed(key, value)]


def typed(key: str, value: Any) -> str:
    """A value as a word.

    Raises:
        UsageError: If it cannot be one, such as rows that are not in a file.
    """
    label = getattr(value, "label", None)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float | Path):
        return str(value)
    if isinstance(label, str) and hasattr(value, "spec"):  # a loss: its label rebuilds it
        return label
    if isinstance(getattr(value, "root", None), Path):  # the results of a comparison
        return str(value.root)
    if hasattr(value, "to_json") or isinstance(value, list | dict):
        raise UsageError(
            f"{key}: rows must lie in a file, so that their hash is kept with the results; write them first, such as "
            f'frame.to_json("pairs.jsonl", orient="records", lines=True), and give {key}="pairs.jsonl"'
        )
    raise UsageError(f"{key}: a value of type {type(value).__name__} cannot be given; write text, a number or a path")


def as_toml(key: str, value: Any) -> str:
    """A setting's value as ``--set`` reads it.

    Raises:
        UsageError: If TOML has none such.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(k))} = {as_toml(key, one)}" for k, one in value.items()) + "}"
    if isinstance(value, list | tuple | range):
        return "[" + ", ".join(as_toml(key, one) for one in value) + "]"
    raise UsageError(f"{key}: a value of type {type(value).__name__} is no setting; write text, a number or a list")
