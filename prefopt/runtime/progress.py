"""Who is told how far a comparison is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Progress(Protocol):
    """Where a comparison says what it is doing."""

    def stage(self, text: str, done: int, total: int) -> None:
        """What is running now, and how far it is."""

    def step(self, text: str, done: int, total: int, values: Mapping[str, Mapping[str, float]]) -> None:
        """The same for a step of training, with the last metrics of each variant."""

    def say(self, text: str) -> None:
        """A line that stays."""
