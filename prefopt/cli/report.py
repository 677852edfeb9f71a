"""``prefopt report`` and ``prefopt power``: report on a folder, or on what a comparison can detect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prefopt.cli.options import AsJson, Folder, Wait, as_text
from prefopt.errors import UsageError


def report(folder: Folder, wait: Wait = False) -> None:
    """Build a comparison's report again from its files; needs no torch."""
    from prefopt.report import build
    from prefopt.storage import locks

    with locks.hold(folder, wait=wait):
        page = build(folder)
    print(page)


def power(
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of the comparison.")] = 5,
    prompts: Annotated[int, typer.Option(min=2, help="Evaluation prompts.")] = 256,
    source: Annotated[Path | None, typer.Option("--from", help="Measure variances in a results folder.")] = None,
    seed_sd: Annotated[float, typer.Option(min=0, help="Assumed, of win rates over seeds.")] = 0.025,
    prompt_sd: Annotated[float, typer.Option(min=0, help="Assumed, of win rates over prompts.")] = 0.15,
    cell_sd: Annotated[float, typer.Option(min=0, help="Assumed, of one judgement in all.")] = 0.5,
    tests: Annotated[int, typer.Option(min=1, help="Comparisons in the family, for Holm's correction.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Say what a comparison of that size could see, and how many seeds or prompts a difference needs."""
    from prefopt import stats
    from prefopt.analysis import power as module

    origin: module.Origin | None = None
    if source is not None:
        components, origin = module.measured(source)
    else:
        try:
            components = stats.Components.assumed(seed_sd=seed_sd, prompt_sd=prompt_sd, cell_sd=cell_sd)
        except ValueError as problem:
            raise UsageError(f"prefopt power: {problem}") from None
    answer = module.answer(components, seeds=seeds, prompts=prompts, tests=tests)
    print(as_text(answer.as_dict(origin)) if as_json else module.as_text(answer, origin))
