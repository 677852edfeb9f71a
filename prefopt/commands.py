"""Commands on what is there already: judge it, say what it could see, and test what judges it."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from prefopt.console import Console, Style
from prefopt.errors import IncompleteError, PrefoptError, UsageError

Quiet = Annotated[bool, typer.Option("--quiet", help="Show nothing but errors.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def style(quiet: bool, as_json: bool) -> Style:
    """How much a command shows on its way."""
    return "quiet" if quiet else "json" if as_json else "auto"


def as_text(value: Any) -> str:
    """``value`` as JSON for the screen."""
    return json.dumps(value, indent=1, allow_nan=False)


def judge(
    folder: Annotated[Path, typer.Argument(help="Such as results/imdb.")],
    by: Annotated[str, typer.Option("--judge", help="oracle, rm:MODEL, lm:MODEL, openai:MODEL or file:PATH.")],
    pairs: Annotated[str, typer.Option(help="reference, or all.")] = "reference",
    prompts: Annotated[int | None, typer.Option(min=2, help="Only the first so many prompts.")] = None,
    base_url: Annotated[str, typer.Option(help="Of an OpenAI-compatible server, up to and with /v1.")] = "",
    api_key_env: Annotated[str, typer.Option(help="Environment variable of its key.")] = "OPENAI_API_KEY",
    max_calls: Annotated[int | None, typer.Option(min=1, help="Requests at most, retries among them.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Requests under way at once.")] = 4,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of a reply; models that reason need thousands.")] = 512,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one reply.")] = 120.0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda, for local models.")] = "auto",
    questions: Annotated[Path | None, typer.Option(help="Write what is to be judged as JSONL, and stop.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print calls and tokens, and stop.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Judge a comparison's samples, again or by another judge, without training anything again."""
    from prefopt import locks
    from prefopt.judges import Limits
    from prefopt.judging import run

    writes = not dry_run and questions is None
    with Console(style(quiet, as_json)) as console, locks.hold(folder) if writes else nullcontext():
        found = run(
            folder,
            by,
            pairs=pairs,
            prompts=prompts,
            base_url=base_url,
            key_variable=api_key_env,
            limits=Limits(
                max_calls=max_calls, concurrency=concurrency, max_tokens=max_tokens, read_s=timeout, total_s=timeout
            ),
            device=device,
            questions_file=questions,
            dry_run=dry_run,
            progress=console,
        )
    print(as_text(found) if as_json else "\n".join(f"{key:24} {value}" for key, value in found.items()))
    if found.get("problems"):
        raise IncompleteError(f"judge {found['judge']}: " + "; ".join(found["problems"]))


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
    from prefopt import power as module
    from prefopt import stats

    if source is not None:
        components, origin = module.measured(source)
    else:
        try:
            components, origin = stats.Components.assumed(seed_sd=seed_sd, prompt_sd=prompt_sd, cell_sd=cell_sd), {}
        except ValueError as problem:
            raise UsageError(f"prefopt power: {problem}") from None
    found = {**origin, **module.answer(components, seeds=seeds, prompts=prompts, tests=tests)}
    print(as_text(found) if as_json else module.as_text(found))


def selftest(
    level: Annotated[int | None, typer.Option(min=0, max=1, help="0 statistics, 1 training; both without it.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another one gives another simulation.")] = 0,
    out: Annotated[Path | None, typer.Option(help="A results folder whose report shows it, or a JSON file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put questions with known answers to the code that makes the report."""
    from prefopt import selftest as module

    levels = (0, 1) if level is None else (level,)
    controls = module.run_levels(levels, seed=seed)
    if out is not None:
        import prefopt

        module.write(out, controls, levels=levels, seed=seed, version=prefopt.__version__)
    print(as_text([control.as_dict() for control in controls]) if as_json else module.as_text(controls))
    failed = [control.name for control in controls if not control.passed]
    if failed:
        raise PrefoptError(f"{len(failed)} of {len(controls)} controls fail: {', '.join(failed)}")
