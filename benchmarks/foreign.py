"""What does it cost that a loss is somebody else's? Its guard, and a group of its own, in the time of a step.

Command: python -m benchmarks.foreign MODEL [--device cpu] [--pairs 16] [--tokens 40] [--blocks 20] [--stack 1]

Steps of both kinds alternate in one process; the ratio is that of the medians and of the fastest. On a CPU the time is
the process's own, so that other work on the machine counts little. What it said is reported in results/LOG.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prefopt.config.schema import Lora, Train
from prefopt.contract.registry import register
from prefopt.data import TokenPair
from prefopt.losses import DPO, IPO
from prefopt.model.adapted import AdaptedModel
from prefopt.model.base import load_base
from prefopt.runtime.device import wait
from prefopt.train.loop import consecutive
from prefopt.train.optimizer import with_optimizer
from prefopt.train.state import Run
from prefopt.train.step import Batch, train_step


@register("foreign_dpo")
@dataclass(frozen=True)
class ForeignDPO(DPO):
    """DPO as a plugin would bring it."""


@register("foreign_ipo")
@dataclass(frozen=True)
class ForeignIPO(IPO):
    """IPO as a plugin would bring it."""


def random_pairs(vocabulary: int, count: int, tokens: int) -> list[TokenPair]:
    """Pairs of one length, so that every step costs the same."""
    source = np.random.default_rng(0)

    def ids() -> tuple[int, ...]:
        return tuple(source.integers(0, vocabulary, tokens).tolist())

    return [TokenPair(ids(), ids(), ids(), i, i, 1.0, 0.0, True, True) for i in range(count)]


def seconds_of_step(
    model: AdaptedModel, groups: Sequence[Sequence[Run]], pairs: list[TokenPair], train: Train
) -> float:
    """One optimizer step of every run, each group with a batch of its own."""
    clock = time.process_time if model.base.device.type == "cpu" else time.perf_counter
    wait(model.base.device)
    began = clock()
    for group in groups:
        batch = Batch(model, pairs, np.zeros((2, len(pairs)), dtype=np.float32), train, 0, 0)
        for chunk in consecutive(group, int(train.stack)):
            train_step(model, chunk, batch, train)
    wait(model.base.device)
    return clock() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder or a hub id")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", type=int, default=16, help="of a step")
    parser.add_argument("--tokens", type=int, default=40, help="of a prompt and of each response")
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--stack", type=int, default=1, help="adapters of a pass")
    options = parser.parse_args()
    base = load_base(options.model, dtype="float32", device=torch.device(options.device))
    model = AdaptedModel.wrap(base, Lora(), size=4)
    pairs = random_pairs(base.head.shape[0], options.pairs, options.tokens)
    train = Train(pairs_per_step=options.pairs, micro_batch=options.pairs, stack=options.stack, checkpointing=False)
    losses = [DPO(), IPO(), ForeignDPO(), ForeignIPO()]
    runs = [Run(loss.name, loss, 1e-5, slot) for slot, loss in enumerate(losses)]
    for run in runs:
        model.adapters.initialise(run.slot, 0)
        with_optimizer(run, model.adapters, train)
    compared = {
        "guarded / built in": ([[runs[2]]], [[runs[0]]]),
        "two groups / one group": ([runs[:2], runs[2:]], [runs]),
    }
    for what, sides in compared.items():
        times: list[list[float]] = [[], []]
        for block in range(options.blocks + 1):
            for side in (0, 1) if block % 2 else (1, 0):
                taken = seconds_of_step(model, sides[side], pairs, train)
                if block:  # the first one warms up
                    times[side].append(taken)
        median, fastest = (pick(times[0]) / pick(times[1]) for pick in (statistics.median, min))
        shown = f"{1e3 * statistics.median(times[0]):.1f} ms / {1e3 * statistics.median(times[1]):.1f} ms"
        print(f"{what}: {median:.3f} by medians ({shown}), {fastest:.3f} by the fastest blocks")


if __name__ == "__main__":
    main()
