"""A Bradley-Terry reward model: an adapter and a scalar head, trained on rankings, K responses of a prompt in one pass.

Shapes: N responses of a batch, M prompts of it, d hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor

from prefopt.config.schema import Train
from prefopt.data.order import pair_order
from prefopt.data.ranked import Ranking
from prefopt.errors import DataError, MachineError
from prefopt.model.adapted import AdaptedModel, one
from prefopt.model.packing import Row
from prefopt.model.scalar import pad_id, scalars, scored_ids, shared_row
from prefopt.runtime.seeding import generator
from prefopt.train.optimizer import schedule

BINS = 10  # of the reliability table
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Rankings as rows: the responses of each prompt after what their texts share."""

    rankings: Sequence[Ranking]
    rows: Sequence[Row]

    @classmethod
    def of(cls, model: AdaptedModel, rankings: Sequence[Ranking], *, max_length: int) -> Encoded:
        """Tokenise as the saved model will be asked.

        Raises:
            DataError: If a text cannot be tokenised, or has fewer than two tokens.
        """
        tokenizer = model.base.tokenizer
        prompts = [ranking.prompt for ranking in rankings for _ in ranking.responses]
        ids = iter(scored_ids(prompts, [text for ranking in rankings for text in ranking.responses], tokenizer))
        pad = pad_id(tokenizer)
        rows = [shared_row([next(ids) for _ in r.responses], pad=pad, window=max_length) for r in rankings]
        return cls(rankings, rows)


def kwise_loss(rewards: Tensor, rankings: Sequence[Ranking]) -> Tensor:
    """() mean over prompts of the mean over their pairs of -log sigmoid(r_better - r_worse).

    Args:
        rewards: (N,) of all responses, prompt after prompt.
        rankings: The M prompts.

    Source:
        Ouyang et al. 2022, arXiv:2203.02155, Eq. 1: all pairs of a prompt are one element of the batch.
    """
    start, losses = 0, []
    for ranking in rankings:
        better, worse = zip(*ranking.pairs, strict=True)
        own = rewards[start : start + len(ranking.responses)]
        losses.append(-F.logsigmoid(own[list(better)] - own[list(worse)]).mean())
        start += len(ranking.responses)
    return torch.stack(losses).mean()


def train_reward(
    model: AdaptedModel,
    encoded: Encoded,
    config: Train,
    *,
    seed: int,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> Tensor:
    """Train adapter 0 and a head; the (d,) head.

    A step takes ``pairs_per_step`` prompts. The head starts at random with variance 1 / (d + 1), as in
    arXiv:2009.01325.

    Args:
        model: A base of the packed path, with one adapter.
        encoded: At least as many prompts as a step takes.
        config: Steps, learning rate and its schedule, weight decay, clipping.
        seed: Of the adapter, the head and the order.
        progress: Called with the step and its loss.

    Raises:
        MachineError: If the model has no packed path, or the loss is not finite.
        DataError: If there are too few prompts.
    """
    base, bank = model.base, model.adapters
    if not base.packed:
        raise MachineError(f"model {base.name}: a reward model is trained on packed rows, and {base.why_plain}")
    if len(encoded.rows) < config.pairs_per_step:
        raise DataError(
            f"{len(encoded.rows)} prompts to train on, and one step takes {config.pairs_per_step}: give more, or lower "
            "train.pairs_per_step"
        )
    bank.initialise(0, seed)
    width = base.head.shape[1]
    start = torch.randn(width, generator=generator(seed, "reward_head")) / (width + 1) ** 0.5
    head = start.to(base.device).requires_grad_()
    adapter = torch.nn.Parameter(bank.params)
    adapter.grad = bank.grads
    optimizer = torch.optim.AdamW([adapter, head], lr=config.learning_rate, weight_decay=config.weight_decay)
    order = pair_order(len(encoded.rows), seed=seed, steps=config.steps, pairs_per_step=config.pairs_per_step)
    for step in range(config.steps):
        which = order[step].tolist()
        bank.grads.zero_()
        head.grad = None
        with model.train(one(0)):
            rewards = scalars(model, [encoded.rows[i] for i in which], head)
            loss = kwise_loss(rewards, [encoded.rankings[i] for i in which])
            loss.backward()  # type: ignore[no-untyped-call]
        if not bool(loss.isfinite()):
            raise MachineError(f"the reward model's loss is not finite at step {step + 1}; lower train.learning_rate")
        torch.nn.utils.clip_grad_norm_([adapter, head], config.max_grad_norm)
        optimizer.param_groups[0]["lr"] = config.learning_rate * schedule(config, step)
        optimizer.step()
        progress(step + 1, float(loss.detach()))
    trained: Tensor = head.detach()
    return trained


@torch.no_grad()
def rewards_of(model: AdaptedModel, encoded: Encoded, head: Tensor) -> list[Floats]:
    """The rewards of each prompt's responses under adapter 0."""
    with model.use(one(0)):
        return [scalars(model, [row], head).double().cpu().numpy() for row in encoded.rows]


def reward_report(rankings: Sequence[Ranking], rewards: Sequence[Floats]) -> dict[str, Any]:
    """How good rewards are on rankings that they were not trained on.

    Returns:
        accuracy: Share of pairs in the right order, ties half.
        log_loss: Mean of -log P(better is preferred), nats; 0.693 is that of knowing nothing.
        calibration_error: Mean over pairs of |confidence - share right| within ten bins of confidence.
        reliability: A row for each bin: pairs, mean confidence, share right.
        gold_agreement: Share of all pairs of responses in gold's order, and gold_spearman the mean rank correlation
            within a prompt; None where there is no gold.
    """
    gaps = np.array([r[i] - r[j] for ranking, r in zip(rankings, rewards, strict=True) for i, j in ranking.pairs])
    right = (gaps > 0) + 0.5 * (gaps == 0)
    confidence = 1 / (1 + np.exp(-np.abs(gaps)))
    edges = np.minimum(((confidence - 0.5) * 2 * BINS).astype(int), BINS - 1)
    rows = [
        {
            "pairs": int((edges == b).sum()),
            "confidence": float(confidence[edges == b].mean()),
            "right": float(right[edges == b].mean()),
        }
        for b in range(BINS)
        if (edges == b).any()
    ]
    error = sum(row["pairs"] * abs(row["confidence"] - row["right"]) for row in rows) / len(gaps)
    return {
        "prompts": len(rankings),
        "pairs": len(gaps),
        "accuracy": float(right.mean()),
        "log_loss": float(np.logaddexp(0, -gaps).mean()),
        "calibration_error": float(error),
        "reliability": rows,
        **_gold(rankings, rewards),
    }


def _gold(rankings: Sequence[Ranking], rewards: Sequence[Floats]) -> dict[str, float | None]:
    agree, ranks = [], []
    for ranking, own in zip(rankings, rewards, strict=True):
        if ranking.golds is None:
            continue
        golds = np.array(ranking.golds)
        upper = np.triu_indices(len(golds), 1)
        apart, mine = (golds[:, None] - golds)[upper], (own[:, None] - own)[upper]
        agree += (np.sign(apart) == np.sign(mine))[apart != 0].tolist()
        if len(golds) > 2 and np.ptp(golds) and np.ptp(own):
            ranks.append(float(spearmanr(golds, own).statistic))
    return {
        "gold_agreement": float(np.mean(agree)) if agree else None,
        "gold_spearman": float(np.mean(ranks)) if ranks else None,
    }
