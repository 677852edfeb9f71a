"""Methods ready to paste into a paper, their sources, and how to reproduce a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefopt.analysis.selftest import single_t
from prefopt.analysis.sentences import counted, listed

Row = Mapping[str, Any]


def methods(results: Row) -> list[str]:
    """Paragraphs for a paper, with this comparison's numbers in them."""
    judged = [*_judging(results), RATINGS] if results["setup"]["judge"] is not None else []
    ranked = [RANKING] if results["ranking"] and results["setup"]["judge"] is None else []
    return [_training(results), *_tuning(results), *judged, *ranked, DIVERGENCE]


def _tuning(results: Row) -> list[str]:
    found = results["tuning"]
    if not found:
        return []
    trials = found["families"][0]["trials"]
    bound = "" if found["max_kl"] is None else f" among those within {found['max_kl']:g} nats of the reference"
    return [
        f"Every loss was given {trials} settings: its defaults and {trials - 1} points of a scrambled Sobol sequence, "
        "the same for all losses, over the learning rate and the ranges of its own hyperparameters. Each was trained "
        f"at {counted(len(found['seeds']), 'seed')} used for nothing else and scored by {found['criterion_text']} on "
        f"{found['prompts']} prompts used for nothing else; runs that diverged count as worst. The best{bound} and the "
        "defaults were trained anew at the seeds reported here, and judged on prompts "
        "that had no part in the choice. No trial was stopped early, and no loss was given more."
    ]


def _training(results: Row) -> str:
    setup = results["setup"]
    train = setup["config"].get("train", {})
    size = (
        f"; {train['steps']} steps of {train['pairs_per_step']} pairs"
        if {"steps", "pairs_per_step"} <= set(train)
        else ""
    )
    return (
        f"We compared {counted(len(results['variants']), 'variant')} "
        f"({listed([v['variant'] for v in results['variants']], 40)}) with prefopt {setup['version']} on "
        f"{setup['model'].get('name', 'the base model')}. At each of {counted(len(results['seeds']), 'seed')} every "
        "variant was trained with LoRA from the same initial adapter on the same preference pairs in the same order "
        f"({_pairs_seen(results)}{size}); hashes of data, order, "
        "initial adapter, reference, evaluation, code, packages and device agree between the variants of a seed. "
        "Hyperparameters were the same at every seed and are listed with the results."
    )


def _pairs_seen(results: Row) -> str:
    """Such as ``384 of 986 pairs, 0.39 epochs``."""
    seen = results["exposure"]
    if seen is None:
        return f"{results['setup']['data'].get('train_pairs', '?')} pairs"
    dropped = f", after {counted(seen['dropped_rows'], 'row')} that could not be used" if seen["dropped_rows"] else ""
    return f"{seen['seen']} of {seen['train_pairs']} pairs, {seen['epochs']:.2f} epochs{dropped}"


def _judging(results: Row) -> list[str]:
    setup, settings = results["setup"], results["settings"]
    return [
        f"Each policy answered {setup['evaluation_prompts']} held-out prompts, "
        f"{counted(setup['samples_per_prompt'], 'sample')} each, under random numbers shared by all variants. The "
        f"judge was {setup['judge']}. The score y(s, i) of seed s and prompt i is the share of comparisons won, ties "
        "one half. The win rate is the mean of y over S seeds and N prompts. Its variance is two-way clustered, V = "
        "V_seed + max(V_prompt − V_rest, 0), at least V_prompt/10 and V_rest/10, with V_seed = var_s(mean_i y)/S, "
        "V_prompt = var_i(mean_s y)/N, and V_rest the residual mean square over S N. The pivot (estimate − truth)/√V "
        "is referred to a normal distribution of variance w (S−1)/A + (1−w)(N−1)/B with A ~ χ²(S−1), B ~ χ²(N−1) and "
        "w = 1 − max(V_prompt − V_rest, 0)/V, the seeds' share: Student's t with S−1 degrees of freedom where the "
        "seeds make up the variance, with N−1 where the prompts do. A single t at Satterthwaite's degrees of "
        "freedom, V² / (V_seed²/(S−1) + V_prompt²/(N−1) + V_rest²/((S−1)(N−1))), which are reported for orientation, "
        f"trusts few seeds that agree by chance too much where many comparisons are corrected for{single_t(results)}. "
        "Intervals, and tests against one half, are made on the log-odds scale.",
        "p-values were corrected by Holm's method in two families, all variants against the reference and all pairs "
        f"of variants. A difference is called BETTER or WORSE if the corrected p is below {settings['alpha']:g}, "
        f"EQUIVALENT if instead the 95 % interval lies within ±{100 * settings['delta']:g} points of one half, and "
        "INCONCLUSIVE otherwise. Comparisons without a usable verdict are left out of the estimate; where they are "
        "more than 1 %, the verdict is one that holds if all of them had been lost and if all had been won. The "
        "minimum detectable effect is the true difference that this procedure settles with probability .8, given the "
        "variances found, at the strictest level of Holm's correction. An exact sign-flip test over paired seeds is "
        "given beside it.",
    ]


