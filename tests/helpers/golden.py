"""One right value of each loss, worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from math import exp, expm1, log, log1p, sqrt

import torch

from prefopt import Loss, PairLogps, TokenStats


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def nls(x: float) -> float:
    """-log sigmoid(x)."""
    return log1p(exp(-x))


def odds(a: float) -> float:
    return a - log(-expm1(a))


PAIRS = PairLogps(
    chosen=t(-10, -9),
    rejected=t(-14, -10),
    chosen_len=t(5, 3),
    rejected_len=t(4, 5),
    ref_chosen=t(-12, -10),
    ref_rejected=t(-13, -12),
    chosen_score=t(3, 5),
    rejected_score=t(1, 4),
    mismatched=torch.stack([t(0.5, 2.5), t(-1.5, 2.5)], dim=1),
    running=torch.tensor(2.0),
)

# One pair of three tokens against one, h = (1, 0, 2) and (2); sums 3 and 2.
TOKENS = PairLogps(
    chosen=t(-6),
    rejected=t(-1),
    chosen_len=t(3),
    rejected_len=t(1),
    ref_chosen=t(-9),
    ref_rejected=t(-3),
    chosen_tokens=TokenStats(
        mask=torch.tensor([[True, True, True]]),
        logps=t(-1, -2, -3)[None],
        ref_logps=t(-2, -2, -5)[None],
        log_collision=t(-1, -1, -4)[None],
        ref_kl=t(0.5, 0.25, 0.25)[None],
        uniform=t(0.2, 0.7, 0.9)[None],
    ),
    rejected_tokens=TokenStats(
        mask=torch.tensor([[True, False, False]]),
        logps=t(-1, 0, 0)[None],
        ref_logps=t(-3, 0, 0)[None],
        log_collision=t(-2, 0, 0)[None],
        ref_kl=t(3, 0, 0)[None],
        uniform=t(0.5, 0, 0)[None],
    ),
)


def drawn(*uniform: float) -> PairLogps:
    """PAIRS with noise for a draw among pairs, of which mean and standard deviation of the gaps are 2 and 4."""
    noise = TokenStats(mask=torch.ones(2, 1, dtype=torch.bool), uniform=t(*uniform)[:, None])
    return replace(PAIRS, chosen_tokens=noise, rejected_tokens=noise, running=t(2, 4))


def batch_of(loss: Loss) -> PairLogps:
    """The batch on which a loss's golden value is worked out."""
    if loss.name == "beta_dpo":
        return drawn(0.5, 0.1)
    if loss.token_fields:
        return replace(TOKENS, chosen_score=t(3), rejected_score=t(1)) if loss.needs_scores else TOKENS
    kept = loss.statistic(PAIRS)
    return replace(PAIRS, running=t(0.5, 0.25)) if kept is not None and len(kept.shape) and len(kept) == 2 else PAIRS


def kl(p: float, q: float) -> float:
    return p * log(p / q) + (1 - p) * log((1 - p) / (1 - q))


SOFT = 1000 * (sigmoid(2) - 0.5)

A = 1 / (sqrt(2) + 1e-4)  # GRPO's advantage of the better of two

