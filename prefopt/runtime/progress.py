"""How a comparison tells others how far it is: what a listener hears, one that ignores it, and several at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

# The last metrics of each variant, by variant and metric.
LatestMetrics = Mapping[str, Mapping[str, float]]


class Progress(Protocol):
    """A listener: a display, a pipe to another process, or a tracker."""

    def stage(self, text: str, done: int, total: int) -> None:
        """What is running now, and how far it is."""

    def step(self, text: str, done: int, total: int, values: LatestMetrics) -> None:
        """The same for a step of training, with the last metrics of each variant."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def at(self, seed: int, variants: Sequence[str], step: int) -> None:
        """The seed, the variants and the step that are under way."""


class Silent:
    """A listener that ignores everything."""

    def stage(self, text: str, done: int, total: int) -> None:
        """Ignored."""

    def step(self, text: str, done: int, total: int, values: LatestMetrics) -> None:
        """Ignored."""

    def say(self, text: str) -> None:
        """Ignored."""

    def at(self, seed: int, variants: Sequence[str], step: int) -> None:
        """Ignored."""


class Titled:
    """Tells a listener what is under way below a title, such as ``seed 2 of 5: training 4 variants``."""

    def __init__(self, listener: Progress, title: str) -> None:
        self._listener, self._title = listener, title

    def stage(self, text: str, done: int, total: int) -> None:
        """What is running now, and how far it is."""
        self._listener.stage(f"{self._title}: {text}", done, total)

    def step(self, text: str, done: int, total: int, values: LatestMetrics) -> None:
        """The same for a step of training, with the last metrics of each variant."""
        self._listener.step(f"{self._title}: {text}", done, total, values)

    def say(self, text: str) -> None:
        """A line that stays."""
        self._listener.say(f"{self._title}: {text}")

    def at(self, seed: int, variants: Sequence[str], step: int) -> None:
        """The seed, the variants and the step that are under way."""
        self._listener.at(seed, variants, step)


class Several:
    """Tells several listeners the same, in order, so that one more changes nothing for the others.

    Each gets its own copy of what can be changed. One that raises is told nothing more, and the others are told why;
    the last one's exception is raised.
    """

    def __init__(self, *listeners: Progress) -> None:
        self._listeners = list(listeners)

    def stage(self, text: str, done: int, total: int) -> None:
        """What is running now, and how far it is."""
        self._tell("stage", text, done, total)

    def step(self, text: str, done: int, total: int, values: LatestMetrics) -> None:
        """The same for a step of training, with the last metrics of each variant."""
        for listener in tuple(self._listeners):
            own = {variant: dict(metrics) for variant, metrics in values.items()}
            self._tell_one(listener, "step", text, done, total, own)

    def say(self, text: str) -> None:
        """A line that stays."""
        self._tell("say", text)

    def at(self, seed: int, variants: Sequence[str], step: int) -> None:
        """The seed, the variants and the step that are under way."""
        self._tell("at", seed, tuple(variants), step)

    def _tell(self, what: str, *values: Any) -> None:
        for listener in tuple(self._listeners):
            self._tell_one(listener, what, *values)

    def _tell_one(self, listener: Progress, what: str, *values: Any) -> None:
        try:
            getattr(listener, what)(*values)
        except Exception as problem:
            if len(self._listeners) == 1:
                raise
            self._listeners.remove(listener)
            self.say(f"{type(listener).__name__} is told nothing more: {type(problem).__name__}: {problem}")
