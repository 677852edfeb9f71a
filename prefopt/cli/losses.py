"""``prefopt losses`` and ``prefopt doctor``: lists the registered losses, and compares them with an installed TRL."""

from __future__ import annotations

from typing import Annotated

import typer

from prefopt.cli.options import AsJson, Plugins, as_text


def losses(
    name: Annotated[str | None, typer.Argument(help="One loss in full.")] = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """List the registered losses, or show one with its formula, hyperparameters and source."""
    from prefopt.contract import registry
    from prefopt.losses import catalogue

    for one in plugin or []:
        registry.load_plugin(one)
    if name is not None:
        print(catalogue.describe(name))
    elif as_json:
        print(as_text(catalogue.catalogue_rows()))
    else:
        print(catalogue.text_table())


def doctor(as_json: AsJson = False) -> None:
    """Compare an installed TRL with these losses on fixed inputs, loss by loss."""
    from prefopt.testing import parity

    rows = parity.report_rows()
    print(as_text(rows) if as_json else parity.text_table(rows))
