"""Loss by loss: does the installed TRL compute what prefopt computes, and where not, why not?"""

from __future__ import annotations

import importlib.metadata
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prefopt.contract.loss import Loss, PairLogps, TokenStats
from prefopt.losses import loss_names, make_loss
from prefopt.testing.cases import CASES, Case
from prefopt.testing.trl import Responses


def fixed_responses(given: str = "ordinary", *, dtype: torch.dtype = torch.float64) -> Responses:
    """Six pairs of made-up responses of up to six tokens, the same at every call.

    Args:
        given: "ordinary"; "equal lengths"; "sure of its tokens", so that WPO's weights pass 1; "far from the
            reference", chosen responses by 100 nats; "whatever the prompt", where a response's log-ratio is the same
            after every prompt.
        dtype: Of every value.
    """
    rows, width = 12, 6
    grid = torch.arange(rows * width, dtype=dtype).reshape(rows, width)
    lengths = torch.full((rows,), 4) if given == "equal lengths" else torch.tensor([5, 3, 4, 6, 2, 4, 5, 4, 2, 6, 3, 5])
    mask = torch.arange(width) < lengths[:, None]
    # Irrational steps: no two tokens, and no two gaps, agree by chance.
    policy = -0.1 - 3 * ((grid + 1) * math.sqrt(2) % 1)
    reference = -0.1 - 3 * ((grid + 1) * math.sqrt(3) % 1)
    collision = -0.2 - 1 * ((grid + 1) * math.sqrt(5) % 1)
    if given == "sure of its tokens":
        collision = 1.9 * policy  # the rest of each distribution is spread thin
    if given == "far from the reference":
        policy[: rows // 2, 0] -= 100
    table = torch.arange(rows // 2 * rows, dtype=dtype).reshape(rows // 2, rows)
    crossed = -1 + 4 * ((table + 1) * math.sqrt(7) % 1)
    if given == "whatever the prompt":
        crossed = crossed[:1].expand(rows // 2, rows)
    return Responses((policy * mask).detach().requires_grad_(), reference * mask, collision * mask, mask, crossed)


def mismatched(given: Responses) -> Tensor:
    """(B, 2) log pi / pi_ref of the next pair's chosen and rejected response after each prompt, nats."""
    prompt = torch.arange(given.pairs)
    following = prompt.roll(-1)
    return torch.stack([given.crossed[prompt, following], given.crossed[prompt, given.pairs + following]], dim=1)


def our_value(loss: Loss, given: Responses) -> Tensor:
    """() the mean over the pairs of our loss of the same responses."""
    count = given.pairs

    def tokens(rows: slice) -> TokenStats:
        fields = loss.token_fields
        return TokenStats(
            mask=given.mask[rows],
            logps=(given.policy * given.mask)[rows] if "logps" in fields else None,
            ref_logps=given.reference[rows] if "logps" in fields else None,
            log_collision=given.collision[rows] if "log_collision" in fields else None,
        )

    lengths = given.mask.sum(1)
    policy, reference = (given.policy * given.mask).sum(1), given.reference.sum(1)
    chosen, rejected = slice(None, count), slice(count, None)
    return loss(
        PairLogps(
            policy[chosen],
            policy[rejected],
            lengths[chosen],
            lengths[rejected],
            ref_chosen=reference[chosen] if loss.needs_reference else None,
            ref_rejected=reference[rejected] if loss.needs_reference else None,
            chosen_tokens=tokens(chosen) if loss.token_fields else None,
            rejected_tokens=tokens(rejected) if loss.token_fields else None,
            mismatched=mismatched(given) if loss.needs_mismatched else None,
        )
    ).mean()


def difference(case: Case) -> tuple[float, float]:
    """Largest difference in value and in gradient by token, relative to the larger of 1 and our own size."""
    results = []
    for run in (partial(our_value, make_loss(case.label)), case.run):
        dtype = torch.float32 if case.single else torch.float64
        given = fixed_responses(case.given, dtype=dtype)
        value = run(given)
        results.append((value.detach(), torch.autograd.grad(value, given.policy)[0]))
    (value, gradient), (peer_value, peer_gradient) = results
    return (
        float((value - peer_value).abs() / max(1.0, float(value.abs()))),
        float((gradient - peer_gradient).abs().max() / max(1.0, float(gradient.abs().max()))),
    )


def report_rows() -> list[dict[str, Any]]:
    """A row for each of our losses and each way to ask the installed TRL for it.

    Returns:
        Dicts of ``loss``, ``peer``, ``lengths`` (equal, different or empty), ``verdict`` (same, differs, not there,
        cannot run), ``value`` and ``gradient`` (relative differences or None) and ``why``, which for two that are the
        same says how far, or what both do otherwise than the authors.
    """
    version = trl_version()
    rows = []
    for case in CASES if version else ():
        row = {
            "loss": case.label,
            "peer": f"TRL {version} {case.peer}",
            "lengths": case.lengths,
        }
        try:
            value, gradient = difference(case)
        except Exception as problem:
            told = (str(problem).splitlines() or [""])[0]
            rows.append(row | _verdict("cannot run", None, None, f"{type(problem).__name__}: {told}"))
            continue
        same = max(value, gradient) <= case.tolerance
        why = case.note if same else case.why or "for no reason that prefopt knows; please report it"
        rows.append(row | _verdict("same" if same else "differs", value, gradient, why))
    covered = {case.label.partition("[")[0] for case in CASES} if version else set()
    peer, why = (f"TRL {version}", "") if version else ("TRL", "TRL is not installed")
    absent = [{"loss": name, "peer": peer, "lengths": ""} for name in loss_names() if name not in covered]
    return rows + [row | _verdict("not there", None, None, why) for row in absent]


def _verdict(verdict: str, value: float | None, gradient: float | None, why: str) -> dict[str, Any]:
    return {"verdict": verdict, "value": value, "gradient": gradient, "why": why}


def trl_version() -> str | None:
    """Version of the installed TRL, or None."""
    try:
        return importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        return None


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """``report_rows()`` for a terminal: a line a case, what differs with its reason below it."""
    width = max(len(row["loss"]) for row in rows)
    lines = []
    for row in rows:
        at = f", lengths {row['lengths']}" if row["lengths"] else ""
        off = "" if row["value"] is None else f"  (value {row['value']:.0e}, gradient {row['gradient']:.0e})"
        lines.append(f"{row['loss']:{width}}  {row['verdict']:10}  {row['peer']}{at}{off}")
        if row["why"]:
            lines.append(f"{'':{width}}  {'':10}  {row['why']}")
    counts = Counter(row["verdict"] for row in rows)
    return "\n".join([*lines, "", ", ".join(f"{count} {verdict}" for verdict, count in counts.items())])
