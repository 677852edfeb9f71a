"""What a results folder holds: its schema's number, its names and the columns of its tables."""

from __future__ import annotations

SCHEMA = 2
REFERENCE = "reference"
ORACLE = "oracle"  # the judge that is the task's gold reward
LOCK = ".lock"
TUNING = "tuning"  # the folder, below a tuned comparison's, of its trials: a comparison of its own

# One row for each (step, split). Split is "train" (the step's batch, before the update) or "heldout".
# Rewards are in the loss's own units, logps in nats summed over the response, logratio/margins in nats.
HISTORY_COLUMNS = (
    "step", "split", "loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
    "logps/chosen", "logps/rejected", "logratio/margins", "logratio/accuracies", "learning_rate", "grad_norm",
)  # fmt: skip
# Own-unit rewards, and the four log-probabilities (nats, summed) that every other margin is made of.
# gold_* are the task's reward of the response, missing where the task has none.
PAIR_COLUMNS = (
    "pair_id", "prompt_id", "logps_chosen", "logps_rejected", "ref_logps_chosen", "ref_logps_rejected",
    "chosen_len", "rejected_len", "reward_chosen", "reward_rejected", "gold_chosen", "gold_rejected",
)  # fmt: skip
# kl: sum over positions of the exact KL(pi || pi_ref) of next-token distributions, nats; logp and ref_logp: of the
# sampled tokens, nats, summed; n_tokens includes the end token; finished: the end token was reached.
# reward: the task's gold reward, missing where it has none; where another reward trains, it is a column proxy.
SCORE_COLUMNS = (
    "prompt_id", "sample", "reward", "kl", "logp", "ref_logp", "n_tokens", "finished",
)  # fmt: skip
# Further samples of the reference, of which the best of n is taken; its file is there where evaluation.best_of asks.
BEST_OF = "best_of.parquet"
BEST_OF_COLUMNS = ("prompt_id", "sample", "reward", "ref_logp")
# The same of samples on the way, after ``step`` optimizer steps.
SAMPLED_COLUMNS = ("step", "prompt_id", "sample", "reward", "kl", "n_tokens")
SAMPLE_COLUMNS = ("prompt_id", "sample", "prompt", "response")
PROMPT_COLUMNS = ("prompt_id", "prompt")
# score: mean over the comparisons of one prompt and seed of 1 (variant wins), 1/2 (tie), 0; n comparisons behind it,
# of which the share ties; invalid: comparisons without a usable verdict, not in n.
JUDGEMENT_COLUMNS = ("judge", "variant", "opponent", "seed", "prompt_id", "score", "n", "ties", "invalid")
