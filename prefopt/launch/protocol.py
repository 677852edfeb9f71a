"""What a supervisor and its worker tell each other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TextIO


class Events:
    """Progress as lines of JSON; every line is a sign of life."""

    def __init__(self, out: TextIO) -> None:
        self.out = out

    def send(self, kind: str, *values: Any) -> None:
        """One line."""
        self.out.write(json.dumps([kind, *values]) + "\n")
        self.out.flush()

    def stage(self, text: str, done: int, total: int) -> None:
        """What is running now, and how far it is."""
        self.send("stage", text, done, total)

    def step(self, text: str, done: int, total: int, values: Mapping[str, Mapping[str, float]]) -> None:
        """The same for a step of training, with the last metrics of each variant."""
        self.send("step", text, done, total, values)

    def say(self, text: str) -> None:
        """A line that stays."""
        self.send("say", text)

    def at(self, seed: int, variants: Sequence[str], step: int) -> None:
        """Which runs are under way."""
        self.send("at", seed, list(variants), step)
