"""Made-up preference pairs on which losses are checked, compared and pictured.

Shapes: B pairs, T response tokens (padded).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from prefopt.contract.loss import Loss, PairLogps, TokenStats

Declared = type[Loss] | Loss  # what says which values a loss reads: most classes do, a mix by its terms


def example_pairs(
    loss: Declared,
    *,
    log_ratios: Sequence[tuple[float, float]],
    reference: Sequence[tuple[float, float]],
    lengths: Sequence[tuple[int, int]],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> PairLogps:
    """Pairs with what the loss declares to need and nothing else; ``chosen`` and ``rejected`` are leaves.

    Args:
        loss: Whose declarations decide on reference, scores, mismatched log-ratios and per-token values.
        log_ratios: B times log pi/pi_ref of chosen and rejected, nats.
        reference: B times log pi_ref of chosen and rejected, nats.
        lengths: B times response tokens of chosen and rejected, each >= 1.
        dtype: Of every floating-point value.
        device: Of every value.
    """

    def column(rows: Sequence[tuple[float, float]], side: int) -> Tensor:
        return torch.tensor([row[side] for row in rows], dtype=dtype, device=device)

    policy = [(h[0] + r[0], h[1] + r[1]) for h, r in zip(log_ratios, reference, strict=True)]
    scores = [(1.0 + (i % 3), 0.25 * (i % 2)) for i in range(len(policy))]
    bare = PairLogps(
        chosen=column(policy, 0).requires_grad_(),
        rejected=column(policy, 1).requires_grad_(),
        chosen_len=column(lengths, 0),
        rejected_len=column(lengths, 1),
        ref_chosen=column(reference, 0) if loss.needs_reference else None,
        ref_rejected=column(reference, 1) if loss.needs_reference else None,
        chosen_score=column(scores, 0) if loss.needs_scores else None,
        rejected_score=column(scores, 1) if loss.needs_scores else None,
    )
    return derived_values(loss, bare)


def derived_values(loss: Declared, logps: PairLogps) -> PairLogps:
    """The same pairs with per-token and mismatched values that follow from their sums.

    Token values spread each sum unevenly over its tokens, so that the gradient reaches ``chosen`` and ``rejected``
    through them; every prompt's mismatched responses are those of the next pair.
    """
    chosen = rejected = mismatched = None
    if loss.token_fields:
        width = int(torch.maximum(logps.chosen_len, logps.rejected_len).max())
        chosen = _spread(loss, logps.chosen, logps.ref_chosen, logps.chosen_len, width)
        rejected = _spread(loss, logps.rejected, logps.ref_rejected, logps.rejected_len, width)
    if loss.needs_mismatched:
        mismatched = torch.stack(logps.logratios(), dim=1).detach().roll(-1, 0)
    return dataclasses.replace(logps, chosen_tokens=chosen, rejected_tokens=rejected, mismatched=mismatched)


def _spread(loss: Declared, policy: Tensor, reference: Tensor | None, length: Tensor, width: int) -> TokenStats:
    """Per-token values of B responses whose sums are ``policy`` and ``reference``; shapes (B, T)."""
    step = torch.arange(width, device=policy.device)
    mask = step < length[:, None]
    share = mask * (1.0 + step % 3).to(policy.dtype)
    share = share / share.sum(-1, keepdim=True)
    policy_tokens = policy[:, None] * share
    reference_tokens = None if reference is None else reference[:, None] * share
    fields = loss.token_fields
    noise = (step * 0.618034 + length[:, None] * 0.754878 + 0.3) % 1  # of the pair itself, whatever its batch
    kl = None
    if "ref_kl" in fields and reference_tokens is not None:
        # Any smooth value that is zero, with a zero gradient, where the two policies agree.
        kl = (policy_tokens - reference_tokens).square() / 2
    return TokenStats(
        mask=mask,
        logps=policy_tokens if "logps" in fields else None,
        ref_logps=reference_tokens if "logps" in fields else None,
        log_collision=mask * (-1.0 - (step % 4) / 4).to(policy.dtype) if "log_collision" in fields else None,
        ref_kl=kl,
        uniform=mask * noise.to(policy.dtype) if "uniform" in fields else None,
    )


def ordinary_pairs(loss: Declared, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> PairLogps:
    """Five pairs as they come up in training: log-ratios of a few nats, different lengths."""
    return example_pairs(
        loss,
        log_ratios=[(2.0, -1.0), (1.0, 2.5), (-3.0, -1.5), (0.5, -4.0), (-0.75, 0.3)],
        reference=[(-12.0, -12.5), (-10.0, -8.0), (-7.0, -9.0), (-20.0, -11.0), (-5.0, -6.5)],
        lengths=[(5, 4), (3, 5), (4, 4), (9, 2), (2, 6)],
        dtype=dtype,
        device=device,
    )


def start_pairs(loss: Declared, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> PairLogps:
    """Four pairs at policy = reference, each of two responses of equal length and likelihood."""
    return example_pairs(
        loss,
        log_ratios=[(0.0, 0.0)] * 4,
        reference=[(-12.0, -12.0), (-10.0, -10.0), (-7.0, -7.0), (-20.0, -20.0)],
        lengths=[(5, 5), (3, 3), (4, 4), (9, 9)],
        dtype=dtype,
        device=device,
    )


def wide_pairs(loss: Declared, *, device: str = "cpu") -> PairLogps:
    """Five pairs far from the reference, where clips and saturated terms show; float32."""
    return example_pairs(
        loss,
        log_ratios=[(60.0, -80.0), (-40.0, 30.0), (7.0, 3.0), (-9.0, 4.0), (15.0, 14.0)],
        reference=[(-90.0, -60.0), (-70.0, -90.0), (-40.0, -30.0), (-50.0, -45.0), (-60.0, -80.0)],
        lengths=[(20, 31), (25, 14), (11, 30), (17, 8), (40, 21)],
        device=device,
    )


def extreme_pairs(loss: Declared, *, device: str = "cpu") -> list[PairLogps]:
    """Batches with log-ratios of plus and minus 1e4, lengths 1 and 1e5, and a response of probability 1; float32."""
    signs = [(1e4, 1e4), (1e4, -1e4), (-1e4, 1e4), (-1e4, -1e4), (0.0, 0.0)]
    reference = [(min(-h[0], 0.0), min(-h[1], 0.0)) for h in signs]
    short = [(1, 1)] * len(signs)
    # Two rows suffice for the long ones: per-token losses pay for every padded position.
    long = [(1, 100_000), (100_000, 1)]
    return [
        example_pairs(loss, log_ratios=signs, reference=reference, lengths=short, device=device),
        example_pairs(loss, log_ratios=signs[1:3], reference=reference[1:3], lengths=long, device=device),
    ]


def repeated_tokens(loss: Declared, logps: PairLogps) -> PairLogps:
    """The same pairs with every token twice: sums and lengths double, means stay."""

    def twice(value: Tensor | None) -> Tensor | None:
        return None if value is None else 2 * value

    doubled = dataclasses.replace(
        logps,
        chosen=2 * logps.chosen,
        rejected=2 * logps.rejected,
        chosen_len=2 * logps.chosen_len,
        rejected_len=2 * logps.rejected_len,
        ref_chosen=twice(logps.ref_chosen),
        ref_rejected=twice(logps.ref_rejected),
    )
    return derived_values(loss, doubled)


def single_pairs(loss: Declared, logps: PairLogps) -> list[PairLogps]:
    """Each pair of a batch as a batch of its own, its mismatched responses then its own."""
    cells = {
        f.name: getattr(logps, f.name) for f in dataclasses.fields(logps) if isinstance(getattr(logps, f.name), Tensor)
    }
    own = {name: value for name, value in cells.items() if name not in ("mismatched", "running")}
    rows = [{name: value[i : i + 1] for name, value in own.items()} for i in range(len(logps.chosen))]
    return [derived_values(loss, PairLogps(**row)) for row in rows]


def with_running(loss: Loss, logps: PairLogps, before: PairLogps | None = None) -> PairLogps:
    """The batch as the harness hands it over: with the moving average after ``before`` and itself."""
    now = loss.statistic(logps)
    if now is None:
        return logps
    decay = float(getattr(loss, "decay", 0.0))
    past = now if before is None else loss.statistic(before)
    return dataclasses.replace(logps, running=(decay * past + (1 - decay) * now).detach())  # type: ignore[operator]


def value_of(loss: Loss, logps: PairLogps, before: PairLogps | None = None) -> Tensor:
    """(B,) the loss of the batch as the harness would hand it over."""
    return loss(with_running(loss, logps, before))


def same(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether two tensors agree, relative and absolute."""
    return bool(torch.allclose(a.detach(), b.detach(), rtol=tolerance, atol=tolerance))
