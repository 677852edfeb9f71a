"""Every command as a function: the same options by name, the same checks and errors, values where text is printed.

A call is turned into the words of the command and goes through it, so nothing that the command line can do, checks or
records is missing here, and the report of a comparison that was begun in a notebook says which command repeats it.
"From Python" in the README has the page for readers, and ``benchmarks/your_data.ipynb`` shows it at work.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import typer

from prefopt.cli.words import called_with, to_words
from prefopt.contract import registry
from prefopt.contract.labels import parse_label, split_labels
from prefopt.errors import UsageError, did_you_mean
from prefopt.report.view import Results
from prefopt.runtime.interrupts import Stopped


def run(command: str, /, **options: Any) -> Any:
    """Run any command of the command line, such as ``prefopt.run("power", seeds=5)``.

    Args:
        command: Its name; ``prefopt --help`` lists them.
        options: What would be typed, by name with underscores.

    Returns:
        What the command makes: a path, or what it prints with ``--json`` as plain values.

    Raises:
        PrefoptError: With the message that the command line would print.
        KeyboardInterrupt: When it was interrupted; the same call goes on from there.
    """
    from prefopt.cli.app import app
    from prefopt.config.schema import Config

    command = command.replace("_", "-")
    commands: Mapping[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    if command not in commands:
        raise UsageError(f"prefopt has no command {command!r}{did_you_mean(command, sorted(commands))}")
    names = {parameter.name for parameter in commands[command].params}
    if "as_json" in names and "quiet" not in names:  # one that shows nothing on its way
        options = {"as_json": True, **options}
    words = to_words(command, commands[command], Config.model_fields, options)
    return _value(words)


def _value(words: list[str]) -> Any:
    """What a command returns, or what it prints where it returns nothing."""
    from prefopt.cli.app import app

    printed = io.StringIO()
    try:
        with called_with(words), redirect_stdout(printed):
            value = app(words, standalone_mode=False)
    except Stopped as end:
        raise KeyboardInterrupt(str(end)) from None
    except typer.Exit:
        value = None
    except Exception as problem:
        if not hasattr(problem, "format_message"):
            raise
        raise UsageError(f"prefopt {words[0]}: {problem.format_message()}") from None
    if value is not None:
        return value
    try:
        return json.loads(printed.getvalue())
    except ValueError:
        return printed.getvalue().strip() or None


def compare(losses: Any = None, data: Any = None, model: Any = None, **settings: Any) -> Results | dict[str, Any]:
    """Train losses under identical conditions, evaluate them, and write the report.

    Args:
        losses: Names such as ``["dpo", "simpo[beta=2.5]"]``, losses themselves, or ``"all"``.
        data: A file of preference pairs, or a dataset of the hub; the embedded experiment without one.
        model: A folder, a ``.gguf`` file or a hub id; the embedded model without one.
        settings: Any option of ``prefopt compare`` (``seeds=range(3)``, ``name="mine"``, ``judge="openai:..."``), and
            any section of its settings (``train={"steps": 200}``, ``evaluation={"prompts": 64}``).

    Returns:
        The results; with ``dry_run=True`` the plan as plain values.

    Raises:
        PrefoptError: As the command line says it. Runs that finished before are kept, and ``load`` reads them.
    """
    return _compared("compare", {"losses": losses, "data": data, "model": model, **settings})


def tune(losses: Any = None, data: Any = None, model: Any = None, **settings: Any) -> Results | dict[str, Any]:
    """``compare`` with every loss at its best, after equal numbers of trials; arguments as there."""
    return _compared("tune", {"losses": losses, "data": data, "model": model, **settings})


def _compared(command: str, options: dict[str, Any]) -> Results | dict[str, Any]:
    _refuse_local(options.get("losses"))
    value = run(command, **options)
    return Results(value) if isinstance(value, Path) else value


def _refuse_local(losses: Any) -> None:
    """Refuse losses that were defined in a notebook or script, whose code has no file.

    The process that trains cannot import them, and an edited one would pass for the one that was trained before.

    Raises:
        UsageError: Naming them.
    """
    if isinstance(losses, str):
        labels = [] if losses.strip() == "all" else split_labels(losses)
    else:
        labels = [one if isinstance(one, str) else getattr(one, "name", "") for one in losses or ()]
    names = [parse_label(label)[0] for label in labels if label]
    local = sorted({n for n in names if n in registry.REGISTRY and registry.REGISTRY[n].__module__ == "__main__"})
    if local:
        raise UsageError(
            f"loss {', '.join(local)}: defined in this notebook or script, so its code cannot be kept apart from an "
            'edited one; write the class into a file of its own, such as my_loss.py, and give plugin="my_loss.py"'
        )


def judge(results: Results | Path | str, judge: str, **options: Any) -> dict[str, Any]:
    """Judge a comparison's samples, and build its report again.

    Args:
        results: A comparison or its folder.
        judge: ``rm:MODEL``, ``lm:MODEL``, ``openai:MODEL``, ``file:PATH`` or ``oracle``.
        options: As of ``prefopt judge``, such as ``base_url``, ``prompts``, ``dry_run``.

    Returns:
        What is known of the judge: its controls, how far position sways it, the share of unusable replies. What it
        decided is in ``load(results).judgements``.

    Raises:
        PrefoptError: As the command line says it, also where the judge has problems; verdicts are kept.
    """
    value: dict[str, Any] = run("judge", folder=results, judge=judge, **options)
    return value


def load(folder: Results | Path | str) -> Results:
    """A finished comparison as tidy frames, figures and its report; needs no model and no torch.

    Raises:
        PrefoptError: If it is no results folder, or a file in it is damaged.
    """
    results = Results(folder.root if isinstance(folder, Results) else Path(folder))
    results.check()
    return results


def across(folders: Iterable[Results | Path | str], out: Path | str) -> Path:
    """One report on several comparisons: losses by comparisons, mean rank, probability of improvement."""
    page: Path = run("report", folders=list(folders), out=out)
    return page


def export(results: Results | Path | str, variant: str, **options: Any) -> Path:
    """Take a policy home: its adapter (``out=FOLDER``), or the merged model (``merge=FOLDER``) of one ``seed``."""
    folder: Path = run("export", folder=results, variant=variant, **options)
    return folder
