"""The contract of a loss as a function that anybody can call: ``check_loss(MyLoss())``."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from prefopt.contract.examples import (
    derived_values,
    extreme_pairs,
    ordinary_pairs,
    repeated_tokens,
    same,
    single_pairs,
    start_pairs,
    value_of,
    with_running,
)
from prefopt.contract.loss import Loss, PairLogps, TokenStats
from prefopt.contract.plugin_process import in_this_process, is_its_own
from prefopt.errors import UsageError
from prefopt.runtime.kept_state import kept_state
from prefopt.testing.declarations import check_docstring, check_hyperparameters, check_spec
from prefopt.testing.groups import check_groups


class ContractError(UsageError):
    """A loss that breaks the contract; the message has one line for each failure.

    Attributes:
        failures: The lines.
    """

    def __init__(self, failures: list[str]) -> None:
        super().__init__("\n".join(failures))
        self.failures = failures


def check_loss(loss: Loss, *, device: str = "cpu", documented: bool = True) -> None:
    """Check everything that a comparison relies on; takes about a tenth of a second.

    Args:
        loss: A registered loss. Its values are checked with the hyperparameters it has, its declarations with
            its defaults.
        device: Where the values are computed.
        documented: Whether the docstring must have a formula, every hyperparameter and a source; a comparison does
            not ask for it.

    Raises:
        ContractError: If anything fails; the message says what and where.
    """
    failures = contract_failures(loss, device=device, documented=documented)
    if failures:
        raise ContractError(failures)


def contract_failures(loss: Loss, *, device: str = "cpu", documented: bool = True) -> list[str]:
    """What ``check_loss`` finds, a line each: ``name: check: what was found``; empty for a loss that is in order."""
    name = getattr(type(loss), "name", type(loss).__name__)
    failures: list[str] = []
    for check in (*_CHECKS, *((check_docstring,) if documented else ())):
        title = check.__name__.lstrip("_").removeprefix("check_").replace("_", " ")
        try:
            with kept_state(), in_this_process(), _one_thread(), _no_warnings():
                failures += [f"{name}: {title}: {problem}" for problem in check(loss, device)]
        except BaseException as raised:
            if not is_its_own(raised):
                raise
            told = str(raised).splitlines() or [""]
            failures.append(f"{name}: {title}: raised {type(raised).__name__}: {told[0]}")
        if failures and check is _check_output:
            break  # Whatever else would be reported follows from this.
    return failures


@contextmanager
def _one_thread() -> Iterator[None]:
    # On tensors of five numbers a second thread only waits: many times slower on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _gradients(loss: Loss, logps: PairLogps) -> tuple[Tensor, Tensor]:
    return _mean_gradients(value_of(loss, logps), logps)


def _mean_gradients(value: Tensor, logps: PairLogps) -> tuple[Tensor, Tensor]:
    """Gradient of the batch's mean loss, (B,) each; zeros where there is none."""
    leaves = (logps.chosen, logps.rejected)
    gradients = torch.autograd.grad(value.mean(), leaves, allow_unused=True, retain_graph=True)
    chosen, rejected = (torch.zeros_like(leaf) if g is None else g for g, leaf in zip(gradients, leaves, strict=True))
    return chosen, rejected


def _differs(loss: Loss, a: PairLogps, b: PairLogps) -> bool:
    return not same(value_of(loss, a), value_of(loss, b), 1e-7)


