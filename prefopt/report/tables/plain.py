"""The tables of a report whose rows are in ``results.json`` as they are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.report.tables.table import VARIANT, Column, Table

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Plain:
    """A table of the rows at ``key``."""

    name: str
    title: str
    columns: Sequence[Column]
    key: str
    note: str = ""

    def __call__(self, results: Row) -> Table:
        """The table."""
        return Table(self.name, self.title, tuple(self.columns), results[self.key], self.note)


PLAIN = (
    Plain(
        "margins",
        "Held-out pairs: margins and accuracy",
        (
            VARIANT,
            Column("margin", "log-ratio margin, nats", "number", 2, "Against the same reference; compares variants."),
            Column("own_margin", "reward margin, own units", "number", 3, "Read it down one variant only."),
            Column("accuracy", "accuracy, %", "percent", 1, "By the log-ratio, ties one half."),
            Column("token_accuracy", "accuracy per token, %", "percent", 1, "By the log-ratio per token."),
            Column(
                "likelihood_accuracy", "accuracy by likelihood, %", "percent", 1, "By log pi per token, no reference."
            ),
            Column("own_accuracy", "accuracy by own reward, %", "percent", 1, "By the loss's implicit reward."),
            Column(
                "gold_correlation", "rank correlation with gold", "number", 2, "Spearman, margin against reward gap."
            ),
        ),
        "margins",
        "The reference's own ranking by likelihood is where every run starts.",
    ),
    Plain(
        "calibration",
        "Calibration of the implicit reward",
        (
            VARIANT,
            Column("tau", "tau, log-odds per nat", "number", 3, "Scale that turns the margin into log-odds."),
            Column("calibrated", "calibrated margin, log-odds", "number", 2, "tau times the mean margin."),
            Column("nll", "log loss, nats", "number", 3, "Of the calibrated margin; a coin gives 0.693."),
            Column("brier", "Brier score", "number", 3, "A coin gives 0.25."),
            Column("ece", "calibration error, %", "percent", 1, "Mean gap of confidence and accuracy, 15 bins."),
        ),
        "calibration_table",
        "tau is fitted on other prompts than those it is judged on.",
    ),
    Plain(
        "ranking",
        "Who ranks held-out pairs better",
        (
            Column("a", "variant", "text"),
            Column("b", "opponent", "text"),
            Column("outcome", "outcome", "text", help="By accuracy, at the 5 % level after Holm's correction."),
            Column("accuracy", "difference of accuracy, points", "percent", 1, "By the log-ratio, on the same pairs."),
            Column("p_accuracy", "p (Holm)", "p"),
            Column("margin", "difference of margin, nats", "number", 2, "Of log-ratios; a larger one is not a better."),
            Column("p_margin", "p of it (Holm)", "p"),
            Column("n_seeds", "seeds", "count"),
            Column("n_prompts", "prompts", "count"),
        ),
        "ranking",
        "Paired by seed and prompt, clustered by both, corrected within the comparisons with the reference and within "
        "those of two variants. It is about ranking given responses and says nothing about what a policy writes.",
    ),
    Plain(
        "displacement",
        "What happened to the likelihoods",
        (
            VARIANT,
            Column("chosen", "chosen, nats", "number", 2, "Change of log-probability from the reference."),
            Column("rejected", "rejected, nats", "number", 2, "Change of log-probability from the reference."),
            Column("fell", "chosen fell, % of pairs", "percent", 1),
            Column("displaced", "fell, yet rightly ordered, %", "percent", 1, "Likelihood displacement."),
        ),
        "displacement",
        "Held-out pairs after training, sums over response tokens.",
    ),
    Plain(
        "kl",
        "KL to the reference",
        (
            VARIANT,
            Column("kl", "per sequence, nats", "number", 2, "Exact per-token KL, summed over the sample."),
            Column("per_token", "per token, nats", "number", 4),
            Column("sampled", "plain sampled estimate, nats", "number", 2, "Mean log pi / pi_ref; a check."),
            Column("sampled_error", "its standard error", "number", 2),
        ),
        "kl",
        "On the policy's own samples.",
    ),
    Plain(
        "neutral",
        "Cross-entropy of plain text",
        (
            VARIANT,
            Column("before", "before, nats a token", "number", 3, "Under the reference, the model before training."),
            Column("after", "after, nats a token", "number", 3, "Under the trained policy, mean over seeds."),
            Column("rise", "rise", "number", 3, "Positive: plain text has become less likely."),
        ),
        "neutral",
        "Thirty sentences that no pair is about; 95 % intervals over seeds and sentences.",
    ),
    Plain(
        "rewards",
        "Gold reward of samples",
        (
            VARIANT,
            Column("mean", "mean reward", "number", 3),
            Column("gain", "gain over the reference", "number", 3, "Paired by seed and prompt."),
        ),
        "rewards",
    ),
    Plain(
        "matched_kl",
        "Gold reward at equal KL",
        (
            Column("a", "variant", "text"),
            Column("b", "opponent", "text"),
            Column("at", "at KL, nats", "number", 2, "The largest that every seed of both reaches."),
            Column("difference", "difference of rewards", "number", 3, "Of the variant minus the opponent."),
        ),
        "matched_kl",
        "Read off the straight line from the reference to each policy in reward against the square root of the KL.",
    ),
    Plain(
        "text",
        "Length and diversity of samples",
        (
            VARIANT,
            Column("tokens", "tokens, mean", "number", 1),
            Column("median", "median", "number", 0),
            Column("p95", "95th percentile", "number", 0),
            Column("ratio", "ratio to reference", "number", 2),
            Column("finished", "ended by itself, %", "percent", 1),
            Column(
                "distinct1", "distinct-1", "number", 3, "Different tokens / tokens, on as many tokens of every policy."
            ),
            Column("distinct2", "distinct-2", "number", 3, "Different pairs of tokens / pairs, likewise."),
            Column("compression", "compression ratio", "number", 2, "Higher is more repetitive."),
        ),
        "text",
    ),
    Plain(
        "health",
        "Are the samples still text?",
        (
            VARIANT,
            Column("empty", "empty answers, %", "percent", 1, "Nothing but white space."),
            Column("reference_empty", "of the reference, %", "percent", 1),
            Column("kl_per_token", "KL per token, nats", "number", 3, "From 1 nat on, a run counts as broken."),
            Column("repeats", "compression, of the reference's", "number", 2, "From 1.5 on, a run counts as broken."),
            Column("variety", "distinct-2, of the reference's", "number", 2, "Down from 0.5, a run counts as broken."),
            Column("brief", "broken", "text", help="What is beyond its limit at one seed or more."),
        ),
        "health",
        "Means over seeds; a run counts as broken, too, where a tenth more of its answers are empty than the "
        "reference's.",
    ),
    Plain(
        "cost",
        "Cost of a run",
        (
            VARIANT,
            Column("train_s", "training, s", "number", 1),
            Column("evaluate_s", "scoring, s", "number", 1, "Of its samples, and of the held-out pairs."),
            Column("sample_s", "sampling, s", "number", 1),
            Column("pairs_per_s", "pairs / s", "number", 2),
            Column("tokens_per_s", "tokens / s", "number", 0),
            Column("peak_memory_gib", "peak memory, GiB", "number", 2),
        ),
        "cost",
        "Means over seeds; memory is the largest of them.",
    ),
    Plain(
        "ratings",
        "Bradley-Terry ratings",
        (
            VARIANT,
            Column("rating", "rating, Elo points", "number", 0, "The reference is 0; 100 points are odds of 1.78."),
            Column(
                "rank",
                "rank",
                "text",
                help="Places left open by the differences of ratings, corrected for the number of pairs.",
            ),
        ),
        "ratings",
        "One scale from all comparisons; intervals from a bootstrap over prompts and seeds together.",
    ),
    Plain(
        "length_control",
        "Win rate at equal length",
        (
            VARIANT,
            Column("raw", "raw win rate, %", "percent", 1),
            Column("controlled_interval", "at equal length, %", "percent", 1),
            Column("slope", "effect of length", "number", 2, "Log-odds per standard deviation of the difference."),
            Column("ratio", "length ratio", "number", 2, "Tokens of a sample, relative to the reference."),
        ),
        "length_control",
        "A logistic model of the win with the difference in length as a covariate, read off where the lengths are "
        "equal.",
    ),
    Plain(
        "families",
        "Families of tests",
        (
            Column("family", "family", "text"),
            Column("tests", "tests", "count"),
            Column("method", "method", "text"),
            Column("alpha", "alpha", "number", 2),
            Column("rejected", "settled differences", "count"),
        ),
        "families",
    ),
    Plain(
        "judges",
        "Judges",
        (
            Column("judge", "judge", "text"),
            Column("comparisons", "verdicts", "count"),
            Column("tie_share", "ties, %", "percent", 2),
            Column("invalid_share", "unusable, %", "percent", 2),
            Column("agreement", "rank correlation with the first judge", "number", 2, "Of the win rates of variants."),
            Column("position_consistency", "same winner in both orders, %", "percent", 1),
            Column("first_position", "preference for the first place, %", "percent", 1, "50 is none."),
            Column("controls_passed", "controls passed", "text"),
        ),
        "judges",
    ),
    Plain(
        "judge_bounds",
        "Win rates if every unusable verdict had gone one way",
        (
            Column("judge", "judge", "text"),
            VARIANT,
            Column("all_lost", "all lost, %", "percent", 1),
            Column("win_rate", "left out, %", "percent", 1),
            Column("all_won", "all won, %", "percent", 1),
        ),
        "judge_bounds",
    ),
    Plain(
        "seeds",
        "Every run",
        (
            VARIANT,
            Column("seed", "seed", "text"),
            Column("status", "status", "text"),
            Column("win_rate", "win rate, %", "percent", 1),
            Column("reward", "mean reward", "number", 3),
            Column("kl", "KL, nats", "number", 2),
            Column("loss", "final held-out loss", "number", 4),
            Column("margin", "log-ratio margin, nats", "number", 2),
            Column("train_s", "training, s", "number", 1),
        ),
        "seed_table",
    ),
)
