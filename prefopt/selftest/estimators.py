"""Level 0, second part: ratings, length control, divergence and judging against independent answers."""

from __future__ import annotations

import numpy as np
from scipy import optimize, special

from prefopt import stats
from prefopt.selftest import simulate
from prefopt.selftest.control import Control

Array = simulate.Array


def ratings(rng: np.random.Generator) -> list[Control]:
    """Bradley-Terry ratings: recovery, intervals, an independent fit, and data that plain likelihood cannot fit."""
    repetitions = 100
    hits = [_ratings_covered(rng) for _ in range(repetitions)]
    wins = np.array([[0, 30, 12, 8.5], [20, 0, 22, 9], [14, 18, 0, 30], [11.5, 9, 10, 0]])
    separable = stats.fit_bradley_terry(np.array([[0.0, 50.0], [0.0, 0.0]]))
    order = np.array([2, 0, 3, 1])
    relabelled = stats.fit_bradley_terry(wins[np.ix_(order, order)])
    return [
        Control(
            "ratings/coverage",
            "How often does the 95 % interval of a rating contain the true one?",
            float(np.mean(hits)),
            0.92,
            0.99,
            f"{repetitions} tournaments of 4 variants, 5 seeds, 100 prompts; 60 refits of each kind",
        ),
        Control(
            "ratings/oracle",
            "Largest distance of ratings from an independent maximum-likelihood fit, log-odds",
            float(np.abs(stats.fit_bradley_terry(wins) - _likelihood_ratings(wins)).max()),
            0.0,
            0.01,
            "scipy's optimiser on the plain likelihood; the prior accounts for the rest",
        ),
        Control(
            "ratings/separable",
            "A variant that won 50 of 50: distance of the two ratings, log-odds",
            float(separable[0] - separable[1]),
            2.0,
            20.0,
            "finite and not 0, where plain likelihood has no answer",
        ),
        Control(
            "ratings/order",
            "Does the order in which variants are listed change a rating?",
            float(np.abs(relabelled - stats.fit_bradley_terry(wins)[order]).max()),
            0.0,
            1e-6,
        ),
    ]


def _ratings_covered(rng: np.random.Generator) -> Array:
    """Which of three ratings, beside the anchor's, lie within their interval in one simulated tournament."""
    truth = np.array([0.0, 0.2, 0.5, -0.3])
    elo = stats.ELO_PER_LOGIT * (truth - truth[0])
    a, b = np.triu_indices(4, 1)
    chance = special.expit(truth[a] - truth[b])[:, None, None]
    y = (rng.random((len(a), 5, 100)) < chance).astype(np.float64)
    fitted = stats.bradley_terry(y, a, b, ("a", "b", "c", "d"), anchor="a", resamples=60, seed=int(rng.integers(2**31)))
    return np.asarray(((fitted.low <= elo) & (elo <= fitted.high))[1:])


def _likelihood_ratings(wins: Array) -> Array:
    """(K,) maximum-likelihood ratings of mean 0 by a general optimiser."""

    def loss(theta: Array) -> float:
        return float(-(wins * -np.logaddexp(0, theta[None, :] - theta[:, None])).sum() + theta.sum() ** 2)

    optimum = optimize.minimize(loss, np.zeros(len(wins)), method="BFGS", options={"gtol": 1e-8})
    return np.asarray(optimum.x - optimum.x.mean())


def length_control(rng: np.random.Generator) -> list[Control]:
    """A judge who likes length, and a variant that is longer and not better."""
    raw, controlled, hits, repetitions = [], [], [], 200
    for _ in range(repetitions):
        y, delta = simulate.lengths_and_wins(rng, seeds=5, prompts=200, longer=60.0, taste=1.0, gain=0.0)
        fitted = stats.length_controlled(y, delta, resamples=200, seed=int(rng.integers(2**31)))[0]
        raw.append(fitted.raw)
        controlled.append(fitted.win_rate.value)
        hits.append(fitted.win_rate.low <= 0.5 <= fitted.win_rate.high)
    y, delta = simulate.lengths_and_wins(rng, seeds=5, prompts=200, longer=60.0, taste=1.0, gain=0.4)
    ours = stats.length_controlled(y, delta, resamples=10)[0].win_rate.value
    detail = f"{repetitions} comparisons of 5 seeds and 200 prompts, 60 tokens longer, bias of 1 in log-odds"
    return [
        Control("length/raw-is-biased", "Raw win rate of a longer variant that is no better", float(np.mean(raw)),
                0.55, 0.70, detail),
        Control("length/controlled", "Its length-controlled win rate (should be 50 %)", float(np.mean(controlled)),
                0.49, 0.51, detail),
        Control("length/coverage", "How often does the length-controlled 95 % interval contain 50 %?",
                float(np.mean(hits)), 0.91, 0.99, detail),
        Control("length/oracle", "Distance from an independent logistic fit, win rate",
                abs(ours - _likelihood_length(y, delta)), 0.0, 0.001, "scipy's optimiser, no prior"),
    ]  # fmt: skip


def _likelihood_length(y: Array, delta: Array) -> float:
    """Win rate at equal length from a plain two-parameter logistic regression by a general optimiser."""
    x = np.tanh(delta / delta.std(ddof=1))

    def loss(beta: Array) -> float:
        z = beta[0] + beta[1] * x
        return float((np.logaddexp(0, z) - y * z).sum())

    return float(special.expit(optimize.minimize(loss, np.zeros(2), method="BFGS").x[0]))


