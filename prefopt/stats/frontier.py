"""KL from samples, reward at equal KL, and aggregates over several tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from prefopt.stats.cells import ratio
from prefopt.stats.clusters import Array
from prefopt.stats.estimates import Estimate, many_two_way, two_way


class KlEstimate(NamedTuple):
    """KL(policy || reference) of samples.

    Attributes:
        per_sequence: Nats for each sampled response.
        per_token: Nats for each token.
        check: The plain estimate, mean of log pi - log pi_ref; unbiased for the same number, far noisier.
    """

    per_sequence: Estimate
    per_token: Estimate
    check: Estimate


def kl_of_samples(
    exact: ArrayLike, logratio: ArrayLike, n_tokens: ArrayLike, *, confidence: float = 0.95
) -> KlEstimate:
    """KL with intervals clustered by seed and prompt.

    Args:
        exact: (S, N) mean over a cell's samples of ``rao_blackwell_kl``, nats.
        logratio: (S, N) mean of log pi - log pi_ref of the sampled tokens, summed, nats.
        n_tokens: (S, N) mean tokens of a sample.
        confidence: Coverage of the intervals.
    """
    return KlEstimate(
        two_way(exact, confidence=confidence, scale="log"),
        ratio(exact, n_tokens, confidence=confidence),
        two_way(logratio, confidence=confidence),
    )


def rao_blackwell_kl(logp: ArrayLike, ref_logp: ArrayLike, mask: ArrayLike) -> Array:
    """Sum over a sample's positions of the exact KL between the two next-token distributions.

    Unbiased for the KL of whole responses when the sample is from the policy itself (temperature 1, no truncation of
    the distribution), never negative, and of lower variance than any function of the sampled tokens alone.

    Args:
        logp: (B, T, V) log-probabilities of the policy over the vocabulary, nats.
        ref_logp: (B, T, V) of the reference.
        mask: (B, T) positions whose token was sampled, the end token among them.

    Returns:
        (B,) nats for each sample.

    Source:
        Amini, Vieira and Cotterell 2025, arXiv:2504.10637.
    """
    p, q = np.asarray(logp, dtype=np.float64), np.asarray(ref_logp, dtype=np.float64)
    share = np.exp(p)  # where it is 0 the term is 0, and not the NaN that 0 times minus infinity gives
    terms = np.where(share > 0, share * (np.where(share > 0, p, 0.0) - np.where(share > 0, q, 0.0)), 0.0)
    return np.asarray((terms.sum(-1) * np.asarray(mask)).sum(-1))


@dataclass(frozen=True)
class MatchedKl:
    """Difference of rewards at one KL that both variants reach.

    Attributes:
        at: The KL, nats for each sequence: the largest that every seed of both variants spans.
        difference: Reward of a minus reward of b there.
    """

    at: float
    difference: Estimate


def reward_at_kl(kl: ArrayLike, reward: ArrayLike, at: float) -> Array:
    """Rewards read off each seed's curve at one KL, linear in sqrt(KL) between neighbouring points.

    Gao et al. 2022 (arXiv:2210.10760) find rewards close to linear in sqrt(KL) while they still rise, so that chords
    are fair there; where the curve bends down they read a little low.

    Args:
        kl: (P, S) mean KL of P points (the reference first, at 0; then checkpoints or strengths), nats per sequence.
        reward: (P, S, N) mean reward of each point on each prompt.
        at: Where to read, nats.

    Returns:
        (S, N) rewards, NaN for seeds whose points do not reach ``at``.
    """
    distance = np.sqrt(np.maximum(np.asarray(kl, dtype=np.float64), 0.0))
    reward, goal = np.asarray(reward, dtype=np.float64), np.sqrt(at)
    out = np.full(reward.shape[1:], np.nan)
    for s in range(reward.shape[1]):
        order = np.argsort(distance[:, s], kind="stable")
        x = distance[order, s]
        if not x[0] <= goal <= x[-1] * (1 + 1e-12):
            continue
        right = min(int(np.searchsorted(x, goal)), len(x) - 1)
        left = max(right - 1, 0)
        gap = x[right] - x[left]
        share = (goal - x[left]) / gap if gap > 0 else 1.0
        out[s] = (1 - share) * reward[order[left], s] + share * reward[order[right], s]
    return out


def reward_at_matched_kl(
    kl_a: ArrayLike,
    reward_a: ArrayLike,
    kl_b: ArrayLike,
    reward_b: ArrayLike,
    *,
    confidence: float = 0.95,
) -> MatchedKl | None:
    """Who has more reward at equal distance from the reference, on the range that both reach.

    Args:
        kl_a: (P, S) as in ``reward_at_kl``, of the first variant.
        reward_a: (P, S, N).
        kl_b: (Q, S) of the second, the same seeds in the same order.
        reward_b: (Q, S, N), the same prompts.
        confidence: Coverage of the interval.

    Returns:
        The difference at the largest common KL, or None where there is none above 0.
    """
    reach = [np.nanmin(np.nanmax(np.asarray(kl, dtype=np.float64), axis=0)) for kl in (kl_a, kl_b)]
    at = float(min(reach))
    if not at > 0:
        return None
    difference = reward_at_kl(kl_a, reward_a, at) - reward_at_kl(kl_b, reward_b, at)
    if (~np.isnan(difference)).sum() < 2:
        return None
    return MatchedKl(at, two_way(difference, confidence=confidence))


def best_of_n_kl(n: int, top: ArrayLike) -> Array:
    """KL(best of n || reference) where the best outcome has a probability that is not small, nats.

    With e that probability: (1-e)^n [log n + (n-1) log(1-e) - (n-1)/n] + (1-(1-e)^n) log((1-(1-e)^n) / e), which is the
    usual log n - (n-1)/n as e vanishes, and below it elsewhere.

    Args:
        n: Samples of which the best is taken.
        top: (N,) log-probability of the best outcome of each prompt under the reference, nats.

    Returns:
        (N,) nats.

    Source:
        Beirami et al. 2024, arXiv:2401.01879.

    Example:
        >>> import math
        >>> round(float(best_of_n_kl(8, [math.log(0.2)])[0]), 3)
        1.127
    """
    e = np.clip(np.exp(np.asarray(top, dtype=np.float64)), 1e-300, 1 - 1e-12)
    missed = np.exp(n * np.log1p(-e))  # none of n is the best outcome
    hit = -np.expm1(n * np.log1p(-e))
    rest = missed * (np.log(n) + (n - 1) * np.log1p(-e) - (n - 1) / n)
    return np.asarray(rest + hit * np.log(hit / e))


def interquartile_mean(values: ArrayLike) -> Array:
    """Mean of the middle half along the last axis, with fractional weights at the quartiles.

    Args:
        values: (..., M) finite numbers, such as one score for each seed and task.

    Returns:
        (...,) means.

    Source:
        Agarwal et al. 2021, arXiv:2108.13264; fractional weights make it exact for any M.

    Example:
        >>> float(interquartile_mean([0.0, 1.0, 2.0, 100.0]))
        1.5
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=-1)
    m = ordered.shape[-1]
    edges = np.arange(m + 1)
    weight = np.maximum(np.minimum(edges[1:], 0.75 * m) - np.maximum(edges[:-1], 0.25 * m), 0.0)
    return np.asarray(ordered @ weight / weight.sum())


