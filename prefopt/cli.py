"""The command line: reads what was typed, calls what does it, and turns errors into one line and an exit status.

Exit status: 0 complete, 2 usage, 3 data, 4 incomplete, 5 busy, 6 environment, 7 a claim fails,
130 or 143 stopped by SIGINT or SIGTERM, 1 a defect of prefopt.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from prefopt.console import Console, Style, visible
from prefopt.errors import IncompleteError, PrefoptError, UsageError
from prefopt.redact import without_secrets
from prefopt.results import REFERENCE
from prefopt.stopping import Stopped
from prefopt.worker import silence_third_parties

app = typer.Typer(
    name="prefopt",
    help="Compare preference-optimisation losses under identical conditions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigFile = Annotated[Path | None, typer.Argument(help="A TOML file; the embedded default without one.")]
Losses = Annotated[str | None, typer.Option(help="Such as dpo,simpo[beta=2.5], or all.")]
Plugins = Annotated[list[str] | None, typer.Option("--plugin", help="A .py file or package that registers losses.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="Such as train.learning_rate=1e-5.")]
Results = Annotated[Path, typer.Option(help="The folder of all comparisons.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show nothing but errors.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for another process that uses the folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


@app.command()
def compare(
    config: ConfigFile = None,
    losses: Losses = None,
    seeds: Annotated[str | None, typer.Option(help="Such as 0-2 or 0,3.")] = None,
    model: Annotated[str | None, typer.Option(help="A folder, a .gguf file or a hub id.")] = None,
    data: Annotated[str | None, typer.Option(help="Your pairs: a file, or org/name[@revision][:split].")] = None,
    name: Annotated[str | None, typer.Option(help="Folder of the results.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    quantization: Annotated[str | None, typer.Option(help="none, nf4 or int8.")] = None,
    label_noise: Annotated[float | None, typer.Option(help="Share of training labels to flip.")] = None,
    on_bad_rows: Annotated[str | None, typer.Option(help="refuse or drop.")] = None,
    column_map: Annotated[str | None, typer.Option(help="Such as prompt=question,chosen=best.")] = None,
    dedup: Annotated[bool, typer.Option("--dedup", help="Leave out rows that repeat an earlier one.")] = False,
    settings: Settings = None,
    plugin: Plugins = None,
    results: Results = Path("results"),
    claims: Annotated[list[str] | None, typer.Option("--assert", help='Such as "ipo >= dpo - 0.02".')] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    wait: Wait = False,
    hang_after: Annotated[float, typer.Option(min=0, help="Seconds without progress; 0 for never.")] = 1800,
    in_process: Annotated[bool, typer.Option("--in-process", help="Without a process to train in, to debug.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train variants x seeds under identical conditions, evaluate them, and write a report."""
    overrides = {
        "model.name": model,
        "data.source": data,
        "name": name,
        "device": device,
        "model.quantization": quantization,
        "pairs.label_noise": label_noise,
        "data.on_bad_rows": on_bad_rows,
        "data.dedup": dedup or None,
    }
    from prefopt.settings import load_command

    chosen = load_command(
        config, overrides, losses=losses, seeds=seeds, settings=settings, plugins=plugin, column_map=column_map
    )
    from prefopt import claims as module

    asserted = [module.parse(text, [variant.name for variant in chosen.variants]) for text in claims or []]
    from prefopt import locks, stopping, supervise
    from prefopt.report import build

    words = ["prefopt", *sys.argv[1:]]
    with Console(_style(quiet, as_json)) as console:
        if dry_run:
            from prefopt.plan import plan

            lines = plan(chosen, progress=console)
            print("\n".join(f"{key:28} {value}" for key, value in lines.items()) if not as_json else _json(lines))
            return
        with stopping.listen(), locks.hold(results / chosen.name, wait=wait, say=console.say) as lock:
            if in_process:
                from prefopt.runner import work

                folder = work(chosen, results=results, command=words, progress=console)
            else:
                supervisor = supervise.Supervisor(chosen, results, words, plugin or [], console, lock, hang_after)
                folder = supervisor.run()
            runs = folder.runs()
            unfinished = {key: run for key, run in runs.items() if run.get("status", "complete") != "complete"}
            if any(variant != REFERENCE for variant, _ in runs.keys() - unfinished.keys()):
                console.stage("writing the report", 0, 1)
                page = build(folder.root)
                console.say(f"report: {page}")
    outcomes = module.check(folder, asserted) if asserted else []
    for outcome in outcomes:
        if outcome.holds and not quiet:
            print(_json({"claim": outcome.claim.text, "holds": True}) if as_json else outcome.sentence)
    module.require(outcomes)
    if unfinished:
        raise IncompleteError(_unfinished(unfinished))


def _unfinished(runs: Mapping[tuple[str, int], Mapping[str, Any]]) -> str:
    """Every run without a result, with what became of it."""
    shown = []
    for (variant, seed), run in sorted(runs.items()):
        diverged = run["diverged_at"] is not None
        became = f"diverged at step {run['diverged_at']}" if diverged else f"failed: {run.get('reason', '')}"
        shown.append(f"{variant} seed {seed} {became}")
    again = "; the same command tries failed runs again" if any(r["diverged_at"] is None for r in runs.values()) else ""
    return f"{', '.join(shown)}; the report marks them, and the others are not affected{again}"


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="Such as results/imdb.")], wait: Wait = False) -> None:
    """Build a comparison's report again from its files; needs no torch."""
    from prefopt import locks
    from prefopt.report import build

    with locks.hold(folder, wait=wait):
        page = build(folder)
    print(page)


