"""The command line: reads what was typed, calls the function for it, and turns errors into one line and an exit status.

Exit status: 0 complete, 2 usage, 3 data, 4 incomplete, 5 busy, 6 environment, 7 a claim fails,
129, 130 or 143 stopped by SIGHUP, SIGINT or SIGTERM, 141 nobody reads the output, 1 a defect of prefopt.
"""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from prefopt import __version__
from prefopt.cli import streams
from prefopt.cli.checkup import info, selftest
from prefopt.cli.compare import compare
from prefopt.cli.console import visible
from prefopt.cli.export import export
from prefopt.cli.judge import judge
from prefopt.cli.lm_eval import lm_eval
from prefopt.cli.losses import doctor, losses
from prefopt.cli.pairs import pairs
from prefopt.cli.report import power, report
from prefopt.cli.reward import reward
from prefopt.cli.settings import cache, config
from prefopt.cli.tune import tune
from prefopt.errors import PrefoptError
from prefopt.launch.worker import silence_third_parties
from prefopt.runtime.interrupts import Stopped
from prefopt.storage.redact import without_secrets

READER_GONE = 141  # what a shell reports of a program that SIGPIPE ended

app = typer.Typer(
    name="prefopt",
    help="Compare preference-optimisation losses under identical conditions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (
    compare, tune, report, judge, export, lm_eval, power, config, selftest, losses, doctor, pairs, reward, cache, info,
):  # fmt: skip
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"prefopt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Compare preference-optimisation losses under identical conditions."""


def main() -> None:
    """Entry point of the command ``prefopt``."""
    silence_third_parties()
    with streams.guarded():
        status = _status()
    sys.exit(status)


def _status() -> int:
    """Do what was typed; the exit status, once what went wrong has been said."""
    try:
        status = app(standalone_mode=False)
        sys.stdout.flush()
    except typer.Exit as end:
        return end.exit_code
    except streams.ReaderGoneError:
        return READER_GONE
    except Stopped as end:
        return _say(str(end), end.exit_code)
    except PrefoptError as problem:
        return _say(str(problem), problem.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted; run the same command again to go on", 130)
    except Exception as problem:
        if hasattr(problem, "format_message"):  # the command line itself
            return _say(problem.format_message(), 2)
        print(visible(without_secrets(traceback.format_exc())), file=sys.stderr)
        return _say("this is a defect of prefopt, and the lines above say where", 1)
    return status if isinstance(status, int) else 0


def _say(text: str, status: int) -> int:
    """Show an error, each line of it behind the program's name; the status that was given."""
    for line in text.splitlines():
        print(f"prefopt: {visible(without_secrets(line))}", file=sys.stderr)
    return status
