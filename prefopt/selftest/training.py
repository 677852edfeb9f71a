"""Level 1: training, sampling and scoring on a tiny model whose every answer can be enumerated. A minute on two cores.

Everything runs through the harness, the sampler, the scorer and the judgements that a comparison uses.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from prefopt.config.schema import Evaluation, Train
from prefopt.evaluate.samples import PolicySamples, Prompts, draw_samples, score_samples
from prefopt.judges.gold import oracle_judgements
from prefopt.losses import make_loss
from prefopt.runtime.progress import Silent
from prefopt.selftest import world
from prefopt.selftest.control import Control
from prefopt.selftest.pipeline import pipeline
from prefopt.storage.schema import REFERENCE
from prefopt.train.feed import FixedOrder
from prefopt.train.heldout import heldout_logps
from prefopt.train.loop import train_group
from prefopt.train.pairset import PairSet
from prefopt.train.state import Run

VARIANTS = {"noop": "noop", "dpo": "dpo", "dpo again": "dpo", "sft": "sft", "dpo_flipped": "dpo_flipped", "ipo": "ipo"}
NOISE = (0.0, 0.2, 0.4, 0.5)
TRAIN = Train(steps=40, pairs_per_step=16, learning_rate=5e-3, warmup_steps=2, eval_every=40, log_every=40)
EVALUATION = Evaluation(prompts=len(world.PROMPTS), samples=32, max_new_tokens=world.LONGEST)
SIGMAS = 4.5  # of sampling noise; a sound pipeline leaves such a band once in ten thousand runs


@dataclass(frozen=True, slots=True)
class Trained:
    """One seed's group: exact log-probabilities by variant, (prompts, responses), and samples of each."""

    runs: dict[str, Run]
    hashes: dict[str, str]
    logps: dict[str, world.Floats]
    samples: dict[str, PolicySamples]


