"""Which column of a source is which: standard names, aliases, the user's map, and names that cannot be trusted."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prefopt.data.parse import Row
from prefopt.data.problems import RowError, refuse, show

COLUMNS = ("prompt", "chosen", "rejected", "chosen_score", "rejected_score")
_SCORE_ALIASES = {"score_chosen": "chosen_score", "score_rejected": "rejected_score"}
_STANDARD = {**{name: name for name in COLUMNS}, **_SCORE_ALIASES}
# Names that other data sets give the three columns; only ever suggested, never assumed.
_KNOWN_NAMES = {
    "prompt": ("question", "instruction", "input", "query", "messages", "context", "conversations"),
    "chosen": ("response_j", "accepted", "preferred", "winner", "answer_chosen", "chosen_response", "response_chosen"),
    "rejected": ("response_k", "dispreferred", "loser", "answer_rejected", "rejected_response", "response_rejected"),
}
_MAX_EXTRA_COLUMNS = 100
_MAX_NAME_CHARS = 80
_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")


@dataclass
class Columns:
    """Which column of the source is which."""

    names: dict[str, str]  # the source's name -> standard name
    has_prompt: bool
    extra: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, source: str, head: Sequence[tuple[int, Row]], column_map: Mapping[str, str]) -> Columns:
        """The columns that the first rows have.

        Raises:
            DataError: If chosen or rejected is missing, or two columns could be the same one.
        """
        names = {name: standard for name, standard in _STANDARD.items() if standard not in column_map}
        names |= {name: standard for standard, name in column_map.items()}
        seen = list(dict.fromkeys(key for _, row in head for key in row))
        present = {names[key] for key in seen if key in names}
        missing = [name for name in ("chosen", "rejected") if name not in present]
        missing += [name for name in column_map if name not in present and name not in missing]
        columns = cls(names=names, has_prompt="prompt" in present)
        for number, row in head:
            try:
                columns.check(row)
            except RowError as problem:
                raise refuse(source, number, problem) from None
        if head and missing:
            wanted = "needs chosen and rejected, and prompt unless they share it"
            message = f"no column {' or '.join(missing)}: found {', '.join(show(key) for key in seen[:20])}; {wanted}"
            raise refuse(source, 0, RowError("DATA003", message, fix=_suggest(seen, present)))
        _refuse_lookalikes(source, [key for key in seen if key not in names], present)
        return columns

    def check(self, row: Row) -> None:
        """Refuse names that cannot be written down, and two names of one standard column.

        Raises:
            RowError: Naming the column; leaving out the row would leave the doubt.
        """
        for key in row:
            if broken := _UNWRITABLE.search(key):
                nul = broken[0] == "\x00"
                what = "NUL" if nul else "half of a surrogate pair"
                message = f"character {broken.start() + 1} of the column name {show(key)} is {what}"
                raise RowError("DATA012" if nul else "DATA011", message, fix="rename the column, or remove it")
        doubles = Counter(self.names[key] for key in row if key in self.names)
        for standard in (name for name, count in doubles.items() if count > 1):
            rivals = " and ".join(show(key) for key in row if self.names.get(key) == standard)
            fix = f"remove one of them, or say which counts: --column-map {standard}=..."
            raise RowError("DATA013", f"both {rivals} give it", field=standard, fix=fix)

    def standard(self, row: Row) -> Row:
        """The standard columns of a row; the others are noted.

        Raises:
            RowError: For names that cannot be trusted, or a prompt where the rows before had none.
        """
        self.check(row)
        columns = {}
        for key, value in row.items():
            if key in self.names:
                columns[self.names[key]] = value
            elif len(self.extra) < _MAX_EXTRA_COLUMNS:
                self.extra.add(key[:_MAX_NAME_CHARS])
        if "prompt" in columns and not self.has_prompt:
            message = "the column is first seen here, and the rows before have none"
            raise RowError(
                "DATA002", message, field="prompt", fix="give every row a prompt, or none, or split the file"
            )
        return columns


def _plain(name: str) -> str:
    """A column name as it looks: without what cannot be seen, in lower case, with ``_`` between words."""
    shown = "".join(c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) not in ("Cc", "Cf"))
    return re.sub(r"[\s-]+", "_", shown.strip()).casefold()


def _refuse_lookalikes(source: str, others: Sequence[str], present: set[str]) -> None:
    """Refuse a column that looks like a standard one which the source lacks: it would be ignored."""
    for key in others:
        standard = _STANDARD.get(_plain(key))
        if standard and standard not in present:
            message = f"the column {show(key)} looks like {standard} and is not spelled so"
            fix = f"rename it, or pass --column-map {standard}={key}" if key.isprintable() else "rename it"
            raise refuse(source, 0, RowError("DATA003", message, field=standard, fix=fix))


def _suggest(seen: Sequence[str], present: set[str]) -> str:
    near = {
        standard: next((key for key in seen if key.lower() in names), None)
        for standard, names in _KNOWN_NAMES.items()
        if standard not in present
    }
    guess = ",".join(f"{standard}={name or '...'}" for standard, name in near.items())
    return f"rename the columns, or pass --column-map {guess or 'prompt=...,chosen=...,rejected=...'}"
