"""A causal language model on this machine as a judge, by its probabilities of the answers A and B."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from prefopt.data import Message, encode_prompts
from prefopt.judges.contract import TEMPLATE_HASH, Shown, Verdict, question_text, short_name
from prefopt.model.base import Base
from prefopt.model.logps import score_rows
from prefopt.model.packing import Row
from prefopt.storage.hashing import digest

QUESTIONS_PER_PASS = 64  # verdicts are in the cache after each pass, so that little is lost when it is stopped


class LocalJudge:
    """Verdicts as P(A) / (P(A) + P(B)) of the next token after the question.

    Args:
        base: A loaded causal model; questions go through its chat template where it has one.
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self.name = f"lm:{short_name(base.name)}"
        self.calls = 0
        self.letters = tuple(self._letter(letter) for letter in "AB")
        config = base.model.config.get_text_config()
        self.window = int(getattr(config, "max_position_embeddings", 0) or 1 << 20)
        template = base.tokenizer.chat_template or ""
        self.fingerprint = digest(["lm", base.hash, base.packed, base.device.type, TEMPLATE_HASH, template])
        self._mass: list[float] = []

    def ask(self, questions: Sequence[Shown]) -> Iterator[tuple[int, Verdict]]:
        """Soft verdicts; a question longer than the model's window has none."""
        rows = list(enumerate(self._prompts([question_text(question) for question in questions])))
        for i, tokens in rows:
            if len(tokens) >= self.window:
                yield i, Verdict(None, f"question of {len(tokens)} tokens; the model reads {self.window}")
        fitting = [(i, tokens) for i, tokens in rows if len(tokens) < self.window]
        for start in range(0, len(fitting), QUESTIONS_PER_PASS):
            batch = fitting[start : start + QUESTIONS_PER_PASS]
            self.calls += len(batch)
            logps = self._logps([tokens for _, tokens in batch])
            self._mass.extend(np.exp(logps).sum(1))
            for (i, _), (a, b) in zip(batch, logps, strict=True):
                if np.isfinite(a) and np.isfinite(b):
                    yield i, Verdict(float(1 / (1 + np.exp(np.clip(b - a, -700, 700)))))
                else:
                    yield i, Verdict(None, "log-probabilities that are not finite")

    def facts(self) -> dict[str, object]:
        """Weights, and the probability that it gives to answering A or B at all: near 0, it does not see the task."""
        mass = {"probability of A or B": float(np.mean(self._mass))} if self._mass else {}
        return {"weights": self.base.hash, "dtype": str(self.base.dtype).removeprefix("torch."), **mass}

    def _logps(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """(N, 2) log-probabilities of the two letters."""
        if self.base.packed:
            rows = [Row(tuple(tokens), self.letters) for tokens in prompts]
        else:
            rows = [Row(tuple(tokens), (letter,)) for tokens in prompts for letter in self.letters]
        return score_rows(self.base, rows).reshape(-1, 2).astype(np.float64)

    def _letter(self, letter: str) -> tuple[int, ...]:
        """The tokens of a letter where an answer starts."""
        before = "" if self.base.tokenizer.chat_template else " "
        return tuple(self.base.tokenizer(before + letter, add_special_tokens=False)["input_ids"])

    def _prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of questions; control tokens in the judged texts are text, not the judge's own."""
        tokenizer = self.base.tokenizer
        if not tokenizer.chat_template:
            return encode_prompts([text + "\n\nAnswer:" for text in texts], tokenizer)
        return encode_prompts([(Message("user", text),) for text in texts], tokenizer)
