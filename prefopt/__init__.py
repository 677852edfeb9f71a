"""Honest comparison of preference-optimisation losses on one shared LoRA training harness."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefopt.contract.groups import GroupLogps, GroupLoss
from prefopt.contract.loss import ChosenRejected, Loss, OffScaleWarning, PairLogps, TokenStats, hyper
from prefopt.contract.registry import register
from prefopt.contract.tasks import register_task

if TYPE_CHECKING:
    from prefopt import losses
    from prefopt.cli.api import across, compare, export, judge, load, run, tune
    from prefopt.contract.registry import loss_names, make_loss
    from prefopt.report.view import Results

__version__ = "0.1.0"
__all__ = [
    "ChosenRejected",
    "GroupLogps",
    "GroupLoss",
    "Loss",
    "OffScaleWarning",
    "PairLogps",
    "Results",
    "TokenStats",
    "__version__",
    "across",
    "compare",
    "export",
    "hyper",
    "judge",
    "load",
    "loss_names",
    "losses",
    "make_loss",
    "register",
    "register_task",
    "run",
    "tune",
]
# Where each name is that is imported when it is first asked for: the losses bring torch, the commands matplotlib.
_LATER = {
    "Results": "prefopt.report.view",
    "loss_names": "prefopt.contract.registry",
    "make_loss": "prefopt.contract.registry",
    **dict.fromkeys(("across", "compare", "export", "judge", "load", "run", "tune"), "prefopt.cli.api"),
}


def __getattr__(name: str) -> Any:
    """Import the built-in losses, or the commands as functions, when they are first asked for."""
    import importlib

    if name not in (*_LATER, "losses"):
        raise AttributeError(f"module 'prefopt' has no attribute {name!r}")
    if name in ("losses", "loss_names", "make_loss"):
        losses = importlib.import_module("prefopt.losses")
    return losses if name == "losses" else getattr(importlib.import_module(_LATER[name]), name)