def run_level1(seed: int = 0) -> list[Control]:
    """All controls of level 1.

    Args:
        seed: Of training and sampling; another one gives another outcome within the same bands.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is so small that handing work to threads takes longest
    try:
        return _run(seed)
    finally:
        torch.set_num_threads(threads)


def _run(seed: int) -> list[Control]:
    with tempfile.TemporaryDirectory(prefix="prefopt-selftest-") as folder:
        here = world.make_world(Path(folder), slots=len(VARIANTS) + 1)
        trained = train_variants(here, VARIANTS, here.train(0.0), here.heldout(), seed=seed)
        return [
            *null_loss(trained),
            *twins(trained),
            *directions(trained),
            *estimates(trained),
            *ceiling(trained),
            *label_noise(here, seed),
            *pipeline(here, seed),
        ]


def train_variants(
    here: world.World, variants: Mapping[str, str], train: PairSet, heldout: PairSet, *, seed: int, sampled: bool = True
) -> Trained:
    """Train a group from the same start, then enumerate and sample every policy and the reference."""
    bank = here.model.adapters
    bank.params.zero_()
    runs = [Run(name, make_loss(spec), TRAIN.learning_rate, slot) for slot, (name, spec) in enumerate(variants.items())]
    for run in runs:
        bank.initialise(run.slot, seed)
    train_group(
        here.model,
        runs,
        feed=FixedOrder.of(train, TRAIN, seed),
        heldout=heldout,
        config=TRAIN,
        seed=seed,
        progress=Silent(),
    )
    logps = {run.variant: here.logps(run.slot) for run in runs}
    logps[REFERENCE] = here.logps(None)
    samples = _sample(here, [*variants, REFERENCE], seed) if sampled else {}
    return Trained({r.variant: r for r in runs}, {r.variant: bank.hash(r.slot) for r in runs}, logps, samples)


def _sample(here: world.World, names: list[str], seed: int) -> dict[str, PolicySamples]:
    prompts = Prompts(tuple(world.PROMPTS), tuple(" ".join(f"w{i}" for i in p) for p in world.PROMPTS))
    samples = draw_samples(here.model, slice(0, len(names)), prompts, EVALUATION, seed=seed)
    return {
        name: score_samples(here.model, slot, prompts, samples[slot], world.Task()) for slot, name in enumerate(names)
    }


def null_loss(trained: Trained) -> list[Control]:
    """A loss of zero."""
    judged = _judged(trained, "noop")
    kl = trained.samples["noop"].scores["kl"].abs().max()
    return [
        Control("noop/kl", "A loss of zero: how far does the policy move, in nats?", float(kl), 0.0, 0.0, "exactly"),
        Control(
            "noop/ties",
            "A loss of zero under common random numbers: what share of its texts are the reference's?",
            float(_same_texts(trained, "noop", REFERENCE)),
            1.0,
            1.0,
            f"{len(trained.samples['noop'].texts)} samples",
        ),
        Control("noop/win-rate", "And what is its win rate against the reference?", judged, 0.5, 0.5, "exactly"),
    ]


def twins(trained: Trained) -> list[Control]:
    """One variant under two names, in other places of the same group."""
    first, second = (trained.runs[name].history for name in ("dpo", "dpo again"))
    same = (
        trained.hashes["dpo"] == trained.hashes["dpo again"],
        first == second,
        _same_texts(trained, "dpo", "dpo again") == 1.0,
        bool((trained.logps["dpo"] == trained.logps["dpo again"]).all()),
    )
    return [
        Control(
            "twins/identical",
            "One variant under two names: what share of adapter, curves, texts and log-probabilities agree to the bit?",
            float(np.mean(same)),
            1.0,
            1.0,
        ),
        Control(
            "twins/others-differ",
            "And another variant: what share of its texts is the first one's?",
            _same_texts(trained, "dpo", "dpo_flipped"),
            0.0,
            0.9,
            "so that agreement means something",
        ),
    ]


def directions(trained: Trained) -> list[Control]:
    """Losses whose direction is known."""
    questions = {
        "sft": ("Fine-tuning on the better responses: what is its win rate against the reference?", 0.52, 1.0),
        "dpo": ("DPO on right labels: what is its win rate?", 0.55, 1.0),
        "dpo_flipped": ("DPO on swapped labels: what is its win rate?", 0.0, 0.45),
    }
    return [Control(f"direction/{name}", q, _judged(trained, name), a, b) for name, (q, a, b) in questions.items()]


def estimates(trained: Trained) -> list[Control]:
    """What samples say against what enumeration says."""
    controls = []
    reference = trained.logps[REFERENCE]
    total = max(abs(np.exp(values).sum(1) - 1).max() for values in trained.logps.values())
    controls.append(
        Control(
            "enumeration/total",
            "The probabilities of all responses to a prompt: how far is their sum from 1?",
            float(total),
            0.0,
            1e-4,
            f"{len(world.RESPONSES)} responses, {len(world.PROMPTS)} prompts, {len(trained.logps)} policies",
        )
    )
    for quantity, exact in (
        ("kl", lambda values: world.exact_kl(values, reference)),
        ("reward", world.exact_reward),
    ):
        worst = 0.0
        for name in ("dpo", "sft", "dpo_flipped", "ipo"):
            value, error = _measured(trained, name, quantity)
            worst = max(worst, abs(value - exact(trained.logps[name])) / error)
        controls.append(
            Control(
                f"enumeration/{quantity}",
                f"The {quantity} of samples: how many standard errors from the exact one, at worst of four policies?",
                worst,
                0.0,
                SIGMAS,
                f"{len(trained.samples['dpo'].scores)} samples of each",
            )
        )
    return controls


def ceiling(trained: Trained) -> list[Control]:
    """No policy can be above the exact reward-KL frontier."""
    reference = trained.logps[REFERENCE]
    exact, measured = [], []
    for name in trained.runs:
        values = trained.logps[name]
        best = world.frontier(reference, world.exact_kl(values, reference))
        exact.append(world.exact_reward(values) - best)
        reward, error = _measured(trained, name, "reward")
        kl, kl_error = _measured(trained, name, "kl")
        above = world.frontier(reference, kl + SIGMAS * kl_error)
        measured.append((reward - above) / max(error, 1e-12))
    return [
        Control(
            "frontier/exact",
            "Reward of the best trained policy above the most that any policy has at its KL, both enumerated?",
            max(exact),
            -10.0,
            1e-4,
            "at most 0 but for rounding",
        ),
        Control(
            "frontier/samples",
            "And measured on samples, in standard errors?",
            max(measured),
            -1e6,
            SIGMAS,
            "the check of the reward's and the KL's estimators together",
        ),
    ]


def label_noise(here: world.World, seed: int) -> list[Control]:
    """Training on labels of which a share is wrong, at two seeds."""
    rewards = []
    for noise in NOISE:
        train, heldout = here.train(noise), here.heldout(noise)
        results = []
        for one in (seed, seed + 1):
            trained = train_variants(here, {"dpo": "dpo"}, train, heldout, seed=one, sampled=False)
            results.append(world.exact_reward(trained.logps["dpo"]))
        rewards.append(float(np.mean(results)))
    batch = heldout_logps(here.model, 0, make_loss("dpo"), heldout, seed=seed)
    right = batch.logratios().margin > 0
    n = len(right)
    wide = SIGMAS * 0.5 / n**0.5
    shown = ", ".join(f"{share:g}: {value:.3f}" for share, value in zip(NOISE, rewards, strict=True))
    start = world.exact_reward(here.logps(None))
    return [
        Control(
            "noise/monotone",
            "More wrong labels: what is the smallest fall of the exact reward from one share to the next?",
            float(-np.diff(rewards).max()),
            0.02,
            10.0,
            f"rewards {shown}; reference {start:.3f}",
        ),
        Control(
            "noise/random-labels",
            "Random labels in training and in held-out pairs: what is the held-out accuracy?",
            float(right.double().mean()),
            0.5 - wide,
            0.5 + wide,
            f"{n} pairs",
        ),
    ]


def _measured(trained: Trained, name: str, column: str) -> tuple[float, float]:
    """Mean over samples and its standard error, the prompts being all there are."""
    groups = trained.samples[name].scores.groupby("prompt_id")[column]
    return float(groups.mean().mean()), float(np.sqrt((groups.var() / groups.size()).mean() / len(groups)))


def _same_texts(trained: Trained, one: str, two: str) -> float:
    a, b = (trained.samples[name].texts["response"].to_numpy() for name in (one, two))
    return float((a == b).mean())


def _judged(trained: Trained, name: str) -> float:
    scores = {(key, 0): trained.samples[key].scores for key in (name, REFERENCE)}
    return float(oracle_judgements(scores, [name])["score"].mean())
