"""``prefopt compare``: reads the settings, runs the comparison, writes its report and states the outcome."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefopt.cli.console import Console, Style
from prefopt.cli.judge import OPENAI_KEY, judge_and_report, require_sound
from prefopt.cli.options import (
    ApiKeyEnv,
    AsJson,
    BaseUrl,
    ConfigFile,
    Device,
    LabelNoise,
    MaxCalls,
    MaxTokens,
    Model,
    Plugins,
    Quiet,
    Settings,
    Wait,
    as_lines,
    as_text,
    style,
)
from prefopt.cli.words import command_line
from prefopt.errors import IncompleteError, UsageError
from prefopt.storage.schema import REFERENCE

TRIALS = 8  # of each loss, where prefopt tune is not told
AS_SET = -1  # as many as the file sets, or TRIALS

if TYPE_CHECKING:
    from prefopt.config.schema import Config
    from prefopt.judges.request import JudgeRequest, Limits
    from prefopt.storage.records import RunRecord
    from prefopt.storage.results import ResultsFolder


def compare(
    config: ConfigFile = None,
    losses: Annotated[str | None, typer.Option(help="Such as dpo,simpo[beta=2.5], or all.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0-2 or 0,3.")] = None,
    model: Model = None,
    chat_template: Annotated[str | None, typer.Option(help="A file with the chat template to use.")] = None,
    adapter: Annotated[str | None, typer.Option(help="A folder with a LoRA adapter to start from.")] = None,
    data: Annotated[str | None, typer.Option(help="Your pairs: a file, or org/name[@revision][:split].")] = None,
    prompts: Annotated[str | None, typer.Option(help="Your prompts, to be answered and labelled by --reward.")] = None,
    reward: Annotated[str | None, typer.Option(help="imdb, rm:MODEL, bt:FOLDER or file.py:function.")] = None,
    label_reward: Annotated[str | None, typer.Option(help="Labels the pairs in its place, in the same forms.")] = None,
    eval_prompts: Annotated[str | None, typer.Option(help="Prompts to sample on, instead of held-out ones.")] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", help="Judge the samples by rm:MODEL, lm:MODEL, openai:MODEL or file:PATH.")
    ] = None,
    base_url: BaseUrl = "",
    api_key_env: ApiKeyEnv = None,
    max_calls: MaxCalls = None,
    max_tokens: MaxTokens = None,
    name: Annotated[str | None, typer.Option(help="Folder of the results.")] = None,
    device: Device = None,
    quantization: Annotated[str | None, typer.Option(help="none, nf4 or int8.")] = None,
    label_noise: LabelNoise = None,
    on_bad_rows: Annotated[str | None, typer.Option(help="refuse or drop.")] = None,
    column_map: Annotated[str | None, typer.Option(help="Such as prompt=question,chosen=best.")] = None,
    dedup: Annotated[bool, typer.Option("--dedup", help="Leave out rows that repeat an earlier one.")] = False,
    track: Annotated[str | None, typer.Option(help="tensorboard, wandb, mlflow, trackio, with commas.")] = None,
    settings: Settings = None,
    plugin: Plugins = None,
    results: Annotated[Path, typer.Option(help="The folder of all comparisons.")] = Path("results"),
    claims: Annotated[list[str] | None, typer.Option("--assert", help='Such as "ipo >= dpo - 0.02".')] = None,
    tune: Annotated[int | None, typer.Option(min=0, help="Trials of each loss before; 0 for none.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    wait: Wait = False,
    hang_after: Annotated[
        float | None, typer.Option(min=0, help="Seconds without progress, 1800; 0 for never.")
    ] = None,
    isolate: Annotated[
        bool, typer.Option("--isolate", help="Train losses of plugins in a group of their own.")
    ] = False,
    in_process: Annotated[bool, typer.Option("--in-process", help="Without a process to train in, to debug.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> Path | dict[str, Any]:
    """Train variants x seeds under identical conditions, evaluate and judge them, and write a report."""
    from prefopt.analysis.claims import parse
    from prefopt.config.load import load_command
    from prefopt.judges.request import Limits
    from prefopt.launch import trackers
    from prefopt.launch.supervisor import HANG_AFTER_S

    overrides = {
        "model.name": model,
        "model.chat_template": chat_template,
        "model.adapter": adapter,
        "data.source": data,
        "task.prompts": prompts,
        "task.reward": reward,
        "pairs.reward": label_reward,
        "data.eval_prompts": eval_prompts,
        "name": name,
        "device": device,
        "model.quantization": quantization,
        "pairs.label_noise": label_noise,
        "data.on_bad_rows": on_bad_rows,
        "data.dedup": dedup or None,
        "tune.trials": None if tune == AS_SET else tune,
        "track": track if track is None else [tracker.strip() for tracker in track.split(",")],
    }
    wanted = load_command(
        config,
        overrides,
        losses=losses,
        seeds=seeds,
        settings=settings,
        plugins=plugin,
        column_map=column_map,
        defaults={"tune.trials": TRIALS} if tune == AS_SET else {},
    )
    trackers.require(wanted.track)
    asserted = [parse(text, [variant.name for variant in wanted.variants]) for text in claims or []]
    if in_process:
        _refuse_given({"--hang-after": hang_after}, without="a process to watch, which --in-process leaves out")
    of_judge = {"--base-url": base_url, "--api-key-env": api_key_env, "--max-calls": max_calls}
    if judge is None:
        _refuse_given({**of_judge, "--max-tokens": max_tokens}, without="--judge")
    limits = Limits(max_calls=max_calls, max_tokens=max_tokens or Limits().max_tokens)
    key = api_key_env or OPENAI_KEY
    request = _judge_request(results / wanted.name, judge, base_url, key, limits, wanted.device)
    if dry_run:
        return _show_plan(wanted, style(quiet, as_json), as_json, request)
    record = None
    with Console(style(quiet, as_json)) as console:
        hang_after_s = None if in_process else HANG_AFTER_S if hang_after is None else hang_after
        folder, unfinished, page = _run(
            wanted, results, plugin or [], console, wait=wait, hang_after_s=hang_after_s, isolate=isolate
        )
        if request is not None and page is not None:
            record, page = _judge(request, wanted.track, console)
    _conclude(folder, unfinished, asserted, page, quiet=quiet, as_json=as_json)
    if record is not None:
        require_sound(record)
    return folder.root


def _refuse_given(options: Mapping[str, Any], *, without: str) -> None:
    """Refuse options that were given and that nothing would read.

    Raises:
        UsageError: Naming them.
    """
    given = [name for name, value in options.items() if value not in (None, "")]
    if given:
        raise UsageError(f"{', '.join(given)} has no effect without {without}")


def _judge_request(
    root: Path, judge: str | None, base_url: str, key_variable: str, limits: Limits, device: str
) -> JudgeRequest | None:
    """What the comparison is to be judged by; checked now, so that nothing is trained for a judge that cannot be had.

    Raises:
        PrefoptError: If it cannot be had.
    """
    from prefopt.judges import check_judge
    from prefopt.judges.request import JudgeRequest

    if judge is None:
        return None
    request = JudgeRequest(root, judge, base_url=base_url, key_variable=key_variable, limits=limits, device=device)
    check_judge(request)
    return request


def _judge(request: JudgeRequest, trackers: Sequence[str], console: Console) -> tuple[dict[str, Any], Path]:
    """Judge what is complete, and build the report again; what is known of the judge, and the page."""
    from prefopt.launch.tracking import track
    from prefopt.runtime import interrupts
    from prefopt.storage import locks
    from prefopt.storage.results import ResultsFolder

    with (
        interrupts.listen(),
        locks.hold(request.root, wait=True, say=console.say),
        track(trackers, ResultsFolder(request.root), console) as tracking,
    ):
        judged = judge_and_report(request, console)
        tracking.finish()
        return judged


def _show_plan(config: Config, shown: Style, as_json: bool, request: JudgeRequest | None) -> dict[str, Any]:
    from prefopt.comparison.dry_run import plan

    with Console(shown) as console:
        lines = plan(config, progress=console)
    if request is not None:
        compared = lines["evaluation prompts"] * config.evaluation.samples * lines["runs"]
        lines["judgements"] = f"{compared:,} by {request.spec}, each in two orders where it compares"
    if config.tune.trials:
        from prefopt.tuning.protocol import with_trials

        lines = with_trials(config, lines)
    print(as_text(lines) if as_json else as_lines(lines, width=28))
    return lines


def _run(
    config: Config,
    results: Path,
    plugins: Sequence[str],
    console: Console,
    *,
    wait: bool,
    hang_after_s: float | None,
    isolate: bool,
) -> tuple[ResultsFolder, dict[tuple[str, int], RunRecord], Path | None]:
    """Run the comparison, in a process of its own unless ``hang_after_s`` is None.

    Returns:
        Its folder, what is missing, and its report, None where no run has finished.
    """
    from prefopt.launch.launcher import InProcess, Job, Launcher, Supervised
    from prefopt.launch.tracking import track
    from prefopt.runtime import interrupts
    from prefopt.runtime.progress import Several
    from prefopt.storage import locks
    from prefopt.storage.results import ResultsFolder

    words, root = command_line(), results / config.name
    with (
        interrupts.listen(),
        locks.hold(root, wait=wait, say=console.say) as lock,
        track(config.track, ResultsFolder(root), console) as tracking,
    ):
        launcher: Launcher = InProcess() if hang_after_s is None else Supervised(plugins, hang_after_s)

        def run_trials(trials: Config, below: Path) -> ResultsFolder:
            with locks.hold(below / trials.name, wait=wait, say=console.say) as inner:
                job = Job(config=trials, results=below, command=words, lock=inner, isolate=isolate)
                return launcher.run(job, console)

        if config.tune.trials:
            from prefopt.tuning.protocol import tune

            config = tune(config, results, run_trials, console)
        job = Job(config=config, results=results, command=words, lock=lock, isolate=isolate)
        folder = launcher.run(job, Several(console, tracking) if config.track else console)
        runs = folder.runs()
        unfinished = {key: run for key, run in runs.items() if not run.is_complete}
        page = None
        if any(variant != REFERENCE for variant, _ in runs.keys() - unfinished.keys()):
            from prefopt.report import build

            console.stage("writing the report", 0, 1)
            page = build(folder.root)
        tracking.finish()
    return folder, unfinished, page


def _conclude(
    folder: ResultsFolder,
    unfinished: Mapping[tuple[str, int], RunRecord],
    asserted: Sequence[Any],
    page: Path | None,
    *,
    quiet: bool,
    as_json: bool,
) -> None:
    """Show what came out and which claims hold, and raise for one that does not or for a run without a result."""
    from prefopt.analysis import claims
    from prefopt.cli import outcome

    if page is not None and not (quiet or as_json):
        print(outcome.as_table(page))
    checked = claims.check(folder, asserted) if asserted else []
    if as_json:
        said = [{"claim": one.claim.text, "holds": one.holds, "sentence": one.sentence} for one in checked]
        print(as_text({**(outcome.outcome(page) if page is not None else {}), "claims": said}))
    for one in checked:
        if one.holds and not (quiet or as_json):
            print(one.sentence)
    claims.require(checked)
    if unfinished:
        raise IncompleteError(_unfinished(unfinished))


def _unfinished(runs: Mapping[tuple[str, int], RunRecord]) -> str:
    """Every run without a result, with what became of it."""
    shown = []
    for (variant, seed), run in sorted(runs.items()):
        diverged = run.diverged_at is not None
        became = f"diverged at step {run.diverged_at}" if diverged else f"failed: {run.reason}"
        shown.append(f"{variant} seed {seed} {became}")
    again = "; the same command tries failed runs again" if any(r.diverged_at is None for r in runs.values()) else ""
    return f"{', '.join(shown)}; the report marks them, and the others are not affected{again}"
