"""A pairwise judge as the labeller of rounds: each response's mean win over the others of its prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import permutations
from pathlib import Path

import numpy as np

from prefopt.judges.cache import Cache, key_of
from prefopt.judges.contract import Floats, PairwiseJudge, Shown


class JudgeScorer:
    """Scores in [0, 1] by a judge: 1 for a response that beats every other of its prompt, 1/2 where nothing is known.

    A comparison without a usable verdict counts as a tie, and so do equal texts, which are not asked about.

    Args:
        judge: Compares two responses.
        prompts: Text of every training prompt.
        cache: The file of verdicts, which ``prefopt judge`` shares.
        alive: Called with the verdicts so far and all of them.

    Attributes:
        verdicts: Comparisons that were needed, both orders counted.
        cached: Of these, those that were known.
        unusable: Of these, those without a usable verdict.
    """

    def __init__(
        self,
        judge: PairwiseJudge,
        prompts: Sequence[str],
        cache: Path,
        alive: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.judge, self._prompts, self._cache, self._alive = judge, prompts, cache, alive
        self.verdicts = self.cached = self.unusable = 0

    def __call__(self, which: Sequence[int], responses: Sequence[str]) -> Floats:
        """(N,) scores of responses to prompts that are named by their place.

        Raises:
            MachineError: If the judge cannot be reached.
        """
        groups: dict[int, list[int]] = {}
        for place, prompt in enumerate(which):
            groups.setdefault(prompt, []).append(place)
        pairs = [(p, i, j) for p, places in groups.items() for i, j in permutations(places, 2)]
        shown = {(i, j): Shown(self._prompts[p], responses[i], responses[j]) for p, i, j in pairs}
        wins = self._answers([q for q in dict.fromkeys(shown.values()) if q.first != q.second])
        total, count = np.zeros(len(responses)), np.zeros(len(responses))
        for (i, j), question in shown.items():
            first = wins.get(question, 0.5)
            total[i] += first
            total[j] += 1 - first
            count[[i, j]] += 1
        return np.where(count > 0, total / np.maximum(count, 1), 0.5)

    def _answers(self, questions: Sequence[Shown]) -> dict[Shown, float]:
        with closing(Cache(self._cache)) as cache:
            keys = {q: key_of(self.judge.fingerprint, q.prompt, q.first, q.second) for q in questions}
            known = cache.get(keys.values())
            wins = {q: known[key] for q, key in keys.items() if key in known}
            new = [q for q in questions if q not in wins]
            self.verdicts += len(questions)
            self.cached += len(wins)
            for question, value in self._asked(new):
                if value is None:
                    self.unusable += 1
                else:
                    wins[question] = value
                    cache.put({keys[question]: value})
                self._alive(len(wins), len(questions))
        return wins

    def _asked(self, questions: Sequence[Shown]) -> Iterator[tuple[Shown, float | None]]:
        for place, verdict in self.judge.ask(questions):
            yield questions[place], verdict.first
