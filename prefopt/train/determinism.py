"""Whether this machine computes the same bits twice, which training a few steps twice shows before any run."""

from __future__ import annotations

import dataclasses

import torch

from prefopt.config.schema import Train
from prefopt.contract.loss import Loss
from prefopt.model.adapted import AdaptedModel
from prefopt.runtime.progress import Silent
from prefopt.train.feed import FixedOrder
from prefopt.train.loop import train_group
from prefopt.train.pairset import PairSet
from prefopt.train.state import Run

STEPS = 2
_HELDOUT = 4
PROMISE = {
    "cpu": "the same command on the same machine, thread count and versions gives the same bytes, interrupted or not",
    "cuda": "the same command on the same device, driver and versions gives the same bytes, as far as a repetition of "
    "a few steps can show",
    "none": "rows, their order, initial adapters and prompts are the same again; the last digits of results are not",
}


def settle(device: torch.device) -> None:
    """Choose kernels that give the same bits again, as far as that costs no time and refuses no operation."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def probe(model: AdaptedModel, loss: Loss, train: PairSet, heldout: PairSet, config: Train) -> dict[str, str]:
    """Train one adapter for two steps, twice, and return what the manifest says about it.

    Args:
        model: The base and its adapters, of which the first is used, and left at zero.
        loss: The loss to train on.
        train: Training pairs.
        heldout: Held-out pairs; a few are scored, too.
        config: The shared loop's settings, made definite by ``fit``.
    """
    bank = model.adapters
    few = config.model_copy(update={"steps": STEPS, "eval_every": STEPS, "log_every": 1})
    count = min(_HELDOUT, len(heldout.pairs))
    pairs, (chosen, rejected) = heldout.take(range(count))
    few_heldout = PairSet(tuple(pairs), dataclasses.replace(heldout.reference, chosen=chosen, rejected=rejected))
    feed = FixedOrder.of(train, few, seed=0)
    seen = []
    for _ in range(2):
        bank.initialise(0, seed=0)
        run = Run("probe", loss, config.learning_rate, 0)
        train_group(model, [run], feed=feed, heldout=few_heldout, config=few, seed=0, progress=Silent())
        seen.append((bank.hash(0), repr(run.history)))
    bank.params[0].zero_()
    same = seen[0] == seen[1]
    return {
        "outcome": "verified" if same else "unverified",
        "by": f"{STEPS} steps trained twice",
        "promise": PROMISE[model.base.device.type if same else "none"],
    }
