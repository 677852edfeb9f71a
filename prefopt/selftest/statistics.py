"""Level 0: the statistics and the judging arithmetic against simulations with a known truth. Seconds; no torch.

Every control calls the functions that the report calls. Bands are the promise (for example 3 to 7 % false positives
at a nominal 5 %) or, where exactness is due, a few standard errors of the simulation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats as distributions

from prefopt import stats
from prefopt.selftest import estimators, simulate
from prefopt.selftest.control import Control

Array = simulate.Array
REPETITIONS = 6000  # of A/A comparisons: a standard error of .003 on a rate of .05
CHUNK = 500


def run_level0(seed: int = 0) -> list[Control]:
    """All controls of level 0, each from its own stream of random numbers.

    Args:
        seed: Another seed gives another simulation; the bands allow for it.
    """
    controls: list[Control] = []
    for number, part in enumerate(PARTS):
        controls += part(np.random.default_rng([seed, number]))
    return controls


def p_values(y: Array, null: float = 0.5) -> Array:
    """(R,) p values of the primary test on R tables of wins."""
    parts = stats.clustered(y)
    return stats.interval_and_p(parts.mean, parts.spread, null=null, confidence=0.95, scale="logit")[2]


def _satterthwaite_p_values(y: Array) -> Array:
    """(R,) p values of the same estimates by one t with Satterthwaite's degrees of freedom."""
    parts = stats.clustered(y)
    spread = parts.spread
    z = np.log(parts.mean / (1 - parts.mean)) * parts.mean * (1 - parts.mean) / np.sqrt(spread.variance)
    return np.asarray(2 * distributions.t.sf(np.abs(z), spread.df))


