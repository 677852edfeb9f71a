"""Rounds: each policy answers prompts, its answers are labelled, and it trains on them until the next round.

Every policy of a seed answers the same prompts under the same noise, which depends on seed, round, prompt and sample
alone. A round's responses are written before they are trained on, so that a run goes on inside a round in the same
bytes as if nothing had happened. What another policy does changes none of it.

Shapes: N prompts, K responses of a prompt, T tokens of a response, B pairs of an optimizer batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from prefopt.data import TokenPair
from prefopt.data.builders import Builder, Labelling, build_pairs, preferences
from prefopt.data.types import TokenGroup
from prefopt.model.adapted import AdaptedModel, one
from prefopt.model.generate import Sample, Sampling, sample
from prefopt.model.logps import score_tokens
from prefopt.runtime.seeding import derive_seed, numpy_generator
from prefopt.storage import durable
from prefopt.storage.cache import kept_frame
from prefopt.train.feed import Floats, GroupBatch, PairBatch, groups_per_step
from prefopt.train.grouped import rows_of
from prefopt.train.state import Run

# Rewards of responses to prompts that are named by their place among all training prompts.
Scorer = Callable[[Sequence[int], Sequence[str]], npt.NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The rounds of a run.

    Attributes:
        steps: Optimizer steps of a round.
        prompts: Prompts of a round.
        samples: Responses of a prompt.
        max_new_tokens: Longest response.
        temperature: Of sampling.
        reference: Whether log-ratios are taken against the first policy or the one that began the round.
        labelling: How pairs are labelled.
        pairs_per_step: B.
        seed: Of prompts, noise, labels and order; the same for every run of a group.
        top_p: Of sampling: only the most probable tokens that together have this probability are drawn.
    """

    steps: int
    prompts: int
    samples: int
    max_new_tokens: int
    temperature: float
    reference: Literal["first", "previous"]
    labelling: Labelling
    pairs_per_step: int
    seed: int
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Round:
    """One run's responses of one round.

    Attributes:
        groups: One for each prompt.
        reference: (K,) reference log-probabilities of each, nats.
        behaviour: K times (T,) log-probabilities of each token under the policy that drew them.
    """

    groups: list[TokenGroup]
    reference: list[Floats]
    behaviour: list[list[Floats]]


