"""``prefopt tune``: ``prefopt compare`` with every loss at its best, after equal numbers of trials."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from prefopt.cli.compare import AS_SET, TRIALS, compare

_OPTIONS = inspect.signature(compare, eval_str=True).parameters
Trials = Annotated[int | None, typer.Option(min=1, help=f"Settings tried of each loss; {TRIALS} where none is set.")]


def tune(trials: Trials = None, **options: Any) -> Path | dict[str, Any]:
    """Try as many settings of every loss, then compare each at its best and at its defaults."""
    return compare(**options, tune=AS_SET if trials is None else trials)


_SHARED = [parameter for name, parameter in _OPTIONS.items() if name != "tune"]
_TRIALS = inspect.Parameter("trials", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Trials)
tune.__signature__ = inspect.Signature([*_SHARED, _TRIALS])  # type: ignore[attr-defined]
tune.__annotations__ = {parameter.name: parameter.annotation for parameter in (*_SHARED, _TRIALS)}
