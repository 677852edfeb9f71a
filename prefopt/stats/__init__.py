"""Statistics of a comparison: numpy in, named estimates out. Imports nothing else of prefopt, and no torch.

Arrays of cells have the shape (seeds, prompts) or (..., seeds, prompts), NaN where a cell is missing; ``to_cells``
makes them from long rows.
"""

from prefopt.stats.across import AcrossTasks, across_tasks
from prefopt.stats.cells import ratio, to_cells, worst_case
from prefopt.stats.clusters import Spread, TwoWay, clustered, combine_variance
from prefopt.stats.estimates import (
    Components,
    Estimate,
    Scale,
    interval_and_p,
    many_two_way,
    two_way,
    variance_components,
    win_rate,
)
from prefopt.stats.frontier import (
    KlEstimate,
    MatchedKl,
    best_of_n_kl,
    interquartile_mean,
    iqm,
    kl_of_samples,
    mean_differences,
    rao_blackwell_kl,
    reward_at_kl,
    reward_at_matched_kl,
)
from prefopt.stats.judging import BothOrders, attenuated, both_orders, stands_control, unattenuated
from prefopt.stats.lengths import AlpacaEvalLC, GamedRows, LengthControlled, alpacaeval_lc, length_controlled
from prefopt.stats.pairs import (
    Displacement,
    Margins,
    PairMetrics,
    ReliabilityBin,
    accuracies,
    calibrate,
    displacement,
    fit_tau,
    margins,
    pair_metrics,
    reliability,
)
from prefopt.stats.power import PowerRow, minimum_detectable_effect, power, power_table, prompts_needed, seeds_needed
from prefopt.stats.ratings import ELO_PER_LOGIT, Ratings, bradley_terry, fit_bradley_terry
from prefopt.stats.verdicts import Verdict, holm, sign_flip, smallest_sign_flip, verdict

__all__ = [
    "ELO_PER_LOGIT",
    "AcrossTasks",
    "AlpacaEvalLC",
    "BothOrders",
    "Components",
    "Displacement",
    "Estimate",
    "GamedRows",
    "KlEstimate",
    "LengthControlled",
    "Margins",
    "MatchedKl",
    "PairMetrics",
    "PowerRow",
    "Ratings",
    "ReliabilityBin",
    "Scale",
    "Spread",
    "TwoWay",
    "Verdict",
    "accuracies",
    "across_tasks",
    "alpacaeval_lc",
    "attenuated",
    "best_of_n_kl",
    "both_orders",
    "bradley_terry",
    "calibrate",
    "clustered",
    "combine_variance",
    "displacement",
    "fit_bradley_terry",
    "fit_tau",
    "holm",
    "interquartile_mean",
    "interval_and_p",
    "iqm",
    "kl_of_samples",
    "length_controlled",
    "many_two_way",
    "margins",
    "mean_differences",
    "minimum_detectable_effect",
    "pair_metrics",
    "power",
    "power_table",
    "prompts_needed",
    "rao_blackwell_kl",
    "ratio",
    "reliability",
    "reward_at_kl",
    "reward_at_matched_kl",
    "seeds_needed",
    "sign_flip",
    "smallest_sign_flip",
    "stands_control",
    "to_cells",
    "two_way",
    "unattenuated",
    "variance_components",
    "verdict",
    "win_rate",
    "worst_case",
]
