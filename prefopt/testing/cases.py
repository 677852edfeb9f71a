"""The ways to ask TRL for our losses, and what is known of each difference. ``prefopt.testing.parity`` runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import Tensor

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
        note: Where they are the same, and both are not what the authors have, or only so far.
        given: Which responses they are given, a word that ``fixed_responses`` knows.
        tolerance: What counts as the same, for a peer that leaves float64.
        single: Whether the values are float32, for a peer that refuses float64.
    """

    label: str
    peer: str
    run: Callable[[Responses], Tensor]
    why: str = ""
    note: str = ""
    given: str = "ordinary"
    tolerance: float = SAME
    single: bool = False

    @property
    def lengths(self) -> str:
        """Whether the responses are equally long, for a peer that averages over tokens of the batch."""
        return "equal" if self.given == "equal lengths" else "different"


def _in_words(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


def _dpo(
    label: str, loss_type: str | list[str], why: str = "", *, given: str = "ordinary", note: str = "", **options: Any
) -> Case:
    alpha = options.get("f_divergence_type") == "alpha_divergence"
    # TRL computes its alpha divergence, and EXO's label smoothing, in float32.
    tolerance = 1e-5 if alpha else 1e-6 if loss_type == "exo_pair" else SAME
    in_words = _in_words({"loss_type": loss_type} | options)
    run = partial(dpo_trainer, loss_type=loss_type, **options)
    return Case(label, f"DPOTrainer({in_words})", run, why, note, given, tolerance=tolerance, single=alpha)


def _cpo(label: str, why: str = "", *, given: str = "ordinary", **options: Any) -> Case:
    return Case(label, f"CPOTrainer({_in_words(options)})", partial(cpo_trainer, **options), why, given=given)


def _in_two(case: Case, why: str) -> Case:
    """The same in two micro-batches of one optimizer step, whose losses the peer's trainer averages."""

    def run(given: Responses) -> Tensor:
        half = given.pairs // 2
        return (case.run(given.part(slice(half))) + case.run(given.part(slice(half, None)))) / 2

    return replace(case, peer=f"{case.peer} in 2 micro-batches", run=run, why=why)


_TOKEN_MEAN = "its likelihood averages over all chosen tokens of the micro-batch, ours over each response"
_SORTS = "it sorts within the micro-batch, ours within the optimizer batch"
_TANGENT = "below e^20, where our exponential goes on as its tangent"
_MPO: dict[str, Any] = {"beta": 0.1, "loss_weights": [0.8, 0.2, 1.0]}

CASES: tuple[Case, ...] = (
    _dpo("dpo", "sigmoid", beta=0.1),
    _dpo("cdpo", "sigmoid", "label_smoothing is accepted and ignored", beta=0.1, label_smoothing=0.1),
    _dpo("rdpo", "robust", beta=0.1, label_smoothing=0.1),
    _dpo("dpo_norm", "sigmoid_norm", beta=5.0),
    _dpo("ipo", "ipo", beta=0.5),
    _dpo("ipo_sum", "ipo", "means over tokens, which is our ipo", beta=0.1),
    _dpo("hinge", "hinge", beta=0.05),
    _dpo("slic", "hinge", "documented as SLiC, and is the hinge on log-ratios, our hinge", beta=1.0),
    _dpo(
        "exo",
        "exo_pair",
        note="its default label_smoothing of 0 is refused; the authors' code has e^-10 written into it",
        beta=0.1,
        label_smoothing=1e-3,
    ),
    _dpo("discopop", "discopop", beta=0.05, discopop_tau=0.05),
    _dpo("nca", "nca_pair", beta=0.01),
    _dpo("apo_zero", "apo_zero", beta=0.1),
    _dpo("apo_down", "apo_down", beta=0.1),
    _dpo("sppo", "sppo_hard", note="both sum the two squared errors, of which the authors' code takes half", beta=1e-3),
    _dpo("bco[beta=0.1]", "bco_pair", "leaves out the reward shift", beta=0.1),
    _dpo("mpo", ["sigmoid", "bco_pair", "sft"], "its BCO has no reward shift", given="equal lengths", **_MPO),
    _dpo("mpo", ["sigmoid", "bco_pair", "sft"], f"its BCO has no reward shift, and {_TOKEN_MEAN}", **_MPO),
    _dpo("aot", "aot", beta=0.01),
    _in_two(_dpo("aot", "aot", beta=0.01), _SORTS),
    _dpo("aot_unpaired", "aot_unpaired", beta=0.01),
    _in_two(_dpo("aot_unpaired", "aot_unpaired", beta=0.01), _SORTS),
    _dpo("fdpo[divergence=reverse_kl]", "sigmoid", beta=0.1, f_divergence_type="reverse_kl"),
    _dpo("fdpo[divergence=forward_kl]", "sigmoid", note=_TANGENT, beta=0.1, f_divergence_type="forward_kl"),
    _dpo(
        "fdpo[divergence=forward_kl]",
        "sigmoid",
        "beyond e^20 its exponential goes on, ours as its tangent",
        given="far from the reference",
        beta=0.1,
        f_divergence_type="forward_kl",
    ),
    _dpo("fdpo[divergence=js]", "sigmoid", beta=0.1, f_divergence_type="js_divergence"),
    _dpo(
        "fdpo[alpha=0.3]",
        "sigmoid",
        note=_TANGENT,
        beta=0.1,
        f_divergence_type="alpha_divergence",
        f_alpha_divergence_coef=0.7,
    ),
    _dpo(
        "fdpo[alpha=0.3]",
        "sigmoid",
        "beyond e^20 its exponential goes on, to e^80; ours as its tangent",
        given="far from the reference",
        beta=0.1,
        f_divergence_type="alpha_divergence",
        f_alpha_divergence_coef=0.7,
    ),
    _dpo("wpo", "sigmoid", note="as long as no weight would pass 1", beta=0.01, use_weighting=True),
    _dpo(
        "wpo",
        "sigmoid",
        "its weight is not clamped to at most 1, as its authors' and ours is",
        given="sure of its tokens",
        beta=0.01,
        use_weighting=True,
    ),
    _dpo("ld_dpo", "sigmoid", beta=0.1, ld_alpha=0.5),
    _dpo("sft", "sft", given="equal lengths"),
    _dpo("sft", "sft", _TOKEN_MEAN),
    _dpo(
        "rpo",
        ["sigmoid", "sft"],
        given="equal lengths",
        note="over the response, as the paper's later versions",
        beta=0.1,
    ),
    _dpo("rpo", ["sigmoid", "sft"], _TOKEN_MEAN, beta=0.1),
    _cpo("simpo", loss_type="simpo", beta=2.0, simpo_gamma=1.0, cpo_alpha=0.0),
    _cpo(
        "simpo",
        "left at its defaults it has gamma / beta = 5 nats per token and a likelihood term",
        loss_type="simpo",
    ),
    _cpo("alphapo", loss_type="simpo", beta=2.5, simpo_gamma=0.1, alpha=0.25, cpo_alpha=0.0),
    _cpo("cpo", given="equal lengths", loss_type="sigmoid", beta=0.1),
    _cpo("cpo", _TOKEN_MEAN, loss_type="sigmoid", beta=0.1),
    _cpo("cpo_simpo", given="equal lengths", loss_type="simpo", beta=10.0, simpo_gamma=5.4, cpo_alpha=0.05),
    _cpo("cpo_simpo", _TOKEN_MEAN, loss_type="simpo", beta=10.0, simpo_gamma=5.4, cpo_alpha=0.05),
    _cpo(
        "cpo_simpo",
        "left at its default the likelihood has a weight of 1, twenty times its authors'",
        given="equal lengths",
        loss_type="simpo",
        beta=10.0,
        simpo_gamma=5.4,
    ),
    Case(
        "orpo",
        "ORPOTrainer(beta=0.1)",
        partial(orpo_trainer, beta=0.1),
        "its likelihood term covers the prompt, as its authors' does by default and ours does not, and averages over "
        "the micro-batch; it takes the odds in float32",
    ),
    Case(
        "kto",
        "KTOTrainer(beta=0.1)",
        partial(kto_trainer, beta=0.1),
        note="where a response's log-ratio does not depend on the prompt: the same responses, chosen and rejected, "
        "enter z",
        given="whatever the prompt",
    ),
    Case(
        "kto",
        "KTOTrainer(beta=0.1)",
        partial(kto_trainer, beta=0.1),
        "each response enters z under the prompt that follows it, ours under the one before it, as its authors'",
    ),
    Case(
        "kto",
        "KTOTrainer(beta=0.1) in 2 micro-batches",
        partial(kto_trainer, beta=0.1, micro_batches=2),
        "its z is that of the micro-batch, which in its order holds chosen responses alone or rejected ones alone; "
        "ours is that of the optimizer batch",
        given="whatever the prompt",
    ),
)
