"""``prefopt pairs``: preference pairs from a task with a gold reward, as JSONL."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefopt.cli.console import Console
from prefopt.cli.options import ConfigFile, Device, LabelNoise, Model, Quiet, Settings, style
from prefopt.errors import UsageError


def pairs(
    config: ConfigFile = None,
    out: Annotated[Path, typer.Option(help="JSONL file to write.")] = Path("pairs.jsonl"),
    model: Model = None,
    device: Device = None,
    label_noise: LabelNoise = None,
    settings: Settings = None,
    heldout: Annotated[bool, typer.Option("--heldout", help="Write the held-out pairs instead.")] = False,
    quiet: Quiet = False,
) -> Path:
    """Make preference pairs from a task with a gold reward, and write them as JSONL."""
    from prefopt.config.load import load_command

    overrides = {"model.name": model, "device": device, "pairs.label_noise": label_noise}
    wanted = load_command(config, overrides, settings=settings)
    from prefopt.data import write_jsonl
    from prefopt.prepare.materials import prepare
    from prefopt.prepare.onpolicy import as_rows
    from prefopt.runtime.device import pick_device

    if wanted.task.name == "data":
        raise UsageError("prefopt pairs needs a task with a gold reward, such as imdb")
    with Console(style(quiet, False)) as console:
        materials = prepare(wanted, pick_device(wanted.device), console)
        labelled = (materials.heldout if heldout else materials.train).pairs
        write_jsonl(out, as_rows(materials.model.base, labelled))
        console.say(f"{len(labelled)} pairs: {out}")
    return out