def iqm(scores: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> tuple[float, ...]:
    """Interquartile mean over tasks and seeds with a stratified bootstrap interval (seeds resampled in each task).

    Args:
        scores: (T, S) one score for each task and seed.
        confidence: Coverage of the percentile interval.
        resamples: Bootstrap draws.
        seed: Of the draws.

    Returns:
        Value, low and high.
    """
    scores = np.asarray(scores, dtype=np.float64)
    tasks, seeds = scores.shape
    resampled = np.random.default_rng(seed).integers(seeds, size=(resamples, tasks, seeds))
    spread = interquartile_mean(scores[np.arange(tasks)[:, None], resampled].reshape(resamples, -1))
    low, high = np.quantile(spread, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(interquartile_mean(scores.ravel())), float(low), float(high)


def mean_differences(scores: ArrayLike, *, confidence: float = 0.95) -> dict[tuple[int, int], Estimate]:
    """Paired differences of every two of V variants, each two-way clustered.

    Args:
        scores: (V, S, N) cells, the same seeds and prompts for all.
        confidence: Coverage of the intervals.

    Returns:
        Estimates of row a minus row b for every a < b.
    """
    scores = np.asarray(scores, dtype=np.float64)
    first, second = np.triu_indices(len(scores), 1)
    if not len(first):
        return {}
    estimates = many_two_way(scores[first] - scores[second], confidence=confidence)
    return {(int(a), int(b)): e for a, b, e in zip(first, second, estimates, strict=True)}
