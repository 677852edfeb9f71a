"""``prefopt config`` and ``prefopt cache``: every setting with its meaning, and what is kept between comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefopt.cli.options import AsJson, ConfigFile, Settings, as_lines, as_text
from prefopt.errors import UsageError


def config(
    path: ConfigFile = None,
    out: Annotated[Path | None, typer.Option(help="Write a TOML file to start from.")] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Print every setting with its default and its explanation, as a TOML file that can be changed and run."""
    from prefopt.config import describe
    from prefopt.config.load import load_command

    if as_json:
        print(as_text(describe.settings()))
        return
    text = describe.as_toml(load_command(path, {}, settings=settings))
    if out is None:
        print(text, end="")
        return
    if out.exists():
        raise UsageError(f"--out {out}: is there already; name another file, or remove it")
    from prefopt.storage.formats import write_text

    write_text(out, text)
    print(f"settings: {out}; run them with: prefopt compare {out}")


def cache(
    clear: Annotated[str | None, typer.Option(help="Remove this part, or all.")] = None, as_json: AsJson = False
) -> None:
    """List what is kept between comparisons (converted models, references, scores), or remove a part of it."""
    from prefopt.storage import cache as module

    freed = module.clear(clear) if clear is not None else None
    parts = {name: f"{size / 1e6:.1f} MB" for name, size in module.sizes().items()}
    shown = {"cache": str(module.cache_dir()), **parts}
    if freed is not None:
        shown["removed"] = f"{freed / 1e6:.1f} MB"
    print(as_text(shown) if as_json else as_lines(shown))
