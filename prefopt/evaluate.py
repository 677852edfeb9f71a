"""What trained policies are asked: held-out pairs, samples on evaluation prompts, and who wins by the gold reward.

Shapes: n prompts, s samples of a prompt, R scored tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from prefopt.config import Evaluation
from prefopt.harness import PairSet, heldout_logps
from prefopt.head import chunks, tiles
from prefopt.lora import AdapterBank
from prefopt.model import Base
from prefopt.packing import PackedRows, Row, pack, use_layout
from prefopt.results import JUDGEMENT_COLUMNS, PAIR_COLUMNS, REFERENCE, SCORE_COLUMNS
from prefopt.sampling import Sample, sample
from prefopt.scoring import RESPONSES_PER_ROW, batches_of_rows, sum_by_response
from prefopt.stats.texts import compression_ratio, distinct_n
from prefopt.step import Run
from prefopt.tasks import Task

DIVERSITY_TOKENS = 2000  # distinct-n falls with length, so it is taken on as many tokens for every policy


@dataclass(frozen=True, slots=True)
class Prompts:
    """Evaluation prompts: tokens for the policy, text for the reward and for readers."""

    ids: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PolicySamples:
    """One policy's samples at one seed: SCORE_COLUMNS, SAMPLE_COLUMNS, and how varied they are."""

    scores: pd.DataFrame
    texts: pd.DataFrame
    diversity: dict[str, float]


def sampled_together(bank: AdapterBank, slot: int) -> slice:
    """The adapters of the batch in which adapter ``slot`` is sampled.

    On a GPU it is the whole bank, whose launches are shared; always the whole, so that the shape of the batch, which
    decides which kernels run, does not depend on which runs are missing. On a CPU, where nothing is gained by more
    rows, each adapter is alone, and its samples do not depend on the others at all.
    """
    return slice(0, bank.params.shape[0]) if bank.params.device.type == "cuda" else slice(slot, slot + 1)


def draw_samples(
    base: Base, bank: AdapterBank, slots: slice, prompts: Prompts, settings: Evaluation, *, seed: int
) -> dict[int, list[Sample]]:
    """Samples of neighbouring adapters in one batch, by slot; the bank's zero adapter stands for the reference."""
    drawn = sample(
        base,
        bank,
        prompts.ids,
        adapters=slots,
        samples=settings.samples,
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        seed=seed,
    )
    return dict(zip(range(slots.start, slots.stop), drawn, strict=True))


