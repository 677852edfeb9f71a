"""The command line: reads what was typed, calls the function for it, and turns errors into one line and an exit status.

Exit status: 0 complete, 2 usage, 3 data, 4 incomplete, 5 busy, 6 environment, 7 a claim fails,
130 or 143 stopped by SIGINT or SIGTERM, 1 a defect of prefopt.
"""

from __future__ import annotations

import sys
import traceback

import typer

from prefopt.cli.checkup import info, selftest
from prefopt.cli.compare import compare
from prefopt.cli.console import visible
from prefopt.cli.judge import judge
from prefopt.cli.losses import doctor, losses
from prefopt.cli.pairs import pairs
from prefopt.cli.report import power, report
from prefopt.errors import PrefoptError
from prefopt.launch.worker import silence_third_parties
from prefopt.runtime.interrupts import Stopped
from prefopt.storage.redact import without_secrets

app = typer.Typer(
    name="prefopt",
    help="Compare preference-optimisation losses under identical conditions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (compare, report, judge, power, selftest, losses, doctor, pairs, info):
    app.command()(command)


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
