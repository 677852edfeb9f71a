"""Honest comparison of preference-optimisation losses on one shared LoRA training harness."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefopt.contract.loss import ChosenRejected, Loss, OffScaleWarning, PairLogps, TokenStats, hyper
from prefopt.contract.registry import register
from prefopt.contract.tasks import register_task

if TYPE_CHECKING:
    from prefopt import losses
    from prefopt.contract.registry import loss_names, make_loss

__version__ = "0.1.0"
__all__ = [
    "ChosenRejected",
    "Loss",
    "OffScaleWarning",
    "PairLogps",
    "TokenStats",
    "__version__",
    "hyper",
    "loss_names",
    "losses",
    "make_loss",
    "register",
    "register_task",
]


def __getattr__(name: str) -> Any:
    """Import the built-in losses, and with them torch, when they are first asked for."""
    if name not in ("loss_names", "losses", "make_loss"):
        raise AttributeError(f"module 'prefopt' has no attribute {name!r}")
    import importlib

    losses = importlib.import_module("prefopt.losses")
    registry = importlib.import_module("prefopt.contract.registry")
    return losses if name == "losses" else getattr(registry, name)
