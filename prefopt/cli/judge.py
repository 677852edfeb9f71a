"""``prefopt judge``: another judge for the samples of a finished comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefopt.cli.console import Console, Style
from prefopt.cli.options import ApiKeyEnv, AsJson, BaseUrl, MaxCalls, MaxTokens, Quiet, as_lines, as_text, style
from prefopt.errors import IncompleteError, UsageError

if TYPE_CHECKING:
    from prefopt.judges.judging import Plan
    from prefopt.judges.request import JudgeRequest


OPENAI_KEY = "OPENAI_API_KEY"


def judge(
    folder: Annotated[Path | None, typer.Argument(help="Such as results/imdb; none with --check.")] = None,
    *,
    by: Annotated[str, typer.Option("--judge", help="oracle, rm:MODEL, lm:MODEL, openai:MODEL or file:PATH.")],
    pairs: Annotated[str, typer.Option(help="reference, or all.")] = "reference",
    prompts: Annotated[int | None, typer.Option(min=2, help="Judge the first prompts only, so many of them.")] = None,
    base_url: BaseUrl = "",
    api_key_env: ApiKeyEnv = None,
    max_calls: MaxCalls = None,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Requests under way at once.")] = 4,
    max_tokens: MaxTokens = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one reply.")] = 120.0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda, for local models.")] = "auto",
    questions: Annotated[
        Path | None,
        typer.Option(
            help="Write what is to be judged as JSONL, a line for each comparison with prompt, a, b and verdict, and "
            'stop. Fill in verdict: "a", "b", "tie", a number from 0 to 1 for how far a wins, or null; then judge by '
            "file:PATH."
        ),
    ] = None,
    sample: Annotated[
        int | None, typer.Option(min=1, help="Of --questions so many, drawn evenly from variants, seeds and prompts.")
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            help="Check the judge by labelled pairs instead: preference pairs, or lines with prompt, a, b and verdict."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print calls and tokens, and stop.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> dict[str, Any]:
    """Judge a comparison's samples, again or by another judge, without training anything again."""
    from prefopt.cli import outcome
    from prefopt.judges import judging
    from prefopt.judges.request import JudgeRequest, Limits
    from prefopt.runtime import interrupts
    from prefopt.storage import locks

    limits = Limits(
        max_calls=max_calls,
        concurrency=concurrency,
        max_tokens=max_tokens or Limits().max_tokens,
        read_s=timeout,
        total_s=timeout,
    )
    if (folder is None) == (check is None):
        raise UsageError("give the folder of a comparison, or --check FILE with labelled pairs, and not both")
    request = JudgeRequest(folder or Path(), by, pairs, prompts, base_url, api_key_env or OPENAI_KEY, limits, device)
    show = as_text if as_json else as_lines
    if sample is not None and questions is None:
        raise UsageError("--sample has no effect without --questions FILE")
    if check is not None:
        if questions is not None or dry_run or pairs != "reference":
            raise UsageError("--check: has no --questions, no --pairs and no --dry-run")
        return _checked(request, check, style(quiet, as_json), show)
    assert folder is not None
    if questions is not None:
        shown = {"questions": str(questions), "comparisons": judging.write_blank(request, questions, sample)}
    elif dry_run:
        shown = _plan_shown(judging.plan(request))
    else:
        with Console(style(quiet, as_json)) as console, interrupts.listen(), locks.hold(folder):
            record, page = judge_and_report(request, console)
        print(as_text({**record, **outcome.outcome(page)}) if as_json else as_lines(_record_shown(record)))
        if not (quiet or as_json):
            print(outcome.as_table(page))
        require_sound(record)
        return record
    print(show(shown))
    return shown


def judge_and_report(request: JudgeRequest, console: Console) -> tuple[dict[str, Any], Path]:
    """Judge a folder whose lock is held, and build its report again; what is known of the judge, and the page."""
    from prefopt.judges import judging
    from prefopt.report import build

    record = judging.run(request, console)
    console.stage("writing the report", 0, 1)
    return record, build(request.root)


def require_sound(record: Mapping[str, Any]) -> None:
    """Refuse to end well where a judge has problems.

    Raises:
        IncompleteError: Naming them.
    """
    if record["problems"]:
        raise IncompleteError(f"judge {record['judge']}: " + "; ".join(record["problems"]))


def _checked(request: JudgeRequest, path: Path, shown: Style, show: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    """How a judge compares with the labels of a file.

    Raises:
        IncompleteError: If it is no better than chance or than length, once that has been printed.
    """
    from prefopt.judges import agreement
    from prefopt.runtime import interrupts

    with Console(shown) as console, interrupts.listen():
        record = agreement.check(request, path, console)
    print(show(record))
    if said := agreement.problems(record):
        raise IncompleteError(f"judge {record['judge']}: " + "; ".join(said))
    return record


def _plan_shown(plan: Plan) -> dict[str, Any]:
    return {"judge": plan.judge, "comparisons": plan.comparisons, **plan.facts, "calls": plan.calls}


def _record_shown(record: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the judge, its controls in one line."""
    return {**record, "controls": _controls_shown(record["controls"])}


def _controls_shown(rows: Sequence[Mapping[str, Any]]) -> str:
    rates = {row["control"]: row["win_rate"] for row in rows}
    shown = [f"{name} {'-' if rate is None else format(100 * rate, '.0f') + ' %'}" for name, rate in rates.items()]
    return "; ".join(shown) or "not asked"