def score_samples(
    base: Base, bank: AdapterBank, slot: int, prompts: Prompts, drawn: Sequence[Sample], task: Task
) -> PolicySamples:
    """Reward, exact KL per token and log-probabilities of one policy's samples."""
    responses = [
        base.tokenizer.decode(list(s.tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for s in drawn
    ]
    texts = [prompts.texts[s.prompt] for s in drawn]
    kl, logp, ref_logp = policy_and_reference(base, bank, slot, prompts.ids, drawn)
    scores = pd.DataFrame(
        {
            "prompt_id": [s.prompt for s in drawn],
            "sample": [s.number for s in drawn],
            "reward": task.reward(texts, responses) if task.has_reward else np.full(len(drawn), np.nan),
            "kl": kl,
            "logp": logp,
            "ref_logp": ref_logp,
            "n_tokens": [len(s.tokens) for s in drawn],
            "finished": [s.finished for s in drawn],
        }
    )[list(SCORE_COLUMNS)]
    frame = pd.DataFrame(
        {"prompt_id": scores["prompt_id"], "sample": scores["sample"], "prompt": texts, "response": responses}
    )
    return PolicySamples(scores, frame, diversity([s.tokens for s in drawn], responses))


@torch.inference_mode()
def policy_and_reference(
    base: Base, bank: AdapterBank, slot: int, prompts: Sequence[Sequence[int]], drawn: Sequence[Sample]
) -> tuple[npt.NDArray[np.float64], ...]:
    """For each sample, summed over its tokens, in nats: exact KL(pi || pi_ref), log pi, log pi_ref.

    The KL is the sum over positions of the divergence of the two next-token distributions (Rao-Blackwellised,
    arXiv:2504.10637), at temperature 1.
    """
    by_prompt: dict[int, list[int]] = {}
    for index, one in enumerate(drawn):
        by_prompt.setdefault(one.prompt, []).append(index)
    per_row = RESPONSES_PER_ROW if base.packed else 1
    groups = [some[i : i + per_row] for some in by_prompt.values() for i in range(0, len(some), per_row)]
    rows = [Row(prompts[drawn[g[0]].prompt], tuple(drawn[i].tokens for i in g)) for g in groups]
    out = np.empty((3, len(drawn)))
    for batch in batches_of_rows(rows):
        packed = pack([rows[i] for i in batch], device=base.device)
        with use_layout(packed):
            with bank.use(slot, slot + 1):
                policy = _states(base, packed)
            with bank.off():
                reference = _states(base, packed)
        per_token = _divergence(base, policy, reference, packed.targets)
        where = [index for i in batch for index in groups[i]]
        for row, values in zip(out, per_token, strict=True):
            row[where] = sum_by_response(values, packed).cpu().numpy()
    return tuple(out)


def _states(base: Base, rows: PackedRows) -> Tensor:
    """(R, d) hidden states, or (R, V) logits on the plain path, that predict the scored tokens."""
    states = base.hidden(rows) if base.packed else base.padded_logits(rows)
    return states.index_select(0, rows.predictors)


def _divergence(base: Base, policy: Tensor, reference: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(R,) each: KL of the next-token distributions, and the targets' two log-probabilities."""
    out = torch.empty(3, len(targets), device=targets.device)
    for part in chunks(len(targets), 2 * base.head.shape[0]):
        logits = [x[part] @ base.head.t() if base.packed else x[part] for x in (policy, reference)]
        found = out[:, part]
        for tile in tiles(logits[0]):
            p, r = (x[tile].float().log_softmax(-1) for x in logits)
            at = targets[part][tile].unsqueeze(1)
            found[1, tile], found[2, tile] = p.gather(1, at).squeeze(1), r.gather(1, at).squeeze(1)
            found[0, tile] = r.neg_().add_(p).mul_(p.exp_()).sum(-1)
    return out[0], out[1], out[2]


def diversity(tokens: Sequence[Sequence[int]], texts: Sequence[str]) -> dict[str, float]:
    """Distinct unigrams and bigrams over a fixed number of tokens, and how many times smaller the text compresses."""
    distinct = {f"distinct{n}": distinct_n(tokens, n, budget=DIVERSITY_TOKENS) for n in (1, 2)}
    return {**distinct, "compression": compression_ratio(texts)}


def heldout_frame(base: Base, bank: AdapterBank, run: Run, pairs: PairSet, *, seed: int) -> pd.DataFrame:
    """PAIR_COLUMNS of a trained run."""
    with torch.no_grad():
        batch = heldout_logps(base, bank, run.slot, run.loss, pairs, seed=seed)
        rewards = run.loss.rewards(batch)
    values = {
        "logps_chosen": batch.chosen,
        "logps_rejected": batch.rejected,
        "reward_chosen": rewards.chosen,
        "reward_rejected": rewards.rejected,
        "chosen_len": batch.chosen_len,
        "rejected_len": batch.rejected_len,
    }
    frame = pd.DataFrame({name: value.cpu().numpy() for name, value in values.items()})
    frame["pair_id"] = [p.pair_id for p in pairs.pairs]
    frame["prompt_id"] = [p.prompt_id for p in pairs.pairs]
    frame["ref_logps_chosen"], frame["ref_logps_rejected"] = pairs.reference.chosen, pairs.reference.rejected
    frame["gold_chosen"] = [np.nan if p.chosen_score is None else p.chosen_score for p in pairs.pairs]
    frame["gold_rejected"] = [np.nan if p.rejected_score is None else p.rejected_score for p in pairs.pairs]
    return frame[list(PAIR_COLUMNS)]


def oracle_judgements(scores: Mapping[tuple[str, int], pd.DataFrame], variants: Sequence[str]) -> pd.DataFrame:
    """JUDGEMENT_COLUMNS by the gold reward: every sample of one policy against every sample of the other.

    Args:
        scores: SCORE_COLUMNS by (variant, seed), the reference among them.
        variants: In the order of the comparison; each is judged against those after it and the reference.
    """
    matrices = {
        key: frame.sort_values(["prompt_id", "sample"])["reward"].to_numpy().reshape(frame["prompt_id"].nunique(), -1)
        for key, frame in scores.items()
    }
    parts = []
    for first, second in combinations([*variants, REFERENCE], 2):
        for seed in sorted({seed for _, seed in matrices}):
            if (first, seed) not in matrices or (second, seed) not in matrices:
                continue
            a, b = matrices[first, seed][:, :, None], matrices[second, seed][:, None, :]
            ties = (a == b).mean((1, 2))
            part = pd.DataFrame({"score": (a > b).mean((1, 2)) + ties / 2, "ties": ties})
            part["judge"], part["variant"], part["opponent"], part["seed"] = "oracle", first, second, seed
            part["prompt_id"] = np.sort(scores[first, seed]["prompt_id"].unique())
            part["n"], part["invalid"] = a.shape[1] * b.shape[2], 0
            parts.append(part)
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(JUDGEMENT_COLUMNS))
    return frame[list(JUDGEMENT_COLUMNS)]
