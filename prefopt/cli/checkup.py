"""``prefopt selftest`` and ``prefopt info``: whether the measurements are right, and what this machine has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from prefopt.cli.options import AsJson, as_lines, as_text
from prefopt.errors import PrefoptError


def selftest(
    level: Annotated[int | None, typer.Option(min=0, max=1, help="0 statistics, 1 training; both without it.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another one gives another simulation.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A results folder whose report shows it, or a JSON file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put questions with known answers to the code that makes the report."""
    from prefopt import selftest as module

    levels = (0, 1) if level is None else (level,)
    controls = module.written(out, levels=levels, seed=seed) if out is not None else None
    if controls is None:
        controls = module.run_levels(levels, seed=seed)
        if out is not None:
            module.write(out, controls, levels=levels, seed=seed)
    print(as_text([control.as_dict() for control in controls]) if as_json else module.as_text(controls))
    failed = [control.name for control in controls if not control.passed]
    if failed:
        raise PrefoptError(f"{len(failed)} of {len(controls)} controls fail: {', '.join(failed)}")


def info(as_json: AsJson = False) -> None:
    """Versions, device, and what is cached where."""
    import prefopt
    from prefopt.comparison.provenance import packages
    from prefopt.runtime.device import device_facts, pick_device, pick_dtype
    from prefopt.runtime.memory import total_gib
    from prefopt.storage.cache import cache_dir

    device = pick_device("auto")
    cache = cache_dir()
    facts: dict[str, Any] = {
        "prefopt": prefopt.__version__,
        **packages(),
        **{f"device {key}": value for key, value in device_facts(device).items()},
        "weights' type": str(pick_dtype("auto", device)).removeprefix("torch."),
        "memory, GiB": round(total_gib(device), 1),
        "cache": str(cache),
    }
    for folder in sorted(path for path in cache.glob("*") if path.is_dir()):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        facts[f"cache {folder.name}, MB"] = round(size / 1e6, 1)
    print(as_text(facts) if as_json else as_lines(facts))
