"""Splits pairs by prompt, checks that no prompt is on both sides, and fixes the order of training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from prefopt.data.types import LoadedPairs, Pair, Text
from prefopt.data.validate import prompt_key
from prefopt.errors import DataError, UsageError
from prefopt.runtime.seeding import derive_seed, numpy_generator


def split_by_prompt(
    pairs: Sequence[Pair], *, heldout: float | int, seed: int
) -> tuple[tuple[Pair, ...], tuple[Pair, ...]]:
    """Training and held-out pairs with no prompt in common.

    Prompts are ranked by a hash of the seed and their own text, so that adding rows moves no other prompt
    from one side to the other at a given share.

    Args:
        pairs: Pairs of one source.
        heldout: Share of the prompts if a float in (0, 1), else their number.
        seed: Decides which prompts; has nothing to do with the seeds of runs.

    Returns:
        (train, heldout), each in the order given.

    Raises:
        UsageError: If ``heldout`` leaves one side without a prompt.
    """
    keys = {pair.prompt_id: prompt_key(pair.prompt) for pair in pairs}
    ranked = sorted(keys, key=lambda prompt_id: derive_seed(seed, f"heldout {keys[prompt_id]}"))
    count = math.ceil(heldout * len(ranked)) if isinstance(heldout, float) else heldout
    if not 0 < count < len(ranked):
        raise UsageError(
            f"heldout = {heldout} of {len(ranked)} different prompts would hold out {count}; "
            "both sides need at least one: give a share between 0 and 1, or a smaller number"
        )
    out = set(ranked[:count])
    return (
        tuple(pair for pair in pairs if pair.prompt_id not in out),
        tuple(pair for pair in pairs if pair.prompt_id in out),
    )


def split_groups(prompts: Sequence[Text], *, heldout: float, seed: int) -> tuple[list[int], list[int]]:
    """Places of training and held-out prompts, none of which is the same on both sides.

    Raises:
        UsageError: If that leaves one side without a prompt.
    """
    keys = [prompt_key(prompt) for prompt in prompts]
    ranked = sorted(set(keys), key=lambda key: derive_seed(seed, f"heldout {key}"))
    count = math.ceil(heldout * len(ranked))
    if not 0 < count < len(ranked):
        raise UsageError(f"{len(ranked)} different prompts cannot be parted into training and held-out ones; give more")
    out = set(ranked[:count])
    return [i for i, key in enumerate(keys) if key not in out], [i for i, key in enumerate(keys) if key in out]


def check_no_leak(train: LoadedPairs, heldout: LoadedPairs) -> None:
    """Refuse two sources that share a prompt (after NFC and collapsing white space).

    Raises:
        DataError: Naming the first shared prompt's line in both.
    """
    first: dict[str, int] = {}
    for pair in train.pairs:
        first.setdefault(prompt_key(pair.prompt), pair.row)
    shared = [(pair.row, first[key]) for pair in heldout.pairs if (key := prompt_key(pair.prompt)) in first]
    if shared:
        row, train_row = shared[0]
        raise DataError(
            f'error[DATA019] {heldout.source}:{row} field "prompt": also in the training data, '
            f"{train.source}:{train_row}; {len(shared)} held-out rows leak. Fix: remove these prompts from one of "
            "the two, or give one file and let it be split by prompt. Nothing was written."
        )


def require_enough(n_pairs: int, pairs_per_step: int) -> None:
    """Refuse to train on fewer pairs than one step takes.

    Raises:
        DataError: With both numbers.
    """
    if n_pairs < pairs_per_step:
        raise DataError(
            f"error[DATA032] {n_pairs} training pairs, and one step takes {pairs_per_step}. Fix: give at least "
            f"{pairs_per_step} pairs, or lower train.pairs_per_step. Nothing was written."
        )


def pair_order(n_pairs: int, *, seed: int, steps: int, pairs_per_step: int) -> npt.NDArray[np.int64]:
    """Indices of the pairs of every step, the same for every variant of a seed.

    Each epoch is a permutation of its own, and a step may span two. Any part can be made alone.

    Returns:
        (steps, pairs_per_step) int64 in [0, n_pairs).

    Raises:
        DataError: If there are fewer pairs than one step takes.
    """
    require_enough(n_pairs, pairs_per_step)
    epochs = math.ceil(steps * pairs_per_step / n_pairs)
    order = [numpy_generator(seed, "pair_order", epoch).permutation(n_pairs) for epoch in range(epochs)]
    flat = np.concatenate(order) if order else np.zeros(0, dtype=np.int64)
    return flat[: steps * pairs_per_step].astype(np.int64).reshape(steps, pairs_per_step)