def _check_output(loss: Loss, device: str) -> Iterator[str]:
    for dtype in (torch.float32, torch.float64):
        batch = ordinary_pairs(loss, dtype=dtype, device=device)
        for pairs in (batch, *single_pairs(loss, batch)[:1]):
            count = len(pairs.chosen)
            value = value_of(loss, pairs)
            if not isinstance(value, Tensor):
                yield f"__call__ must return a tensor; got {type(value).__name__}"
                return
            if value.shape != (count,):
                yield f"shape must be ({count},), one value a pair; got {tuple(value.shape)}"
                return
            if value.dtype != dtype:
                yield f"dtype must be the input's, {dtype}; got {value.dtype}"
            if value.device.type != torch.device(device).type:
                yield f"device must be the input's, {device}; got {value.device}"
                return
            if not value.requires_grad:
                yield "the value carries no gradient; do not detach it"
            rewards = loss.rewards(with_running(loss, pairs))
            if any(side.shape != (count,) for side in rewards):
                yield f"rewards must be ({count},) each; got {', '.join(str(tuple(side.shape)) for side in rewards)}"


def _check_gradient(loss: Loss, device: str) -> Iterator[str]:
    """Autograd against central differences in float64: finds a part that lost its gradient, declared or not."""
    pairs = with_running(loss, ordinary_pairs(loss, dtype=torch.float64, device=device))
    exact = torch.cat(_gradients(loss, pairs))
    step = 1e-5
    base = torch.cat((pairs.chosen, pairs.rejected)).detach()
    count = len(pairs.chosen)
    measured = torch.zeros_like(base)
    for i in range(2 * count):
        ends = []
        for sign in (1, -1):
            moved = base.clone()
            moved[i] += sign * step
            there = dataclasses.replace(pairs, chosen=moved[:count], rejected=moved[count:])
            # What the harness hands over without gradient stays as it was.
            there = dataclasses.replace(derived_values(loss, there), mismatched=pairs.mismatched)
            ends.append(loss(there).mean().item())
        measured[i] = (ends[0] - ends[1]) / (2 * step)
    # Differences of a value of 1e6 keep nine digits fewer than the value has.
    rounding = 1e-8 * max(1.0, float(loss(pairs).detach().abs().max()))
    agree = bool((exact - measured).abs().max() <= 1e-5 * measured.abs().max() + rounding)
    if loss.stops_gradient and agree and _is_default(loss):
        yield "stops_gradient is declared, and autograd equals finite differences"
    if not loss.stops_gradient and not agree:
        i = int((exact - measured).abs().argmax())
        side = "chosen" if i < count else "rejected"
        yield (
            f"autograd gives {exact[i]:.6g} for {side}[{i % count}], finite differences {measured[i]:.6g}; "
            "something is detached, or declare stops_gradient = True"
        )


def _check_start(loss: Loss, device: str) -> Iterator[str]:
    """Policy = reference: finite, and the first step goes where it is declared to go."""
    pairs = start_pairs(loss, device=device)
    chosen, rejected = _gradients(loss, pairs)
    for what, values in (("value", value_of(loss, pairs)), ("gradient", chosen), ("gradient", rejected)):
        if not values.isfinite().all():
            yield f"{what} at policy = reference is {values.detach().tolist()}"
            return
    raises = bool((chosen <= 0).all() and (rejected >= 0).all() and chosen.sum() < 0 < rejected.sum())
    if raises != loss.raises_margin:
        yield (
            f"raises_margin is {loss.raises_margin}, and the first step's gradient is "
            f"{chosen[0]:.3g} for chosen and {rejected[0]:.3g} for rejected"
        )


def _check_extremes(loss: Loss, device: str) -> Iterator[str]:
    for pairs in (ordinary_pairs(loss, device=device), *extreme_pairs(loss, device=device)):
        handed = with_running(loss, pairs)
        value, rewards = loss(handed), loss.rewards(handed)
        chosen, rejected = _mean_gradients(value, pairs)
        for what, values in (
            ("loss", value),
            ("gradient for chosen", chosen),
            ("gradient for rejected", rejected),
            ("reward of chosen", rewards.chosen),
            ("reward of rejected", rewards.rejected),
        ):
            bad = (~values.isfinite()).nonzero()
            if len(bad):
                i = int(bad[0])
                yield (
                    f"{what} is {values[i].item()} at policy log-probabilities {pairs.chosen[i].item():g}, "
                    f"{pairs.rejected[i].item():g}, lengths {int(pairs.chosen_len[i])}, {int(pairs.rejected_len[i])}"
                )
                return


