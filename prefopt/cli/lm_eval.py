"""``prefopt lm-eval``: benchmarks of abilities before and after training, by the Language Model Evaluation Harness."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from prefopt.cli.console import Console
from prefopt.cli.options import AsJson, Folder, Quiet, as_text, style


def lm_eval(
    folder: Folder,
    tasks: Annotated[str, typer.Option(help="Such as hellaswag,arc_easy; the harness's own names.")],
    variants: Annotated[str | None, typer.Option(help="Such as dpo,ipo; all that finished without it.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0-2; the first one without it.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples of each task at most.")] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(min=0, help="Examples in the prompt; the task's own default.")
    ] = None,
    batch_size: Annotated[str, typer.Option(help="A number, or auto.")] = "1",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Run benchmarks over the model before training and over trained policies; add their table to the folder."""
    from prefopt.config.load import parse_seeds
    from prefopt.contract.labels import split_labels
    from prefopt.report import abilities
    from prefopt.runtime import interrupts
    from prefopt.storage import locks

    request = abilities.Request(
        tasks=tuple(task.strip() for task in tasks.split(",") if task.strip()),
        variants=None if variants is None else tuple(split_labels(variants)),
        seeds=None if seeds is None else tuple(parse_seeds(seeds)),
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=batch_size,
        device=device,
    )
    with Console(style(quiet, as_json)) as console, interrupts.listen(), locks.hold(folder):
        results = abilities.measure(folder, request, console)
    print(as_text(results) if as_json else abilities.as_table(results))
    return results
