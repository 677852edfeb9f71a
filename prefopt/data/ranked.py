"""Ranked responses, two or more to a prompt: what a reward model is trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from prefopt.data.problems import Problems, RowError
from prefopt.data.sources import open_source
from prefopt.data.types import Pair, Text
from prefopt.data.validate import check_prompt, prompt_key

_MAX_ROW_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Ranking:
    """Responses of one prompt, and which is better than which.

    Attributes:
        prompt: Text or messages.
        responses: Texts, all different.
        pairs: Indices (better, worse); at least one.
        golds: The gold reward of each response, or None.
    """

    prompt: Text
    responses: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    golds: tuple[float, ...] | None = None


def rankings_of_pairs(pairs: Iterable[Pair]) -> list[Ranking]:
    """The pairs of each prompt together, each response once."""
    by_prompt: dict[str, tuple[Text, dict[str, int], list[tuple[int, int]]]] = {}
    for pair in pairs:
        _, known, better = by_prompt.setdefault(prompt_key(pair.prompt), (pair.prompt, {}, []))
        both = [known.setdefault(_text(response), len(known)) for response in (pair.chosen, pair.rejected)]
        better.append((both[0], both[1]))
    return [Ranking(prompt, tuple(known), tuple(better)) for prompt, known, better in by_prompt.values()]


def _text(response: Text) -> str:
    return response if isinstance(response, str) else response[-1].content


def is_ranked(source: str) -> bool:
    """Whether the first row of a source has ``responses``, and so is a ranking.

    Raises:
        UsageError: If the source is of no kind that is read.
    """
    with open_source(source, _MAX_ROW_BYTES) as opened:
        return "responses" in next((row for _, row in opened.rows if isinstance(row, dict)), {})


def load_rankings(source: str) -> list[Ranking]:
    """Rows with ``prompt`` and ``responses``, a list of texts, the best first, or ranked by a list ``scores``.

    Raises:
        DataError: If rows cannot be used, naming file, line, field and fix.
    """
    problems = Problems(source, "refuse")
    rankings = []
    for number, row in open_source(source, _MAX_ROW_BYTES).rows:
        try:
            if isinstance(row, RowError):
                raise row
            rankings.append(_ranking(row))
        except RowError as problem:
            problems.add(number, problem)
    problems.raise_if_any()
    return rankings


def _ranking(row: dict[str, Any]) -> Ranking:
    responses, scores = row.get("responses"), row.get("scores")
    if not isinstance(responses, list) or not all(isinstance(r, str) for r in responses) or len(responses) < 2:
        raise RowError("DATA006", "a list of two texts or more is wanted", field="responses")
    if len(set(responses)) < len(responses):
        raise RowError("DATA014", "two of the responses are equal", field="responses", reason="equal responses")
    if scores is None:
        scores = [-float(i) for i in range(len(responses))]
    numbers = isinstance(scores, list) and all(type(s) in (int, float) and abs(s) < 1e30 for s in scores)
    if not numbers or len(scores) != len(responses):
        raise RowError("DATA006", f"a list of {len(responses)} numbers is wanted, one a response", field="scores")
    pairs = better_pairs(scores)
    if not pairs:
        raise RowError("DATA005", "all responses have one score, which ranks none above another", field="scores")
    return Ranking(check_prompt(row), tuple(responses), pairs)


def better_pairs(scores: Sequence[float]) -> tuple[tuple[int, int], ...]:
    """(better, worse) of every two responses whose scores differ."""
    both = combinations(range(len(scores)), 2)
    return tuple((i, j) if scores[i] > scores[j] else (j, i) for i, j in both if scores[i] != scores[j])
