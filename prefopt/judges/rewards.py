"""Rewards by what they are called: the embedded one, a reward model, or a function of somebody else's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from prefopt.errors import MachineError
from prefopt.judges.contract import Floats
from prefopt.judges.reward import RewardModelJudge
from prefopt.tasks import load_task
from prefopt.tasks.base import Prompt
from prefopt.tasks.rewards import EMBEDDED, CheckedReward, FunctionReward, Reward, RewardError, parse_reward


def make_reward(
    text: str,
    *,
    device: torch.device,
    cache: Path,
    seconds: float,
    alive: Callable[[int, int], None] = lambda done, total: None,
) -> CheckedReward:
    """The reward that ``text`` names, which has answered a trial.

    Args:
        text: As for ``parse_reward``.
        device: Where a reward model runs.
        cache: The folder of fitted rewards.
        seconds: That a call may take.
        alive: Called as a long scoring goes on.

    Raises:
        PrefoptError: If it cannot be had, or its answer to the trial cannot be used.
    """
    spec = parse_reward(text)
    reward: Reward
    if spec.kind == EMBEDDED:
        reward = _Embedded(cache)
    elif spec.kind in ("rm", "bt"):
        reward = _Model(RewardModelJudge(spec.subject, device=device, trained_here=spec.kind == "bt"))
    else:
        reward = FunctionReward(spec)
    return CheckedReward(reward, seconds=seconds, alive=alive)


class _Embedded:
    """The gold reward of the embedded task, for prompts of any task."""

    name = EMBEDDED

    def __init__(self, cache: Path) -> None:
        self._task = load_task(EMBEDDED, cache=cache)
        self.fingerprint = self._task.fingerprint

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Floats:
        """(N,) log-odds that prompt and response together are a positive review."""
        return self._task.reward(prompts, responses)


class _Model:
    """A reward model; what it says of its own failures is the reward's failure."""

    def __init__(self, judge: RewardModelJudge) -> None:
        self._judge = judge
        self.name, self.fingerprint = judge.name, judge.fingerprint

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> Floats:
        """(N,) raw rewards."""
        try:
            return self._judge.score(prompts, responses)
        except MachineError as problem:
            raise RewardError(str(problem)) from None