@app.command()
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
    from prefopt.judging import run

    with Console(_style(quiet, as_json)) as console:
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
    print(_json(found) if as_json else "\n".join(f"{key:24} {value}" for key, value in found.items()))
    if found.get("problems"):
        raise IncompleteError(f"judge {found['judge']}: " + "; ".join(found["problems"]))


@app.command()
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
    print(_json(found) if as_json else module.as_text(found))


@app.command()
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
    print(_json([control.as_dict() for control in controls]) if as_json else module.as_text(controls))
    failed = [control.name for control in controls if not control.passed]
    if failed:
        raise PrefoptError(f"{len(failed)} of {len(controls)} controls fail: {', '.join(failed)}")


@app.command()
def losses(
    name: Annotated[str | None, typer.Argument(help="One loss in full.")] = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """List the registered losses, or show one with its formula, hyperparameters and source."""
    import prefopt
    from prefopt import catalogue, registry

    _ = prefopt.losses
    for one in plugin or []:
        registry.load_plugin(one)
    if name is not None:
        print(catalogue.describe(name))
    elif as_json:
        print(_json(catalogue.catalogue_rows()))
    else:
        print(catalogue.text_table())


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Compare an installed TRL with these losses on fixed inputs, loss by loss."""
    from prefopt import doctor as module

    rows = module.report_rows()
    print(_json(rows) if as_json else module.text_table(rows))


@app.command()
def pairs(
    config: ConfigFile = None,
    out: Annotated[Path, typer.Option(help="JSONL file to write.")] = Path("pairs.jsonl"),
    model: Annotated[str | None, typer.Option(help="A folder, a .gguf file or a hub id.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    label_noise: Annotated[float | None, typer.Option(help="Share of training labels to flip.")] = None,
    settings: Settings = None,
    heldout: Annotated[bool, typer.Option("--heldout", help="Write the held-out pairs instead.")] = False,
    quiet: Quiet = False,
) -> None:
    """Make preference pairs from a task with a gold reward, and write them as JSONL."""
    overrides = {"model.name": model, "device": device, "pairs.label_noise": label_noise}
    from prefopt.settings import load_command

    chosen = load_command(config, overrides, settings=settings)
    from prefopt.data import write_jsonl
    from prefopt.materials import prepare
    from prefopt.model import pick_device
    from prefopt.pairs import as_rows

    if chosen.task.name == "data":
        raise UsageError("prefopt pairs needs a task with a gold reward, such as imdb")
    with Console(_style(quiet, False)) as console:
        materials = prepare(chosen, pick_device(chosen.device), console)
        some = (materials.heldout if heldout else materials.train).pairs
        write_jsonl(out, as_rows(materials.base, some))
        console.say(f"{len(some)} pairs: {out}")


@app.command()
def info(as_json: AsJson = False) -> None:
    """Versions, device, and what is cached where."""
    import torch

    import prefopt
    from prefopt import environment
    from prefopt.model import pick_device, pick_dtype
    from prefopt.places import cache_dir

    device = pick_device("auto")
    cache = cache_dir()
    facts: dict[str, Any] = {
        "prefopt": prefopt.__version__,
        **environment.packages(),
        **{f"device {key}": value for key, value in environment.device_facts(device).items()},
        "weights' type": str(pick_dtype("auto", device)).removeprefix("torch."),
        "memory, GiB": round(
            (
                torch.cuda.get_device_properties(device).total_memory
                if device.type == "cuda"
                else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            )
            / 2**30,
            1,
        ),
        "cache": str(cache),
    }
    for folder in sorted(path for path in cache.glob("*") if path.is_dir()):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        facts[f"cache {folder.name}, MB"] = round(size / 1e6, 1)
    print(_json(facts) if as_json else "\n".join(f"{key:24} {value}" for key, value in facts.items()))


def _style(quiet: bool, as_json: bool) -> Style:
    return "quiet" if quiet else "json" if as_json else "auto"


def _json(value: Any) -> str:
    import json

    return json.dumps(value, indent=1, allow_nan=False)


def main() -> None:
    """Entry point of the command ``prefopt``."""
    silence_third_parties()
    try:
        app(standalone_mode=False)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except PrefoptError as problem:
        for line in str(problem).splitlines():
            print(f"prefopt: {visible(without_secrets(line))}", file=sys.stderr)
        sys.exit(problem.exit_code)
    except Stopped as end:
        print(f"prefopt: {end}", file=sys.stderr)
        sys.exit(end.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print("prefopt: interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except Exception as problem:
        if not hasattr(problem, "format_message"):
            print(visible(without_secrets(traceback.format_exc())), file=sys.stderr)
            print("prefopt: this is a defect of prefopt, and the lines above say where", file=sys.stderr)
            sys.exit(1)
        print(f"prefopt: {visible(without_secrets(problem.format_message()))}", file=sys.stderr)
        sys.exit(2)
