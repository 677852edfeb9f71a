"""The values that are passed on: a validated pair, a tokenised pair, and what was counted while making each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

BadRows = Literal["refuse", "drop"]


class Message(NamedTuple):
    """One turn of a conversation, as chat templates take it.

    Attributes:
        role: system, user, assistant or tool.
        content: What is said; may be empty where there are tool calls.
        reasoning_content: The thought before it, where the row gives it apart.
        tool_calls: A JSON list of calls, each with a function's name and arguments; empty for none.
        name: Of the tool that answers.
        tool_call_id: Which call a tool answers.
    """

    role: str
    content: str
    reasoning_content: str = ""
    tool_calls: str = ""
    name: str = ""
    tool_call_id: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The message as rows and templates have it: role, content (None beside calls), and the keys that say more."""
        message: dict[str, Any] = {key: value for key, value in self._asdict().items() if value or key == "role"}
        message.setdefault("content", None if self.tool_calls else "")
        if self.tool_calls:
            message["tool_calls"] = json.loads(self.tool_calls)
        return message


Text = str | tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """One validated preference pair, as text or as chat messages.

    Attributes:
        prompt: Text, or messages up to the response. A row is text throughout or messages throughout.
        chosen: The preferred response: text, or one assistant message.
        rejected: The other response, likewise; never equal to ``chosen``.
        chosen_score: What the data says ``chosen`` is worth (gold reward or annotator's score), or None.
        rejected_score: Likewise.
        prompt_id: The same for prompts that are equal after NFC and collapsing white space.
        row: 1-based line (JSONL) or row in the source, for messages.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    chosen_score: float | None
    rejected_score: float | None
    prompt_id: int
    row: int


@dataclass(frozen=True, slots=True)
class TokenPair:
    """One tokenised pair; ``prompt_ids + chosen_ids`` is what the model reads.

    Attributes:
        prompt_ids: At least one token; starts with BOS once where the tokenizer or the template puts it.
        chosen_ids: At least one token; ends with the end token exactly once unless truncated.
        rejected_ids: Likewise; never equal to ``chosen_ids``.
        prompt_id: As in ``Pair``.
        pair_id: Position of the pair in the list that was tokenised.
        chosen_score: As in ``Pair``.
        rejected_score: As in ``Pair``.
        chosen_truncated: Whether the response lost its end to the length limit.
        rejected_truncated: Likewise.
        chosen_gold: The gold reward of ``chosen``, where another reward labelled the pair; else None.
        rejected_gold: Likewise.
        weight: What the pair counts in a step's mean: 0 for a tie, which nobody can label.
    """

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    prompt_id: int
    pair_id: int
    chosen_score: float | None
    rejected_score: float | None
    chosen_truncated: bool
    rejected_truncated: bool
    chosen_gold: float | None = None
    rejected_gold: float | None = None
    weight: float = 1.0

    @property
    def ids(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The tokens of prompt, chosen and rejected."""
        return self.prompt_ids, self.chosen_ids, self.rejected_ids

    @property
    def length(self) -> int:
        """Tokens of the packed row ``[prompt | chosen | rejected]``."""
        return len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """K responses of one prompt with their rewards.

    Attributes:
        prompt_ids: As in ``TokenPair``.
        responses: K times ids, with the end token where it was reached; two may be equal.
        finished: Whether each reached its end.
        rewards: What labels them.
        preference: What the labels rank by: the rewards with the labels' noise.
        prompt_id: As in ``TokenPair``.
        golds: The gold rewards, where other rewards label; else None.
    """

    prompt_ids: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    finished: tuple[bool, ...]
    rewards: tuple[float, ...]
    preference: tuple[float, ...]
    prompt_id: int
    golds: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What was counted while pairs were loaded.
    Attributes:
        rows: Rows read.
        dropped: Rows left out, by reason (an error code and what it stands for).
        duplicates: Rows that repeat an earlier row in prompt, chosen and rejected.
        contradictions: Pairs of rows (earlier, later) with one prompt and the responses swapped.
        extra_columns: Columns that were ignored.
        implicit_prompts: Rows whose prompt was taken from what chosen and rejected share.
        scored: Rows with both scores.
        score_ties: Rows whose scores are equal.
        score_contradictions: Rows whose rejected response has the higher score.
        warnings: Sentences for the user.
    """

    rows: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    duplicates: int = 0
    contradictions: tuple[tuple[int, int], ...] = ()
    extra_columns: tuple[str, ...] = ()
    implicit_prompts: int = 0
    scored: int = 0
    score_ties: int = 0
    score_contradictions: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadedPairs:
    """Validated pairs of one source.

    Attributes:
        pairs: At least one.
        source: The path or hub name as given.
        sha256: Of the file's bytes, or of the rows of a hub dataset; 64 hex digits.
        report: What was found.
    """

    pairs: tuple[Pair, ...]
    source: str
    sha256: str
    report: LoadReport


@dataclass(frozen=True, slots=True)
class TokenizedPairs:
    """Tokenised pairs, with counts over the pairs that were kept.

    Attributes:
        pairs: At least one.
        truncated_chosen: Responses cut to the length limit.
        truncated_rejected: Likewise.
        no_eos_chosen: Share of responses in [0, 1] that do not end with the tokenizer's EOS.
        no_eos_rejected: Likewise.
        control_tokens: Control tokens found in the rows' own text and encoded as text.
        boundary_merges: Pairs in which tokenising prompt and chosen in one piece would have merged the boundary.
        truncated_prompts: Prompts that lost their beginning to the length limit.
        ends: The tokens with which responses end.
        dropped: Rows left out, by reason.
        warnings: Sentences for the user.
    """

    pairs: tuple[TokenPair, ...]
    truncated_chosen: int
    truncated_rejected: int
    no_eos_chosen: float
    no_eos_rejected: float
    control_tokens: int
    boundary_merges: int
    truncated_prompts: int = 0
    ends: tuple[int, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