def false_positives(rng: np.random.Generator) -> list[Control]:
    """Two policies that are equally good: how often does the test call one better?"""
    controls = []
    for seeds, low, high in ((5, 0.03, 0.07), (8, 0.03, 0.07), (3, 0.02, 0.07)):
        for seed_sd in (0.0, 0.025, 0.05):
            for prompt_sd in (0.0, 0.2):
                p = np.concatenate(
                    [
                        p_values(
                            simulate.verdicts(
                                rng, repetitions=CHUNK, seeds=seeds, prompts=200, seed_sd=seed_sd, prompt_sd=prompt_sd
                            )
                        )
                        for _ in range(REPETITIONS // CHUNK)
                    ]
                )
                controls.append(
                    Control(
                        f"false-positives/seeds-{seeds}/seed-sd-{seed_sd}/prompt-sd-{prompt_sd}",
                        "Two equally good policies: how often is one called better at the 5 % level?",
                        float((p < 0.05).mean()),
                        low,
                        high,
                        f"{REPETITIONS} comparisons of 200 prompts"
                        + ("; with three seeds the test is a little stricter than it says" if seeds == 3 else ""),
                    )
                )
    return controls


def naive_tests(rng: np.random.Generator) -> list[Control]:
    """The two usual tests on the same data: this control passes when they fail."""
    y = simulate.verdicts(rng, repetitions=2000, seeds=5, prompts=200, seed_sd=0.05, prompt_sd=0.0)
    pooled = np.abs(y.mean((1, 2)) - 0.5) / (y.std((1, 2), ddof=1) / np.sqrt(1000)) > 1.96
    by_prompt = y.mean(1)
    clustered = np.abs(by_prompt.mean(1) - 0.5) / (by_prompt.std(1, ddof=1) / np.sqrt(200)) > 1.96
    detail = "2000 comparisons of 5 seeds (deviation 5 points) and 200 prompts; must exceed .15 to show the failure"
    return [
        Control(
            "naive/pooled-z",
            "How often does a z-test that pools all judgements find a difference that is not there?",
            float(pooled.mean()),
            0.15,
            1.0,
            detail,
        ),
        Control(
            "naive/prompt-clustered",
            "How often does a test clustered by prompt alone find a difference that is not there?",
            float(clustered.mean()),
            0.15,
            1.0,
            detail,
        ),
    ]


def coverage(rng: np.random.Generator) -> list[Control]:
    """Policies with a planted win rate: how often does the interval hold it?"""
    controls = []
    for seeds in (5, 8):
        for spread in (0.0, 0.25):
            hits = []
            for _ in range(REPETITIONS // CHUNK // 2):
                y, truth = simulate.best_of_mixture(
                    rng, repetitions=CHUNK, seeds=seeds, prompts=256, n=4, share=0.5, spread=spread
                )
                estimates = stats.many_two_way(y, null=0.5, scale="logit")
                hits += [e.low <= truth <= e.high for e in estimates]
            controls.append(
                Control(
                    f"coverage/seeds-{seeds}/spread-{spread}",
                    "How often does the 95 % interval contain the true win rate?",
                    float(np.mean(hits)),
                    0.93,
                    0.97,
                    f"{REPETITIONS // 2} comparisons, best of 4 in half of 256 answers, true win rate .65",
                )
            )
    return controls


def power(rng: np.random.Generator) -> list[Control]:
    """At the minimum detectable effect, the test must detect the difference in 80 % of comparisons."""
    controls = []
    for seeds in (3, 5, 8):
        components = stats.Components.assumed(seed_sd=0.025, prompt_sd=0.1)
        effect = stats.minimum_detectable_effect(components, seeds=seeds, prompts=256)
        y = np.concatenate(
            [
                p_values(
                    simulate.verdicts(
                        rng,
                        repetitions=CHUNK,
                        seeds=seeds,
                        prompts=256,
                        seed_sd=0.025,
                        prompt_sd=0.1,
                        win_rate=0.5 + effect,
                    )
                )
                for _ in range(4)
            ]
        )
        controls.append(
            Control(
                f"power/seeds-{seeds}",
                "At the stated minimum detectable effect, how often is the difference found (should be 80 %)?",
                float((y < 0.05).mean()),
                0.76,
                0.84,
                f"effect {100 * effect:.1f} points, 256 prompts, 2000 comparisons",
            )
        )
    return controls


def family_wise(rng: np.random.Generator) -> list[Control]:
    """Several variants that do not differ: how often does any comparison of a family come out significant?"""
    repetitions, count = 1000, 6
    families = {
        "reference": [(0, k) for k in range(1, count + 1)],
        "pairs": [(a, b) for a in range(1, count + 1) for b in range(a + 1, count + 1)],
    }
    worst = 0.05 + 3 * np.sqrt(0.05 * 0.95 / repetitions)
    controls, unadjusted = [], 0.0
    for seeds, taste_sd in ((5, 0.0), (5, 1.0), (3, 0.0), (3, 1.0)):
        p = _family_p_values(rng, families, repetitions=repetitions, seeds=seeds, taste_sd=taste_sd)
        unadjusted = max(unadjusted, float((p["pairs"].min(1) < 0.05).mean()))
        controls += [
            Control(
                f"family-wise/{name}/seeds-{seeds}/prompt-effects-{taste_sd}",
                f"{values.shape[1]} comparisons without a difference: how often is any called better after Holm?",
                float(np.mean([stats.holm(row).min() < 0.05 for row in values])),
                0.0,
                float(worst),
                f"{repetitions} families of 128 prompts; at most .05 and three standard errors of the simulation",
            )
            for name, values in p.items()
        ]
    p = _family_p_values(rng, families, repetitions=repetitions, seeds=3, taste_sd=1.0, test=_satterthwaite_p_values)
    single_t = float(np.mean([stats.holm(row).min() < 0.05 for row in p["pairs"]]))
    return controls + _must_fail(single_t, unadjusted)


def _must_fail(single_t: float, unadjusted: float) -> list[Control]:
    """Two ways to do it wrong, whose rates show that the right one is needed."""
    return [
        Control(
            "family-wise/single-t",
            "The same after Holm with one t quantile at Satterthwaite's degrees of freedom, which must fail",
            single_t,
            0.08,
            1.0,
            "pairs, three seeds, prompt effects: why quantiles are those of the two parts of the variance",
        ),
        Control(
            "family-wise/unadjusted",
            "The same without adjustment, which must fail",
            unadjusted,
            0.15,
            1.0,
            "above .15 to show that the adjustment is needed",
        ),
    ]


def _family_p_values(
    rng: np.random.Generator,
    families: dict[str, list[tuple[int, int]]],
    *,
    repetitions: int,
    seeds: int,
    taste_sd: float,
    test: Callable[[Array], Array] = p_values,
) -> dict[str, Array]:
    """(R, m) p values for each family of pairs, among 7 variants that do not differ."""
    p = {name: np.empty((repetitions, len(pairs))) for name, pairs in families.items()}
    for start in range(0, repetitions, 100):
        rewards = simulate.variants(
            rng, repetitions=100, count=7, seeds=seeds, prompts=128, seed_sd=0.3, taste_sd=taste_sd
        )
        for name, pairs in families.items():
            for column, (a, b) in enumerate(pairs):
                wins = (rewards[:, b] > rewards[:, a]).astype(np.float64)
                p[name][start : start + 100, column] = test(wins)
    return p


def words(rng: np.random.Generator) -> list[Control]:
    """Verdicts: never one about the loss from one seed, EQUIVALENT for policies that cannot differ."""
    one_seed = simulate.verdicts(rng, repetitions=200, seeds=1, prompts=256, seed_sd=0.0, prompt_sd=0.0, win_rate=0.9)
    spoken = [
        stats.verdict(e, e.p, delta=0.02) is not stats.Verdict.INCONCLUSIVE
        for e in stats.many_two_way(one_seed, null=0.5, scale="logit")
    ]
    tie = stats.win_rate(np.full((5, 256), 0.5))
    smallest = stats.sign_flip(np.arange(1.0, 7.0))
    spread = distributions.norm.rvs(size=(400, 6), random_state=rng)
    flips = np.array([stats.sign_flip(row) for row in spread])
    return [
        Control("verdicts/one-seed", "Share of one-seed comparisons, however clear, that get a verdict about the loss",
                float(np.mean(spoken)), 0.0, 0.0),
        Control("verdicts/all-ties", "Is a comparison of all ties EQUIVALENT?",
                float(stats.verdict(tie, tie.p, delta=0.02) is stats.Verdict.EQUIVALENT), 1.0, 1.0),
        Control("sign-flip/smallest", "Least p value of six agreeing seeds", smallest, 2.0**-5, 2.0**-5, "2^(1-6)"),
        Control("sign-flip/false-positives", "False positives of the sign-flip test at 2 x 2^-6",
                float((flips <= 2.0**-5).mean()), 0.0, 2.0**-5 + 0.026, "400 draws of six seeds without a difference"),
    ]  # fmt: skip


PARTS: tuple[Callable[[np.random.Generator], list[Control]], ...] = (
    false_positives,
    naive_tests,
    coverage,
    power,
    family_wise,
    estimators.ratings,
    estimators.length_control,
    estimators.divergence,
    estimators.judges,
    words,
    estimators.scales,
)
