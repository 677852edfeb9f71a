"""Pairs and rows of random tokens, and log-probabilities of them computed by hand."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from prefopt.data import TokenPair


def draw(n: int, source: torch.Generator) -> tuple[int, ...]:
    return tuple(torch.randint(3, 320, (n,), generator=source).tolist())


def pairs(count: int = 5, seed: int = 0) -> list[TokenPair]:
    source = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 12, (count, 3), generator=source).tolist()
    return [
        TokenPair(draw(p, source), (*draw(c, source), 2), (*draw(r, source), 2), i, i, 0.0, 0.0, False, False)
        for i, (p, c, r) in enumerate(sizes)
    ]


def by_hand(folder: Path, prompt: tuple[int, ...], response: tuple[int, ...]) -> float:
    """One response at a time, one token at a time, by a model that knows nothing of this project."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    total = 0.0
    with torch.no_grad():
        for i, token in enumerate(response):
            logits = model(torch.tensor([[*prompt, *response[:i]]])).logits[0, -1]
            total += logits.double().log_softmax(-1)[token].item()
    return total
