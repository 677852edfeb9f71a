"""Reads verdicts by people or another tool from a JSONL file.

Each line is an object with ``prompt``, ``a``, ``b`` (texts) and ``verdict``: ``"a"``, ``"b"``, ``"tie"``, a number
from 0 to 1 (how far a wins), or null where somebody looked and could not say. ``prefopt judge --questions FILE``
writes such a file without the verdicts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from prefopt.errors import DataError
from prefopt.judges.contract import Shown, Verdict
from prefopt.storage.hashing import digest, sha256_file

_WORDS = {"a": 1.0, "b": 0.0, "tie": 0.5}


class FileJudge:
    """Looks verdicts up by their texts; a comparison that the file does not hold is left out, not unusable.

    Several lines on one comparison are averaged. People see a comparison in one order as a rule, and so a verdict
    stands for both orders unless the file holds the other one too.

    Raises:
        DataError: If the file or a line of it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.name = f"file:{path.stem}"
        self.calls = 0
        self._path = path
        self._known: dict[Shown, list[float | None]] = {}
        try:
            # Only a line feed ends a line: texts may hold what Unicode calls a line separator.
            lines = path.read_text(encoding="utf-8-sig").split("\n")
            self.fingerprint = digest(["file", sha256_file(path)])
        except (OSError, UnicodeDecodeError) as problem:
            raise DataError(f"{path}: cannot be read: {getattr(problem, 'strerror', None) or problem}") from None
        for number, line in enumerate(lines, start=1):
            if line.strip():
                question, verdict = _read(line, f"{path.name}:{number}")
                self._known.setdefault(question, []).append(verdict)

    def require_any(self, questions: Sequence[Shown]) -> None:
        """Refuse a file of which not one line is on these comparisons.

        Raises:
            DataError: Naming the file, and what would make it match.
        """
        if not any(self.holds(question) for question in questions):
            raise DataError(
                f"{self._path}: none of its {len(self._known)} comparisons is one of this folder's {len(questions)}: "
                "write the texts with prefopt judge FOLDER --judge ... --questions FILE, and change only verdict"
            )

    def holds(self, question: Shown) -> bool:
        """Whether the file has a line on this comparison, in either order."""
        return question in self._known or question.swapped() in self._known

    def ask(self, questions: Sequence[Shown]) -> Iterator[tuple[int, Verdict]]:
        """The file's verdicts; those it does not hold are skipped."""
        for i, question in enumerate(questions):
            if question in self._known:
                yield i, _mean(self._known[question])
            elif question.swapped() in self._known:
                verdict = _mean(self._known[question.swapped()])
                yield i, verdict if verdict.first is None else Verdict(1 - verdict.first, mirrored=True)

    def labelled(self) -> list[tuple[Shown, float]]:
        """The comparisons that have a verdict, and how far the first text wins."""
        means = ((question, _mean(verdicts).first) for question, verdicts in self._known.items())
        return [(question, first) for question, first in means if first is not None]

    def facts(self) -> dict[str, object]:
        """How many comparisons the file holds."""
        return {"comparisons in the file": len(self._known)}


def _mean(verdicts: Sequence[float | None]) -> Verdict:
    usable = [value for value in verdicts if value is not None]
    return Verdict(sum(usable) / len(usable)) if usable else Verdict(None, "no verdict in the file")


def _read(line: str, where: str) -> tuple[Shown, float | None]:
    try:
        row = json.loads(line)
    except ValueError as problem:
        raise DataError(f"{where}: not JSON: {problem}") from None
    texts = [row.get(key) for key in ("prompt", "a", "b")] if isinstance(row, dict) else []
    if not texts or not all(isinstance(text, str) for text in texts) or "verdict" not in row:
        raise DataError(f"{where}: needs the fields prompt, a, b (texts) and verdict")
    value = row["verdict"]
    question = Shown(row["prompt"], row["a"], row["b"])
    if isinstance(value, str) and value.strip().lower() in _WORDS:
        return question, _WORDS[value.strip().lower()]
    if value is None:
        return question, None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return question, float(value)
    raise DataError(f'{where}: verdict must be "a", "b", "tie", null or a number from 0 to 1; got {json.dumps(value)}')