RATINGS = (
    "Ratings are Bradley-Terry, P(a beats b) = 1/(1 + exp(θ_b − θ_a)), in Elo points 400 θ / ln 10 with the "
    "reference at 0. The win rate at equal length is 1/(1 + exp(−θ)) in logit P(win) = θ + φ tanh(d/s), with d the "
    "difference in tokens, s its standard deviation, and φ drawn towards the value that all variants share. Both "
    "have intervals from two-way bootstrap refits over seeds and prompts; ranges of ranks are corrected for the number "
    "of pairs (Bonferroni)."
)
RANKING = (
    "Variants were compared on the same held-out pairs: differences of accuracy, and of log-ratio margin, paired by "
    "seed and prompt, with two-way clustered variance V = V_seed + max(V_prompt − V_rest, 0) and p-values corrected by "
    "Holm's method, apart for comparisons with the reference and for pairs of variants. They say who ranks given "
    "responses better, not who writes better ones."
)
DIVERGENCE = (
    "The KL to the reference is that of the policy's own samples, the exact divergence of the two next-token "
    "distributions summed over positions (the Rao-Blackwellised estimate), in nats. The log-ratio margin of a "
    "held-out pair is (log π(y_w|x) − log π_ref(y_w|x)) − (log π(y_l|x) − log π_ref(y_l|x)), summed over response "
    "tokens; accuracy counts ties one half. Calibrated margins are τ times that margin, with τ from a logistic "
    "regression without intercept on the other folds' prompts. Rewards at equal KL are read off straight lines in "
    "√KL between the reference and a policy. Intervals of KL, lengths and their ratios are made on the logarithmic "
    "scale, those of shares in log-odds."
)


SOURCES = (
    ("Rafailov et al. 2023", "Direct preference optimization", "arXiv:2305.18290"),
    ("Cameron, Gelbach and Miller 2011", "Robust inference with multiway clustering", "doi:10.1198/jbes.2010.07136"),
    ("Satterthwaite 1946", "An approximate distribution of estimates of variance components", "doi:10.2307/3002019"),
    (
        "Tsui and Weerahandi 1989",
        "Generalized p-values in significance testing of hypotheses in the presence of nuisance parameters",
        "doi:10.1080/01621459.1989.10478810",
    ),
    ("Holm 1979", "A simple sequentially rejective multiple test procedure", "Scandinavian Journal of Statistics 6"),
    ("Maystre and Grossglauser 2015", "Fast and accurate inference of Plackett-Luce models", "NeurIPS 2015"),
    ("Dubois et al. 2024", "Length-controlled AlpacaEval", "arXiv:2404.04475"),
    (
        "Amini, Vieira and Cotterell 2025",
        "Better estimation of the KL divergence between language models",
        "arXiv:2504.10637",
    ),
    ("Gao, Schulman and Hilton 2022", "Scaling laws for reward model overoptimization", "arXiv:2210.10760"),
    ("Beirami et al. 2024", "Theoretical guarantees on the best-of-n alignment policy", "arXiv:2401.01879"),
    ("Razin et al. 2024", "Unintentional unalignment: likelihood displacement", "arXiv:2410.08847"),
    ("Miller 2024", "Adding error bars to evals", "arXiv:2411.00640"),
)


def reproduce(results: Row) -> list[tuple[str, str]]:
    """(what, command or value) pairs that lead back to these numbers."""
    setup = results["setup"]
    steps = [("Run it again", setup["command"])] if setup["command"] else []
    steps.extend(("Made before it in the same folder", line) for line in setup["earlier_commands"])
    steps.append(("Make this page again, without a model", f"prefopt report results/{results['name']}"))
    if setup["commit"]:
        steps.append(("Commit", str(setup["commit"])))
    steps.append(("prefopt", str(setup["version"])))
    steps.extend((str(name), str(value)) for name, value in sorted(setup["packages"].items()))
    device = setup["device"]
    steps.append(("Device", " · ".join(f"{key} {value}" for key, value in device.items() if value not in (None, ""))))
    if setup["determinism"]:
        steps.append(("Same numbers again", setup["determinism"]))
    for what, entry in (("Model", setup["model"]), ("Reference", setup["reference"])):
        steps.append((what, " · ".join(f"{key} {value}" for key, value in entry.items() if value not in (None, ""))))
    steps.extend((f"Hash of {name}", str(value)) for name, value in sorted(setup["hashes"].items()))
    steps.append(("Hash of manifest.json", setup["manifest_hash"]))
    if setup["created"]:
        steps.append(("Made", str(setup["created"])))
    return steps
