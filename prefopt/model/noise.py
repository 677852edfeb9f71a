"""Random numbers that are a function of where they are used: of a key and a counter, and of nothing before them."""

from __future__ import annotations

from torch import Tensor


def squares(counters: Tensor, keys: Tensor) -> Tensor:
    """The counter-based random numbers of arXiv:2004.06278 (Squares): 32 random bits for each counter and key.

    Args:
        counters: int64, broadcast against ``keys``.
        keys: int64, odd, with irregular digits.

    Returns:
        int64 in [0, 2**32).
    """
    start = counters * keys
    shifted = start + keys
    x = start
    for added in (start, shifted, start):
        x = x * x
        x += added
        high = (x >> 32) & 0xFFFFFFFF  # int64 shifts copy the sign
        x = (x << 32).bitwise_or_(high)
    x = x * x
    x += shifted
    return (x >> 32) & 0xFFFFFFFF


def exponential(keys: Tensor, counters: Tensor) -> Tensor:
    """(n, V) float32 standard exponential noise, always positive, from n slots' keys (n, 1) and V counters."""
    # Half a step above 0, so never 0; of the smallest values, which decide what is drawn, no digit is lost.
    uniform = (squares(counters, keys).float() + 0.5) * 2.0**-32
    return uniform.neg_().log1p_().neg_()
