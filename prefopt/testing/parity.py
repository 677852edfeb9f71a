"""Loss by loss: does the installed TRL compute what prefopt computes, and where not, why not?"""

from __future__ import annotations

import importlib.metadata
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import prefopt.losses  # noqa: F401 - registers them
from prefopt.contract.loss import Loss, PairLogps, TokenStats
from prefopt.contract.registry import loss_names, make_loss
from prefopt.testing.trl import Responses, cpo_trainer, dpo_trainer, kto_trainer, orpo_trainer

SAME = 1e-9


@dataclass(frozen=True)
class Case:
    """One of our losses against one way to ask the peer for it.

    Attributes:
        label: Our loss with its hyperparameters.
        peer: The trainer and its options, in words.
        run: The peer's loss, (), of given responses.
        why: Where the two are known to part, and how; empty where they are the same.
        equal_lengths: Whether the responses are equally long, for a peer that averages over tokens of the batch.
        tolerance: What counts as the same, for a peer that leaves float64.
        single: Whether the values are float32, for a peer that refuses float64.
    """

    label: str
    peer: str
    run: Callable[[Responses], Tensor]
    why: str = ""
    equal_lengths: bool = False
    tolerance: float = SAME
    single: bool = False


def _dpo(label: str, loss_type: str | list[str], why: str = "", *, lengths: str = "", **options: Any) -> Case:
    asked = ", ".join([f"loss_type={loss_type!r}", *(f"{k}={v!r}" for k, v in options.items())])
    alpha = options.get("f_divergence_type") == "alpha_divergence"
    # TRL computes its alpha divergence, and EXO's label smoothing, in float32.
    tolerance = 1e-5 if alpha else 1e-6 if loss_type == "exo_pair" else SAME
    return Case(
        label,
        f"DPOTrainer({asked})",
        partial(dpo_trainer, loss_type=loss_type, **options),
        why,
        equal_lengths=lengths == "equal",
        tolerance=tolerance,
        single=alpha,
    )


def _cpo(label: str, why: str = "", *, lengths: str = "", **options: Any) -> Case:
    asked = ", ".join(f"{k}={v!r}" for k, v in options.items())
    return Case(label, f"CPOTrainer({asked})", partial(cpo_trainer, **options), why, equal_lengths=lengths == "equal")


_TOKEN_MEAN = "its likelihood averages over all chosen tokens of the micro-batch, ours over each response"

