"""Options that several commands share, and how a command shows its result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from prefopt.cli.console import Style, visible

ConfigFile = Annotated[Path | None, typer.Argument(help="A TOML file; the embedded default without one.")]
Model = Annotated[str | None, typer.Option(help="A folder, a .gguf file or a hub id.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda.")]
LabelNoise = Annotated[float | None, typer.Option(help="Share of training labels to flip.")]
Plugins = Annotated[list[str] | None, typer.Option("--plugin", help="A .py file or package that registers losses.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Such as train.learning_rate=1e-5.")]
Folder = Annotated[Path, typer.Argument(help="Such as results/imdb.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for another process that uses the folder.")]
BaseUrl = Annotated[
    str, typer.Option(help="Address of an OpenAI-compatible server, up to and with /v1; else $OPENAI_BASE_URL.")
]
ApiKeyEnv = Annotated[str | None, typer.Option(help="Environment variable of its key; else OPENAI_API_KEY.")]
MaxCalls = Annotated[int | None, typer.Option(min=1, help="Requests at most, retries among them.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Longest reply, 512; models that reason need thousands.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show nothing but errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def style(quiet: bool, as_json: bool) -> Style:
    """How much a command shows on its way."""
    return "quiet" if quiet else "json" if as_json else "auto"


def as_text(value: Any) -> str:
    """``value`` as JSON for the screen."""
    return json.dumps(value, indent=1, allow_nan=False)


def as_lines(values: dict[str, Any], *, width: int = 24) -> str:
    """A line for each value, behind its name; control characters are shown as escapes."""
    return "\n".join(f"{key:{width}} {visible(str(value))}" for key, value in values.items())
