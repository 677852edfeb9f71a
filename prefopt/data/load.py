"""Turns a file or a hub dataset into validated pairs, and counts everything worth noting."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

from prefopt.data.columns import COLUMNS, NONE, Columns
from prefopt.data.hub import HUB_NAME
from prefopt.data.problems import Problems, RowError, refuse, show
from prefopt.data.sources import local_files, open_source, sha256_of
from prefopt.data.types import BadRows, LoadedPairs, LoadReport, Pair
from prefopt.data.validate import make_pair, normalise, prompt_key
from prefopt.errors import UsageError

_HEADER_ROWS = 100  # columns are those of the first rows, since JSONL has no header
_MAX_CONTRADICTIONS = 0.05
_WARNED = 5


def load_pairs(
    source: str,
    *,
    on_bad_rows: BadRows = "refuse",
    column_map: Mapping[str, str] | None = None,
    max_row_bytes: int = 1_000_000,
    dedup: bool = False,
) -> LoadedPairs:
    """Read preference pairs and refuse, or count, whatever is wrong with them.

    Rows have prompt, chosen and rejected as text or as chat messages, those of OpenAI or ShareGPT, as lists, as one
    message or as JSON in a text. The prompt column may be left out, and is then what chosen and rejected share; beside
    a column that may be the prompt under another name it may not. Alpaca's instruction and input, and the chat in
    messages or conversations, are the prompt; a system column is the first message. Scores are read from chosen_score
    and rejected_score (or score_chosen, or chosen-rating); other columns are ignored and listed.

    Args:
        source: A file or folder, as ``sources.WANTED`` lists them, or ``org/name[@revision][:split]`` on the hub.
        on_bad_rows: ``"refuse"`` ends with the first twenty problems; ``"drop"`` leaves such rows out, counted.
        column_map: The file's name for a standard column, such as ``{"prompt": "question"}``; ``-`` for a column that
            the file does not have, or one of its own that is to be left out.
        max_row_bytes: Limit for one row.
        dedup: Leave out rows that repeat an earlier one.

    Raises:
        UsageError: If the source is of a kind that is not read.
        DataError: If rows cannot be used, naming file, line, field and fix.
        MachineError: If the file cannot be opened or the hub not reached.
    """
    _check_column_map(column_map or {})
    with open_source(source, max_row_bytes) as opened:
        sha256 = sha256_of(source, opened.files) if opened.files else ""
        problems = Problems(source, on_bad_rows)
        digest = hashlib.sha256()
        collector = Collector(problems, dedup=dedup)
        head = list(islice(opened.rows, _HEADER_ROWS))
        columns = Columns.of(source, [(n, row) for n, row in head if isinstance(row, dict)], column_map or {})
        for number, row in chain(head, opened.rows):
            collector.rows += 1
            try:
                if isinstance(row, RowError):
                    raise row
                if not opened.files:
                    digest.update(repr(sorted(row.items(), key=str)).encode("utf-8", "surrogatepass"))
                standard = columns.standard(row)
                pair = make_pair(standard, has_prompt=columns.has_prompt, max_row_bytes=max_row_bytes, row=number)
                collector.add(pair)
            except RowError as problem:
                place, at = opened.place(source, number)
                problems.add(at, problem, place)
    loaded = LoadedPairs(
        pairs=tuple(collector.pairs), source=source, sha256=sha256 or digest.hexdigest(), report=LoadReport()
    )
    if opened.files:
        check_unchanged(loaded)
    collector.finish()
    return replace(loaded, report=collector.report(columns, opened.notes))


def check_unchanged(loaded: LoadedPairs) -> None:
    """Make sure that a file still is what was read from it; a hub dataset is a snapshot and passes.

    Raises:
        DataError: If the file has changed since.
    """
    path = Path(loaded.source)
    if HUB_NAME.fullmatch(loaded.source) and not path.exists():
        return
    now = sha256_of(loaded.source, local_files(loaded.source) or (path,))
    if now != loaded.sha256:
        changed = f"the file changed while it was in use (SHA-256 {loaded.sha256[:12]}... then, {now[:12]}... now)"
        raise refuse(loaded.source, 0, RowError("DATA028", changed, fix="run again on a file that nobody writes to"))


def _check_column_map(column_map: Mapping[str, str]) -> None:
    for name, mapped in column_map.items():
        if name not in COLUMNS and mapped != NONE:
            raise UsageError(f"--column-map: {show(name)} is no standard column; it is one of {', '.join(COLUMNS)}")


class Collector:
    """Gathers pairs, numbers their prompts, and finds duplicates and contradictions by hash."""

    def __init__(self, problems: Problems, *, dedup: bool) -> None:
        self.pairs: list[Pair] = []
        self.rows = 0
        self._problems = problems
        self._dedup = dedup
        self._prompts: dict[bytes, int] = {}
        self._seen: dict[bytes, int] = {}
        self._duplicates: list[tuple[int, int]] = []
        self._contradictions: list[tuple[int, int]] = []
        self._first_of_form: dict[str, int] = {}

    def add(self, pair: Pair) -> None:
        """Keep a pair.

        Raises:
            RowError: If earlier rows were of the other form.
        """
        self._check_form(pair)
        prompt = prompt_key(pair.prompt)
        chosen, rejected = _key(pair.chosen), _key(pair.rejected)
        same, swapped = _hash(prompt, chosen, rejected), _hash(prompt, rejected, chosen)
        if same in self._seen:
            self._duplicates.append((self._seen[same], pair.row))
            if self._dedup:
                self._problems.dropped["duplicate of an earlier row"] += 1
                return
        elif swapped in self._seen:
            self._contradictions.append((self._seen[swapped], pair.row))
        self._seen.setdefault(same, pair.row)
        prompt_id = self._prompts.setdefault(_hash(prompt), len(self._prompts))
        self.pairs.append(replace(pair, prompt_id=prompt_id))

    def _check_form(self, pair: Pair) -> None:
        form = "text" if isinstance(pair.prompt, str) else "messages"
        self._first_of_form.setdefault(form, pair.row)
        if len(self._first_of_form) > 1:
            first = ", ".join(f"{form} first in row {row}" for form, row in self._first_of_form.items())
            raise RowError("DATA007", f"rows of text and rows of messages in one source: {first}", fix="split the file")

    def finish(self) -> None:
        """Refuse what cannot be used.

        Raises:
            DataError: For the problems collected, for too many contradictions, or where no row is left.
        """
        share = 2 * len(self._contradictions) / max(len(self.pairs), 1)
        if share > _MAX_CONTRADICTIONS:
            message = (
                f"{len(self._contradictions)} rows contradict an earlier one (same prompt, chosen and rejected "
                f"swapped), {share:.0%} of the rows are involved: lines {_lines(self._contradictions)}"
            )
            self._problems.add(0, RowError("DATA017", message, fix="keep one row of each such two"))
        self._problems.raise_if_any(self.rows)
        if not self.pairs:
            dropped = "; ".join(f"{reason}: {n}" for reason, n in sorted(self._problems.dropped.items()))
            message = f"every row was dropped ({dropped})" if dropped else "there are no rows"
            raise refuse(self._problems.source, 0, RowError("DATA001", message, fix="give at least one usable row"))

    def report(self, columns: Columns, notes: Sequence[str]) -> LoadReport:
        """What was found in rows that were kept; ``notes`` go before it."""
        gaps = [
            pair.chosen_score - pair.rejected_score
            for pair in self.pairs
            if pair.chosen_score is not None and pair.rejected_score is not None
        ]
        ties, against = sum(gap == 0 for gap in gaps), sum(gap < 0 for gap in gaps)
        warnings = [*notes, *self._about_columns(columns), *self._about_rows()]
        if ties or against:
            warnings.append(
                f"scores: of {len(gaps)} rows that have both, {ties} tie and {against} contradict the label (the "
                "rejected response has the higher one)"
            )
        if columns.extra:
            warnings.append(f"columns ignored: {', '.join(show(name) for name in sorted(columns.extra))}")
        return LoadReport(
            rows=self.rows,
            dropped=dict(sorted(self._problems.dropped.items())),
            duplicates=len(self._duplicates),
            contradictions=tuple(self._contradictions),
            extra_columns=tuple(sorted(columns.extra)),
            implicit_prompts=0 if columns.has_prompt else len(self.pairs),
            scored=len(gaps),
            score_ties=ties,
            score_contradictions=against,
            warnings=tuple(warnings),
        )

    def _about_columns(self, columns: Columns) -> list[str]:
        """What the user should know of the source's columns and its revision."""
        warnings = list(columns.notes)
        if columns.has_system:
            warnings.append("rows are read as chats, since they have a system column")
        hub = None if Path(self._problems.source).exists() else HUB_NAME.fullmatch(self._problems.source)
        if hub and not re.fullmatch("[0-9a-f]{40}", hub["revision"] or ""):
            warnings.append("the dataset's revision is not pinned: name@ and the 40 digits of a commit make it so")
        return warnings

    def _about_rows(self) -> list[str]:
        """What the user should know of rows that contradict or repeat another."""
        warnings = []
        if self._contradictions:
            warnings.append(
                f"{len(self._contradictions)} rows contradict an earlier one (same prompt, chosen and rejected "
                f"swapped): lines {_lines(self._contradictions)}"
            )
        if self._duplicates:
            kept = "dropped" if self._dedup else "kept; --dedup drops them"
            warnings.append(
                f"{len(self._duplicates)} rows repeat an earlier one ({kept}): lines {_lines(self._duplicates)}"
            )
        return warnings


def _key(value: object) -> str:
    return prompt_key(value) if isinstance(value, tuple) else normalise(str(value))


def _hash(*parts: str) -> bytes:
    return hashlib.blake2b("\x1d".join(parts).encode("utf-8"), digest_size=16).digest()


def _lines(rows: list[tuple[int, int]]) -> str:
    more = ", ..." if len(rows) > _WARNED else ""
    return ", ".join(f"{first} and {later}" for first, later in rows[:_WARNED]) + more
