"""One control: a question with a known answer, the number measured, and the band it must lie in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite, nan
from typing import Any


@dataclass(frozen=True)
class Control:
    """The outcome of one control.

    Attributes:
        name: Short and unique, such as ``false-positives/seeds-5``.
        question: What was asked, in a sentence for a reader of the report.
        value: What came out.
        low: Least value that passes.
        high: Greatest value that passes.
        detail: Sizes of the simulation, and why the band is what it is.
    """

    name: str
    question: str
    value: float
    low: float
    high: float
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Whether the value lies in the band; a value that is not a number does not."""
        return bool(self.low <= self.value <= self.high)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the fields and ``passed``; a value that is not a finite number is null."""
        numbers = {"low": float(self.low), "high": float(self.high)}
        value = float(self.value) if isfinite(self.value) else None
        return {**asdict(self), **numbers, "value": value, "passed": self.passed}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Control:
        """The control that ``as_dict`` wrote."""
        value = nan if row["value"] is None else float(row["value"])
        return cls(row["name"], row["question"], value, row["low"], row["high"], row["detail"])
