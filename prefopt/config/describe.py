"""Every setting with its default and its explanation, as a TOML file to start from."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from typing import Any

from pydantic import BaseModel

from prefopt.config.open_settings import SITUATIONAL
from prefopt.config.schema import Config

_WIDTH = 110


def settings() -> list[dict[str, Any]]:
    """For each setting its dotted name, its default, its type and what it means."""
    rows: list[dict[str, Any]] = []
    for name, field in Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            rows += _of_section(name, section)
        elif name != "variants":
            rows.append({"setting": name, "default": field.get_default(), "meaning": _TOP[name]})
    return rows


_TOP = {
    "name": "Folder of the results; with pairs of your own their file's name.",
    "seeds": "Seeds of the runs: each decides the order of pairs, the first adapter and the noise of sampling.",
    "device": "auto, cpu or cuda.",
    "track": "Experiment trackers that finished runs are sent to: tensorboard, wandb, mlflow, trackio.",
}


def _of_section(name: str, section: type[BaseModel]) -> list[dict[str, Any]]:
    meanings = meanings_of(section)
    return [
        {
            "setting": f"{name}.{key}",
            "default": field.get_default(call_default_factory=True),
            "by_situation": f"{name}.{key}" in SITUATIONAL,
            "meaning": meanings.get(key, ""),
        }
        for key, field in section.model_fields.items()
    ]


def meanings_of(section: type[BaseModel]) -> dict[str, str]:
    """What a section's docstring says of each setting, under Attributes."""
    text = inspect.cleandoc(section.__doc__ or "")
    _, _, attributes = text.partition("Attributes:\n")
    if not attributes:  # a section of one setting says all in its first line
        return dict.fromkeys(section.model_fields, " ".join(text.split()))
    meanings: dict[str, str] = {}
    key = ""
    for line in textwrap.dedent(attributes).splitlines():
        match = re.match(r"(\w+): (.*)", line)
        if match:
            key = match[1]
            meanings[key] = match[2]
        elif key:
            meanings[key] += f" {line.strip()}"
    return meanings


def as_toml(config: Config) -> str:
    """All settings as TOML, each under its explanation and commented out where it is the default.

    Args:
        config: What was given in it is written instead of the defaults.
    """
    lines = ["# A comparison: prefopt compare THIS_FILE. Lines that begin with # are the defaults.", ""]
    section = ""
    for row in settings():
        head, _, key = row["setting"].rpartition(".")
        if head != section:
            lines += ["", f"[{head}]"]
            section = head
        lines += textwrap.wrap(row["meaning"].replace("``", ""), _WIDTH, initial_indent="# ", subsequent_indent="# ")
        given = config.is_given(row["setting"])
        value = _value_of(config, row["setting"]) if given else row["default"]
        if row.get("by_situation") and not given:
            embedded = "" if row["default"] is None else f"; {_toml(row['default'])} for the embedded task"
            lines.append(f"# {key} =  # by situation with your own pairs{embedded}")
        else:
            lines.append(f"{'' if given else '# '}{key} = {_toml(value)}" if value is not None else f"# {key} =")
    return "\n".join([*lines, "", *_variants(config)]) + "\n"


def _variants(config: Config) -> list[str]:
    """The variants, one table each."""
    lines = [
        "# One table for each variant: its loss with hyperparameters and, if wanted, a label and a rate of its own."
    ]
    for variant in config.variants:
        lines += ["", "[[variants]]"]
        lines += [f"{key} = {_toml(value)}" for key, value in variant.model_dump(exclude_unset=True).items()]
    return lines


def _value_of(config: Config, dotted: str) -> Any:
    section, _, key = dotted.rpartition(".")
    return getattr(getattr(config, section) if section else config, key)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)  # text, numbers and truth are written as JSON writes them
