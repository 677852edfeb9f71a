"""``prefopt report`` and ``prefopt power``: report on a folder, or on what a comparison can detect."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from prefopt.cli.options import AsJson, Wait, as_text
from prefopt.errors import BusyError, UsageError

TRIES = 3


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="One comparison, or several for one report.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the report on several comparisons.")] = None,
    judge: Annotated[str, typer.Option(help="Whose verdicts count from now on: a judge's name, or best.")] = "",
    wait: Wait = False,
) -> Path:
    """Build a comparison's report again from its files, while it runs, too; or one on several. Needs no torch."""
    if len(folders) > 1:
        return _across(folders, out, judge)
    if out is not None:
        raise UsageError(f"--out: the report of one comparison lies in its own folder, {folders[0]}; leave it out")
    from prefopt.analysis import leading
    from prefopt.report import build
    from prefopt.storage import locks
    from prefopt.storage.results import ResultsFolder

    folder = folders[0]
    if judge:
        leading.choose(ResultsFolder(folder), None if judge == "best" else judge)
    try:
        with locks.hold(folder, wait=wait):
            page = build(folder)
    except BusyError as busy:
        print(f"{busy.args[0].partition(';')[0]}: the report shows what there is so far", file=sys.stderr)
        page = _build_beside(folder)
    print(page)
    return page


def _across(folders: list[Path], out: Path | None, judge: str) -> Path:
    """The report on several comparisons."""
    from prefopt.report import across

    if out is None:
        raise UsageError("several comparisons: give --out FOLDER for their common report")
    if judge:
        raise UsageError("--judge: is of one comparison; choose it with prefopt report FOLDER --judge NAME for each")
    page = across.build(folders, out)
    print(page)
    return page


def _build_beside(folder: Path) -> Path:
    """The report of a folder that another process writes to; what is caught half exchanged is read again."""
    from prefopt.report import build

    for _ in range(TRIES - 1):
        with suppress(UsageError):
            return build(folder, running=True)
        time.sleep(0.5)
    return build(folder, running=True)


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
