"""Foreign losses while they run: what one of them does stays in its own run.

A foreign loss is given copies of what it reads, the process's shared state is put back after every call, and
whatever it raises or returns that is not what it promised ends its run alone.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor

from prefopt.contract.groups import GroupLogps, GroupLoss, GroupTokens
from prefopt.contract.loss import ChosenRejected, Loss, PairLogps, TokenStats
from prefopt.contract.plugin_process import ProcessEndError, in_this_process
from prefopt.errors import PrefoptError
from prefopt.runtime.interrupts import Stopped
from prefopt.runtime.kept_state import kept_state

MOST_SHOWN = 300  # characters of what a loss raised


class LossError(Exception):
    """A foreign loss broke a promise, or raised what would have ended more than its run."""


def is_foreign(loss: Loss) -> bool:
    """Whether a loss is defined outside this package."""
    return type(loss).__module__.partition(".")[0] != "prefopt"


def guarded(loss: Loss) -> Loss:
    """The loss, behind a guard if it is foreign."""
    return cast("Loss", Guarded(loss)) if is_foreign(loss) else loss


class Guarded:
    """Stands for a foreign loss: it has the loss's attributes, and calls its three functions under guard."""

    def __init__(self, loss: Loss) -> None:
        self._loss = loss

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loss, name)

    def __call__(self, logps: PairLogps) -> Tensor:
        """(B,) the loss of each pair."""
        return _like(_call(self._loss, logps), logps.chosen, "loss")

    def group(self, groups: GroupLogps) -> Tensor:
        """(B,) the loss of each group."""
        return _like(_call(cast("GroupLoss", self._loss).group, groups), groups.logps[:, 0], "loss")

    def rewards(self, logps: PairLogps) -> ChosenRejected:
        """The implicit rewards, (B,) each."""
        rewards = _call(self._loss.rewards, logps)
        if not isinstance(rewards, ChosenRejected):
            raise LossError(f"rewards() gave {type(rewards).__name__}; ChosenRejected is wanted")
        return ChosenRejected(*(_like(value, logps.chosen, f"reward of {name}") for name, value in _named(rewards)))

    def statistic(self, logps: PairLogps) -> Tensor | None:
        """() or (N,) what the loss keeps moving averages of, or None."""
        value = _call(self._loss.statistic, logps)
        if value is None:
            return None
        several = isinstance(value, Tensor) and value.ndim == 1
        return _like(value, logps.chosen.new_empty(value.shape if several else ()), "statistic")


def _named(rewards: ChosenRejected) -> list[tuple[str, Any]]:
    return [("chosen", rewards.chosen), ("rejected", rewards.rejected)]


def _call(function: Callable[[Any], Any], logps: PairLogps | GroupLogps) -> Any:
    """What the function returns for its own copy of a batch; it must have left the copy as it was."""
    own, copies = _copy(logps, "")
    with kept_state(), in_this_process():
        try:
            value = function(own)
        except Stopped:
            raise
        except BaseException as problem:
            _contain(problem)
    written = [name for name, copy in copies.items() if copy._version]
    if written:
        raise LossError(f"it writes into its inputs ({', '.join(written)}); compute new values, as clamp for clamp_")
    return value


def _contain(problem: BaseException) -> None:
    """Raise what the loss raised, as a failure of its run alone and in a text that can be kept."""
    if isinstance(problem, ProcessEndError):
        raise LossError(str(problem)).with_traceback(problem.__traceback__) from None
    if isinstance(problem, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        raise problem  # it may be the user's
    try:
        whole = str(problem)
        text = " ".join(whole.split())[:MOST_SHOWN].encode("utf-8", "backslashreplace").decode()
    except Exception:
        whole, text = "", "what it says cannot be shown"
    if isinstance(problem, Exception) and not isinstance(problem, PrefoptError) and text == whole:
        raise problem
    raise LossError(f"{type(problem).__name__}: {text}").with_traceback(problem.__traceback__) from None


def _like(value: Any, pattern: Tensor, what: str) -> Tensor:
    """``value``, if it is a plain tensor of the shape, type and device of ``pattern``."""
    if type(value) is not Tensor:
        raise LossError(f"the {what} is {type(value).__name__}; a tensor is wanted")
    for name, is_, wanted in (
        ("shape", tuple(value.shape), tuple(pattern.shape)),
        ("type", value.dtype, pattern.dtype),
        ("device", value.device, pattern.device),
    ):
        if is_ != wanted:
            raise LossError(f"the {what} has {name} {is_}; {wanted} is wanted")
    return value


def _copy(values: PairLogps | TokenStats | GroupLogps | GroupTokens, place: str) -> tuple[Any, dict[str, Tensor]]:
    """The same values in tensors of their own, which pass gradients on; and these tensors by name."""
    copies: dict[str, Tensor] = {}
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        if isinstance(value, Tensor):
            value = copies[place + field.name] = value.clone()
        elif isinstance(value, TokenStats | GroupTokens):
            value, inner = _copy(value, f"{field.name}.")
            copies |= inner
        fields[field.name] = value
    return type(values)(**fields), copies
