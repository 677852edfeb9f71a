"""Collects what is wrong with the rows of a source, to report it in one message or to count it as dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from prefopt.data.types import BadRows
from prefopt.errors import DataError

SHOWN = 20
_DROP = "drop the row, or pass --on-bad-rows=drop"

# Stable codes with what they stand for; the words name the reason in counts of dropped rows.
CODES: Mapping[str, str] = {
    "DATA001": "no rows",
    "DATA002": "missing field",
    "DATA003": "missing column",
    "DATA004": "null value",
    "DATA005": "not a finite number",
    "DATA006": "wrong type",
    "DATA007": "text mixed with messages",
    "DATA008": "invalid JSON",
    "DATA009": "incomplete file",
    "DATA010": "invalid UTF-8",
    "DATA011": "lone surrogate",
    "DATA012": "NUL character",
    "DATA013": "duplicate key",
    "DATA014": "equal responses",
    "DATA015": "empty text",
    "DATA016": "nested too deeply",
    "DATA017": "contradictions",
    "DATA018": "too large",
    "DATA019": "leak",
    "DATA020": "prompt too long",
    "DATA021": "equal responses after truncation",
    "DATA022": "wrong number of fields",
    "DATA023": "unusable message",
    "DATA024": "order of roles",
    "DATA025": "prompt not shared",
    "DATA026": "control token",
    "DATA027": "chat template",
    "DATA028": "file changed",
    "DATA029": "unreadable file",
    "DATA032": "too few pairs",
    "DATA034": "column that would be left out",
}


class RowError(Exception):
    """One row that cannot be used.

    Attributes:
        code: A key of ``CODES``.
        field: The column, or None where the row as a whole is meant.
        fix: What the user can do.
        droppable: Whether leaving the row out makes the rest sound.
        reason: The name under which dropped rows are counted.
    """

    def __init__(
        self, code: str, message: str, *, field: str | None = None, fix: str = _DROP, reason: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.fix = fix
        self.droppable = fix.endswith(_DROP)
        self.reason = f"{code} {reason or CODES[code]}"

    def describe(self, source: str, row: int) -> str:
        """``error[DATA014] file:17 field "rejected": what. Fix: how.``"""
        place = f"{source}:{row}" if row else source
        field = f' field "{self.field}"' if self.field else ""
        return f"error[{self.code}] {place}{field}: {self}. Fix: {self.fix}."


def or_drop(fix: str) -> str:
    """A fix, followed by the two ways of leaving the row out."""
    return f"{fix}, or {_DROP}"


def show(value: object, limit: int = 40) -> str:
    """A value from the data, quoted, short, and inert on a terminal."""
    text = value if isinstance(value, str) else str(value)
    return ascii(text if len(text) <= limit else text[:limit] + "...")


class Problems:
    """Collects the problems of one source, in bounded memory.

    Args:
        source: Names the source in messages.
        on_bad_rows: ``"refuse"`` makes every problem fatal; ``"drop"`` only those that no dropping can mend.
    """

    def __init__(self, source: str, on_bad_rows: BadRows) -> None:
        self.source = source
        self.dropped: Counter[str] = Counter()
        self._drop = on_bad_rows == "drop"
        self._fatal: list[str] = []
        self._codes: Counter[str] = Counter()
        self._kinds: Counter[tuple[str, str | None]] = Counter()
        self._first: RowError | None = None

    def add(self, row: int, error: RowError, source: str = "") -> None:
        """Count a problem of a row (0 for the source as a whole); ``source`` where it is a file of several."""
        if self._drop and error.droppable:
            self.dropped[error.reason] += 1
            return
        self._codes[error.code] += 1
        self._kinds[error.code, error.field] += 1
        self._first = self._first or error
        if len(self._fatal) < SHOWN:
            self._fatal.append(error.describe(source or self.source, row))

    def raise_if_any(self, rows: int = 0) -> None:
        """Raise one error for all problems that were collected.

        Args:
            rows: How many rows were read; a problem that all of them have is told once, as one of the format.

        Raises:
            DataError: If any problem was fatal: the first twenty, and counts of all.
        """
        total = sum(self._codes.values())
        if not total:
            return
        if self._first is not None and total == rows > 1 and len(self._kinds) == 1:
            raise refuse(self.source, 0, _of_all(self._first, rows))
        lines = list(self._fatal)
        if total > 1:
            counts = ", ".join(f"{code} {CODES[code]}: {n}" for code, n in sorted(self._codes.items()))
            shown = f"; the first {SHOWN} are shown" if total > SHOWN else ""
            lines.append(f"{self.source}: {total} problems ({counts}){shown}.")
        lines[-1] += " Nothing was written."
        raise DataError("\n".join(lines))


def _of_all(error: RowError, rows: int) -> RowError:
    """The problem that every row has, so that dropping rows cannot mend it."""
    fix = error.fix.removesuffix(_DROP).removesuffix(", or ")
    fix = fix or "write prompt, chosen and rejected as text, or as lists of {role, content} (see README)"
    return RowError(error.code, f"each of the {rows} rows: {error}", field=error.field, fix=fix)


def refuse(source: str, row: int, error: RowError) -> DataError:
    """The ``DataError`` for one problem that ends the reading at once."""
    return DataError(f"{error.describe(source, row)} Nothing was written.")
