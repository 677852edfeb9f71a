"""Seeds derived from what a random number is for, so that no generator state is carried from step to step.

The name of a variant is never an input: pair order, adapter initialisation, dropout and sampling noise
agree across variants at each seed, and any step can be replayed alone.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, purpose: str, *counters: int) -> int:
    """A seed in [0, 2**63) for one purpose, and where given one epoch, step or item of it.

    Args:
        seed: The user's seed.
        purpose: What the numbers are for, such as ``"pair_order"``; never the name of a variant.
        counters: Position within the purpose, such as the epoch.

    Returns:
        The first 63 bits of the SHA-256 of the arguments; the same on every platform and Python.

    Example:
        >>> derive_seed(0, "pair_order")
        6385784086751303139
        >>> derive_seed(0, "pair_order") == derive_seed(0, "sampling")
        False
    """
    text = "\x1f".join([str(int(seed)), purpose, *(str(int(counter)) for counter in counters)])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") >> 1


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A fresh CPU ``torch.Generator`` seeded with ``derive_seed`` of the same arguments."""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, purpose, *counters))


def numpy_generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A fresh numpy generator seeded with ``derive_seed`` of the same arguments.

    The bit generator is named, since numpy may change which one is the default.
    """
    return np.random.Generator(np.random.PCG64(derive_seed(seed, purpose, *counters)))
