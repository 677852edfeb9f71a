"""A results folder of a tuned comparison with known effects: trials below ``tuning``, winners and defaults above."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from synthetic import Planted, World

RATES = (1.5e-4, 3e-4, 6e-4, 1.2e-3)
BEST = 6e-4
GAINS = dict(zip(RATES, (0.1, 0.4, 0.9, 0.6), strict=True))


def write(root: Path, families: tuple[str, ...] = ("dpo", "simpo"), *, gold: bool = True, **tune: Any) -> Path:
    """The folder; trial 0 is at 5e-4 with a small gain, and the best rate of every loss is ``BEST``."""
    settings = {
        "trials": 1 + len(RATES), "criterion": "auto", "max_kl": None, "seeds": [1000],
        "ranges": {family: {"lr": [1e-4, 1e-3], "beta": [0.01, 1.0]} for family in families}, **tune,
    }  # fmt: skip
    config: dict[str, Any] = {"train": {"learning_rate": 5e-4}, "tune": settings, "evaluation": {"delta": 0.02}}
    trials = [facts for family in families for facts in _trials(family)]
    planted = {str(facts["variant"]): _planted(facts) for facts in trials}
    inner = World(variants=planted, seeds=1, prompts=48, samples=2, pairs=48, gold=gold)
    diverged = frozenset({(f"{families[-1]}[lr={RATES[-1]}]", 0)})
    of_trials = {**config, "variants": [{"label": facts["variant"]} for facts in trials]}
    dataclasses.replace(inner, diverged=diverged, manifest={"variants": trials, "config": of_trials}).write(
        root / "tuning", random_state=1
    )
    kept = [facts for facts in trials if facts["learning_rate"] in (5e-4, BEST)]
    config["variants"] = [{"label": facts["variant"]} for facts in kept]
    final = {str(facts["variant"]): _planted(facts) for facts in kept}
    World(
        variants=final, seeds=1, prompts=32, samples=2, pairs=48, gold=gold,
        manifest={"variants": kept, "config": config},
    ).write(root)  # fmt: skip
    return root


def _planted(facts: dict[str, Any]) -> Planted:
    rate = facts["learning_rate"]
    gain = GAINS.get(rate, 0.2)
    return Planted(gain=gain, kl=2000 * rate, margin=1 + 4 * gain, drop=2.0)


def _trials(family: str) -> list[dict[str, Any]]:
    def facts(name: str, rate: float) -> dict[str, Any]:
        return {
            "variant": name, "loss": family, "family": family, "spec": {"loss": family, "beta": 0.1},
            "source": "arXiv:2305.18290, Eq. 7", "summary": "A loss.", "needs_reference": True,
            "length_normalized": False, "batch_coupled": False, "learning_rate": rate,
        }  # fmt: skip

    return [facts(family, 5e-4), *(facts(f"{family}[lr={rate}]", rate) for rate in RATES)]
