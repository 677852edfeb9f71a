"""How varied a policy's samples are: distinct n-grams, and how well the text compresses."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

DIVERSITY_TOKENS = 2000  # distinct-n falls with length, so it is taken on as many tokens for every policy


def diversity(tokens: Sequence[Sequence[int]], texts: Sequence[str]) -> dict[str, float]:
    """Distinct unigrams and bigrams over a fixed number of tokens, and the factor by which the text compresses."""
    distinct = {f"distinct{n}": distinct_n(tokens, n, budget=DIVERSITY_TOKENS) for n in (1, 2)}
    return {**distinct, "compression": compression_ratio(texts)}


def distinct_n(token_lists: Sequence[Sequence[int]], n: int, *, budget: int) -> float:
    """Distinct n-grams over all n-grams within the first ``budget`` tokens.

    The share falls with the amount of text whatever its quality, so variants are compared on one budget, at most the
    shortest variant's total. N-grams do not cross from one response into the next.

    Args:
        token_lists: Responses as token ids, in an order that is the same for every variant.
        n: Length of the n-grams, >= 1.
        budget: Tokens that count.

    Returns:
        A share in (0, 1]; 0 where there is no n-gram.
    """
    seen: set[tuple[int, ...]] = set()
    total, left = 0, budget
    for tokens in token_lists:
        part = list(tokens[:left])
        left -= len(part)
        grams = list(zip(*(part[k:] for k in range(n)), strict=False))
        seen.update(grams)
        total += len(grams)
        if left <= 0:
            break
    return len(seen) / total if total else 0.0


def compression_ratio(texts: Sequence[str]) -> float:
    """Bytes over compressed bytes of all texts together; larger is more repetitive.

    Depends on the amount of text as well: compare it on equal numbers of responses, relative to the reference.

    Source:
        Shaib et al. 2024, arXiv:2403.00553 (compression ratio as the one diversity score to report).
    """
    raw = "\n".join(texts).encode("utf-8", "surrogatepass")
    return len(raw) / len(zlib.compress(raw, 9)) if raw else 1.0
