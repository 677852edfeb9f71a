"""``prefopt judge``: another judge for the samples of a finished comparison."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from prefopt.cli.console import Console
from prefopt.cli.options import AsJson, Quiet, as_text, style
from prefopt.errors import IncompleteError


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
    from prefopt.judges import Limits
    from prefopt.judges.judging import run
    from prefopt.storage import locks

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
