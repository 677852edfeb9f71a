"""What a manifest says about the user's pairs: where they came from, and everything that was counted on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefopt.data.types import LoadedPairs, LoadReport, TokenizedPairs
from prefopt.storage.redact import portable


def pair_facts(sources: Sequence[LoadedPairs], train: TokenizedPairs, heldout: TokenizedPairs) -> dict[str, Any]:
    """Counts over all sources; those of tokenisation are of the training pairs, unless the name says otherwise.

    Args:
        sources: The training file, and the held-out one where it is a file of its own.
        train: Tokenised.
        heldout: Tokenised.
    """
    reports: list[LoadReport] = [source.report for source in sources]
    dropped: dict[str, int] = {}
    parts: list[LoadReport | TokenizedPairs] = [*reports, train, heldout]
    for part in parts:
        for reason, count in part.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    facts: dict[str, Any] = {
        "source": portable(sources[0].source),
        "sha256": sources[0].sha256,
        "rows": sum(report.rows for report in reports),
        "dropped_rows": sum(dropped.values()),
        "dropped": dict(sorted(dropped.items())),
        "duplicates": sum(report.duplicates for report in reports),
        "contradictions": sum(len(report.contradictions) for report in reports),
        "extra_columns": sorted({name for report in reports for name in report.extra_columns}),
        "implicit_prompts": sum(report.implicit_prompts for report in reports),
        "scored_rows": sum(report.scored for report in reports),
        "score_ties": sum(report.score_ties for report in reports),
        "score_contradictions": sum(report.score_contradictions for report in reports),
        "truncated_chosen": train.truncated_chosen,
        "truncated_rejected": train.truncated_rejected,
        "truncated_prompts": train.truncated_prompts,
        "no_eos_chosen": train.no_eos_chosen,
        "no_eos_rejected": train.no_eos_rejected,
        "control_tokens": train.control_tokens + heldout.control_tokens,
        "boundary_merges": train.boundary_merges + heldout.boundary_merges,
    }
    if len(sources) > 1:
        facts |= {"heldout_source": portable(sources[1].source), "heldout_sha256": sources[1].sha256}
    return facts
