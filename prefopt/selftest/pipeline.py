"""Controls of what lies around a loss: policy gradients, rounds, and the frontier that no policy passes.

The first two are exact: every response of a small vocabulary is listed, and expectations are sums. The third runs the
harness's own rounds, on the tiny model's own samples.

Shapes: M responses, K of a group, N groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prefopt.config.schema import Train
from prefopt.contract.groups import GroupLogps, GroupLoss
from prefopt.contract.loss import PairLogps
from prefopt.data.builders import All, BestWorst, Labelling
from prefopt.losses import make_loss
from prefopt.runtime.progress import Silent
from prefopt.selftest import world
from prefopt.selftest.control import Control
from prefopt.train.loop import train_group
from prefopt.train.rounds import OnPolicy, Plan
from prefopt.train.state import Run

LISTED, GROUP, BETA = 12, 3, 0.4  # responses that are listed, of one group, and the price of the KL
ROUNDS, STEPS_OF_ROUND = 12, 60
ONLINE = {"dpo": BestWorst(), "dpo in 2 rounds": All(), "rloo[beta=0.1]": All()}
TRAIN = Train(steps=32, pairs_per_step=16, learning_rate=5e-3, warmup_steps=2, eval_every=32, log_every=32)


def pipeline(here: world.World, seed: int) -> list[Control]:
    """All of them."""
    reference, rewards = _listed(here)
    return [*policy_gradient(reference, rewards), *rounds_of_dpo(reference, rewards), *online(here, seed)]


def _listed(here: world.World) -> tuple[Tensor, Tensor]:
    """(M,) the reference's log-probabilities of the first prompt's likeliest responses, renormalised, and rewards."""
    logps = here.logps(None)[0]
    which = np.argsort(-logps)[:LISTED]
    return torch.from_numpy(logps[which]).log_softmax(0), torch.from_numpy(world.REWARDS[which])


def policy_gradient(reference: Tensor, rewards: Tensor) -> list[Control]:
    """The expectation of RLOO's gradient over all groups, against the gradient of what it is to maximise."""
    source = torch.Generator().manual_seed(1)
    start = reference + 0.5 * torch.randn(LISTED, generator=source, dtype=torch.float64)
    groups = torch.tensor(list(product(range(LISTED), repeat=GROUP)))  # (N, K)
    loss = make_loss(f"rloo[beta={BETA}]")
    assert isinstance(loss, GroupLoss)
    errors = []
    for told in (False, True):  # whether the policy that drew the responses is named, or is the policy itself
        logits = start.clone().requires_grad_()
        logps = logits.log_softmax(0)
        own = logps[groups]
        listed = GroupLogps(
            logps=own,
            lengths=torch.ones_like(own).detach(),
            mask=torch.ones_like(own, dtype=torch.bool),
            preference=rewards[groups],
            rewards=rewards[groups],
            ref_logps=reference[groups],
            behaviour=own.detach() if told else None,
        )
        chance = own.detach().sum(1).exp()
        (estimated,) = torch.autograd.grad((chance * loss.group(listed)).sum(), logits)
        objective = _objective(start.clone().requires_grad_(), reference, rewards)
        errors.append(float((estimated + objective).abs().max() / objective.abs().max()))
    return [
        Control(
            "rloo/gradient",
            "RLOO's gradient, averaged over every group that there is: how far from that of E[r] - beta KL?",
            max(errors),
            0.0,
            1e-9,
            f"{len(groups)} groups of {GROUP} of {LISTED} responses; relative, in float64",
        )
    ]


def _objective(logits: Tensor, reference: Tensor, rewards: Tensor) -> Tensor:
    """(M,) gradient of E[r] - beta KL(pi || pi_ref)."""
    logps = logits.log_softmax(0)
    value = (logps.exp() * (rewards - BETA * (logps - reference))).sum()
    return torch.autograd.grad(value, logits)[0]