CASES: tuple[Case, ...] = (
    _dpo("dpo", "sigmoid", beta=0.1),
    _dpo("cdpo", "sigmoid", "label_smoothing is accepted and ignored", beta=0.1, label_smoothing=0.1),
    _dpo("rdpo", "robust", beta=0.1, label_smoothing=0.1),
    _dpo("dpo_norm", "sigmoid_norm", beta=5.0),
    _dpo("ipo", "ipo", beta=0.5),
    _dpo("ipo_sum", "ipo", "means over tokens, which is our ipo", beta=0.1),
    _dpo("hinge", "hinge", beta=0.05),
    _dpo("slic", "hinge", "documented as SLiC, and is the hinge on log-ratios, our hinge", beta=1.0),
    _dpo("exo", "exo_pair", beta=0.1, label_smoothing=1e-3),
    _dpo("discopop", "discopop", beta=0.05, discopop_tau=0.05),
    _dpo("nca", "nca_pair", beta=0.01),
    _dpo("apo_zero", "apo_zero", beta=0.1),
    _dpo("apo_down", "apo_down", beta=0.1),
    _dpo("sppo", "sppo_hard", beta=1e-3),
    _dpo("bco", "bco_pair", "leaves out the reward shift", beta=0.01),
    _dpo("aot", "aot", beta=0.01),
    _dpo("aot_unpaired", "aot_unpaired", beta=0.01),
    _dpo("fdpo[divergence=reverse_kl]", "sigmoid", beta=0.1, f_divergence_type="reverse_kl"),
    _dpo("fdpo[divergence=forward_kl]", "sigmoid", beta=0.1, f_divergence_type="forward_kl"),
    _dpo("fdpo[divergence=js]", "sigmoid", beta=0.1, f_divergence_type="js_divergence"),
    _dpo("fdpo[alpha=0.3]", "sigmoid", beta=0.1, f_divergence_type="alpha_divergence", f_alpha_divergence_coef=0.7),
    _dpo("wpo", "sigmoid", beta=0.01, use_weighting=True),
    _dpo("ld_dpo", "sigmoid", beta=0.1, ld_alpha=0.5),
    _dpo("sft", "sft", lengths="equal"),
    _dpo("sft", "sft", _TOKEN_MEAN),
    _dpo("rpo", ["sigmoid", "sft"], lengths="equal", beta=0.1),
    _dpo("rpo", ["sigmoid", "sft"], _TOKEN_MEAN, beta=0.1),
    _cpo("simpo", loss_type="simpo", beta=2.0, simpo_gamma=1.0, cpo_alpha=0.0),
    _cpo(
        "simpo",
        "left at its defaults it has gamma / beta = 5 nats per token and a likelihood term",
        loss_type="simpo",
    ),
    _cpo("alphapo", loss_type="simpo", beta=2.5, simpo_gamma=0.1, alpha=0.25, cpo_alpha=0.0),
    _cpo("cpo", lengths="equal", loss_type="sigmoid", beta=0.1),
    _cpo("cpo", _TOKEN_MEAN, loss_type="sigmoid", beta=0.1),
    _cpo("cpo_simpo", lengths="equal", loss_type="simpo", beta=2.0, simpo_gamma=1.0),
    _cpo("cpo_simpo", _TOKEN_MEAN, loss_type="simpo", beta=2.0, simpo_gamma=1.0),
    Case(
        "orpo",
        "ORPOTrainer(beta=0.1)",
        partial(orpo_trainer, beta=0.1),
        "its likelihood term covers the prompt and averages over the micro-batch; it takes the odds in float32",
    ),
    Case("kto", "KTOTrainer(beta=0.1)", partial(kto_trainer, beta=0.1)),
)


def fixed_responses(*, equal_lengths: bool = False, dtype: torch.dtype = torch.float64) -> Responses:
    """Five pairs of made-up responses of up to six tokens, the same at every call."""
    rows, width = 10, 6
    grid = torch.arange(rows * width, dtype=dtype).reshape(rows, width)
    lengths = torch.full((rows,), 4) if equal_lengths else torch.tensor([5, 3, 4, 6, 2, 4, 5, 4, 2, 6])
    mask = torch.arange(width) < lengths[:, None]
    # Irrational steps: no two tokens, and no two gaps, agree by chance.
    policy = (-0.1 - 3 * ((grid + 1) * math.sqrt(2) % 1)) * mask
    reference = (-0.1 - 3 * ((grid + 1) * math.sqrt(3) % 1)) * mask
    collision = (-0.2 - 1 * ((grid + 1) * math.sqrt(5) % 1)) * mask
    mismatched = 1.5 * ((torch.arange(rows, dtype=dtype) + 1) * math.sqrt(7) % 1)
    return Responses(policy.detach().requires_grad_(), reference, collision, mask, mismatched)


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
            mismatched=given.mismatched if loss.needs_mismatched else None,
        )
    ).mean()


def difference(case: Case) -> tuple[float, float]:
    """Largest difference in value and in gradient by token, relative to the larger of 1 and our own size."""
    results = []
    for run in (partial(our_value, make_loss(case.label)), case.run):
        dtype = torch.float32 if case.single else torch.float64
        given = fixed_responses(equal_lengths=case.equal_lengths, dtype=dtype)
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
        cannot run), ``value`` and ``gradient`` (relative differences or None) and ``why``.
    """
    version = trl_version()
    rows = []
    for case in CASES if version else ():
        row = {
            "loss": case.label,
            "peer": f"TRL {version} {case.peer}",
            "lengths": "equal" if case.equal_lengths else "different",
        }
        try:
            value, gradient = difference(case)
        except Exception as problem:
            told = (str(problem).splitlines() or [""])[0]
            rows.append(row | _verdict("cannot run", None, None, f"{type(problem).__name__}: {told}"))
            continue
        same = max(value, gradient) <= case.tolerance
        why = "" if same else case.why or "for no reason that prefopt knows; please report it"
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