def divergence(rng: np.random.Generator) -> list[Control]:
    """KL estimators against the enumeration of every sequence."""
    world, count = simulate.TinyLanguage(rng), 20_000
    truth = world.exact_kl()

    def estimates(temperature: float) -> tuple[Array, Array]:
        tokens = world.sample(rng, count, temperature=temperature)
        before = world.before(tokens)
        exact = stats.rao_blackwell_kl(world.policy[before], world.reference[before], np.ones(tokens.shape))
        log_p, log_q = world.score(tokens)
        return exact, log_p - log_q

    exact, plain = estimates(1.0)
    cold, cold_plain = estimates(0.5)
    gap = cold_plain - cold
    detail = f"sequences of {world.length} tokens from {world.vocabulary}, {count} samples, true KL {truth:.4f} nats"
    return [
        Control("kl/unbiased", "Distance of the per-token-exact estimate from the truth, in standard errors",
                float(abs(exact.mean() - truth) / (exact.std() / np.sqrt(count))), 0.0, 4.0, detail),
        Control("kl/plain-unbiased", "The same for the mean log-ratio",
                float(abs(plain.mean() - truth) / (plain.std() / np.sqrt(count))), 0.0, 4.0, detail),
        Control("kl/variance", "Variance of the exact estimate over that of the mean log-ratio",
                float(exact.var() / plain.var()), 0.0, 0.5, detail),
        Control("kl/non-negative", "Smallest estimate for a single sample, nats",
                float(exact.min()), 0.0, 100.0, detail),
        Control("kl/wrong-temperature", "Samples at temperature 0.5: distance of the two estimates, in standard errors",
                float(abs(gap.mean()) / (gap.std() / np.sqrt(count))), 5.0, 1e9,
                "the two agree only when samples come from the policy itself, so a large distance gives it away"),
    ]  # fmt: skip


def scales(rng: np.random.Generator) -> list[Control]:
    """Numbers that cannot be negative, and shares near 0: intervals on the log and the log-odds scale."""
    repetitions, controls = 400, []
    for seeds, low in ((3, 0.91), (5, 0.92)):
        y = simulate.divergences(rng, repetitions=repetitions, seeds=seeds, prompts=64, seed_sd=0.5, mean=8.0)
        events, share = simulate.rare_events(rng, repetitions=repetitions, seeds=seeds, prompts=64, seed_sd=0.5)
        positive, shares = stats.many_two_way(y, scale="log"), stats.many_two_way(events, scale="logit")
        detail = f"{repetitions} comparisons of {seeds} seeds that differ by a factor of 1.6, and 64 prompts"
        controls += [
            Control(f"scales/log/seeds-{seeds}", "How often does the 95 % interval of a mean divergence contain it?",
                    float(np.mean([e.low <= 8.0 <= e.high for e in positive])), low, 0.985, detail),
            Control(f"scales/logit/seeds-{seeds}", "How often does the 95 % interval of a small share contain it?",
                    float(np.mean([e.low <= share <= e.high for e in shares])), low, 1.0, detail),
            Control(f"scales/possible/seeds-{seeds}", "Share of these intervals that hold what is impossible",
                    float(np.mean([e.low <= 0 for e in positive] + [e.low < 0 or e.high > 1 for e in shares])),
                    0.0, 0.0, "exact"),
        ]  # fmt: skip
    return controls


def judges(rng: np.random.Generator) -> list[Control]:
    """Judges with known faults, through the arithmetic that every pairwise judge goes through."""
    count, truth, accuracy = 40_000, 0.62, 0.8
    better = (rng.random(count) < truth).astype(np.float64)

    def noisy() -> Array:
        return np.where(rng.random(count) < accuracy, better, 1 - better)

    ones = np.ones(count)
    lean = special.expit(0.7)  # identical texts, a judge who leans to the first position
    identical = stats.both_orders(lean * ones, 1 - lean * ones)
    first = stats.both_orders(ones, 1 - ones)
    judged = stats.both_orders(noisy(), noisy()).score
    holes = stats.both_orders(*(np.where(rng.random(count) < 0.1, np.nan, v) for v in (better, better)))
    usable = 2 - holes.invalid
    lost, won = stats.worst_case(holes.score, usable, holes.invalid)
    empty = stats.both_orders(0 * ones, 0 * ones)
    error = 4 * np.sqrt(0.25 / count)
    expected = float(stats.attenuated(truth, accuracy))
    outside = max(float(np.nanmean(lost)) - truth, truth - float(np.nanmean(won)), 0.0)
    return [
        Control("judges/identical-texts", "Win rate between identical texts under a judge with a position bias",
                float(identical.score.mean()), 0.5, 0.5, "exact, since both orders are asked"),
        Control("judges/always-first", "Win rate under a judge who always names the first text",
                float(first.score.mean()), 0.5, 0.5, "exact"),
        Control("judges/always-first-consistency", "How consistent does that judge look?", first.consistency, 0.0, 0.0,
                "0: the two orders never agree"),
        Control("judges/noise-attenuates", f"Win rate of .62 under a judge who is right in {accuracy:.0%} of cases",
                float(judged.mean()), expected - error, expected + error, f"theory: {expected:.3f}"),
        Control("judges/noise-corrected", "The same, corrected for the judge's known accuracy",
                float(stats.unattenuated(judged.mean(), accuracy)), truth - 2 * error, truth + 2 * error),
        Control("judges/invalid-replies", "Win rate of .62 with one reply in ten unusable at random",
                float(np.nanmean(holes.score)), truth - error, truth + error, "left out and counted, never a loss"),
        Control("judges/invalid-bounds", "How far is the truth outside the worst-case bounds?", outside, 0.0, error),
        Control("judges/empty-answer", "Win rate of an empty answer under a judge who always rejects it",
                float(empty.score.mean()), 0.0, 0.0, "exact"),
    ]  # fmt: skip