def rounds_of_dpo(reference: Tensor, rewards: Tensor) -> list[Control]:
    """Rounds of DPO on all pairs of the current policy, each as often as it would be drawn and preferred."""
    loss = make_loss(f"dpo[beta={BETA}]")
    pairs = torch.tensor(list(product(range(LISTED), repeat=2)))  # (N, 2)
    preferred = torch.sigmoid(rewards[pairs[:, 0]] - rewards[pairs[:, 1]])
    logits = reference.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(ROUNDS):
        current = logits.detach().log_softmax(0)
        weight = preferred * (current[pairs[:, 0]] + current[pairs[:, 1]]).exp()
        for _ in range(STEPS_OF_ROUND):
            optimizer.zero_grad()
            logps, ones = logits.log_softmax(0), torch.ones(len(pairs), dtype=torch.float64)
            chosen, rejected = (logps[side] for side in pairs.T)
            ref_chosen, ref_rejected = (reference[side] for side in pairs.T)
            batch = PairLogps(chosen, rejected, ones, ones, ref_chosen, ref_rejected)
            (weight * loss(batch)).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    best = (reference + rewards / BETA).log_softmax(0)
    distance = (best.exp() * (best - logits.detach().log_softmax(0))).sum()
    from_start = (best.exp() * (best - reference)).sum()
    return [
        Control(
            "rounds/optimum",
            "Rounds of DPO against a fixed reference: what share of the KL to pi_ref exp(r / beta) / Z is left?",
            float(distance / from_start),
            0.0,
            1e-3,
            f"{ROUNDS} rounds of {STEPS_OF_ROUND} steps; {float(from_start):.3g} nats at the start",
        )
    ]


def online(here: world.World, seed: int) -> list[Control]:
    """The harness's own rounds: policies that train on what they say themselves."""
    bank = here.model.adapters
    bank.params.zero_()
    runs = [Run(n, make_loss(n.split(" ")[0]), TRAIN.learning_rate, slot) for slot, n in enumerate(ONLINE)]
    for run in runs:
        bank.initialise(run.slot, seed)
    folder = here.cache / f"rounds-{seed}"
    feed = OnPolicy(
        model=here.model,
        prompts=world.PROMPTS,
        score={run.slot: _score for run in runs},
        plans={run.slot: _plan(16 if "2 rounds" in run.variant else 4, seed) for run in runs},
        builders=dict(enumerate(ONLINE.values())),
        path=lambda slot, number: _path(folder, slot, number),
    )
    train_group(
        here.model, runs, feed=feed, heldout=here.heldout(), config=TRAIN, seed=seed, progress=Silent(),
    )  # fmt: skip
    reference = here.logps(None)
    policies = {run.variant: here.logps(run.slot) for run in runs}
    above = [
        world.exact_reward(logps) - world.frontier(reference, world.exact_kl(logps, reference))
        for logps in policies.values()
    ]
    gains = {name: world.exact_reward(logps) - world.exact_reward(reference) for name, logps in policies.items()}
    shown = ", ".join(f"{name} {gain:+.3f}" for name, gain in gains.items())
    left = ", ".join(run.outcome.reason for run in runs if run.outcome.reason)
    return [
        Control(
            "rounds/frontier",
            "Policies trained in rounds: how far is the best above the most that any policy has at its KL?",
            max(above),
            -10.0,
            1e-4,
            "both enumerated; at most 0 but for rounding",
        ),
        Control(
            "rounds/gain",
            "And by how much does the exact reward of the worst of them rise?",
            min(gains.values()) if not left else float("nan"),
            0.05,
            10.0,
            f"{shown}{left}",
        ),
    ]


def _score(which: Sequence[int], responses: Sequence[str]) -> world.Floats:
    return world.Task().reward([""] * len(responses), responses)


def _plan(steps: int, seed: int) -> Plan:
    return Plan(
        steps=steps,
        prompts=len(world.PROMPTS),
        samples=4,
        max_new_tokens=world.LONGEST,
        temperature=1.0,
        reference="first",
        labelling=Labelling("argmax", 1.0),
        pairs_per_step=TRAIN.pairs_per_step,
        seed=seed,
    )


def _path(folder: Path, slot: int, number: int) -> Path:
    return folder / str(slot) / f"round-{number:06}"