GOLDEN: dict[str, float] = {
    # Pair 1: D = 2 - (-1) = 3.
    "dpo": nls(0.1 * 3),
    "dpo_flipped": nls(-0.1 * 3),
    # R = 3 - 0.05 * 2 and 1 + 0.05; each other's baseline.
    "rloo": -(1.85 * -10 + -1.85 * -14) / 2,
    "grpo": (0.04 * (exp(-1) + 2 * (exp(-2) + 1)) + 6 * A - A) / 4,
    "grpo[normalizer=grpo]": ((0.04 * (exp(-1) + exp(-2) + 1) + 6 * A) / 3 + 0.04 * (exp(-2) + 1) - A) / 2,
    "dpo_pl": nls(0.1 * 3),
    "infonca": sigmoid(2) * nls(0.3) + sigmoid(-2) * nls(-0.3),
    "cdpo": 0.9 * nls(0.3) + 0.1 * nls(-0.3),
    "rdpo": (0.9 * nls(0.3) - 0.1 * nls(-0.3)) / 0.8,
    "cdpo[label_smoothing=0.2]": 0.8 * nls(0.3) + 0.2 * nls(-0.3),
    "rdpo[label_smoothing=0.2]": (0.8 * nls(0.3) - 0.2 * nls(-0.3)) / 0.6,
    "dpo_norm": nls(5 * (0.4 + 0.25)),
    "ipo": (0.65 - 1) ** 2,
    "ipo_sum": (3 - 5) ** 2,
    "hinge": 1 - 0.05 * 3,
    "exo": sigmoid(0.3) * log(sigmoid(0.3) / 0.999) + sigmoid(-0.3) * log(sigmoid(-0.3) / 0.001),
    "discopop": (1 - sigmoid(0.15 / 0.05)) * nls(0.15) + sigmoid(0.15 / 0.05) * exp(-0.15),
    "discopop[tau=0.1]": (1 - sigmoid(1.5)) * nls(0.15) + sigmoid(1.5) * exp(-0.15),
    "gpo": exp(-0.3),
    "gpo[link=squared_hinge]": (1 - 0.3) ** 2,
    "gpo[link=savage]": 1 / (1 + exp(0.3)) ** 2,
    "focalpo": sigmoid(0.3) ** 0.05 * nls(0.3),
    "fdpo": nls(0.1 * (1 - exp(-1) - (1 - exp(0.5))) / 0.5),
    "fdpo[divergence=reverse_kl]": nls(0.3),
    "fdpo[divergence=forward_kl]": nls(0.1 * (exp(1) - exp(-2))),
    "fdpo[divergence=js]": nls(0.1 * (log(sigmoid(2)) - log(sigmoid(-1)))),
    "chipo": nls(0.1 * (exp(2) + 2 - exp(-1) + 1)),
    "r_dpo": nls(0.3 + 0.05 * (5 - 4)),
    "dpop": nls(0.3),
    "odpo": nls(0.3 - log(3 - 1)),
    "sppo": (2 - 500) ** 2 + (-1 + 500) ** 2,
    "cal_dpo": nls(3) + (2 - 500) ** 2 + (-1 + 500) ** 2,
    "nca": nls(0.02) + 0.5 * nls(-0.02) + 0.5 * nls(0.01),
    "apo_zero": 1 - sigmoid(0.2) + sigmoid(-0.1),
    "apo_down": sigmoid(0.2) + 1 - sigmoid(0.3),
    "simpo": nls(2 * (-2 + 3.5) - 2 * 0.5),
    "alphapo": nls(2.5 * (exp(0.25 * 3.5) - exp(0.25 * 2)) / 0.25 - 0.1),
    "slic": 0 + 0.1 * 10,  # the gap of 4 nats exceeds delta = 1
    "orpo": 2 + 0.1 * nls(odds(-2) - odds(-3.5)),
    "cpo": nls(0.1 * 4) + 2,
    "cpo_simpo": nls(10 * 1.5 - 5.4) + 0.05 * 2,
    "rpo": nls(0.3) + 2,
    "dpo_shift": nls(0.2 + 0.75 * 0.1),
    "minor_dpo": nls(0.2),  # h of the rejected is -1, and counts as 0
    "bpo": nls(0.1 * 0.3),  # the fall of 1 nat times 0.3 is less than the rise of 2
    "bpo[alpha=3.0]": nls(0.1 * 2),
    "c2_dpo": nls(0.3) + 2e-4 * (2 - 1) ** 2,
    "h_dpo": nls(0.1 * (0.95 * 4 - 1)),
    "simper": exp(-3.5) - exp(-2),
    "unlikelihood": 10 - 14,
    "unlikelihood[alpha=0.5]": 10 - 7,
    "asft": 2 + nls(odds(-2)) + nls(-odds(-3.5)),
    "asft[beta=0.5,lam=0.2,nll_weight=0.0]": 0.2 * (nls(0.5 * odds(-2)) + nls(-0.5 * odds(-3.5))),
    # The scores are 3 and 1.
    "sppo_soft": (2 - SOFT) ** 2 + (-1 + SOFT) ** 2,
    "rpo_reward": kl(sigmoid(2), sigmoid(0.3)),
    "rpo_reward[distance=fwd_kl]": kl(sigmoid(0.3), sigmoid(2)),
    "rpo_reward[distance=sq,eta=0.5]": (0.3 - 1) ** 2,
    "noop": 0,
    "sft": 2,
    # z = (0.5 + 2.5 - 1.5 + 2.5) / 4 = 1.
    "kto": 0.5 * (1 - sigmoid(0.1 * (2 - 1))) + 0.5 * (1 - sigmoid(0.1 * (1 + 1))),
    "kto[desirable_weight=2.0]": (1 - sigmoid(0.1 * (2 - 1))) + 0.5 * (1 - sigmoid(0.1 * (1 + 1))),
    # Mean 0.5 and standard deviation 0.25 of the gaps per token, here 0.65.
    "alpha_dpo": nls(2.5 * (1.5 - 0.6 - 0.2 * (0.65 - 0.5) / 0.25)),
    # The moving average given is 2.
    "mpo": 0.8 * nls(0.3) + 0.2 * (nls(0.2 - 2) + nls(0.1 + 2)) + 2,
    "mpo[beta=0.2,w_p=0.5,w_q=0.3,w_g=0.1]": 0.5 * nls(0.6) + 0.3 * (nls(0.4 - 2) + nls(0.2 + 2)) + 0.1 * 2,
    "mix": 0.8 * nls(0.3) + 0.2 * (nls(0.02 - 2) + nls(0.01 + 2)) + 2,
    "mix[2*dpo[beta=0.2]+0.5*sft]": 2 * nls(0.6) + 0.5 * 2,
    "bco": nls(0.02 - 2) + nls(-(-0.01 - 2)),
    "bco[beta=0.1]": nls(0.2 - 2) + nls(-(-0.1 - 2)),
    # Gaps 4, 1 and 1, 2 under the reference: the larger against the larger, 4 - 2.
    "aot": nls(0.01 * (4 - 2)),
    # Chosen 2, 1 and rejected -1, 2: the larger against the larger, 2 - 2.
    "aot_unpaired": nls(0),
    # D = 3 and -1; exp(-L) is the sigmoid.
    "dr_dpo": -log((sigmoid(0.3) + sigmoid(-0.1)) / 2),
    # D = 3 and -1, moving average 2; of 0.8 * 2 pairs one is kept, the gap of 3, at twice the weight;
    # beta' = 0.1 * (1 + 0.6 * (3 - 2)).
    "beta_dpo": 2 * nls(0.16 * 3),
    # Both are kept, M = 1, beta' = 0.1 * (1 + 0.6 * (1 - 2)).
    "beta_dpo[keep=1.0]": nls(0.04 * 3),
    # Token pair: D = 3 - 2 = 1, K = 1 and 3.
    "tdpo": nls(0.1 * 1 - 0.5 * 0.1 * (3 - 1)),
    "tdpo1": nls(0.1 * 1 - 0.1 * (3 - 1)),
    # Mean excess (0 - 1 + 1) / 3 = 0 and -1 + 2 = 1: a weight of e, which stops at 1.
    "wpo": nls(0.01 * 1),
    # n = 1: 1 + 0.5 * (0 + 2) = 2 against 2.
    "ld_dpo": nls(0.1 * (2 - 2)),
    # The least noise, 0.2, draws the chosen token with h = 1.
    "sampo": nls(0.05 * (1 - 2)),
}
