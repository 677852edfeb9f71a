"""Simulated comparisons whose truth is known, many at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]


def verdicts(
    rng: np.random.Generator,
    *,
    repetitions: int,
    seeds: int,
    prompts: int,
    seed_sd: float,
    prompt_sd: float,
    win_rate: float = 0.5,
) -> Array:
    """(R, S, N) wins (1) and losses (0) of one variant over another.

    A cell's chance of a win is ``win_rate`` plus a normal effect of the seed and one of the prompt, cut off at 0 and 1.
    The cut is symmetric at 1/2, so that the true win rate is exact there; elsewhere keep the effects small.

    Args:
        rng: Source of randomness.
        repetitions: R.
        seeds: S.
        prompts: N.
        seed_sd: Standard deviation of the seed's effect on the win rate.
        prompt_sd: Standard deviation of the prompt's effect.
        win_rate: The truth.
    """
    of_seed = seed_sd * rng.standard_normal((repetitions, seeds, 1))
    of_prompt = prompt_sd * rng.standard_normal((repetitions, 1, prompts))
    chance = win_rate + of_seed + of_prompt  # below 0 never wins, above 1 always: the cut
    return (rng.random((repetitions, seeds, prompts)) < chance).astype(np.float64)


def best_of_mixture(
    rng: np.random.Generator, *, repetitions: int, seeds: int, prompts: int, n: int, share: float, spread: float
) -> tuple[Array, float]:
    """Wins of a policy that answers with the best of ``n`` reference samples in a share of cases, else with one.

    For a continuous reward its true win rate is 1/2 + share * (n / (n + 1) - 1/2).

    Args:
        rng: Source of randomness.
        repetitions: R.
        seeds: S.
        prompts: N.
        n: Samples to choose from.
        share: Mean share of best-of-n answers.
        spread: How much the share varies over seeds, and over prompts: uniform, half-width.

    Returns:
        (R, S, N) wins, and the true win rate.
    """
    mixing = share + spread * (2 * rng.random((repetitions, seeds, 1)) - 1)
    mixing = mixing + spread * (2 * rng.random((repetitions, 1, prompts)) - 1)
    shape = (repetitions, seeds, prompts)
    # The best of n uniforms is the n-th root of a uniform; only the order of rewards matters.
    own = rng.random(shape) ** np.where(rng.random(shape) < mixing, 1 / n, 1.0)
    return (own > rng.random(shape)).astype(np.float64), 0.5 + share * (n / (n + 1) - 0.5)


def variants(
    rng: np.random.Generator,
    *,
    repetitions: int,
    count: int,
    seeds: int,
    prompts: int,
    seed_sd: float,
    taste_sd: float,
) -> Array:
    """(R, K, S, N) rewards of K variants that do not differ on average over seeds and prompts.

    Each is a run's effect (``seed_sd``), a variant's own effect on a prompt (``taste_sd``), and noise of deviation 1.
    """
    run = seed_sd * rng.standard_normal((repetitions, count, seeds, 1))
    taste = taste_sd * rng.standard_normal((repetitions, count, 1, prompts))
    return run + taste + rng.standard_normal((repetitions, count, seeds, prompts))


def lengths_and_wins(
    rng: np.random.Generator, *, seeds: int, prompts: int, longer: float, taste: float, gain: float
) -> tuple[Array, Array]:
    """Wins under a judge with a taste for length, and length differences in tokens.

    logit P(win) = gain + taste * tanh(d / 100) + an effect of the seed, with d normal around ``longer``, sd 100.

    Args:
        rng: Source of randomness.
        seeds: S.
        prompts: N.
        longer: Mean extra tokens of the variant.
        taste: The judge's bias.
        gain: Log-odds at equal length.

    Returns:
        (1, S, N) wins, (1, S, N) tokens.
    """
    delta = rng.normal(longer, 100.0, (1, seeds, prompts))
    logit = gain + taste * np.tanh(delta / 100) + 0.1 * rng.standard_normal((1, seeds, 1))
    wins = rng.random(delta.shape) < 1 / (1 + np.exp(-logit))
    return wins.astype(np.float64), delta


def divergences(
    rng: np.random.Generator, *, repetitions: int, seeds: int, prompts: int, seed_sd: float, mean: float
) -> Array:
    """(R, S, N) positive values of a given mean, such as nats of divergence.

    Effects of seed and prompt multiply: some runs lie many times as far from the reference as others.
    """
    sizes = ((repetitions, seeds, 1), (repetitions, 1, prompts))
    effects = [np.exp(rng.normal(0, sd, size) - sd * sd / 2) for sd, size in zip((seed_sd, 0.4), sizes, strict=True)]
    return np.asarray(mean * effects[0] * effects[1] * rng.gamma(4.0, 0.25, (repetitions, seeds, prompts)))


def rare_events(
    rng: np.random.Generator, *, repetitions: int, seeds: int, prompts: int, seed_sd: float
) -> tuple[Array, float]:
    """(R, S, N) events (1) such as empty answers, and their true share: a few in a hundred, logistic-normal effects."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    truth = float((special.expit(-3.5 + np.hypot(seed_sd, 1.0) * nodes) * weights).sum() / weights.sum())
    odds = -3.5 + rng.normal(0, seed_sd, (repetitions, seeds, 1)) + rng.normal(0, 1, (repetitions, 1, prompts))
    return (rng.random((repetitions, seeds, prompts)) < special.expit(odds)).astype(np.float64), truth


class TinyLanguage:
    """A policy and a reference over sequences of T tokens from V, small enough to enumerate.

    Each next-token distribution depends on the token before, so that the KL of a sequence is not T times one number.
    """

    def __init__(self, rng: np.random.Generator, *, vocabulary: int = 4, length: int = 5) -> None:
        self.length, self.vocabulary = length, vocabulary
        logits = rng.standard_normal((2, vocabulary + 1, vocabulary))  # row V: the start
        logits[1] = 0.5 * logits[0] + logits[1]
        self.policy, self.reference = (table - np.logaddexp.reduce(table, 1, keepdims=True) for table in logits)

    def exact_kl(self) -> float:
        """KL(policy || reference) of whole sequences, by enumeration of all V^T, nats."""
        grid = np.indices((self.vocabulary,) * self.length).reshape(self.length, -1).T
        log_p, log_q = self.score(grid)
        return float(np.sum(np.exp(log_p) * (log_p - log_q)))

    def score(self, tokens: NDArray[np.int64]) -> tuple[Array, Array]:
        """(B,) log-probabilities of (B, T) sequences under policy and reference."""
        before = self.before(tokens)
        return self.policy[before, tokens].sum(1), self.reference[before, tokens].sum(1)

    def before(self, tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """(B, T) the token before each position, V at the start."""
        start = np.full((len(tokens), 1), self.vocabulary, dtype=np.int64)
        return np.concatenate([start, tokens[:, :-1]], axis=1)

    def sample(self, rng: np.random.Generator, count: int, *, temperature: float = 1.0) -> NDArray[np.int64]:
        """(B, T) sequences from the policy, its logits divided by ``temperature``."""
        sharp = self.policy / temperature
        steps = np.exp(sharp - np.logaddexp.reduce(sharp, 1, keepdims=True)).cumsum(1)
        tokens = np.empty((count, self.length), dtype=np.int64)
        last = np.full(count, self.vocabulary)
        for t in range(self.length):
            below = steps[last] < rng.random((count, 1))
            last = np.minimum(below.sum(1), self.vocabulary - 1)
            tokens[:, t] = last
        return tokens