@dataclass
class OnPolicy:
    """Hands each run what its own policy said in the round that it is in.

    Attributes:
        model: The base and the adapters that are trained.
        prompts: Token ids of every training prompt.
        score: Rewards responses, by slot.
        plan: What of, by slot.
        builders: What picks the pairs, by slot; not asked for a loss of groups.
        path: Where a run's responses of a round are kept, by slot.
    """

    model: AdaptedModel
    prompts: Sequence[tuple[int, ...]]
    score: Mapping[int, Scorer]
    plans: Mapping[int, Plan]
    builders: Mapping[int, Builder]
    path: Callable[[int, int], Path]
    _rounds: dict[int, tuple[int, Round]] = field(default_factory=dict)
    _pairs: dict[int, tuple[int, list[TokenPair]]] = field(default_factory=dict)
    _together: dict[tuple[int, int, int], dict[int, list[Sample]]] = field(default_factory=dict)

    def batch(self, run: Run, step: int) -> PairBatch | GroupBatch:
        """The pairs or groups of a step, out of the responses of its round."""
        plan = self.plans[run.slot]
        number, within = divmod(step, plan.steps)
        responses = self._round(run, number)
        if run.loss.takes_groups:
            count = groups_per_step(responses.groups, plan.pairs_per_step)
            rows = order_of_step(plan, number, within, len(responses.groups), count)
            return GroupBatch(
                [responses.groups[i] for i in rows],
                [responses.reference[i] for i in rows],
                [responses.behaviour[i] for i in rows],
            )
        pairs = self._built(run, number, responses)
        rows = order_of_step(plan, number, within, len(pairs), plan.pairs_per_step)
        chosen = [pairs[i] for i in rows]
        return PairBatch(chosen, _references(chosen, responses))

    def can_continue(self, slot: int, step: int) -> bool:
        """Whether a run can go on after so many steps: between two rounds, or where the round's responses are whole."""
        number, within = divmod(step, self.plans[slot].steps)
        if not within:
            return True
        try:
            durable.read_sealed(self.path(slot, number))
        except durable.DamagedError:
            return False
        return True

    def forget_after(self, slot: int, step: int) -> None:
        """Remove what is kept of rounds that have not begun after so many steps."""
        first = -(-step // self.plans[slot].steps)
        for path in self.path(slot, 0).parent.glob("round-*"):
            if path.name >= self.path(slot, first).name:
                durable.remove(path)

    def _round(self, run: Run, number: int) -> Round:
        if self._rounds.get(run.slot, (-1, None))[0] != number:
            frame = kept_frame(self.path(run.slot, number), lambda: self._answers(run, number))
            self._rounds[run.slot] = number, from_frame(frame)
        return self._rounds[run.slot][1]

    def _answers(self, run: Run, number: int) -> pd.DataFrame:
        """Sample, label and score a round under the run's policy as it is now."""
        plan = self.plans[run.slot]
        if run.counters.step != number * plan.steps:
            raise RuntimeError(f"the responses of round {number + 1} are gone, and the policy has moved on")
        which = prompts_of_round(plan, number, len(self.prompts))
        samples = self._samples(run, plan, number, which)
        rewards = self.score[run.slot]([which[s.prompt] for s in samples], [s.text(self.model.base) for s in samples])
        groups = [
            self._group(plan, number, which[i], samples[start : start + plan.samples], rewards[start:])
            for i, start in enumerate(range(0, len(samples), plan.samples))
        ]
        rows = rows_of(groups, shared=self.model.base.packed)
        with self.model.use(one(run.slot)):
            behaviour = score_tokens(self.model.base, rows)
        if plan.reference == "previous":
            reference = [values.sum() for values in behaviour]
        else:
            with self.model.off():
                reference = [values.sum() for values in score_tokens(self.model.base, rows)]
        return to_frame(groups, reference, behaviour)

    def _group(
        self, plan: Plan, number: int, prompt: int, samples: Sequence[Sample], rewards: npt.NDArray[np.float64]
    ) -> TokenGroup:
        values = tuple(float(reward) for reward in rewards[: len(samples)])
        random = numpy_generator(plan.seed, "round_rankings", number, prompt)
        return TokenGroup(
            prompt_ids=tuple(self.prompts[prompt]),
            responses=tuple(s.tokens for s in samples),
            finished=tuple(s.finished for s in samples),
            rewards=values,
            preference=preferences(values, plan.labelling, random),
            prompt_id=prompt,
        )

    def _samples(self, run: Run, plan: Plan, number: int, which: Sequence[int]) -> list[Sample]:
        """The run's responses: on a GPU all adapters answer in one batch, on a CPU each by itself.

        Of neighbours that train in other rounds nothing is kept, since they have moved when their round begins.
        """
        bank = self.model.adapters.params
        together = slice(0, bank.shape[0]) if bank.device.type == "cuda" else one(run.slot)
        key = (run.counters.step, plan.steps, number)
        if run.slot not in self._together.get(key, {}):
            answers = sample(
                self.model,
                [self.prompts[i] for i in which],
                adapters=together,
                how=Sampling(plan.samples, plan.max_new_tokens, plan.temperature, plan.top_p),
                seed=derive_seed(plan.seed, "round", number),
                prompt_ids=which,
            )
            self._together = {key: dict(zip(range(together.start, together.stop), answers, strict=True))}
        return self._together[key].pop(run.slot)

    def _built(self, run: Run, number: int, responses: Round) -> list[TokenPair]:
        if self._pairs.get(run.slot, (-1, None))[0] != number:
            plan = self.plans[run.slot]
            pairs: list[TokenPair] = []
            for group in responses.groups:
                random = numpy_generator(plan.seed, "round_pairs", number, group.prompt_id)
                pairs += build_pairs(group, self.builders[run.slot], plan.labelling, random, first_id=len(pairs))
            self._pairs[run.slot] = number, pairs
        return self._pairs[run.slot][1]


def prompts_of_round(plan: Plan, number: int, n_prompts: int) -> list[int]:
    """The prompts of a round: the next so many of a stream that goes through all of them again and again."""
    start = number * plan.prompts
    return _stream(plan.seed, "round_prompts", 0, n_prompts, start, start + plan.prompts)


def order_of_step(plan: Plan, number: int, within: int, n_items: int, per_step: int) -> list[int]:
    """The pairs or groups of a step within its round, each as often as any other but for one."""
    start = within * per_step
    return _stream(plan.seed, "round_order", number, n_items, start, start + per_step)


def _stream(seed: int, purpose: str, number: int, n_items: int, start: int, stop: int) -> list[int]:
    """Places ``start`` to ``stop`` of permutations of ``n_items``, one after the other."""
    epochs = range(start // n_items, -(-stop // n_items))
    flat = [int(i) for epoch in epochs for i in numpy_generator(seed, purpose, number, epoch).permutation(n_items)]
    first = start - epochs.start * n_items
    return flat[first : first + stop - start]


def _references(pairs: Sequence[TokenPair], responses: Round) -> Floats:
    """(2, B) reference log-probabilities of pairs."""
    known = {
        (group.prompt_id, response): value
        for group, values in zip(responses.groups, responses.reference, strict=True)
        for response, value in zip(group.responses, values, strict=True)
    }
    sides = [[known[p.prompt_id, ids] for p in pairs for ids in (getattr(p, side),)] for side in _SIDES]
    return np.array(sides, dtype=np.float32)


_SIDES = ("chosen_ids", "rejected_ids")


def to_frame(groups: Sequence[TokenGroup], reference: Sequence[float], behaviour: Sequence[Floats]) -> pd.DataFrame:
    """A row for each response, in the order of the groups."""
    rows = [
        (g, group.prompt_id, list(group.prompt_ids), list(response), finished, reward, preference)
        for g, group in enumerate(groups)
        for response, finished, reward, preference in zip(
            group.responses, group.finished, group.rewards, group.preference, strict=True
        )
    ]
    names = ["group", "prompt_id", "prompt_ids", "tokens", "finished", "reward", "preference"]
    frame = pd.DataFrame(rows, columns=names)
    frame["reference"] = np.array(reference, dtype=np.float32)
    frame["behaviour"] = [values.tolist() for values in behaviour]
    return frame


def from_frame(frame: pd.DataFrame) -> Round:
    """The inverse of ``to_frame``."""
    groups, reference, behaviour = [], [], []
    for _, rows in frame.groupby("group", sort=True):
        groups.append(
            TokenGroup(
                prompt_ids=tuple(int(t) for t in rows["prompt_ids"].iloc[0]),
                responses=tuple(tuple(int(t) for t in tokens) for tokens in rows["tokens"]),
                finished=tuple(map(bool, rows["finished"])),
                rewards=tuple(map(float, rows["reward"])),
                preference=tuple(map(float, rows["preference"])),
                prompt_id=int(rows["prompt_id"].iloc[0]),
            )
        )
        reference.append(rows["reference"].to_numpy(dtype=np.float32))
        behaviour.append([np.array(values, dtype=np.float32) for values in rows["behaviour"]])
    return Round(groups, reference, behaviour)
