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

from prefopt import commands
from prefopt.commands import AsJson, Quiet, as_text, style
from prefopt.console import Console, visible
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
Wait = Annotated[bool, typer.Option("--wait", help="Wait for another process that uses the folder.")]


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
    with Console(style(quiet, as_json)) as console:
        if dry_run:
            from prefopt.plan import plan

            lines = plan(chosen, progress=console)
            print("\n".join(f"{key:28} {value}" for key, value in lines.items()) if not as_json else as_text(lines))
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
            print(as_text({"claim": outcome.claim.text, "holds": True}) if as_json else outcome.sentence)
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


app.command()(commands.judge)
app.command()(commands.power)
app.command()(commands.selftest)


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
        print(as_text(catalogue.catalogue_rows()))
    else:
        print(catalogue.text_table())


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Compare an installed TRL with these losses on fixed inputs, loss by loss."""
    from prefopt import doctor as module

    rows = module.report_rows()
    print(as_text(rows) if as_json else module.text_table(rows))


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
    with Console(style(quiet, False)) as console:
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
    print(as_text(facts) if as_json else "\n".join(f"{key:24} {value}" for key, value in facts.items()))


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
