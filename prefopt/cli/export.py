"""``prefopt export``: one trained policy for use elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefopt.cli.options import Folder
from prefopt.errors import UsageError


def export(
    folder: Folder,
    variant: Annotated[str, typer.Argument(help="Such as dpo.")],
    seed: Annotated[int | None, typer.Option(min=0, help="Of the run; needed where there are several.")] = None,
    out: Annotated[Path | None, typer.Option(help="A new folder for the adapter with its card.")] = None,
    merge: Annotated[Path | None, typer.Option(help="A new folder for the whole model, the adapter added.")] = None,
) -> Path:
    """Write a trained policy into a folder: its adapter, or the model with the adapter added to its weights."""
    from prefopt.report import export as module

    target = merge or out
    if target is None or (merge is not None and out is not None):
        raise UsageError("give --out FOLDER for the adapter, or --merge FOLDER for the whole model")
    print(module.export(folder, variant, seed, target, merge=merge is not None))
    return target
