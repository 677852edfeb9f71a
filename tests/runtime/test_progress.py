"""Several listeners hear the same, whatever one of them does."""

from __future__ import annotations

from typing import Any

import pytest

from prefopt.runtime.progress import Progress, Several, Silent, Titled


class Noted(Silent):
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def stage(self, text: str, done: int, total: int) -> None:
        self.heard.append((text, done, total))

    def step(self, text: str, done: int, total: int, values: Any) -> None:
        self.heard.append((text, done, total, values))

    def say(self, text: str) -> None:
        self.heard.append(text)

    def at(self, seed: int, variants: Any, step: int) -> None:
        self.heard.append((seed, list(variants), step))


class Greedy(Silent):
    """Changes what it is given."""

    def step(self, text: str, done: int, total: int, values: Any) -> None:
        values["dpo"].clear()


class Broken(Silent):
    def stage(self, text: str, done: int, total: int) -> None:
        raise OSError("the server is gone")


def tell(progress: Progress) -> None:
    progress.stage("loading", 0, 1)
    progress.step("training", 1, 3, {"dpo": {"loss": 0.5}})
    progress.say("done")
    progress.at(0, ["dpo"], 1)


def test_one_more_listener_changes_nothing_for_the_others() -> None:
    alone, first, last = Noted(), Noted(), Noted()
    tell(alone)
    tell(Several(first, Greedy(), last))
    assert first.heard == last.heard == alone.heard


def test_one_that_raises_is_told_nothing_more() -> None:
    alone, first, last = Noted(), Noted(), Noted()
    tell(alone)
    tell(Several(first, Broken(), last))
    said = "Broken is told nothing more: OSError: the server is gone"
    for noted in (first, last):
        assert noted.heard.count(said) == 1
        assert [heard for heard in noted.heard if heard != said] == alone.heard


def test_the_only_listener_s_exception_is_raised() -> None:
    with pytest.raises(OSError, match="the server is gone"):
        Several(Broken()).stage("loading", 0, 1)


def test_a_title_stands_before_every_text_and_changes_nothing_else() -> None:
    alone, titled = Noted(), Noted()
    tell(alone)
    tell(Titled(titled, "seed 1"))
    stage, step, said, at = alone.heard
    assert titled.heard == [
        (f"seed 1: {stage[0]}", *stage[1:]),
        (f"seed 1: {step[0]}", *step[1:]),
        f"seed 1: {said}",
        at,
    ]
