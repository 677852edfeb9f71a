"""The optimizer of one run, and its learning rate over the steps.

Shapes: P parameters of an adapter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prefopt.config.schema import Train
from prefopt.errors import MachineError
from prefopt.model.adapted import one
from prefopt.model.adapters import AdapterBank
from prefopt.train.state import Run


def schedule(config: Train, step: int) -> float:
    """The multiple of the peak learning rate at ``step``, counted from 0."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    if config.schedule == "linear":
        return 1 - done
    return 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1.0


def make_optimizer(kind: str, values: Tensor, gradient: Tensor, config: Train) -> torch.optim.Optimizer:
    """AdamW on one adapter's flat row (1, P).

    Raises:
        MachineError: If bitsandbytes cannot provide the 8-bit kind here.
    """
    parameter = torch.nn.Parameter(values)
    parameter.grad = gradient  # a view of the bank's row: backward passes fill it, and nothing is copied
    if kind == "adamw":
        return torch.optim.AdamW([parameter], lr=0.0, weight_decay=config.weight_decay, fused=True)
    if kind == "paged_adamw8bit" and values.device.type == "cpu":
        raise MachineError("train.optimizer paged_adamw8bit pages GPU memory: on a CPU take adamw8bit or adamw")
    try:
        import bitsandbytes

        cls = bitsandbytes.optim.AdamW8bit if kind == "adamw8bit" else bitsandbytes.optim.PagedAdamW8bit
        optimizer: torch.optim.Optimizer = cls([parameter], lr=0.0, weight_decay=config.weight_decay)
    except (ImportError, RuntimeError, NotImplementedError, AttributeError) as problem:
        raise MachineError(f"train.optimizer {kind}: bitsandbytes has no kernel for it here ({problem})") from None
    return optimizer


def with_optimizer(run: Run, bank: AdapterBank, config: Train) -> torch.optim.Optimizer:
    """The run's optimizer; a run that has none is given one for its row of the bank."""
    if run.state.optimizer is None:
        rows = one(run.slot)
        run.state.optimizer = make_optimizer(config.optimizer, bank.params[rows], bank.grads[rows], config)
    return run.state.optimizer