def _check_purity(loss: Loss, device: str) -> Iterator[str]:
    pairs = with_running(loss, ordinary_pairs(loss, device=device))
    before = _tensors(pairs)
    copies = {name: value.detach().clone() for name, value in before.items()}
    with torch.no_grad():
        first, second = loss(pairs).clone(), loss(pairs).clone()
        loss.rewards(pairs)
    changed = [name for name, value in before.items() if not torch.equal(value, copies[name])]
    if changed:
        yield f"__call__ or rewards changes its input {', '.join(changed)}"
    elif not torch.equal(first, second):
        yield "two calls on one input differ; randomness comes from TokenStats.uniform"


def _tensors(pairs: PairLogps) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for field in dataclasses.fields(pairs):
        value = getattr(pairs, field.name)
        if isinstance(value, TokenStats):
            inner = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            tensors |= {f"{field.name}.{name}": v for name, v in inner.items() if isinstance(v, Tensor)}
        elif isinstance(value, Tensor):
            tensors[field.name] = value
    return tensors


def _is_default(loss: Loss) -> bool:
    return all(getattr(loss, f.name) == f.default for f in dataclasses.fields(loss))


def _check_declarations(loss: Loss, device: str) -> Iterator[str]:
    """Each class attribute against what the loss does; with defaults, since 0 may switch a term off."""
    loss = type(loss)()
    pairs = ordinary_pairs(loss, dtype=torch.float64, device=device)
    constant = not any(side.any() for side in _gradients(loss, pairs))
    if loss.needs_reference and not _differs(loss, pairs, _shifted(loss, pairs, "ref_chosen")):
        yield "needs_reference is True, and another reference gives the same loss"
    invariant = same(value_of(loss, pairs), value_of(loss, repeated_tokens(loss, pairs)), 1e-7)
    if invariant != loss.length_normalized and not constant:
        effect = "changes nothing" if invariant else "changes the loss"
        yield f"length_normalized is {loss.length_normalized}, and saying every token twice {effect}"
    alone = torch.cat([value_of(loss, single) for single in single_pairs(loss, pairs)])
    coupled = not same(alone, value_of(loss, pairs), 1e-7)
    if coupled != loss.batch_coupled:
        effect = "changes" if coupled else "does not change"
        yield f"batch_coupled is {loss.batch_coupled}, and a pair's loss {effect} with the other pairs"
    if loss.needs_scores and not _differs(loss, pairs, _shifted(loss, pairs, "chosen_score")):
        yield "needs_scores is True, and other scores give the same loss"
    if loss.needs_mismatched and not _differs(
        loss, pairs, dataclasses.replace(pairs, mismatched=torch.full_like(pairs.chosen, 9.0))
    ):
        yield "needs_mismatched is True, and other mismatched log-ratios give the same loss"
    for field in sorted(loss.token_fields):
        tokens = pairs.rejected_tokens
        assert tokens is not None
        moved: dict[str, Any] = {field: 2 * getattr(tokens, field).flip(-1)}
        other = dataclasses.replace(pairs, rejected_tokens=dataclasses.replace(tokens, **moved))
        if not _differs(loss, pairs, other):
            yield f"token_fields has {field}, and other values of it give the same loss"


def _shifted(loss: Loss, pairs: PairLogps, field: str) -> PairLogps:
    """The pairs with one value of each raised by 1, and what follows from it."""
    value: dict[str, Any] = {field: getattr(pairs, field) + 1}
    return derived_values(loss, dataclasses.replace(pairs, **value))


_CHECKS: tuple[Callable[[Loss, str], Iterator[str]], ...] = (
    _check_output,
    _check_gradient,
    _check_start,
    _check_extremes,
    _check_purity,
    _check_declarations,
    check_hyperparameters,
    check_spec,
    check_groups,
)
